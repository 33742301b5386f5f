//! Whether a connection of HTTP/2 is of use: which requests it has under way, and since when none.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::sleep;

/// The requests of one connection.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: usize,
    /// When the newest of them ended, or the connection began.
    since: Instant,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Open(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Arc<Activity> {
        Arc::new(Activity { state: Mutex::new(State { open: 0, since: Instant::now() }) })
    }

    /// A request begins. It lasts until what is given is dropped.
    pub(super) fn begin(self: &Arc<Activity>) -> Open {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).open += 1;
        Open(Arc::clone(self))
    }

    /// Returns once there has been no request for so long; it may notice up to as much later.
    pub(super) async fn idles_for(&self, limit: Duration) {
        loop {
            match self.left(limit) {
                Duration::ZERO => return,
                left => sleep(left).await,
            }
        }
    }

    /// When to look again whether the connection idles; zero if it does.
    fn left(&self, limit: Duration) -> Duration {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.open {
            0 => limit.saturating_sub(state.since.elapsed()),
            _ => limit,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.open -= 1;
        state.since = Instant::now();
    }
}

/// The body of an answer, to whose end the request is under way.
pub(super) struct Counted {
    pub body: Body,
    pub _open: Open,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_idles_only_while_no_request_is_under_way() {
        let (activity, limit) = (Activity::new(), Duration::from_nanos(1));
        std::thread::sleep(limit);
        assert_eq!(activity.left(limit), Duration::ZERO);
        let (first, second) = (activity.begin(), activity.begin());
        drop(first);
        assert_eq!(activity.left(limit), limit, "another one is under way");
        drop(second);
        std::thread::sleep(limit);
        assert_eq!(activity.left(limit), Duration::ZERO);
        let hour = Duration::from_secs(3_600);
        assert!(activity.left(hour) > Duration::ZERO, "it has just ended");
    }
}
