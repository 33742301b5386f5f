//! Goal: no wake-up is lost: nothing hangs while the machine is busy. Method: pairs of people play
//! ping-pong through the real binary for some seconds, while threads burn every core.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::raw::Raw;
use crate::common::{Node, NodeOptions};
use chatring_wire::{ClientFrame, ServerFrame};

const TIME: Duration = Duration::from_secs(6);
/// Longer than any busy machine should take for one message, and short of every time-out that would
/// heal a hang: an unanswered send gets `unknown` after 10 s.
const HANG: Duration = Duration::from_secs(8);

#[test]
fn a_ping_pong_never_hangs_on_a_busy_machine() {
    let node = Node::start_with(NodeOptions::default());
    let over = Arc::new(AtomicBool::new(false));
    let burners: Vec<_> = (0..4)
        .map(|_| {
            let over = over.clone();
            std::thread::spawn(move || {
                let mut n = 0u64;
                while !over.load(Ordering::Relaxed) {
                    // Bursts of different lengths, so that threads are put off at every place.
                    (0..n % 50_000).for_each(|m| {
                        std::hint::black_box(m);
                    });
                    if n.is_multiple_of(7) {
                        std::thread::sleep(Duration::from_micros(n % 300));
                    }
                    n += 997;
                }
            })
        })
        .collect();
    let until = Instant::now() + TIME;
    let done: u64 = std::thread::scope(|scope| {
        // Pairs that lie on one shard and pairs that do not.
        let pairs = (0..4).map(|pair| {
            scope.spawn({
                let node = &node;
                move || ping_pong(node, pair, until)
            })
        });
        let pairs: Vec<_> = pairs.collect();
        pairs.into_iter().map(|pair| pair.join().expect("it never hung")).sum()
    });
    over.store(true, Ordering::Relaxed);
    burners.into_iter().for_each(|burner| burner.join().expect("it only counts"));
    assert!(done >= 20, "{done} exchanges are too few to tell anything");
}

fn ping_pong(node: &Node, pair: u32, until: Instant) -> u64 {
    let names = [format!("ping {pair}"), format!("pong {pair}")];
    let mut people: Vec<Raw> = names.iter().map(|name| Raw::sign_in(node, name)).collect();
    for raw in &people {
        raw.socket().set_read_timeout(Some(HANG)).expect("a time");
    }
    let cid = people[0].open(&names[1]).cid;
    let mut seq = 0;
    let mut pushes = [0u64; 2];
    while Instant::now() < until {
        for (from, to) in [(0, 1), (1, 0)] {
            let sent = people[from].send(cid, seq, seq, b"ball");
            seq += 1;
            assert!(matches!(sent, ServerFrame::Sent { seq: s, .. } if s.0 == seq), "{sent:?}");
            people[to].until(ServerFrame::is_push);
            pushes[to] += 1;
            people[to].say(&[ClientFrame::Ack { pushes: pushes[to] }]);
        }
    }
    seq / 2
}
