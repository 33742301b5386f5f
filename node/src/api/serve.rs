//! Accepts HTTP connections within bounds, and waits for signals.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use bytes::{Bytes, BytesMut};
use chatring_client::tls::{MaybeTls, TlsSession, TlsStream};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::limits::HTTP_ACCEPT_PAUSE_MS;
use super::{ApiEvent, Shared, socket};
use crate::gateway::PlainHttp;

/// The signals that stop the server.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Only where there is something to read again; else it ends the process, as ever.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Catches them from here on.
    pub(super) fn new(reloads: bool) -> io::Result<Signals> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let hang_up = reloads.then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Signals { terminate, interrupt, hang_up })
    }

    /// Tells of each one, for ever.
    pub(super) async fn forward(mut self, on_event: impl Fn(ApiEvent)) {
        loop {
            let hang_up = async {
                match &mut self.hang_up {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                _ = self.terminate.recv() => ApiEvent::Stop,
                _ = self.interrupt.recv() => ApiEvent::Stop,
                _ = hang_up => ApiEvent::Reload,
            };
            on_event(event);
        }
    }
}

/// Serves until the other end of `stopped` is dropped. When all places are taken, further
/// connections wait in the listener's backlog; those of an address with too many are closed.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    state: Shared,
    tls: Option<Arc<ServerConfig>>,
    mut stopped: watch::Receiver<()>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "the HTTP address cannot be served");
            return;
        }
    };
    loop {
        let accepted = async {
            let reserved = state.places.reserve().await;
            listener.accept().await.map(|(stream, peer)| (stream, peer, reserved))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            _ = stopped.changed() => return,
        };
        match accepted {
            Ok((stream, peer, reserved)) => match state.places.settle(reserved, peer.ip()) {
                Some(place) => {
                    let _ = stream.set_nodelay(true);
                    let Some(stream) = open(stream, tls.as_ref()) else { continue };
                    let served =
                        socket::serve(stream, Bytes::new(), peer.ip(), router.clone(), &state);
                    spawn_with(served, place);
                }
                None => {
                    state.refused.fetch_add(1, Ordering::Relaxed);
                }
            },
            Err(error) => {
                warn!(%error, "an HTTP connection was not accepted");
                tokio::time::sleep(Duration::from_millis(HTTP_ACCEPT_PAUSE_MS)).await;
            }
        }
    }
}

/// Serves connections that another address has accepted, within the same bounds. Ends when nobody
/// can hand over any more.
pub(super) async fn take_handed(
    mut handed: mpsc::Receiver<PlainHttp>,
    router: Router,
    state: Shared,
) {
    while let Some(PlainHttp { stream, received, tls, place }) = handed.recv().await {
        let own = stream.peer_addr().ok().and_then(|peer| {
            let reserved = state.places.try_reserve()?;
            Some((peer.ip(), state.places.settle(reserved, peer.ip())?))
        });
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        match (own, stream) {
            (Some((peer, own)), Ok(stream)) => {
                let (stream, received) = match tls {
                    None => (MaybeTls::Plain(stream), received),
                    Some(tls) => {
                        let plain = BytesMut::from(received);
                        let (session, came) = (tls.session, &tls.unread);
                        let stream =
                            TlsStream::taken_over(stream, session, plain, came, tls.unsent);
                        (MaybeTls::Tls(Box::new(stream)), Bytes::new())
                    }
                };
                let served = socket::serve(stream, received, peer, router.clone(), &state);
                spawn_with(served, (own, place));
            }
            _ => {
                state.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn open(stream: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Option<MaybeTls> {
    let Some(tls) = tls else { return Some(MaybeTls::Plain(stream)) };
    match TlsSession::server(Arc::clone(tls)) {
        Ok(session) => Some(MaybeTls::Tls(Box::new(TlsStream::new(stream, Box::new(session))))),
        Err(error) => {
            warn!(%error, "TLS cannot be spoken");
            None
        }
    }
}

/// Runs a task that holds something to its end.
fn spawn_with(task: impl Future<Output = ()> + Send + 'static, held: impl Send + 'static) {
    // A block has two places for what it takes in and awaits: one before, one meanwhile.
    let task = Box::pin(task);
    tokio::spawn(async move {
        task.await;
        drop(held);
    });
}
