//! A TLS connection on a socket of tokio.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{TlsError, TlsScratch, TlsSession};

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;
/// Plain bytes that one write takes at most.
const WRITE_BYTES_MAX: usize = 32 * 1024;

thread_local! {
    /// What reads work in; a connection holds nothing of it.
    static SCRATCH: RefCell<(Vec<u8>, TlsScratch)> =
        RefCell::new((vec![0; READ_BYTES], TlsScratch::default()));
}

/// A socket with its TLS. While it idles it holds no buffer.
#[derive(Debug)]
pub struct TlsStream {
    socket: TcpStream,
    session: Box<TlsSession>,
    /// Plain bytes that nobody has read yet.
    plain: BytesMut,
    /// Bytes that the socket has not taken yet.
    out: BytesMut,
    /// Reading has ended: in good order, or because of this.
    ended: Option<Result<(), io::ErrorKind>>,
}

impl TlsStream {
    /// A connection whose handshake is to be made, by [`TlsStream::handshake`].
    pub fn new(socket: TcpStream, session: Box<TlsSession>) -> TlsStream {
        let (plain, out) = (BytesMut::new(), BytesMut::new());
        TlsStream { socket, session, plain, out, ended: None }
    }

    /// A connection that somebody else had until now: with plain bytes that nobody has read,
    /// received bytes that the session has not been given, and bytes that are to be written.
    pub fn taken_over(
        socket: TcpStream,
        session: Box<TlsSession>,
        plain: BytesMut,
        received: &[u8],
        out: BytesMut,
    ) -> TlsStream {
        let mut stream = TlsStream { socket, session, plain, out, ended: None };
        if !received.is_empty() {
            stream.take(received);
        }
        stream
    }

    /// Makes the handshake. Set a limit of time.
    ///
    /// # Errors
    /// The peer is not taken, or gone.
    pub async fn handshake(&mut self) -> io::Result<()> {
        if let TlsStream { session, out, .. } = self
            && session.is_handshaking()
        {
            // A client speaks first.
            session.receive(&[], &mut TlsScratch::default(), out).map_err(as_io)?;
        }
        std::future::poll_fn(|cx| self.poll_handshake(cx)).await
    }

    /// Whether the handshake was made and something can be said.
    pub fn is_open(&self) -> bool {
        self.session.is_open()
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.is_handshaking() {
            ready!(self.poll_out(cx))?;
            ready!(self.poll_fill(cx))?;
            if self.ended.is_some() && self.session.is_handshaking() {
                return Poll::Ready(self.outcome().and(Err(io::ErrorKind::UnexpectedEof.into())));
            }
        }
        self.poll_out(cx)
    }

    /// Reads once from the socket.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let read = SCRATCH.with_borrow_mut(|(room, scratch)| {
            let mut buffer = ReadBuf::new(room);
            let read = Pin::new(&mut self.socket).poll_read(cx, &mut buffer);
            if let Poll::Ready(Ok(())) = read {
                match buffer.filled() {
                    // Without the peer's last word somebody else may have cut the stream.
                    [] => self.ended = Some(Err(io::ErrorKind::UnexpectedEof)),
                    received => self.take_in(received, scratch),
                }
            }
            read
        });
        ready!(read)?;
        if self.ended.is_some() {
            // The alert, if the socket takes it.
            let _ = self.poll_out(cx)?;
        }
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, received: &[u8]) {
        SCRATCH.with_borrow_mut(|(_, scratch)| self.take_in(received, scratch));
    }

    fn take_in(&mut self, received: &[u8], scratch: &mut TlsScratch) {
        let result = self.session.receive(received, scratch, &mut self.out);
        self.plain.extend_from_slice(&scratch.plain);
        if result.is_err() {
            self.ended = Some(Err(io::ErrorKind::InvalidData));
        } else if self.session.peer_has_closed() {
            self.ended = Some(Ok(()));
        }
    }

    fn outcome(&self) -> io::Result<()> {
        match self.ended {
            Some(Err(kind)) => Err(kind.into()),
            _ => Ok(()),
        }
    }

    /// Writes what is sealed.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        self.out = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.plain.is_empty() {
            if self.ended.is_some() {
                return Poll::Ready(self.outcome());
            }
            // What the protocol itself has to say goes out meanwhile.
            let _ = self.poll_out(cx)?;
            ready!(self.poll_fill(cx))?;
        }
        let length = self.plain.len().min(buffer.remaining());
        buffer.put_slice(&self.plain[..length]);
        self.plain.advance(length);
        if self.plain.is_empty() {
            self.plain = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_out(cx))?;
        let length = bytes.len().min(WRITE_BYTES_MAX);
        let TlsStream { session, out, .. } = &mut *self;
        session.send(&bytes[..length], out).map_err(as_io)?;
        // It is taken; the rest follows with the next write or flush.
        let _ = self.poll_out(cx)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let TlsStream { session, out, .. } = &mut *self;
        session.close(out);
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A socket with or without TLS.
#[derive(Debug)]
pub enum MaybeTls {
    /// Without.
    Plain(TcpStream),
    /// With; boxed because it is far larger.
    Tls(Box<TlsStream>),
}

impl AsyncRead for MaybeTls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            MaybeTls::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            MaybeTls::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => Pin::new(stream).poll_flush(cx),
            MaybeTls::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            MaybeTls::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            MaybeTls::Plain(stream) => stream.is_write_vectored(),
            // Records are made of one piece.
            MaybeTls::Tls(_) => false,
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            MaybeTls::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }
}

fn as_io(error: TlsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
