//! The turns of a shard on its ring, and the bell that begins them.

use std::io::Error as IoError;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::io::BufferedFile;

use super::Event;
use super::pace::Pace;
use crate::held::{Cause, HELD};
use crate::rt::io::Io;
use crate::rt::shard::{BREATH, Core, Shard};
use crate::rt::stats::count;
use crate::rt::{Flow, Handler};

/// Passes (take, handle, hand over) in a row before glommio's other tasks get their turn.
const PASSES_MAX: u32 = 8;

/// An eventfd that the kernel writes to when it has something for a ring that nobody looks at.
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> Result<Bell, IoError> {
        // SAFETY: the call touches no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(IoError::last_os_error());
        }
        // SAFETY: the call above gave this descriptor, nobody else has it.
        Ok(Bell(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Begins a turn whenever the bell rings. glommio waits for it as for a read of a file.
pub async fn ring_bell<H: Handler>(shard: Rc<Shard<H>>, bell: Bell) {
    // SAFETY: the descriptor is owned and passes to the file.
    let file = unsafe { BufferedFile::from_raw_fd(bell.0.into_raw_fd()) };
    loop {
        match file.read_at(0, size_of::<u64>()).await {
            Ok(_) => shard.core.borrow_mut().io.mark_turn(),
            Err(error) => {
                tracing::error!(%error, "the bell of the shard's ring cannot be read: aborting");
                std::process::abort();
            }
        }
    }
}

/// Whether a pass had anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Something,
}

/// Carries out the turns of the shard. A busy shard waits for `gather` between them.
pub async fn turns<H: Handler>(shard: Rc<Shard<H>>, gather: Duration) {
    let mut pace = Pace::new(gather);
    loop {
        std::future::poll_fn(|cx| shard.core.borrow_mut().io.poll_turn(cx)).await;
        let start = Instant::now();
        let mut left = true;
        shard.io(|io| io.ring().look());
        for _ in 0..PASSES_MAX {
            let found = pass(&shard);
            left = shard.io(Io::ring_has_work);
            if left {
                continue;
            }
            // The thread sleeps, not the task: glommio would take several system calls for it.
            let Some(pause) = pace.pause().filter(|_| found == Found::Something) else { break };
            count(&shard.stats.ring_gathers, 1);
            std::thread::sleep(pause);
            left = true;
        }
        let again = shard.io(|io| {
            io.ring().listen();
            // What came between the last look and the bell would not ring it.
            left = left || io.ring_has_work();
            io.turn_over(left)
        });
        HELD.since(Cause::Turn, start);
        if again {
            glommio::timer::sleep(BREATH).await;
        }
    }
}

/// Takes from the kernel what there is, has it handled, and ends the turn.
fn pass<H: Handler>(shard: &Shard<H>) -> Found {
    let mut found = Found::Nothing;
    let mut queued = shard.io(|io| {
        io.refresh();
        io.ring().enter_if_needed();
        io.ring_net().queue.len()
    });
    while let Some(event) = shard.io(Io::next_done) {
        found = Found::Something;
        tell(shard, event);
    }
    while queued > 0 {
        queued -= 1;
        let Some(id) = shard.io(|io| io.ring_net().queue.pop_front()) else { break };
        if let Some(event) = shard.io(|io| io.look_at(id)) {
            found = Found::Something;
            tell(shard, event);
        }
    }
    count(&shard.stats.turns, 1);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let Core { handler, io, .. } = &mut *shard.core.borrow_mut();
        handler.turn_end(io);
    }));
    if result.is_err() {
        shard.panicked(None);
    }
    shard.io(|io| {
        if io.is_dirty() {
            found = Found::Something;
        }
        io.flush_ring();
        io.feed_starved();
        io.free_quiet();
    });
    found
}

fn tell<H: Handler>(shard: &Shard<H>, event: Event) {
    let mut flow = Flow::Wait;
    let id = match event {
        Event::Bytes(id, buf) => {
            shard.call_now(Some(id), |handler, io| flow = handler.received(io, id, &buf));
            id
        }
        Event::Unread(id, bytes) => {
            shard.call_now(Some(id), |handler, io| flow = handler.received(io, id, &bytes));
            id
        }
        Event::Rest(id) => {
            shard.call_now(Some(id), |handler, io| flow = handler.received(io, id, &[]));
            id
        }
        Event::Drained(id) => {
            return shard.call_now(Some(id), |handler, io| handler.drained(io, id));
        }
        Event::Closed(id, why) => {
            return shard.call_now(None, |handler, io| handler.closed(io, id, why));
        }
    };
    if flow == Flow::Again {
        shard.io(|io| io.call_again(id));
    }
}
