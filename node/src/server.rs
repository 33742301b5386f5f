//! The life of the server: start, ready, drain, end.
//!
//! ```text
//!   HTTP (503) ─▶ store, gateway ─▶ all shards accept ─▶ ready file, HTTP (200)
//!                                                            │ SIGTERM, SIGINT
//!   end ◀─ store closed ◀─ gateway drained (≤ 4 s) ◀─ HTTP (503)
//!    ▲                                │ a second signal, or 5 s
//!    └────────────────────────────────┘
//! ```
//!
//! A server that runs the API alone ([`run_api`]) has no store: it is ready with its database and a
//! link, and drains its connections.
//!
//! A signal while the store opens ends the server at once: nobody is served yet, and a store that
//! is left in the middle of its recovery recovers again.

mod alone;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chatring_client::token::TokenKey;
use chatring_wire::frame::Durability;
use flume::RecvTimeoutError;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use serde_json::json;
use thiserror::Error;
use tracing::{info, warn};

pub use self::alone::run_api;
use crate::api::limits::HTTP_HEAD_MS_MAX;
use crate::api::{AccountsParts, Api, ApiConfig, ApiEvent, NodeParts, Phase};
use crate::auth::{AuthError, Revocations, Verifier, write_private};
use crate::config::Config;
use crate::files::Rooms;
use crate::gateway::{Calls, HttpSink, WS_PATH};
use crate::limits::{DRAIN_MS_MAX, END_MS_MAX, READY_MS_MAX, READY_POLL_MS};
use crate::link::{self, Acceptor, AcceptorConfig, KeyError, NodeInfo, Shards};
use crate::metrics::{Metric, of_process};
use crate::scheduler;
use crate::tls::{ServerTls, TlsError};

/// What serves clients: the shards with their store.
pub trait Clients: Send + Sync + 'static {
    /// Where it listens.
    fn local_addr(&self) -> SocketAddr;

    /// How many shards it has.
    fn shards(&self) -> u16;

    /// What moves the bytes of its sockets.
    fn driver(&self) -> &str;

    /// How many connections it takes.
    fn connections_max(&self) -> usize;

    /// The file of the deployment's own token key.
    fn token_key_file(&self) -> &Path;

    /// Whose tokens are good.
    fn verifier(&self) -> Arc<Verifier>;

    /// The deployment's own key.
    fn token_key(&self) -> Arc<TokenKey>;

    /// Where calls at the shards are made; `None` once they drain.
    fn calls(&self) -> Option<Calls>;

    /// Whether all shards accept.
    fn is_ready(&self) -> bool;

    /// Tells sessions when to come back, refuses new ones, finishes what is in flight and closes
    /// the store.
    fn drain(&self, timeout: Duration) -> Drained;

    /// Its figures.
    fn metrics(&self) -> Vec<Metric>;
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything in flight was finished.
    Whole,
    /// The time was over before; clients send again what was not answered.
    TimedOut,
}

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// After a drain.
    Drained,
    /// By a signal before the store was open. Threads still run: end the process at once.
    Unstarted,
    /// By a second signal, or because the store did not close in time. Threads may still run: end
    /// the process at once.
    Forced,
}

/// Why the server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address cannot be taken.
    #[error("cannot listen on {addr}: {error}")]
    Listen {
        /// Which one.
        addr: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The ready file cannot be removed or written.
    #[error("ready file {}: {error}", path.display())]
    ReadyFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Keys.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key of the cluster.
    #[error(transparent)]
    ClusterKey(#[from] KeyError),
    /// The store, the shards.
    #[error("{0}")]
    Clients(String),
}

/// What the clients' address has beside WebSockets.
#[derive(Clone)]
pub struct Door {
    /// Where connections go that speak HTTP.
    pub http: HttpSink,
    /// What the address speaks TLS with, if it does.
    pub tls: Option<Arc<ServerConfig>>,
}

/// Where a server that is ready can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For WebSocket clients.
    pub ws: String,
    /// For HTTP.
    pub http: String,
}

/// Runs until a signal. `start` opens the store and starts the shards, which give connections that
/// speak HTTP to the sink; `on_ready` is called once all of them accept.
pub fn run<C: Clients>(
    config: &Config,
    ready_file: Option<&Path>,
    start: impl FnOnce(&Config, Door) -> Result<C, StartError> + Send + 'static,
    on_ready: impl FnOnce(&Addresses),
) -> Result<Ended, StartError> {
    let started = SystemTime::now();
    if let Some(path) = ready_file {
        remove(path).map_err(|error| StartError::ReadyFile { path: path.to_owned(), error })?;
    }
    raise_open_files();
    scheduler::check();
    // Two signals, one start and one end of the drain are all that is ever told.
    let (tell, told) = flume::bounded(4);
    let on_signal = tell.clone();
    let files = getrlimit(Resource::Nofile).current;
    let http = Rooms::of_node(config, files).http;
    let (api, tls) = start_api(config, http, move || {
        // Whoever is to be told and has not looked yet will look.
        let _ = on_signal.try_send(Event::Signal);
    })?;
    let door = Door { http: api.sink(), tls: tls.as_ref().map(|tls| tls.websocket()) };
    let start = move |config: &Config| start(config, door);
    let clients = match open(config, start, &tell, &told)? {
        Some(clients) => Arc::new(clients),
        None => return Ok(Ended::Unstarted),
    };
    let verifier = clients.verifier();
    open_accounts(&api, config, clients.token_key(), verifier.revocations())?;
    let links = listen_for_links(config, &*clients)?;
    let ws = ws_url(config, &*clients);
    api.set_node(NodeParts {
        verifier,
        shards: clients.calls().map(|calls| Shards::Here { calls, ws }),
    });
    let (scraped, acceptor) = (Arc::clone(&clients), links.clone());
    api.set_scrape(Box::new(move || {
        let mut metrics = of_process(started);
        metrics.extend(scraped.metrics());
        metrics.extend(scraped.verifier().metrics());
        metrics.extend(tls.iter().flat_map(|tls| tls.metrics()));
        metrics.extend(acceptor.iter().flat_map(Acceptor::metrics));
        metrics
    }));
    if wait_ready(&*clients, &told)? == Waited::Ready {
        let addresses = Addresses {
            ws: own_ws_url(config, &*clients),
            http: format!("{}://{}", scheme(config, "http"), reachable(api.local_addr())),
        };
        api.set_phase(Phase::Ready);
        let link = links.as_ref().map(|acceptor| reachable(acceptor.local_addr()).to_string());
        if let Some(acceptor) = links {
            api.serve_links(acceptor);
        }
        if let Some(path) = ready_file {
            write_ready(path, &ready_text(&addresses, &*clients, link.as_deref()))?;
        }
        info!(
            ws = addresses.ws,
            http = addresses.http,
            shards = clients.shards(),
            driver = clients.driver(),
            link,
            connections_max = clients.connections_max(),
            "ready"
        );
        on_ready(&addresses);
        let _ = told.recv();
    }
    api.set_phase(Phase::Draining);
    info!("draining");
    std::thread::spawn(move || {
        let drained = clients.drain(Duration::from_millis(DRAIN_MS_MAX));
        let _ = tell.try_send(Event::Drained(drained));
    });
    match told.recv_timeout(Duration::from_millis(END_MS_MAX)) {
        Ok(Event::Drained(Drained::Whole)) => info!("drained"),
        Ok(Event::Drained(Drained::TimedOut)) => warn!("ended before everything was finished"),
        Err(RecvTimeoutError::Timeout) => {
            warn!("the store has not closed in time; everything acknowledged is stored");
            return Ok(Ended::Forced);
        }
        Ok(Event::Signal | Event::Started(_)) | Err(RecvTimeoutError::Disconnected) => {
            return Ok(Ended::Forced);
        }
    }
    api.stop();
    Ok(Ended::Drained)
}

/// The service thread, and the certificate that it and the shards show, if there is one.
fn start_api(
    config: &Config,
    connections_max: usize,
    on_signal: impl Fn() + Send + 'static,
) -> Result<(Api, Option<Arc<ServerTls>>), StartError> {
    let tls = ServerTls::open(&config.tls)?;
    let (reload, reloaded) = flume::bounded(1);
    if let Some(tls) = &tls {
        tls.watch(reloaded).map_err(|error| StartError::Clients(error.to_string()))?;
    }
    let api_config = ApiConfig {
        listen: config.server.http,
        connections_max,
        connections_per_ip_max: config.limits.http_connections_per_ip_max,
        cors_origins: config.server.cors_origins.clone(),
        trusted_proxies: config.server.trusted_proxies.clone(),
        forwarded_header: config.server.forwarded_header,
        bad_tokens_per_ip_hour: config.limits.bad_tokens_per_ip_hour,
        bad_tokens_per_ip_burst: config.limits.bad_tokens_per_ip_burst,
        idle_ms_max: HTTP_HEAD_MS_MAX,
        tls: tls.as_ref().map(|tls| tls.http()),
        reloads: tls.is_some(),
    };
    let api = Api::start(&api_config, move |event| match event {
        ApiEvent::Stop => on_signal(),
        ApiEvent::Reload => {
            let _ = reload.try_send(());
        }
    });
    let api = api.map_err(|error| StartError::Listen { addr: config.server.http, error })?;
    Ok((api, tls))
}

fn open_accounts(
    api: &Api,
    config: &Config,
    key: Arc<TokenKey>,
    revocations: &Arc<Revocations>,
) -> Result<(), StartError> {
    let accounts = AccountsParts {
        config: config.accounts.clone(),
        data: config.server.data.clone(),
        key,
        revocations: Arc::clone(revocations),
    };
    api.open_accounts(accounts).map_err(|error| StartError::Clients(error.to_string()))
}

/// Takes the address for links, if there is to be one.
fn listen_for_links(
    config: &Config,
    clients: &impl Clients,
) -> Result<Option<Acceptor>, StartError> {
    let (Some(listen), Some(calls)) = (config.link.address(), clients.calls()) else {
        return Ok(None);
    };
    let acceptor = AcceptorConfig {
        listen,
        key: link::own_key(&config.cluster.key_file(&config.server.data))?,
        calls_max: config.link.calls_max,
        info: NodeInfo {
            ws: ws_url(config, clients),
            token_key: clients.token_key().id().to_owned(),
            durability: Durability::Fsync,
        },
    };
    let acceptor = Acceptor::bind(acceptor, calls);
    acceptor.map(Some).map_err(|error| StartError::Listen { addr: listen, error })
}

/// Where clients that log in are sent: as configured, or as somebody on this machine reaches it.
fn ws_url(config: &Config, clients: &impl Clients) -> String {
    match config.server.ws_url.as_str() {
        "" => own_ws_url(config, clients),
        url => url.to_owned(),
    }
}

fn own_ws_url(config: &Config, clients: &impl Clients) -> String {
    format!("{}://{}{WS_PATH}", scheme(config, "ws"), reachable(clients.local_addr()))
}

fn scheme(config: &Config, plain: &'static str) -> String {
    match config.tls.certificate.as_os_str().is_empty() {
        true => plain.to_owned(),
        false => format!("{plain}s"),
    }
}

/// Has the store opened and the shards started on a thread of their own, so that a signal ends the
/// wait for a long recovery: then there are no clients.
fn open<C: Clients>(
    config: &Config,
    start: impl FnOnce(&Config) -> Result<C, StartError> + Send + 'static,
    tell: &flume::Sender<Event<C>>,
    told: &flume::Receiver<Event<C>>,
) -> Result<Option<C>, StartError> {
    let (config, tell) = (config.clone(), tell.clone());
    std::thread::spawn(move || {
        let started = start(&config);
        let _ = tell.send(Event::Started(started));
    });
    match told.recv() {
        Ok(Event::Started(started)) => started.map(Some),
        Ok(Event::Signal | Event::Drained(_)) | Err(_) => {
            info!("stopped by a signal before the store was open");
            Ok(None)
        }
    }
}

#[derive(PartialEq)]
enum Waited {
    Ready,
    /// A signal came first.
    Stopped,
}

/// Recovery has no bound of its own: that of a large store takes as long as it takes. Once the
/// store is open the shards need a few reads each.
fn wait_ready<C: Clients>(
    clients: &C,
    told: &flume::Receiver<Event<C>>,
) -> Result<Waited, StartError> {
    let until = Instant::now() + Duration::from_millis(READY_MS_MAX);
    while !clients.is_ready() {
        if told.recv_timeout(Duration::from_millis(READY_POLL_MS)).is_ok() {
            return Ok(Waited::Stopped);
        }
        if Instant::now() >= until {
            return Err(StartError::Clients("the shards were not ready in time".to_owned()));
        }
    }
    Ok(Waited::Ready)
}

enum Event<C> {
    Signal,
    Started(Result<C, StartError>),
    Drained(Drained),
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_ready(path: &Path, text: &str) -> Result<(), StartError> {
    write_private(path, text.as_bytes())
        .map_err(|error| StartError::ReadyFile { path: path.to_owned(), error })
}

fn ready_text(addresses: &Addresses, clients: &impl Clients, link: Option<&str>) -> String {
    let key = clients.token_key_file();
    let key = std::path::absolute(key).unwrap_or_else(|_| key.to_owned());
    let mut ready = json!({
        "ws": addresses.ws,
        "http": addresses.http,
        "pid": std::process::id(),
        "token_key_file": key.to_string_lossy(),
        "version": env!("CARGO_PKG_VERSION"),
        "shards": clients.shards(),
    });
    if let Some(link) = link {
        ready["link"] = link.into();
    }
    format!("{ready:#}\n")
}

/// An address that listens everywhere, as somebody on this machine reaches it.
fn reachable(mut addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    addr
}

/// Each connection takes a descriptor; the soft limit is made for programs that use `select`.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests;
