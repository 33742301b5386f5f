//! One shard's thread: an executor with its tasks.

use std::cell::RefCell;
use std::future::Future;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};
use rustls::ServerConfig;

use super::conn::{Closed, ConnId};
use super::driver::Moves;
use super::io::{Accepting, Io, Net};
use super::post::{Inbox, Knock};
use super::ring::{self, RingNet};
use super::stats::{ShardStats, count};
use super::streams::{self, SCRATCH_BYTES, StreamNet};
use super::{Handler, Seat, StartError, TICK_MS};
use crate::held::{Cause, Punctual};

/// Memory for direct file access, which shards do not use: glommio's least.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// Entries of a ring.
const RING_DEPTH: usize = 512;
/// Pause that lets the reactor look at the other sockets: glommio polls them only when a task
/// sleeps for real, not when it yields.
pub(super) const BREATH: Duration = Duration::from_micros(20);
/// Pause after an accept that failed: descriptors may be free again by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Accepts in a row before the others get their turn.
const ACCEPTS_MAX: u32 = 64;
/// Batches taken from the inbox in a row before the others get their turn.
pub(super) const BATCHES_MAX: u32 = 64;

/// What a shard's thread is given.
pub struct Start<M> {
    pub seat: Seat<M>,
    pub listener: StdListener,
    pub inbox: flume::Receiver<Vec<M>>,
    /// What comes in knocks there, if a ring moves the bytes.
    pub knock: Option<Arc<Knock>>,
    pub placement: Placement,
    pub moves: Moves,
    pub tls: Option<Arc<ServerConfig>>,
    pub stop: Arc<AtomicBool>,
    pub ready: flume::Sender<Result<(), StartError>>,
}

pub(super) struct Core<H> {
    pub handler: H,
    pub io: Io,
    /// Where the streams driver reads to.
    pub scratch: Vec<u8>,
}

pub(super) struct Shard<H> {
    pub core: RefCell<Core<H>>,
    pub stats: Arc<ShardStats>,
}

/// The body of a shard's thread.
pub fn run<H: Handler>(start: Start<H::Message>, make: impl FnOnce(Seat<H::Message>) -> H) {
    let executor = LocalExecutorBuilder::new(start.placement.clone())
        .name(&format!("shard-{}", start.seat.shard.0))
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .make();
    let executor = match executor {
        Ok(executor) => executor,
        Err(error) => {
            let shard = start.seat.shard.0;
            let error = StartError::Shard { shard, reason: error.to_string() };
            let _ = start.ready.send(Err(error));
            return;
        }
    };
    let guard = AbortOnPanic(start.seat.shard.0);
    executor.run(serve(start, make));
    std::mem::forget(guard);
}

/// A shard's users are served by nobody else: without its thread the process is of no use.
struct AbortOnPanic(u16);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        tracing::error!(shard = self.0, "the shard's thread has ended: aborting");
        std::process::abort();
    }
}

async fn serve<H: Handler>(start: Start<H::Message>, make: impl FnOnce(Seat<H::Message>) -> H) {
    let Start { seat, listener, inbox, knock, stop, ready, moves, tls, .. } = start;
    let stats = seat.stats.clone();
    let shard = seat.shard.0;
    let ring = match (moves, knock) {
        (Moves::Ring(sizes, gather), Some(knock)) => {
            match ring::open(sizes, &knock, stats.clone()) {
                Ok(ring) => Some((ring, knock, gather)),
                Err(error) => {
                    let reason = format!("its ring cannot be made: {error}");
                    let _ = ready.send(Err(StartError::Shard { shard, reason }));
                    return;
                }
            }
        }
        _ => None,
    };
    let handler = make(seat);
    let shard = match ring {
        None => on_streams(handler, stats.clone(), tls, inbox),
        Some((ring, knock, gather)) => {
            on_ring(handler, stats.clone(), tls, ring, Inbox::new(inbox, knock), gather)
        }
    };
    stats.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    let stopper = listener.try_clone().map(socket2::Socket::from);
    spawn(&shard, acceptor(shard.clone(), listener), None);
    let _ = ready.send(Ok(()));
    let mut listening = true;
    let mut punctual = Punctual::new(Cause::Late);
    while !stop.load(Ordering::Relaxed) {
        count(&stats.ticks, 1);
        shard.call(None, |handler, io, _| {
            io.expire();
            handler.tick(io, io.now());
        });
        let accepting = shard.core.borrow().io.accepting();
        if listening && accepting == Accepting::NoMore {
            listening = false;
            // Wakes the acceptor, whose accept would wait for ever.
            if let Ok(listener) = &stopper {
                let _ = listener.shutdown(std::net::Shutdown::Both);
            }
        }
        let (start, pause) = (Instant::now(), Duration::from_millis(TICK_MS));
        glommio::timer::sleep(pause).await;
        punctual.woke(start, pause);
    }
    shard.core.borrow_mut().io.clear();
}

fn on_streams<H: Handler>(
    handler: H,
    stats: Arc<ShardStats>,
    tls: Option<Arc<ServerConfig>>,
    inbox: flume::Receiver<Vec<H::Message>>,
) -> Rc<Shard<H>> {
    let shard = Rc::new_cyclic(|weak: &Weak<Shard<H>>| {
        let weak = weak.clone();
        let spawn = Box::new(move |id| {
            if let Some(shard) = weak.upgrade() {
                spawn(&shard, streams::connection(shard.clone(), id), Some(id));
            }
        });
        let io = Io::new(Net::Streams(StreamNet { spawn }), stats.clone(), tls);
        let core = RefCell::new(Core { handler, io, scratch: vec![0; SCRATCH_BYTES] });
        Shard { core, stats }
    });
    spawn(&shard, streams::flusher(shard.clone()), None);
    spawn(&shard, bridge(shard.clone(), inbox), None);
    shard
}

fn on_ring<H: Handler>(
    handler: H,
    stats: Arc<ShardStats>,
    tls: Option<Arc<ServerConfig>>,
    (net, bell): (RingNet, OwnedFd),
    inbox: Inbox<H::Message>,
    gather: Duration,
) -> Rc<Shard<H>> {
    let io = Io::new(Net::Ring(Box::new(net)), stats.clone(), tls);
    let core = RefCell::new(Core { handler, io, scratch: Vec::new() });
    let shard = Rc::new(Shard { core, stats });
    spawn(&shard, ring::turns(shard.clone(), inbox, gather), None);
    spawn(&shard, ring::answer_bell(shard.clone(), bell), None);
    shard
}

/// The only way to start a task. A panic in a connection's task is counted and ends that connection
/// alone; one in any other task ends the process, for without it the shard would stand still.
fn spawn<H: Handler>(
    shard: &Rc<Shard<H>>,
    task: impl Future<Output = ()> + 'static,
    conn: Option<ConnId>,
) {
    let shard = shard.clone();
    glommio::spawn_local(async move {
        if (Caught { task: Box::pin(task) }).await.is_err() {
            shard.panicked(conn);
        }
    })
    .detach();
}

struct Caught<F> {
    task: Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for Caught<F> {
    type Output = Result<(), ()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let task = self.task.as_mut();
        match catch_unwind(AssertUnwindSafe(|| task.poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(())),
        }
    }
}

impl<H: Handler> Shard<H> {
    /// Calls the handler; a panic closes `conn` and goes no further. Without a `conn` it ends the
    /// process: the rest of what was to be handled (a batch, a turn) would be lost without a word.
    pub(super) fn call(&self, conn: Option<ConnId>, call: impl FnOnce(&mut H, &mut Io, &[u8])) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let core = &mut *self.core.borrow_mut();
            core.io.refresh();
            core.io.mark_turn();
            call(&mut core.handler, &mut core.io, &core.scratch);
        }));
        if result.is_err() {
            self.panicked(conn);
        }
    }

    /// The same at the time that `io` already shows.
    pub(super) fn call_now(&self, conn: Option<ConnId>, call: impl FnOnce(&mut H, &mut Io)) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let Core { handler, io, .. } = &mut *self.core.borrow_mut();
            call(handler, io);
        }));
        if result.is_err() {
            self.panicked(conn);
        }
    }

    /// Uses the connections while the handler does not.
    pub(super) fn io<T>(&self, act: impl FnOnce(&mut Io) -> T) -> T {
        act(&mut self.core.borrow_mut().io)
    }

    pub(super) fn panicked(&self, conn: Option<ConnId>) {
        count(&self.stats.panics, 1);
        tracing::error!(?conn, "a panic was caught");
        let Some(conn) = conn else { give_up("a panic outside of a connection: aborting") };
        let result = catch_unwind(AssertUnwindSafe(|| {
            let Core { handler, io, .. } = &mut *self.core.borrow_mut();
            io.drop_conn(conn);
            handler.closed(io, conn, Closed::Panicked);
        }));
        if result.is_err() {
            give_up("a panic while a connection was closed after another one: aborting");
        }
    }
}

/// The process starts again from what is stored.
fn give_up(why: &str) -> ! {
    tracing::error!("{why}");
    std::process::abort();
}

/// Takes in what other threads post.
async fn bridge<H: Handler>(shard: Rc<Shard<H>>, inbox: flume::Receiver<Vec<H::Message>>) {
    while let Ok(first) = inbox.recv_async().await {
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(batch) = next {
            if !batch.is_empty() {
                shard.call(None, |handler, io, _| handler.inbox(io, batch));
            }
            taken += 1;
            next = match taken < BATCHES_MAX {
                true => inbox.try_recv().ok(),
                false => None,
            };
        }
        if taken == BATCHES_MAX {
            glommio::timer::sleep(BREATH).await;
        }
    }
}

/// Accepts until it is told to stop.
async fn acceptor<H: Handler>(shard: Rc<Shard<H>>, listener: StdListener) {
    // SAFETY: the descriptor is owned and passes to the listener.
    let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
    let mut in_a_row = 0;
    loop {
        let accepting = shard.core.borrow().io.accepting();
        match accepting {
            Accepting::Yes => {}
            Accepting::NoMore => return,
            Accepting::NotYet => {
                glommio::timer::sleep(Duration::from_millis(TICK_MS)).await;
                continue;
            }
        }
        let accepted = match listener.accept().await {
            Ok(stream) => own(&stream),
            Err(error) => Err(error.into()),
        };
        let stopped = shard.core.borrow().io.accepting() == Accepting::NoMore;
        match accepted {
            Ok(fd) => match ready(fd) {
                Ok((fd, peer)) => {
                    count(&shard.stats.accepted, 1);
                    shard.call(None, |handler, io, _| {
                        let id = io.insert(fd);
                        io.put_tls(id);
                        handler.opened(io, id, peer);
                    });
                }
                // Its peer has reset it already. Nobody else waits for that.
                Err(_) => count(&shard.stats.accept_errors, 1),
            },
            // The listener was shut down to wake this task.
            Err(_) if stopped => return,
            Err(error) => {
                count(&shard.stats.accept_errors, 1);
                tracing::warn!(%error, "a connection could not be accepted");
                glommio::timer::sleep(ACCEPT_PAUSE).await;
            }
        }
        in_a_row += 1;
        if in_a_row == ACCEPTS_MAX {
            in_a_row = 0;
            glommio::timer::sleep(BREATH).await;
        }
    }
}

/// Makes an accepted socket ready for use.
fn ready(fd: OwnedFd) -> Result<(OwnedFd, SocketAddr), std::io::Error> {
    let socket = socket2::Socket::from(fd);
    socket.set_tcp_nodelay(true)?;
    let peer = socket.peer_addr()?.as_socket().ok_or(std::io::ErrorKind::Unsupported)?;
    Ok((OwnedFd::from(socket), peer))
}

/// A descriptor of our own (close-on-exec) for what glommio has accepted.
fn own(stream: &TcpStream) -> Result<OwnedFd, std::io::Error> {
    // SAFETY: the stream owns the descriptor and lives during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    fd.try_clone_to_owned()
}
