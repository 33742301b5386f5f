//! One TLS connection (1.2 or 1.3) without I/O, either end of it.
//!
//! ```text
//!  socket ── receive ──▶ plain bytes          plain bytes ── send, close ──▶ out ──▶ socket
//!                └─────▶ out (what the handshake, or the protocol itself, has to say)
//! ```
//!
//! The caller keeps all buffers; between two calls a session holds its keys and the beginning of a
//! record that has not come whole, nothing else. That is what makes an idle one small.

mod roots;
mod stream;

use std::sync::Arc;

use bytes::BytesMut;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;

pub use self::roots::{RootsError, client_config};
pub use self::stream::{MaybeTls, TlsStream};

/// Most bytes of a record, or of a handshake message over several records, that have not come
/// whole: two full records (RFC 8446, 5.2). No message that a well-behaved peer sends is longer.
pub const PARTIAL_BYTES_MAX: usize = 36 * 1024;
/// What a record adds to its 16 KiB of plain bytes, rounded up: header, nonce, tag, type.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// Plain bytes of a full record.
const RECORD_BYTES: usize = 16 * 1024;

/// One end of a connection.
#[derive(Debug)]
pub struct TlsSession {
    end: End,
    /// The beginning of what has not come whole.
    partial: Vec<u8>,
    phase: Phase,
    peer_closed: bool,
}

/// Why a connection cannot go on.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The peer broke the protocol, or what it offers is not taken.
    #[error(transparent)]
    Protocol(#[from] rustls::Error),
    /// A record or handshake message that is longer than [`PARTIAL_BYTES_MAX`].
    #[error("a handshake message is longer than {PARTIAL_BYTES_MAX} bytes")]
    TooLong,
    /// So much was sent under one key that it must not be used any more.
    #[error("the keys are used up")]
    Exhausted,
    /// Nothing can be sent before the handshake is over, nor after the last word.
    #[error("nothing can be sent now")]
    Mute,
    /// It was ended by an error before.
    #[error("the connection is broken")]
    Broken,
}

/// Room that [`TlsSession::receive`] works in, of use to any number of sessions in turn.
#[derive(Debug, Default)]
pub struct TlsScratch {
    records: Vec<u8>,
    /// The plain bytes of the last call.
    pub plain: Vec<u8>,
}

enum End {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Handshaking,
    Open,
    /// We have said our last word.
    Closed,
    /// An error has ended it; the library must not be asked again.
    Broken,
}

/// What has come of the bytes given.
enum Step {
    Again,
    /// Nothing until more bytes come.
    Blocked,
    /// Nothing, and plain bytes may be sent.
    Idle,
    PeerClosed,
}

impl TlsSession {
    /// The server's end.
    ///
    /// # Errors
    /// The configuration is of no use.
    pub fn server(config: Arc<ServerConfig>) -> Result<TlsSession, TlsError> {
        Ok(TlsSession::new(End::Server(UnbufferedServerConnection::new(config)?)))
    }

    /// The client's end. Its first words come out of a [`receive`](TlsSession::receive) of nothing.
    ///
    /// # Errors
    /// The configuration is of no use.
    pub fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<TlsSession, TlsError> {
        Ok(TlsSession::new(End::Client(UnbufferedClientConnection::new(config, name)?)))
    }

    fn new(end: End) -> TlsSession {
        TlsSession { end, partial: Vec::new(), phase: Phase::Handshaking, peer_closed: false }
    }

    /// Whether nothing can be sent yet.
    pub fn is_handshaking(&self) -> bool {
        self.phase == Phase::Handshaking
    }

    /// Whether something can be sent.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the peer has said that nothing follows.
    pub fn peer_has_closed(&self) -> bool {
        self.peer_closed
    }

    /// Takes bytes from the socket. Their plain bytes are in `scratch.plain` afterwards, also after
    /// an error; what is to be written to the socket is appended to `out`, after an error the
    /// alert.
    ///
    /// # Errors
    /// The connection is to be closed once `out` is written.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        scratch: &mut TlsScratch,
        out: &mut BytesMut,
    ) -> Result<(), TlsError> {
        let TlsScratch { records, plain } = scratch;
        plain.clear();
        records.clear();
        if self.phase == Phase::Broken {
            return Err(TlsError::Broken);
        }
        records.extend_from_slice(&std::mem::take(&mut self.partial));
        records.extend_from_slice(bytes);
        let (used, result) = self.pump(records, plain, out);
        result?;
        let rest = &records[used..];
        if rest.len() > PARTIAL_BYTES_MAX {
            self.phase = Phase::Broken;
            return Err(TlsError::TooLong);
        }
        if !self.peer_closed {
            self.partial = rest.to_vec();
        }
        Ok(())
    }

    /// Appends the records that carry `plain`.
    ///
    /// # Errors
    /// The handshake is not over, the keys are used up, or the connection is broken.
    pub fn send(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), TlsError> {
        if plain.is_empty() {
            return Ok(());
        }
        let records = plain.len().div_ceil(RECORD_BYTES);
        self.write(plain.len() + records * RECORD_OVERHEAD_BYTES, out, Write::Plain(plain))
    }

    /// Appends our last word: nothing follows. Before the handshake is over, and the second time,
    /// there is nothing to say.
    pub fn close(&mut self, out: &mut BytesMut) {
        if self.phase == Phase::Open {
            // What cannot be said is not missed: the stream ends anyway.
            let _ = self.write(RECORD_OVERHEAD_BYTES, out, Write::Close);
            self.phase = Phase::Closed;
        }
    }

    /// Carries the protocol on until it needs bytes. Answers how many of `records` are used up.
    fn pump(
        &mut self,
        records: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut BytesMut,
    ) -> (usize, Result<(), TlsError>) {
        let mut used = 0;
        loop {
            let rest = &mut records[used..];
            let (discard, step) = match &mut self.end {
                End::Client(client) => take(client.process_tls_records(rest), plain, out),
                End::Server(server) => take(server.process_tls_records(rest), plain, out),
            };
            used += discard;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::PeerClosed) => self.peer_closed = true,
                Ok(Step::Blocked) => return (used, Ok(())),
                Ok(Step::Idle) => {
                    if self.phase == Phase::Handshaking {
                        self.phase = Phase::Open;
                    }
                    return (used, Ok(()));
                }
                Err(error) => {
                    self.say_alert(&mut records[used..], out);
                    return (used, Err(error));
                }
            }
        }
    }

    /// After an error there may be an alert, which tells the peer.
    fn say_alert(&mut self, rest: &mut [u8], out: &mut BytesMut) {
        self.phase = Phase::Broken;
        let mut nothing = Vec::new();
        let _ = match &mut self.end {
            End::Client(client) => take(client.process_tls_records(rest), &mut nothing, out),
            End::Server(server) => take(server.process_tls_records(rest), &mut nothing, out),
        };
    }

    fn write(&mut self, room: usize, out: &mut BytesMut, what: Write<'_>) -> Result<(), TlsError> {
        if self.phase != Phase::Open {
            return Err(TlsError::Mute);
        }
        let mut partial = std::mem::take(&mut self.partial);
        let mut nothing = Vec::new();
        let result = loop {
            let (discard, step) = match &mut self.end {
                End::Client(client) => {
                    let UnbufferedStatus { discard, state, .. } =
                        client.process_tls_records(&mut partial);
                    match state {
                        Ok(ConnectionState::WriteTraffic(traffic)) => {
                            break what.write(traffic, room, out);
                        }
                        state => (discard, step(state, &mut nothing, out)),
                    }
                }
                End::Server(server) => {
                    let UnbufferedStatus { discard, state, .. } =
                        server.process_tls_records(&mut partial);
                    match state {
                        Ok(ConnectionState::WriteTraffic(traffic)) => {
                            break what.write(traffic, room, out);
                        }
                        state => (discard, step(state, &mut nothing, out)),
                    }
                }
            };
            partial.drain(..discard);
            match step {
                Ok(Step::Again) => {}
                Ok(Step::PeerClosed) => self.peer_closed = true,
                // Closed on both sides.
                Ok(Step::Blocked | Step::Idle) => break Ok(()),
                Err(error) => {
                    self.phase = Phase::Broken;
                    break Err(error);
                }
            }
        };
        self.partial = partial;
        result
    }
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            End::Client(_) => "Client",
            End::Server(_) => "Server",
        })
    }
}

/// What is written.
#[derive(Clone, Copy)]
enum Write<'a> {
    Plain(&'a [u8]),
    Close,
}

impl Write<'_> {
    fn write<D>(
        self,
        mut traffic: WriteTraffic<'_, D>,
        mut room: usize,
        out: &mut BytesMut,
    ) -> Result<(), TlsError> {
        let start = out.len();
        loop {
            out.resize(start + room, 0);
            let written = match self {
                Write::Plain(plain) => traffic.encrypt(plain, &mut out[start..]),
                Write::Close => traffic.queue_close_notify(&mut out[start..]),
            };
            match written {
                Ok(written) => {
                    out.truncate(start + written);
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(size)) if size.required_size > room => {
                    room = size.required_size;
                }
                Err(_) => {
                    out.truncate(start);
                    return Err(TlsError::Exhausted);
                }
            }
        }
    }
}

fn take<D>(
    status: UnbufferedStatus<'_, '_, D>,
    plain: &mut Vec<u8>,
    out: &mut BytesMut,
) -> (usize, Result<Step, TlsError>) {
    let UnbufferedStatus { discard, state, .. } = status;
    (discard, step(state, plain, out))
}

fn step<D>(
    state: Result<ConnectionState<'_, '_, D>, rustls::Error>,
    plain: &mut Vec<u8>,
    out: &mut BytesMut,
) -> Result<Step, TlsError> {
    match state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                plain.extend_from_slice(record?.payload);
            }
            Ok(Step::Again)
        }
        ConnectionState::EncodeTlsData(data) => encode(data, out),
        ConnectionState::TransmitTlsData(sent) => {
            // It is the caller's now.
            sent.done();
            Ok(Step::Again)
        }
        ConnectionState::PeerClosed => Ok(Step::PeerClosed),
        ConnectionState::WriteTraffic(_) => Ok(Step::Idle),
        ConnectionState::BlockedHandshake | ConnectionState::Closed => Ok(Step::Blocked),
        // Bytes before the handshake's end are never agreed on.
        _ => Err(rustls::Error::General("early data".to_owned()).into()),
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, out: &mut BytesMut) -> Result<Step, TlsError> {
    let start = out.len();
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        out.resize(start + size.required_size, 0);
        match data.encode(&mut out[start..]) {
            Ok(written) => out.truncate(start + written),
            Err(_) => out.truncate(start),
        }
    }
    Ok(Step::Again)
}

#[cfg(test)]
mod tests;
