//! A peer that may say anything: raw TCP, with the protocol's codecs at hand.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use chatring_wire::frame::{
    Head, Hello, MessageKind as BodyKind, RequestId, Send, UserRef, Welcome,
};
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::ws::{
    self, ClientHandshake, ClientProgress, ClientRequest, Event, Limits, MaskKey, MessageKind, Role,
};
use chatring_wire::{
    Cid, ClientCodec, ClientFrame, CloseCode, Cmid, ErrorCode, InstallationId, Outgoing, Seq,
    ServerFrame, Subprotocol,
};

use super::{Node, PATIENCE};

/// The key that a raw peer masks with.
pub const MASK: MaskKey = MaskKey([0xa5, 1, 0xfe, 60]);

/// What a raw peer hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A frame.
    Frame(ServerFrame),
    /// A WebSocket pong.
    Pong,
    /// A close frame, with its code.
    Close(Option<u16>),
    /// The end of the stream, or a reset.
    End,
}

/// A connection without manners.
#[derive(Debug)]
pub struct Raw {
    socket: TcpStream,
    decoder: ws::Decoder,
    codec: ClientCodec,
    heard: VecDeque<Heard>,
    requests: u32,
    welcome: Option<Welcome>,
}

impl Node {
    /// A TCP connection to the clients' address, without a byte on it yet.
    pub fn tcp(&self) -> TcpStream {
        let host = self.ws().strip_prefix("ws://").and_then(|ws| ws.split('/').next());
        let socket = TcpStream::connect(host.expect("an address")).expect("it accepts");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        socket.set_write_timeout(Some(PATIENCE)).expect("a time");
        socket.set_nodelay(true).expect("a TCP socket");
        socket
    }

    /// Sends bytes to the clients' address and gives what comes until the end of the stream.
    pub fn exchange(&self, bytes: &[u8]) -> String {
        let mut socket = self.tcp();
        // It may be closed before everything is written.
        let _ = socket.write_all(bytes);
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = socket.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Raw {
    /// A connection after the upgrade, before the hello.
    pub fn upgraded(node: &Node, subprotocol: Subprotocol) -> Raw {
        let mut socket = node.tcp();
        let request = ClientRequest {
            host: "localhost",
            path: "/v1/ws",
            subprotocols: &[subprotocol.name()],
        };
        let mut out = BytesMut::new();
        let mut handshake = ClientHandshake::start(&request, [7; 16], &mut out).expect("a request");
        socket.write_all(&out).expect("it reads");
        let mut head = Vec::new();
        loop {
            let mut byte = [0];
            socket.read_exact(&mut byte).expect("it answers");
            head.push(byte[0]);
            let progress = handshake.advance(&head).expect("it agrees");
            if let ClientProgress::Connected { .. } = progress {
                break;
            }
        }
        Raw::over(socket, subprotocol)
    }

    /// Goes on over a connection that is upgraded already.
    pub fn over(socket: TcpStream, subprotocol: Subprotocol) -> Raw {
        Raw {
            socket,
            decoder: ws::Decoder::new(Role::Client, Limits::default()),
            codec: ClientCodec::new(subprotocol, FRAME_BYTES_MAX),
            heard: VecDeque::new(),
            requests: 0,
            welcome: None,
        }
    }

    /// A live session of a user, in sync.
    pub fn sign_in(node: &Node, user: &str) -> Raw {
        Raw::sign_in_with(node, Subprotocol::Binary, hello(&node.token(user), user))
    }

    /// A live session with this hello, in sync.
    pub fn sign_in_with(node: &Node, subprotocol: Subprotocol, hello: Hello) -> Raw {
        let mut raw = Raw::upgraded(node, subprotocol);
        raw.say(&[ClientFrame::Hello(hello)]);
        match raw.frame() {
            ServerFrame::Welcome(welcome) => raw.welcome = Some(welcome),
            first => panic!("no welcome but {first:?}"),
        }
        raw.until(|frame| matches!(frame, ServerFrame::Synced { .. }));
        raw
    }

    /// What the welcome of `sign_in` said.
    pub fn welcome(&self) -> Welcome {
        self.welcome.expect("it signed in")
    }

    /// The socket, for what the methods here are too polite for.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Writes bytes as they are. The server may have closed already.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// Ends this side of the stream.
    pub fn end(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The next number for a request.
    pub fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// What frames look like on the wire.
    pub fn bytes_of(&mut self, frames: &[ClientFrame]) -> BytesMut {
        let mut outgoing = Outgoing::new();
        for frame in frames {
            self.codec.encode(frame, &mut outgoing).expect("within the bounds");
        }
        let text = self.codec.subprotocol().is_text();
        let kind = if text { MessageKind::Text } else { MessageKind::Binary };
        let mut out = BytesMut::new();
        for message in outgoing.messages() {
            ws::encode_message(&mut out, kind, message, Some(MASK));
        }
        out
    }

    /// Sends frames.
    pub fn say(&mut self, frames: &[ClientFrame]) {
        let bytes = self.bytes_of(frames);
        self.write(&bytes);
    }

    /// Sends one WebSocket message with this payload.
    pub fn say_payload(&mut self, kind: MessageKind, payload: &[u8]) {
        let mut out = BytesMut::new();
        ws::encode_message(&mut out, kind, payload, Some(MASK));
        self.write(&out);
    }

    /// What comes next.
    pub fn hear(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return heard;
            }
            let mut buffer = [0; 64 << 10];
            let count = match self.socket.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                Err(error) => panic!("nothing comes: {error}"),
            };
            if count == 0 {
                return Heard::End;
            }
            self.take_in(&buffer[..count]);
        }
    }

    /// The next frame; anything else fails the test.
    pub fn frame(&mut self) -> ServerFrame {
        match self.hear() {
            Heard::Frame(frame) => frame,
            other => panic!("no frame but {other:?}"),
        }
    }

    /// The next frame for which `wanted` holds; others are skipped.
    pub fn until(&mut self, wanted: impl Fn(&ServerFrame) -> bool) -> ServerFrame {
        let until = Instant::now() + PATIENCE;
        loop {
            let frame = self.frame();
            if wanted(&frame) {
                return frame;
            }
            assert!(Instant::now() < until, "other frames come without end: {frame:?}");
        }
    }

    /// The code of the close that ends the connection; frames before it are skipped.
    pub fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.hear() {
                Heard::Frame(_) | Heard::Pong => {}
                Heard::Close(code) => return code,
                Heard::End => panic!("the stream ended without a close frame"),
            }
        }
    }

    /// Expects an `error` frame with this code, and the close that goes with it.
    pub fn expect_error(&mut self, code: ErrorCode) {
        self.expect_error_and(code, CloseCode::for_error(code));
    }

    /// Expects an `error` frame with this code and this close.
    pub fn expect_error_and(&mut self, code: ErrorCode, close: CloseCode) {
        match self.until(|frame| matches!(frame, ServerFrame::Error(_))) {
            ServerFrame::Error(failure) => assert_eq!(failure.code, Ok(code), "{failure:?}"),
            _ => unreachable!(),
        }
        assert_eq!(self.hear(), Heard::Close(Some(close.number())));
    }

    /// Expects a close with this code.
    pub fn expect_close(&mut self, close: CloseCode) {
        assert_eq!(self.close_code(), Some(close.number()));
    }

    /// Sends a request, and gives the frame that answers it.
    pub fn ask(&mut self, make: impl FnOnce(RequestId) -> ClientFrame) -> ServerFrame {
        let request = self.next_request();
        self.say(&[make(request)]);
        self.until(|frame| answers(frame) == Some(request))
    }

    /// Opens the direct channel with a user.
    pub fn open(&mut self, user: &str) -> Head {
        match self.ask(|request| ClientFrame::Open { request, with: named(user) }) {
            ServerFrame::Opened { head, .. } => head,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a text and gives the answer.
    pub fn send(&mut self, cid: Cid, cmid: impl Into<u64>, base: u64, body: &[u8]) -> ServerFrame {
        self.ask(|request| ClientFrame::Send(text(request, cid, cmid, base, body)))
    }

    /// Checks that the session lives: a ping is answered.
    pub fn expect_alive(&mut self) {
        self.say(&[ClientFrame::Ping { pushes: 0 }]);
        self.until(|frame| matches!(frame, ServerFrame::Pong { .. }));
    }

    fn take_in(&mut self, mut input: &[u8]) {
        while let Some(event) = self.decoder.next(&mut input).expect("the server's bytes are good")
        {
            let heard = &mut self.heard;
            match event {
                Event::Message { payload, .. } => {
                    let each = |frame| heard.push_back(Heard::Frame(frame));
                    self.codec.decode(&payload, each).expect("the server's frames are good");
                }
                Event::Pong(_) => heard.push_back(Heard::Pong),
                Event::Close(close) => heard.push_back(Heard::Close(close.code)),
                Event::Ping(_) => {}
            }
        }
    }
}

/// A good hello without a cursor; the installation is made from a name.
pub fn hello(token: &str, installation: &str) -> Hello {
    let mut id = [0; 16];
    let length = installation.len().min(16);
    id[..length].copy_from_slice(&installation.as_bytes()[..length]);
    Hello {
        token: token.to_owned(),
        installation: InstallationId(id),
        cursor: Bytes::new(),
        capabilities: 0,
        frame_bytes_max: FRAME_BYTES_MAX as u32,
    }
}

/// A user of the deployment's own issuer.
pub fn named(subject: &str) -> UserRef {
    UserRef::Subject { issuer: String::new(), subject: subject.to_owned() }
}

/// A text to send.
pub fn text(request: RequestId, cid: Cid, cmid: impl Into<u64>, base: u64, body: &[u8]) -> Send {
    Send {
        request,
        cid,
        cmid: Cmid(u128::from(cmid.into()).to_be_bytes()),
        base: Seq(base),
        previous: None,
        kind: BodyKind::TEXT,
        body: Bytes::copy_from_slice(body),
    }
}

/// Which request a frame answers.
pub fn answers(frame: &ServerFrame) -> Option<RequestId> {
    match frame {
        ServerFrame::Done { request }
        | ServerFrame::Opened { request, .. }
        | ServerFrame::Sent { request, .. }
        | ServerFrame::Refused { request, .. }
        | ServerFrame::Unknown { request }
        | ServerFrame::Continue { request, .. }
        | ServerFrame::Rows { request, .. }
        | ServerFrame::Members { request, .. } => Some(*request),
        _ => None,
    }
}

/// Why a request was refused; another answer fails the test.
pub fn refused(frame: ServerFrame) -> ErrorCode {
    match frame {
        ServerFrame::Refused { error, .. } => error.code.expect("a known error"),
        other => panic!("not refused: {other:?}"),
    }
}
