//! What users ask, one request at a time: their first sync, their channel, their sends, history.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use chatring_bare::ring::Outs;
use chatring_wire::error::ErrorCode;
use chatring_wire::frame::{Durability, Failure};
use chatring_wire::{Cid, MemberNumber, Seq};

use super::super::direct::talk::{Phase, Sent, State};
use super::super::direct::user_name;
use super::super::words;
use super::net::{Link, Net, Side, Want, line_of};
use crate::http::answer::Heard;
use crate::http::{bodies, requests};

/// How long an answer may take: longer than the node keeps a send open.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Pause after "later" without a time.
const LATER: Duration = Duration::from_millis(200);
/// Messages of one page of history.
const HISTORY_ROWS: u32 = 256;

/// A user's requests.
pub struct Asker {
    /// Lines of the head that all requests of the user have.
    pub head: String,
    /// The path of the pair's channel, once it is open.
    path: String,
    cid: Option<Cid>,
    is_synced: bool,
    /// What is asked, until it is answered for good.
    current: Option<Ask>,
    /// By when the answer must have come, if it is waited for.
    deadline: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Ask {
    /// Where to go on from.
    Sync,
    /// The pair's channel.
    Open,
    /// Messages above this one.
    History(Seq),
    /// A message.
    Send(Sent, Option<Seq>),
}

impl Asker {
    /// With nothing asked yet.
    pub fn new(token: &str) -> Asker {
        Asker {
            head: requests::head(token),
            path: String::new(),
            cid: None,
            is_synced: false,
            current: None,
            deadline: None,
        }
    }

    /// What was asked has to be asked again.
    pub fn broke(&mut self) {
        self.deadline = None;
    }

    /// A request as bytes.
    fn request(&self, ask: &Ask, with: u32, cursor: &str) -> String {
        let Asker { head, path, .. } = self;
        let get = |path: &str| requests::get(path, head);
        match ask {
            Ask::Sync if cursor.is_empty() => get("/v1/sync"),
            Ask::Sync => get(&format!("/v1/sync?cursor={cursor}")),
            Ask::Open => requests::open_channel(&user_name(with), head),
            Ask::History(after) => get(&format!("{path}?after={}&limit={HISTORY_ROWS}", after.0)),
            Ask::Send(sent, base) => {
                let text = std::str::from_utf8(&sent.body).expect("stamps are ASCII");
                let mut cmid = String::with_capacity(32);
                for byte in sent.cmid.0 {
                    write!(cmid, "{byte:02x}").expect("writing to memory does not fail");
                }
                match base {
                    None => {
                        let key = format!("idempotency-key: {cmid}\r\n");
                        requests::post(path, head, &key, &format!(r#"{{"text":"{text}"}}"#))
                    }
                    Some(Seq(base)) => {
                        let body = format!(r#"{{"text":"{text}","cmid":"{cmid}","base":{base}}}"#);
                        requests::post(path, head, "", &body)
                    }
                }
            }
        }
    }
}

impl Net {
    /// A user's turn to ask.
    pub fn ask(&mut self, state: &mut State, outs: &mut Outs, place: usize, now: Instant) {
        let line = line_of(place, Side::Asks);
        if let Some(deadline) = self.askers[place].deadline {
            state.users[place].is_held |= !state.users[place].due.is_empty();
            if deadline > now {
                return self.alarm(line, deadline);
            }
            self.hang_up(line, outs);
            return self.down(line, "no answer in time".to_owned(), now);
        }
        if self.askers[place].current.is_none() {
            self.askers[place].current = self.next_ask(state, place);
        }
        let Some(ask) = &self.askers[place].current else { return };
        let key = match self.lines[line].link {
            Link::Down => return self.connect(line, Want::Http, now),
            Link::Connecting => return,
            Link::Up(key) => key,
        };
        if let Some(at) = self.lines[line].not_before.filter(|at| *at > now) {
            return self.alarm(line, at);
        }
        let Some(out) = outs.out(key) else { return };
        let (with, cursor) = (state.users[place].number ^ 1, self.receivers[place].cursor());
        let request = self.askers[place].request(ask, with, cursor);
        self.lines[line].say(&request, out);
        self.tally.sent_bytes += request.len() as u64;
        if let Ask::Send(sent, _) = ask {
            self.tally.posted(request.len(), sent.body.len());
        }
        self.askers[place].deadline = Some(now + ANSWER_MAX);
        self.alarm(line, now + ANSWER_MAX);
    }

    fn next_ask(&mut self, state: &mut State, place: usize) -> Option<Ask> {
        let asker = &self.askers[place];
        if !asker.is_synced {
            return Some(Ask::Sync);
        }
        if asker.cid.is_none() {
            return (state.phase >= Phase::Opening).then_some(Ask::Open);
        }
        if let Some(after) = self.receivers[place].missing_above() {
            return Some(Ask::History(after));
        }
        let intended_ns = state.users[place].due.pop_front()?;
        let sent = state.begin(place, intended_ns);
        state.users[place].is_held = !state.users[place].due.is_empty();
        let base = self.plan.base.then(|| self.receivers[place].seen());
        Some(Ask::Send(sent, base))
    }

    /// Answers to what a user asked.
    pub fn answers(
        &mut self,
        state: &mut State,
        place: usize,
        bytes: &[u8],
        at: Instant,
    ) -> Result<(), String> {
        let line = line_of(place, Side::Asks);
        let mut answers = std::mem::take(&mut self.lines[line].answers);
        let mut outcome = Ok(());
        let fed = answers.feed(bytes, |heard| {
            if outcome.is_ok() {
                outcome = match heard {
                    Heard::Answer { status, body, .. } => {
                        self.answer(state, place, status, body, at)
                    }
                    _ => Err("an answer in pieces".to_owned()),
                };
            }
        });
        self.lines[line].answers = answers;
        let outcome = fed.map_err(|error| error.to_string()).and(outcome);
        // What the node says is wrong, not what the network does.
        outcome.inspect_err(|reason| state.error(format!("a damaged answer: {reason}")))
    }

    fn answer(
        &mut self,
        state: &mut State,
        place: usize,
        status: u16,
        body: &[u8],
        at: Instant,
    ) -> Result<(), String> {
        let line = line_of(place, Side::Asks);
        let Some(ask) = self.askers[place].current.take() else {
            return Err("an answer to nothing".to_owned());
        };
        self.askers[place].deadline = None;
        if status == 429 || status == 503 {
            self.askers[place].current = Some(ask);
            let pause = later(body);
            self.pause(line, pause, at);
            return Ok(());
        }
        self.is_well(line);
        if status != 200 && status != 201 {
            self.refused(state, place, ask, failure(status, body));
            return Ok(());
        }
        let wrong = |error: serde_json::Error| error.to_string();
        match ask {
            Ask::Sync => {
                let sync: bodies::Sync<'_> = serde_json::from_slice(body).map_err(wrong)?;
                self.receivers[place].begin(sync.cursor);
                if sync.more {
                    self.askers[place].current = Some(Ask::Sync);
                } else {
                    self.askers[place].is_synced = true;
                    state.synced(place);
                }
            }
            Ask::Open => {
                let channel: bodies::Channel<'_> = serde_json::from_slice(body).map_err(wrong)?;
                let cid = u64::from_str_radix(channel.id, 16).map_err(|error| error.to_string())?;
                let (cid, head) = (Cid(cid), Seq(channel.head));
                self.askers[place].cid = Some(cid);
                self.askers[place].path = format!("/v1/channels/{cid}/messages");
                self.receivers[place].opened(cid, head);
                state.opened(place, cid, MemberNumber(channel.me), head);
                self.queue(line_of(place, Side::News));
            }
            Ask::History(_) => {
                let history: bodies::History<'_> = serde_json::from_slice(body).map_err(wrong)?;
                self.caught_up(state, place, &history, at);
            }
            Ask::Send(sent, _) => {
                let stored: bodies::Sent<'_> = serde_json::from_slice(body).map_err(wrong)?;
                self.stored(state, place, &sent, &stored, at);
            }
        }
        Ok(())
    }

    fn stored(
        &mut self,
        state: &mut State,
        place: usize,
        sent: &Sent,
        stored: &bodies::Sent<'_>,
        at: Instant,
    ) {
        state.durability = state.durability.or(match stored.durability {
            "memory" => Some(Durability::Memory),
            "fsync" => Some(Durability::Fsync),
            "replicated" => Some(Durability::Replicated),
            _ => None,
        });
        let Some(cid) = self.askers[place].cid else { return };
        let at_ns = at.saturating_duration_since(state.origin).as_nanos() as u64;
        let (seq, time) = (Seq(stored.seq), stored.time);
        let completed = state.stored(place, cid, sent.cmid, seq, time, at_ns);
        self.complete(state, completed, at_ns);
    }

    /// A message that is through makes room for the next one in the closed loop.
    pub fn complete(&mut self, state: &mut State, sender: Option<usize>, at_ns: u64) {
        if let Some(sender) = sender
            && state.closed_loop
            && state.phase == Phase::Talking
        {
            state.users[sender].due.push_back(at_ns);
            self.wake(sender);
        }
    }

    fn refused(&mut self, state: &mut State, place: usize, ask: Ask, failure: Failure) {
        match ask {
            Ask::Send(sent, _) => {
                state.refused(place, sent.cmid, &failure);
            }
            ask => {
                let user = state.users[place].number;
                state.fail(format!("user {user} may not {ask:?}: {}", words(&failure)));
            }
        }
    }
}

/// When to ask again.
pub fn later(body: &[u8]) -> Duration {
    let problem = serde_json::from_slice::<bodies::Problem<'_>>(body).ok();
    let ms = problem.and_then(|problem| problem.retry_after_ms);
    ms.map_or(LATER, |ms| Duration::from_millis(ms.into()))
}

/// What a problem document says.
pub fn failure(status: u16, body: &[u8]) -> Failure {
    match serde_json::from_slice::<bodies::Problem<'_>>(body) {
        Ok(problem) => {
            let code = ErrorCode::from_number(problem.code).ok_or(problem.code);
            Failure { code, ..Failure::new(ErrorCode::Internal).text(problem.detail) }
        }
        Err(_) => Failure::new(ErrorCode::Internal).text(format!("status {status}")),
    }
}
