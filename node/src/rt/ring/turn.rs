//! The turns of a shard on its ring, and the bell that begins them.

use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::io::BufferedFile;

use super::Event;
use crate::held::{Cause, HELD};
use crate::rt::io::Io;
use crate::rt::post::{Inbox, Place};
use crate::rt::shard::{BATCHES_MAX, BREATH, Core, Shard};
use crate::rt::stats::count;
use crate::rt::{Flow, Handler, tls};

/// Things of a turn from which on the next one needs no gathering: what a turn costs by itself is
/// then small against what is in it.
const FULL: u32 = 32;
/// How long a shard with something to do keeps glommio waiting. Two milliseconds make what glommio
/// does once in between, some ten system calls, a hundredth of a busy shard's time.
const STAY: Duration = Duration::from_millis(2);

/// Begins a turn whenever the bell rings. glommio waits for it as for a read of a file.
pub async fn answer_bell<H: Handler>(shard: Rc<Shard<H>>, bell: OwnedFd) {
    // SAFETY: the descriptor is owned and passes to the file.
    let file = unsafe { BufferedFile::from_raw_fd(bell.into_raw_fd()) };
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

/// Carries out the turns of the shard. While it expects a post it waits for that alone, for up to
/// `gather`, before the next one.
///
/// While there is something to do every now and then the shard waits in its ring: one entry into
/// the kernel sends what a turn has said and waits for the next one, where glommio takes many.
/// After [`STAY`] at the latest glommio has its turn, for the tick, the listener and whatever else
/// is its own.
pub async fn turns<H: Handler>(shard: Rc<Shard<H>>, inbox: Inbox<H::Message>, gather: Duration) {
    loop {
        std::future::poll_fn(|cx| shard.core.borrow_mut().io.poll_turn(cx)).await;
        inbox.look();
        shard.io(|io| io.ring().look());
        stay(&shard, &inbox, gather);
        let again = shard.io(|io| {
            io.ring().listen();
            // What came between the last look and the bell would not ring it.
            let left =
                !inbox.wait_at(Place::Glommio) || io.ring_has_work() || io.ring().has_queued();
            io.turn_over(left)
        });
        if again {
            glommio::timer::sleep(BREATH).await;
        }
    }
}

/// Turn after turn, if the first has anything in it, until glommio is due.
fn stay<H: Handler>(shard: &Shard<H>, inbox: &Inbox<H::Message>, gather: Duration) {
    let mut start = Instant::now();
    let until = start + STAY;
    let (mut stays, mut waited) = (false, false);
    shard.io(|io| io.pressed = io.busy);
    loop {
        let found = pass(shard, inbox);
        stays |= found > 0;
        let end = Instant::now();
        HELD.took(Cause::Turn, end - start);
        start = end;
        let left = until.saturating_duration_since(end);
        let over = !stays || left.is_zero();
        if !over && shard.io(Io::ring_has_work) {
            continue;
        }
        if shard.io(|io| std::mem::take(&mut io.pressed)) {
            // One more turn, for what was put off.
            continue;
        }
        if over {
            return shard.io(|io| {
                io.busy = stays && !waited;
                io.ring().enter_if_needed();
            });
        }
        waited = true;
        if (1..FULL).contains(&found) && !gather.is_zero() && shard.io(|io| io.post_expected) {
            count(&shard.stats.ring_gathers, 1);
            shard.io(|io| io.ring().enter_if_needed());
            inbox.wait(gather);
        } else {
            if inbox.wait_at(Place::Ring) {
                shard.io(|io| io.ring().wait(left));
            }
            inbox.look();
        }
        start = Instant::now();
    }
}

/// Takes what there is from the inbox and the kernel, has it handled, and ends the turn. Answers
/// how many things there were.
fn pass<H: Handler>(shard: &Shard<H>, inbox: &Inbox<H::Message>) -> u32 {
    let mut found = 0;
    for _ in 0..BATCHES_MAX {
        let Some(batch) = inbox.next() else { break };
        found += 1;
        shard.call(None, |handler, io, _| handler.inbox(io, batch));
    }
    let mut queued = shard.io(|io| {
        io.refresh();
        io.ring().enter_if_needed();
        io.ring_net().queue.len()
    });
    while let Some(event) = shard.io(Io::next_done) {
        found += 1;
        tell(shard, event);
    }
    while queued > 0 {
        queued -= 1;
        let Some(id) = shard.io(|io| io.ring_net().queue.pop_front()) else { break };
        if let Some(event) = shard.io(|io| io.look_at(id)) {
            found += 1;
            tell(shard, event);
        }
    }
    count(&shard.stats.turns, 1);
    shard.io(Io::begin_turn_end);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let Core { handler, io, .. } = &mut *shard.core.borrow_mut();
        handler.turn_end(io);
    }));
    if result.is_err() {
        shard.panicked(None);
    }
    shard.io(|io| {
        if io.is_dirty() {
            found += 1;
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
            shard.call_now(Some(id), |handler, io| flow = tls::received(handler, io, id, &buf));
            id
        }
        Event::Unread(id, bytes) => {
            shard.call_now(Some(id), |handler, io| flow = tls::received(handler, io, id, &bytes));
            id
        }
        Event::Rest(id) => {
            shard.call_now(Some(id), |handler, io| flow = tls::received(handler, io, id, &[]));
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
