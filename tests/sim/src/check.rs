//! What must be true, judged by what is stored and what each device was told, never by counters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use chatring_core::cursor::{Cursor, Position};
use chatring_core::keys;
use chatring_core::kv::mem::MemStore;
use chatring_core::values::{InboxRow, MarkerRow, MessageRow};
use chatring_wire::frame::Page;
use chatring_wire::{Cid, Ordinal, Seq, Uid};

use crate::device::{Device, Outcome, Sent};
use crate::poller::Poller;
use crate::removals::Removals;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Virtual time.
    pub at_ms: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} ms: {}", self.at_ms, self.what)
    }
}

type Checked = Result<(), String>;

/// The users of a channel, by number where they have devices in the run.
pub type Channels = BTreeMap<Cid, [Uid; 2]>;

/// A `synced` covers everything up to its position: the device was told of every such message.
pub fn position_is_covered(
    store: &MemStore,
    channels: &Channels,
    uid: Uid,
    known: &BTreeMap<Cid, Seq>,
    cursor: &Cursor,
) -> Checked {
    for (cid, _) in channels.iter().filter(|(_, pair)| pair.contains(&uid)) {
        let next = known.get(cid).copied().unwrap_or_default().next();
        if let Some(version) = stored_at(store, *cid, next)
            && version <= cursor.position.version.0
        {
            return Err(format!(
                "{uid:?} was given position {} but not message {} of {cid:?}, stored at {version}",
                cursor.position.version.0, next.0
            ));
        }
    }
    Ok(())
}

/// A page without a gap has everything that changed since the position that the sync started from.
pub fn gap_is_marked(store: &MemStore, page: &Page, since: Position) -> Checked {
    if page.gap || page.from.0 <= 1 {
        return Ok(());
    }
    let below = Seq(page.from.0 - 1);
    match stored_at(store, page.cid, below) {
        Some(version) if version > since.version.0 => Err(format!(
            "a page of {:?} from {} marks no gap, but {} changed at {version}, after {}",
            page.cid, page.from.0, below.0, since.version.0
        )),
        _ => Ok(()),
    }
}

/// After the quiet time: what is stored is whole, what was acknowledged is stored, and every device
/// knows everything.
pub fn everything(
    store: &MemStore,
    channels: &Channels,
    devices: &[Device],
    pollers: &[Poller],
    removals: &Removals,
) -> Checked {
    let mut logs = BTreeMap::new();
    for (cid, pair) in channels {
        let log = log_of(store, *cid)?;
        inbox_rows_agree(store, *cid, *pair, &log)?;
        logs.insert(*cid, log);
    }
    removals.hold(devices, |send| stored_in(&logs, send).is_some())?;
    for device in devices {
        acks_ascend(device)?;
        if device.is_removed {
            // It may not learn any more what became of the last ones.
            let sends = device.sends.iter().filter(|send| send.outcome != Outcome::Open);
            sends_are_stored(&device.name, sends, &logs)?;
            continue;
        }
        sends_are_stored(&device.name, &device.sends, &logs)?;
        markers_are_stored(store, &device.name, device.uid, &device.marks)?;
        let uid = device.uid.ok_or_else(|| format!("{} never signed in", device.name))?;
        for (cid, _) in channels.iter().filter(|(_, pair)| pair.contains(&uid)) {
            knows(&device.name, &device.log, *cid, &logs[cid])?;
            device_shows(store, device, uid, *cid, &logs[cid])?;
        }
    }
    for poller in pollers {
        sends_are_stored(&poller.name, &poller.sends, &logs)?;
        markers_are_stored(store, &poller.name, poller.uid, &poller.marks)?;
        let uid = poller.uid.ok_or_else(|| format!("{} never signed in", poller.name))?;
        for (cid, _) in channels.iter().filter(|(_, pair)| pair.contains(&uid)) {
            knows(&poller.name, &poller.seen.log, *cid, &logs[cid])?;
            poller_shows(store, poller, uid, *cid)?;
        }
    }
    Ok(())
}

/// The messages of a channel: dense from 1, each written once, each client's id once.
fn log_of(store: &MemStore, cid: Cid) -> Result<Vec<MessageRow>, String> {
    let mut log = Vec::new();
    let mut ids = BTreeSet::new();
    let mut seq = Seq(1);
    loop {
        let written = store.history().of_key(&keys::message(cid, seq));
        let [first, again @ ..] = written else { break };
        if !again.is_empty() {
            return Err(format!(
                "message {} of {cid:?} was written {} times",
                seq.0,
                written.len()
            ));
        }
        let value = first.value.clone().ok_or_else(|| format!("{cid:?} {seq:?} was cleared"))?;
        let row = MessageRow::decode(seq, value).map_err(|error| error.to_string())?;
        if !ids.insert((row.uid, row.row.device, row.row.cmid)) {
            return Err(format!("{:?} is stored twice in {cid:?}", row.row.cmid));
        }
        if row.row.ordinal != Ordinal(seq.0) {
            return Err(format!("message {} of {cid:?} has ordinal {:?}", seq.0, row.row.ordinal));
        }
        log.push(row);
        seq = seq.next();
    }
    let beyond = store.history().of_key(&keys::message(cid, seq.next()));
    if !beyond.is_empty() {
        return Err(format!("{cid:?} has no message {} but one after it", seq.0));
    }
    Ok(log)
}

fn inbox_rows_agree(store: &MemStore, cid: Cid, pair: [Uid; 2], log: &[MessageRow]) -> Checked {
    let Some(newest) = log.last() else { return Ok(()) };
    for uid in pair {
        let value = store.history().get(&keys::inbox(uid, cid), store.newest()).cloned();
        let value = value.ok_or_else(|| format!("{uid:?} has no inbox row of {cid:?}"))?;
        let row = InboxRow::decode(value).map_err(|error| error.to_string())?;
        let own = log.iter().rev().find(|message| message.uid == uid);
        let own_ordinal = own.map_or(Ordinal(0), |message| message.row.ordinal);
        if (row.last, row.ordinal, row.own_ordinal)
            != (newest.row.seq, newest.row.ordinal, own_ordinal)
        {
            return Err(format!(
                "the inbox row of {uid:?} for {cid:?} says {:?}, but the head is {:?}",
                row, newest.row.seq
            ));
        }
    }
    Ok(())
}

type Logs = BTreeMap<Cid, Vec<MessageRow>>;

fn stored_in<'a>(logs: &'a Logs, send: &Sent) -> Option<&'a MessageRow> {
    logs[&send.cid].iter().find(|message| message.row.cmid == send.cmid)
}

fn sends_are_stored<'a>(
    name: &str,
    sends: impl IntoIterator<Item = &'a Sent>,
    logs: &Logs,
) -> Checked {
    for send in sends {
        let stored = stored_in(logs, send);
        let name = format!("{} of {name} in {:?}", send.body, send.cid);
        match (&send.outcome, stored) {
            (Outcome::Open, _) => return Err(format!("{name} has no outcome")),
            (Outcome::Stored(seq), None) => {
                return Err(format!("{name} was acknowledged as {} and is not stored", seq.0));
            }
            (Outcome::Stored(seq), Some(message)) => {
                if message.row.seq != *seq || message.row.body != send.body.as_bytes() {
                    return Err(format!("{name} was acknowledged as {} but is {message:?}", seq.0));
                }
            }
            (Outcome::Refused, None) => {}
            (Outcome::Refused, Some(message)) => {
                return Err(format!("{name} was refused and is stored as {:?}", message.row.seq));
            }
        }
    }
    Ok(())
}

/// What a device sent to a channel is stored in the order in which it was sent.
fn acks_ascend(device: &Device) -> Checked {
    let mut newest: BTreeMap<Cid, Seq> = BTreeMap::new();
    for send in &device.sends {
        let Outcome::Stored(seq) = send.outcome else { continue };
        if let Some(before) = newest.insert(send.cid, seq)
            && before > seq
        {
            let (body, name) = (&send.body, &device.name);
            return Err(format!("{body} of {name} is {} but follows {}", seq.0, before.0));
        }
    }
    Ok(())
}

fn markers_are_stored(
    store: &MemStore,
    name: &str,
    uid: Option<Uid>,
    marks: &BTreeMap<Cid, Seq>,
) -> Checked {
    let Some(uid) = uid else { return Ok(()) };
    for (cid, marked) in marks {
        let read = marker_of(store, uid, *cid)?.map_or(Seq(0), |row| row.read);
        if read < *marked {
            return Err(format!("{name} read {cid:?} up to {marked:?}, stored is {read:?}"));
        }
    }
    Ok(())
}

fn marker_of(store: &MemStore, uid: Uid, cid: Cid) -> Result<Option<MarkerRow>, String> {
    let value = store.history().get(&keys::marker(uid, cid), store.newest()).cloned();
    value.map(MarkerRow::decode).transpose().map_err(|error| error.to_string())
}

fn knows(
    name: &str,
    given: &BTreeMap<Cid, BTreeMap<Seq, Bytes>>,
    cid: Cid,
    log: &[MessageRow],
) -> Checked {
    let empty = BTreeMap::new();
    let given = given.get(&cid).unwrap_or(&empty);
    for message in log {
        match given.get(&message.row.seq) {
            Some(body) if *body == message.row.body => {}
            Some(body) => {
                return Err(format!(
                    "{name} has {body:?} as {:?} of {cid:?}, stored is {:?}",
                    message.row.seq, message.row.body
                ));
            }
            None => {
                return Err(format!(
                    "{name} was never given {:?} of {cid:?}, whose head is {}",
                    message.row.seq,
                    log.len()
                ));
            }
        }
    }
    if given.len() > log.len() {
        return Err(format!("{name} was given messages of {cid:?} that are not stored"));
    }
    Ok(())
}

/// A device shows the head, the markers and the unread count that are stored.
fn device_shows(
    store: &MemStore,
    device: &Device,
    uid: Uid,
    cid: Cid,
    log: &[MessageRow],
) -> Checked {
    let Some(newest) = log.last() else { return Ok(()) };
    let Some(shown) = device.session.channel(cid) else {
        return Err(format!("{} does not show {cid:?}", device.name));
    };
    let marker = marker_of(store, uid, cid)?;
    let own = log.iter().rev().find(|message| message.uid == uid);
    let own_ordinal = own.map_or(Ordinal(0), |message| message.row.ordinal);
    let (read, read_ordinal) =
        marker.map_or((Seq(0), Ordinal(0)), |marker| (marker.read, marker.read_ordinal));
    let unread = newest.row.ordinal.0 - read_ordinal.max(own_ordinal).0;
    if (shown.head, shown.read, shown.unread()) != (newest.row.seq, read, unread) {
        return Err(format!(
            "{} shows {shown:?} where the head is {}, read up to {} and {unread} unread",
            device.name, newest.row.seq.0, read.0
        ));
    }
    Ok(())
}

/// A poller was told how far its user has read.
fn poller_shows(store: &MemStore, poller: &Poller, uid: Uid, cid: Cid) -> Checked {
    let stored = marker_of(store, uid, cid)?.map_or(Seq(0), |row| row.read);
    let told = poller.seen.read.get(&cid).copied().unwrap_or_default();
    if stored != told {
        let name = &poller.name;
        return Err(format!("{name} was told {told:?} as read of {cid:?}, stored is {stored:?}"));
    }
    Ok(())
}

fn stored_at(store: &MemStore, cid: Cid, seq: Seq) -> Option<u64> {
    let written = store.history().of_key(&keys::message(cid, seq));
    written.first().map(|first| first.stamp.version.0)
}
