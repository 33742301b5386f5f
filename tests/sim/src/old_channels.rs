//! Channels that were stored before the run, so that one user has very many of them.

use chatring_core::keys;
use chatring_core::kv::mem::{MemStore, SubmitterId};
use chatring_core::kv::{Class, Commit, Request, Ticket, Write};
use chatring_core::placement::DeploymentKey;
use chatring_core::values::{ChannelRow, DeploymentRow, InboxRow, MessageRow, RowStamp, UserRow};
use chatring_wire::frame::{ChannelKind, MessageKind, Row};
use chatring_wire::{Cid, Cmid, DeviceId, MemberNumber, Ordinal, Seq, Uid};

use crate::check::Channels;

/// A submitter that no node uses.
const SUBMITTER: SubmitterId = SubmitterId(0);
const CHANNELS_PER_COMMIT: usize = 200;

/// Stores `count` channels of `user-0`, each with one message of another user.
pub fn store(store: &mut MemStore, count: usize) -> Result<Channels, String> {
    let value = store.history().get(&keys::deployment(), store.newest()).cloned();
    let value = value.ok_or("there is no deployment yet")?;
    let deployment = DeploymentRow::decode(value).map_err(|error| error.to_string())?;
    let key = DeploymentKey::new(&deployment.key);
    let hub = key.uid("", "user-0", 0);
    let mut channels = Channels::new();
    let mut writes = Vec::new();
    for number in 0..count {
        let subject = format!("old-{number}");
        let peer = key.uid("", &subject, 0);
        let cid = key.direct_cid(hub, peer, 0);
        channels.insert(cid, [hub.min(peer), hub.max(peer)]);
        writes.extend(rows(&deployment, cid, hub, peer, subject));
        if (number + 1) % CHANNELS_PER_COMMIT == 0 || number + 1 == count {
            let commit = Commit {
                lane: None,
                class: Class::Background,
                read_version: None,
                conflicts: Vec::new(),
                writes: std::mem::take(&mut writes),
            };
            store.submit(SUBMITTER, Request::Commit(commit), Ticket(number as u64));
            store.sync_all();
        }
    }
    Ok(channels)
}

fn rows(deployment: &DeploymentRow, cid: Cid, hub: Uid, peer: Uid, subject: String) -> Vec<Write> {
    let store = deployment.incarnation;
    let channel = ChannelRow::direct(hub, peer);
    let sender = channel.member(peer).expect("the peer is in the pair");
    let body = format!("hello from {subject}");
    let row = Row {
        seq: Seq(1),
        ordinal: Ordinal(1),
        kind: MessageKind::TEXT,
        sender,
        device: DeviceId(1),
        cmid: Cmid([7; 16]),
        time_ms: 1,
        body: body.into(),
    };
    let user =
        UserRow { issuer: String::new(), subject, revoked_before_s: 0, rest: Default::default() };
    let mut writes = vec![
        user.write(keys::user(peer), store),
        channel.write(keys::channel(cid), store),
        MessageRow::write(keys::message(cid, Seq(1)), store, peer, &row),
    ];
    for (number, uid) in channel.pair.into_iter().enumerate() {
        let me = MemberNumber(number as u32);
        let inbox = InboxRow {
            stamp: RowStamp { incarnation: store, stamp: Default::default() },
            kind: ChannelKind::Direct,
            peer: channel.peer(me),
            me,
            joined: Seq(1),
            joined_ordinal: Ordinal(0),
            last: Seq(1),
            ordinal: Ordinal(1),
            own_ordinal: Ordinal(u64::from(uid == peer)),
            rest: Default::default(),
        };
        writes.push(inbox.write(keys::inbox(uid, cid), store));
    }
    writes
}
