//! The shard's private io_uring: what the kernel has under way, and what became of it.
//!
//! Everything that the kernel may touch lives until the kernel has said that it is done: a socket's
//! place is not given again, its descriptor not closed and the bytes of its send not freed before
//! the last completion of its operations has come.

use std::collections::VecDeque;
use std::io::Error as IoError;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};

use super::RingSizes;
use super::pool::{Buf, GROUP, Pool};
use crate::rt::conn::ConnId;
use crate::rt::post::Knock;
use crate::rt::stats::{ShardStats, count};

/// Entries into the kernel that a cancelled operation may take to end. It ends in the first one
/// unless others crowd it out: the kernel runs some 20 of those put off at a time.
const CANCEL_ENTERS_MAX: usize = 10_000;

/// The ring and the sockets on it.
pub struct Ring {
    /// Closed before the pool is freed.
    uring: ManuallyDrop<IoUring>,
    pool: ManuallyDrop<Rc<Pool>>,
    sockets: Vec<Socket>,
    /// Taken from the kernel and not looked at: at most a receive's end and a send for each socket,
    /// and as many receives with bytes as there are buffers.
    reaped: VecDeque<Completion>,
    /// Places of retired sockets that the kernel has let go of.
    quiet: Vec<u32>,
    /// Operations that the kernel has.
    under_way: usize,
    knock: Arc<Knock>,
    watches: bool,
    stats: Arc<ShardStats>,
}

/// What the kernel has of one socket.
#[derive(Debug, Default)]
struct Socket {
    generation: u32,
    fd: Option<OwnedFd>,
    recv: Recv,
    /// What is being sent. The kernel reads from it while `sending`: only a completion changes it.
    flight: BytesMut,
    sending: bool,
    retired: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Recv {
    #[default]
    Idle,
    Armed,
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Recv,
    Send,
    Cancel,
    Watch,
}

/// What an operation is called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub kind: Kind,
    pub id: ConnId,
}

#[derive(Debug)]
struct Completion {
    tag: Tag,
    result: i32,
    more: bool,
    buf: Option<Buf>,
}

/// What became of an operation on a socket that is in use.
#[derive(Debug)]
pub enum Done {
    /// Bytes came.
    Received(ConnId, Buf),
    /// The peer has ended its stream.
    Ended(ConnId),
    /// Receiving failed.
    RecvFailed(ConnId, IoError),
    /// Receiving has stopped, though nothing is wrong with the socket.
    Stopped(ConnId, Stop),
    /// The kernel has taken so many bytes; it goes on with the rest.
    SentPart(ConnId, usize),
    /// The kernel has taken the last bytes of a send, so many of them.
    Sent(ConnId, usize),
    /// Sending failed.
    SendFailed(ConnId, IoError),
}

/// Why receiving has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was told to, or the kernel wants to be asked again.
    Asked,
    /// There was no buffer for what came.
    NoBuffer,
}

/// A socket that has left the ring.
#[derive(Debug)]
pub struct Extracted {
    pub fd: OwnedFd,
    /// What came before its receive had ended.
    pub unread: BytesMut,
    /// What its send had not written.
    pub unsent: BytesMut,
}

impl Tag {
    fn pack(self) -> u64 {
        u64::from(self.id.generation) << 32 | u64::from(self.id.slot) << 2 | self.kind as u64
    }

    fn unpack(data: u64) -> Tag {
        let kind = match data & 3 {
            0 => Kind::Recv,
            1 => Kind::Send,
            2 => Kind::Cancel,
            _ => Kind::Watch,
        };
        let id = ConnId { slot: (data as u32) >> 2, generation: (data >> 32) as u32 };
        Tag { kind, id }
    }
}

impl Ring {
    /// A ring of the calling thread, which alone may use it. The bell is rung when something may
    /// have happened while nobody looked, see [`Ring::listen`].
    pub fn new(
        sizes: RingSizes,
        knock: Arc<Knock>,
        stats: Arc<ShardStats>,
    ) -> Result<Ring, IoError> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(sizes.completions)
            .build(sizes.submissions)?;
        if !uring.params().is_feature_nodrop() {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        uring.submitter().register_eventfd(knock.bell().as_raw_fd())?;
        let pool = Pool::register(&uring, sizes.buffers, sizes.buffer_bytes)?;
        Ok(Ring {
            uring: ManuallyDrop::new(uring),
            pool: ManuallyDrop::new(pool),
            sockets: Vec::new(),
            reaped: VecDeque::new(),
            quiet: Vec::new(),
            under_way: 0,
            knock,
            watches: false,
            stats,
        })
    }

    /// Puts a socket on the ring. Its place must be new or have been [quiet](Ring::next_quiet).
    pub fn insert(&mut self, id: ConnId, fd: OwnedFd) {
        if self.sockets.len() <= id.slot() {
            self.sockets.resize_with(id.slot() + 1, Socket::default);
        }
        let socket = &mut self.sockets[id.slot()];
        assert!(socket.fd.is_none(), "its place was free");
        *socket = Socket { generation: id.generation, fd: Some(fd), ..Socket::default() };
    }

    /// From now on each knock ends a [wait](Ring::wait).
    pub fn watch(&mut self) {
        self.watches = true;
        self.push_watch();
    }

    /// Receives from now on, until told otherwise; nothing if it does so already.
    pub fn receive(&mut self, id: ConnId) {
        let Some(socket) = self.socket(id).filter(|s| s.recv == Recv::Idle) else { return };
        let Some(fd) = &socket.fd else { return };
        let fd = Fd(fd.as_raw_fd());
        socket.recv = Recv::Armed;
        self.under_way += 1;
        let entry = opcode::RecvMulti::new(fd, GROUP).build();
        self.push(entry, Tag { kind: Kind::Recv, id });
    }

    /// Has receiving stopped; what the kernel has received already still comes.
    pub fn stop(&mut self, id: ConnId) {
        let Some(socket) = self.socket(id).filter(|s| s.recv == Recv::Armed) else { return };
        socket.recv = Recv::Stopping;
        self.cancel(Tag { kind: Kind::Recv, id });
    }

    /// Whether bytes may come.
    pub fn is_receiving(&self, id: ConnId) -> bool {
        self.socket_ref(id).is_some_and(|s| s.recv != Recv::Idle)
    }

    /// Sends; one send of a socket at a time.
    pub fn send(&mut self, id: ConnId, bytes: BytesMut) {
        let Some(socket) = self.socket(id) else { return };
        assert!(!socket.sending, "one send at a time");
        socket.flight = bytes;
        self.push_send(id);
    }

    /// Bytes of the send under way that the kernel has not taken, as far as it has said so.
    pub fn in_flight(&self, id: ConnId) -> usize {
        self.socket_ref(id).map_or(0, |s| s.flight.len())
    }

    /// Whether a send is under way.
    pub fn is_sending(&self, id: ConnId) -> bool {
        self.socket_ref(id).is_some_and(|s| s.sending)
    }

    /// The descriptor.
    pub fn fd(&self, id: ConnId) -> Option<RawFd> {
        self.socket_ref(id)?.fd.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Closes a socket as soon as the kernel has let go of it.
    pub fn retire(&mut self, id: ConnId) {
        let Some(socket) = self.socket(id) else { return };
        socket.retired = true;
        self.stop_all(id);
        self.close_if_quiet(id);
    }

    /// Takes a socket off the ring: waits until its operations have ended, which no peer can hold
    /// up. Its place is then [quiet](Ring::next_quiet). `None` if the kernel does not let go of it
    /// within bounds: it is retired then.
    pub fn extract(&mut self, id: ConnId) -> Option<Extracted> {
        let mut unread = BytesMut::new();
        self.stop_all(id);
        for _ in 0..CANCEL_ENTERS_MAX {
            self.take_unread(id, &mut unread);
            if self.socket(id)?.is_idle() {
                break;
            }
            self.enter();
        }
        let socket = self.socket(id)?;
        if !socket.is_idle() {
            tracing::warn!("a connection could not leave its ring and is closed");
            self.retire(id);
            return None;
        }
        let unsent = std::mem::take(&mut socket.flight);
        let fd = socket.fd.take()?;
        self.quiet.push(id.slot);
        Some(Extracted { fd, unread, unsent })
    }

    /// The place of a retired socket that may be given again.
    pub fn next_quiet(&mut self) -> Option<u32> {
        self.quiet.pop()
    }

    /// Whether the kernel has something for us.
    pub fn has_done(&mut self) -> bool {
        if !self.reaped.is_empty() || !self.uring.completion().is_empty() {
            return true;
        }
        let submission = self.uring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Whether we have something for the kernel.
    pub fn has_queued(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// Buffers that the kernel could fill.
    pub fn free_buffers(&self) -> usize {
        self.pool.free()
    }

    /// Hands the kernel what is queued, has it run what it put off and takes what is done.
    pub fn enter_if_needed(&mut self) {
        let submission = self.uring.submission();
        let needed = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        match needed {
            true => self.enter(),
            false => self.reap(),
        }
    }

    /// Hands the kernel what is queued and waits until something is done, but not for longer than
    /// this.
    pub fn wait(&mut self, limit: Duration) {
        count(&self.stats.ring_waits, 1);
        let limit = Timespec::from(limit);
        let args = SubmitArgs::new().timespec(&limit);
        let result = self.uring.submitter().submit_with_args(1, &args);
        self.entered(result);
    }

    /// From now on the bell is rung when there is something to take. Ask for
    /// [work](Ring::has_work) once more afterwards.
    pub fn listen(&mut self) {
        self.uring.completion().enable_eventfd();
        // Either the kernel sees the flag after it has told us of work, or we see the work.
        fence(Ordering::SeqCst);
    }

    /// The bell is to be silent: somebody looks anyway.
    pub fn look(&mut self) {
        self.uring.completion().disable_eventfd();
    }

    /// What became of the next operation, in order.
    pub fn next(&mut self) -> Option<Done> {
        loop {
            let completion = self.reaped.pop_front()?;
            if let Some(done) = self.account(completion) {
                return Some(done);
            }
        }
    }

    /// Ends all operations, waits for that, within bounds, and closes every socket.
    pub fn shutdown(&mut self) {
        self.sockets.iter_mut().for_each(|socket| socket.retired = true);
        self.watches = false;
        if self.under_way > 0 {
            let everything = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            let nobody = ConnId { slot: 0, generation: 0 };
            self.push(everything, Tag { kind: Kind::Cancel, id: nobody });
        }
        for _ in 0..CANCEL_ENTERS_MAX {
            if self.under_way == 0 {
                self.sockets.clear();
                self.quiet.clear();
                return;
            }
            self.enter();
            while let Some(completion) = self.reaped.pop_front() {
                self.account(completion);
            }
        }
        tracing::warn!(left = self.under_way, "the kernel has not let go of every socket");
    }

    fn socket(&mut self, id: ConnId) -> Option<&mut Socket> {
        self.sockets.get_mut(id.slot()).filter(|s| s.generation == id.generation && s.fd.is_some())
    }

    fn socket_ref(&self, id: ConnId) -> Option<&Socket> {
        self.sockets.get(id.slot()).filter(|s| s.generation == id.generation && s.fd.is_some())
    }

    fn push_send(&mut self, id: ConnId) {
        let Some(socket) = self.socket(id) else { return };
        let Some(fd) = &socket.fd else { return };
        socket.sending = true;
        let len = u32::try_from(socket.flight.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(Fd(fd.as_raw_fd()), socket.flight.as_ptr(), len)
            .flags(libc::MSG_NOSIGNAL)
            .build();
        self.under_way += 1;
        self.push(entry, Tag { kind: Kind::Send, id });
    }

    fn push_watch(&mut self) {
        if !self.watches {
            return;
        }
        self.under_way += 1;
        let fd = Fd(self.knock.at_ring().as_raw_fd());
        // Nobody reads it: each write counts, not that it is readable.
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        let nobody = ConnId { slot: 0, generation: 0 };
        self.push(entry, Tag { kind: Kind::Watch, id: nobody });
    }

    fn stop_all(&mut self, id: ConnId) {
        self.stop(id);
        if self.is_sending(id) {
            self.cancel(Tag { kind: Kind::Send, id });
        }
    }

    pub(super) fn cancel(&mut self, tag: Tag) {
        count(&self.stats.ring_cancels, 1);
        let entry = opcode::AsyncCancel::new(tag.pack()).build().flags(Flags::SKIP_SUCCESS);
        self.push(entry, Tag { kind: Kind::Cancel, id: tag.id });
    }

    fn push(&mut self, entry: Entry, tag: Tag) {
        let entry = entry.user_data(tag.pack());
        // SAFETY: a receive takes its memory from the pool and a send from `flight`, both of which
        // live until the completion has come; a cancel names no memory. The descriptor is open
        // until then as well.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.enter();
        }
    }

    /// Enters the kernel, which runs what it has put off until now.
    fn enter(&mut self) {
        let queued = self.uring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is given, and the entries are valid, see `push`.
        let result = unsafe { self.uring.submitter().enter::<()>(queued, 0, flags, None) };
        self.entered(result);
    }

    fn entered(&mut self, result: Result<usize, IoError>) {
        count(&self.stats.ring_enters, 1);
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // The time was over.
            Ok(_) | Err((Some(libc::ETIME), _)) => {}
            // Nothing is lost: what was not submitted is the next time.
            Err((Some(libc::EINTR | libc::EAGAIN | libc::EBUSY), _)) => {
                count(&self.stats.ring_retries, 1);
            }
            Err((_, error)) => {
                tracing::error!(%error, "the shard's ring does not work: aborting");
                std::process::abort();
            }
        }
        self.reap();
    }

    fn reap(&mut self) {
        if self.uring.submission().cq_overflow() {
            count(&self.stats.ring_overflows, 1);
        }
        let mut taken = 0;
        for entry in self.uring.completion() {
            taken += 1;
            let (result, flags) = (entry.result(), entry.flags());
            let len = usize::try_from(result).unwrap_or(0);
            let buf = cqueue::buffer_select(flags).map(|number| self.pool.filled(number, len));
            let tag = Tag::unpack(entry.user_data());
            self.reaped.push_back(Completion { tag, result, more: cqueue::more(flags), buf });
        }
        count(&self.stats.ring_completions, taken);
    }

    /// Keeps the books; answers what concerns a socket in use.
    fn account(&mut self, completion: Completion) -> Option<Done> {
        let Completion { tag: Tag { kind, id }, result, more, buf } = completion;
        match kind {
            Kind::Cancel => return None,
            Kind::Watch => {
                self.watched(more);
                return None;
            }
            Kind::Recv | Kind::Send => {}
        }
        let socket = self.socket(id)?;
        let retired = socket.retired;
        let error = || IoError::from_raw_os_error(-result);
        let done = match kind {
            Kind::Recv => {
                if !more {
                    socket.recv = Recv::Idle;
                    self.under_way -= 1;
                }
                match (buf, result) {
                    (Some(buf), 1..) => Done::Received(id, buf),
                    (_, 0) => Done::Ended(id),
                    (_, n) if n == -libc::ENOBUFS => {
                        count(&self.stats.ring_no_buffers, 1);
                        Done::Stopped(id, Stop::NoBuffer)
                    }
                    (_, n) if n == -libc::ECANCELED || n == -libc::EINTR => {
                        Done::Stopped(id, Stop::Asked)
                    }
                    _ => Done::RecvFailed(id, error()),
                }
            }
            _ => {
                self.under_way -= 1;
                self.account_send(id, result)?
            }
        };
        if retired {
            self.close_if_quiet(id);
            return None;
        }
        Some(done)
    }

    /// Somebody has knocked; the kernel may want to be asked again.
    fn watched(&mut self, more: bool) {
        if !more {
            self.under_way -= 1;
            self.push_watch();
        }
    }

    fn account_send(&mut self, id: ConnId, result: i32) -> Option<Done> {
        let socket = self.socket(id)?;
        let taken = socket.landed(result);
        if socket.flight.is_empty() {
            // An idle connection holds no buffer.
            socket.flight = BytesMut::new();
            return Some(Done::Sent(id, taken));
        }
        let go_on = taken > 0 || matches!(-result, libc::EINTR | libc::EAGAIN);
        if go_on && !socket.retired {
            self.push_send(id);
            return Some(Done::SentPart(id, taken));
        }
        socket.flight = BytesMut::new();
        Some(Done::SendFailed(id, IoError::from_raw_os_error(-result)))
    }

    /// Takes what has been reaped for a socket that is to leave.
    fn take_unread(&mut self, id: ConnId, unread: &mut BytesMut) {
        for _ in 0..self.reaped.len() {
            let Some(completion) = self.reaped.pop_front() else { return };
            if completion.tag.id != id {
                self.reaped.push_back(completion);
                continue;
            }
            // What the send has not written goes along instead of being sent here.
            let Completion { tag, result, more, buf } = completion;
            match tag.kind {
                Kind::Recv => {
                    if let Some(buf) = buf {
                        unread.extend_from_slice(&buf);
                    }
                    if !more {
                        self.under_way -= 1;
                        if let Some(socket) = self.socket(id) {
                            socket.recv = Recv::Idle;
                        }
                    }
                }
                Kind::Send => {
                    self.under_way -= 1;
                    if let Some(socket) = self.socket(id) {
                        socket.landed(result);
                    }
                }
                Kind::Cancel | Kind::Watch => {}
            }
        }
    }

    fn close_if_quiet(&mut self, id: ConnId) {
        if let Some(socket) = self.socket(id).filter(|s| s.is_idle()) {
            socket.fd = None;
            self.quiet.push(id.slot);
        }
    }
}

#[cfg(test)]
impl Ring {
    /// As if the kernel had said that a receive has ended.
    pub fn pretend_ended(&mut self, id: ConnId) {
        let tag = Tag { kind: Kind::Recv, id };
        self.reaped.push_back(Completion { tag, result: 0, more: false, buf: None });
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.shutdown();
        if self.under_way > 0 {
            // The kernel may still write and read there: better lost than given to others.
            std::mem::forget(std::mem::take(&mut self.sockets));
            return;
        }
        self.reaped.clear();
        // SAFETY: neither is used after this; the ring is closed before its memory goes.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            ManuallyDrop::drop(&mut self.pool);
        }
    }
}

impl Socket {
    fn is_idle(&self) -> bool {
        self.recv == Recv::Idle && !self.sending
    }

    /// Its send has ended; answers how many bytes the kernel has taken.
    fn landed(&mut self, result: i32) -> usize {
        self.sending = false;
        let taken = usize::try_from(result).unwrap_or(0).min(self.flight.len());
        self.flight.advance(taken);
        taken
    }
}
