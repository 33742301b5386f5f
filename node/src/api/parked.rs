//! How many requests wait for news.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chatring_wire::ErrorCode;

use super::limits::HTTP_PARKED_MAX;
use super::problem::Problem;

/// The requests that wait.
#[derive(Debug, Default)]
pub(super) struct Parking {
    parked: Arc<AtomicUsize>,
}

/// The place of one of them, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Parked(Arc<AtomicUsize>);

impl Parking {
    /// A place for one more.
    ///
    /// # Errors
    /// `Busy` if there are as many as may be.
    pub(super) fn park(&self) -> Result<Parked, Problem> {
        let place = Parked(Arc::clone(&self.parked));
        match self.parked.fetch_add(1, Ordering::Relaxed) < HTTP_PARKED_MAX {
            true => Ok(place),
            false => Err(Problem::new(ErrorCode::Busy).detail("too many requests wait for news")),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.parked.load(Ordering::Relaxed)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
