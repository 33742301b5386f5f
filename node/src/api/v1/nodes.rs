//! Which nodes there are.

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::Shared;
use crate::api::extract::{Answer, Caller};

/// The nodes of the deployment.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Nodes {
    /// Each of them; one today.
    nodes: Vec<NodeBody>,
}

/// A node.
#[derive(Debug, Serialize, JsonSchema)]
struct NodeBody {
    /// URL of its WebSocket.
    ws: String,
    /// What runs there.
    version: &'static str,
}

pub(super) async fn list(_: Caller, State(state): State<Shared>) -> Answer<Nodes> {
    let node = NodeBody { ws: state.ws_url().to_owned(), version: env!("CARGO_PKG_VERSION") };
    Answer(Nodes { nodes: vec![node] })
}
