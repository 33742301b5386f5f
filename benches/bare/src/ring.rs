//! Many sockets of one thread on one io_uring: received without a call each, sent in batches.
//!
//! ```text
//!  kernel ──▶ provided buffers ──▶ drain(on): on(outs, key, input)
//!                                               │ out(key), close(key)
//!  kernel ◀── one send per socket ◀── turn() ◀──┘ bytes gathered per socket
//! ```
//!
//! Each socket has a multishot receive, so that waiting costs it no buffer, and at most one send
//! under way. [`Sockets::turn`] is the only system call: it starts the sends of all sockets that
//! have something to say, and takes what has come. Needs Linux 6.1.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use socket2::SockRef;

/// Entries that wait for the kernel; a turn with more of them takes a call more.
const SUBMISSIONS_MAX: u32 = 4_096;
/// Completions that wait for us; the kernel keeps further ones for itself, and loses none.
const COMPLETIONS_MAX: u32 = 16_384;
/// Buffers that the kernel may fill between two turns; then it waits for the next.
const BUFFERS_MAX: u16 = 2_048;
/// Bytes of each of them: a turn's small frames of one connection, or a piece of a large one.
const BUFFER_BYTES: usize = 4_096;
/// Buffers for sending that are kept for the next turn.
const SPARE_MAX: usize = 4_096;
/// How long a ring that is dropped waits for the kernel to let go of its memory.
const LET_GO_MAX: Duration = Duration::from_secs(1);
/// Waits within that time.
const LET_GO_TURNS_MAX: u32 = 100;
/// The only group of buffers.
const GROUP: u16 = 0;

/// Names a socket from its arrival to its end; then it may name another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u32);

impl Key {
    /// A small number, for a table of what is known about the socket.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What became of a socket.
#[derive(Debug)]
pub enum Input<'a> {
    /// The listener accepted it.
    Accepted,
    /// These bytes came.
    Bytes(&'a [u8]),
    /// The peer ended it, or it broke. It is closed, and its key is nobody's after this call.
    Ended(Option<io::Error>),
}

/// Whether a turn waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Only if nothing has come: until something does.
    Long,
    /// No.
    No,
}

/// The sockets of one thread.
pub struct Sockets {
    ring: IoUring,
    buffers: Buffers,
    outs: Outs,
    done: Vec<Done>,
    listener: Option<TcpListener>,
    is_accepting: bool,
    /// Why the listener accepts no more: told by the next turn.
    refused: Option<io::Error>,
    /// Operations that the kernel holds.
    in_flight: usize,
}

/// Where the sockets' bytes go out.
#[derive(Default)]
pub struct Outs {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Sockets with something to send and none under way.
    dirty: Vec<u32>,
    /// Sockets to receive from.
    arm: Vec<u32>,
    spare: Vec<BytesMut>,
}

#[derive(Default)]
struct Slot {
    fd: Option<OwnedFd>,
    state: State,
    out: BytesMut,
    /// What the kernel is sending. Not touched while it does.
    flying: BytesMut,
    is_dirty: bool,
    is_sending: bool,
    is_receiving: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Open,
    /// It ends once what is gathered was offered to the socket.
    Closing,
}

struct Done {
    what: u64,
    result: i32,
    flags: u32,
}

const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const ACCEPT: u64 = 2;
const CANCEL: u64 = 3;

impl Sockets {
    /// None yet.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or is older than 6.1.
    pub fn new() -> io::Result<Sockets> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        let ring = builder.setup_cqsize(COMPLETIONS_MAX).build(SUBMISSIONS_MAX)?;
        let buffers = Buffers::new();
        // SAFETY: the memory is page-aligned, as long as that many entries, and lives until the
        // ring is closed (see `Drop`).
        unsafe {
            let names = buffers.ring as u64;
            ring.submitter().register_buf_ring_with_flags(names, BUFFERS_MAX, GROUP, 0)?;
        }
        Ok(Sockets {
            ring,
            buffers,
            outs: Outs::default(),
            done: Vec::new(),
            listener: None,
            is_accepting: false,
            refused: None,
            in_flight: 0,
        })
    }

    /// Takes a connected socket over, which is in blocking mode.
    pub fn add(&mut self, socket: impl Into<OwnedFd>) -> Key {
        self.outs.insert(socket.into())
    }

    /// Accepts on this socket from now on.
    pub fn listen(&mut self, listener: TcpListener) {
        self.listener = Some(listener);
    }

    /// A descriptor that becomes readable whenever something has come (and sometimes without): for
    /// waiting by edge; it stays readable. The ring itself does not wake those who wait for it.
    ///
    /// # Errors
    /// The machine refuses one, or one was made before.
    pub fn bell(&self) -> io::Result<OwnedFd> {
        // SAFETY: the call takes no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made this descriptor for us, and nobody else knows it.
        let bell = unsafe { OwnedFd::from_raw_fd(fd) };
        self.ring.submitter().register_eventfd(fd)?;
        Ok(bell)
    }

    /// Where bytes go out.
    pub fn outs(&mut self) -> &mut Outs {
        &mut self.outs
    }

    /// Starts what is to be started and takes what has come; says how much that is. Follow with
    /// [`Sockets::drain`].
    ///
    /// # Errors
    /// The ring is of no use any more, or the listener cannot accept for want of descriptors.
    pub fn turn(&mut self, wait: Wait) -> io::Result<usize> {
        if let Some(error) = self.refused.take() {
            return Err(error);
        }
        self.start()?;
        self.take();
        let want = u32::from(wait == Wait::Long && self.done.is_empty());
        self.enter(want)?;
        self.take();
        Ok(self.done.len())
    }

    /// Gives what has come to `on`, socket by socket in the order of its coming.
    pub fn drain(&mut self, mut on: impl FnMut(&mut Outs, Key, Input<'_>)) {
        let mut done = std::mem::take(&mut self.done);
        for Done { what, result, flags } in done.drain(..) {
            let key = Key((what >> 8) as u32);
            let ended = !cqueue::more(flags);
            self.in_flight -= usize::from(ended);
            match what & 0xff {
                RECEIVE => {
                    self.outs.slot(key).is_receiving = !ended;
                    self.received(key, result, flags, &mut on);
                }
                SEND => {
                    self.outs.slot(key).is_sending = false;
                    self.outs.sent(key, result, &mut on);
                }
                CANCEL => continue,
                _ => {
                    self.is_accepting = !ended;
                    self.accepted(result, &mut on);
                    continue;
                }
            }
            self.outs.settle(key);
        }
        self.buffers.publish();
        self.done = done;
    }

    fn received(
        &mut self,
        key: Key,
        result: i32,
        flags: u32,
        on: &mut impl FnMut(&mut Outs, Key, Input<'_>),
    ) {
        let buffer = cqueue::buffer_select(flags);
        let open = self.outs.slot(key).state == State::Open;
        if let Some(buffer) = buffer {
            if open && result > 0 {
                on(&mut self.outs, key, Input::Bytes(self.buffers.bytes(buffer, result as usize)));
            }
            self.buffers.recycle(buffer);
        }
        match -result {
            0 => self.outs.end(key, None, on),
            // All buffers were full, which they are not any more.
            error if error <= 0 || error == libc::ENOBUFS => {
                let slot = self.outs.slot(key);
                if !slot.is_receiving && slot.state == State::Open {
                    self.outs.arm.push(key.0);
                }
            }
            error => self.outs.end(key, Some(io::Error::from_raw_os_error(error)), on),
        }
    }

    fn accepted(&mut self, result: i32, on: &mut impl FnMut(&mut Outs, Key, Input<'_>)) {
        if result < 0 {
            // One that ended before it was accepted is nobody's fault. Without descriptors the next
            // attempt would fail at once, too.
            if matches!(-result, libc::EMFILE | libc::ENFILE) {
                self.refused = Some(io::Error::from_raw_os_error(-result));
            }
            return;
        }
        // SAFETY: the kernel made this descriptor for us, and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
        // Without it small frames would wait for acks; a socket that refuses is about to end.
        let _ = SockRef::from(&socket).set_tcp_nodelay(true);
        let key = self.outs.insert(socket);
        on(&mut self.outs, key, Input::Accepted);
    }

    /// Pushes an entry for all that is to be started.
    fn start(&mut self) -> io::Result<()> {
        if let Some(listener) = self.listener.as_ref().filter(|_| !self.is_accepting) {
            let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build();
            self.is_accepting = true;
            self.push(entry.user_data(ACCEPT))?;
        }
        while let Some(index) = self.outs.arm.pop() {
            let slot = &mut self.outs.slots[index as usize];
            if let Some(fd) = slot.fd_to_receive() {
                slot.is_receiving = true;
                let entry = opcode::RecvMulti::new(Fd(fd), GROUP).build();
                self.push(entry.user_data(u64::from(index) << 8 | RECEIVE))?;
            }
        }
        while let Some(index) = self.outs.dirty.pop() {
            if let Some(entry) = self.outs.start_send(index) {
                self.push(entry.user_data(u64::from(index) << 8 | SEND))?;
            }
        }
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        self.in_flight += 1;
        loop {
            // SAFETY: a receive names no memory but the registered buffers; a send names `flying`
            // of its slot, which stays as it is until the completion, or is leaked (see `Drop`);
            // descriptors stay open until the slot has no operation left.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.enter(0)?;
        }
    }

    /// The system call.
    fn enter(&mut self, want: u32) -> io::Result<()> {
        let count = self.ring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is given, and what the entries name lives (see `push`).
        match unsafe { self.ring.submitter().enter::<()>(count, want, flags, None) } {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Another turn takes up what was left; completions are taken first.
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => {
                    self.take();
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    fn take(&mut self) {
        let done = self.ring.completion().map(|entry| Done {
            what: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        });
        self.done.extend(done);
    }

    /// Ends all sockets and waits a while for the kernel; says whether it holds no memory now.
    fn let_go(&mut self) -> bool {
        self.listener = None;
        for index in 0..self.outs.slots.len() {
            let slot = &mut self.outs.slots[index];
            slot.state = State::Closing;
            slot.out.clear();
            slot.shut();
        }
        let cancel = opcode::AsyncCancel2::new(io_uring::types::CancelBuilder::any()).build();
        let mut failed = self.push(cancel.user_data(CANCEL)).is_err();
        let pause = LET_GO_MAX / LET_GO_TURNS_MAX;
        let pause = Timespec::new().nsec(pause.subsec_nanos());
        for _ in 0..LET_GO_TURNS_MAX {
            self.drain(|_, _, _| {});
            if self.in_flight == 0 || failed {
                break;
            }
            let args = SubmitArgs::new().timespec(&pause);
            let waited = self.ring.submitter().submit_with_args(1, &args);
            failed = waited.is_err_and(|error| error.raw_os_error() != Some(libc::ETIME));
            self.take();
        }
        self.in_flight == 0
    }
}

/// The kernel must not write to memory that is somebody else's by then.
impl Drop for Sockets {
    fn drop(&mut self) {
        if !self.let_go() {
            std::mem::forget(std::mem::take(&mut self.outs));
            self.buffers.leaked = true;
        }
    }
}

impl Outs {
    /// The bytes that go out to a socket with the next turn; `None` if it is closed.
    pub fn out(&mut self, key: Key) -> Option<&mut BytesMut> {
        let slot = &mut self.slots[key.index()];
        if slot.state != State::Open {
            return None;
        }
        slot.mark(key.0, &mut self.dirty);
        Some(&mut slot.out)
    }

    /// Bytes that are on their way to the socket.
    pub fn queued(&self, key: Key) -> usize {
        let slot = &self.slots[key.index()];
        slot.out.len() + slot.flying.len()
    }

    /// Ends a socket; what is gathered is sent as far as the socket takes it at once. Its key is
    /// nobody's from here on.
    pub fn close(&mut self, key: Key) {
        let slot = &mut self.slots[key.index()];
        if slot.state != State::Open {
            return;
        }
        slot.state = State::Closing;
        if slot.is_sending || slot.out.is_empty() {
            slot.out.clear();
            slot.shut();
        } else {
            slot.mark(key.0, &mut self.dirty);
        }
        self.settle(key);
    }

    fn insert(&mut self, fd: OwnedFd) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.fd = Some(fd);
        slot.state = State::Open;
        self.arm.push(index);
        Key(index)
    }

    fn slot(&mut self, key: Key) -> &mut Slot {
        &mut self.slots[key.index()]
    }

    fn end(
        &mut self,
        key: Key,
        error: Option<io::Error>,
        on: &mut impl FnMut(&mut Outs, Key, Input<'_>),
    ) {
        if self.slot(key).state == State::Open {
            on(self, key, Input::Ended(error));
            self.slot(key).out.clear();
            self.close(key);
        }
    }

    fn start_send(&mut self, index: u32) -> Option<squeue::Entry> {
        let slot = &mut self.slots[index as usize];
        slot.is_dirty = false;
        if slot.is_sending || (slot.out.is_empty() && slot.flying.is_empty()) {
            return None;
        }
        let fd = slot.fd.as_ref()?.as_raw_fd();
        if slot.flying.is_empty() {
            let next = self.spare.pop().unwrap_or_default();
            slot.flying = std::mem::replace(&mut slot.out, next);
        }
        let how = if slot.state == State::Open { libc::MSG_WAITALL } else { libc::MSG_DONTWAIT };
        slot.is_sending = true;
        let send = opcode::Send::new(Fd(fd), slot.flying.as_ptr(), slot.flying.len() as u32);
        Some(send.flags(libc::MSG_NOSIGNAL | how).build())
    }

    fn sent(&mut self, key: Key, result: i32, on: &mut impl FnMut(&mut Outs, Key, Input<'_>)) {
        let slot = &mut self.slots[key.index()];
        if result < 0 || slot.state == State::Closing {
            slot.flying.clear();
            slot.out.clear();
            slot.shut();
            let error = io::Error::from_raw_os_error(-result.min(0));
            return self.end(key, Some(error), on);
        }
        slot.flying.advance((result as usize).min(slot.flying.len()));
        if slot.flying.is_empty() {
            let mut flown = std::mem::take(&mut slot.flying);
            flown.clear();
            if flown.capacity() <= BUFFER_BYTES && self.spare.len() < SPARE_MAX {
                self.spare.push(flown);
            }
        }
        if !slot.out.is_empty() || !slot.flying.is_empty() {
            slot.mark(key.0, &mut self.dirty);
        }
    }

    /// Frees the slot of a socket that has ended, once the kernel is through with it.
    fn settle(&mut self, key: Key) {
        let slot = &mut self.slots[key.index()];
        let over = slot.state == State::Closing && slot.out.is_empty();
        if over && !slot.is_sending && !slot.is_receiving && !slot.is_dirty {
            *slot = Slot::default();
            self.arm.retain(|index| *index != key.0);
            self.free.push(key.0);
        }
    }
}

impl Slot {
    fn mark(&mut self, index: u32, dirty: &mut Vec<u32>) {
        if !self.is_dirty && !self.is_sending {
            self.is_dirty = true;
            dirty.push(index);
        }
    }

    fn fd_to_receive(&self) -> Option<RawFd> {
        let wanted = self.state == State::Open && !self.is_receiving;
        self.fd.as_ref().filter(|_| wanted).map(|fd| fd.as_raw_fd())
    }

    /// Ends both directions, which ends what the kernel still does with it.
    fn shut(&self) {
        if let Some(fd) = &self.fd {
            // One that is not connected any more needs no end.
            let _ = SockRef::from(fd).shutdown(Shutdown::Both);
        }
    }
}

/// Buffers that the kernel fills and hands over, and takes back from a ring of their names.
struct Buffers {
    /// The names, and in the first one's spare field the tail.
    ring: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
    leaked: bool,
}

impl Buffers {
    const RING: Layout = layout(BUFFERS_MAX as usize * size_of::<BufRingEntry>());
    const MEMORY: Layout = layout(BUFFERS_MAX as usize * BUFFER_BYTES);

    fn new() -> Buffers {
        let (ring, memory) = (allocate(Buffers::RING), allocate(Buffers::MEMORY));
        let mut buffers = Buffers { ring: ring.cast(), memory, tail: 0, leaked: false };
        (0..BUFFERS_MAX).for_each(|id| buffers.recycle(id));
        buffers.publish();
        buffers
    }

    /// The first bytes of a buffer that the kernel handed over.
    fn bytes(&self, id: u16, length: usize) -> &[u8] {
        assert!(id < BUFFERS_MAX && length <= BUFFER_BYTES, "the kernel names our buffers");
        // SAFETY: within the memory; the kernel leaves the buffer alone until it is recycled,
        // which takes `&mut self`.
        unsafe {
            std::slice::from_raw_parts(self.memory.add(usize::from(id) * BUFFER_BYTES), length)
        }
    }

    /// Gives a buffer back, as of the next [`Buffers::publish`].
    fn recycle(&mut self, id: u16) {
        assert!(id < BUFFERS_MAX, "the kernel names our buffers");
        let place = usize::from(self.tail % BUFFERS_MAX);
        // SAFETY: both within their memory. The kernel reads an entry only below the tail; the
        // fields are set one by one, because the tail lies in the first entry.
        unsafe {
            let entry = &mut *self.ring.add(place);
            entry.set_addr(self.memory.add(usize::from(id) * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the address of the first entry, initialised; its tail is aligned, and only ever
        // used as an atomic.
        unsafe {
            let tail = BufRingEntry::tail(self.ring).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: allocated with these layouts, and the kernel has no operation left.
            unsafe {
                dealloc(self.ring.cast(), Buffers::RING);
                dealloc(self.memory, Buffers::MEMORY);
            }
        }
    }
}

const PAGE_BYTES: usize = 4_096;

const fn layout(bytes: usize) -> Layout {
    match Layout::from_size_align(bytes, PAGE_BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("a page is a power of two"),
    }
}

fn allocate(layout: Layout) -> *mut u8 {
    // SAFETY: no layout here is of size 0.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}

const _: () = assert!(BUFFERS_MAX.is_power_of_two());

#[cfg(test)]
mod tests;
