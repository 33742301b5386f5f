//! How many HTTP connections there may be: in all and of one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::gateway::network_of;

/// The places of connections.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    max: usize,
    max_each: usize,
    each: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among all, for a connection that is yet to come.
pub(super) struct Reserved(OwnedSemaphorePermit);

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    network: IpAddr,
    _one_of_all: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(max: usize, max_each: usize) -> Arc<Places> {
        let max = max.min(Semaphore::MAX_PERMITS);
        let all = Arc::new(Semaphore::new(max));
        Arc::new(Places { all, max, max_each, each: Mutex::default() })
    }

    /// Waits until there is a place.
    pub(super) async fn reserve(self: &Arc<Places>) -> Reserved {
        let all = Arc::clone(&self.all);
        Reserved(all.acquire_owned().await.expect("it is never closed"))
    }

    /// A place that is free now.
    pub(super) fn try_reserve(self: &Arc<Places>) -> Option<Reserved> {
        Arc::clone(&self.all).try_acquire_owned().ok().map(Reserved)
    }

    /// Gives the place to a connection from this address; `None` if it has too many.
    pub(super) fn settle(self: &Arc<Places>, reserved: Reserved, peer: IpAddr) -> Option<Place> {
        let network = network_of(peer);
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        let count = each.entry(network).or_default();
        if *count >= self.max_each {
            return None;
        }
        *count += 1;
        Some(Place { places: Arc::clone(self), network, _one_of_all: reserved.0 })
    }

    /// How many connections there are.
    pub(super) fn taken(&self) -> usize {
        self.max - self.all.available_permits()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut each = self.places.each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = each.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                each.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_per_network_and_given_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let places = Places::new(3, 2);
        let settle = |text: &str| {
            let reserved = runtime.block_on(places.reserve());
            places.settle(reserved, text.parse().expect("an address"))
        };
        let first = settle("2001:db8::1").expect("room");
        let second = settle("2001:db8::2").expect("room");
        assert!(settle("2001:db8::3").is_none(), "two of the network");
        let third = settle("127.0.0.1").expect("another network");
        assert_eq!(places.taken(), 3);
        drop((first, second, third));
        assert_eq!(places.taken(), 0);
        assert!(places.each.lock().expect("not poisoned").is_empty());
    }
}
