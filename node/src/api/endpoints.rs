//! The table of endpoints: each one is routed, measured and described by one line.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::http::Method;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, on};
use chatring_wire::ErrorCode;
use serde_json::Value;

use super::describe::{About, Described, Description};
use super::problem::Problem;
use super::stats::RouteStats;
use super::{Phase, Shared};

/// Endpoints, while they are put together.
pub(super) struct Endpoints {
    router: Router<Shared>,
    stats: Vec<Arc<RouteStats>>,
    description: Description,
}

/// What the endpoints come to.
pub(super) struct Built {
    pub router: Router<Shared>,
    pub stats: Vec<Arc<RouteStats>>,
    pub description: Value,
}

impl Endpoints {
    pub(super) fn new() -> Endpoints {
        let (router, stats) = (Router::new(), Vec::new());
        Endpoints { router, stats, description: Description::new() }
    }

    /// Adds an endpoint. `fails` are the errors of its own, besides those of its extractors.
    pub(super) fn add<H, T, D>(
        mut self,
        (method, path): (Method, &str),
        about: About,
        fails: &[ErrorCode],
        handler: H,
    ) -> Endpoints
    where
        H: Handler<T, Shared> + Described<D>,
        T: 'static,
    {
        self.description.add(&method.as_str().to_ascii_lowercase(), path, &about, |operation| {
            H::describe(operation);
            operation.fails(fails);
        });
        let stats = RouteStats::new(format!("{method} {path}"));
        self.stats.push(Arc::clone(&stats));
        let filter = MethodFilter::try_from(method).expect("a method that HTTP has");
        self.router = self.router.route(path, on(filter, Measured { handler, stats }));
        self
    }

    pub(super) fn build(self) -> Built {
        let description = self.description.finish();
        Built { router: self.router, stats: self.stats, description }
    }
}

/// A handler whose calls are counted and timed, and refused while the node does not serve.
#[derive(Clone)]
struct Measured<H> {
    handler: H,
    stats: Arc<RouteStats>,
}

impl<T: 'static, H: Handler<T, Shared>> Handler<T, Shared> for Measured<H> {
    type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: Request, state: Shared) -> Self::Future {
        Box::pin(async move {
            self.stats.start();
            let from = Instant::now();
            let response = match state.phase() {
                Phase::Ready => self.handler.call(request, state).await,
                Phase::Starting => Problem::new(ErrorCode::Unavailable)
                    .detail("the server recovers")
                    .into_response(),
                Phase::Draining => Problem::new(ErrorCode::Draining).into_response(),
            };
            let error = response.extensions().get::<ErrorCode>().copied();
            self.stats.end(from.elapsed(), error);
            response
        })
    }
}
