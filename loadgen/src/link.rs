//! The way to a node: a socket and, where the node speaks TLS, what seals and opens its bytes.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use chatring_client::tls::{RootsError, TlsError, TlsScratch, TlsSession, client_config};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long a connection may take to stand.
pub const CONNECT_MAX: Duration = Duration::from_secs(10);

/// What is spoken through TLS.
const ALPN: &[&[u8]] = &[b"http/1.1"];

/// Whom the connections of this process trust at `wss` and `https` URLs.
static TRUST: OnceLock<Arc<ClientConfig>> = OnceLock::new();

/// Has all connections of this process trust the certificates of a PEM file, in place of those that
/// the machine trusts. To be said before the first one.
///
/// # Errors
/// There are no certificates.
pub fn trust(ca: &Path) -> Result<(), RootsError> {
    let _ = TRUST.set(client_config(Some(ca), ALPN)?);
    Ok(())
}

fn trusted() -> Result<Arc<ClientConfig>, RootsError> {
    match TRUST.get() {
        Some(config) => Ok(Arc::clone(config)),
        None => {
            let config = client_config(None, ALPN)?;
            Ok(Arc::clone(TRUST.get_or_init(|| config)))
        }
    }
}

/// Why there is no way to a node.
#[derive(Debug, Error)]
pub enum LinkError {
    /// No certificate can be for this host.
    #[error("{0} is no HOST:PORT")]
    Host(String),
    /// Nobody is trusted.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// TLS has failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The network says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LinkError {
    /// Whether it is for want of trust, which another attempt will not bring.
    pub fn is_distrust(&self) -> bool {
        matches!(
            self,
            LinkError::Roots(_)
                | LinkError::Tls(TlsError::Protocol(rustls::Error::InvalidCertificate(_)))
        )
    }
}

/// The TLS of a connection, with the room that it works in.
#[derive(Debug)]
pub struct Sealed {
    session: TlsSession,
    scratch: TlsScratch,
    /// Said by the protocol itself.
    out: BytesMut,
}

impl Sealed {
    fn new(host: &str) -> Result<Sealed, LinkError> {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(|_| LinkError::Host(host.to_owned()))?;
        let session = TlsSession::client(trusted()?, name)?;
        Ok(Sealed { session, scratch: TlsScratch::default(), out: BytesMut::new() })
    }

    /// Takes bytes of the node; what they are is in [`Sealed::opened`], also after an error.
    ///
    /// # Errors
    /// The node broke TLS.
    pub fn open(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        self.session.receive(bytes, &mut self.scratch, &mut self.out)
    }

    /// The plain bytes of the last [`Sealed::open`].
    pub fn opened(&self) -> &[u8] {
        &self.scratch.plain
    }

    /// Whether the protocol itself has something to say, which goes with the next
    /// [`Sealed::seal`].
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Appends what is to be said, sealed.
    pub fn seal(&mut self, plain: &[u8], out: &mut BytesMut) {
        out.unsplit(std::mem::take(&mut self.out));
        // A session that cannot send any more is broken: its end comes with the next bytes read.
        let _ = self.session.send(plain, out);
    }

    /// Appends the last word.
    pub fn close(&mut self, out: &mut BytesMut) {
        self.session.close(out);
    }
}

/// A connection that is being made.
#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    tls: Option<Box<Sealed>>,
}

impl Link {
    /// Connects to `HOST:PORT`, and agrees on TLS if it is spoken there.
    ///
    /// # Errors
    /// There is no connection, with the reason.
    pub async fn open(host: &str, has_tls: bool) -> Result<Link, LinkError> {
        let tls = if has_tls { Some(Box::new(Sealed::new(host)?)) } else { None };
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        let mut link = Link { stream, tls };
        link.shake_hands().await?;
        Ok(link)
    }

    async fn shake_hands(&mut self) -> Result<(), LinkError> {
        let Link { stream, tls: Some(tls) } = self else { return Ok(()) };
        let mut bytes = Vec::new();
        while tls.session.is_handshaking() {
            let opened = tls.open(&bytes);
            stream.write_all(&std::mem::take(&mut tls.out)).await?;
            opened?;
            bytes.clear();
            if tls.session.is_handshaking() && stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(())
    }

    /// Says something.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn write(&mut self, plain: BytesMut) -> Result<(), LinkError> {
        let Some(tls) = &mut self.tls else { return Ok(self.stream.write_all(&plain).await?) };
        tls.session.send(&plain, &mut tls.out)?;
        Ok(self.stream.write_all(&std::mem::take(&mut tls.out)).await?)
    }

    /// Appends what comes; answers how many bytes came over the socket.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn read(&mut self, plain: &mut Vec<u8>) -> Result<usize, LinkError> {
        let mut bytes = [0; 512];
        let count = self.stream.read(&mut bytes).await?;
        match &mut self.tls {
            None => plain.extend_from_slice(&bytes[..count]),
            Some(tls) => {
                tls.open(&bytes[..count])?;
                plain.extend_from_slice(tls.opened());
            }
        }
        Ok(count)
    }

    /// The socket, in blocking mode, for others to carry.
    ///
    /// # Errors
    /// The machine says no.
    pub fn into_parts(self) -> io::Result<(std::net::TcpStream, Option<Box<Sealed>>)> {
        let stream = self.stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok((stream, self.tls))
    }
}
