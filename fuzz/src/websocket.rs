//! The WebSocket codec below the frames.

use bytes::BytesMut;
use chatring_wire::codec::{SUBPROTOCOL_BINARY, SUBPROTOCOL_JSON};
use chatring_wire::ws::{
    ClientHandshake, ClientRequest, Limits, Role, ServerHandshake, decode_all,
};

const SUBPROTOCOLS: &[&str] = &[SUBPROTOCOL_BINARY, SUBPROTOCOL_JSON];
/// Heads are fed in this many pieces.
const PIECES: usize = 4;

/// However the bytes are cut, the same comes out.
pub(crate) fn decode(data: &[u8]) {
    let limits = Limits { message_bytes_max: 1024, fragments_max: 4 };
    for role in [Role::Client, Role::Server] {
        let whole = decode_all(role, limits, data, data.len());
        for chunk_bytes in [1, 3, 16] {
            let cut = decode_all(role, limits, data, chunk_bytes);
            assert_eq!(cut, whole, "in chunks of {chunk_bytes} from {role:?}");
        }
    }
}

pub(crate) fn server_handshake(data: &[u8]) {
    let mut handshake = ServerHandshake::default();
    for piece in 1..=PIECES {
        let received = &data[..data.len() * piece / PIECES];
        if handshake.advance(received, SUBPROTOCOLS).is_err() {
            return;
        }
    }
}

pub(crate) fn client_handshake(data: &[u8]) {
    let request = ClientRequest { host: "h", path: "/", subprotocols: &[SUBPROTOCOL_BINARY] };
    let mut out = BytesMut::new();
    let mut handshake =
        ClientHandshake::start(&request, [0; 16], &mut out).expect("the request can be sent");
    for piece in 1..=PIECES {
        let received = &data[..data.len() * piece / PIECES];
        if handshake.advance(received).is_err() {
            return;
        }
    }
}
