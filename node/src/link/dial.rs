//! The API server's side: keeps a link to its node, and makes calls over it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use chatring_core::call::{Call, CallDevice, CallRequest, CallResult, Decision};
use chatring_core::effect::Identity;
use chatring_wire::frame::Durability;
use chatring_wire::link::format1::{ToApi, ToNode, Welcome};
use chatring_wire::link::{
    Agreed, AlignedVec, ApiHandshake, ClusterKey, Formats, LinkError, REPLY_BYTES, Reader, Writer,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::limits::{
    HANDSHAKE_MS_MAX, PING_MS, READ_BYTES, RETRY_MS_MAX, RETRY_MS_MIN, SILENCE_MS_MAX,
    UNSENT_BYTES_HIGH,
};
use super::{LinkEnd, NodeSeen, broken, busy, format1, nonce, unavailable};
use crate::metrics::{Metric, MetricValue};

/// Where the node is, and who asks.
#[derive(Clone, Debug)]
pub struct LinksConfig {
    /// `HOST:PORT` of the node's link address.
    pub node: String,
    /// The cluster's key.
    pub key: ClusterKey,
    /// The id of the key that signs this server's tokens; the node must have the same.
    pub token_key: String,
    /// Calls that may be under way, parked ones among them.
    pub calls_max: usize,
}

/// The links of an API server: one, to its one node. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Links {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: LinksConfig,
    state: Mutex<State>,
    /// Told when there is something to write.
    wake: Notify,
    figures: Figures,
}

#[derive(Debug, Default)]
struct State {
    tickets: u64,
    session: Option<Session>,
    /// What the node has said of itself last.
    seen: Option<Welcome>,
}

/// A link that is up.
#[derive(Debug)]
struct Session {
    writer: Writer,
    /// Envelopes that are not being written yet.
    out: BytesMut,
    waiting: HashMap<u64, Waiting>,
    calls_max: usize,
}

/// A call that has no answer yet.
#[derive(Debug)]
struct Waiting {
    reply: oneshot::Sender<CallResult>,
    is_send: bool,
}

#[derive(Debug, Default)]
struct Figures {
    made: AtomicU64,
    failed: AtomicU64,
    calls: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Links {
    /// No link yet: [`Links::keep`] makes it.
    pub fn new(config: LinksConfig) -> Links {
        let inner = Inner {
            config,
            state: Mutex::default(),
            wake: Notify::new(),
            figures: Figures::default(),
        };
        Links { inner: Arc::new(inner) }
    }

    /// Makes the link, and makes it again whenever it has ended. To be run by a task.
    pub async fn keep(self) {
        let mut pause_ms = RETRY_MS_MIN;
        let mut last = String::new();
        loop {
            let before = self.inner.figures.made.load(Relaxed);
            let Err(end) = self.link().await;
            let was_up = self.inner.figures.made.load(Relaxed) != before;
            self.inner.down();
            if was_up {
                pause_ms = RETRY_MS_MIN;
                last.clear();
            } else {
                self.inner.figures.failed.fetch_add(1, Relaxed);
            }
            let why = end.to_string();
            // What stays as it is is said once.
            if why != last {
                warn!(node = self.inner.config.node, error = why, "no link to the node");
                last = why;
            }
            sleep(Duration::from_millis(jittered(pause_ms))).await;
            pause_ms = (2 * pause_ms).min(RETRY_MS_MAX);
        }
    }

    /// See [`super::Shards::call`].
    pub(super) async fn call(
        &self,
        identity: Identity,
        device: CallDevice,
        request: CallRequest,
    ) -> CallResult {
        self.make(Call { identity, candidate: 0, device, request }).await
    }

    pub(super) async fn decide(&self, subject: &str, decision: Decision) -> CallResult {
        self.make(Call::decided(String::new(), subject.to_owned(), decision)).await
    }

    async fn make(&self, call: Call) -> CallResult {
        let (ticket, answer) = match self.inner.begin(call) {
            Ok(begun) => begun,
            Err(failure) => {
                self.inner.figures.refused.fetch_add(1, Relaxed);
                return Err(failure);
            }
        };
        let mut withdrawal = Withdrawal { inner: &self.inner, ticket, over: false };
        let answer = answer.await;
        withdrawal.over = true;
        answer.unwrap_or_else(|_| Err(unavailable()))
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.inner.state().session.is_some()
    }

    pub(super) fn node(&self) -> NodeSeen {
        let state = self.inner.state();
        NodeSeen {
            ws: state.seen.as_ref().map(|seen| seen.ws.clone()),
            version: state.seen.as_ref().map(|seen| seen.version.clone()),
            up: state.session.is_some(),
        }
    }

    pub(super) fn durability(&self) -> Durability {
        let number = self.inner.state().seen.as_ref().map(|seen| seen.durability);
        // Before the node was reached nobody is told that anything is stored.
        number.and_then(Durability::from_number).unwrap_or(Durability::Memory)
    }

    /// The figures for `/metrics`.
    pub fn metrics(&self) -> Vec<Metric> {
        let (up, in_flight, unsent) = {
            let state = self.inner.state();
            let session = state.session.as_ref();
            session.map_or((0, 0, 0), |session| (1, session.waiting.len(), session.out.len()))
        };
        let figures = &self.inner.figures;
        let gauges = [
            ("up", "links that are up", up),
            ("calls_in_flight", "calls over links without an answer", in_flight as u64),
            ("unsent_bytes", "bytes that wait to be written to links", unsent as u64),
        ];
        let counters = [
            ("made", "links made, the first among them", &figures.made),
            ("failed", "links that could not be made", &figures.failed),
            ("calls", "calls over links", &figures.calls),
            ("calls_refused", "calls refused for want of a link or of room", &figures.refused),
            ("calls_broken", "calls whose link has broken before the answer", &figures.broken),
            ("sent_bytes", "bytes written to links", &figures.sent_bytes),
            ("received_bytes", "bytes read from links", &figures.received_bytes),
        ];
        let gauges = gauges.map(|(name, help, value)| (name, help, MetricValue::Gauge(value)));
        let counters = counters
            .map(|(name, help, value)| (name, help, MetricValue::Counter(value.load(Relaxed))));
        let all = gauges.into_iter().chain(counters);
        all.map(|(name, help, value)| Metric::new(&format!("chatring_link_{name}"), help, value))
            .collect()
    }

    async fn link(&self) -> Result<std::convert::Infallible, LinkEnd> {
        let limit = Duration::from_millis(HANDSHAKE_MS_MAX);
        let made = timeout(limit, self.shake_hands()).await;
        let (stream, mut reader, mut received) = made.map_err(|_| LinkEnd::NoHandshake)??;
        let (mut read, mut write) = stream.into_split();
        let mut writing = BytesMut::new();
        let mut heard = Instant::now();
        let mut pinged = false;
        loop {
            self.take(&mut reader, &mut received)?;
            if writing.is_empty() {
                self.inner.swap(&mut writing);
            }
            received.reserve(READ_BYTES);
            let silence = if pinged { SILENCE_MS_MAX } else { PING_MS };
            tokio::select! {
                got = read.read_buf(&mut received) => {
                    let got = got?;
                    if got == 0 {
                        return Err(LinkEnd::Closed);
                    }
                    self.inner.figures.received_bytes.fetch_add(got as u64, Relaxed);
                    (heard, pinged) = (Instant::now(), false);
                }
                wrote = write.write_buf(&mut writing), if !writing.is_empty() => {
                    let wrote = wrote?;
                    self.inner.figures.sent_bytes.fetch_add(wrote as u64, Relaxed);
                }
                () = self.inner.wake.notified() => {}
                () = sleep_until(heard + Duration::from_millis(silence)) => {
                    if pinged {
                        return Err(LinkEnd::Silent);
                    }
                    pinged = true;
                    self.inner.say(&ToNode::Ping.archive());
                }
            }
        }
    }

    /// Connects, proves, and hears the node's welcome; the link is up then.
    async fn shake_hands(&self) -> Result<(TcpStream, Reader, BytesMut), LinkEnd> {
        let LinksConfig { node, key, token_key, calls_max } = &self.inner.config;
        let mut stream = TcpStream::connect(node.as_str()).await?;
        stream.set_nodelay(true)?;
        let handshake = ApiHandshake::new(key, Formats::OWN, &nonce()?);
        stream.write_all(handshake.opening()).await?;
        let mut reply = [0; REPLY_BYTES];
        stream.read_exact(&mut reply).await.map_err(closed)?;
        let (proof, Agreed { format: _, writer, mut reader }) = handshake.finish(&reply)?;
        stream.write_all(&proof).await?;
        let mut received = BytesMut::with_capacity(READ_BYTES);
        let archive = loop {
            match reader.next(&mut received)? {
                Some(archive) => break archive,
                None if stream.read_buf(&mut received).await? == 0 => return Err(LinkEnd::Closed),
                None => {}
            }
        };
        let ToApi::Welcome(welcome) = ToApi::read(&archive)? else {
            return Err(LinkEnd::Rules("the node did not begin with a welcome"));
        };
        if welcome.token_key != *token_key {
            let (ours, theirs) = (token_key.clone(), welcome.token_key);
            return Err(LinkEnd::TokenKey { ours, theirs });
        }
        info!(node, ws = welcome.ws, version = welcome.version, "linked to the node");
        let calls_max = usize::try_from(welcome.calls_max).unwrap_or(usize::MAX).min(*calls_max);
        self.inner.up(writer, welcome, calls_max);
        Ok((stream, reader, received))
    }

    /// Takes in what has come.
    fn take(&self, reader: &mut Reader, received: &mut BytesMut) -> Result<(), LinkEnd> {
        while let Some(archive) = reader.next(received)? {
            match ToApi::read(&archive)? {
                ToApi::Answer { ticket, outcome } => {
                    self.inner.answered(ticket, format1::result_from(outcome)?);
                }
                ToApi::Pong => {}
                ToApi::Welcome(_) => return Err(LinkEnd::Rules("a second welcome")),
            }
        }
        Ok(())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self, writer: Writer, welcome: Welcome, calls_max: usize) {
        let mut state = self.state();
        state.seen = Some(welcome);
        let (out, waiting) = (BytesMut::new(), HashMap::new());
        state.session = Some(Session { writer, out, waiting, calls_max });
        self.figures.made.fetch_add(1, Relaxed);
    }

    /// The link has ended: what waits is told so.
    fn down(&self) {
        let Some(session) = self.state().session.take() else { return };
        self.figures.broken.fetch_add(session.waiting.len() as u64, Relaxed);
        for waiting in session.waiting.into_values() {
            let _ = waiting.reply.send(broken(waiting.is_send));
        }
    }

    /// Puts a call on its way. A failure says that it was not.
    fn begin(
        &self,
        call: Call,
    ) -> Result<(u64, oneshot::Receiver<CallResult>), chatring_wire::frame::Failure> {
        let mut state = self.state();
        let ticket = state.tickets;
        let session = state.session.as_mut().ok_or_else(unavailable)?;
        if session.waiting.len() >= session.calls_max || session.out.len() >= UNSENT_BYTES_HIGH {
            return Err(busy());
        }
        let is_send = matches!(call.request, CallRequest::Send(_));
        session.say(&format1::call(ticket, call).archive()).map_err(|_| busy())?;
        let (reply, answer) = oneshot::channel();
        session.waiting.insert(ticket, Waiting { reply, is_send });
        state.tickets += 1;
        drop(state);
        self.figures.calls.fetch_add(1, Relaxed);
        self.wake.notify_one();
        Ok((ticket, answer))
    }

    /// An answer to a call that was withdrawn meanwhile is dropped.
    fn answered(&self, ticket: u64, result: CallResult) {
        let waiting = self.state().session.as_mut().and_then(|s| s.waiting.remove(&ticket));
        if let Some(waiting) = waiting {
            let _ = waiting.reply.send(result);
        }
    }

    /// What is unsent grows by this at most once for each call that was let in.
    fn withdraw(&self, ticket: u64) {
        let mut state = self.state();
        let Some(session) = state.session.as_mut() else { return };
        if session.waiting.remove(&ticket).is_some() {
            // Too short to be refused.
            let _ = session.say(&ToNode::Withdraw { ticket }.archive());
            self.wake.notify_one();
        }
    }

    fn say(&self, archive: &AlignedVec) {
        if let Some(session) = self.state().session.as_mut() {
            let _ = session.say(archive);
        }
    }

    /// Gives what is to be written next, for an empty buffer.
    fn swap(&self, writing: &mut BytesMut) {
        if let Some(session) = self.state().session.as_mut() {
            std::mem::swap(&mut session.out, writing);
        }
    }
}

impl Session {
    fn say(&mut self, archive: &[u8]) -> Result<(), LinkError> {
        self.writer.put(archive, &mut self.out)
    }
}

/// Tells the node when nobody waits any more.
struct Withdrawal<'a> {
    inner: &'a Inner,
    ticket: u64,
    over: bool,
}

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.inner.withdraw(self.ticket);
        }
    }
}

/// A node that does not know the key closes without a word.
fn closed(error: std::io::Error) -> LinkEnd {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => LinkEnd::Closed,
        _ => LinkEnd::Io(error),
    }
}

/// A pause between half of it and all of it, so that API servers do not come back all at once.
fn jittered(pause_ms: u64) -> u64 {
    let random = nonce().map_or(0, |nonce| u64::from(nonce[0]));
    pause_ms / 2 + pause_ms * random / 512
}
