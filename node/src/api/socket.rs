//! One HTTP connection: tells HTTP/1.1 from HTTP/2, and cuts off who sends or takes nothing.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::{Buf as _, Bytes, BytesMut};
use chatring_client::tls::MaybeTls;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, timeout};

use super::activity::{Activity, Counted};
use super::extract::Peer;
use super::limits::{
    HTTP_FIRST_MS_MAX, HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX, HTTP_STALL_MS_MAX, HTTP2_PING_MS,
    HTTP2_SEND_BYTES_MAX, HTTP2_STREAMS_MAX, HTTP2_WINDOW_BYTES,
};
use super::{Phase, Shared};

/// What a client that speaks HTTP/2 says first (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end. `received` was read from it before. Errors are the peer's; there
/// is nobody to tell.
pub(super) fn serve(
    stream: MaybeTls,
    received: Bytes,
    peer: IpAddr,
    router: Router,
    state: &Shared,
) -> impl Future<Output = ()> + Send + use<> {
    let phase = state.phase.subscribe();
    let mut socket = Socket { stream, received, stall: None };
    let state = Arc::clone(state);
    async move {
        let first = Duration::from_millis(HTTP_FIRST_MS_MAX);
        let version = match timeout(first, socket.speaks()).await {
            Ok(Ok(version)) => version,
            Ok(Err(_)) | Err(_) => {
                if let MaybeTls::Tls(stream) = &socket.stream {
                    match stream.is_open() {
                        true => _ = timeout(first, socket.shutdown()).await,
                        false => _ = state.tls_failed.fetch_add(1, Ordering::Relaxed),
                    }
                }
                return;
            }
        };
        let (io, router) = (TokioIo::new(socket), TowerToHyperService::new(router));
        let idle = state.idle;
        let activity = Activity::new();
        let counted = Arc::clone(&activity);
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            let client = state.proxies.client_of(peer, request.headers());
            request.extensions_mut().insert(Peer(client));
            let answered = router.call(request);
            // HTTP/1.1 sees for itself whether a connection idles.
            let open = (version == Version::Http2).then(|| counted.begin());
            async move {
                let response: Response = answered.await?;
                Ok::<_, Infallible>(match open {
                    Some(open) => response.map(|body| Body::new(Counted { body, _open: open })),
                    None => response,
                })
            }
        });
        match version {
            Version::Http1 => {
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(idle)
                    .max_buf_size(HTTP_HEAD_BYTES_MAX)
                    .max_headers(HTTP_HEADERS_MAX)
                    .serve_connection(io, service);
                let never = std::future::pending();
                let served = Box::pin(served);
                until_over(served, phase, never, |served| served.graceful_shutdown()).await;
            }
            Version::Http2 => {
                let served = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(HTTP2_STREAMS_MAX)
                    .max_header_list_size(HTTP_HEAD_BYTES_MAX as u32)
                    .initial_stream_window_size(HTTP2_WINDOW_BYTES)
                    .initial_connection_window_size(HTTP2_WINDOW_BYTES)
                    .max_send_buf_size(HTTP2_SEND_BYTES_MAX)
                    .keep_alive_interval(Duration::from_millis(HTTP2_PING_MS))
                    .keep_alive_timeout(Duration::from_millis(HTTP2_PING_MS))
                    .serve_connection(io, service);
                let idles = activity.idles_for(idle);
                let served = Box::pin(served);
                until_over(served, phase, idles, |served| served.graceful_shutdown()).await;
            }
        }
    }
}

/// Runs a connection to its end; when the node begins to drain or the connection idles, that is
/// after the requests under way. Later ones are served: they ask whether the node is ready.
async fn until_over<C: Future>(
    mut connection: Pin<Box<C>>,
    mut phase: watch::Receiver<Phase>,
    idles: impl Future<Output = ()>,
    shut_down: impl Fn(Pin<&mut C>),
) {
    let draining =
        async { while phase.changed().await.is_ok() && *phase.borrow() != Phase::Draining {} };
    tokio::select! {
        _ = connection.as_mut() => return,
        () = draining => {}
        () = idles => {}
    }
    shut_down(connection.as_mut());
    connection.await;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// A stream whose first bytes may have been read already, and whose peer must take what is written
/// to it.
struct Socket {
    stream: MaybeTls,
    received: Bytes,
    /// Runs while the peer takes nothing. Made only then: a parked connection has none.
    stall: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    /// Reads until it is clear which version the peer speaks.
    async fn speaks(&mut self) -> io::Result<Version> {
        if let MaybeTls::Tls(stream) = &mut self.stream {
            stream.handshake().await?;
        }
        loop {
            let length = self.received.len().min(HTTP2_PREFACE.len());
            if self.received[..length] != HTTP2_PREFACE[..length] {
                return Ok(Version::Http1);
            }
            if length == HTTP2_PREFACE.len() {
                return Ok(Version::Http2);
            }
            let mut bytes = BytesMut::from(&*self.received);
            if self.stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received = bytes.freeze();
        }
    }

    /// Fails if the peer has taken nothing for too long.
    fn check<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let limit = Duration::from_millis(HTTP_STALL_MS_MAX);
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.received.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.received.len().min(buffer.remaining());
        buffer.put_slice(&self.received[..length]);
        self.received.advance(length);
        if self.received.is_empty() {
            self.received = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.check(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.check(cx, shut)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.check(cx, written)
    }
}
