use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;

/// Takes turns until `done` or 20 s are over.
fn turns(
    sockets: &mut Sockets,
    mut on: impl FnMut(&mut Outs, Key, Input<'_>),
    mut done: impl FnMut() -> bool,
) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing comes of it");
        sockets.turn(Wait::No).unwrap();
        sockets.drain(&mut on);
    }
}

#[test]
fn more_bytes_than_all_buffers_hold_come_whole_and_in_order() {
    let mut sockets = Sockets::new().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let key = sockets.add(ours);
    let total = usize::from(BUFFERS_MAX) * BUFFER_BYTES * 2;
    let writing = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..total).map(|at| (at % 251) as u8).collect();
        theirs.write_all(&bytes).unwrap();
        theirs
    });
    // Nothing is given back until the kernel has no buffer left.
    while !sockets.done.iter().any(|done| done.result == -libc::ENOBUFS) {
        sockets.turn(Wait::No).unwrap();
    }
    let came = std::cell::Cell::new(0);
    let on = |_: &mut Outs, from, input: Input<'_>| {
        let Input::Bytes(bytes) = input else { panic!("{input:?}") };
        assert_eq!(from, key);
        let at = came.get();
        let right = bytes.iter().enumerate().all(|(n, byte)| *byte == ((at + n) % 251) as u8);
        assert!(right, "wrong bytes after {at}");
        came.set(at + bytes.len());
    };
    turns(&mut sockets, on, || came.get() == total);
    drop(writing.join().unwrap());
    let ended = std::cell::Cell::new(false);
    let on = |_: &mut Outs, _, input: Input<'_>| {
        assert!(matches!(input, Input::Ended(None)));
        ended.set(true);
    };
    turns(&mut sockets, on, || ended.get());
    assert_eq!(sockets.in_flight, 0);
    // Its place is free again.
    assert_eq!(sockets.add(UnixStream::pair().unwrap().0), key);
}

#[test]
fn bytes_for_a_slow_reader_wait_and_go_out_whole() {
    let mut sockets = Sockets::new().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let key = sockets.add(ours);
    let bytes: Vec<u8> = (0..4_000_000).map(|at| (at % 241) as u8).collect();
    for piece in bytes.chunks(70_001) {
        sockets.outs().out(key).unwrap().extend_from_slice(piece);
        sockets.turn(Wait::No).unwrap();
        sockets.drain(|_, _, _| {});
    }
    assert!(sockets.outs().queued(key) > 1_000_000);
    let reading = std::thread::spawn(move || {
        let mut all = vec![0; 4_000_000];
        theirs.read_exact(&mut all).unwrap();
        (all, theirs)
    });
    let mut sent = false;
    while !sent {
        sockets.turn(Wait::No).unwrap();
        sockets.drain(|_, _, _| {});
        sent = sockets.outs().queued(key) == 0;
    }
    assert!(reading.join().unwrap().0 == bytes);
}

#[test]
fn a_farewell_reaches_the_peer_and_then_the_end() {
    let mut sockets = Sockets::new().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let key = sockets.add(ours);
    sockets.turn(Wait::No).unwrap();
    sockets.outs().out(key).unwrap().extend_from_slice(b"bye");
    sockets.outs().close(key);
    assert!(sockets.outs().out(key).is_none());
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        text
    });
    let silent = |_: &mut Outs, _, input: Input<'_>| panic!("{input:?}");
    turns(&mut sockets, silent, || reading.is_finished());
    assert_eq!(reading.join().unwrap(), "bye");
}

#[test]
fn a_ring_that_is_dropped_lets_go_of_what_the_kernel_holds() {
    let mut sockets = Sockets::new().unwrap();
    sockets.listen(TcpListener::bind("127.0.0.1:0").unwrap());
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let key = sockets.add(ours);
    sockets.outs().out(key).unwrap().extend_from_slice(&vec![1; 4_000_000]);
    sockets.turn(Wait::No).unwrap();
    assert_eq!(sockets.in_flight, 3);
    assert!(sockets.let_go());
}

#[test]
fn the_bell_rings_when_something_comes() {
    let mut sockets = Sockets::new().unwrap();
    let mut bell = std::fs::File::from(sockets.bell().unwrap());
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    sockets.add(ours);
    for _ in 0..3 {
        while sockets.turn(Wait::No).unwrap() > 0 {
            sockets.drain(|_, _, _| {});
        }
        // Silence it: what came up to now is taken.
        let _ = bell.read(&mut [0; 8]);
        assert!(bell.read(&mut [0; 8]).is_err());
        theirs.write_all(b"x").unwrap();
        assert_eq!(bell.read(&mut [0; 8]).unwrap(), 8);
    }
}
