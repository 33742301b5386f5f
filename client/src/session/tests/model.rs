//! A small server of one direct channel, as the protocol promises it, with faults on demand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use chatring_wire::frame::{
    CacheAction, ChannelKind, Durability, Failure, Head, HeadRows, Page, RequestId, Row, Send,
    Welcome,
};
use chatring_wire::{
    Cid, ClientFrame, Cmid, DeviceId, ErrorCode, HistoryId, MemberNumber, Ordinal, Seq,
    ServerFrame, Uid,
};

/// The one channel.
pub const CHANNEL: Cid = Cid(77);
/// Rows that a page or answer holds: few, so that gaps and further requests are common.
const PAGE_ROWS: u64 = 3;

/// What one device's connection is at the server.
#[derive(Debug, Default)]
pub struct Link {
    pub to_server: VecDeque<ClientFrame>,
    pub to_client: VecDeque<ServerFrame>,
    up: bool,
    pushes: u64,
    behind: bool,
    /// Sends of this connection by request.
    sends: BTreeMap<RequestId, Cmid>,
}

/// The server: a log, and a link for each device. Device `d` belongs to user `d % 2`.
#[derive(Debug)]
pub struct Server {
    pub log: Vec<Row>,
    pub links: Vec<Link>,
    pub history: HistoryId,
    /// Up to here the owner knows messages only by scanning.
    forgotten: u64,
    known: BTreeSet<(DeviceId, Cmid)>,
    reads: [u64; 2],
}

/// What the server does with the next frame of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Fine,
    Busy,
    /// The send is stored, or not, and the answer is "unknown".
    Unknown {
        stored: bool,
    },
}

impl Server {
    pub fn new(devices: usize) -> Server {
        Server {
            log: Vec::new(),
            links: (0..devices).map(|_| Link::default()).collect(),
            history: HistoryId(1),
            forgotten: 0,
            known: BTreeSet::new(),
            reads: [0; 2],
        }
    }

    pub fn head(&self) -> u64 {
        self.log.len() as u64
    }

    pub fn connect(&mut self, device: usize) {
        self.links[device] = Link { up: true, ..Link::default() };
    }

    pub fn disconnect(&mut self, device: usize) {
        self.links[device] = Link::default();
    }

    /// The owner forgets what it knew of recent sends, as after a restart.
    pub fn forget(&mut self) {
        self.known.clear();
        self.forgotten = self.head();
    }

    /// Takes the next frame of a device.
    pub fn step(&mut self, device: usize, mood: Mood) {
        let Some(frame) = self.links[device].to_server.pop_front() else { return };
        match frame {
            ClientFrame::Hello(hello) => {
                let welcome = Welcome {
                    uid: Uid(device as u64 % 2),
                    device: DeviceId(device as u32 + 1),
                    history: self.history,
                    time_ms: 0,
                    heartbeat_ms: 5_000,
                    window_pushes: 256,
                    window_bytes: 1 << 18,
                    frame_bytes_max: 1 << 17,
                    body_bytes_max: 1 << 16,
                    open_sends_max: 4,
                    durability: Durability::Memory,
                };
                self.say(device, ServerFrame::Welcome(welcome));
                self.sync(device, RequestId(0), &hello.cursor);
            }
            ClientFrame::Sync { request, cursor } => {
                self.links[device].behind = false;
                self.sync(device, request, &cursor);
            }
            ClientFrame::Ping { pushes } => {
                assert!(pushes <= self.links[device].pushes, "acked more than was pushed");
                let pushes = self.links[device].pushes;
                self.say(device, ServerFrame::Pong { pushes, time_ms: 0 });
            }
            ClientFrame::Open { request, .. } => {
                let head = self.head_of(device, HeadRows::Unchanged);
                self.say(device, ServerFrame::Opened { request, head });
            }
            ClientFrame::Range(range) => {
                let to = range.to.0.min(self.head()).min(range.from.0 + PAGE_ROWS - 1);
                let page = self.page(range.from.0, to, to < range.to.0.min(self.head()));
                self.say(device, ServerFrame::Rows { request: range.request, page });
            }
            ClientFrame::Mark { read, .. } => {
                let reads = &mut self.reads[device % 2];
                *reads = read.0.max(*reads);
            }
            ClientFrame::Send(send) => self.take_send(device, send, mood),
            ClientFrame::Ack { pushes } => {
                assert!(pushes <= self.links[device].pushes, "acked more than was pushed");
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    /// The next frame comes a second time, if it is a push. The server has sent both.
    pub fn repeat(&mut self, device: usize) -> bool {
        let link = &mut self.links[device];
        let Some(frame) = link.to_client.front().filter(|frame| frame.is_push()).cloned() else {
            return false;
        };
        link.pushes += 1;
        link.to_client.push_front(frame);
        true
    }

    /// The next frame is lost, if it is a push.
    pub fn lose(&mut self, device: usize) -> bool {
        let frames = &mut self.links[device].to_client;
        frames.front().is_some_and(ServerFrame::is_push) && frames.pop_front().is_some()
    }

    /// Tells a device that it is behind: it gets no push until it has pulled.
    pub fn fall_behind(&mut self, device: usize) {
        if self.links[device].up {
            self.links[device].behind = true;
            self.say(device, ServerFrame::Behind);
        }
    }

    fn take_send(&mut self, device: usize, send: Send, mood: Mood) {
        let (request, id) = (send.request, DeviceId(device as u32 + 1));
        self.links[device].sends.insert(request, send.cmid);
        if mood == Mood::Busy {
            let error = Failure::new(ErrorCode::Busy).retry_after(300);
            return self.say(device, ServerFrame::Refused { request, error });
        }
        let named = send.previous.and_then(|p| self.links[device].sends.get(&p).copied());
        let known = named.is_none_or(|cmid| self.position(id, cmid).is_some());
        if !known {
            let error = Failure::new(ErrorCode::OutOfOrder);
            return self.say(device, ServerFrame::Refused { request, error });
        }
        if mood == (Mood::Unknown { stored: false }) {
            return self.say(device, ServerFrame::Unknown { request });
        }
        let base = send.base.0;
        assert!(base <= self.head(), "a base above the head");
        if !self.known.contains(&(id, send.cmid)) && base < self.forgotten {
            // Look through what is stored since the base, a few at a time.
            let to = self.forgotten.min(base + 2);
            let found = (base..to).find(|at| self.is_at(*at as usize, id, send.cmid));
            if found.is_none() && to < self.forgotten {
                let checked_to = Seq(to);
                let frame = ServerFrame::Continue { request, checked_to };
                return self.say(device, frame);
            }
            if found.is_some() {
                self.known.insert((id, send.cmid));
            }
        }
        let seq = if self.known.contains(&(id, send.cmid)) {
            self.position(id, send.cmid).expect("a known send is stored")
        } else {
            self.append(device, &send);
            self.head()
        };
        if mood == (Mood::Unknown { stored: true }) {
            return self.say(device, ServerFrame::Unknown { request });
        }
        let frame =
            ServerFrame::Sent { request, cid: CHANNEL, seq: Seq(seq), time_ms: 1_000 + seq };
        self.say(device, frame);
    }

    fn append(&mut self, device: usize, send: &Send) {
        let id = DeviceId(device as u32 + 1);
        self.known.insert((id, send.cmid));
        let seq = self.head() + 1;
        let row = Row {
            seq: Seq(seq),
            ordinal: Ordinal(seq),
            kind: send.kind,
            sender: MemberNumber(device as u32 % 2),
            device: id,
            cmid: send.cmid,
            time_ms: 1_000 + seq,
            body: send.body.clone(),
        };
        self.log.push(row.clone());
        for other in 0..self.links.len() {
            if other != device {
                self.push(other, &row);
            }
        }
    }

    fn push(&mut self, device: usize, row: &Row) {
        let link = &mut self.links[device];
        if !link.up || link.behind {
            return;
        }
        link.pushes += 1;
        let (cid, seq, sender, time_ms) = (CHANNEL, row.seq, row.sender, row.time_ms);
        let body = row.body.clone();
        link.to_client.push_back(if row.device.0 == device as u32 + 1 {
            ServerFrame::Entry { cid, row: row.clone() }
        } else {
            ServerFrame::Text { cid, seq, sender, time_ms, body }
        });
    }

    fn sync(&mut self, device: usize, request: RequestId, cursor: &Bytes) {
        let since = if cursor.is_empty() {
            None
        } else {
            let bytes: [u8; 16] = cursor.as_ref().try_into().expect("a cursor of ours");
            let number = u128::from_be_bytes(bytes);
            (number >> 64 == u128::from(self.history.0)).then_some(number as u64)
        };
        let cache = if since.is_some() { CacheAction::Keep } else { CacheAction::Replace };
        let since = since.unwrap_or(0);
        self.say(device, ServerFrame::Syncing { request, cache });
        if since < self.head() || since == 0 {
            let from = (since + 1).max((self.head() + 1).saturating_sub(PAGE_ROWS)).max(1);
            let stale = self.head() % 7 == 3;
            let rows = if stale { HeadRows::Stale } else { HeadRows::Follow };
            let head = self.head_of(device, rows);
            self.say(device, ServerFrame::Head(head));
            if !stale {
                let page = self.page(from, self.head(), from > since + 1);
                self.say(device, ServerFrame::Page(page));
            }
        }
        let cursor = (u128::from(self.history.0) << 64 | u128::from(self.head())).to_be_bytes();
        self.say(device, ServerFrame::Synced { request, cursor: Bytes::copy_from_slice(&cursor) });
    }

    fn head_of(&self, device: usize, rows: HeadRows) -> Head {
        let read = self.reads[device % 2];
        Head {
            cid: CHANNEL,
            kind: ChannelKind::Direct,
            peer: Some(Uid(1 - device as u64 % 2)),
            me: MemberNumber(device as u32 % 2),
            head: Seq(self.head()),
            ordinal: Ordinal(self.head()),
            floor: Seq(1),
            read: Seq(read),
            read_ordinal: Ordinal(read),
            received: Seq(0),
            rows,
        }
    }

    fn page(&self, from: u64, to: u64, gap: bool) -> Page {
        let rows = (from..=to).map(|seq| self.log[seq as usize - 1].clone()).collect();
        Page { cid: CHANNEL, from: Seq(from), to: Seq(to), gap, rows }
    }

    fn say(&mut self, device: usize, frame: ServerFrame) {
        if self.links[device].up {
            self.links[device].to_client.push_back(frame);
        }
    }

    fn is_at(&self, index: usize, device: DeviceId, cmid: Cmid) -> bool {
        self.log.get(index).is_some_and(|row| row.device == device && row.cmid == cmid)
    }

    fn position(&self, device: DeviceId, cmid: Cmid) -> Option<u64> {
        self.log.iter().find(|row| row.device == device && row.cmid == cmid).map(|row| row.seq.0)
    }
}
