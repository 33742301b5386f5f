//! What operators ask: whether the node lives and serves, and its figures.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chatring_wire::ErrorCode;

use super::problem::Problem;
use super::{Phase, Shared, metrics};

pub(super) fn router() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
}

async fn alive() -> Response {
    text(StatusCode::OK, "ok\n")
}

async fn ready(State(state): State<Shared>) -> Response {
    match state.phase() {
        Phase::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Ready => match state.lacks().await {
            None => text(StatusCode::OK, "ready\n"),
            Some(lack) => text(StatusCode::SERVICE_UNAVAILABLE, lack),
        },
        Phase::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

async fn scrape(State(state): State<Shared>) -> Response {
    match metrics::encode(state.metrics()) {
        Ok(body) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], body).into_response(),
        Err(_) => Problem::new(ErrorCode::Internal)
            .detail("the figures cannot be written")
            .into_response(),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}
