//! What is at which path.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{Method, Uri};
use chatring_wire::ErrorCode;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::endpoints::Built;
use super::limits::CORS_AGE_S;
use super::problem::Problem;
use super::{Shared, docs, operator};

/// What each address answers.
pub(super) struct Routers {
    /// The API's own: everything.
    pub own: Router,
    /// That of WebSocket clients: what anybody may ask, and nothing of the operator's.
    pub public: Router,
}

pub(super) fn routers(built: Built, state: &Shared, cors_origins: &[HeaderValue]) -> Routers {
    let document = Arc::<str>::from(built.description.to_string());
    let public = built.router.merge(docs::router(document));
    let own = public.clone().merge(operator::router());
    let finish = |router: Router<Shared>| {
        let router = router
            .fallback(unknown)
            .method_not_allowed_fallback(wrong_method)
            .with_state(Arc::clone(state));
        match cors_origins {
            [] => router,
            origins => router.layer(cors(origins)),
        }
    };
    Routers { own: finish(own), public: finish(public) }
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let origins = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().cloned()),
    };
    let idempotency_key = HeaderName::from_static("idempotency-key");
    let last_event_id = HeaderName::from_static("last-event-id");
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, idempotency_key, last_event_id])
        .expose_headers([axum::http::header::RETRY_AFTER])
        .max_age(std::time::Duration::from_secs(CORS_AGE_S))
}

async fn unknown(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    Problem::new(ErrorCode::NotFound).detail(format!("nothing is at {path}"))
}

async fn wrong_method(method: Method) -> Problem {
    let method: String = method.as_str().chars().take(20).collect();
    Problem::new(ErrorCode::MethodNotAllowed).detail(format!("{method} is not known here"))
}
