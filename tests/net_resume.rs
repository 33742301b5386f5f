//! Goal: whoever was away sees exactly what was said, whatever has restarted and whatever it
//! speaks.
//!
//! Method: real clients with a cache file against the real binary, which is killed in between.

use bytes::Bytes;
use chatring_client::Event;
use chatring_wire::frame::{CacheAction, Hello};
use chatring_wire::{ClientFrame, Seq, ServerFrame, Subprotocol};

use crate::common::raw::{Raw, hello};
use crate::common::{Node, PATIENCE, Person, run};

const BOTH: [Subprotocol; 2] = [Subprotocol::Binary, Subprotocol::Json];

#[test]
fn a_client_comes_back_by_itself_after_the_node_was_killed() {
    let mut node = Node::start();
    run(async {
        let mut alice = Person::new(&node, "alice");
        let mut bob = Person::speaking(&node, "bob", Subprotocol::Json);
        alice.synced().await;
        bob.synced().await;
        let cid = alice.open("bob").await;
        alice.say(cid, "before").await;
        bob.sees("before").await;
        for round in 0..3 {
            // What is in the outbox while the node is dead goes out when it is back.
            for n in 0..10 {
                alice.say(cid, format!("{round}.{n}")).await;
            }
            node.kill();
            alice.until(|event| matches!(event, Event::Disconnected { .. })).await;
            alice.say(cid, format!("{round} away")).await;
            node.restart();
            alice.sees(&format!("{round} away")).await;
            bob.sees(&format!("{round} away")).await;
        }
        let texts = alice.texts(cid);
        assert_eq!(texts.len(), 1 + 3 * 11);
        assert_eq!(bob.texts(cid), texts);
        let sent = (0..3).flat_map(|round| {
            (0..10).map(move |n| format!("{round}.{n}")).chain([format!("{round} away")])
        });
        assert!(texts[1..].iter().eq(sent.collect::<Vec<_>>().iter()), "{texts:?}");
        assert_eq!(alice.stored.len(), texts.len(), "one outcome for each send");
    });
}

#[test]
fn a_client_goes_on_from_its_cache_file_in_either_subprotocol() {
    let node = Node::start();
    let folder = tempfile::tempdir().expect("a folder");
    run(async {
        let mut alice = Person::new(&node, "alice");
        alice.synced().await;
        for (number, first) in BOTH.into_iter().enumerate() {
            let name = format!("bob {number}");
            let cache = folder.path().join(format!("{number}.redb"));
            let mut bob = Person::cached(&node, &name, first, &cache);
            bob.synced().await;
            let cid = alice.open(&name).await;
            alice.say(cid, "0").await;
            bob.sees("0").await;
            bob.open("alice").await;
            bob.say(cid, "mine").await;
            bob.sees("mine").await;
            let mut seen = bob.seen.split_off(0);
            bob.leave().await;
            // Each time something was said meanwhile, and each time it speaks the other way.
            for (round, subprotocol) in BOTH.into_iter().rev().cycle().take(3).enumerate() {
                let missed = format!("missed {round}");
                let sent = alice.say(cid, &*missed).await;
                alice.is_stored(sent).await;
                let mut bob = Person::cached(&node, &name, subprotocol, &cache);
                bob.sees(&missed).await;
                assert_eq!(bob.seen.len(), 1, "only what is new: {:?}", bob.seen);
                seen.append(&mut bob.seen);
                assert!(!bob.until_synced_dropped_cache().await, "the cursor is good");
                bob.leave().await;
            }
            let texts: Vec<_> = seen.iter().map(|(_, row)| row.body.clone()).collect();
            assert_eq!(texts, ["0", "mine", "missed 0", "missed 1", "missed 2"]);
            assert!(seen.iter().map(|(_, row)| row.seq).eq((1..=5).map(Seq)));
        }
    });
}

#[test]
fn an_outbox_in_a_cache_file_goes_out_after_both_have_restarted() {
    let mut node = Node::start();
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache.redb");
    run(async {
        let mut bob = Person::new(&node, "bob");
        bob.synced().await;
        let mut alice = Person::cached(&node, "alice", Subprotocol::Binary, &cache);
        alice.synced().await;
        let cid = alice.open("bob").await;
        let sent = alice.say(cid, "first").await;
        alice.is_stored(sent).await;
        node.kill();
        alice.until(|event| matches!(event, Event::Disconnected { .. })).await;
        alice.say(cid, "second").await;
        alice.say(cid, "third").await;
        alice.leave().await;
        node.restart();
        let mut alice = Person::cached(&node, "alice", Subprotocol::Json, &cache);
        alice.sees("third").await;
        bob.sees("third").await;
        assert_eq!(bob.texts(cid), ["first", "second", "third"]);
    });
}

#[test]
fn a_new_installation_reads_all_of_a_long_channel() {
    const MESSAGES: u64 = 700;
    let node = Node::start();
    run(async {
        let mut alice = Person::new(&node, "alice");
        Raw::sign_in(&node, "bob").end();
        alice.synced().await;
        let cid = alice.open("bob").await;
        let mut last = None;
        for n in 1..=MESSAGES {
            last = Some(alice.say(cid, format!("message {n}")).await);
        }
        alice.is_stored(last.expect("some")).await;
        for subprotocol in BOTH {
            let mut bob = Person::speaking(&node, "bob", subprotocol);
            bob.sees(&format!("message {MESSAGES}")).await;
            let texts = bob.texts(cid);
            assert!(
                texts
                    .iter()
                    .eq(&(1..=MESSAGES).map(|n| format!("message {n}")).collect::<Vec<_>>())
            );
            assert_eq!(bob.head(cid).await.unread(), MESSAGES);
            bob.leave().await;
        }
        // One with a screen gets the newest ones, and reads others when it shows them.
        let config = chatring_client::Config::new(node.token("bob"));
        let mut bob = Person::with(&node, config, Subprotocol::Binary, None);
        bob.sees(&format!("message {MESSAGES}")).await;
        let first = bob.seen[0].1.seq;
        assert!(bob.seen.len() < 100 && first > Seq(MESSAGES - 100), "from {first:?}");
    });
}

#[test]
fn a_cursor_of_one_subprotocol_is_good_in_the_other() {
    let node = Node::start();
    Raw::sign_in(&node, "bob").end();
    let mut alice = Raw::sign_in(&node, "alice");
    let cid = alice.open("bob").cid;
    let mut cursor = Bytes::new();
    let (mut first, mut cmid) = (true, 0u8);
    for subprotocol in BOTH.into_iter().cycle().take(5) {
        cmid += 1;
        alice.send(cid, cmid, 0, format!("text {cmid}").as_bytes());
        let at = Hello { cursor, ..hello(&node.token("bob"), "bob") };
        let mut bob = Raw::upgraded(&node, subprotocol);
        bob.say(&[ClientFrame::Hello(at)]);
        let wanted = if first { CacheAction::Replace } else { CacheAction::Keep };
        match bob.until(|frame| matches!(frame, ServerFrame::Syncing { .. })) {
            ServerFrame::Syncing { cache, .. } => assert_eq!(cache, wanted),
            other => panic!("{other:?}"),
        }
        let mut rows = Vec::new();
        cursor = loop {
            match bob.frame() {
                ServerFrame::Page(page) => rows.extend(page.rows),
                ServerFrame::Synced { cursor, .. } => break cursor,
                _ => {}
            }
        };
        let seqs: Vec<_> = rows.iter().map(|row| row.seq).collect();
        assert_eq!(seqs, [Seq(u64::from(cmid))], "what is new, and nothing else");
        first = false;
    }
}

impl Person {
    /// Waits until the session is up to date; whether its cache was dropped on the way.
    async fn until_synced_dropped_cache(&mut self) -> bool {
        let limit = PATIENCE;
        let wait = async {
            let mut dropped = false;
            while !self.client.with(|session, _| session.is_synced()).await.expect("it lives") {
                dropped |= matches!(self.event().await, Event::CacheDropped);
            }
            dropped
        };
        tokio::time::timeout(limit, wait).await.expect("in time")
    }
}
