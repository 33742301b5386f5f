//! What a killed process still holds (data folder, addresses) until the kernel has cleared it away:
//! a start waits for it for a bounded time, because whoever killed the process may be quicker.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Time for which a start waits, for each thing that it needs, in milliseconds. Killed processes
/// were seen to hold on for some hundred milliseconds, longer on a busy machine.
pub const TAKEOVER_MS_MAX: u64 = 5_000;
/// Time between two attempts, in milliseconds.
const POLL_MS: u64 = 10;

const _: () = assert!(POLL_MS < TAKEOVER_MS_MAX);

/// Makes attempts until one does anything else than find `what` held by another process, which is
/// the last one's error once [`TAKEOVER_MS_MAX`] is over. The log says afterwards how long it took;
/// before that only at the level debug, so that a refusal stays one line.
pub fn wait_while_held<T, E>(
    what: impl Display,
    is_held: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let start = Instant::now();
    let mut waited = Duration::ZERO;
    loop {
        match attempt() {
            Err(error) if is_held(&error) && waited < Duration::from_millis(TAKEOVER_MS_MAX) => {
                if waited.is_zero() {
                    tracing::debug!("{what} is in use; waiting for another process to end");
                }
                std::thread::sleep(Duration::from_millis(POLL_MS));
                waited = start.elapsed();
            }
            result => {
                if result.is_ok() && !waited.is_zero() {
                    let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(waited_ms, "{what} was in use by a process that has ended");
                }
                return result;
            }
        }
    }
}

/// The same for an address to listen at.
pub fn wait_for_address<T>(
    address: SocketAddr,
    bind: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let is_held = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    wait_while_held(address, is_held, bind)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_that_is_let_go_meanwhile_is_taken() {
        let held = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = held.local_addr().expect("an address");
        let dying = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(held);
        });
        let start = Instant::now();
        wait_for_address(address, || TcpListener::bind(address)).expect("it is free at last");
        assert!(start.elapsed() >= Duration::from_millis(300));
        dying.join().expect("no panic");
    }

    #[test]
    fn an_address_in_use_is_refused_after_a_bounded_wait_and_other_errors_at_once() {
        let held = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = held.local_addr().expect("an address");
        let start = Instant::now();
        let error = wait_for_address(address, || TcpListener::bind(address)).err();
        assert_eq!(error.map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
        assert!(start.elapsed() >= Duration::from_millis(TAKEOVER_MS_MAX));
        let start = Instant::now();
        let foreign = SocketAddr::from(([192, 0, 2, 1], 0));
        wait_for_address(foreign, || TcpListener::bind(foreign)).expect_err("not ours");
        assert!(start.elapsed() < Duration::from_millis(TAKEOVER_MS_MAX));
    }
}
