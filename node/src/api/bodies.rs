//! How many bytes of request bodies are held while they are read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// All bodies that are being read.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    held: AtomicUsize,
}

/// One body's part, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    bodies: Arc<Bodies>,
    bytes: usize,
}

impl Bodies {
    /// A body that has no bytes yet.
    pub(super) fn hold(self: &Arc<Bodies>) -> Held {
        Held { bodies: Arc::clone(self), bytes: 0 }
    }

    /// Bytes of all of them.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Held {
    /// Counts more bytes; `Err` if all bodies together would have more than `max`.
    pub(super) fn grow(&mut self, bytes: usize, max: usize) -> Result<(), TooMany> {
        let before = self.bodies.held.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before.saturating_add(bytes) > max { Err(TooMany) } else { Ok(()) }
    }
}

/// More bodies are being read than memory is set aside for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Drop for Held {
    fn drop(&mut self) {
        self.bodies.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_one_bound_and_give_their_part_back() {
        let bodies = Arc::new(Bodies::default());
        let (mut first, mut second) = (bodies.hold(), bodies.hold());
        assert_eq!(first.grow(60, 100), Ok(()));
        assert_eq!(second.grow(41, 100), Err(TooMany));
        drop(second);
        assert_eq!(first.grow(40, 100), Ok(()));
        drop(first);
        assert_eq!(bodies.held(), 0);
    }
}
