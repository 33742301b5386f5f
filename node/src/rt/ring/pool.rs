//! The buffers that the kernel puts received bytes into, shared by all connections of a shard.
//!
//! ```text
//!  kernel ──takes the buffer at the head, fills it──▶ completion names it ──▶ Buf
//!    ▲                                                                        │ dropped
//!    └───────────────────── entry put at the tail ◀───────────────────────────┘
//! ```
//!
//! A buffer belongs either to the kernel or to one [`Buf`], never to both.

use std::cell::Cell;
use std::io::Error as IoError;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// The group of buffers, of which a ring has one.
pub const GROUP: u16 = 0;

/// All buffers of a ring.
#[derive(Debug)]
pub struct Pool {
    entries: Mapping,
    bytes: Mapping,
    count: u16,
    buffer_bytes: u32,
    tail: Cell<u16>,
    /// Buffers that are not with the kernel.
    lent: Cell<u16>,
}

/// A filled buffer, which goes back to the kernel when it is dropped.
#[derive(Debug)]
pub struct Buf {
    pool: Rc<Pool>,
    number: u16,
    len: usize,
}

impl Pool {
    /// Makes `count` buffers (a power of two), all of them the kernel's. They must live until the
    /// ring is closed and no receive is under way.
    pub fn register(uring: &IoUring, count: u16, buffer_bytes: u32) -> Result<Rc<Pool>, IoError> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel's rule");
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let bytes = Mapping::new(usize::from(count) * buffer_bytes as usize)?;
        let at = entries.start.as_ptr() as u64;
        // SAFETY: the entries are mapped, aligned to a page and as many as said; the caller keeps
        // them for as long as the kernel uses them.
        unsafe { uring.submitter().register_buf_ring_with_flags(at, count, GROUP, 0)? };
        let (tail, lent) = (Cell::new(0), Cell::new(count));
        let pool = Pool { entries, bytes, count, buffer_bytes, tail, lent };
        (0..count).for_each(|number| pool.give(number));
        Ok(Rc::new(pool))
    }

    /// The buffer that a completion says has been filled.
    pub fn filled(self: &Rc<Pool>, number: u16, len: usize) -> Buf {
        assert!(number < self.count && len <= self.buffer_bytes as usize, "the kernel's own words");
        self.lent.set(self.lent.get() + 1);
        Buf { pool: self.clone(), number, len }
    }

    /// Buffers that the kernel has, full ones that it has not told of included.
    pub fn free(&self) -> usize {
        usize::from(self.count - self.lent.get())
    }

    fn at(&self, number: u16) -> NonNull<u8> {
        // SAFETY: numbers are below `count`, and the mapping is as long as all buffers together.
        unsafe { self.bytes.start.add(usize::from(number) * self.buffer_bytes as usize) }
    }

    /// Gives a buffer to the kernel.
    fn give(&self, number: u16) {
        let tail = self.tail.get();
        let base = self.entries.start.cast::<BufRingEntry>();
        // SAFETY: the index is below `count`, the mapping holds so many entries, and the kernel
        // does not look at this one before the tail has passed it.
        let entry = unsafe { base.add(usize::from(tail & (self.count - 1))).as_mut() };
        entry.set_addr(self.at(number).as_ptr() as u64);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(number);
        self.tail.set(tail.wrapping_add(1));
        self.lent.set(self.lent.get() - 1);
        // SAFETY: the tail lies in the first entry, aligned; both sides use it as an atomic.
        let shared = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base.as_ptr()).cast_mut()) };
        shared.store(self.tail.get(), Ordering::Release);
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the kernel has filled `len` bytes of it and does not touch it before it is given
        // back, which happens when this `Buf` is dropped.
        unsafe { std::slice::from_raw_parts(self.pool.at(self.number).as_ptr(), self.len) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.pool.give(self.number);
    }
}

/// Zeroed memory of its own pages.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> Result<Mapping, IoError> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping touches no memory that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(IoError::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length; whoever owned it has ended all use of it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
