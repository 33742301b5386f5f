//! The API's description, and a page that shows it without loading anything from outside.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

use super::Shared;

/// The page. It reads `/v1/openapi.json` and writes it out.
const PAGE: &str = include_str!("docs.html");

/// Nothing but the page's own script and style may run, and it may ask this server alone.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let (script, style) = (hash_of("script"), hash_of("style"));
    format!(
        "default-src 'none'; connect-src 'self'; script-src 'sha256-{script}'; \
         style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

pub(super) fn router(document: Arc<str>) -> Router<Shared> {
    let description = move || {
        let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-cache")];
        let response = (headers, document.to_string()).into_response();
        std::future::ready(response)
    };
    Router::new().route("/v1/openapi.json", get(description)).route("/docs", get(page))
}

async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
    ];
    (headers, PAGE).into_response()
}

/// SHA-256 of what stands between the page's tags of this name.
fn hash_of(tag: &str) -> String {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let inside = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    STANDARD.encode(digest(&SHA256, inside.map_or("", |(inside, _)| inside).as_bytes()))
}
