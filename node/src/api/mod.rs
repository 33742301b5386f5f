//! The service thread: the HTTP API and the signals, on a small tokio runtime of its own.
//!
//! ```text
//!  socket ─▶ HTTP/1.1 or 2 ─▶ route ─▶ extractors: token, path, query, body ─▶ handler ─▶ answer
//!                                       each refuses what is wrong as a problem (RFC 9457)
//! ```

pub mod accounts;
mod activity;
mod bodies;
mod bucket;
mod chat;
mod describe;
mod docs;
mod endpoints;
mod exports;
mod extract;
mod jwks;
pub mod limits;
mod metrics;
mod operator;
mod parked;
mod places;
mod problem;
mod projector;
mod proxies;
mod routes;
mod serve;
mod socket;
mod stats;
mod tokens;
mod v1;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::http::HeaderValue;
use chatring_client::token::TokenKey;
use chatring_wire::ErrorCode;
use chatring_wire::frame::Durability;
use rustls::ServerConfig;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use self::accounts::{Accounts, OpenError, Upkeep};
use self::bodies::Bodies;
use self::bucket::Rate;
use self::chat::Chat;
use self::endpoints::Endpoints;
use self::exports::Exports;
use self::limits::{ACCOUNTS_CLOSE_MS_MAX, HTTP_HANDED_MAX};
use self::parked::Parking;
use self::places::Places;
use self::problem::Problem;
use self::proxies::Proxies;
use self::stats::RouteStats;
use self::tokens::Tokens;
use crate::auth::{Revocations, Verifier};
use crate::config;
use crate::gateway::{HttpSink, PlainHttp};
use crate::link::{Acceptor, Links, Shards};
use crate::metrics::{Metric, MetricValue};
use crate::takeover;

/// Gathers the figures of the node. Called on the service thread, so it must not wait for long.
pub type Scrape = Box<dyn Fn() -> Vec<Metric> + Send + Sync>;

/// How to run the API.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Connections in all; further ones wait.
    pub connections_max: usize,
    /// Connections of one address (IPv6: of one /64); further ones are closed.
    pub connections_per_ip_max: usize,
    /// Origins of web pages that browsers let use the API; `*` for all of them.
    pub cors_origins: Vec<String>,
    /// What its address speaks TLS with, if it does.
    pub tls: Option<Arc<ServerConfig>>,
    /// Whether SIGHUP has something read again.
    pub reloads: bool,
    /// Proxies that are believed when they say from whom a request comes.
    pub trusted_proxies: Vec<config::Network>,
    /// In which header they say it.
    pub forwarded_header: config::ForwardedHeader,
    /// Tokens of one address that may be no good, an hour, on average.
    pub bad_tokens_per_ip_hour: u32,
    /// The same at once.
    pub bad_tokens_per_ip_burst: u32,
    /// Time between two requests of a connection.
    pub idle_ms_max: u64,
}

impl ApiConfig {
    fn bad_tokens(&self) -> Rate {
        Rate { burst: self.bad_tokens_per_ip_burst, per_hour: self.bad_tokens_per_ip_hour }
    }

    fn proxies(&self) -> Proxies {
        Proxies::new(self.trusted_proxies.clone(), self.forwarded_header)
    }
}

/// What handlers need of a node.
pub struct NodeParts {
    /// Whose tokens are good.
    pub verifier: Arc<Verifier>,
    /// The shards.
    pub shards: Option<Shards>,
}

/// What the accounts are opened with.
pub struct AccountsParts {
    /// Their section of the configuration.
    pub config: config::Accounts,
    /// The data folder.
    pub data: PathBuf,
    /// The deployment's own key.
    pub key: Arc<TokenKey>,
    /// Those of the verifier.
    pub revocations: Arc<Revocations>,
}

/// What the service thread tells the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiEvent {
    /// SIGTERM or SIGINT arrived.
    Stop,
    /// SIGHUP arrived: what lies in files is to be read again.
    Reload,
}

/// How far the node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It recovers.
    Starting,
    /// All shards accept.
    Ready,
    /// It is about to stop.
    Draining,
}

/// The running service thread.
#[derive(Debug)]
pub struct Api {
    addr: SocketAddr,
    state: Arc<State>,
    hand: mpsc::Sender<PlainHttp>,
    runtime: Handle,
    upkeep: Mutex<Option<Upkeep>>,
    stop: watch::Sender<()>,
    thread: JoinHandle<()>,
}

impl Api {
    /// Listens, and catches the signals from here on. `on_event` is called on the service thread.
    pub fn start(
        config: &ApiConfig,
        on_event: impl Fn(ApiEvent) + Send + 'static,
    ) -> io::Result<Api> {
        Api::start_with(config, v1::endpoints(), on_event)
    }

    fn start_with(
        config: &ApiConfig,
        endpoints: Endpoints,
        on_event: impl Fn(ApiEvent) + Send + 'static,
    ) -> io::Result<Api> {
        let listen = config.listen;
        let listener = takeover::wait_for_address(listen, || TcpListener::bind(listen))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let origins = config.cors_origins.iter().map(|origin| HeaderValue::from_str(origin));
        let origins: Vec<HeaderValue> =
            origins.collect::<Result<_, _>>().map_err(io::Error::other)?;
        let built = endpoints.build();
        let places = Places::new(config.connections_max, config.connections_per_ip_max);
        let state = Arc::new(State::new(places, built.stats.clone(), config));
        let routers = routes::routers(built, &state, &origins);
        let (hand, handed) = mpsc::channel(HTTP_HANDED_MAX);
        let (stop, stopped) = watch::channel(());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let signals = {
            let _guard = runtime.enter();
            serve::Signals::new(config.reloads)?
        };
        let counted = Arc::clone(&state);
        let tls = config.tls.clone();
        let thread = std::thread::Builder::new().name("service".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let signals = signals.forward(on_event);
                let gone = serve::take_handed(handed, routers.public, Arc::clone(&counted));
                let served = serve::serve(listener, routers.own, counted, tls, stopped);
                tokio::select! {
                    () = signals => {}
                    () = served => {}
                    () = gone => {}
                }
            });
        })?;
        Ok(Api { addr, state, hand, runtime: handle, upkeep: Mutex::default(), stop, thread })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where connections to another address go that turn out to speak HTTP. They are told nothing
    /// of the operator's. When too many wait they are closed.
    pub fn sink(&self) -> HttpSink {
        let (hand, state) = (self.hand.clone(), Arc::clone(&self.state));
        Arc::new(move |connection| {
            if hand.try_send(connection).is_err() {
                state.refused.fetch_add(1, Ordering::Relaxed);
            }
        })
    }

    /// From now on `/readyz` answers so. When the node drains, connections end after the request
    /// that they are at.
    pub fn set_phase(&self, phase: Phase) {
        self.state.phase.send_replace(phase);
    }

    /// What `/metrics` asks. Only the first call counts.
    pub fn set_scrape(&self, scrape: Scrape) {
        let _ = self.state.scrape.set(scrape);
    }

    /// What handlers work with, once there is one. Only the first call counts; before it everybody
    /// is told to come back.
    pub fn set_node(&self, node: NodeParts) {
        let NodeParts { verifier, shards } = node;
        if let Some(shards) = shards {
            let is_first = self.state.chat.set(Chat::new(shards)).is_ok();
            if is_first
                && let Some(Shards::Here { calls, .. }) = self.state.chat.get().map(Chat::shards)
            {
                let calls = calls.clone();
                self.runtime.spawn(async move { calls.carry().await });
            }
        }
        for set in verifier.key_sets() {
            self.runtime.spawn(jwks::keep(Arc::clone(set)));
        }
        let tokens = Tokens::new(verifier, self.state.bad_tokens);
        let _ = self.state.tokens.set(tokens);
    }

    /// Takes links of API servers from now on.
    pub fn serve_links(&self, acceptor: Acceptor) {
        let (drain, draining) = watch::channel(false);
        let state = Arc::clone(&self.state);
        self.runtime.spawn(acceptor.serve(draining));
        self.runtime.spawn(async move {
            state.draining().await;
            drain.send_replace(true);
        });
    }

    /// Keeps links to nodes from now on.
    pub fn keep_links(&self, links: Links) {
        self.runtime.spawn(links.keep());
    }

    /// How many HTTP connections are open.
    pub fn connections(&self) -> usize {
        self.state.places.taken()
    }

    /// Opens the accounts, on the service thread.
    ///
    /// # Errors
    /// The database, its schema, or the threads for passwords.
    pub fn open_accounts(&self, accounts: AccountsParts) -> Result<(), OpenError> {
        let AccountsParts { config, data, key, revocations } = accounts;
        let (tell, told) = std::sync::mpsc::channel();
        let state = Arc::clone(&self.state);
        self.runtime.spawn(async move {
            let clock = Arc::new(extract::unix_ms);
            let opened = Accounts::open(&config, &data, key, revocations, clock).await;
            let opened = opened.map(|accounts| {
                let mut upkeep = accounts.upkeep();
                let follows = projector::run(Arc::clone(&state), accounts.clone());
                upkeep.with(tokio::spawn(follows));
                let _ = state.accounts.set(accounts);
                upkeep
            });
            let _ = tell.send(opened);
        });
        let upkeep = told.recv().unwrap_or(Err(OpenError::Random))?;
        let mut kept = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(upkeep);
        Ok(())
    }

    /// Ends the thread.
    pub fn stop(self) {
        drop(self.upkeep);
        if let Some(accounts) = self.state.accounts.get().cloned() {
            let (tell, told) = std::sync::mpsc::channel();
            self.runtime.spawn(async move {
                accounts.close().await;
                let _ = tell.send(());
            });
            let _ = told.recv_timeout(Duration::from_millis(ACCOUNTS_CLOSE_MS_MAX));
        }
        drop(self.stop);
        let _ = self.thread.join();
    }
}

/// What handlers see of the node.
struct State {
    phase: watch::Sender<Phase>,
    scrape: OnceLock<Scrape>,
    tokens: OnceLock<Tokens>,
    chat: OnceLock<Chat>,
    accounts: OnceLock<Accounts>,
    parked: Parking,
    exports: Arc<Exports>,
    bodies: Arc<Bodies>,
    /// How far the chat store follows the accounts.
    projected: projector::Figures,
    places: Arc<Places>,
    proxies: Proxies,
    bad_tokens: Rate,
    /// Time between two requests of a connection.
    idle: Duration,
    /// Connections closed because there were too many.
    refused: AtomicU64,
    /// Handshakes of TLS that came to nothing.
    tls_failed: AtomicU64,
    stats: Vec<Arc<RouteStats>>,
}

type Shared = Arc<State>;

impl State {
    fn new(places: Arc<Places>, stats: Vec<Arc<RouteStats>>, config: &ApiConfig) -> State {
        State {
            phase: watch::Sender::new(Phase::Starting),
            scrape: OnceLock::new(),
            tokens: OnceLock::new(),
            chat: OnceLock::new(),
            accounts: OnceLock::new(),
            parked: Parking::default(),
            exports: Arc::default(),
            bodies: Arc::default(),
            projected: projector::Figures::default(),
            places,
            proxies: config.proxies(),
            bad_tokens: config.bad_tokens(),
            idle: Duration::from_millis(config.idle_ms_max),
            refused: AtomicU64::new(0),
            tls_failed: AtomicU64::new(0),
            stats,
        }
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn tokens(&self) -> Option<&Tokens> {
        self.tokens.get()
    }

    fn chat(&self) -> Result<&Chat, Problem> {
        self.chat.get().ok_or_else(|| ErrorCode::Unavailable.into())
    }

    fn accounts(&self) -> Option<&Accounts> {
        self.accounts.get()
    }

    /// URL of the WebSocket, for clients that log in.
    fn ws(&self) -> Option<String> {
        self.chat.get()?.shards().ws()
    }

    /// What "stored" means here.
    fn durability(&self) -> &'static str {
        self.chat.get().map_or(Durability::Memory, |chat| chat.shards().durability()).name()
    }

    /// What a server that runs alone lacks to serve anybody.
    async fn lacks(&self) -> Option<&'static str> {
        let Some(Shards::Linked(links)) = self.chat.get().map(Chat::shards) else { return None };
        if !links.is_up() {
            return Some("no link to a node\n");
        }
        match self.accounts() {
            Some(accounts) if accounts.answers().await => None,
            _ => Some("the database does not answer\n"),
        }
    }

    /// Waits until the node drains.
    async fn draining(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as this.
        let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
    }

    /// Everything that a scraper is told.
    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = self.scrape.get().map_or_else(Vec::new, |scrape| scrape());
        let own = [
            (
                "chatring_http_connections",
                "open HTTP connections",
                MetricValue::Gauge(self.places.taken() as u64),
            ),
            (
                "chatring_http_connections_refused",
                "HTTP connections closed because there were too many",
                MetricValue::Counter(self.refused.load(Ordering::Relaxed)),
            ),
            (
                "chatring_http_tls_failed",
                "handshakes of TLS at the HTTP address that came to nothing",
                MetricValue::Counter(self.tls_failed.load(Ordering::Relaxed)),
            ),
            (
                "chatring_http_bodies_bytes",
                "bytes of request bodies being read",
                MetricValue::Gauge(self.bodies.held() as u64),
            ),
            (
                "chatring_http_parked",
                "requests that wait for news",
                MetricValue::Gauge(self.parked.count() as u64),
            ),
            (
                "chatring_http_tokens_limited",
                "requests refused because too many bad tokens came from their network",
                MetricValue::Counter(self.tokens().map_or(0, Tokens::limited)),
            ),
            (
                "chatring_http_exports",
                "exports of everything under way",
                MetricValue::Gauge(self.exports.count() as u64),
            ),
        ];
        metrics.extend(own.map(|(name, help, value)| Metric::new(name, help, value)));
        metrics.extend(stats::metrics(&self.stats));
        if let Some(accounts) = self.accounts() {
            metrics.extend(accounts.metrics());
            metrics.extend(self.projected.metrics());
        }
        metrics
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
