//! The life of a connection: hello, heartbeats, acks, and when to come back.

use chatring_wire::CloseCode;
use chatring_wire::frame::{Failure, Welcome};

use super::config::Millis;
use super::event::{Disconnect, End, Wish};
use super::limits;

/// Where the connection stands.
#[derive(Debug)]
pub(super) enum Link {
    /// There is none; one is wanted from this time on.
    Down { at: Millis },
    /// `hello` is out.
    Hello { since: Millis },
    /// `welcome` came.
    Live(Live),
    /// The session wants it closed, or has heard that it will be.
    Closing,
    /// There will be none.
    Ended(End),
}

/// A session that the server took.
#[derive(Debug)]
pub(super) struct Live {
    pub welcome: Welcome,
    /// Pushes taken in on this connection.
    pub pushes: u64,
    /// Of these, told to the server.
    acked: u64,
    unacked_bytes: u64,
    ack_at: Option<Millis>,
    ping_at: Millis,
    silent_at: Millis,
    /// Whether the sync that `hello` started is complete.
    pub attached: bool,
}

impl Live {
    pub fn new(now: Millis, welcome: Welcome) -> Live {
        let mut live = Live {
            welcome,
            pushes: 0,
            acked: 0,
            unacked_bytes: 0,
            ack_at: None,
            ping_at: now,
            silent_at: now,
            attached: false,
        };
        live.ping_at = now.after(live.heartbeat_ms());
        live.heard(now);
        live
    }

    fn heartbeat_ms(&self) -> u64 {
        u64::from(self.welcome.heartbeat_ms.max(1))
    }

    /// A push came.
    pub fn push(&mut self, now: Millis, bytes: usize) {
        self.pushes += 1;
        self.unacked_bytes += bytes as u64;
        if self.ack_at.is_none() {
            self.ack_at = Some(now.after(limits::ACK_DELAY_MS));
        }
        if self.pushes - self.acked >= limits::ACK_PUSHES || self.unacked_bytes >= limits::ACK_BYTES
        {
            self.ack_at = Some(now);
        }
    }

    /// A `pong` came.
    pub fn heard(&mut self, now: Millis) {
        self.silent_at = now.after(self.heartbeat_ms() * 5 / 2);
    }

    /// Whether the server was silent for too long.
    pub fn is_silent(&self, now: Millis) -> bool {
        now >= self.silent_at
    }

    /// The watermark to ping with, if it is time.
    pub fn take_ping(&mut self, now: Millis) -> Option<u64> {
        if now < self.ping_at {
            return None;
        }
        self.ping_at = now.after(self.heartbeat_ms());
        self.acknowledge();
        Some(self.pushes)
    }

    /// The watermark to acknowledge, if it is time.
    pub fn take_ack(&mut self, now: Millis) -> Option<u64> {
        if self.ack_at.is_none_or(|at| at > now) {
            return None;
        }
        self.acknowledge();
        Some(self.pushes)
    }

    /// Makes the next ack due at once.
    pub fn hurry_ack(&mut self, now: Millis) {
        if self.pushes > self.acked {
            self.ack_at = Some(now);
        }
    }

    pub fn next_time(&self) -> Millis {
        let time = self.ping_at.min(self.silent_at);
        self.ack_at.map_or(time, |at| at.min(time))
    }

    fn acknowledge(&mut self) {
        self.acked = self.pushes;
        self.unacked_bytes = 0;
        self.ack_at = None;
    }
}

/// When to connect again.
#[derive(Debug, Default)]
pub(super) struct Reconnect {
    /// Attempts since the last complete sync.
    attempts: u32,
    /// What the server said before it closed.
    pub error: Option<Failure>,
    /// The span that `drain` gave: its start and width.
    pub drain: Option<(Millis, u32)>,
    /// The node that the server sent us to.
    pub moved_to: Option<String>,
}

impl Reconnect {
    /// A sync was complete: the connection is good.
    pub fn succeeded(&mut self) {
        self.attempts = 0;
    }

    /// What follows the end of a connection. `ours` says that this side wanted it closed.
    pub fn after_disconnect(
        &mut self,
        now: Millis,
        how: Disconnect,
        ours: bool,
        random: u64,
        backoff_ms_max: u64,
    ) -> Link {
        let error = self.error.take();
        let drain = self.drain.take();
        if how == Disconnect::Unreachable {
            self.moved_to = None;
        } else if let Some(url) = error.as_ref().and_then(|error| error.moved_to.clone()) {
            self.moved_to = Some(url);
        }
        let code = match how {
            _ if ours => None,
            Disconnect::Closed(code) => Some(code),
            Disconnect::Lost => error.as_ref().and_then(close_code),
            Disconnect::Unreachable => None,
        };
        if let Some(end) = code.and_then(|code| end_of(code, error.as_ref())) {
            return Link::Ended(end);
        }
        let attempts = self.attempts;
        self.attempts = self.attempts.saturating_add(1);
        if let Some((start, width)) = drain {
            let at = start.max(now).after(random % (u64::from(width) + 1));
            return Link::Down { at };
        }
        let ceiling = backoff_ms_max.max(1);
        let pause = (limits::BACKOFF_MS_MIN << attempts.min(20)).min(ceiling);
        let mut wait = pause / 2 + random % (pause / 2 + 1);
        if code == Some(CloseCode::Reconnect.number()) && attempts == 0 {
            wait = random % limits::RECONNECT_SPREAD_MS;
        }
        let asked = error.and_then(|error| error.retry_after_ms).map_or(0, u64::from);
        Link::Down { at: now.after(wait.saturating_add(asked.min(limits::RETRY_MS_MAX))) }
    }
}

impl Link {
    pub fn wish(&self) -> Wish {
        match self {
            Link::Down { at } => Wish::ConnectAt(*at),
            Link::Hello { .. } | Link::Live(_) | Link::Closing => Wish::Connected,
            Link::Ended(end) => Wish::Ended(end.clone()),
        }
    }
}

fn close_code(error: &Failure) -> Option<u16> {
    error.code.ok().map(|code| CloseCode::for_error(code).number())
}

/// Whether a close code, with the error before it, says not to come back.
fn end_of(code: u16, error: Option<&Failure>) -> Option<End> {
    let told = || error.map_or_else(|| format!("close code {code}"), describe);
    const NEVER: [CloseCode; 5] = [
        CloseCode::Never,
        CloseCode::Protocol,
        CloseCode::Unsupported,
        CloseCode::InvalidPayload,
        CloseCode::TooBig,
    ];
    if code == CloseCode::Auth.number() {
        return Some(End::Token(told()));
    }
    if code == CloseCode::Replaced.number() {
        return Some(End::Replaced);
    }
    NEVER.iter().any(|other| other.number() == code).then(|| End::Never(told()))
}

/// An error in words.
pub(super) fn describe(error: &Failure) -> String {
    let name = match error.code {
        Ok(code) => code.name().to_owned(),
        Err(number) => format!("error {number}"),
    };
    if error.text.is_empty() { name } else { format!("{name}: {}", error.text) }
}
