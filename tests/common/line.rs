//! The line between an API server and its node, which a test breaks at a moment of its choice.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// What happens to the next bytes of either side.
#[derive(Clone, Copy, Debug)]
pub enum Trap {
    /// The line breaks before a call reaches the node.
    CallLost,
    /// It breaks after a call has reached the node.
    CallArrived,
    /// It breaks before an answer reaches the API server.
    AnswerLost,
    /// The node is killed so long after a call has reached it.
    KilledAfterCall(Pid, Duration),
    /// The node is killed when it has answered, and its answer arrives.
    KilledAfterAnswer(Pid),
}

/// A line that takes connections for as long as the test runs.
#[derive(Debug)]
pub struct Line {
    addr: SocketAddr,
    traps: Arc<Traps>,
}

#[derive(Debug, Default)]
struct Traps {
    set: Mutex<Option<Trap>>,
    /// Whether the last one has gone off, and all that it does is done.
    sprung: AtomicBool,
}

/// One direction of a connection.
struct Way {
    from: TcpStream,
    to: TcpStream,
    to_node: bool,
    traps: Arc<Traps>,
}

impl Line {
    /// A line to a node's address for links.
    pub fn to(node: &str) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let traps = Arc::new(Traps::default());
        let (node, theirs) = (node.to_owned(), Arc::clone(&traps));
        thread::spawn(move || {
            for api in listener.incoming().map_while(Result::ok) {
                // While the node is down, the API server is closed at once.
                let Ok(node) = TcpStream::connect(&node) else { continue };
                let copies = (api.try_clone().expect("a copy"), node.try_clone().expect("a copy"));
                for (from, to, to_node) in [(api, node, true), (copies.1, copies.0, false)] {
                    let _ = (from.set_nodelay(true), to.set_nodelay(true));
                    let way = Way { from, to, to_node, traps: Arc::clone(&theirs) };
                    thread::spawn(move || way.carry());
                }
            }
        });
        Line { addr, traps }
    }

    /// Where it begins.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sets a trap. It goes off once.
    pub fn set(&self, trap: Trap) {
        let mut set = self.traps.set.lock().unwrap_or_else(PoisonError::into_inner);
        self.traps.sprung.store(false, Ordering::SeqCst);
        *set = Some(trap);
    }

    /// Whether the trap has gone off, and whoever was to be killed is dead.
    pub fn is_sprung(&self) -> bool {
        self.traps.sprung.load(Ordering::SeqCst)
    }
}

impl Way {
    fn carry(mut self) {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = self.from.read(&mut bytes) {
            if self.pass_on(&bytes[..length]).is_none() {
                break;
            }
        }
        let _ = (self.from.shutdown(Shutdown::Both), self.to.shutdown(Shutdown::Both));
    }

    /// Gives nothing if the line breaks.
    fn pass_on(&mut self, bytes: &[u8]) -> Option<()> {
        let Some(trap) = self.take() else { return self.to.write_all(bytes).ok() };
        let goes_on = match trap {
            Trap::CallLost | Trap::AnswerLost => None,
            Trap::CallArrived => self.to.write_all(bytes).ok().and(None),
            Trap::KilledAfterCall(pid, after) => {
                let written = self.to.write_all(bytes).ok();
                thread::sleep(after);
                kill(pid);
                written
            }
            Trap::KilledAfterAnswer(pid) => {
                kill(pid);
                self.to.write_all(bytes).ok()
            }
        };
        self.traps.sprung.store(true, Ordering::SeqCst);
        goes_on
    }

    /// Takes a trap that is for this direction.
    fn take(&self) -> Option<Trap> {
        let mut set = self.traps.set.lock().unwrap_or_else(PoisonError::into_inner);
        let on_answers =
            |trap: &Trap| matches!(trap, Trap::AnswerLost | Trap::KilledAfterAnswer(_));
        set.take_if(|trap| on_answers(trap) != self.to_node)
    }
}

fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).expect("it lives");
}
