//! The driver on glommio's streams: a task per connection, which waits until its socket is ready.
//! It is what every kernel can do that glommio runs on.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use futures_io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;

use super::conn::{Closed, Conn, ConnId, Life, Released, Sock};
use super::io::{Io, Net};
use super::shard::{BREATH, Core, Shard};
use super::stats::{ShardStats, count};
use super::{Flow, Handler, tls};

/// Bytes that one read takes at most.
pub const SCRATCH_BYTES: usize = 64 << 10;

/// What the driver keeps for a shard.
pub struct StreamNet {
    /// Starts the task of a connection.
    pub spawn: Box<dyn Fn(ConnId)>,
}

/// What the driver keeps for a connection.
#[derive(Debug)]
pub struct StreamSock {
    stream: TcpStream,
    waker: Option<Waker>,
    blocked: bool,
}

impl StreamSock {
    pub fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// What a connection's task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    /// The handler is to be called for what was left over.
    Rest,
    /// So many bytes stand in the scratch buffer.
    Bytes(usize),
    /// Bytes came that nobody wants.
    Dropped,
    /// A slow peer has taken what was queued.
    Drained,
    /// It is closed: tell the handler.
    Closed(Closed),
    /// It is no connection of this shard any more.
    Gone,
}

/// The life of a connection on this shard.
pub async fn connection<H: Handler>(shard: Rc<Shard<H>>, id: ConnId) {
    // glommio runs a new task at once, inside of the call that made it and that borrows the shard.
    let mut first = true;
    poll_fn(|cx| match std::mem::take(&mut first) {
        true => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        false => Poll::Ready(()),
    })
    .await;
    loop {
        let ready = poll_fn(|cx| {
            let Core { io, scratch, .. } = &mut *shard.core.borrow_mut();
            io.poll_conn(cx, id, scratch)
        })
        .await;
        let mut flow = Flow::Wait;
        match ready {
            Ready::Gone => return,
            Ready::Dropped => {}
            Ready::Closed(why) => {
                return shard.call(None, |handler, io, _| handler.closed(io, id, why));
            }
            Ready::Drained => shard.call(Some(id), |handler, io, _| handler.drained(io, id)),
            Ready::Rest => {
                shard.call(Some(id), |handler, io, _| flow = tls::received(handler, io, id, &[]));
            }
            Ready::Bytes(read) => shard.call(Some(id), |handler, io, scratch| {
                flow = tls::received(handler, io, id, &scratch[..read]);
            }),
        }
        if flow == Flow::Again {
            shard.core.borrow_mut().io.rest_is_left(id);
        }
        if flow == Flow::Again || matches!(ready, Ready::Dropped | Ready::Bytes(SCRATCH_BYTES)) {
            glommio::timer::sleep(BREATH).await;
        }
    }
}

/// Ends each turn. It is woken by the first thing that happens in a turn, and so runs after the
/// tasks that were ready with it.
pub async fn flusher<H: Handler>(shard: Rc<Shard<H>>) {
    loop {
        poll_fn(|cx| shard.core.borrow_mut().io.poll_turn(cx)).await;
        count(&shard.stats.turns, 1);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let Core { handler, io, .. } = &mut *shard.core.borrow_mut();
            io.refresh();
            handler.turn_end(io);
        }));
        if result.is_err() {
            shard.panicked(None);
        }
        let again = {
            let io = &mut shard.core.borrow_mut().io;
            io.flush_streams();
            io.turn_over(false)
        };
        if again {
            glommio::timer::sleep(BREATH).await;
        }
    }
}

impl Io {
    pub(super) fn insert_stream(&mut self, fd: OwnedFd) -> ConnId {
        // SAFETY: the descriptor is owned and passes to the stream.
        let stream = unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) };
        let sock = StreamSock { stream, waker: None, blocked: false };
        let id = self.conns.insert(Conn::new(Sock::Stream(Box::new(sock))));
        if let Net::Streams(net) = &self.net {
            (net.spawn)(id);
        }
        id
    }

    pub(super) fn release_stream(&mut self, id: ConnId) -> Option<Released> {
        let sock = self.conns.get_mut(id)?.stream();
        // SAFETY: the stream owns the descriptor and lives until after the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(sock.stream.as_raw_fd()) };
        // The stream cannot give its descriptor away, and a poll of it may be under way.
        let fd = fd.try_clone_to_owned();
        let mut conn = self.take(id)?;
        conn.stream().wake();
        let unsent = std::mem::take(&mut conn.out);
        match fd {
            Ok(fd) => Some(Released { fd, unsent, unread: BytesMut::new(), tls: conn.tls.take() }),
            Err(error) => {
                tracing::warn!(%error, "a connection could not change its shard and is closed");
                None
            }
        }
    }

    /// The handler wants to be called again; its task looks at that after its pause. It must not be
    /// woken for it: a task that runs on before its pause is over sees it ended by the time that
    /// others took, and a few of them would keep the reactor from its turn.
    fn rest_is_left(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.again = true;
        }
    }

    /// What a connection's task is to do; registers its waker if there is nothing.
    fn poll_conn(&mut self, cx: &mut Context<'_>, id: ConnId, scratch: &mut [u8]) -> Poll<Ready> {
        let now_ms = self.now.mono_ms;
        let Io { conns, stats, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return Poll::Ready(Ready::Gone) };
        let sock = conn.stream();
        if sock.waker.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            sock.waker = Some(cx.waker().clone());
        }
        if sock.blocked {
            conn.write(cx, now_ms, stats);
        }
        if std::mem::take(&mut conn.caught_up) {
            return Poll::Ready(Ready::Drained);
        }
        if let Life::Gone(why) = conn.life {
            self.take(id);
            return Poll::Ready(Ready::Closed(why));
        }
        if conn.paused && conn.life == Life::Open {
            return Poll::Pending;
        }
        if conn.again && conn.life == Life::Open {
            conn.again = false;
            return Poll::Ready(Ready::Rest);
        }
        let why = match Pin::new(&mut conn.stream().stream).poll_read(cx, scratch) {
            Poll::Pending => return Poll::Pending,
            // A peer that only listens still gets what is queued; then this is asked once more.
            Poll::Ready(Ok(0)) if conn.is_still_written() => return Poll::Pending,
            Poll::Ready(Ok(0)) => Closed::ByPeer,
            Poll::Ready(Ok(read)) => match &mut conn.life {
                Life::Open => {
                    count(&stats.reads, 1);
                    count(&stats.bytes_in, read as u64);
                    return Poll::Ready(Ready::Bytes(read));
                }
                Life::Finishing { .. } => return Poll::Ready(Ready::Dropped),
                Life::Lingering { bytes, .. } if *bytes >= read => {
                    *bytes -= read;
                    return Poll::Ready(Ready::Dropped);
                }
                _ => Closed::ByUs,
            },
            Poll::Ready(Err(error)) if error.kind() == ErrorKind::Interrupted => {
                return Poll::Ready(Ready::Dropped);
            }
            Poll::Ready(Err(error)) => Closed::Broken(error.kind()),
        };
        self.take(id);
        Poll::Ready(Ready::Closed(why))
    }

    /// Writes each connection with queued bytes once.
    fn flush_streams(&mut self) {
        let now_ms = self.now.mono_ms;
        let dirty = self.take_dirty();
        for &id in &dirty {
            let Io { conns, stats, .. } = self;
            let Some(conn) = conns.get_mut(id) else { continue };
            conn.dirty = false;
            let sock = conn.stream();
            if sock.blocked {
                continue;
            }
            let Some(waker) = sock.waker.clone() else {
                // Its task has not run yet: it writes when it does.
                sock.blocked = true;
                continue;
            };
            conn.write(&mut Context::from_waker(&waker), now_ms, stats);
            if conn.life != Life::Open || conn.caught_up {
                conn.stream().wake();
            }
        }
        self.put_dirty(dirty);
    }
}

impl Conn {
    fn stream(&mut self) -> &mut StreamSock {
        match &mut self.sock {
            Sock::Stream(sock) => sock,
            Sock::Ring(_) => unreachable!("a shard has one driver"),
        }
    }

    fn is_still_written(&self) -> bool {
        matches!(self.life, Life::Finishing { .. }) && self.queued() > 0
    }

    /// Writes until the kernel takes no more.
    fn write(&mut self, cx: &mut Context<'_>, now_ms: u64, stats: &ShardStats) {
        if matches!(self.life, Life::Gone(_) | Life::Lingering { .. }) {
            return;
        }
        self.seal();
        let Sock::Stream(sock) = &mut self.sock else { return };
        while !self.out.is_empty() {
            match Pin::new(&mut sock.stream).poll_write(cx, &self.out) {
                Poll::Ready(Ok(0)) => {
                    self.life = Life::Gone(Closed::Broken(ErrorKind::WriteZero));
                    return;
                }
                Poll::Ready(Ok(taken)) => {
                    count(&stats.writes, 1);
                    count(&stats.bytes_out, taken as u64);
                    self.out.advance(taken);
                }
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => {
                    self.life = Life::Gone(Closed::Broken(error.kind()));
                    return;
                }
                Poll::Pending => {
                    sock.blocked = true;
                    return;
                }
            }
        }
        // An idle connection holds no buffer.
        self.out = BytesMut::new();
        if let Life::Finishing { .. } = self.life {
            self.life = Life::linger(sock.stream.as_raw_fd(), now_ms);
        }
        let slow = std::mem::take(&mut sock.blocked) || self.paused;
        self.caught_up = slow && self.life == Life::Open;
    }
}
