//! Sessions against a small server that follows the protocol, with faults from a seed.
//!
//! Goal: whatever is dropped, repeated, reordered, refused or crashed, each send is stored exactly
//! once and in its sender's order, and each session delivers the log densely. Method: random steps,
//! then a quiet time, then a comparison with the server's log.

mod cases;
mod model;

use std::collections::BTreeMap;

use bytes::Bytes;
use chatring_wire::frame::{MessageKind, UserRef};
use chatring_wire::{Cmid, InstallationId, Seq, ServerFrame, Uid};

use super::{Config, Delivery, Disconnect, Event, Keep, Millis, Session, Start, Wish};
use crate::cache::CacheImage;
use model::{CHANNEL, Mood, Server};

/// A device: its session, what its cache file would hold, and what its application saw.
struct Device {
    session: Session,
    config: Config,
    image: CacheImage,
    sent: Vec<Cmid>,
    stored: BTreeMap<Cmid, (Seq, u32)>,
    /// Positions given out, since the last crash.
    seen: Vec<(Seq, Bytes)>,
    /// Crashes so far: events may come again once after each.
    crashes: u32,
    connected: bool,
}

struct World {
    server: Server,
    devices: Vec<Device>,
    now: Millis,
    random: Random,
    faults: BTreeMap<&'static str, u32>,
}

/// Xorshift: enough for choices, and the same from run to run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

fn config(keep: Keep) -> Config {
    Config { keep, persist: true, ..Config::dense("token", Start::Oldest) }
}

impl Device {
    fn new(number: usize, config: Config) -> Device {
        let image = CacheImage::new(InstallationId([number as u8; 16]));
        Device {
            session: Session::new(config.clone(), image.clone()),
            config,
            image,
            sent: Vec::new(),
            stored: BTreeMap::new(),
            seen: Vec::new(),
            crashes: 0,
            connected: false,
        }
    }

    /// One round of the contract, without sending: events, then a durable batch.
    fn settle(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Message { row, .. } => self.seen.push((row.seq, row.body)),
                Event::Stored { cmid, seq, .. } => {
                    let entry = self.stored.entry(cmid).or_insert((seq, 0));
                    assert_eq!(entry.0, seq, "stored twice, at two positions");
                    entry.1 += 1;
                    assert!(entry.1 <= 1 + self.crashes, "stored told twice");
                }
                Event::SendRefused { error, .. } => panic!("refused: {error:?}"),
                Event::Skipped { from, to, .. } => panic!("skipped {from:?} to {to:?}"),
                Event::Ended(end) => panic!("ended: {end}"),
                _ => {}
            }
        }
        self.image.apply(&self.session.poll_writes());
    }

    fn crash(&mut self) {
        self.crashes += 1;
        self.connected = false;
        self.session = Session::new(self.config.clone(), self.image.clone());
    }
}

impl World {
    fn new(seed: u64, devices: usize) -> World {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let devices: Vec<Device> = (0..devices)
            .map(|number| {
                let keep = if random.below(2) == 0 { Keep::Nothing } else { Keep::Rows(5) };
                Device::new(number, config(keep))
            })
            .collect();
        let server = Server::new(devices.len());
        World { server, devices, now: Millis(0), random, faults: BTreeMap::new() }
    }

    fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }

    /// Sends what a device has to send, unless it dies in between.
    fn flush(&mut self, number: usize) {
        let device = &mut self.devices[number];
        device.settle();
        while let Some(frame) = device.session.poll_transmit() {
            if device.connected {
                self.server.links[number].to_server.push_back(frame);
            }
        }
        if device.session.poll_close().is_some() {
            self.drop_link(number);
        }
    }

    fn drop_link(&mut self, number: usize) {
        self.server.disconnect(number);
        let device = &mut self.devices[number];
        if std::mem::take(&mut device.connected) {
            device.session.handle_disconnected(self.now, Disconnect::Lost, self.random.next());
        }
        self.flush(number);
    }

    fn connect_if_wished(&mut self, number: usize) {
        let device = &mut self.devices[number];
        if let Wish::ConnectAt(at) = device.session.wish()
            && at <= self.now
        {
            self.server.connect(number);
            device.connected = true;
            device.session.handle_connected(self.now);
            self.flush(number);
        }
    }

    fn receive(&mut self, number: usize) {
        if let Some(frame) = self.server.links[number].to_client.pop_front() {
            self.devices[number].session.handle_frame(self.now, frame);
            self.flush(number);
        }
    }

    fn wake(&mut self, number: usize) {
        let session = &mut self.devices[number].session;
        if session.poll_timeout().is_some_and(|at| at <= self.now) {
            session.handle_timeout(self.now);
            self.flush(number);
        }
    }

    fn send(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let mut cmid = [number as u8; 16];
        cmid[8..].copy_from_slice(&(device.sent.len() as u64).to_be_bytes());
        let cmid = Cmid(cmid);
        let body = Bytes::copy_from_slice(format!("{number}/{}", device.sent.len()).as_bytes());
        let kind = MessageKind::TEXT;
        if device.session.send(self.now, CHANNEL, kind, body, cmid).is_ok() {
            device.sent.push(cmid);
            self.flush(number);
        }
    }

    fn step(&mut self) {
        let number = self.random.below(self.devices.len() as u64) as usize;
        match self.random.below(1_000) {
            0..=299 => {
                let mood = match self.random.below(20) {
                    0 => Mood::Busy,
                    1 => Mood::Unknown { stored: false },
                    2 => Mood::Unknown { stored: true },
                    _ => Mood::Fine,
                };
                if mood != Mood::Fine {
                    self.fault("mood");
                }
                self.server.step(number, mood);
            }
            300..=649 => self.receive(number),
            650..=759 => self.send(number),
            760..=859 => {
                self.now = self.now.after(self.random.below(400));
                for number in 0..self.devices.len() {
                    self.connect_if_wished(number);
                    self.wake(number);
                }
            }
            860..=899 => self.swap_ack_and_push(number),
            900..=914 if self.server.repeat(number) => self.fault("repeat"),
            915..=924 if self.server.lose(number) => self.fault("lose"),
            900..=924 => {}
            925..=930 => {
                self.fault("behind");
                self.server.fall_behind(number);
            }
            931..=942 => {
                self.fault("drop");
                self.drop_link(number);
            }
            943..=945 => {
                self.fault("server crash");
                self.server.forget();
                (0..self.devices.len()).for_each(|number| self.drop_link(number));
            }
            946..=951 => {
                self.fault("client crash");
                self.server.disconnect(number);
                self.devices[number].crash();
            }
            952..=957 => {
                self.fault("forget");
                self.server.forget();
            }
            958..=962 => self.crash_before_sending(number),
            _ => self.receive(number),
        }
    }

    /// The answer to an own send and a push change places on the way.
    fn swap_ack_and_push(&mut self, number: usize) {
        let frames = &mut self.server.links[number].to_client;
        let own = |frame: &ServerFrame| matches!(frame, ServerFrame::Sent { .. });
        let pair = |a, b| is_row(a) && is_row(b) && own(a) != own(b);
        if let Some(at) = (1..frames.len()).find(|at| pair(&frames[*at - 1], &frames[*at])) {
            frames.swap(at - 1, at);
            self.fault("swap");
        }
    }

    /// A send is durable and its frame never leaves.
    fn crash_before_sending(&mut self, number: usize) {
        self.fault("crash before sending");
        let device = &mut self.devices[number];
        let cmid = {
            let mut cmid = [number as u8; 16];
            cmid[8..].copy_from_slice(&(device.sent.len() as u64).to_be_bytes());
            Cmid(cmid)
        };
        let body = Bytes::copy_from_slice(format!("{number}/{}", device.sent.len()).as_bytes());
        if device.session.send(self.now, CHANNEL, MessageKind::TEXT, body, cmid).is_ok() {
            device.sent.push(cmid);
            device.settle();
        }
        self.server.disconnect(number);
        device.crash();
    }

    /// No more faults: everything comes to rest.
    fn calm(&mut self) {
        for _ in 0..4_000 {
            self.now = self.now.after(50);
            for number in 0..self.devices.len() {
                self.connect_if_wished(number);
                self.wake(number);
                while !self.server.links[number].to_server.is_empty()
                    || !self.server.links[number].to_client.is_empty()
                {
                    self.server.step(number, Mood::Fine);
                    self.receive(number);
                }
            }
        }
    }

    fn check(&self) {
        let mut sent: Vec<Cmid> = Vec::new();
        for device in &self.devices {
            assert_eq!(device.session.outbox_len(), 0, "sends are left");
            assert!(device.image.outbox.is_empty(), "the cache would send again");
            assert!(device.session.is_synced(), "not up to date");
            assert_eq!(device.session.delivered(CHANNEL), Some(Seq(self.server.head())));
            let log = &self.server.log;
            let own: Vec<Cmid> =
                log.iter().map(|row| row.cmid).filter(|cmid| device.sent.contains(cmid)).collect();
            assert_eq!(own, device.sent, "lost, doubled or out of order");
            assert_eq!(device.stored.len(), device.sent.len(), "a send without its event");
            for (cmid, (seq, _)) in &device.stored {
                assert_eq!(log[seq.0 as usize - 1].cmid, *cmid, "acked at a wrong position");
            }
            check_dense(&device.seen, log, device.crashes);
            for row in device.session.rows(CHANNEL) {
                let stored = &log[row.seq.0 as usize - 1];
                assert_eq!(row.body, stored.body);
                assert_eq!(row.ordinal, stored.ordinal);
            }
            sent.extend(&device.sent);
        }
        assert_eq!(sent.len(), self.server.log.len());
    }
}

fn is_row(frame: &ServerFrame) -> bool {
    matches!(frame, ServerFrame::Sent { .. } | ServerFrame::Text { .. } | ServerFrame::Entry { .. })
}

/// The log, each message after the one before; after a crash it may go back a little, never ahead.
fn check_dense(seen: &[(Seq, Bytes)], log: &[chatring_wire::frame::Row], crashes: u32) {
    let mut expected = 1;
    let mut backwards = 0;
    for (seq, body) in seen {
        assert!(seq.0 <= expected, "{seq:?} came where {expected} is next");
        backwards += u32::from(seq.0 < expected);
        assert_eq!(*body, log[seq.0 as usize - 1].body);
        expected = seq.0 + 1;
    }
    assert_eq!(expected, log.len() as u64 + 1, "not everything was delivered");
    assert!(backwards <= crashes, "delivered twice without a crash");
}

#[test]
fn every_send_is_stored_once_and_every_log_is_dense_under_faults() {
    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    let mut stats = (0, 0, 0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed, 3);
        for number in 0..world.devices.len() {
            world.devices[number].session.open(Millis(0), UserRef::Uid(Uid(0))).expect("room");
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..1_500 {
                world.step();
            }
            world.calm();
            world.check();
        }));
        assert!(outcome.is_ok(), "seed {seed} fails");
        for (name, count) in &world.faults {
            *faults.entry(name).or_default() += count;
        }
        for device in &world.devices {
            let counted = device.session.stats();
            stats.0 += counted.gaps;
            stats.1 += counted.resends;
            stats.2 += counted.duplicates;
            stats.3 += counted.count_mismatches;
        }
    }
    let wanted =
        ["mood", "behind", "drop", "server crash", "client crash", "swap", "repeat", "lose"];
    for name in wanted {
        assert!(faults.get(name).is_some_and(|count| *count > 100), "{name} was hardly met");
    }
    assert!(stats.0 > 100 && stats.1 > 100 && stats.2 > 100 && stats.3 > 10, "{stats:?}");
}

#[test]
fn a_screen_gets_the_newest_messages_and_is_told_what_was_left_out() {
    let mut world = World::new(1, 2);
    world.devices[1] =
        Device::new(1, Config { delivery: Delivery::Newest, ..config(Keep::Rows(9)) });
    world.connect_if_wished(0);
    world.devices[0].session.open(world.now, UserRef::Uid(Uid(1))).expect("room");
    world.flush(0);
    world.run_quietly();
    (0..11).for_each(|_| world.send(0));
    world.run_quietly();
    world.connect_if_wished(1);
    world.run_quietly();
    let seen: Vec<u64> = world.devices[1].seen.iter().map(|(seq, _)| seq.0).collect();
    assert_eq!(seen, [9, 10, 11]);
    world.send(0);
    world.run_quietly();
    assert_eq!(world.devices[1].seen.last().map(|(seq, _)| seq.0), Some(12));
    world.drop_link(1);
    (0..8).for_each(|_| world.send(0));
    world.run_quietly();
    world.now = world.now.after(1_000);
    let device = &mut world.devices[1];
    device.connected = true;
    device.session.handle_connected(world.now);
    world.server.connect(1);
    let mut skipped = Vec::new();
    for _ in 0..20 {
        let device = &mut world.devices[1];
        while let Some(frame) = device.session.poll_transmit() {
            world.server.links[1].to_server.push_back(frame);
        }
        world.server.step(1, Mood::Fine);
        while let Some(frame) = world.server.links[1].to_client.pop_front() {
            world.devices[1].session.handle_frame(world.now, frame);
        }
        while let Some(event) = world.devices[1].session.poll_event() {
            if let Event::Skipped { from, to, .. } = event {
                skipped.push((from.0, to.0));
            }
        }
    }
    assert_eq!(skipped, [(13, 17)]);
    let kept: Vec<u64> = world.devices[1].session.rows(CHANNEL).map(|row| row.seq.0).collect();
    assert_eq!(kept, [18, 19, 20], "what lies below a gap is not kept");
}

impl World {
    /// Lets frames flow until none is left, without time passing.
    fn run_quietly(&mut self) {
        for _ in 0..200 {
            for number in 0..self.devices.len() {
                self.server.step(number, Mood::Fine);
                self.receive(number);
            }
        }
    }
}
