//! Both ends against a foreign implementation, tungstenite: it reads what we send, and we read
//! what it sends.

use std::io::{self, Cursor, Read, Write};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tungstenite::protocol::{CloseFrame, Role as ForeignRole, WebSocket, WebSocketConfig};
use tungstenite::{Message, client::IntoClientRequest, handshake};

use super::*;
use crate::codec::SUBPROTOCOL_BINARY;

const KEY: MaskKey = MaskKey([0x37, 0xfa, 0x21, 0x3d]);

/// A socket in memory: reads come from `input`, a few bytes at a time, writes go to `output`.
struct Pipe {
    input: Cursor<Vec<u8>>,
    output: Vec<u8>,
    read_bytes: usize,
}

impl Pipe {
    fn new(input: Vec<u8>, read_bytes: usize) -> Pipe {
        Pipe { input: Cursor::new(input), output: Vec::new(), read_bytes }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.read_bytes);
        match self.input.read(&mut buffer[..len])? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn foreign(role: Role, pipe: Pipe) -> WebSocket<Pipe> {
    let role = match role {
        Role::Client => ForeignRole::Client,
        Role::Server => ForeignRole::Server,
    };
    WebSocket::from_raw_socket(pipe, role, Some(WebSocketConfig::default()))
}

fn mask_of(role: Role) -> Option<MaskKey> {
    (role == Role::Client).then_some(KEY)
}

#[derive(Clone, Debug)]
enum Sent {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

impl Sent {
    fn any() -> impl Strategy<Value = Sent> {
        let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max);
        prop_oneof![
            ".{0,100}".prop_map(Sent::Text),
            bytes(300).prop_map(Sent::Binary),
            (65_530usize..65_540).prop_map(|len| Sent::Binary(vec![7; len])),
            bytes(126).prop_map(Sent::Ping),
            bytes(126).prop_map(Sent::Pong),
        ]
    }

    fn foreign(&self) -> Message {
        match self.clone() {
            Sent::Text(text) => Message::text(text),
            Sent::Binary(bytes) => Message::binary(bytes),
            Sent::Ping(bytes) => Message::Ping(bytes.into()),
            Sent::Pong(bytes) => Message::Pong(bytes.into()),
        }
    }

    fn event(&self) -> Event {
        let control = |bytes| ControlPayload::new(bytes).unwrap();
        let message = |kind, bytes: Vec<u8>| Event::Message { kind, payload: Bytes::from(bytes) };
        match self.clone() {
            Sent::Text(text) => message(MessageKind::Text, text.into_bytes()),
            Sent::Binary(bytes) => message(MessageKind::Binary, bytes),
            Sent::Ping(bytes) => Event::Ping(control(bytes)),
            Sent::Pong(bytes) => Event::Pong(control(bytes)),
        }
    }

    fn encode(&self, out: &mut BytesMut, mask: Option<MaskKey>) {
        match self.event() {
            Event::Message { kind, payload } => encode_message(out, kind, &payload, mask),
            Event::Ping(payload) => encode_ping(out, &payload, mask),
            Event::Pong(payload) => encode_pong(out, &payload, mask),
            Event::Close(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_oracle_reads_what_we_send(
        all in proptest::collection::vec(Sent::any(), 0..8),
        client: bool,
        read_bytes in 1usize..2000,
    ) {
        let role = if client { Role::Client } else { Role::Server };
        let mut out = BytesMut::new();
        for sent in &all {
            sent.encode(&mut out, mask_of(role));
        }
        encode_close(&mut out, Some(1001), "bye", mask_of(role));
        let mut peer = foreign(role.peer(), Pipe::new(out.to_vec(), read_bytes));
        for sent in &all {
            prop_assert_eq!(peer.read().unwrap(), sent.foreign());
        }
        let close = CloseFrame { code: 1001.into(), reason: "bye".into() };
        prop_assert_eq!(peer.read().unwrap(), Message::Close(Some(close)));
    }

    #[test]
    fn we_read_what_the_oracle_sends(
        all in proptest::collection::vec(Sent::any(), 0..8),
        client: bool,
        chunk_bytes in 1usize..2000,
    ) {
        let role = if client { Role::Client } else { Role::Server };
        let mut peer = foreign(role.peer(), Pipe::new(Vec::new(), 1));
        for sent in &all {
            peer.send(sent.foreign()).unwrap();
        }
        peer.close(Some(CloseFrame { code: 1001.into(), reason: "bye".into() })).unwrap();
        peer.flush().unwrap();
        let mut events: Vec<_> = all.iter().map(Sent::event).collect();
        let close = ReceivedClose { code: Some(1001), reason: "bye".to_owned() };
        events.push(Event::Close(close));
        let decoded = decode_all(role, Limits::default(), &peer.get_ref().output, chunk_bytes);
        prop_assert_eq!(decoded, (events, None));
    }
}

#[test]
fn our_server_shakes_hands_with_the_oracle() {
    let mut request = "ws://localhost:7/v1".into_client_request().unwrap();
    let offered = "other, chatring.v1".parse().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", offered);
    let (bytes, key) = handshake::client::generate_request(request).unwrap();
    let progress = ServerHandshake::default().advance(&bytes, &[SUBPROTOCOL_BINARY]).unwrap();
    let ServerProgress::Upgrade(upgrade) = progress else { panic!("refused") };
    assert_eq!((&*upgrade.path, &*upgrade.host), ("/v1", "localhost:7"));
    let mut out = BytesMut::new();
    upgrade.write_response(&mut out);
    let accept = handshake::derive_accept_key(key.as_bytes());
    let response = String::from_utf8(out.to_vec()).unwrap();
    assert!(response.contains(&format!("Sec-WebSocket-Accept: {accept}\r\n")));
}

#[test]
fn our_client_shakes_hands_with_the_oracle() {
    let request = ClientRequest { host: "localhost:7", path: "/v1", subprotocols: &[] };
    let mut out = BytesMut::new();
    let mut client = ClientHandshake::start(&request, [9; 16], &mut out).unwrap();
    let mut server = tungstenite::accept(Pipe::new(out.to_vec(), 4096)).unwrap();
    let response = std::mem::take(&mut server.get_mut().output);
    let connected = ClientProgress::Connected { subprotocol: None, head_bytes: response.len() };
    assert_eq!(client.advance(&response), Ok(connected));
}
