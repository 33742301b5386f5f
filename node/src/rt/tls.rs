//! TLS between the sockets and the handler, which sees plain bytes.
//!
//! ```text
//!  socket ─▶ receive ─▶ plain bytes (the shard's own room) ─▶ Handler::received
//!                └─▶ out ◀─ seal, once before each write ◀─ what the handler has queued
//! ```

use std::sync::Arc;

use bytes::BytesMut;
use chatring_client::tls::{TlsScratch, TlsSession};
use rustls::ServerConfig;

use super::conn::{Closed, Conn, ConnId, Life};
use super::io::Io;
use super::stats::count;
use super::{Flow, Handler};

/// Plain bytes of a call for which the shard keeps room.
const SCRATCH_BYTES_KEPT: usize = 128 * 1024;

/// What a connection has because of TLS.
#[derive(Debug)]
pub struct ConnTls {
    pub session: Box<TlsSession>,
    /// What the handler has queued since it was last sealed.
    pub plain: BytesMut,
}

/// What a shard has because of TLS.
#[derive(Debug)]
pub struct ShardTls {
    config: Arc<ServerConfig>,
    scratch: TlsScratch,
}

impl ShardTls {
    pub fn new(config: Arc<ServerConfig>) -> ShardTls {
        ShardTls { config, scratch: TlsScratch::default() }
    }
}

/// Gives the handler what came, without its TLS. An empty piece is the handler's own wish.
pub fn received<H: Handler>(handler: &mut H, io: &mut Io, id: ConnId, bytes: &[u8]) -> Flow {
    match io.tls.is_none() {
        true => handler.received(io, id, bytes),
        false => received_sealed(handler, io, id, bytes),
    }
}

fn received_sealed<H: Handler>(handler: &mut H, io: &mut Io, id: ConnId, bytes: &[u8]) -> Flow {
    if bytes.is_empty() {
        let flow = handler.received(io, id, &[]);
        io.end_if_said(id, flow);
        return flow;
    }
    let mut scratch = io.tls.as_mut().map(|tls| std::mem::take(&mut tls.scratch));
    let scratch = scratch.get_or_insert_default();
    let outcome = io.open_sealed(id, bytes, scratch);
    let mut flow = Flow::Wait;
    if !scratch.plain.is_empty() {
        flow = handler.received(io, id, &scratch.plain);
    }
    if scratch.plain.capacity() <= SCRATCH_BYTES_KEPT
        && let Some(tls) = &mut io.tls
    {
        tls.scratch = std::mem::take(scratch);
    }
    match outcome {
        Outcome::Good => io.end_if_said(id, flow),
        // What can be said is the alert.
        Outcome::Broken => io.finish(id),
    }
    flow
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Good,
    Broken,
}

impl Io {
    /// Whether every connection speaks TLS, so that nothing can be said to one that has just been
    /// opened.
    pub fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Puts TLS before a new connection, if it is spoken here.
    pub(super) fn put_tls(&mut self, id: ConnId) {
        let Some(tls) = &self.tls else { return };
        match TlsSession::server(Arc::clone(&tls.config)) {
            Ok(session) => {
                if let Some(conn) = self.conns.get_mut(id) {
                    let (session, plain) = (Box::new(session), BytesMut::new());
                    conn.tls = Some(Box::new(ConnTls { session, plain }));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "TLS cannot be spoken");
                self.close(id);
            }
        }
    }

    fn open_sealed(&mut self, id: ConnId, bytes: &[u8], scratch: &mut TlsScratch) -> Outcome {
        let Some(conn) = self.conns.get_mut(id) else { return Outcome::Good };
        let Conn { out, tls: Some(tls), .. } = conn else { return Outcome::Broken };
        let (before, handshaking) = (out.len(), tls.session.is_handshaking());
        let result = tls.session.receive(bytes, scratch, out);
        let (said, done) = (out.len() > before, !tls.session.is_handshaking());
        if said {
            self.mark_turn();
            self.mark_dirty(id);
        }
        match result {
            Ok(()) => {
                if handshaking && done {
                    count(&self.stats.tls_handshakes, 1);
                }
                Outcome::Good
            }
            Err(error) => {
                tracing::debug!(%error, "a connection's TLS is broken");
                count(&self.stats.tls_broken, 1);
                Outcome::Broken
            }
        }
    }

    /// A peer that has said its last word, of which nothing is left to handle, is closed.
    fn end_if_said(&mut self, id: ConnId, flow: Flow) {
        let Some(Conn { tls: Some(tls), .. }) = self.conns.get(id) else { return };
        if flow == Flow::Wait && tls.session.peer_has_closed() {
            self.finish(id);
        }
    }
}

impl Conn {
    /// Makes what the handler has queued ready for the socket. To be called before each write.
    pub fn seal(&mut self) {
        let Conn { tls: Some(tls), out, life, .. } = self else { return };
        let ConnTls { session, plain } = &mut **tls;
        if !plain.is_empty() {
            let sealed = session.send(&std::mem::take(plain), out);
            if sealed.is_err() && *life == Life::Open {
                *life = Life::Gone(Closed::Broken(std::io::ErrorKind::InvalidData));
            }
        }
        if let Life::Finishing { .. } = life {
            session.close(out);
        }
    }

    /// Where the handler's bytes are queued.
    pub fn queue(&mut self) -> &mut BytesMut {
        match &mut self.tls {
            None => &mut self.out,
            Some(tls) => &mut tls.plain,
        }
    }

    /// Bytes that are queued, whether or not they are sealed.
    pub fn queued(&self) -> usize {
        self.out.len() + self.tls.as_ref().map_or(0, |tls| tls.plain.len())
    }
}
