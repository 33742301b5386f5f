//! A small node in memory that breaks a promise on purpose, once, or is slow in a known way.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use chatring_client::token::TokenKey;
use chatring_wire::codec::SUBPROTOCOL_BINARY;
use chatring_wire::frame::{
    CacheAction, ChannelKind, Durability, Head, HeadRows, Page, RequestId, Row, Send, UserRef,
    Welcome,
};
use chatring_wire::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX};
use chatring_wire::ws::{self, MessageKind, Role, ServerHandshake, ServerProgress};
use chatring_wire::{
    Cid, ClientFrame, DeviceId, HistoryId, MemberNumber, Ordinal, Outgoing, Seq, ServerCodec,
    ServerFrame, Subprotocol, Uid,
};

/// Which message the fault meets, counted over all channels.
const FAULT_AT: u64 = 100;
const TIME_MS: u64 = 1_700_000_000_000;

/// What the node does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// A message is acked and neither stored nor delivered.
    AckWithoutStore,
    /// A message is stored and delivered twice.
    StoreTwice,
    /// Two messages of one sender are stored in the wrong order.
    Swap,
    /// A byte of a stored message changes.
    ChangeByte,
    /// A stored message vanishes after the run.
    Forget,
    /// All connections break, and the node comes back at another port.
    Restart,
    /// The node does nothing for so long.
    Stall(Duration),
    /// The node takes so long for each message, one after the other: it holds a known rate.
    Paced(Duration),
}

/// The node; it ends with the process.
pub struct FaultyNode {
    folder: tempfile::TempDir,
    world: Arc<Mutex<World>>,
}

struct World {
    fault: Fault,
    ready: PathBuf,
    key: PathBuf,
    messages: u64,
    /// When the node is through with what it was given.
    free_at: Instant,
    held: Option<(Uid, Send)>,
    users: HashMap<String, Uid>,
    live: HashMap<Uid, Live>,
    channels: HashMap<Cid, Channel>,
}

struct Live {
    number: u64,
    stream: TcpStream,
    codec: ServerCodec,
    pushes: u64,
}

struct Channel {
    pair: [Uid; 2],
    rows: Vec<Row>,
}

impl FaultyNode {
    pub fn start(fault: Fault) -> FaultyNode {
        let folder = tempfile::tempdir().unwrap();
        let (_, pem) = TokenKey::generate().unwrap();
        let key = folder.path().join("key.pem");
        std::fs::write(&key, pem).unwrap();
        let ready = folder.path().join("ready.json");
        let world = Arc::new(Mutex::new(World {
            fault,
            ready,
            key,
            messages: 0,
            free_at: Instant::now(),
            held: None,
            users: HashMap::new(),
            live: HashMap::new(),
            channels: HashMap::new(),
        }));
        listen(&world);
        FaultyNode { folder, world }
    }

    /// The ready file.
    pub fn ready(&self) -> PathBuf {
        self.path("ready.json")
    }

    /// A path in the node's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Carries out `Fault::Forget`.
    pub fn end_of_run(&self) {
        let mut world = self.world.lock().unwrap();
        if world.fault == Fault::Forget {
            let channel = world.channels.values_mut().max_by_key(|c| c.rows.len()).unwrap();
            channel.rows.pop();
        }
    }
}

fn listen(world: &Arc<Mutex<World>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    {
        let world = world.lock().unwrap();
        write_ready(&world.ready, &world.key, &listener);
    }
    let world = world.clone();
    std::thread::spawn(move || {
        for (number, stream) in (0..).zip(listener.incoming()) {
            let world = world.clone();
            // A connection that breaks is nobody's failure here.
            std::thread::spawn(move || serve(&world, stream.unwrap(), number).ok());
        }
    });
}

fn write_ready(ready: &Path, key: &Path, listener: &TcpListener) {
    let address = listener.local_addr().unwrap();
    let text = serde_json::json!({ "ws": format!("ws://{address}/v1"), "token_key_file": key });
    let new = ready.with_extension("new");
    std::fs::write(&new, text.to_string()).unwrap();
    std::fs::rename(new, ready).unwrap();
}

fn serve(world: &Arc<Mutex<World>>, mut stream: TcpStream, number: u64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut handshake = ServerHandshake::default();
    let (mut head, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut bytes)?;
        head.extend_from_slice(&bytes[..count]);
        match handshake.advance(&head, &[SUBPROTOCOL_BINARY]).unwrap() {
            ServerProgress::Upgrade(upgrade) => {
                let mut out = BytesMut::new();
                upgrade.write_response(&mut out);
                stream.write_all(&out)?;
                break;
            }
            ServerProgress::Incomplete if count > 0 => {}
            other => panic!("{other:?}"),
        }
    }
    let mut decoder = ws::Decoder::new(Role::Server, ws::Limits::default());
    let mut codec = ServerCodec::new(Subprotocol::Binary, FRAME_BYTES_MAX);
    let mut me = None;
    loop {
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        let mut input = &bytes[..count];
        while let Some(event) = decoder.next(&mut input).unwrap() {
            let ws::Event::Message { payload, .. } = event else { return Ok(()) };
            let mut frames = Vec::new();
            codec.decode(&payload, |frame| frames.push(frame)).unwrap();
            for frame in frames {
                let mut guard = world.lock().unwrap();
                match frame {
                    ClientFrame::Hello(hello) => {
                        let stream = stream.try_clone()?;
                        me = Some(guard.sign_in(&hello.token, stream, number));
                    }
                    frame => guard.take(me.unwrap(), frame),
                }
                restart_if_due(world, guard);
            }
        }
    }
}

fn restart_if_due(world: &Arc<Mutex<World>>, mut guard: MutexGuard<'_, World>) {
    if guard.fault == Fault::Restart && guard.messages >= FAULT_AT {
        guard.fault = Fault::None;
        std::fs::remove_file(&guard.ready).unwrap();
        for (_, live) in guard.live.drain() {
            let _ = live.stream.shutdown(Shutdown::Both);
        }
        drop(guard);
        let world = world.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            listen(&world);
        });
    }
}

impl World {
    fn sign_in(&mut self, token: &str, stream: TcpStream, number: u64) -> Uid {
        let claims = token.split('.').nth(1).unwrap();
        let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        let next = Uid(self.users.len() as u64 + 1);
        let uid = *self.users.entry(claims["sub"].as_str().unwrap().to_owned()).or_insert(next);
        let codec = ServerCodec::new(Subprotocol::Binary, FRAME_BYTES_MAX);
        self.live.insert(uid, Live { number, stream, codec, pushes: 0 });
        self.tell(uid, ServerFrame::Welcome(welcome(uid)));
        let cache = CacheAction::Replace;
        self.tell(uid, ServerFrame::Syncing { request: RequestId(0), cache });
        let mine = self.channels.iter().filter(|(_, channel)| channel.pair.contains(&uid));
        let heads: Vec<Head> = mine.map(|(cid, _)| self.head(*cid, uid)).collect();
        for head in heads {
            self.tell(uid, ServerFrame::Head(head));
        }
        let cursor = Bytes::from_static(b"c");
        self.tell(uid, ServerFrame::Synced { request: RequestId(0), cursor });
        uid
    }

    fn take(&mut self, me: Uid, frame: ClientFrame) {
        match frame {
            ClientFrame::Open { request, with: UserRef::Subject { subject, .. } } => {
                let other = self.users[&subject];
                let pair = [me.min(other), me.max(other)];
                let cid = Cid(pair[0].0 << 20 | pair[1].0);
                self.channels.entry(cid).or_insert(Channel { pair, rows: Vec::new() });
                let head = self.head(cid, me);
                self.tell(me, ServerFrame::Opened { request, head });
            }
            ClientFrame::Send(send) => self.message(me, send),
            ClientFrame::Ping { .. } => {
                let pushes = self.live[&me].pushes;
                self.tell(me, ServerFrame::Pong { pushes, time_ms: TIME_MS });
            }
            ClientFrame::Range(range) => {
                let rows = self.channels[&range.cid].rows.iter();
                let to = range.to.min(Seq(range.from.0 + 63));
                let rows: Vec<Row> =
                    rows.filter(|row| (range.from..=to).contains(&row.seq)).cloned().collect();
                let to = rows.last().map_or(Seq(range.from.0 - 1), |row| row.seq);
                let gap = to < range.to;
                let page = Page { cid: range.cid, from: range.from, to, gap, rows };
                self.tell(me, ServerFrame::Rows { request: range.request, page });
            }
            _ => {}
        }
    }

    fn message(&mut self, me: Uid, send: Send) {
        if self.held.as_ref().is_some_and(|(from, held)| *from == me && held.cid == send.cid) {
            self.append(me, &send);
            let (_, held) = self.held.take().unwrap();
            self.fault = Fault::None;
            return self.append(me, &held);
        }
        let rows = &self.channels[&send.cid].rows;
        if let Some(row) = rows.iter().find(|row| row.cmid == send.cmid) {
            let frame = sent(&send, row.seq);
            return self.tell(me, frame);
        }
        self.messages += 1;
        if let Fault::Paced(pause) = self.fault {
            self.free_at = self.free_at.max(Instant::now()) + pause;
            std::thread::sleep(self.free_at.saturating_duration_since(Instant::now()));
        }
        match self.fault {
            fault if self.messages != FAULT_AT || fault == Fault::None => self.append(me, &send),
            Fault::AckWithoutStore => {
                let seq = Seq(self.channels[&send.cid].rows.len() as u64 + 1);
                self.tell(me, sent(&send, seq));
            }
            Fault::Stall(length) => {
                std::thread::sleep(length);
                self.append(me, &send);
            }
            Fault::StoreTwice => {
                self.append(me, &send);
                self.append(me, &send);
            }
            Fault::Swap => self.held = Some((me, send)),
            Fault::ChangeByte => {
                let mut body = send.body.to_vec();
                body[14] = if body[14] == b'x' { b'y' } else { b'x' };
                self.append(me, &Send { body: body.into(), ..send });
            }
            _ => self.append(me, &send),
        }
    }

    fn append(&mut self, me: Uid, send: &Send) {
        let channel = self.channels.get_mut(&send.cid).unwrap();
        let seq = Seq(channel.rows.len() as u64 + 1);
        let sender = MemberNumber(u32::from(channel.pair[1] == me));
        let other = channel.pair[usize::from(channel.pair[0] == me)];
        channel.rows.push(Row {
            seq,
            ordinal: Ordinal(seq.0),
            kind: send.kind,
            sender,
            device: DeviceId(1),
            cmid: send.cmid,
            time_ms: TIME_MS,
            body: send.body.clone(),
        });
        let (cid, body) = (send.cid, send.body.clone());
        self.tell(me, sent(send, seq));
        if let Some(live) = self.live.get_mut(&other) {
            live.pushes += 1;
            self.tell(other, ServerFrame::Text { cid, seq, sender, time_ms: TIME_MS, body });
        }
    }

    fn head(&self, cid: Cid, me: Uid) -> Head {
        let Channel { pair, rows } = &self.channels[&cid];
        Head {
            cid,
            kind: ChannelKind::Direct,
            peer: Some(pair[usize::from(pair[0] == me)]),
            me: MemberNumber(u32::from(pair[1] == me)),
            head: Seq(rows.len() as u64),
            ordinal: Ordinal(rows.len() as u64),
            floor: Seq(1),
            read: Seq(0),
            read_ordinal: Ordinal(0),
            received: Seq(0),
            rows: HeadRows::Stale,
        }
    }

    fn tell(&mut self, to: Uid, frame: ServerFrame) {
        let Some(live) = self.live.get_mut(&to) else { return };
        let (mut outgoing, mut out) = (Outgoing::new(), BytesMut::new());
        live.codec.encode(&frame, &mut outgoing).unwrap();
        for message in outgoing.messages() {
            ws::encode_message(&mut out, MessageKind::Binary, message, None);
        }
        if live.stream.write_all(&out).is_err() {
            let number = live.number;
            self.live.retain(|_, live| live.number != number);
        }
    }
}

fn sent(send: &Send, seq: Seq) -> ServerFrame {
    ServerFrame::Sent { request: send.request, cid: send.cid, seq, time_ms: TIME_MS }
}

fn welcome(uid: Uid) -> Welcome {
    Welcome {
        uid,
        device: DeviceId(1),
        history: HistoryId(1),
        time_ms: TIME_MS,
        heartbeat_ms: 30_000,
        window_pushes: 256,
        window_bytes: 256 * 1024,
        frame_bytes_max: FRAME_BYTES_MAX as u32,
        body_bytes_max: BODY_BYTES_MAX as u32,
        open_sends_max: 256,
        durability: Durability::Memory,
    }
}
