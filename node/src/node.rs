//! A node on the embedded store: store, keys and gateway put together.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chatring_client::token::TokenKey;
use chatring_core::counters::Counters;
use chatring_core::effect::ShardId;
use chatring_core::kv::Kv;
use rustix::process::{Resource, getrlimit};
use tracing::warn;

use crate::auth::{self, Verifier};
use crate::config::Config;
use crate::files::Rooms;
use crate::gateway::{self, Calls, Gateway, GatewayConfig, GatewayCounters, StoreSink};
use crate::held::HELD;
use crate::metrics::{Metric, of_calls, of_connections, of_runtime, of_shards, of_store};
use crate::rt::{SHARDS_MAX, StatValues};
use crate::server::{Clients, Door, Drained, StartError};
use crate::store::embedded::EmbeddedStore;

/// A running node.
#[derive(Debug)]
pub struct EmbeddedNode {
    addr: SocketAddr,
    shards: u16,
    driver: String,
    connections_max: usize,
    token_key_file: PathBuf,
    token_key: Arc<TokenKey>,
    verifier: Arc<Verifier>,
    running: Mutex<Option<Running>>,
}

/// Taken out by the drain. The gateway ends before the store does.
struct Running {
    gateway: Gateway,
    store: Arc<EmbeddedStore>,
}

impl EmbeddedNode {
    /// Opens the store, makes or reads the token key, and starts the shards. What comes
    /// to their address goes through `door`.
    pub fn start(config: &Config, door: Door) -> Result<EmbeddedNode, StartError> {
        let data = &config.server.data;
        let store = EmbeddedStore::open(data, config.store.embedded())
            .map_err(|error| StartError::Clients(error.to_string()))?;
        let store = Arc::new(store);
        let (key, token_key_file) = auth::own_key(data)?;
        let verifier = Arc::new(Verifier::new(&config.auth, Some(&key))?);
        let shards = shards(config);
        let files = getrlimit(Resource::Nofile).current;
        let mut limits = config.limits.gateway();
        limits.connections_max = Rooms::of_node(config, files).clients;
        let connections_max = limits.connections_max;
        let gateway_config = GatewayConfig {
            listen: config.server.listen,
            shards,
            driver: config.server.driver,
            gather: Duration::from_micros(config.server.gather.as_us()),
            tls: door.tls,
            limits,
            shard_limits: config.limits.shard(),
        };
        let opened = Arc::clone(&store);
        let handles = move |_: ShardId, sink: StoreSink| -> Box<dyn Kv> {
            Box::new(opened.handle(move |completions| sink(completions)))
        };
        let verifies = Arc::clone(&verifier) as _;
        let gateway = gateway::start(&gateway_config, handles, verifies, door.http)
            .map_err(|error| StartError::Clients(error.to_string()))?;
        let addr = gateway.local_addr();
        let driver = gateway.driver().to_owned();
        let running = Mutex::new(Some(Running { gateway, store }));
        Ok(EmbeddedNode {
            addr,
            shards,
            driver,
            connections_max,
            token_key_file,
            token_key: Arc::new(key),
            verifier,
            running,
        })
    }

    fn with<T>(&self, act: impl FnOnce(&Running) -> T) -> Option<T> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(act)
    }
}

impl EmbeddedNode {
    /// Where callers without a session turn to; `None` once the node drains.
    pub fn calls(&self) -> Option<Calls> {
        self.with(|running| running.gateway.calls())
    }
}

impl Clients for EmbeddedNode {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn shards(&self) -> u16 {
        self.shards
    }

    fn driver(&self) -> &str {
        &self.driver
    }

    fn connections_max(&self) -> usize {
        self.connections_max
    }

    fn token_key_file(&self) -> &Path {
        &self.token_key_file
    }

    fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(&self.verifier)
    }

    fn token_key(&self) -> Arc<TokenKey> {
        Arc::clone(&self.token_key)
    }

    fn calls(&self) -> Option<Calls> {
        EmbeddedNode::calls(self)
    }

    fn is_ready(&self) -> bool {
        self.with(|running| running.gateway.is_ready()).unwrap_or(false)
    }

    fn drain(&self, timeout: Duration) -> Drained {
        let taken = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { gateway, store }) = taken else { return Drained::Whole };
        let drained = gateway.drain(Instant::now() + timeout);
        if let Err(error) = drained {
            warn!(%error, "the shards have not drained");
        }
        // The shards' handles go with their threads; then the store's own threads end.
        drop(gateway);
        drop(store);
        if drained.is_ok() { Drained::Whole } else { Drained::TimedOut }
    }

    fn metrics(&self) -> Vec<Metric> {
        let figures = self.with(|Running { gateway, store }| {
            (gateway.metrics(), gateway.call_counters(), store.metrics())
        });
        let Some((shards, calls, store)) = figures else { return Vec::new() };
        let mut core = Counters::default();
        let mut connections = GatewayCounters::default();
        let mut runtime = StatValues::default();
        for shard in &shards {
            core.add(&shard.core);
            connections.add(&shard.gateway);
            runtime.add(&shard.rt);
        }
        let mut metrics = of_shards(&core);
        metrics.extend(of_connections(&connections));
        metrics.extend(of_calls(&calls));
        metrics.extend(of_runtime(&runtime));
        metrics.extend(of_store(&store));
        metrics.extend(HELD.metrics());
        metrics
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

/// How many shards the node has.
pub fn shards(config: &Config) -> u16 {
    match config.server.shards {
        0 => cores(),
        shards => shards,
    }
}

fn cores() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cores).unwrap_or(SHARDS_MAX).min(SHARDS_MAX)
}
