//! What the books of a ring promise, with a peer in the same thread.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::kernel::{Kind, Tag};
use super::*;
use crate::rt::post::{Inbox, Place, Post};

const SIZES: RingSizes = RingSizes { submissions: 4, completions: 8, buffers: 4, buffer_bytes: 32 };

struct Bench {
    ring: Ring,
    stats: Arc<ShardStats>,
    knock: Arc<Knock>,
}

impl Bench {
    fn new() -> Bench {
        let (knock, stats) = (Arc::new(Knock::new().unwrap()), Arc::<ShardStats>::default());
        let ring = Ring::new(SIZES, knock.clone(), stats.clone()).unwrap();
        Bench { ring, stats, knock }
    }

    /// A socket at a place of the ring that receives, and its peer.
    fn socket(&mut self, slot: u32, generation: u32) -> (ConnId, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let id = ConnId { slot, generation };
        self.ring.insert(id, ours.into());
        self.ring.receive(id);
        (id, theirs)
    }

    /// Enters the kernel and looks at everything that is done, until `done` says so.
    fn until(&mut self, mut done: impl FnMut(&mut Ring, Option<Done>) -> bool) {
        for _ in 0..1_000 {
            self.ring.enter_if_needed();
            while let Some(event) = self.ring.next() {
                if done(&mut self.ring, Some(event)) {
                    return;
                }
            }
            if done(&mut self.ring, None) {
                return;
            }
        }
        panic!("it does not come to that");
    }

    /// Waits until a place may be given again.
    fn quiet(&mut self, slot: u32) {
        self.until(|ring, _| ring.next_quiet() == Some(slot));
    }
}

/// Writes to the peer until it takes no more.
fn fill(bench: &mut Bench, id: ConnId) -> usize {
    const BYTES: usize = 1 << 20;
    bench.ring.send(id, BytesMut::from(&vec![7; BYTES][..]));
    for _ in 0..10 {
        bench.ring.enter_if_needed();
        while bench.ring.next().is_some() {}
    }
    assert!(bench.ring.is_sending(id), "its peer is slow");
    BYTES
}

#[test]
fn a_receive_without_a_free_buffer_stops_and_loses_nothing() {
    let mut bench = Bench::new();
    let (id, mut peer) = bench.socket(0, 0);
    let said: Vec<u8> = (0..255).collect();
    peer.write_all(&said).unwrap();
    let (mut heard, mut kept, mut stops) = (Vec::new(), Vec::new(), 0);
    bench.until(|ring, done| {
        match done {
            Some(Done::Received(_, buf)) => kept.push(buf),
            Some(Done::Stopped(_, Stop::NoBuffer)) => {
                stops += 1;
                assert_eq!(ring.free_buffers(), 0);
                kept.drain(..).for_each(|buf| heard.extend_from_slice(&buf));
                assert_eq!(ring.free_buffers(), usize::from(SIZES.buffers));
                ring.receive(id);
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        heard.len() + kept.iter().map(|buf| buf.len()).sum::<usize>() == said.len()
    });
    kept.drain(..).for_each(|buf| heard.extend_from_slice(&buf));
    assert_eq!(heard, said);
    assert!(stops > 0);
    assert_eq!(bench.stats.values().ring_no_buffers, stops);
}

#[test]
fn a_retired_socket_is_closed_once_the_kernel_has_let_go_of_it() {
    let mut bench = Bench::new();
    let (id, mut peer) = bench.socket(0, 0);
    fill(&mut bench, id);
    bench.ring.retire(id);
    assert_eq!(bench.ring.next_quiet(), None, "the kernel still has its send and its receive");
    bench.quiet(0);
    let mut taken = Vec::new();
    peer.read_to_end(&mut taken).unwrap();
    assert!(taken.iter().all(|&byte| byte == 7));
}

#[test]
fn what_is_known_of_an_older_socket_does_not_touch_the_one_in_its_place() {
    let mut bench = Bench::new();
    let (old, peer) = bench.socket(0, 1);
    drop(peer);
    bench.ring.retire(old);
    bench.quiet(0);
    let (new, mut peer) = bench.socket(0, 2);
    bench.ring.enter_if_needed();
    // As if the cancel and the completion of the older one were late.
    bench.ring.cancel(Tag { kind: Kind::Recv, id: old });
    bench.ring.pretend_ended(old);
    bench.ring.enter_if_needed();
    assert!(bench.ring.next().is_none());
    assert!(bench.ring.is_receiving(new));
    peer.write_all(b"x").unwrap();
    bench.until(|_, done| matches!(done, Some(Done::Received(id, _)) if id == new));
}

#[test]
fn a_socket_leaves_with_all_that_came_and_all_that_did_not_go() {
    let mut bench = Bench::new();
    let (id, mut peer) = bench.socket(0, 0);
    let (other, mut others_peer) = bench.socket(1, 0);
    let filled = fill(&mut bench, id);
    peer.write_all(&[1; 100]).unwrap();
    others_peer.write_all(b"other").unwrap();
    bench.ring.enter_if_needed();
    peer.write_all(&[2; 100]).unwrap();
    let Extracted { fd, unread, unsent } = bench.ring.extract(id).unwrap();
    assert_eq!(bench.ring.next_quiet(), Some(0), "its place is free at once");
    let mut ours = UnixStream::from(fd);
    let mut came = unread.to_vec();
    while came.len() < 200 {
        let mut more = [0; 200];
        let n = ours.read(&mut more).unwrap();
        came.extend_from_slice(&more[..n]);
    }
    assert_eq!(came, [[1; 100], [2; 100]].concat());
    drop(ours);
    let mut taken = Vec::new();
    peer.read_to_end(&mut taken).unwrap();
    assert_eq!(taken.len() + unsent.len(), filled);
    bench.until(|ring, done| match done {
        Some(Done::Received(id, buf)) => id == other && buf[..] == *b"other",
        Some(Done::Stopped(id, Stop::NoBuffer)) => {
            ring.receive(id);
            false
        }
        _ => false,
    });
}

#[test]
fn a_full_completion_queue_loses_nothing() {
    const SOCKETS: u32 = 40;
    let mut bench = Bench::new();
    let mut sockets: Vec<_> = (0..SOCKETS).map(|slot| bench.socket(slot, 0)).collect();
    bench.ring.enter_if_needed();
    while bench.ring.next().is_some() {}
    for (_, peer) in &mut sockets {
        peer.write_all(b"x").unwrap();
    }
    // More sends than completions find room.
    for (id, _) in &sockets {
        bench.ring.send(*id, BytesMut::from(&b"y"[..]));
    }
    let (mut sent, mut heard) = (0, 0);
    bench.until(|ring, done| {
        match done {
            Some(Done::Sent(..)) => sent += 1,
            Some(Done::Received(..)) => heard += 1,
            Some(Done::Stopped(id, Stop::NoBuffer)) => ring.receive(id),
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        sent == SOCKETS && heard == SOCKETS
    });
    sockets.iter_mut().for_each(|(_, peer)| peer.read_exact(&mut [0]).unwrap());
    assert!(bench.ring.free_buffers() == usize::from(SIZES.buffers), "nobody holds a buffer");
    assert!(bench.stats.values().ring_overflows > 0, "{:?}", bench.stats.values());
}

#[test]
fn the_end_closes_every_socket_in_time() {
    let mut bench = Bench::new();
    let mut peers: Vec<_> = (0..30).map(|slot| bench.socket(slot, 0).1).collect();
    fill(&mut bench, ConnId { slot: 3, generation: 0 });
    peers[5].write_all(&[9; 1_000]).unwrap();
    drop(bench);
    for peer in &mut peers {
        let end = peer.read_to_end(&mut Vec::new());
        assert!(end.is_ok() || end.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn each_knock_ends_a_wait() {
    let mut bench = Bench::new();
    bench.ring.watch();
    let (post, batches) = Post::new(Some(bench.knock.clone()));
    let inbox = Inbox::new(batches, bench.knock.clone());
    let limit = Duration::from_secs(20);
    for round in 0..20 {
        assert!(inbox.wait_at(Place::Ring));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(2));
                post.post(vec![round]);
            });
            let start = Instant::now();
            bench.ring.wait(limit);
            assert!(start.elapsed() < limit, "nothing has ended it");
        });
        bench.until(|_, done| done.is_none());
        assert_eq!(inbox.next(), Some(vec![round]));
    }
}

#[test]
fn a_wait_ends_in_time_though_nothing_happens() {
    let mut bench = Bench::new();
    bench.ring.watch();
    let start = Instant::now();
    bench.ring.wait(Duration::from_millis(5));
    assert!(start.elapsed() >= Duration::from_millis(5));
    assert!(bench.ring.next().is_none());
}
