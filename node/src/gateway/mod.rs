//! Connections and the shards' driver: moves frames between sockets and the machines of `core`.
//!
//! ```text
//!  accept ─▶ upgrade ─▶ hello ──(verify, place)──▶ attach ─▶ live ─▶ closing
//!            on the shard that accepted        │   on the shard that owns the user
//!                                              └─ descriptor, unread bytes and codec move
//! ```
//!
//! A shard's machine is stepped by one thread and nothing of it is shared: shards exchange batches
//! through their inboxes, and the store answers into a queue that is emptied each turn.

mod admission;
mod calls;
mod connection;
mod courier;
mod driver;
mod limits;
mod metrics;
mod shard;

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use chatring_client::tls::TlsSession;
use chatring_core::effect::ShardId;
use chatring_core::kv::{Completion, Kv};
use chatring_core::limits::ShardLimits;
use rustls::ServerConfig;
use thiserror::Error;

pub use crate::rt::{Driver, StartError};
pub use calls::Calls;
pub use courier::CallCounters;
pub use limits::{GatewayLimits, REFUSED_MAX};
pub use metrics::{GatewayCounters, ShardMetrics};

use crate::auth::TokenVerifier;
use crate::rt::{RingSizes, RtConfig, Runtime, Seat};
use admission::Admission;
pub(crate) use admission::network_of;
use courier::Courier;
use driver::{Driver as ShardDriver, Message, Sink};
use metrics::Published;
use shard::{GatewayShard, Shared};

/// For the benchmarks alone: a connection between its socket and the machine.
#[doc(hidden)]
pub mod bench_support {
    pub use super::connection::{Item, Opened, Opening, Talk};
}

/// Path of the WebSocket.
pub const WS_PATH: &str = "/v1/ws";

/// Where a store puts its completions. It never blocks.
pub type StoreSink = Arc<dyn Fn(Vec<Completion>) + Send + Sync>;

/// A connection to the WebSocket address that asks for something else over HTTP.
#[derive(Debug)]
pub struct PlainHttp {
    /// Its socket. Nothing was written to it but by its TLS.
    pub stream: TcpStream,
    /// What was read from it, after its TLS.
    pub received: Bytes,
    /// Its TLS, if it speaks that.
    pub tls: Option<PlainTls>,
    /// To be kept while it is open.
    pub place: HttpPlace,
}

/// The TLS of a connection that was handed over in the middle.
#[derive(Debug)]
pub struct PlainTls {
    /// What both ends have agreed on.
    pub session: Box<TlsSession>,
    /// What was read from the socket and its TLS has not been given.
    pub unread: BytesMut,
    /// What its TLS has to say and was not written to the socket.
    pub unsent: BytesMut,
}

/// The place of a connection among all; given back when it is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "it is only held")]
pub struct HttpPlace(admission::Permit);

/// Where connections that speak HTTP go. It never blocks.
pub type HttpSink = Arc<dyn Fn(PlainHttp) + Send + Sync>;

/// How to run the gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How many shards, at least 1.
    pub shards: u16,
    /// What moves the bytes of the sockets.
    pub driver: Driver,
    /// How long a busy shard waits before its next turn.
    pub gather: Duration,
    /// What the address speaks TLS with, if it does.
    pub tls: Option<Arc<ServerConfig>>,
    /// Bounds of connections.
    pub limits: GatewayLimits,
    /// Bounds of the shards' machines.
    pub shard_limits: ShardLimits,
}

/// A shard did not become ready, or not drained, in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{done} of {shards} shards were done in time")]
pub struct TimedOut {
    /// How many were.
    pub done: u16,
    /// How many there are.
    pub shards: u16,
}

/// A running gateway. Dropping it closes every connection as it is.
#[derive(Debug)]
pub struct Gateway {
    runtime: Runtime<Message>,
    shared: Arc<Shared>,
    shards: u16,
    calls: Calls,
}

/// Starts the shards. Each makes its own store handle on its own thread with `stores`, which is
/// given the sink for that handle's completions. What speaks HTTP without asking for a WebSocket
/// goes to `http`.
pub fn start(
    config: &GatewayConfig,
    stores: impl Fn(ShardId, StoreSink) -> Box<dyn Kv> + Clone + Send + 'static,
    verifier: Arc<dyn TokenVerifier>,
    http: HttpSink,
) -> Result<Gateway, StartError> {
    let random = driver::Random::new();
    let (shards, shard_limits) = (config.shards, config.shard_limits.clone());
    let shared = Arc::new(Shared {
        shards: config.shards,
        limits: config.limits.clone(),
        verifier,
        http,
        courier: Courier::new(config.shards),
        key: OnceLock::new(),
        admission: Admission::new(&config.limits),
        ready: AtomicU16::new(0),
        drained: AtomicU16::new(0),
        published: (0..config.shards).map(|_| Mutex::new(Published::default())).collect(),
    });
    let rt = RtConfig {
        listen: config.listen,
        backlog: config.limits.backlog,
        shards: config.shards,
        driver: config.driver,
        gather: config.gather,
        ring: RingSizes::default(),
        tls: config.tls.clone(),
    };
    let for_shards = shared.clone();
    let runtime = Runtime::start(&rt, move |seat: Seat<Message>| {
        let shard = seat.shard;
        let sink = Sink::new(seat.posts[usize::from(shard.0)].clone());
        let kv = stores(shard, sink.store_sink());
        let machine = random.machine(shard, shards, shard_limits.clone(), kv.limits());
        let driver = ShardDriver::new(shard, machine, kv, sink, seat.posts);
        GatewayShard::new(driver, for_shards.clone())
    })?;
    let calls = Calls::new(runtime.posts(), shared.clone());
    Ok(Gateway { runtime, shared, shards: config.shards, calls })
}

impl Gateway {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.runtime.local_addr()
    }

    /// What moves the bytes of its sockets, and why that one if it was not the first choice.
    pub fn driver(&self) -> &str {
        self.runtime.driver()
    }

    /// Where callers without a session turn to. All have the same numbers to give.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// Waits until every shard has read what it needs from the store and accepts.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), TimedOut> {
        self.wait(&self.shared.ready, Instant::now() + timeout)
    }

    /// Whether every shard accepts.
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Acquire) == self.shards
    }

    /// Tells sessions to come back elsewhere, finishes what is in flight and closes every
    /// connection, all until `deadline`. Drop the gateway then. An error tells that commits may
    /// have been in flight; their senders were told nothing.
    pub fn drain(&self, deadline: Instant) -> Result<(), TimedOut> {
        self.tell(|| Message::Drain);
        let farewell = Duration::from_millis(limits::FAREWELL_MS_MAX);
        let result =
            self.wait(&self.shared.drained, deadline.checked_sub(farewell).unwrap_or(deadline));
        self.tell(|| Message::CloseAll);
        let until = deadline.min(Instant::now() + farewell);
        while self.shared.admission.connections() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(limits::POLL_MS));
        }
        result
    }

    /// The counts of every shard, at most a tick old.
    pub fn metrics(&self) -> Vec<ShardMetrics> {
        let stats = self.runtime.stats().iter().zip(&self.shared.published);
        stats
            .map(|(stats, published)| {
                let published = published.lock().unwrap_or_else(PoisonError::into_inner);
                ShardMetrics {
                    rt: stats.values(),
                    gateway: published.gateway,
                    core: published.core.clone(),
                }
            })
            .collect()
    }

    /// What was carried to the shards for callers without a session.
    pub fn call_counters(&self) -> CallCounters {
        self.shared.courier.counters()
    }

    fn tell(&self, message: impl Fn() -> Message) {
        for post in self.runtime.posts() {
            post.post(vec![message()]);
        }
    }

    fn wait(&self, done: &AtomicU16, until: Instant) -> Result<(), TimedOut> {
        loop {
            let done = done.load(Ordering::Acquire);
            if done == self.shards {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(TimedOut { done, shards: self.shards });
            }
            std::thread::sleep(Duration::from_millis(limits::POLL_MS));
        }
    }
}

#[cfg(test)]
mod tests;
