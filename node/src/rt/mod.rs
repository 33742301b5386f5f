//! The runtime of the shards: one thread per shard, its connections, its inbox, its clock tick.
//!
//! This is the only module that names glommio and the only one that uses `unsafe`. What it offers
//! is completion-shaped (bytes arrived on this connection; queue these; it is closed), and two
//! drivers offer it alike: [`ring`], on a private io_uring of each shard, and [`streams`], on
//! glommio's streams, for kernels that cannot do the former.
//!
//! ```text
//!  sockets ─▶ received ┐
//!  inbox   ─▶ inbox    ├─▶ Handler ─▶ Io (queue bytes, pause, close, release, adopt)
//!  20 ms   ─▶ tick     ┘       │
//!                          turn_end, once everything that was ready has been handled,
//!                          then each connection with queued bytes is written once
//! ```
//!
//! A panic is caught at the border: that of a connection closes that connection, and it is counted.
//! A shard that stands still is woken by a watchdog; one that stays still, or whose thread ends,
//! aborts the process, because its users are served by nobody else.

mod clock;
mod conn;
mod driver;
mod io;
mod listener;
mod post;
mod probe;
mod ring;
mod shard;
mod stats;
mod streams;
mod tls;
mod watchdog;

use std::io::Error as IoError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use chatring_core::effect::{Now, ShardId};
use rustls::ServerConfig;
use thiserror::Error;

use driver::Moves;
use post::Knock;

pub use clock::now;
pub use conn::{Closed, ConnId, Parted, Released};
pub use driver::Driver;
pub use io::Io;
pub use post::{INBOX_BATCHES_MAX, Post};
pub use ring::{Missing, RingSizes};
pub use stats::{ShardStats, StatValues};

/// Time between two ticks of a shard.
pub const TICK_MS: u64 = 20;
/// Most shards of a node.
pub const SHARDS_MAX: u16 = 256;

/// What runs on a shard. All of it is called on the shard's thread, one call at a time.
pub trait Handler: 'static {
    /// What comes in through the shard's inbox.
    type Message: Send + 'static;

    /// A connection was accepted.
    fn opened(&mut self, io: &mut Io, conn: ConnId, peer: SocketAddr);

    /// Bytes arrived. Empty if the last call answered [`Flow::Again`].
    fn received(&mut self, io: &mut Io, conn: ConnId, bytes: &[u8]) -> Flow;

    /// A connection whose peer was slow has been written out. More may have been queued since.
    fn drained(&mut self, io: &mut Io, conn: ConnId);

    /// A connection is gone, for whatever reason. Called once for each that was opened or adopted
    /// and not released.
    fn closed(&mut self, io: &mut Io, conn: ConnId, why: Closed);

    /// A batch from another thread.
    fn inbox(&mut self, io: &mut Io, batch: Vec<Self::Message>);

    /// Every [`TICK_MS`].
    fn tick(&mut self, io: &mut Io, now: Now);

    /// Everything that was ready has been handled; queued bytes are written after this.
    fn turn_end(&mut self, io: &mut Io);
}

/// Whether a connection's handler has something left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Call again when bytes arrive.
    Wait,
    /// Call again, without new bytes, once the others have had their turn.
    Again,
}

/// What a handler is made from, on its shard's thread.
#[derive(Debug)]
pub struct Seat<M> {
    /// Which shard it is.
    pub shard: ShardId,
    /// The inboxes of all shards, by number.
    pub posts: Arc<[Post<M>]>,
    /// The shard's own counts.
    pub stats: Arc<ShardStats>,
}

/// Where and how to run.
#[derive(Clone, Debug)]
pub struct RtConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Connections that the kernel holds until they are accepted.
    pub backlog: i32,
    /// How many shards, at least 1.
    pub shards: u16,
    /// What moves the bytes of the sockets.
    pub driver: Driver,
    /// How long a shard that expects a post waits for it before its next turn; only the ring driver
    /// does so.
    pub gather: Duration,
    /// How large the ring of each shard is, if that is what moves them.
    pub ring: RingSizes,
    /// What every connection speaks TLS with; the handler sees plain bytes all the same.
    pub tls: Option<Arc<ServerConfig>>,
}

/// Why the runtime cannot start. The operator's to put right.
#[derive(Debug, Error)]
pub enum StartError {
    /// A count that is out of range.
    #[error("shards must be 1 to {SHARDS_MAX}, not {0}")]
    Shards(u16),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why.
        source: IoError,
    },
    /// The kernel does not let this process use io_uring.
    #[error(
        "io_uring cannot be used ({0}); it needs Linux 5.8 or newer, the sysctl \
             kernel.io_uring_disabled = 0, and a container profile that allows io_uring_setup"
    )]
    IoUring(IoError),
    /// Too little memory may be locked.
    #[error(
        "the limit of locked memory is {actual} bytes, at least {needed} are needed \
             (ulimit -l, LimitMEMLOCK)"
    )]
    LockedMemory {
        /// What it is.
        actual: u64,
        /// What is needed.
        needed: u64,
    },
    /// The ring driver was asked for.
    #[error(
        "the driver \"ring\" cannot be used: {0}; it needs Linux 6.1 or newer, \"auto\" or \
             \"streams\" does without"
    )]
    Ring(Missing),
    /// A descriptor that wakes a shard cannot be made.
    #[error("cannot make an eventfd: {0}")]
    Eventfd(IoError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(IoError),
    /// A shard ended before it ran.
    #[error("shard {shard} cannot start: {reason}")]
    Shard {
        /// Which one.
        shard: u16,
        /// Why.
        reason: String,
    },
}

/// Shards that run. Dropping it stops them.
#[derive(Debug)]
pub struct Runtime<M> {
    local_addr: SocketAddr,
    driver: String,
    posts: Arc<[Post<M>]>,
    stats: Vec<Arc<ShardStats>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<M: Send + 'static> Runtime<M> {
    /// Starts the shards; returns once each of them runs. `make` is called on each shard's thread.
    /// No shard accepts before its handler says so with [`Io::accept`].
    pub fn start<H, F>(config: &RtConfig, make: F) -> Result<Runtime<M>, StartError>
    where
        H: Handler<Message = M>,
        F: Fn(Seat<M>) -> H + Clone + Send + 'static,
    {
        if !(1..=SHARDS_MAX).contains(&config.shards) {
            return Err(StartError::Shards(config.shards));
        }
        probe::io_uring()?;
        let (moves, driver) = driver::choose(config)?;
        let (listeners, local_addr) = listener::bind(config)?;
        let knocks = knocks(config.shards, moves)?;
        let (posts, inboxes): (Vec<_>, Vec<_>) = knocks.iter().cloned().map(Post::new).unzip();
        let stats = (0..config.shards).map(|_| Arc::default()).collect::<Vec<_>>();
        let mut runtime = Runtime {
            local_addr,
            driver,
            posts: posts.into(),
            stats,
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let placements = probe::placements(config.shards);
        let (ready_tx, ready) = flume::bounded(usize::from(config.shards));
        let doors = inboxes.into_iter().zip(knocks);
        for (index, (listener, (inbox, knock))) in listeners.into_iter().zip(doors).enumerate() {
            let seat = Seat {
                shard: ShardId(index as u16),
                posts: runtime.posts.clone(),
                stats: runtime.stats[index].clone(),
            };
            let make = make.clone();
            let start = shard::Start {
                seat,
                listener,
                inbox,
                knock,
                placement: placements[index].clone(),
                moves,
                tls: config.tls.clone(),
                stop: runtime.stop.clone(),
                ready: ready_tx.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || shard::run(start, make))
                .map_err(StartError::Thread)?;
            runtime.threads.push(thread);
        }
        drop(ready_tx);
        for _ in 0..config.shards {
            ready.recv().expect("each shard reports before it drops its sender")?;
        }
        runtime.watch()?;
        Ok(runtime)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What moves the bytes, and why that one if it was not the first choice.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The inboxes of all shards, by number.
    pub fn posts(&self) -> &[Post<M>] {
        &self.posts
    }

    /// The counts of all shards, by number.
    pub fn stats(&self) -> &[Arc<ShardStats>] {
        &self.stats
    }

    /// Ends all shards; their connections are closed as they are.
    pub fn stop(self) {}

    fn watch(&mut self) -> Result<(), StartError> {
        let posts = self.posts.clone();
        let stats = self.stats.clone();
        let stop = self.stop.clone();
        let pulse = move |shard: usize| {
            // A full inbox is as good a wake-up as one more batch in it.
            let _ = posts[shard].try_post(Vec::new());
        };
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watchdog::watch(&stats, &stop, pulse))
            .map_err(StartError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }
}

/// What wakes each shard, if not glommio does.
fn knocks(shards: u16, moves: Moves) -> Result<Vec<Option<Arc<Knock>>>, StartError> {
    let knock = || match moves {
        Moves::Streams => Ok(None),
        Moves::Ring(..) => Knock::new().map(|knock| Some(Arc::new(knock))),
    };
    (0..shards).map(|_| knock().map_err(StartError::Eventfd)).collect()
}

impl<M> Drop for Runtime<M> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for post in self.posts.iter() {
            let _ = post.try_post(Vec::new());
        }
        for thread in self.threads.drain(..) {
            // A shard's panic has aborted the process already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
