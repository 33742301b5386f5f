//! How many connections there may be: in all and of one address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::limits::GatewayLimits;

/// The count of connections. It is the one thing that all shards write: only at a connection's
/// beginning and end, because a connection may end on another shard than it began.
#[derive(Debug)]
pub struct Admission(Mutex<Counts>);

/// One admitted connection; gives its place back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    address: IpAddr,
    pending: bool,
}

#[derive(Debug, Default)]
struct Counts {
    all: Count,
    each: HashMap<IpAddr, Count>,
    max: Count,
    max_each: Count,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    connections: usize,
    handshakes: usize,
}

impl Admission {
    pub fn new(limits: &GatewayLimits) -> Arc<Admission> {
        Arc::new(Admission(Mutex::new(Counts {
            max: Count { connections: limits.connections_max, handshakes: limits.handshakes_max },
            max_each: Count {
                connections: limits.connections_per_ip_max,
                handshakes: limits.handshakes_per_ip_max,
            },
            ..Counts::default()
        })))
    }

    /// A place for one more connection; `None` if a bound is reached.
    pub fn admit(self: &Arc<Admission>, peer: SocketAddr) -> Option<Permit> {
        let address = network_of(peer.ip());
        let counts = &mut *self.lock();
        let each = counts.each.get(&address).copied().unwrap_or_default();
        if counts.all.is_full(counts.max) || each.is_full(counts.max_each) {
            return None;
        }
        for count in [&mut counts.all, counts.each.entry(address).or_default()] {
            count.connections += 1;
            count.handshakes += 1;
        }
        Some(Permit { admission: self.clone(), address, pending: true })
    }

    /// How many there are.
    pub fn connections(&self) -> usize {
        self.lock().all.connections
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Count {
    fn is_full(self, max: Count) -> bool {
        self.connections >= max.connections || self.handshakes >= max.handshakes
    }
}

impl Permit {
    /// The handshake is over.
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.pending) {
            let counts = &mut *self.admission.lock();
            counts.all.handshakes -= 1;
            if let Some(count) = counts.each.get_mut(&self.address) {
                count.handshakes -= 1;
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.settle();
        let counts = &mut *self.admission.lock();
        counts.all.connections -= 1;
        if let Some(count) = counts.each.get_mut(&self.address) {
            count.connections -= 1;
            if count.connections == 0 {
                counts.each.remove(&self.address);
            }
        }
    }
}

/// What one person can have many of: a whole /64 of IPv6.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[8..].fill(0);
            IpAddr::from(octets)
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_per_network_and_given_back() {
        let limits = GatewayLimits {
            connections_max: 3,
            connections_per_ip_max: 2,
            handshakes_per_ip_max: 1,
            ..GatewayLimits::default()
        };
        let admission = Admission::new(&limits);
        let peer = |text: &str| SocketAddr::new(text.parse().expect("an address"), 1);
        let mut first = admission.admit(peer("2001:db8::1")).expect("room");
        assert!(admission.admit(peer("2001:db8::2")).is_none(), "a handshake is under way");
        first.settle();
        let mut second = admission.admit(peer("2001:db8::2")).expect("room");
        second.settle();
        assert!(admission.admit(peer("2001:db8::3")).is_none(), "two of the network");
        let third = admission.admit(peer("127.0.0.1")).expect("another network");
        assert!(admission.admit(peer("127.0.0.2")).is_none(), "three in all");
        drop((first, second, third));
        assert_eq!(admission.connections(), 0);
        assert!(admission.0.lock().expect("not poisoned").each.is_empty());
    }

    #[test]
    fn addresses_of_one_holder_are_of_one_network() {
        let ip = |text: &str| network_of(text.parse().expect("an address"));
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:1"));
        assert_ne!(ip("2001:db8:0:1::1"), ip("2001:db8::1"));
        assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
        assert_ne!(ip("192.0.2.1"), ip("192.0.2.2"));
    }
}
