//! Accepts HTTP connections within bounds, and waits for signals.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::warn;

use super::ApiEvent;
use crate::limits::{
    HTTP_ACCEPT_PAUSE_MS, HTTP_CONNECTION_MS_MAX, HTTP_HEAD_BYTES_MAX, HTTP_HEAD_MS_MAX,
    HTTP_HEADERS_MAX,
};

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

/// Serves until the other end of `stopped` is dropped. When all connections are taken, further ones
/// wait in the listener's backlog.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    mut stopped: watch::Receiver<()>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "the HTTP address cannot be served");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let accepted = async {
            let places = Arc::clone(&places);
            let place = places.acquire_owned().await.expect("it is never closed");
            listener.accept().await.map(|(stream, _)| (stream, place))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            _ = stopped.changed() => return,
        };
        match accepted {
            Ok((stream, place)) => {
                tokio::spawn(connection(stream, router.clone(), place));
            }
            Err(error) => {
                warn!(%error, "an HTTP connection was not accepted");
                tokio::time::sleep(Duration::from_millis(HTTP_ACCEPT_PAUSE_MS)).await;
            }
        }
    }
}

/// Errors are the peer's; there is nobody to tell.
async fn connection(stream: TcpStream, router: Router, _place: OwnedSemaphorePermit) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HTTP_HEAD_MS_MAX))
        .max_buf_size(HTTP_HEAD_BYTES_MAX)
        .max_headers(HTTP_HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let _ = tokio::time::timeout(Duration::from_millis(HTTP_CONNECTION_MS_MAX), served).await;
}
