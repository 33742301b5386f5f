//! The node's side: takes links of API servers, and carries their calls out.

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;
use chatring_core::call::{Call, CallRequest, CallResult};
use chatring_wire::ErrorCode;
use chatring_wire::frame::{Durability, Failure};
use chatring_wire::link::format1::{self as f1, ToApi, ToNode, Welcome};
use chatring_wire::link::{
    Agreed, AlignedVec, ClusterKey, Formats, NodeHandshake, OPENING_BYTES, PROOF_BYTES, Reader,
    Writer,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::limits::{
    ACCEPT_PAUSE_MS, BUSY_RETRY_MS, DRAIN_MS_MAX, HANDSHAKE_MS_MAX, LINKS_MAX, READ_BYTES,
    SILENCE_MS_MAX, UNSENT_BYTES_HIGH, UNSENT_BYTES_MAX,
};
use super::{LinkEnd, busy, format1, nonce};
use crate::gateway::Calls;
use crate::metrics::{Metric, MetricValue};
use crate::takeover;

/// Where to listen, and for whom.
#[derive(Clone, Debug)]
pub struct AcceptorConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The cluster's key.
    pub key: ClusterKey,
    /// Calls of a link that may be under way, parked ones among them.
    pub calls_max: usize,
    /// What API servers are told.
    pub info: NodeInfo,
}

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// URL of its WebSocket, as clients reach it.
    pub ws: String,
    /// The id of the key whose tokens are the deployment's own.
    pub token_key: String,
    /// What "stored" means.
    pub durability: Durability,
}

/// A node's listener for links. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Acceptor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    addr: SocketAddr,
    listener: TcpListener,
    key: ClusterKey,
    calls_max: usize,
    welcome: Welcome,
    calls: Calls,
    links: AtomicUsize,
    in_flight: AtomicUsize,
    unsent_bytes: AtomicUsize,
    figures: Figures,
}

#[derive(Debug, Default)]
struct Figures {
    made: AtomicU64,
    refused: AtomicU64,
    calls: AtomicU64,
    calls_busy: AtomicU64,
    withdrawn: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Acceptor {
    /// Listens; [`Acceptor::serve`] takes the links.
    ///
    /// # Errors
    /// The address.
    pub fn bind(config: AcceptorConfig, calls: Calls) -> io::Result<Acceptor> {
        let AcceptorConfig { listen, key, calls_max, info } = config;
        let listener = takeover::wait_for_address(listen, || TcpListener::bind(listen))?;
        listener.set_nonblocking(true)?;
        let welcome = Welcome {
            ws: info.ws,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            token_key: info.token_key,
            durability: info.durability as u8,
            calls_max: u32::try_from(calls_max).unwrap_or(u32::MAX),
        };
        let inner = Inner {
            addr: listener.local_addr()?,
            listener,
            key,
            calls_max,
            welcome,
            calls,
            links: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            unsent_bytes: AtomicUsize::new(0),
            figures: Figures::default(),
        };
        Ok(Acceptor { inner: Arc::new(inner) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.addr
    }

    /// Takes links for ever. Once `draining` says so, parked calls and new ones are answered
    /// `draining`, and a link that is quiet then is closed.
    pub async fn serve(self, draining: watch::Receiver<bool>) {
        let listener = self.inner.listener.try_clone().and_then(tokio::net::TcpListener::from_std);
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                warn!(%error, "the link address cannot be served");
                return;
            }
        };
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Some(place) = Place::of(&self.inner) else {
                        self.inner.figures.refused.fetch_add(1, Relaxed);
                        continue;
                    };
                    let (draining, inner) = (draining.clone(), Arc::clone(&self.inner));
                    tokio::spawn(async move {
                        let end = inner.link(stream, peer, draining).await;
                        drop(place);
                        match end {
                            Ok(()) => info!(%peer, "a link has ended with the drain"),
                            Err(end) => warn!(%peer, error = %end, "a link has ended"),
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "a link was not accepted");
                    sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                }
            }
        }
    }

    /// The figures for `/metrics`.
    pub fn metrics(&self) -> Vec<Metric> {
        let Inner { links, in_flight, unsent_bytes, figures, .. } = &*self.inner;
        let gauges = [
            ("open", "links of API servers, those that shake hands among them", links),
            ("calls_in_flight", "calls of links that are under way", in_flight),
            ("unsent_bytes", "bytes that API servers have yet to take", unsent_bytes),
        ];
        let counters = [
            ("made", "handshakes of links that were good", &figures.made),
            ("refused", "links refused: the key, the format, no room", &figures.refused),
            ("calls", "calls that came over links", &figures.calls),
            ("calls_busy", "calls refused because their link had too many", &figures.calls_busy),
            ("calls_withdrawn", "calls that their link has withdrawn", &figures.withdrawn),
            ("sent_bytes", "bytes written to links", &figures.sent_bytes),
            ("received_bytes", "bytes read from links", &figures.received_bytes),
        ];
        let gauges = gauges.map(|(name, help, value)| {
            (name, help, MetricValue::Gauge(value.load(Relaxed) as u64))
        });
        let counters = counters
            .map(|(name, help, value)| (name, help, MetricValue::Counter(value.load(Relaxed))));
        let all = gauges.into_iter().chain(counters);
        all.map(|(name, help, value)| Metric::new(&format!("chatring_links_{name}"), help, value))
            .collect()
    }
}

impl Inner {
    async fn link(
        self: &Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
        draining: watch::Receiver<bool>,
    ) -> Result<(), LinkEnd> {
        let limit = Duration::from_millis(HANDSHAKE_MS_MAX);
        let made = timeout(limit, self.shake_hands(&mut stream)).await;
        let made = made.unwrap_or(Err(LinkEnd::NoHandshake));
        let Agreed { format: _, writer, reader } = made.inspect_err(|_| {
            self.figures.refused.fetch_add(1, Relaxed);
        })?;
        self.figures.made.fetch_add(1, Relaxed);
        info!(%peer, "linked to an API server");
        let mut link = Link {
            node: Arc::clone(self),
            writer,
            out: BytesMut::new(),
            out_counted: 0,
            running: JoinSet::new(),
            tickets: HashMap::new(),
            draining,
        };
        link.say(&ToApi::Welcome(self.welcome.clone()).archive())?;
        link.run(stream, reader).await
    }

    async fn shake_hands(&self, stream: &mut TcpStream) -> Result<Agreed, LinkEnd> {
        stream.set_nodelay(true)?;
        let mut opening = [0; OPENING_BYTES];
        stream.read_exact(&mut opening).await.map_err(closed)?;
        let answered = NodeHandshake::answer(&self.key, Formats::OWN, &opening, &nonce()?)?;
        stream.write_all(&answered.reply).await?;
        let handshake = answered.next?;
        let mut proof = [0; PROOF_BYTES];
        stream.read_exact(&mut proof).await.map_err(closed)?;
        Ok(handshake.finish(&proof)?)
    }
}

/// A link after its handshake. Dropped, its calls are withdrawn.
struct Link {
    node: Arc<Inner>,
    writer: Writer,
    out: BytesMut,
    /// What of it is in the figure of all links.
    out_counted: usize,
    running: JoinSet<Done>,
    tickets: HashMap<u64, AbortHandle>,
    draining: watch::Receiver<bool>,
}

/// A call that has come to its end.
struct Done {
    ticket: u64,
    result: CallResult,
}

impl Link {
    async fn run(&mut self, stream: TcpStream, mut reader: Reader) -> Result<(), LinkEnd> {
        let (mut read, mut write) = stream.into_split();
        let mut received = BytesMut::with_capacity(READ_BYTES);
        // A peer that takes what is written lives as well as one that says something.
        let mut alive = Instant::now();
        let mut drain_until = None;
        let mut draining = self.draining.clone();
        loop {
            while let Some(done) = self.running.try_join_next() {
                self.done(done)?;
            }
            self.count(self.out.len());
            if self.out.len() > UNSENT_BYTES_MAX {
                return Err(LinkEnd::Slow);
            }
            let over = drain_until.is_some_and(|until| Instant::now() >= until);
            if drain_until.is_some() && (over || self.tickets.is_empty() && self.out.is_empty()) {
                return Ok(());
            }
            // Slows the sender: what it says waits in the sockets, then at its own side.
            let reads = self.out.len() < UNSENT_BYTES_HIGH;
            received.reserve(READ_BYTES);
            tokio::select! {
                got = read.read_buf(&mut received), if reads => {
                    let got = got?;
                    if got == 0 {
                        return Err(LinkEnd::Closed);
                    }
                    self.node.figures.received_bytes.fetch_add(got as u64, Relaxed);
                    alive = Instant::now();
                    self.take(&mut reader, &mut received)?;
                }
                wrote = write.write_buf(&mut self.out), if !self.out.is_empty() => {
                    let wrote = wrote?;
                    self.node.figures.sent_bytes.fetch_add(wrote as u64, Relaxed);
                    alive = Instant::now();
                }
                Some(done) = self.running.join_next() => self.done(done)?,
                () = begins(&mut draining), if drain_until.is_none() => {
                    drain_until = Some(Instant::now() + Duration::from_millis(DRAIN_MS_MAX));
                }
                () = until(drain_until) => {}
                () = sleep_until(alive + Duration::from_millis(SILENCE_MS_MAX)) => {
                    return Err(LinkEnd::Silent);
                }
            }
        }
    }

    fn take(&mut self, reader: &mut Reader, received: &mut BytesMut) -> Result<(), LinkEnd> {
        while let Some(archive) = reader.next(received)? {
            match ToNode::read(&archive)? {
                ToNode::Call(call) => self.call(call)?,
                ToNode::Withdraw { ticket } => {
                    // It may have been answered meanwhile.
                    if let Some(call) = self.tickets.remove(&ticket) {
                        call.abort();
                        self.node.in_flight.fetch_sub(1, Relaxed);
                        self.node.figures.withdrawn.fetch_add(1, Relaxed);
                    }
                }
                ToNode::Ping => self.say(&ToApi::Pong.archive())?,
            }
        }
        Ok(())
    }

    fn call(&mut self, call: f1::Call) -> Result<(), LinkEnd> {
        let ticket = call.ticket;
        if self.tickets.contains_key(&ticket) {
            return Err(LinkEnd::Rules("two calls with one ticket"));
        }
        self.node.figures.calls.fetch_add(1, Relaxed);
        if self.tickets.len() >= self.node.calls_max {
            self.node.figures.calls_busy.fetch_add(1, Relaxed);
            return self.say(&format1::answer(ticket, Err(busy())));
        }
        if *self.draining.borrow() {
            return self.say(&format1::answer(ticket, Err(draining())));
        }
        let call = format1::call_from(call);
        let (calls, mut drain) = (self.node.calls.clone(), self.draining.clone());
        let parks = matches!(&call.request, CallRequest::Sync(sync) if sync.wait_ms > 0);
        let running = self.running.spawn(async move {
            let result = tokio::select! {
                result = make(&calls, call) => result,
                () = begins(&mut drain), if parks => Err(draining()),
            };
            Done { ticket, result }
        });
        self.tickets.insert(ticket, running);
        self.node.in_flight.fetch_add(1, Relaxed);
        Ok(())
    }

    fn done(&mut self, done: Result<Done, JoinError>) -> Result<(), LinkEnd> {
        let Done { ticket, result } = match done {
            Ok(done) => done,
            // It was withdrawn.
            Err(error) if error.is_cancelled() => return Ok(()),
            Err(_) => return Err(LinkEnd::Rules("a call has panicked")),
        };
        // Without a ticket it was withdrawn at the last moment.
        if self.tickets.remove(&ticket).is_none() {
            return Ok(());
        }
        self.node.in_flight.fetch_sub(1, Relaxed);
        self.say(&format1::answer(ticket, result))
    }

    fn count(&mut self, unsent: usize) {
        self.node.unsent_bytes.fetch_add(unsent, Relaxed);
        self.node.unsent_bytes.fetch_sub(self.out_counted, Relaxed);
        self.out_counted = unsent;
    }

    fn say(&mut self, archive: &AlignedVec) -> Result<(), LinkEnd> {
        Ok(self.writer.put(archive, &mut self.out)?)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.node.in_flight.fetch_sub(self.tickets.len(), Relaxed);
        self.count(0);
    }
}

/// The place of a link among all; given back when it is dropped.
struct Place(Arc<Inner>);

impl Place {
    fn of(inner: &Arc<Inner>) -> Option<Place> {
        let place = Place(Arc::clone(inner));
        (inner.links.fetch_add(1, Relaxed) < LINKS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.links.fetch_sub(1, Relaxed);
    }
}

async fn make(calls: &Calls, call: Call) -> CallResult {
    let Call { identity, device, request, .. } = call;
    match request {
        CallRequest::Decided(decision) => calls.decide(&identity.subject, decision).await,
        request => calls.call(identity, device, request).await,
    }
}

/// Waits until the node drains.
async fn begins(draining: &mut watch::Receiver<bool>) {
    if draining.wait_for(|draining| *draining).await.is_err() {
        // Nobody is there any more who could say so.
        pending::<()>().await;
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

fn draining() -> Failure {
    Failure::new(ErrorCode::Draining).retry_after(BUSY_RETRY_MS)
}

fn closed(error: io::Error) -> LinkEnd {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LinkEnd::Closed,
        _ => LinkEnd::Io(error),
    }
}
