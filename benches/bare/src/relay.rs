//! The relay: what one user of a pair sends goes to the other one, and is acked.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

use crate::cpu::burn;
use crate::frame::{self, Frame, MESSAGE_BYTES, Splitter};
use crate::log::{Committer, Group, Log};
use crate::ring::{Input, Key, Outs, Sockets, Wait};

/// Users of a relay.
pub const USERS_MAX: u64 = 1 << 18;
/// Bytes that may wait for one user. One who does not read is cut off at this.
pub const QUEUED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The relay.
pub struct Relay {
    sockets: Sockets,
    people: People,
    store: Option<Store>,
}

/// Who is where.
#[derive(Default)]
struct People {
    /// By user.
    keys: Vec<Option<Key>>,
    /// By key.
    peers: Vec<Peer>,
    /// CPU time that each message takes besides.
    burn: Duration,
}

#[derive(Default)]
struct Peer {
    user: Option<u64>,
    splitter: Splitter,
}

struct Store {
    committer: Committer,
    /// What came while the committer was busy.
    next: Group,
    /// Readable when a group is stored.
    bell: Key,
}

impl Relay {
    /// A relay for all who connect to this socket; with a log, nothing is relayed or acked before
    /// it is synced.
    ///
    /// # Errors
    /// The kernel has no io_uring as needed, or refuses a thread.
    pub fn new(listener: TcpListener, log: Option<Log>) -> io::Result<Relay> {
        let mut sockets = Sockets::new()?;
        sockets.listen(listener);
        let mut store = None;
        if let Some(log) = log {
            let (committer, bell) = Committer::start(log)?;
            let bell = sockets.add(bell);
            store = Some(Store { committer, next: Group::default(), bell });
        }
        Ok(Relay { sockets, people: People::default(), store })
    }

    /// The same relay, which takes so much more CPU time for each message.
    pub fn burning(mut self, burn: Duration) -> Relay {
        self.people.burn = burn;
        self
    }

    /// Relays until it cannot.
    ///
    /// # Errors
    /// The ring or the log failed.
    pub fn run(&mut self) -> io::Result<Infallible> {
        loop {
            self.turn()?;
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        self.sockets.turn(Wait::Long)?;
        let Relay { sockets, people, store } = self;
        let mut rang = false;
        sockets.drain(|outs, key, input| match input {
            // A byte, or the end of the log's thread, which `take` tells.
            _ if store.as_ref().is_some_and(|store| store.bell == key) => rang = true,
            Input::Bytes(bytes) => people.take(key, bytes, outs, store.as_mut()),
            Input::Accepted => people.peer(key).user = None,
            Input::Ended(_) => people.forget(key),
        });
        let Some(store) = store else { return Ok(()) };
        if rang {
            store.committer.take(|group| {
                for (user, message) in group.messages() {
                    people.pass(user, message, sockets.outs());
                }
            })?;
        }
        store.committer.offer(&mut store.next);
        Ok(())
    }
}

impl People {
    fn take(&mut self, key: Key, bytes: &[u8], outs: &mut Outs, mut store: Option<&mut Store>) {
        let mut splitter = std::mem::take(&mut self.peer(key).splitter);
        let mut fault = false;
        let fed = splitter.feed(bytes, |frame| match (frame, self.peer(key).user) {
            (Frame::Hello { user }, None) if user < USERS_MAX => self.enter(key, user, outs),
            (Frame::Message(message), Some(user)) => match &mut store {
                Some(store) => fault |= !store.next.add(user, message),
                None => self.pass(user, message, outs),
            },
            _ => fault = true,
        });
        if fed.is_err() || fault {
            self.forget(key);
            outs.close(key);
        } else {
            self.peer(key).splitter = splitter;
        }
    }

    /// To the other user of the pair, and back to this one. Whoever is not there misses it.
    fn pass(&self, user: u64, message: &[u8; MESSAGE_BYTES], outs: &mut Outs) {
        burn(self.burn);
        self.say(user ^ 1, message, outs);
        self.say(user, &frame::ack(message), outs);
    }

    fn say(&self, user: u64, bytes: &[u8], outs: &mut Outs) {
        let Some(key) = self.keys.get(user as usize).copied().flatten() else { return };
        if outs.queued(key) > QUEUED_BYTES_MAX {
            outs.close(key);
        } else if let Some(out) = outs.out(key) {
            out.extend_from_slice(bytes);
        }
    }

    fn enter(&mut self, key: Key, user: u64, outs: &mut Outs) {
        let place = user as usize;
        if self.keys.len() <= place {
            self.keys.resize(place + 1, None);
        }
        self.keys[place] = Some(key);
        self.peer(key).user = Some(user);
        self.say(user, &frame::hello(user), outs);
    }

    fn forget(&mut self, key: Key) {
        let Peer { user, .. } = std::mem::take(self.peer(key));
        if let Some(place) = user.and_then(|user| self.keys.get_mut(user as usize))
            && *place == Some(key)
        {
            *place = None;
        }
    }

    fn peer(&mut self, key: Key) -> &mut Peer {
        if self.peers.len() <= key.index() {
            self.peers.resize_with(key.index() + 1, Peer::default);
        }
        &mut self.peers[key.index()]
    }
}

#[cfg(test)]
mod tests;
