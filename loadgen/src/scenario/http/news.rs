//! What users receive: one cursor, handed from one way of receiving to the next.
//!
//! What is given again is dropped by its seq where the cursor allows it. A cursor of an HTTP answer
//! stands for all that was given up to it; that of a WebSocket for what was given before the pushes
//! of its connection. What is given twice beyond that goes into the books, which count it a fault.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chatring_bare::ring::{Key, Outs};
use chatring_wire::frame::{ClientFrame, HeadRows, Hello, RequestId, ServerFrame};
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::{Cid, InstallationId, MemberNumber, Seq, Subprotocol};

use super::super::direct::talk::State;
use super::super::words;
use super::asks::{failure, later};
use super::net::{Link, Net, Plan, Side, Want, line_of};
use crate::cli::Receive;
use crate::http::answer::Heard;
use crate::http::bodies;
use crate::http::events::Events;
use crate::http::requests::get;
use crate::stamp::Mixer;

/// How long a long poll waits.
const WAIT_MS: u32 = 30_000;
/// How long a line may be silent beyond that.
const SILENT_MAX: Duration = Duration::from_secs(20);
/// Pushes after which they are acknowledged at once.
const ACK_PUSHES: u64 = 64;
/// After which time they are otherwise, and a ping keeps the connection.
const ACK_EVERY: Duration = Duration::from_secs(1);
/// A user who does not change stays for good.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// What a user receives.
pub struct Receiver {
    way: Receive,
    token: String,
    installation: InstallationId,
    /// In base64url.
    cursor: String,
    cid: Option<Cid>,
    /// All messages up to here went into the books.
    seen: Seq,
    /// The newest one that came.
    newest: Seq,
    /// The cursor lets none of those up to here come again.
    covered: Seq,
    /// Messages up to here are to be read as history; later ones are held meanwhile.
    catch_up: Option<Seq>,
    held: BTreeMap<Seq, (MemberNumber, Vec<u8>, u64)>,
    change_at: Option<Instant>,
    /// Whether an answer or a stream is under way.
    is_asked: bool,
    /// When to poll again.
    poll_at: Option<Instant>,
    heard_at: Option<Instant>,
    stream: Events,
    ws: Counts,
}

/// Of a WebSocket.
#[derive(Default)]
struct Counts {
    pushes: u64,
    acked: u64,
    /// When the next acknowledgement is due.
    ack_at: Option<Instant>,
    /// The newest message that came by a page.
    paged: Seq,
    requests: u32,
    is_behind: bool,
    says: Vec<ClientFrame>,
}

/// By what a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// An answer of the API: it is the next one.
    Answer,
    /// A WebSocket, which may leave some out.
    Frame,
}

impl Receiver {
    /// Has nothing yet.
    pub fn new(
        plan: Plan,
        token: String,
        installation: InstallationId,
        random: &mut Mixer,
    ) -> Receiver {
        let way = match plan.receive {
            Receive::Mix => any_way(random),
            way => way,
        };
        Receiver {
            way,
            token,
            installation,
            cursor: String::new(),
            cid: None,
            seen: Seq(0),
            newest: Seq(0),
            covered: Seq(0),
            catch_up: None,
            held: BTreeMap::new(),
            change_at: None,
            is_asked: false,
            poll_at: None,
            heard_at: None,
            stream: Events::default(),
            ws: Counts::default(),
        }
    }

    /// The first sync gave this cursor.
    pub fn begin(&mut self, cursor: &str) {
        cursor.clone_into(&mut self.cursor);
    }

    /// Where to go on, in base64url; empty before the first sync.
    pub fn cursor(&self) -> &str {
        &self.cursor
    }

    /// The pair's channel is open: messages up to its head are none of this run.
    pub fn opened(&mut self, cid: Cid, head: Seq) {
        self.cid = Some(cid);
        (self.seen, self.newest) = (head, head);
    }

    /// The newest message that was taken in.
    pub fn seen(&self) -> Seq {
        self.seen
    }

    /// Above which message history is to be read, if it is.
    pub fn missing_above(&self) -> Option<Seq> {
        self.catch_up.map(|_| self.seen)
    }

    /// The connection is no more.
    pub fn broke(&mut self) {
        self.is_asked = false;
        self.heard_at = None;
        self.stream = Events::default();
        self.ws = Counts::default();
    }

    fn want(&self) -> Want {
        match self.way {
            Receive::Ws => Want::Ws(Subprotocol::Binary),
            Receive::WsJson => Want::Ws(Subprotocol::Json),
            _ => Want::Http,
        }
    }

    fn request(&self, head: &str) -> String {
        let cursor = &self.cursor;
        match self.way {
            Receive::Sse => get("/v1/events", &format!("{head}last-event-id: {cursor}\r\n")),
            Receive::Longpoll => get(&format!("/v1/sync?wait_ms={WAIT_MS}&cursor={cursor}"), head),
            _ => get(&format!("/v1/sync?cursor={cursor}"), head),
        }
    }

    fn hello(&self) -> ClientFrame {
        let cursor = URL_SAFE_NO_PAD.decode(&self.cursor).unwrap_or_default();
        ClientFrame::Hello(Hello {
            token: self.token.clone(),
            installation: self.installation,
            cursor: cursor.into(),
            capabilities: 0,
            frame_bytes_max: FRAME_BYTES_MAX as u32,
        })
    }

    /// Up to `to` messages are missing.
    fn miss(&mut self, to: Seq) {
        if to > self.seen {
            self.catch_up = self.catch_up.max(Some(to));
            self.newest = self.newest.max(to);
        }
    }
}

fn any_way(random: &mut Mixer) -> Receive {
    const WAYS: [Receive; 5] =
        [Receive::Poll, Receive::Longpoll, Receive::Sse, Receive::Ws, Receive::WsJson];
    WAYS[(random.draw() % WAYS.len() as u64) as usize]
}

/// The line of news has its turn.
impl Net {
    /// A user's turn to look for news.
    pub fn listen(&mut self, state: &mut State, outs: &mut Outs, place: usize, now: Instant) {
        let line = line_of(place, Side::News);
        if self.receivers[place].cid.is_none() {
            return;
        }
        let change_at = self.change(outs, place, now);
        self.alarm(line, change_at);
        let receiver = &mut self.receivers[place];
        let key = match self.lines[line].link {
            Link::Connecting => return,
            Link::Down => {
                let want = receiver.want();
                return match receiver.poll_at.filter(|at| *at > now) {
                    Some(at) if receiver.way == Receive::Poll => self.alarm(line, at),
                    _ => self.connect(line, want, now),
                };
            }
            Link::Up(key) => key,
        };
        let heard_at = *receiver.heard_at.get_or_insert(now);
        let silent = heard_at + Duration::from_millis(WAIT_MS.into()) + SILENT_MAX;
        if receiver.is_asked && silent <= now {
            self.hang_up(line, outs);
            return self.down(line, "silence".to_owned(), now);
        }
        match receiver.want() {
            Want::Ws(_) => self.speak_frames(state, outs, place, key, now),
            Want::Http if receiver.is_asked => self.alarm(line, silent),
            Want::Http => self.ask_news(outs, place, key, now),
        }
    }

    /// Gives when the user changes the way next.
    fn change(&mut self, outs: &mut Outs, place: usize, now: Instant) -> Instant {
        let change_every_us = self.plan.change_every.as_micros() as u64;
        let receiver = &mut self.receivers[place];
        let (is_due, is_first) = match receiver.change_at {
            None => (true, true),
            Some(at) => (at <= now, false),
        };
        if !is_due {
            return receiver.change_at.unwrap_or(now);
        }
        let stay = match self.plan.receive {
            Receive::Mix => {
                Duration::from_micros(1 + self.random.draw() % (2 * change_every_us).max(1))
            }
            _ => NEVER,
        };
        receiver.change_at = Some(now + stay);
        if !is_first && self.plan.receive == Receive::Mix {
            receiver.way = any_way(&mut self.random);
            receiver.poll_at = None;
            self.hang_up(line_of(place, Side::News), outs);
        }
        now + stay
    }

    fn ask_news(&mut self, outs: &mut Outs, place: usize, key: Key, now: Instant) {
        let line = line_of(place, Side::News);
        let receiver = &self.receivers[place];
        let poll_at = receiver.poll_at.filter(|_| receiver.way == Receive::Poll);
        let not_before = self.lines[line].not_before.max(poll_at);
        if let Some(at) = not_before.filter(|at| *at > now) {
            return self.alarm(line, at);
        }
        // What is missing is read before there is more of it.
        if receiver.catch_up.is_some() {
            return;
        }
        let Some(out) = outs.out(key) else { return };
        let request = receiver.request(&self.askers[place].head);
        self.lines[line].say(&request, out);
        self.tally.sent_bytes += request.len() as u64;
        let receiver = &mut self.receivers[place];
        receiver.is_asked = true;
        receiver.heard_at = Some(now);
        receiver.poll_at = Some(now + self.plan.poll_every);
        self.alarm(line, now + Duration::from_millis(WAIT_MS.into()) + SILENT_MAX);
    }

    fn speak_frames(
        &mut self,
        state: &mut State,
        outs: &mut Outs,
        place: usize,
        key: Key,
        now: Instant,
    ) {
        let line = line_of(place, Side::News);
        let receiver = &mut self.receivers[place];
        if !std::mem::replace(&mut receiver.is_asked, true) {
            let hello = receiver.hello();
            receiver.ws.says.push(hello);
            receiver.ws.ack_at = Some(now + ACK_EVERY);
        }
        let ws = &mut receiver.ws;
        let is_time = ws.ack_at.is_some_and(|at| at <= now);
        if is_time {
            ws.says.push(ClientFrame::Ping { pushes: ws.pushes });
        } else if ws.pushes - ws.acked >= ACK_PUSHES || ws.is_behind {
            ws.says.push(ClientFrame::Ack { pushes: ws.pushes });
        }
        if is_time || ws.pushes - ws.acked >= ACK_PUSHES || ws.is_behind {
            ws.acked = ws.pushes;
            ws.ack_at = Some(now + ACK_EVERY);
        }
        if std::mem::take(&mut ws.is_behind) {
            ws.requests += 1;
            let cursor = URL_SAFE_NO_PAD.decode(&receiver.cursor).unwrap_or_default().into();
            ws.says.push(ClientFrame::Sync { request: RequestId(ws.requests), cursor });
        }
        let (says, ack_at) = (std::mem::take(&mut receiver.ws.says), receiver.ws.ack_at);
        let Some(connection) = &mut self.lines[line].ws else { return };
        for frame in &says {
            if let Err(error) = connection.send(frame) {
                state.error(format!("a frame cannot be said: {error}"));
            }
        }
        if connection.has_output()
            && let Some(out) = outs.out(key)
        {
            connection.flush(out, &mut self.tally);
        }
        if let Some(at) = ack_at {
            self.alarm(line, at);
        }
    }
}

/// What comes.
impl Net {
    /// Bytes on the line of news.
    pub fn news(
        &mut self,
        state: &mut State,
        place: usize,
        bytes: &[u8],
        at: Instant,
    ) -> Result<(), String> {
        let line = line_of(place, Side::News);
        self.receivers[place].heard_at = Some(at);
        if let Some(mut connection) = self.lines[line].ws.take() {
            // Counted by the connection itself.
            self.tally.received_bytes -= bytes.len() as u64;
            let mut frames = Vec::new();
            let received = connection.receive(bytes, &mut self.tally, |frame| frames.push(frame));
            self.lines[line].ws = Some(connection);
            frames.into_iter().for_each(|frame| self.frame(state, place, frame, at));
            return received.map_err(|over| over.to_string());
        }
        let mut answers = std::mem::take(&mut self.lines[line].answers);
        let mut outcome = Ok(());
        let fed = answers.feed(bytes, |heard| {
            if outcome.is_ok() {
                outcome = self.http_news(state, place, heard, at);
            }
        });
        self.lines[line].answers = answers;
        fed.map_err(|error| error.to_string()).and(outcome)
    }

    fn http_news(
        &mut self,
        state: &mut State,
        place: usize,
        heard: Heard<'_>,
        at: Instant,
    ) -> Result<(), String> {
        let line = line_of(place, Side::News);
        match heard {
            Heard::Answer { status: 200, body, bytes } => {
                self.receivers[place].is_asked = false;
                self.is_well(line);
                self.sync(state, place, body, bytes, at)
            }
            Heard::Answer { status, body, .. } => {
                self.receivers[place].is_asked = false;
                if status != 429 && status != 503 {
                    let user = state.users[place].number;
                    let reason = words(&failure(status, body));
                    state.fail(format!("user {user} may not receive: {reason}"));
                }
                let pause = later(body);
                self.pause(line, pause, at);
                Ok(())
            }
            Heard::Begun { .. } => {
                self.is_well(line);
                Ok(())
            }
            Heard::Piece(piece) => {
                let mut stream = std::mem::take(&mut self.receivers[place].stream);
                let mut outcome = Ok(());
                let fed = stream.feed(piece, |data, bytes| {
                    if outcome.is_ok() {
                        outcome = self.sync(state, place, data, bytes, at);
                    }
                });
                self.receivers[place].stream = stream;
                fed.map_err(|error| error.to_string()).and(outcome)
            }
            Heard::End => Err("the stream ended".to_owned()),
        }
    }

    /// An answer to a sync, or an event of a stream.
    fn sync(
        &mut self,
        state: &mut State,
        place: usize,
        body: &[u8],
        bytes: usize,
        at: Instant,
    ) -> Result<(), String> {
        let sync: bodies::Sync<'_> = match serde_json::from_slice(body) {
            Ok(sync) => sync,
            Err(error) => {
                state.error(format!("a damaged answer: {error}"));
                return Err(error.to_string());
            }
        };
        if sync.replace {
            let user = state.users[place].number;
            state.error(format!("the cursor of user {user} was of no use"));
        }
        let at_ns = at.saturating_duration_since(state.origin).as_nanos() as u64;
        let messages = sync.events.iter().filter(|event| event.r#type == "message").count();
        let own = self.receivers[place].cid.map(|cid| cid.to_string()).unwrap_or_default();
        for event in &sync.events {
            if event.channel != Some(own.as_str()) {
                continue;
            }
            match (event.r#type, event.seq, &event.text, event.below) {
                ("message", Some(seq), Some(text), _) => {
                    self.tally.answered(bytes as f64 / messages as f64, text.len());
                    let sender = MemberNumber(event.sender.unwrap_or(u32::MAX));
                    let message = (Seq(seq), sender, text.as_bytes());
                    self.take(state, place, message, By::Answer, at_ns);
                }
                ("gap", _, _, Some(below)) => self.receivers[place].miss(Seq(below)),
                _ => {}
            }
        }
        let receiver = &mut self.receivers[place];
        sync.cursor.clone_into(&mut receiver.cursor);
        receiver.covered = receiver.newest;
        if sync.more {
            receiver.poll_at = None;
        }
        if receiver.catch_up.is_some() {
            self.wake(place);
        }
        Ok(())
    }

    fn frame(&mut self, state: &mut State, place: usize, frame: ServerFrame, at: Instant) {
        let at_ns = at.saturating_duration_since(state.origin).as_nanos() as u64;
        let line = line_of(place, Side::News);
        let receiver = &mut self.receivers[place];
        let own = receiver.cid;
        receiver.ws.pushes += u64::from(frame.is_push());
        match frame {
            ServerFrame::Welcome(_) => self.is_well(line),
            ServerFrame::Head(head) if Some(head.cid) == own && head.rows == HeadRows::Stale => {
                receiver.miss(head.head);
            }
            ServerFrame::Page(page) if Some(page.cid) == own => {
                if page.gap {
                    receiver.miss(Seq(page.from.0.saturating_sub(1)));
                }
                receiver.ws.paged = receiver.ws.paged.max(page.to);
                for row in &page.rows {
                    let message = (row.seq, row.sender, &row.body[..]);
                    self.take(state, place, message, By::Frame, at_ns);
                }
            }
            ServerFrame::PageEnd { request } => {
                receiver.ws.says.push(ClientFrame::More { request });
            }
            ServerFrame::Synced { cursor, .. } => {
                receiver.cursor = URL_SAFE_NO_PAD.encode(&cursor);
                receiver.covered = receiver.covered.max(receiver.ws.paged);
            }
            ServerFrame::Text { cid, seq, sender, body, .. } if Some(cid) == own => {
                self.take(state, place, (seq, sender, &body), By::Frame, at_ns);
            }
            ServerFrame::Entry { cid, row } if Some(cid) == own => {
                let message = (row.seq, row.sender, &row.body[..]);
                self.take(state, place, message, By::Frame, at_ns);
            }
            ServerFrame::Behind => receiver.ws.is_behind = true,
            ServerFrame::Error(failure) => self.trouble = Some(words(&failure)),
            _ => {}
        }
        if self.receivers[place].catch_up.is_some() {
            self.wake(place);
        }
    }

    /// A message of the pair's channel.
    fn take(
        &mut self,
        state: &mut State,
        place: usize,
        (seq, sender, body): (Seq, MemberNumber, &[u8]),
        by: By,
        at_ns: u64,
    ) {
        let receiver = &mut self.receivers[place];
        if seq <= receiver.newest {
            // Within what is held, too, a later copy is dropped.
            if seq > receiver.covered || receiver.catch_up.is_some() {
                return;
            }
            return self.enter(state, place, (seq, sender, body), at_ns);
        }
        if by == By::Frame && seq.0 > receiver.newest.0 + 1 {
            receiver.miss(Seq(seq.0 - 1));
        }
        receiver.newest = seq;
        match receiver.catch_up {
            Some(_) => {
                receiver.held.insert(seq, (sender, body.to_vec(), at_ns));
            }
            None => self.enter(state, place, (seq, sender, body), at_ns),
        }
    }

    fn enter(
        &mut self,
        state: &mut State,
        place: usize,
        (seq, sender, body): (Seq, MemberNumber, &[u8]),
        at_ns: u64,
    ) {
        let receiver = &mut self.receivers[place];
        let Some(cid) = receiver.cid else { return };
        receiver.seen = receiver.seen.max(seq);
        let completed = state.message(place, cid, (seq, sender), body, at_ns);
        self.complete(state, completed, at_ns);
    }

    /// A page of history above what was seen.
    pub fn caught_up(
        &mut self,
        state: &mut State,
        place: usize,
        history: &bodies::History<'_>,
        at: Instant,
    ) {
        let at_ns = at.saturating_duration_since(state.origin).as_nanos() as u64;
        let Some(to) = self.receivers[place].catch_up else { return };
        for message in &history.messages {
            let (seq, sender) = (Seq(message.seq), MemberNumber(message.sender));
            if seq <= to && seq > self.receivers[place].seen {
                let body = message.text.as_deref().unwrap_or_default().as_bytes();
                self.enter(state, place, (seq, sender, body), at_ns);
            }
        }
        if history.gap && self.receivers[place].seen < to && !history.messages.is_empty() {
            return;
        }
        let receiver = &mut self.receivers[place];
        receiver.catch_up = None;
        for (seq, (sender, body, at_ns)) in std::mem::take(&mut receiver.held) {
            if seq > to {
                self.enter(state, place, (seq, sender, &body), at_ns);
            }
        }
        self.queue(line_of(place, Side::News));
    }
}
