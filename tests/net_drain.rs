//! Goal: a server that stops says so, loses nothing, and its clients come back to it by themselves.
//! Method: SIGTERM to the real binary with live sessions in both subprotocols.

use std::io::Read as _;

use chatring_client::Event;
use chatring_wire::{CloseCode, ServerFrame, Subprotocol};
use rustix::process::Signal;

use crate::common::raw::{Heard, Raw, hello};
use crate::common::{DRAIN_MAX, Node, Person, run};

#[test]
fn sessions_are_told_and_closed_and_new_ones_refused() {
    let mut node = Node::start();
    let mut sessions: Vec<Raw> = [Subprotocol::Binary, Subprotocol::Json]
        .into_iter()
        .map(|subprotocol| {
            let token = node.token(subprotocol.name());
            Raw::sign_in_with(&node, subprotocol, hello(&token, "x"))
        })
        .collect();
    let mut half = node.tcp();
    node.signal(Signal::TERM);
    for raw in &mut sessions {
        match raw.frame() {
            ServerFrame::Drain { spread_ms, .. } => assert!(spread_ms > 0, "they spread"),
            other => panic!("{other:?}"),
        }
        raw.expect_close(CloseCode::GoingAway);
        raw.end();
        assert_eq!(raw.hear(), Heard::End);
    }
    // A connection that has said nothing yet just ends.
    let mut rest = Vec::new();
    let _ = half.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{rest:?}");
    assert_eq!(node.wait(DRAIN_MAX).code(), Some(0), "{}", node.log());
    let log = node.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "nothing is wrong:\n{log}");
}

#[test]
fn clients_come_back_to_the_restarted_server_and_nothing_is_lost() {
    let mut node = Node::start();
    run(async {
        let mut alice = Person::new(&node, "alice");
        let mut bob = Person::speaking(&node, "bob", Subprotocol::Json);
        alice.synced().await;
        bob.synced().await;
        let cid = alice.open("bob").await;
        // A drain in the middle of a lot of sends.
        for n in 0..200 {
            alice.say(cid, format!("{n}")).await;
            if n == 150 {
                node.signal(Signal::TERM);
            }
        }
        assert_eq!(node.wait(DRAIN_MAX).code(), Some(0), "{}", node.log());
        node.restart();
        alice.sees("199").await;
        bob.sees("199").await;
        let sent: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        assert_eq!(alice.texts(cid), sent);
        assert_eq!(bob.texts(cid), sent);
        for person in [&mut alice, &mut bob] {
            while person.stats().await.connections < 2 {
                person.event().await;
            }
        }
        alice.say(cid, "here again").await;
        bob.until(|event| matches!(event, Event::Message { row, .. } if row.body == "here again"))
            .await;
    });
}
