//! The HTTP API without a node: any number of such servers, on one database, behind a balancer.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chatring_client::token::{TOKEN_KEY_FILE, TokenKey};
use rustix::process::{Resource, getrlimit};
use serde_json::json;
use tracing::{info, warn};

use super::{
    Ended, StartError, open_accounts, raise_open_files, reachable, remove, scheme, start_api,
    write_ready,
};
use crate::api::{NodeParts, Phase};
use crate::auth::{AuthError, Verifier};
use crate::config::Config;
use crate::files::Rooms;
use crate::limits::{DRAIN_MS_MAX, READY_POLL_MS};
use crate::link::{self, Links, LinksConfig, Shards};
use crate::metrics::of_process;

/// Runs the HTTP API alone until a signal. `on_ready` is called with its URL once a node is linked.
///
/// # Errors
/// What the operator has to mend: keys, addresses, a database that is not PostgreSQL or is not
/// there, no node.
pub fn run_api(
    config: &Config,
    ready_file: Option<&Path>,
    on_ready: impl FnOnce(&str),
) -> Result<Ended, StartError> {
    let started = SystemTime::now();
    if let Some(path) = ready_file {
        remove(path).map_err(|error| StartError::ReadyFile { path: path.to_owned(), error })?;
    }
    let [node] = &config.cluster.nodes[..] else {
        let message = "cluster.nodes must name the node that this server reaches";
        return Err(StartError::Clients(message.to_owned()));
    };
    if config.accounts.database.is_empty() {
        let message = "accounts.database must be the PostgreSQL database of the node: SQLite's \
                       file belongs to one process";
        return Err(StartError::Clients(message.to_owned()));
    }
    let data = &config.server.data;
    let token_key = Arc::new(shared_token_key(data)?);
    let key = link::read_key(&config.cluster.key_file(data))?;
    raise_open_files();
    // A second signal does not wait for whoever handles the first.
    let (tell, told) = flume::bounded(2);
    let http = Rooms::of_api(config, getrlimit(Resource::Nofile).current).http;
    let (api, tls) = start_api(config, http, move || {
        let _ = tell.try_send(());
    })?;
    let verifier = Arc::new(Verifier::new(&config.auth, Some(&token_key))?);
    let links = Links::new(LinksConfig {
        node: node.clone(),
        key,
        token_key: token_key.id().to_owned(),
        calls_max: config.link.calls_max,
    });
    api.keep_links(links.clone());
    open_accounts(&api, config, token_key, verifier.revocations())?;
    let (scraped, tokens) = (links.clone(), Arc::clone(&verifier));
    api.set_node(NodeParts { verifier, shards: Some(Shards::Linked(links.clone())) });
    api.set_scrape(Box::new(move || {
        let mut metrics = of_process(started);
        metrics.extend(scraped.metrics());
        metrics.extend(tokens.metrics());
        metrics.extend(tls.iter().flat_map(|tls| tls.metrics()));
        metrics
    }));
    // What lacks is seen when it is asked for.
    api.set_phase(Phase::Ready);
    let poll = Duration::from_millis(READY_POLL_MS);
    let mut stopped = false;
    while !links.is_up() && !stopped {
        stopped = told.recv_timeout(poll).is_ok();
    }
    if !stopped {
        let http = format!("{}://{}", scheme(config, "http"), reachable(api.local_addr()));
        if let Some(path) = ready_file {
            let ready = json!({
                "http": http,
                "pid": std::process::id(),
                "version": env!("CARGO_PKG_VERSION"),
            });
            write_ready(path, &format!("{ready:#}\n"))?;
        }
        info!(http, node, "ready");
        on_ready(&http);
        let _ = told.recv();
    }
    api.set_phase(Phase::Draining);
    info!("draining");
    let until = Instant::now() + Duration::from_millis(DRAIN_MS_MAX);
    while api.connections() > 0 {
        if told.recv_timeout(poll).is_ok() {
            return Ok(Ended::Forced);
        }
        if Instant::now() >= until {
            warn!("ended before everything was finished");
            break;
        }
    }
    api.stop();
    Ok(Ended::Drained)
}

/// The key that signs the deployment's tokens, which a node has made.
fn shared_token_key(data: &Path) -> Result<TokenKey, AuthError> {
    let path = data.join(TOKEN_KEY_FILE);
    TokenKey::read(&path).map_err(|error| AuthError::OwnKey { path, error })
}
