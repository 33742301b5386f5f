//! Goal: peers that send without end or read nothing cost the server a bounded amount of memory and
//! the others no time, and no thread is made for anybody. Method: floods over raw TCP against the
//! real binary; the server's own figure of its memory, the kernel's of its threads, and what others
//! get done meanwhile.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use chatring_core::placement::shard_of;
use chatring_wire::frame::{Direction, RangeRequest, RequestId};
use chatring_wire::ws::{ControlPayload, encode_ping};
use chatring_wire::{Cid, ClientFrame, Seq, ServerFrame, Subprotocol};

use crate::common::raw::{MASK, Raw, hello};
use crate::common::{Bystanders, Node, PATIENCE, THREADS_MORE_MAX, figure};

const MIB: u64 = 1 << 20;
/// What a flood may add to the server's memory: bounds of all its connections together stay below,
/// and each flood is several times as large.
const GROWTH_BYTES_MAX: u64 = 128 * MIB;

/// Frames of a flood in which others are to get some turns of theirs.
const FLOOD_FRAMES: f64 = 400_000.0;
/// Answers that somebody gets meanwhile, at least. Were a connection's bytes handled to their end
/// before it is another's turn, it would be a few.
const ANSWERS_MIN: usize = 20;

#[test]
fn a_flood_of_tiny_frames_leaves_others_their_turn() {
    // Frames without an answer, and frames whose answers are read.
    for frame in [ClientFrame::Ack { pushes: 0 }, ClientFrame::Ping { pushes: 0 }] {
        let answers = answers_beside_a_flood(&frame);
        assert!(answers >= ANSWERS_MIN, "{frame:?}: {answers} in {FLOOD_FRAMES} frames");
    }
}

/// How many answers somebody got while twelve connections flooded the same shard with a frame.
fn answers_beside_a_flood(frame: &ClientFrame) -> usize {
    let mut node = Node::start();
    let token = node.token("flood");
    let flood: Vec<Raw> = (0..12)
        .map(|n| {
            let hello = hello(&token, &format!("flood {n}"));
            Raw::sign_in_with(&node, Subprotocol::Binary, hello)
        })
        .collect();
    let shard = |raw: &Raw| shard_of(raw.welcome().uid.vshard(), 2);
    let mut other = (0..64)
        .map(|n| Raw::sign_in(&node, &format!("other {n}")))
        .find(|other| shard(other) == shard(&flood[0]))
        .expect("half of them live there");
    let over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for mut raw in flood {
        let mut answers = raw.socket().try_clone().expect("a socket");
        threads.push(std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(1..) = answers.read(&mut buffer) {}
        }));
        let (over, frame) = (over.clone(), frame.clone());
        threads.push(std::thread::spawn(move || {
            let block = raw.bytes_of(&vec![frame; 4_000]);
            while !over.load(Ordering::Relaxed) {
                raw.write(&block);
            }
        }));
    }
    let frames = || figure(&node, "chatring_gateway_frames_in_total");
    let (until, seen) = (frames() + FLOOD_FRAMES, AtomicBool::new(false));
    let mut taken = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let patience = Instant::now() + PATIENCE;
            while frames() < until && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(5));
            }
            seen.store(true, Ordering::Release);
        });
        while !seen.load(Ordering::Acquire) {
            other.expect_alive();
            taken += 1;
        }
    });
    assert!(frames() >= until, "it was a flood");
    over.store(true, Ordering::Relaxed);
    // Else it would have to take in what the sockets still hold.
    node.kill();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    taken
}

#[test]
fn pings_that_nobody_reads_the_answers_of_are_bounded() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let threads = node.threads();
    let before = figure(&node, "chatring_process_resident_bytes");
    let mut peers: Vec<Raw> = (0..8).map(|n| Raw::sign_in(&node, &format!("ping {n}"))).collect();
    let mut websocket = BytesMut::new();
    let payload = ControlPayload::new(vec![7; 125]).expect("it is short");
    (0..2_000).for_each(|_| encode_ping(&mut websocket, &payload, Some(MASK)));
    let frames = peers[0].bytes_of(&vec![ClientFrame::Ping { pushes: 0 }; 4_000]);
    let mut left = 0;
    for (n, raw) in peers.iter_mut().enumerate() {
        let block = if n % 2 == 0 { &websocket } else { &frames };
        left = flood(raw, block, 16 * MIB as usize);
    }
    let growth = figure(&node, "chatring_process_resident_bytes") - before;
    assert!(growth < GROWTH_BYTES_MAX as f64 / 4.0, "{growth} bytes more");
    assert!(node.threads() <= threads + THREADS_MORE_MAX, "{} threads", node.threads());
    bystanders.check();
    // Who reads again is served again.
    let last = peers.last_mut().expect("some");
    let mut socket = last.socket().try_clone().expect("a socket");
    let mut rest = frames[frames.len() - left..].to_vec();
    rest.extend(last.bytes_of(&[range(1, Cid(0))]));
    let writer = std::thread::spawn(move || socket.write_all(&rest));
    last.until(|frame| matches!(frame, ServerFrame::Refused { .. }));
    writer.join().expect("no panic").expect("it reads again");
}

#[test]
fn who_asks_for_much_and_reads_nothing_holds_little_memory() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    Raw::sign_in(&node, "other").end();
    let mut writer = Raw::sign_in(&node, "slow");
    let cid = writer.open("other").cid;
    for n in 0..4u8 {
        let sent = writer.send(cid, n, u64::from(n), &[b'x'; 60_000]);
        assert!(matches!(sent, ServerFrame::Sent { .. }), "{sent:?}");
    }
    let threads = node.threads();
    let before = figure(&node, "chatring_process_resident_bytes");
    let token = node.token("slow");
    let mut peers: Vec<Raw> = (0..8)
        .map(|n| {
            let hello = hello(&token, &format!("slow {n}"));
            let mut raw = Raw::sign_in_with(&node, Subprotocol::Binary, hello);
            let ranges: Vec<_> = (1..=2_000).map(|n| range(n, cid)).collect();
            let block = raw.bytes_of(&ranges);
            raw.write(&block);
            raw
        })
        .collect();
    // Others go on for long, by the count of what they do, beside what nobody reads.
    let mut most = 0f64;
    for _ in 0..40 {
        bystanders.check();
        most = most.max(figure(&node, "chatring_process_resident_bytes"));
    }
    assert!(most - before < GROWTH_BYTES_MAX as f64, "{} bytes more", most - before);
    assert!(node.threads() <= threads + THREADS_MORE_MAX, "{} threads", node.threads());
    // Who reads gets all that it asked for, in time: each request has its answer.
    let raw = &mut peers[0];
    for _ in 0..2_000 {
        raw.until(|frame| matches!(frame, ServerFrame::Rows { .. } | ServerFrame::Refused { .. }));
    }
    raw.expect_alive();
}

#[test]
fn a_reader_that_stands_still_costs_the_writer_nothing() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let token = node.token("still");
    let still: Vec<Raw> = (0..4)
        .map(|n| {
            let hello = hello(&token, &format!("still {n}"));
            Raw::sign_in_with(&node, Subprotocol::Binary, hello)
        })
        .collect();
    let mut writer = Raw::sign_in(&node, "writer");
    let cid = writer.open("still").cid;
    let threads = node.threads();
    let before = figure(&node, "chatring_process_resident_bytes");
    for n in 0..200u8 {
        let sent = writer.send(cid, n, u64::from(n), &[b'x'; 8_000]);
        assert!(matches!(sent, ServerFrame::Sent { .. }), "{sent:?}");
    }
    assert!(figure(&node, "chatring_sessions_behind_total") >= 4.0);
    let growth = figure(&node, "chatring_process_resident_bytes") - before;
    assert!(growth < GROWTH_BYTES_MAX as f64, "{growth} bytes more");
    assert!(node.threads() <= threads + THREADS_MORE_MAX, "{} threads", node.threads());
    bystanders.check();
    for mut raw in still {
        // What it was pushed, then that it is behind, and then nothing but answers.
        raw.until(|frame| matches!(frame, ServerFrame::Behind));
        raw.say(&[ClientFrame::Ping { pushes: 0 }]);
        assert!(matches!(raw.frame(), ServerFrame::Pong { .. }));
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let (open, threads) = (figure(&node, "chatring_process_open_fds"), node.threads());
    let token = node.token("fleeting");
    for n in 0..400 {
        let mut socket = node.tcp();
        match n % 4 {
            0 => {}
            1 => socket.write_all(b"GET /v1/ws HT").expect("it reads"),
            2 => drop(Raw::upgraded(&node, Subprotocol::Binary)),
            // Gone before it is welcomed.
            _ => {
                let mut raw = Raw::upgraded(&node, Subprotocol::Json);
                raw.say(&[ClientFrame::Hello(hello(&token, &format!("{}", n % 32)))]);
            }
        }
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let now = figure(&node, "chatring_process_open_fds");
        let counted = ["chatring_sessions", "chatring_gateway_connections"];
        let counted = counted.map(|name| figure(&node, name));
        if now <= open && counted == [2.0, 2.0] {
            break;
        }
        assert!(Instant::now() < until, "{now} descriptors, {open} before; {counted:?} left");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(node.threads() <= threads + THREADS_MORE_MAX, "{} threads", node.threads());
    bystanders.check();
}

/// Writes a block again and again, up to so many bytes or until the server takes no more. Gives how
/// many bytes of a block are left.
fn flood(raw: &mut Raw, block: &[u8], bytes: usize) -> usize {
    let mut socket = raw.socket();
    socket.set_write_timeout(Some(Duration::from_millis(300))).expect("a time");
    let mut left = block;
    let mut written = 0;
    while written < bytes {
        match socket.write(left) {
            Ok(count) => {
                written += count;
                left = if count == left.len() { block } else { &left[count..] };
            }
            Err(_) => break,
        }
    }
    socket.set_write_timeout(Some(PATIENCE)).expect("a time");
    left.len() % block.len()
}

fn range(number: u32, cid: Cid) -> ClientFrame {
    ClientFrame::Range(RangeRequest {
        request: RequestId(number),
        cid,
        from: Seq(1),
        to: Seq(4),
        limit: 1,
        direction: Direction::Ascending,
    })
}
