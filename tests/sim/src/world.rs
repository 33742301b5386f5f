//! The world: devices, links and a node in virtual time, and what happens to them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use chatring_client::session::{Disconnect, Millis, Wish};
use chatring_core::cursor::{Cursor, Position};
use chatring_core::effect::{Now, SessionId};
use chatring_core::kv::faulty::{FaultKind, FaultRates};
use chatring_core::kv::prng::Prng;
use chatring_core::sabotage::Breaks;
use chatring_wire::frame::CacheAction;
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::{
    Cid, ClientCodec, ClientFrame, Outgoing, Seq, ServerCodec, ServerFrame, Subprotocol, Uid,
};

use crate::accounts::Accounts;
use crate::callers::Callers;
use crate::check::{self, Channels, Violation};
use crate::device::{Device, Outcome};
use crate::node::{Node, Said};
use crate::old_channels;
use crate::plan::Plan;
use crate::removals::Removals;

/// Unix time at the start of a run.
const UNIX_START_MS: u64 = 1_800_000_000_000;
/// Virtual time in which the node must get the messages of a run stored.
const BUSY_MS_MAX: u64 = 1_200_000;
/// Quiet virtual time in which everything must settle.
const SETTLE_MS_MAX: u64 = 300_000;
/// Quiet virtual time before the end is judged, so that audits and markers have come through.
const QUIET_MS: u64 = 20_000;

/// What a run met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Messages whose senders were told that they are stored.
    pub acks: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Virtual time of the run.
    pub virtual_ms: u64,
    /// Other things that happened, by name.
    pub met: BTreeMap<String, u64>,
}

/// Runs a seed to its end.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, breaks: Breaks) -> Result<Report, Violation> {
    let mut world = World::new(Plan::new(seed, breaks));
    world.run().map_err(|what| Violation { at_ms: world.now_ms, what })?;
    Ok(world.report())
}

struct World {
    plan: Plan,
    dice: Prng,
    now_ms: u64,
    unix_offset_ms: u64,
    node: Node,
    devices: Vec<Device>,
    callers: Callers,
    accounts: Accounts,
    removals: Removals,
    links: BTreeMap<usize, Link>,
    gone: Vec<(u64, SessionId)>,
    next_session: u64,
    channels: Channels,
    uids: BTreeMap<usize, Uid>,
    /// Channels whose users are not both known by id yet.
    opened: Vec<(Cid, usize, usize)>,
    publish_ms: Option<u64>,
    crash_ms: Option<u64>,
    start_ms: Option<u64>,
    clock_ms: Option<u64>,
    absence_done: bool,
    quiet: bool,
    acks: u64,
    met: BTreeMap<String, u64>,
}

/// A connection of a device, by the device's index.
struct Link {
    session: SessionId,
    server: ServerCodec,
    client: ClientCodec,
    to_server: VecDeque<(u64, Bytes)>,
    to_client: VecDeque<(u64, Packet)>,
    stalled_until_ms: u64,
    greeted: bool,
    /// Whether the node still hears it.
    heard: bool,
    pushed: BTreeMap<Cid, Seq>,
}

enum Packet {
    Message(Bytes),
    Closed(u16),
    Lost,
}

impl World {
    fn new(plan: Plan) -> World {
        let mut dice = Prng::new(plan.seed);
        let mut devices = Vec::new();
        for user in 0..plan.users {
            for number in 0..1 + dice.below(plan.devices_max as u64) as usize {
                let mut device = Device::new(user, number);
                device.next_action_ms = dice.below(200);
                devices.push(device);
            }
        }
        World {
            node: Node::new(&plan),
            callers: Callers::new(&plan),
            accounts: Accounts::new(&plan),
            removals: Removals::new(&plan),
            crash_ms: (plan.crash_ms > 0).then(|| 500 + dice.below(plan.crash_ms * 2)),
            clock_ms: (plan.clock_ms > 0).then(|| dice.below(plan.clock_ms * 2)),
            plan,
            dice,
            now_ms: 0,
            unix_offset_ms: UNIX_START_MS,
            devices,
            links: BTreeMap::new(),
            gone: Vec::new(),
            next_session: 0,
            channels: Channels::new(),
            uids: BTreeMap::new(),
            opened: Vec::new(),
            publish_ms: None,
            start_ms: Some(0),
            absence_done: false,
            quiet: false,
            acks: 0,
            met: BTreeMap::new(),
        }
    }

    fn run(&mut self) -> Result<(), String> {
        while self.acks + self.callers.acks < self.plan.messages {
            self.turn()?;
            if self.now_ms > BUSY_MS_MAX && self.plan.absence_ms == 0 {
                let acks = self.acks + self.callers.acks;
                return Err(format!("only {acks} messages were stored in time"));
            }
        }
        self.calm_down();
        let deadline_ms = self.now_ms + SETTLE_MS_MAX;
        let mut quiet_since_ms = self.now_ms;
        while self.now_ms < quiet_since_ms + QUIET_MS {
            self.turn()?;
            if !self.is_settled() {
                quiet_since_ms = self.now_ms;
            }
            if self.now_ms > deadline_ms {
                return Err(format!("it does not settle: {}", self.unsettled()));
            }
        }
        self.accounts.held(&self.node.store, &self.channels, &self.uids)?;
        let (pollers, removals) = (&self.callers.pollers, &self.removals);
        check::everything(&self.node.store, &self.channels, &self.devices, pollers, removals)
    }

    fn note(&mut self, what: &str) {
        *self.met.entry(what.to_owned()).or_default() += 1;
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, unix_ms: self.unix_offset_ms + self.now_ms }
    }

    /// Goes to the next moment at which something happens, and lets it happen.
    fn turn(&mut self) -> Result<(), String> {
        self.now_ms = self.next_ms().max(self.now_ms);
        self.happenings()?;
        self.devices_act();
        for index in 0..self.devices.len() {
            self.connect_or_time_out(index);
            self.pump(index)?;
        }
        self.deliver_to_server()?;
        self.callers.act(self.now_ms, self.quiet, &self.plan, &mut self.node);
        self.accounts.act(self.now_ms, self.quiet, self.plan.users, &mut self.node);
        let links = &self.links;
        let is_connected = |index: usize| links.contains_key(&index);
        let (devices, node) = (&mut self.devices, &mut self.node);
        self.removals.act(self.now_ms, self.quiet, devices, is_connected, node);
        self.node.work(self.now(), &mut self.dice);
        self.store_works();
        self.node.work(self.now(), &mut self.dice);
        if let Some(cause) = self.node.failure() {
            return Err(format!("a shard asked for the end of the process: {cause}"));
        }
        self.carry_what_was_said()?;
        self.deliver_to_pollers()?;
        self.removals.have_ended(self.now_ms, &self.devices, &self.node)?;
        self.deliver_to_clients()
    }

    fn next_ms(&self) -> u64 {
        let mut next = self.now_ms + 1_000;
        let mut at = |ms: Option<u64>| next = next.min(ms.unwrap_or(u64::MAX));
        at(self.node.deadline_ms());
        at(self.callers.next_ms(self.quiet));
        at(self.accounts.next_ms(self.quiet));
        at(self.removals.next_ms(self.quiet));
        at(self.publish_ms);
        at(self.start_ms);
        if !self.quiet {
            at(self.crash_ms);
            at(self.clock_ms);
        }
        at(self.gone.iter().map(|(ms, _)| *ms).min());
        for (index, device) in self.devices.iter().enumerate() {
            at(device.session.poll_timeout().map(|at| at.0));
            if !self.quiet {
                at(Some(device.next_action_ms));
            }
            if let (Wish::ConnectAt(ms), None) = (device.session.wish(), self.links.get(&index)) {
                at(Some(ms.0.max(device.away_until_ms)));
            }
        }
        for link in self.links.values() {
            at(link.to_server.front().map(|(ms, _)| *ms));
            at(link.to_client.front().map(|(ms, _)| (*ms).max(link.stalled_until_ms)));
        }
        next.max(self.now_ms + 1)
    }

    fn happenings(&mut self) -> Result<(), String> {
        if self.start_ms.is_some_and(|at| at <= self.now_ms) {
            self.start_ms = None;
            self.node.start(self.now(), &self.plan, &mut self.dice);
        }
        if !self.quiet && self.crash_ms.is_some_and(|at| at <= self.now_ms) {
            self.crash();
        }
        if !self.quiet && self.clock_ms.is_some_and(|at| at <= self.now_ms) {
            self.clock_ms = Some(self.now_ms + 1 + self.dice.below(self.plan.clock_ms * 2));
            self.unix_offset_ms = UNIX_START_MS + self.dice.below(7_200_000) - 3_600_000;
            self.note("clock jumped");
        }
        let now_ms = self.now_ms;
        let (due, later) = self.gone.drain(..).partition(|(at, _)| *at <= now_ms);
        self.gone = later;
        let due: Vec<_> = due;
        for (_, session) in due {
            self.node.detached(session);
        }
        if self.plan.old_channels > 0 && self.channels.is_empty() && self.node.is_up() {
            let hub = old_channels::store(&mut self.node.store, self.plan.old_channels)?;
            self.channels.extend(hub);
            self.note("user with very many channels");
        }
        if self.plan.absence_ms > 0 && !self.absence_done && self.acks > self.plan.messages / 2 {
            self.everybody_leaves();
        }
        Ok(())
    }

    /// Everybody leaves, the node stops, and time passes: an hour, a year.
    fn everybody_leaves(&mut self) {
        self.absence_done = true;
        self.note("long absence");
        if self.node.is_running() {
            self.crash();
        }
        self.now_ms += self.plan.absence_ms;
        self.start_ms = Some(self.now_ms);
        for device in &mut self.devices {
            device.next_action_ms = self.now_ms + self.dice.below(100);
        }
        if self.crash_ms.is_some() {
            self.crash_ms = Some(self.now_ms + 1 + self.dice.below(self.plan.crash_ms * 2));
        }
        if self.clock_ms.is_some() {
            self.clock_ms = Some(self.now_ms);
        }
    }

    fn crash(&mut self) {
        self.crash_ms = Some(self.now_ms + 200 + self.dice.below(self.plan.crash_ms.max(1) * 2));
        if !self.node.is_running() {
            return;
        }
        if self.node.store.queued() + self.node.store.syncing() == 0 {
            self.note("crash of an idle store");
        }
        self.node.kill(&self.plan, &mut self.dice);
        if self.node.store.syncing() == 0 {
            self.publish_ms = None;
        }
        self.gone.clear();
        self.note("crash");
        self.callers.node_died(self.now_ms);
        self.accounts.node_died();
        self.removals.node_died();
        // Some clients notice at once, some only when nothing answers any more.
        for link in self.links.values_mut() {
            link.to_server.clear();
            link.heard = false;
            let delay_ms = self.dice.below(300);
            link.to_client.push_back((self.now_ms + delay_ms, Packet::Lost));
        }
        let idle_ms = if self.dice.happens(100) { 10_000 } else { 300 };
        self.start_ms = Some(self.now_ms + 1 + self.dice.below(idle_ms));
    }

    fn devices_act(&mut self) {
        if self.quiet {
            return;
        }
        for index in 0..self.devices.len() {
            if self.devices[index].next_action_ms <= self.now_ms {
                self.act(index);
                let pause_ms = 1 + self.dice.below(self.plan.action_ms * 2);
                self.devices[index].next_action_ms = self.now_ms + pause_ms;
            }
        }
    }

    fn act(&mut self, index: usize) {
        if self.devices[index].has_ended {
            // Whoever has it starts it again.
            if self.dice.happens(50) {
                self.devices[index].dies_next = true;
                self.note("removal: comes back");
            }
            return;
        }
        let now = Millis(self.now_ms);
        let [cut, stall, away, restart] =
            [self.plan.cut, self.plan.stall, self.plan.away, self.plan.restart];
        if self.dice.happens(cut) {
            return self.cut(index);
        }
        if self.dice.happens(stall) {
            let until_ms = self.now_ms + self.dice.below(1_500);
            if let Some(link) = self.links.get_mut(&index) {
                link.stalled_until_ms = until_ms;
                self.note("stall");
            }
            return;
        }
        if self.dice.happens(away) {
            self.cut(index);
            self.devices[index].away_until_ms = self.now_ms + self.dice.below(8_000);
            self.note("away");
            return;
        }
        if self.dice.happens(restart) {
            self.devices[index].dies_next = true;
            self.note("client restarted");
            return;
        }
        let device = &mut self.devices[index];
        if device.channels.is_empty() || self.dice.happens(30) {
            let peer = self.dice.below(self.plan.users as u64) as usize;
            if peer != device.user && device.opening.len() < 3 {
                device.open(now, peer);
            }
            return;
        }
        // A few channels get most of the messages, so that they grow long.
        let choice = self.dice.below(device.channels.len() as u64);
        let cid = device.channels[self.dice.below(choice + 1) as usize];
        if self.dice.happens(100) {
            device.mark(now, cid);
        } else {
            device.send(now, cid);
        }
    }

    /// The connection breaks: the device knows at once, the node perhaps much later.
    fn cut(&mut self, index: usize) {
        let Some(mut link) = self.links.remove(&index) else { return };
        self.note("cut");
        let notice_ms = if self.dice.happens(300) { 4_000 } else { 20 };
        self.gone.push((self.now_ms + 1 + self.dice.below(notice_ms), link.session));
        let random = self.dice.next_u64();
        let now = Millis(self.now_ms);
        self.devices[index].session.handle_disconnected(now, Disconnect::Lost, random);
        // Some of what had left the device still arrives.
        link.to_server.truncate(self.dice.below(4) as usize);
        for (_, message) in &link.to_server {
            if link.greeted && link.heard {
                let node = &mut self.node;
                let decoded = link.server.decode(message, |frame| node.frame(link.session, frame));
                debug_assert!(decoded.is_ok(), "the session's own frames");
            }
        }
    }

    fn connect_or_time_out(&mut self, index: usize) {
        let now = Millis(self.now_ms);
        let device = &mut self.devices[index];
        if device.session.poll_timeout().is_some_and(|at| at <= now) {
            device.session.handle_timeout(now);
        }
        let Wish::ConnectAt(at) = device.session.wish() else { return };
        if at > now || device.away_until_ms > self.now_ms || self.links.contains_key(&index) {
            return;
        }
        if !self.node.is_up() {
            let random = self.dice.next_u64();
            device.session.handle_disconnected(now, Disconnect::Unreachable, random);
            return;
        }
        self.next_session += 1;
        let subprotocol =
            if self.dice.happens(500) { Subprotocol::Binary } else { Subprotocol::Json };
        self.links.insert(
            index,
            Link {
                session: SessionId(self.next_session),
                server: ServerCodec::new(subprotocol, FRAME_BYTES_MAX),
                client: ClientCodec::new(subprotocol, FRAME_BYTES_MAX),
                to_server: VecDeque::new(),
                to_client: VecDeque::new(),
                stalled_until_ms: 0,
                greeted: false,
                heard: true,
                pushed: BTreeMap::new(),
            },
        );
        device.session.handle_connected(now);
    }

    /// Takes what a session wants, in the order of its contract.
    fn pump(&mut self, index: usize) -> Result<(), String> {
        let device = &mut self.devices[index];
        while let Some(event) = device.session.poll_event() {
            if matches!(event, chatring_client::session::Event::Stored { .. }) {
                self.acks += 1;
            }
            let opened = device.event(event)?;
            if let Some(uid) = device.uid {
                self.uids.insert(device.user, uid);
            }
            self.opened.extend(opened.map(|(cid, peer)| (cid, device.user, peer)));
        }
        self.opened.retain(|(cid, user, peer)| {
            let (Some(one), Some(two)) = (self.uids.get(user), self.uids.get(peer)) else {
                return true;
            };
            self.channels.insert(*cid, [*one.min(two), *one.max(two)]);
            false
        });
        if std::mem::take(&mut device.dies_next) {
            device.restart();
            device.away_until_ms = self.now_ms + self.dice.below(500);
            if let Some(link) = self.links.remove(&index) {
                self.gone.push((self.now_ms + 1 + self.dice.below(100), link.session));
            }
            return Ok(());
        }
        let writes = device.session.poll_writes();
        device.image.apply(&writes);
        let mut out = Outgoing::new();
        while let Some(frame) = device.session.poll_transmit() {
            device.saying(&frame);
            let Some(link) = self.links.get_mut(&index) else { continue };
            let encoded = link.client.encode(&frame, &mut out);
            encoded.map_err(|error| format!("{} cannot say {frame:?}: {error}", device.name))?;
        }
        let close = device.session.poll_close();
        if let Some(link) = self.links.get_mut(&index) {
            let last_ms = link.to_server.back().map_or(0, |(at, _)| *at);
            for message in out.messages() {
                let at = last_ms.max(self.now_ms + 1 + self.dice.below(4));
                link.to_server.push_back((at, Bytes::copy_from_slice(message)));
            }
        }
        if close.is_some() {
            self.cut(index);
        }
        Ok(())
    }

    fn deliver_to_server(&mut self) -> Result<(), String> {
        for link in self.links.values_mut() {
            while link.to_server.front().is_some_and(|(at, _)| *at <= self.now_ms) {
                let Some((_, message)) = link.to_server.pop_front() else { break };
                if !link.heard {
                    continue;
                }
                let mut frames = Vec::new();
                let decoded = link.server.decode(&message, |frame| frames.push(frame));
                decoded.map_err(|error| format!("the node cannot read a message: {error}"))?;
                for frame in frames {
                    match frame {
                        ClientFrame::Hello(hello) if !link.greeted => {
                            link.greeted = true;
                            self.node.hello(link.session, hello);
                        }
                        frame => self.node.frame(link.session, frame),
                    }
                }
            }
        }
        Ok(())
    }

    /// The store takes what waits into groups and makes them durable, one after the other.
    fn store_works(&mut self) {
        if self.publish_ms.is_some_and(|at| at <= self.now_ms) {
            self.node.store.publish();
            self.publish_ms = None;
        }
        if self.node.store.queued() > 0 && self.node.store.syncing() < 2 {
            self.node.store.begin_sync();
        }
        if self.node.store.syncing() > 0 && self.publish_ms.is_none() {
            let slow = if self.dice.happens(20) { 300 } else { 12 };
            self.publish_ms = Some(self.now_ms + 1 + self.dice.below(slow));
        }
    }

    fn carry_what_was_said(&mut self) -> Result<(), String> {
        let mut by_session: BTreeMap<SessionId, usize> = BTreeMap::new();
        by_session.extend(self.links.iter().map(|(index, link)| (link.session, *index)));
        let mut turns: BTreeMap<usize, Outgoing> = BTreeMap::new();
        let mut closes = Vec::new();
        while let Some((session, said)) = self.node.poll_said() {
            let Some(index) = by_session.get(&session) else {
                self.callers.said(self.now_ms, session, said);
                continue;
            };
            let Some(link) = self.links.get_mut(index) else { continue };
            match said {
                Said::Frame(frame) => {
                    let out = turns.entry(*index).or_default();
                    let encoded = link.server.encode(&frame, out);
                    encoded.map_err(|error| format!("the node cannot say {frame:?}: {error}"))?;
                }
                Said::Close(code) => closes.push((*index, code)),
            }
        }
        for (index, out) in turns {
            let delay_ms = 1 + self.dice.below(4);
            let Some(link) = self.links.get_mut(&index) else { continue };
            let last_ms = link.to_client.back().map_or(0, |(at, _)| *at);
            for message in out.messages() {
                let at = last_ms.max(self.now_ms + delay_ms);
                link.to_client.push_back((at, Packet::Message(Bytes::copy_from_slice(message))));
            }
        }
        for (index, code) in closes {
            let Some(link) = self.links.get_mut(&index) else { continue };
            let last_ms = link.to_client.back().map_or(self.now_ms, |(at, _)| *at);
            link.to_client.push_back((last_ms, Packet::Closed(code.number())));
        }
        Ok(())
    }

    fn deliver_to_pollers(&mut self) -> Result<(), String> {
        let (now_ms, plan, channels) = (self.now_ms, &self.plan, &self.channels);
        self.callers.hear(now_ms, self.quiet, plan, &mut self.node, channels)?;
        for (call, answer) in self.callers.to_accounts.drain(..) {
            if !Removals::made(call) {
                self.accounts.answered(now_ms, call, &answer, &self.node);
                continue;
            }
            let greeted = |device| self.links.get(&device).filter(|link| link.greeted);
            let session = |device| greeted(device).map(|link| link.session);
            let (devices, node) = (&self.devices, &mut self.node);
            self.removals.answered(now_ms, call, &answer, devices, session, node);
        }
        self.opened.append(&mut self.callers.opened);
        Ok(())
    }

    fn deliver_to_clients(&mut self) -> Result<(), String> {
        for index in 0..self.devices.len() {
            while let Some(packet) = self.next_packet(index) {
                match packet {
                    Packet::Message(message) => self.message_to_client(index, &message)?,
                    Packet::Closed(code) => self.link_ends(index, Disconnect::Closed(code)),
                    Packet::Lost => self.link_ends(index, Disconnect::Lost),
                }
                self.pump(index)?;
            }
        }
        Ok(())
    }

    fn next_packet(&mut self, index: usize) -> Option<Packet> {
        let link = self.links.get_mut(&index)?;
        let (at_ms, _) = link.to_client.front()?;
        if (*at_ms).max(link.stalled_until_ms) > self.now_ms {
            return None;
        }
        link.to_client.pop_front().map(|(_, packet)| packet)
    }

    fn message_to_client(&mut self, index: usize, message: &Bytes) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&index) else { return Ok(()) };
        let mut frames = Vec::new();
        let decoded = link.client.decode(message, |frame| frames.push(frame));
        decoded.map_err(|error| format!("a device cannot read a message: {error}"))?;
        for frame in frames {
            self.look_at(index, &frame)?;
            let device = &mut self.devices[index];
            device.session.handle_frame(Millis(self.now_ms), frame);
        }
        Ok(())
    }

    /// Checks what the node says as it arrives.
    fn look_at(&mut self, index: usize, frame: &ServerFrame) -> Result<(), String> {
        let device = &mut self.devices[index];
        device.told(frame);
        match frame {
            ServerFrame::Welcome(_) => {
                let session = self.links.get(&index).map_or(SessionId(0), |link| link.session);
                self.removals.lets_in(index, &device.name, session)?;
            }
            ServerFrame::Syncing { cache: CacheAction::Replace, .. } => {
                device.since = Position::START;
            }
            ServerFrame::Text { cid, seq, .. } => self.push_ascends(index, *cid, *seq)?,
            ServerFrame::Entry { cid, row } => self.push_ascends(index, *cid, row.seq)?,
            ServerFrame::Page(page) => {
                check::gap_is_marked(&self.node.store, page, device.since)?;
            }
            ServerFrame::Synced { cursor, .. } => {
                let cursor = Cursor::decode(cursor.clone())
                    .ok_or_else(|| format!("{} was given no cursor", device.name))?;
                device.since = cursor.position;
                if let Some(uid) = device.uid {
                    let (store, channels) = (&self.node.store, &self.channels);
                    check::position_is_covered(store, channels, uid, &device.known, &cursor)?;
                }
            }
            ServerFrame::Behind => self.note("behind"),
            ServerFrame::PageEnd { .. } => self.note("page end"),
            ServerFrame::Unknown { .. } => self.note("unknown"),
            ServerFrame::Refused { error, .. } => {
                let name = error.code.map_or("?", |code| code.name());
                self.note(&format!("refused: {name}"));
            }
            ServerFrame::Continue { .. } => self.note("continue"),
            _ => {}
        }
        Ok(())
    }

    fn push_ascends(&mut self, index: usize, cid: Cid, seq: Seq) -> Result<(), String> {
        let Some(link) = self.links.get_mut(&index) else { return Ok(()) };
        let before = link.pushed.insert(cid, seq).unwrap_or_default();
        if before >= seq {
            let name = &self.devices[index].name;
            return Err(format!("{name} was pushed {seq:?} of {cid:?} after {before:?}"));
        }
        Ok(())
    }

    fn link_ends(&mut self, index: usize, how: Disconnect) {
        if let Some(link) = self.links.remove(&index) {
            self.gone.push((self.now_ms + 1, link.session));
            let random = self.dice.next_u64();
            let now = Millis(self.now_ms);
            self.devices[index].session.handle_disconnected(now, how, random);
        }
    }

    /// No more faults and actions: whoever was away comes back.
    fn calm_down(&mut self) {
        self.quiet = true;
        self.node.faulty.set_rates(FaultRates::none());
        if !self.node.is_running() && self.start_ms.is_none() {
            self.start_ms = Some(self.now_ms);
        }
        for device in &mut self.devices {
            device.away_until_ms = device.away_until_ms.min(self.now_ms + 1_000);
        }
        for link in self.links.values_mut() {
            link.stalled_until_ms = 0;
        }
    }

    fn is_settled(&self) -> bool {
        self.node.is_up()
            && self.callers.are_settled()
            && self.accounts.are_settled()
            && self.removals.are_settled()
            && self.devices.iter().all(|device| {
                if device.is_removed {
                    return device.has_ended;
                }
                device.session.is_synced()
                    && device.session.outbox_len() == 0
                    && device.sends.iter().all(|send| send.outcome != Outcome::Open)
            })
    }

    fn unsettled(&self) -> String {
        let of = |device: &Device| {
            let open = device.sends.iter().filter(|send| send.outcome == Outcome::Open).count();
            let (synced, outbox) = (device.session.is_synced(), device.session.outbox_len());
            let wish = device.session.wish();
            format!("{}: synced {synced}, outbox {outbox}, open {open}, {wish:?}", device.name)
        };
        let devices: Vec<_> = self.devices.iter().map(of).collect();
        let (up, pollers) = (self.node.is_up(), self.callers.unsettled());
        format!("node up {up}; {}; pollers {pollers:?}", devices.join("; "))
    }

    fn report(&self) -> Report {
        let counts = self.node.faulty.counts();
        let faults = FaultKind::ALL
            .iter()
            .map(|kind| (format!("{kind:?}"), counts.of(*kind)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let mut met = self.met.clone();
        met.extend(self.accounts.met.iter().map(|(what, count)| ((*what).to_owned(), *count)));
        met.extend(self.removals.met.iter().map(|(what, count)| ((*what).to_owned(), *count)));
        met.extend(self.callers.met.iter().map(|(what, count)| ((*what).to_owned(), *count)));
        let acks = self.acks + self.callers.acks;
        Report { acks, faults, virtual_ms: self.now_ms, met }
    }
}
