//! Version 1 of the HTTP API: each endpoint in one line, and what it does in a module by subject.

mod me;

use axum::http::Method;

use super::describe::About;
use super::endpoints::Endpoints;

/// All of them.
pub(super) fn endpoints() -> Endpoints {
    Endpoints::new().add(
        (Method::GET, "/v1/me"),
        About { id: "getMe", tag: "profile", summary: "Who I am" },
        &[],
        me::show,
    )
}
