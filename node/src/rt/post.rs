//! The way into a shard's inbox, and what wakes a shard that waits in its ring.

use std::io::Error as IoError;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use rustix::event::EventfdFlags;

/// Batches that wait in one shard's inbox.
pub const INBOX_BATCHES_MAX: usize = 8_192;

/// The way into a shard's inbox, from any thread.
#[derive(Debug)]
pub struct Post<M> {
    inbox: flume::Sender<Vec<M>>,
    /// Of a shard that waits in its ring. Where glommio waits, the inbox itself wakes it.
    knock: Option<Arc<Knock>>,
}

impl<M> Clone for Post<M> {
    fn clone(&self) -> Post<M> {
        Post { inbox: self.inbox.clone(), knock: self.knock.clone() }
    }
}

#[cfg(test)]
impl<M> Post<M> {
    /// A way into an inbox that the test empties.
    pub(crate) fn with_inbox(batches_max: usize) -> (Post<M>, flume::Receiver<Vec<M>>) {
        let (inbox, receiver) = flume::bounded(batches_max);
        (Post { inbox, knock: None }, receiver)
    }
}

impl<M> Post<M> {
    /// A way into a new inbox, and its other end.
    pub(super) fn new(knock: Option<Arc<Knock>>) -> (Post<M>, flume::Receiver<Vec<M>>) {
        let (inbox, receiver) = flume::bounded(INBOX_BATCHES_MAX);
        (Post { inbox, knock }, receiver)
    }

    /// Posts a batch, or gives it back if the inbox is full (or its shard has ended).
    pub fn try_post(&self, batch: Vec<M>) -> Result<(), Vec<M>> {
        let posted = self.inbox.try_send(batch).map_err(flume::TrySendError::into_inner);
        // A shard that stands still with a full inbox is woken as well.
        self.knock();
        posted
    }

    /// Posts a batch and waits for room. Never for a shard's own thread. What is posted to a shard
    /// that has ended is lost, as its users are.
    pub fn post(&self, batch: Vec<M>) {
        if let Err(batch) = self.try_post(batch) {
            let _ = self.inbox.send(batch);
            self.knock();
        }
    }

    fn knock(&self) {
        if let Some(knock) = &self.knock {
            knock.knock();
        }
    }
}

/// The other end, of a shard on a ring.
pub struct Inbox<M> {
    batches: flume::Receiver<Vec<M>>,
    knock: Arc<Knock>,
}

impl<M> Inbox<M> {
    /// Of the calling thread.
    pub fn new(batches: flume::Receiver<Vec<M>>, knock: Arc<Knock>) -> Inbox<M> {
        knock.thread.get_or_init(std::thread::current);
        Inbox { batches, knock }
    }

    /// The next batch, if there is one.
    pub fn next(&self) -> Option<Vec<M>> {
        self.batches.try_recv().ok()
    }

    /// Has the next post wake the shard there, once; answers whether the shard may wait for that,
    /// because nothing was posted before.
    pub fn wait_at(&self, place: Place) -> bool {
        self.knock.wake_at(place);
        self.batches.is_empty()
    }

    /// Waits for a post and for nothing else, but not for longer than this.
    pub fn wait(&self, limit: Duration) {
        if self.wait_at(Place::Inbox) {
            // It may end early, which only makes a turn that has less in it.
            std::thread::park_timeout(limit);
        }
        self.look();
    }

    /// The shard looks by itself from now on.
    pub fn look(&self) {
        // Whoever does not see it knocks once too often.
        self.knock.place.store(Place::Nowhere as u8, Ordering::Relaxed);
    }
}

/// Where a shard waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// It works, and looks into its inbox by itself.
    Nowhere,
    /// For a post alone.
    Inbox,
    /// In its ring.
    Ring,
    /// In glommio.
    Glommio,
}

/// Wakes a shard on a ring: two eventfds, written to only while the shard waits for that.
///
/// One would not do. What the ring watches reaches glommio through the other, and the kernel puts
/// that off for milliseconds if the cause is itself a write to an eventfd.
#[derive(Debug)]
pub struct Knock {
    at_ring: OwnedFd,
    bell: OwnedFd,
    /// The shard's, once it runs.
    thread: OnceLock<Thread>,
    place: AtomicU8,
}

impl Knock {
    pub fn new() -> Result<Knock, IoError> {
        let (at_ring, bell) = (eventfd()?, eventfd()?);
        let place = AtomicU8::new(Place::Nowhere as u8);
        Ok(Knock { at_ring, bell, thread: OnceLock::new(), place })
    }

    /// What the ring is to watch.
    pub fn at_ring(&self) -> BorrowedFd<'_> {
        self.at_ring.as_fd()
    }

    /// What glommio is to read.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn wake_at(&self, place: Place) {
        self.place.store(place as u8, Ordering::Relaxed);
        // Either the poster sees this, or the shard sees what was posted.
        fence(Ordering::SeqCst);
    }

    fn knock(&self) {
        fence(Ordering::SeqCst);
        if self.place.load(Ordering::Relaxed) == Place::Nowhere as u8 {
            return;
        }
        let place = self.place.swap(Place::Nowhere as u8, Ordering::Relaxed);
        let fd = match place {
            place if place == Place::Inbox as u8 => {
                if let Some(thread) = self.thread.get() {
                    thread.unpark();
                }
                return;
            }
            place if place == Place::Ring as u8 => &self.at_ring,
            place if place == Place::Glommio as u8 => &self.bell,
            _ => return,
        };
        // It cannot fail; if it did, the tick would find what was posted.
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
    }
}

/// Blocking, because io_uring reads no other. No count of knocks blocks a write.
fn eventfd() -> Result<OwnedFd, IoError> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    struct Shard {
        post: Post<usize>,
        inbox: Inbox<usize>,
    }

    impl Shard {
        fn new() -> Shard {
            let knock = Arc::new(Knock::new().expect("eventfds"));
            let (post, batches) = Post::new(Some(Arc::clone(&knock)));
            Shard { post, inbox: Inbox::new(batches, knock) }
        }

        /// How often each eventfd was written to since the last look.
        fn knocks(&self) -> [u64; 2] {
            [&self.inbox.knock.at_ring, &self.inbox.knock.bell].map(|fd| {
                // So that reading does not wait for ever.
                assert!(rustix::io::write(fd, &1_u64.to_ne_bytes()).is_ok());
                let mut count = [0; 8];
                let mut file = std::fs::File::from(fd.try_clone().expect("a descriptor"));
                file.read_exact(&mut count).expect("it was written to");
                u64::from_ne_bytes(count) - 1
            })
        }
    }

    #[test]
    fn a_shard_is_woken_where_it_waits_once_for_each_time() {
        let shard = Shard::new();
        shard.post.post(vec![1]);
        assert_eq!(shard.knocks(), [0, 0], "it does not wait");
        assert!(!shard.inbox.wait_at(Place::Ring), "something was posted");
        assert_eq!(shard.inbox.next(), Some(vec![1]));
        for (place, knocks) in [(Place::Ring, [1, 0]), (Place::Glommio, [0, 1])] {
            assert!(shard.inbox.wait_at(place));
            shard.post.post(vec![2]);
            assert_eq!(shard.post.try_post(vec![3]), Ok(()));
            assert_eq!(shard.knocks(), knocks);
            assert_eq!([shard.inbox.next(), shard.inbox.next()], [Some(vec![2]), Some(vec![3])]);
        }
        assert!(shard.inbox.wait_at(Place::Ring));
        shard.inbox.look();
        shard.post.post(vec![4]);
        assert_eq!(shard.knocks(), [0, 0]);
    }

    #[test]
    fn a_shard_with_a_full_inbox_is_woken_too() {
        let shard = Shard::new();
        for batch in 0..INBOX_BATCHES_MAX {
            shard.post.post(vec![batch]);
        }
        shard.inbox.wait_at(Place::Glommio);
        assert_eq!(shard.post.try_post(vec![0]), Err(vec![0]));
        assert_eq!(shard.knocks(), [0, 1]);
    }
}
