//! The sockets of one thread in turns: all that has come is read, then all that is to be said is
//! gathered and sent, with one system call for both.
//!
//! The runtime sees one descriptor instead of one per session, and is asked only between turns.
//! What is spoken over the sockets is somebody else's: the sessions of a [`crate::pool`], or the
//! bare relay's clients.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use chatring_bare::ring::{Input, Key, Outs, Sockets, Wait};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::sleep_until;

/// How long a thread whose ring failed waits before it goes on.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// How often one without a deadline looks around.
const IDLE_LOOK: Duration = Duration::from_secs(3_600);

/// Those who speak over the sockets of one thread.
pub trait Speakers {
    /// Something came. `at` is when its bytes were read.
    fn input(&self, outs: &mut Outs, key: Key, input: Input<'_>, at: Instant);
    /// Time to say something: called once a turn, after all input.
    fn speak(&self, outs: &mut Outs, now: Instant);
    /// Whether there is something to say already.
    fn wants_turn(&self) -> bool;
    /// When there will be something to say even if nothing comes.
    fn deadline(&self) -> Option<Instant>;
    /// Whether nothing will be said any more.
    fn is_over(&self) -> bool;
    /// The sockets cannot be used: all of them are lost.
    fn failed(&self, outs: &mut Outs, error: &io::Error);
}

/// The sockets of one thread.
pub struct Turns {
    sockets: RefCell<Sockets>,
    bell: RefCell<Option<OwnedFd>>,
    woken: Notify,
    is_waiting: Cell<bool>,
}

impl Turns {
    /// Without sockets. Belongs to the thread that makes it.
    ///
    /// # Errors
    /// The machine has no io_uring as needed: Linux 6.1.
    pub fn new() -> io::Result<Turns> {
        let sockets = Sockets::new()?;
        let bell = RefCell::new(Some(sockets.bell()?));
        let is_waiting = Cell::new(false);
        Ok(Turns { sockets: RefCell::new(sockets), bell, woken: Notify::new(), is_waiting })
    }

    /// Adds a connected socket, in blocking mode. Not from within a turn.
    pub fn add(&self, socket: std::net::TcpStream) -> Key {
        let key = self.sockets.borrow_mut().add(socket);
        self.wake();
        key
    }

    /// Has a turn taken soon, if none is under way.
    pub fn wake(&self) {
        if self.is_waiting.replace(false) {
            self.woken.notify_one();
        }
    }

    /// Takes turns until the speakers are through. One such call at a time.
    #[expect(
        deprecated,
        reason = "unsound only for types whose `as_raw_fd` changes; an `OwnedFd` keeps its own"
    )]
    pub async fn run(&self, speakers: &impl Speakers) {
        let bell = self.bell.take().expect("one call at a time");
        let interest = AsyncFd::with_interest(bell, Interest::READABLE);
        let bell = interest.expect("a runtime with I/O takes an event descriptor");
        loop {
            let came = self.turn(speakers);
            if speakers.is_over() {
                // What was gathered last goes out.
                let _ = self.sockets.borrow_mut().turn(Wait::No);
                break;
            }
            match came {
                Ok(0) if !speakers.wants_turn() => self.wait(&bell, speakers.deadline()).await,
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => {
                    speakers.failed(self.sockets.borrow_mut().outs(), &error);
                    tokio::time::sleep(FAILED_PAUSE).await;
                }
            }
        }
        self.bell.replace(Some(bell.into_inner()));
    }

    fn turn(&self, speakers: &impl Speakers) -> io::Result<usize> {
        let mut sockets = self.sockets.borrow_mut();
        speakers.speak(sockets.outs(), Instant::now());
        let came = sockets.turn(Wait::No)?;
        let at = Instant::now();
        sockets.drain(|outs, key, input| speakers.input(outs, key, input, at));
        Ok(came)
    }

    async fn wait(&self, bell: &AsyncFd<OwnedFd>, deadline: Option<Instant>) {
        let until = deadline.unwrap_or_else(|| Instant::now() + IDLE_LOOK);
        self.is_waiting.set(true);
        tokio::select! {
            biased;
            // It is never read: each ring is an edge, and what rings before the next turn is in it.
            rung = bell.readable() => if let Ok(mut guard) = rung {
                guard.clear_ready();
            },
            () = self.woken.notified() => {}
            () = sleep_until(until.into()) => {}
        }
        self.is_waiting.set(false);
    }
}
