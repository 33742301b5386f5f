//! Which nodes there are.

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::Shared;
use crate::api::extract::{Answer, Caller};
use crate::api::problem::Problem;
use crate::link::NodeSeen;

/// The nodes of the deployment.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Nodes {
    /// Each of them; one today.
    nodes: Vec<NodeBody>,
}

/// A node.
#[derive(Debug, Serialize, JsonSchema)]
struct NodeBody {
    /// URL of its WebSocket; null until this server has reached it once.
    ws: Option<String>,
    /// What runs there; null until this server has reached it once.
    version: Option<String>,
    /// Whether this server reaches it now.
    up: bool,
}

pub(super) async fn list(_: Caller, State(state): State<Shared>) -> Result<Answer<Nodes>, Problem> {
    let nodes = state.chat()?.shards().nodes().into_iter();
    let nodes = nodes.map(|NodeSeen { ws, version, up }| NodeBody { ws, version, up });
    Ok(Answer(Nodes { nodes: nodes.collect() }))
}
