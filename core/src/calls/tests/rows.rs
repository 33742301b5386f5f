//! What a message costs those who wait for it in rows read from the store.

use super::*;
use crate::keys;
use crate::kv::{Class, Commit, Request, Ticket, Write};
use crate::values::{InboxRow, RowStamp};
use chatring_wire::Ordinal;
use chatring_wire::frame::ChannelKind;

/// More than a cursor lists and than a feed keeps.
const TALKING: u64 = 150;
/// The bar is 20.
const ROWS_A_MESSAGE_MAX: u64 = 20;

/// Bob has so many channels, of which this many have messages now and then.
fn crowd(channels: u64) -> (Node, Vec<Cid>, Bytes) {
    let mut node = Node::new(ShardLimits::default());
    let mut cids = Vec::new();
    for number in 0..TALKING {
        let subject = format!("friend-{number}");
        cids.push(node.opened("bob", &subject).head.cid);
        node.sent(&subject, text(cids[number as usize], 1, "hello"));
    }
    let deployment = node.shard.ready();
    let (bob, store) = (deployment.key.uid("", "bob", 0), deployment.store);
    let silent = |number: u64| {
        let (cid, peer) = (Cid(number << 16), Uid(number));
        let stamp = RowStamp { incarnation: store, stamp: Default::default() };
        let inbox = InboxRow {
            stamp,
            kind: ChannelKind::Direct,
            peer,
            me: MemberNumber(0),
            joined: Seq(1),
            joined_ordinal: Ordinal(0),
            last: Seq(0),
            ordinal: Ordinal(0),
            own_ordinal: Ordinal(0),
            rest: Bytes::new(),
        };
        inbox.write(keys::inbox(bob, cid), store)
    };
    let writes: Vec<_> = (TALKING..channels).map(silent).collect();
    for (ticket, writes) in (1..).zip(writes.chunks(1_000)) {
        let writes = writes.to_vec();
        store_all(&mut node.store, Ticket(ticket), writes);
    }
    let mut cursor = Bytes::new();
    loop {
        let synced = node.synced("bob", &cursor, 0);
        cursor = synced.cursor;
        if synced.more == More::No {
            return (node, cids, cursor);
        }
    }
}

fn store_all(store: &mut MemStore, ticket: Ticket, writes: Vec<Write>) {
    let commit = Commit {
        lane: None,
        class: Class::Background,
        read_version: None,
        conflicts: Vec::new(),
        writes,
    };
    store.submit(SubmitterId(0), Request::Commit(commit), ticket);
    store.sync_all();
}

/// Each message is of another channel than the last ones. Time stands still: nothing but the
/// message can answer.
fn wait_for_each(channels: u64) {
    let (mut node, cids, mut cursor) = crowd(channels);
    let read = node.shard.counters().call_rows;
    assert!(read >= channels, "the first sync has read {read} rows of {channels} channels");
    let mut position = Cursor::decode(cursor.clone()).expect("a cursor").position;
    let first = position;
    for round in 0..3 {
        for (number, cid) in cids.iter().enumerate() {
            let before = node.shard.counters().call_rows;
            let call = node.ask("bob", wait(&cursor));
            node.settle();
            assert!(node.answers.is_empty(), "nothing is new");
            node.ask(&format!("friend-{number}"), text_request(*cid, 10 + round));
            node.settle();
            let rows = node.shard.counters().call_rows - before;
            assert!(rows <= ROWS_A_MESSAGE_MAX, "a message cost {rows} rows read");
            let (answered, answer) = node.answers.pop_front().expect("an answer");
            assert_eq!(answered, call, "the receiver knows before the sender does");
            let Ok(Answer::Synced(synced)) = answer else { panic!("{answer:?}") };
            assert_eq!(seqs(&synced.events, *cid), [2 + round]);
            assert_eq!(synced.events.len(), 1, "{:?}", synced.events);
            node.answers.clear();
            cursor = synced.cursor;
            let known = Cursor::decode(cursor.clone()).expect("a cursor");
            assert!(known.position >= position, "a position went back");
            position = known.position;
        }
    }
    assert!(position > first);
    // What it stands for is the same without the memory of news.
    node.restart(ShardLimits::default());
    assert_eq!(node.synced("bob", &cursor, 0).events, []);
}

#[test]
fn a_message_costs_few_rows_with_300_channels() {
    wait_for_each(300);
}

#[test]
fn a_message_costs_few_rows_with_50_000_channels() {
    wait_for_each(50_000);
}

#[test]
fn more_channels_at_once_than_a_cursor_lists_are_given_without_a_read() {
    let (mut node, cids, cursor) = crowd(300);
    let rows = node.shard.counters().call_rows;
    for cid in &cids[..60] {
        let number = cids.iter().position(|other| other == cid).expect("one of them");
        node.ask(&format!("friend-{number}"), text_request(*cid, 10));
    }
    node.settle();
    node.answers.clear();
    let first = node.synced("bob", &cursor, 0);
    let second = node.synced("bob", &first.cursor, 0);
    let events: Vec<_> = first.events.into_iter().chain(second.events).collect();
    assert_eq!(events.len(), 60);
    assert!(cids[..60].iter().all(|cid| seqs(&events, *cid) == [2]));
    assert_eq!((first.more, second.more), (More::Yes, More::No));
    assert_eq!(node.shard.counters().call_rows, rows);
    node.restart(ShardLimits::default());
    assert_eq!(node.synced("bob", &second.cursor, 0).events, []);
}
