//! Accepts HTTP connections within bounds, and waits for signals.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::warn;

use super::limits::HTTP_ACCEPT_PAUSE_MS;
use super::places::Places;
use super::{ApiEvent, Shared, socket};

/// The signals that stop the server.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them from here on.
    pub(super) fn new() -> io::Result<Signals> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Signals { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Tells of each one, for ever.
    pub(super) async fn forward(mut self, on_event: impl Fn(ApiEvent)) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            on_event(ApiEvent::Stop);
        }
    }
}

/// Serves until the other end of `stopped` is dropped. When all places are taken, further
/// connections wait in the listener's backlog; those of an address with too many are closed.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    places: Arc<Places>,
    state: Shared,
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
            let reserved = places.reserve().await;
            listener.accept().await.map(|(stream, peer)| (stream, peer, reserved))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            _ = stopped.changed() => return,
        };
        match accepted {
            Ok((stream, peer, reserved)) => match places.settle(reserved, peer.ip()) {
                Some(place) => {
                    let router = router.clone();
                    tokio::spawn(async move {
                        socket::serve(stream, Bytes::new(), router).await;
                        drop(place);
                    });
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
