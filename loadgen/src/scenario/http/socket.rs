//! The connections of one thread's users: made, carried in turns, made again.

use std::cell::{Ref, RefCell};
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Instant;

use chatring_bare::ring::{Input, Key, Outs};
use tokio::sync::Semaphore;

use super::super::direct::talk::{Phase, State};
use super::net::{Net, Want, Way};
use crate::connection::{ConnectError, Connection};
use crate::limits::CONNECTS_IN_FLIGHT_MAX;
use crate::link::{CONNECT_MAX, Link, LinkError};
use crate::pool::fresh_random;
use crate::ready::Ready;
use crate::stamp::Mixer;
use crate::turns::{Speakers, Turns};

/// The users of one thread and their sockets.
pub struct Clients {
    state: RefCell<State>,
    net: RefCell<Net>,
    turns: Turns,
    connects: Semaphore,
    ready_file: PathBuf,
    me: Weak<Clients>,
}

impl Clients {
    /// Without a connection yet.
    pub fn new(ready_file: &Path, state: RefCell<State>, net: Net) -> io::Result<Rc<Clients>> {
        let turns = Turns::new()?;
        Ok(Rc::new_cyclic(|me| Clients {
            state,
            net: RefCell::new(net),
            turns,
            connects: Semaphore::new(CONNECTS_IN_FLIGHT_MAX),
            ready_file: ready_file.to_owned(),
            me: me.clone(),
        }))
    }

    /// Takes turns until the run is over. Within a `LocalSet`.
    pub async fn run(self: Rc<Self>) {
        self.turns.run(&*self).await;
    }

    /// Changes the users' state or looks at it.
    pub fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.borrow_mut())
    }

    /// The connections.
    pub fn net(&self) -> Ref<'_, Net> {
        self.net.borrow()
    }

    /// Has a user look for something to do.
    pub fn wake(&self, place: usize) {
        self.net.borrow_mut().wake(place);
        self.turns.wake();
    }

    /// The same for all.
    pub fn wake_all(&self) {
        self.net.borrow_mut().wake_all();
        self.turns.wake();
    }

    async fn connect(self: Rc<Self>, line: usize, generation: u32, want: Want) {
        let permit = self.connects.acquire().await.expect("the semaphore is never closed");
        let random = Mixer(fresh_random(line as u64).draw());
        let outcome = match Ready::read(&self.ready_file) {
            Ok(ready) => open(&ready, want, random).await,
            Err(error) => Err(error.to_string().into()),
        };
        drop(permit);
        let net = &mut *self.net.borrow_mut();
        match outcome {
            Ok((socket, way)) if net.is_wanted(line, generation) => {
                let key = self.turns.add(socket);
                net.connected(line, key, way);
            }
            Ok(_) => {}
            Err(Trouble { reason, is_final }) => {
                let state = &mut *self.state.borrow_mut();
                if is_final && state.phase == Phase::Connecting {
                    state.fail(reason.clone());
                }
                net.unreachable(line, generation, reason, Instant::now());
            }
        }
        self.turns.wake();
    }
}

/// Why a line does not stand.
struct Trouble {
    reason: String,
    /// Whether another attempt can be of use.
    is_final: bool,
}

impl From<String> for Trouble {
    fn from(reason: String) -> Trouble {
        Trouble { reason, is_final: false }
    }
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Trouble {
        Trouble { reason: error.to_string(), is_final: error.is_distrust() }
    }
}

async fn open(ready: &Ready, want: Want, random: Mixer) -> Result<(TcpStream, Way), Trouble> {
    match want {
        Want::Http => {
            let (host, has_tls) = ready.api().ok_or("the ready file names no API".to_owned())?;
            let link = tokio::time::timeout(CONNECT_MAX, Link::open(host, has_tls)).await;
            let link = link.map_err(|_| "no connection in time".to_owned())??;
            let (stream, tls) = link.into_parts().map_err(LinkError::Io)?;
            Ok((stream, Way::Http(tls)))
        }
        Want::Ws(subprotocol) => match Connection::open(&ready.ws, subprotocol, random).await {
            Ok((stream, ws)) => Ok((stream, Way::Ws(ws))),
            Err(ConnectError::Link(error)) => Err(error.into()),
            Err(error) => Err(error.to_string().into()),
        },
    }
}

impl Speakers for Clients {
    fn input(&self, outs: &mut Outs, key: Key, input: Input<'_>, at: Instant) {
        let (net, state) = (&mut *self.net.borrow_mut(), &mut *self.state.borrow_mut());
        match input {
            Input::Bytes(bytes) => net.heard(state, outs, key, bytes, at),
            Input::Ended(error) => {
                let reason = error.map_or("it was closed".to_owned(), |error| error.to_string());
                net.ended(key, reason, at);
            }
            Input::Accepted => {}
        }
    }

    fn speak(&self, outs: &mut Outs, now: Instant) {
        let (net, state) = (&mut *self.net.borrow_mut(), &mut *self.state.borrow_mut());
        state.flush_ledger();
        net.speak(state, outs, now);
        let Some(me) = self.me.upgrade() else { return };
        for (line, generation, want) in net.wanted.drain(..) {
            tokio::task::spawn_local(me.clone().connect(line, generation, want));
        }
    }

    fn wants_turn(&self) -> bool {
        self.net.borrow().is_any_queued()
    }

    fn deadline(&self) -> Option<Instant> {
        self.net.borrow().next_alarm()
    }

    fn is_over(&self) -> bool {
        let state = self.state.borrow();
        state.phase == Phase::Leaving || state.fatal.is_some()
    }

    fn failed(&self, _outs: &mut Outs, error: &io::Error) {
        self.state.borrow_mut().fail(error.to_string());
    }
}
