//! A relay in a thread of the test, and clients with plain sockets.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::*;
use crate::frame::{BODY_BYTES, SHORT_BYTES};

fn relay(log: Option<Log>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || Relay::new(listener, log).and_then(|mut relay| relay.run()));
    address
}

fn enter(address: SocketAddr, user: u64) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&frame::hello(user)).unwrap();
    let mut answer = [0; SHORT_BYTES];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, frame::hello(user));
    stream
}

fn text(number: u64) -> [u8; MESSAGE_BYTES] {
    frame::message(number, &[number as u8; BODY_BYTES])
}

#[test]
fn messages_reach_the_other_user_and_are_acked_in_order() {
    let address = relay(None);
    let (mut alice, mut bob, mut carol) = (enter(address, 4), enter(address, 5), enter(address, 6));
    // So many that they come to both in pieces that end anywhere.
    let count = 20_000_u64;
    let mut sender = alice.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let stream: Vec<u8> = (0..count).flat_map(text).collect();
        stream.chunks(999).for_each(|piece| sender.write_all(piece).unwrap());
    });
    let reading = std::thread::spawn(move || {
        for number in 0..count {
            let mut message = [0; MESSAGE_BYTES];
            bob.read_exact(&mut message).unwrap();
            assert_eq!(message, text(number));
        }
        bob
    });
    for number in 0..count {
        let mut ack = [0; SHORT_BYTES];
        alice.read_exact(&mut ack).unwrap();
        assert_eq!(ack, frame::ack(&text(number)));
    }
    sending.join().unwrap();
    reading.join().unwrap();
    carol.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(carol.read(&mut [0]).is_err(), "another pair hears nothing");
}

#[test]
fn with_a_log_nothing_is_passed_on_or_acked_before_the_sync() {
    let delay = Duration::from_millis(300);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let address = relay(Some(Log::create(&path, 0, delay).unwrap()));
    let (mut alice, mut bob) = (enter(address, 0), enter(address, 1));
    let sent = Instant::now();
    alice.write_all(&text(1)).unwrap();
    let mut ack = [0; SHORT_BYTES];
    alice.read_exact(&mut ack).unwrap();
    assert!(sent.elapsed() >= delay, "acked before the sync");
    let mut message = [0; MESSAGE_BYTES];
    bob.read_exact(&mut message).unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[..MESSAGE_BYTES], message);
    // What comes while a group is being synced is the next group, and one sync for all of it.
    let sent = Instant::now();
    for number in 2..12 {
        alice.write_all(&text(number)).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    bob.set_read_timeout(Some(delay / 2)).unwrap();
    assert!(bob.read(&mut [0]).is_err(), "passed on before the sync");
    bob.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for number in 2..12 {
        alice.read_exact(&mut ack).unwrap();
        bob.read_exact(&mut message).unwrap();
        assert_eq!((ack, message), (frame::ack(&text(number)), text(number)));
    }
    assert!(sent.elapsed() < 4 * delay, "each message was synced by itself");
}

#[test]
fn a_peer_that_talks_nonsense_is_cut_off_and_nobody_else() {
    let address = relay(None);
    let mut good = enter(address, 0);
    let nonsense: [&[u8]; 4] = [b"GET", &text(1), &frame::hello(USERS_MAX), &frame::ack(&text(1))];
    for bytes in nonsense {
        let mut bad = TcpStream::connect(address).unwrap();
        bad.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        bad.write_all(bytes).unwrap();
        assert!(matches!(bad.read(&mut [0]), Ok(0) | Err(_)), "{bytes:?}");
    }
    good.write_all(&text(3)).unwrap();
    let mut ack = [0; SHORT_BYTES];
    good.read_exact(&mut ack).unwrap();
    assert_eq!(ack, frame::ack(&text(3)));
}
