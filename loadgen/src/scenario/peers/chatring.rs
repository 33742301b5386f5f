//! Chatring itself, with the real client's session on the same loop as the other servers' clients.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use chatring_client::token::TokenKey;
use chatring_client::{Config, Event, Millis, Session, Start};
use chatring_wire::codec::{ClientCodec, Outgoing, SUBPROTOCOL_BINARY, Subprotocol};
use chatring_wire::frame::{MessageKind, UserRef};
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::ws::{self, ClientHandshake, ClientProgress, ClientRequest, MaskKey, Role};
use chatring_wire::{Cid, Cmid, ErrorCode, MemberNumber};

use super::books::{Shape, Workload};
use super::drive::{Client, Said, Seat};
use super::{Peer, write_file};
use crate::pool::{fresh_random, new_cmid, new_session};
use crate::ready::Ready;
use crate::scenario::words;
use crate::stamp::Mixer;

/// How long the ready file may take once the server listens.
const READY_MAX: Duration = Duration::from_secs(10);
/// Devices that a user may have by default; the configuration raises it where more are asked for.
const DEVICES_DEFAULT: u32 = 64;

/// The server and how it is set up: as it is by default, with one shard.
#[derive(Default)]
pub struct Chatring {
    devices: u32,
    ready_file: PathBuf,
    found: Option<(Ready, TokenKey)>,
}

impl Chatring {
    /// Where one user may have this many devices.
    pub fn with_devices(devices: u32) -> Chatring {
        Chatring { devices, ..Chatring::default() }
    }

    fn client(&self, subject: &str, device: u32, opens: Option<String>) -> ChatringClient {
        let (ready, key) = self.found.as_ref().expect("`prepare` comes before `seats`");
        let config = Config::dense("", Start::Head);
        ChatringClient {
            url: ready.ws.clone(),
            origin: Instant::now(),
            session: new_session(key, subject, &format!("peers-{device}"), config),
            random: fresh_random(u64::from(device)),
            handshake: None,
            decoder: ws::Decoder::new(Role::Client, ws::Limits::default()),
            codec: ClientCodec::new(Subprotocol::Binary, FRAME_BYTES_MAX),
            outgoing: Outgoing::new(),
            buffer: BytesMut::new(),
            opens,
            asks: Asks::Nothing,
            receives: true,
            channel: None,
            in_flight: None,
        }
    }
}

impl Peer for Chatring {
    type Client = ChatringClient;

    fn command(&mut self, program: &Path, folder: &Path, port: u16) -> Result<Command, String> {
        let devices = self.devices.max(DEVICES_DEFAULT);
        let config =
            format!("[limits]\ndevices_max = {devices}\nsessions_per_user_max = {devices}\n");
        self.ready_file = folder.join("ready.json");
        let mut command = Command::new(program);
        command
            .args(["serve", "--shards", "1", "--http", "127.0.0.1:0"])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .arg("--config")
            .arg(write_file(folder, "chatring.toml", &config)?)
            .arg("--data")
            .arg(folder.join("data"))
            .arg("--ready-file")
            .arg(&self.ready_file);
        Ok(command)
    }

    fn acked(&self) -> String {
        "the ack: the message and its inbox rows are in the store and fdatasynced".to_owned()
    }

    fn prepare(&mut self, _server: SocketAddr) -> Result<(), String> {
        let start = Instant::now();
        loop {
            match Ready::read(&self.ready_file) {
                Ok(ready) => {
                    let key = ready.token_key().map_err(|error| error.to_string())?;
                    self.found = Some((ready, key));
                    return Ok(());
                }
                Err(error) if start.elapsed() > READY_MAX => return Err(error.to_string()),
                Err(_not_yet) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn seats(&self, workload: Workload) -> Vec<Seat<ChatringClient>> {
        let seats = (0..workload.users()).map(|user| {
            let client = match (workload.shape, workload.receives_in(user)) {
                (Shape::Direct, _) => {
                    self.client(&format!("peer-{user}"), 0, Some(format!("peer-{}", user ^ 1)))
                }
                // The devices of one user: there are no groups yet.
                (Shape::FanOut { .. }, Some((talk, place))) => {
                    self.client(&format!("many-{talk}"), place, None)
                }
                (Shape::FanOut { receivers }, None) => {
                    let talk = user / (receivers + 1);
                    let to = Some(format!("many-{talk}"));
                    let client = self.client(&format!("one-{talk}"), 0, to);
                    ChatringClient { receives: false, ..client }
                }
            };
            Seat { user, sends: workload.sends_in(user).is_some(), client }
        });
        seats.collect()
    }
}

/// One session and its connection.
pub struct ChatringClient {
    url: String,
    origin: Instant,
    session: Session,
    random: Mixer,
    /// Until the connection stands.
    handshake: Option<ClientHandshake>,
    decoder: ws::Decoder,
    codec: ClientCodec,
    outgoing: Outgoing,
    buffer: BytesMut,
    /// The user with whom it talks; nobody if it only receives.
    opens: Option<String>,
    asks: Asks,
    receives: bool,
    channel: Option<(Cid, MemberNumber)>,
    in_flight: Option<(Cmid, u32)>,
}

/// How far it is with its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// It is not in sync yet, or it waits for the answer, or it has it.
    Nothing,
    /// It is to ask (again).
    Due,
}

impl Client for ChatringClient {
    fn open(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let rest = self.url.strip_prefix("ws://").ok_or("not a ws:// address")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let request = ClientRequest { host, path, subprotocols: &[SUBPROTOCOL_BINARY] };
        let nonce = (u128::from(self.random.draw()) << 64) | u128::from(self.random.draw());
        let handshake = ClientHandshake::start(&request, nonce.to_be_bytes(), &mut self.buffer);
        self.handshake = Some(handshake.map_err(text)?);
        self.take_buffer(out);
        Ok(())
    }

    fn receive(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        say: &mut dyn FnMut(Said<'_>),
    ) -> Result<usize, String> {
        let now = self.now();
        let mut rest = input;
        if let Some(handshake) = &mut self.handshake {
            match handshake.advance(input).map_err(text)? {
                ClientProgress::Incomplete => return Ok(0),
                ClientProgress::Connected { head_bytes, .. } => rest = &input[head_bytes..],
            }
            self.handshake = None;
            self.session.handle_connected(now);
        }
        while let Some(event) = self.decoder.next(&mut rest).map_err(text)? {
            match event {
                ws::Event::Message { payload, .. } => {
                    let session = &mut self.session;
                    let decoded =
                        self.codec.decode(&payload, |frame| session.handle_frame(now, frame));
                    decoded.map_err(text)?;
                }
                ws::Event::Ping(payload) => {
                    let mask = self.mask();
                    ws::encode_pong(&mut self.buffer, &payload, Some(mask));
                }
                ws::Event::Pong(_) => {}
                ws::Event::Close(close) => return Err(format!("closed with {:?}", close.code)),
            }
        }
        self.take_events(say)?;
        self.write(out)?;
        Ok(input.len())
    }

    fn send(&mut self, number: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let (cid, _) = self.channel.ok_or("a receiver does not send")?;
        let cmid = new_cmid(&mut self.random);
        let body = Bytes::copy_from_slice(body);
        self.session.send(self.now(), cid, MessageKind::TEXT, body, cmid).map_err(text)?;
        self.in_flight = Some((cmid, number));
        self.write(out)
    }

    fn tick(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let now = self.now();
        if self.handshake.is_some() {
            return Ok(());
        }
        if self.session.poll_timeout().is_some_and(|at| at <= now) {
            self.session.handle_timeout(now);
        }
        if self.asks == Asks::Due
            && let Some(subject) = self.opens.clone()
        {
            self.asks = Asks::Nothing;
            let with = UserRef::Subject { issuer: String::new(), subject };
            self.session.open(now, with).map_err(text)?;
        }
        self.write(out)
    }
}

impl ChatringClient {
    fn take_events(&mut self, say: &mut dyn FnMut(Said<'_>)) -> Result<(), String> {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Synced if self.opens.is_some() => self.asks = Asks::Due,
                Event::Synced => say(Said::Ready),
                Event::Opened { cid, .. } => {
                    let head = self.session.channel(cid).ok_or("an unknown channel was opened")?;
                    self.channel = Some((cid, head.me));
                    say(Said::Ready);
                }
                // The other user has not signed in yet.
                Event::AskRefused { error, .. } if error.code == Ok(ErrorCode::UnknownUser) => {
                    self.asks = Asks::Due;
                }
                Event::AskRefused { error, .. } => return Err(words(&error)),
                Event::Stored { cmid, .. } => match self.in_flight.take() {
                    Some((sent, number)) if sent == cmid => say(Said::Acked(number)),
                    _ => return Err("an ack of another message".to_owned()),
                },
                Event::SendRefused { error, .. } => return Err(words(&error)),
                Event::Message { row, .. } => {
                    let own = self.channel.is_some_and(|(_, me)| me == row.sender);
                    if self.receives && !own {
                        say(Said::Delivered(&row.body));
                    }
                }
                Event::Disconnected { error: Some(error) } => return Err(words(&error)),
                Event::Ended(end) => return Err(end.to_string()),
                _ => {}
            }
        }
        // Nothing is kept.
        self.session.poll_writes();
        Ok(())
    }

    /// Moves the session's frames to the connection, in one WebSocket message where they fit.
    fn write(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        while let Some(frame) = self.session.poll_transmit() {
            self.codec.encode(&frame, &mut self.outgoing).map_err(text)?;
        }
        if !self.outgoing.is_empty() {
            for message in self.outgoing.messages() {
                let mask = MaskKey((self.random.draw() as u32).to_be_bytes());
                ws::encode_message(&mut self.buffer, ws::MessageKind::Binary, message, Some(mask));
            }
            self.outgoing.clear();
        }
        self.take_buffer(out);
        match self.session.poll_close() {
            Some(code) => Err(format!("the client closes with {code:?}")),
            None => Ok(()),
        }
    }

    fn take_buffer(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.buffer);
        self.buffer.clear();
    }

    fn mask(&mut self) -> MaskKey {
        MaskKey((self.random.draw() as u32).to_be_bytes())
    }

    fn now(&self) -> Millis {
        Millis(self.origin.elapsed().as_millis() as u64)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
