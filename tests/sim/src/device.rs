//! A device: the real client session over its cache image, what it sent, and what it was given.

use std::collections::BTreeMap;

use bytes::Bytes;
use chatring_client::cache::CacheImage;
use chatring_client::session::{Config, End, Event, Keep, Millis, Session, Start, Ticket};
use chatring_core::cursor::{Cursor, Position};
use chatring_wire::frame::{MessageKind, UserRef};
use chatring_wire::{Cid, ClientFrame, Cmid, InstallationId, Seq, ServerFrame, Uid};

/// A send and what became of it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The channel.
    pub cid: Cid,
    /// The message's own id.
    pub cmid: Cmid,
    /// Its text, unique in the run.
    pub body: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not known yet.
    Open,
    /// Acknowledged with this position.
    Stored(Seq),
    /// Surely not stored.
    Refused,
}

/// A device of a user.
pub struct Device {
    /// For messages about it.
    pub name: String,
    /// Which user.
    pub user: usize,
    /// Who the server says it is.
    pub uid: Option<Uid>,
    /// The session; remade from the image at a restart.
    pub session: Session,
    /// What is durable of its cache.
    pub image: CacheImage,
    /// The next thing it does, on the virtual clock.
    pub next_action_ms: u64,
    /// Away until then.
    pub away_until_ms: u64,
    /// Whether it dies between its next events and their durability.
    pub dies_next: bool,
    /// What it sent, in the order of its calls.
    pub sends: Vec<Sent>,
    /// What it was given of each channel.
    pub log: BTreeMap<Cid, BTreeMap<Seq, Bytes>>,
    /// The newest position of each channel that it has been told of and would not forget.
    pub known: BTreeMap<Cid, Seq>,
    /// How far it said that its user has read.
    pub marks: BTreeMap<Cid, Seq>,
    /// Where the sync under way starts from.
    pub since: Position,
    /// Channels that it can send to.
    pub channels: Vec<Cid>,
    /// Users that it is opening the channel with.
    pub opening: BTreeMap<Ticket, usize>,
    /// Whether it may be given again what it has: it has lost its session, or was told to drop its
    /// cache.
    pub forgot: bool,
    /// Whether its accounts have removed it.
    pub is_removed: bool,
    /// Whether it has learned that.
    pub has_ended: bool,
    sent: u64,
    open_sends: BTreeMap<Cmid, usize>,
}

impl Device {
    /// A new installation.
    pub fn new(user: usize, number: usize) -> Device {
        let mut installation = [0; 16];
        installation[0] = user as u8 + 1;
        installation[1] = number as u8 + 1;
        let image = CacheImage::new(InstallationId(installation));
        Device {
            name: format!("user-{user}/{number}"),
            user,
            uid: None,
            session: Session::new(config(user, number), image.clone()),
            image,
            next_action_ms: 0,
            away_until_ms: 0,
            dies_next: false,
            sends: Vec::new(),
            log: BTreeMap::new(),
            known: BTreeMap::new(),
            marks: BTreeMap::new(),
            since: Position::START,
            channels: Vec::new(),
            opening: BTreeMap::new(),
            forgot: false,
            is_removed: false,
            has_ended: false,
            sent: 0,
            open_sends: BTreeMap::new(),
        }
    }

    /// The process of the client ends and starts again from its cache.
    pub fn restart(&mut self) {
        let number = usize::from(self.image.installation.0[1]) - 1;
        self.session = Session::new(config(self.user, number), self.image.clone());
        self.known = self.image.channels.iter().map(|(cid, record)| (*cid, record.head)).collect();
        self.opening.clear();
        self.forgot = true;
        self.has_ended = false;
    }

    /// Sends the next text to a channel.
    pub fn send(&mut self, now: Millis, cid: Cid) {
        let number = self.sent + 1;
        let mut cmid = [0; 16];
        cmid[..2].copy_from_slice(&self.image.installation.0[..2]);
        cmid[8..].copy_from_slice(&number.to_be_bytes());
        let cmid = Cmid(cmid);
        let body = format!("{}#{number}", self.name);
        let taken = self.session.send(now, cid, MessageKind::TEXT, Bytes::from(body.clone()), cmid);
        if taken.is_ok() {
            self.sent = number;
            self.open_sends.insert(cmid, self.sends.len());
            self.sends.push(Sent { cid, cmid, body, outcome: Outcome::Open });
        }
    }

    /// Asks for the channel with a user.
    pub fn open(&mut self, now: Millis, peer: usize) {
        let with = UserRef::Subject { issuer: String::new(), subject: format!("user-{peer}") };
        if let Ok(ticket) = self.session.open(now, with) {
            self.opening.insert(ticket, peer);
        }
    }

    /// Says that everything given so far of a channel has been read.
    pub fn mark(&mut self, now: Millis, cid: Cid) {
        let Some((seq, _)) = self.log.get(&cid).and_then(|log| log.last_key_value()) else {
            return;
        };
        let seq = *seq;
        if self.session.mark(now, cid, seq, seq).is_ok() {
            let marked = self.marks.entry(cid).or_default();
            *marked = (*marked).max(seq);
        }
    }

    /// Takes in an event; gives a channel that it has opened, with whom.
    pub fn event(&mut self, event: Event) -> Result<Option<(Cid, usize)>, String> {
        match event {
            Event::Connected { uid, .. } => self.uid = Some(uid),
            Event::Message { cid, row } => self.message(cid, row.seq, row.body)?,
            Event::Opened { ticket, cid } => {
                if !self.channels.contains(&cid) {
                    self.channels.push(cid);
                }
                return Ok(self.opening.remove(&ticket).map(|peer| (cid, peer)));
            }
            Event::AskRefused { ticket, .. } => {
                self.opening.remove(&ticket);
            }
            Event::Stored { cmid, seq, .. } => self.outcome(cmid, Outcome::Stored(seq))?,
            Event::SendRefused { cmid, .. } => self.outcome(cmid, Outcome::Refused)?,
            Event::CacheDropped => self.forgot = true,
            Event::Ended(End::Token(_)) if self.is_removed => self.has_ended = true,
            Event::Ended(end) => return Err(format!("{} ended: {end}", self.name)),
            Event::Skipped { cid, from, to } => {
                return Err(format!("{} skipped {from:?} to {to:?} of {cid:?}", self.name));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Looks at a frame that the device is about to say.
    pub fn saying(&mut self, frame: &ClientFrame) {
        let cursor = match frame {
            ClientFrame::Hello(hello) => &hello.cursor,
            ClientFrame::Sync { cursor, .. } => cursor,
            _ => return,
        };
        self.since = Cursor::decode(cursor.clone()).map_or(Position::START, |at| at.position);
    }

    /// Looks at a frame that the device was told: what it knows from now on.
    pub fn told(&mut self, frame: &ServerFrame) {
        let mut knows = |cid: Cid, seq: Seq| {
            let known = self.known.entry(cid).or_default();
            *known = (*known).max(seq);
        };
        match frame {
            ServerFrame::Text { cid, seq, .. } | ServerFrame::Sent { cid, seq, .. } => {
                knows(*cid, *seq);
            }
            ServerFrame::Entry { cid, row } => knows(*cid, row.seq),
            ServerFrame::Head(head) | ServerFrame::Opened { head, .. } => {
                knows(head.cid, head.head)
            }
            ServerFrame::Page(page) | ServerFrame::Rows { page, .. } => knows(page.cid, page.to),
            _ => {}
        }
    }

    fn message(&mut self, cid: Cid, seq: Seq, body: Bytes) -> Result<(), String> {
        let log = self.log.entry(cid).or_default();
        let newest = log.last_key_value().map_or(Seq(0), |(seq, _)| *seq);
        if seq == newest.next() {
            log.insert(seq, body);
            return Ok(());
        }
        match log.get(&seq) {
            Some(known) if *known == body && self.forgot => Ok(()),
            _ => Err(format!(
                "{} was given {seq:?} of {cid:?} after {newest:?} ({body:?})",
                self.name
            )),
        }
    }

    fn outcome(&mut self, cmid: Cmid, outcome: Outcome) -> Result<(), String> {
        let Some(index) = self.open_sends.get(&cmid) else {
            return Err(format!("{} was told of {cmid:?}, which it never sent", self.name));
        };
        let send = &mut self.sends[*index];
        // What was refused is sent again by a device that has forgotten the refusal.
        let again = send.outcome != Outcome::Open && !self.forgot;
        let known = matches!(send.outcome, Outcome::Stored(_));
        if again || (known && send.outcome != outcome) {
            return Err(format!(
                "{} was told {outcome:?} of {} after {:?}",
                self.name, send.body, send.outcome
            ));
        }
        send.outcome = outcome;
        Ok(())
    }
}

fn config(user: usize, number: usize) -> Config {
    let keep = if number == 1 { Keep::Nothing } else { Keep::Rows(30) };
    Config {
        persist: true,
        keep,
        backoff_ms_max: 2_000,
        ..Config::dense(format!("user-{user}"), Start::Oldest)
    }
}
