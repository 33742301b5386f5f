//! Goal: a client that takes too long is told that it is behind, pulls, and misses nothing. Method:
//! a raw session that acknowledges nothing, against a real client that writes.

use chatring_wire::frame::{HeadRows, RangeRequest};
use chatring_wire::{Cid, ClientFrame, Seq, ServerFrame, Subprotocol};

use crate::common::raw::{Raw, hello};
use crate::common::{Node, NodeOptions, Person, run};

/// A small window, so that few messages fill it.
fn node() -> Node {
    let config = "[limits]\nwindow_pushes = 16\nwindow_bytes = 65536\n".to_owned();
    Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() })
}

#[test]
fn who_does_not_ack_falls_behind_and_pulls() {
    let node = node();
    for subprotocol in [Subprotocol::Binary, Subprotocol::Json] {
        let name = subprotocol.name();
        let mut slow = Raw::sign_in_with(&node, subprotocol, hello(&node.token(name), name));
        assert_eq!(slow.welcome().window_pushes, 16);
        let cid = run(async {
            let mut alice = Person::new(&node, "alice");
            alice.synced().await;
            let cid = alice.open(name).await;
            let mut last = None;
            for n in 1..=39 {
                last = Some(alice.say(cid, format!("{n}")).await);
            }
            alice.is_stored(last.expect("some")).await;
            alice.leave().await;
            cid
        });
        let mut seen = pushes_until_behind(&mut slow);
        assert!(seen.iter().copied().eq(1..=16), "{seen:?}");
        // Pushes stay out, answers do not.
        slow.say(&[ClientFrame::Ping { pushes: 0 }]);
        assert!(matches!(slow.frame(), ServerFrame::Pong { pushes: 16, .. }));
        // An ack alone does not bring them back: only a pull can tell what was left out.
        slow.say(&[ClientFrame::Ack { pushes: 16 }]);
        slow.expect_alive();
        say(&node, name, cid, 40);
        slow.say(&[ClientFrame::Ping { pushes: 16 }]);
        assert!(matches!(slow.frame(), ServerFrame::Pong { pushes: 16, .. }));
        pull(&mut slow, cid, &mut seen);
        assert!(seen.iter().copied().eq(1..=40), "{seen:?}");
        // And live again.
        say(&node, name, cid, 41);
        let push = slow.until(ServerFrame::is_push);
        assert!(matches!(push, ServerFrame::Text { seq: Seq(41), .. }), "{push:?}");
    }
}

/// Alice says a number to somebody.
fn say(node: &Node, name: &str, cid: Cid, number: u64) {
    let mut alice = Raw::sign_in(node, "alice");
    assert_eq!(alice.open(name).cid, cid);
    let sent = alice.send(cid, number, number - 1, b"x");
    assert!(matches!(sent, ServerFrame::Sent { seq, .. } if seq.0 == number), "{sent:?}");
}

#[test]
fn the_window_counts_bytes_as_well() {
    let node = node();
    let mut slow = Raw::sign_in(&node, "slow");
    let mut alice = Raw::sign_in(&node, "alice");
    let cid = alice.open("slow").cid;
    for n in 0..6u8 {
        alice.send(cid, n, u64::from(n), &[b'x'; 20_000]);
    }
    let seen = pushes_until_behind(&mut slow);
    assert_eq!(seen, [1, 2, 3], "three times 20,000 bytes fit into 65,536");
}

#[test]
fn the_real_client_keeps_up_with_more_than_a_window() {
    let node = node();
    run(async {
        let mut alice = Person::new(&node, "alice");
        let mut bob = Person::new(&node, "bob");
        alice.synced().await;
        bob.synced().await;
        let cid = alice.open("bob").await;
        let mut last = None;
        for n in 0..300 {
            last = Some(alice.say(cid, format!("{n} {}", "x".repeat(500))).await);
        }
        alice.is_stored(last.expect("some")).await;
        bob.sees(&format!("299 {}", "x".repeat(500))).await;
        assert_eq!(bob.texts(cid).len(), 300);
        let stats = bob.stats().await;
        assert!(stats.behinds > 0, "the window was too small for it: {stats:?}");
        assert_eq!(stats.disconnections, 0, "and nobody was thrown out");
    });
}

fn pushes_until_behind(raw: &mut Raw) -> Vec<u64> {
    let mut seen = Vec::new();
    loop {
        match raw.frame() {
            ServerFrame::Text { seq, .. } => seen.push(seq.0),
            ServerFrame::Behind => return seen,
            other => panic!("{other:?}"),
        }
    }
}

/// Pulls from the beginning, and reads what the page leaves out.
fn pull(raw: &mut Raw, cid: Cid, seen: &mut Vec<u64>) {
    let request = raw.next_request();
    raw.say(&[ClientFrame::Sync { request, cursor: bytes::Bytes::new() }]);
    let mut page = None;
    loop {
        match raw.frame() {
            ServerFrame::Head(head) => {
                assert_eq!((head.head, head.rows), (Seq(40), HeadRows::Follow));
            }
            ServerFrame::Page(got) => page = Some(got),
            ServerFrame::Synced { request: of, .. } => {
                assert_eq!(of, request);
                break;
            }
            ServerFrame::Syncing { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let page = page.expect("the newest messages");
    assert!(page.gap && page.to == Seq(40), "{page:?}");
    let range = raw.ask(|request| {
        ClientFrame::Range(RangeRequest {
            request,
            cid,
            from: Seq(seen.len() as u64 + 1),
            to: Seq(page.from.0 - 1),
            limit: 0,
            direction: chatring_wire::frame::Direction::Ascending,
        })
    });
    let ServerFrame::Rows { page: between, .. } = range else { panic!("{range:?}") };
    seen.extend(between.rows.iter().chain(&page.rows).map(|row| row.seq.0));
}
