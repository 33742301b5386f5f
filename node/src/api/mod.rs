//! The service thread: the HTTP address and the signals, on a small tokio runtime of its own.

mod metrics;
mod routes;
mod serve;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use tokio::sync::watch;

use crate::metrics::Metric;
use crate::takeover;

/// Gathers the figures of the node. Called on the service thread, so it must not wait for long.
pub type Scrape = Box<dyn Fn() -> Vec<Metric> + Send + Sync>;

/// What the service thread tells the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiEvent {
    /// SIGTERM or SIGINT arrived.
    Stop,
}

/// How far the node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It recovers.
    Starting,
    /// All shards accept.
    Ready,
    /// It is about to stop.
    Draining,
}

/// The running service thread.
#[derive(Debug)]
pub struct Api {
    addr: SocketAddr,
    state: Arc<State>,
    stop: watch::Sender<()>,
    thread: JoinHandle<()>,
}

impl Api {
    /// Listens, and catches the signals from here on. `on_event` is called on the service thread.
    pub fn start(
        listen: SocketAddr,
        connections_max: usize,
        on_event: impl Fn(ApiEvent) + Send + 'static,
    ) -> io::Result<Api> {
        let listener = takeover::wait_for_address(listen, || TcpListener::bind(listen))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let state = Arc::new(State::default());
        let (stop, stopped) = watch::channel(());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _guard = runtime.enter();
            serve::Signals::new()?
        };
        let router = routes::router(Arc::clone(&state));
        let thread = std::thread::Builder::new().name("service".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let signals = signals.forward(on_event);
                let served = serve::serve(listener, router, connections_max, stopped);
                tokio::select! {
                    () = signals => {}
                    () = served => {}
                }
            });
        })?;
        Ok(Api { addr, state, stop, thread })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on `/readyz` answers so.
    pub fn set_phase(&self, phase: Phase) {
        self.state.phase.store(phase as u8, Ordering::Release);
    }

    /// What `/metrics` asks. Only the first call counts.
    pub fn set_scrape(&self, scrape: Scrape) {
        let _ = self.state.scrape.set(scrape);
    }

    /// Ends the thread.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

/// What handlers see of the node.
#[derive(Default)]
struct State {
    phase: AtomicU8,
    scrape: OnceLock<Scrape>,
}

impl State {
    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    fn scrape(&self) -> Vec<Metric> {
        self.scrape.get().map_or_else(Vec::new, |scrape| scrape())
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
