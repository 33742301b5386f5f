//! What went wrong, as RFC 9457 has it, with the numbers and names that the WebSocket uses.

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chatring_wire::{ErrorClass, ErrorCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::limits::RETRY_AFTER_MS;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    code: ErrorCode,
    detail: String,
    field: Option<String>,
    retry_after_ms: Option<u64>,
}

/// The body of an answer that tells of an error (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct ProblemBody<'a> {
    /// Always `about:blank`: `code` and `name` say what it is.
    r#type: &'static str,
    /// The words of the HTTP status.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// Number of the error, the same as on the WebSocket.
    code: u16,
    /// Name of the error.
    name: &'a str,
    /// Whose fault it is: `protocol`, `auth`, `request`, `busy` or `internal`.
    class: &'a str,
    /// For people, in English.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[schemars(default)]
    detail: &'a str,
    /// Path of the field of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    /// When it is worth another try, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl Problem {
    /// A problem without a word for people.
    pub fn new(code: ErrorCode) -> Problem {
        Problem { code, detail: String::new(), field: None, retry_after_ms: None }
    }

    /// A value that is outside of what is allowed.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Problem {
        Problem::new(ErrorCode::Invalid).field(field).detail(detail)
    }

    /// The same, with a word for people.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Problem {
        self.detail = detail.into();
        self
    }

    /// The same, with the path of the field that is wrong.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Problem {
        self.field = Some(field.into());
        self
    }

    /// The same, with the time after which it is worth another try.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u64) -> Problem {
        self.retry_after_ms = Some(ms);
        self
    }

    /// What it is.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// When to come back: who is told "later" is always told when.
    fn retry_after(&self) -> Option<u64> {
        let later = self.code.class() == ErrorClass::Busy;
        self.retry_after_ms.or(later.then_some(RETRY_AFTER_MS))
    }
}

impl From<ErrorCode> for Problem {
    fn from(code: ErrorCode) -> Problem {
        Problem::new(code)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after_ms) = (status_of(self.code), self.retry_after());
        let body = ProblemBody {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            code: self.code.number(),
            name: self.code.name(),
            class: class_name(self.code.class()),
            detail: &self.detail,
            field: self.field.as_deref(),
            retry_after_ms,
        };
        let body = serde_json::to_vec(&body).expect("strings and numbers are JSON");
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(ms) = retry_after_ms {
            headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000).max(1)));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self.code);
        response
    }
}

/// The HTTP status of an error.
pub(super) const fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Malformed
        | ErrorCode::UnknownOpcode
        | ErrorCode::UnknownAlias
        | ErrorCode::Unexpected
        | ErrorCode::FrameTooSmall
        | ErrorCode::SelfChannel
        | ErrorCode::Invalid => StatusCode::BAD_REQUEST,
        ErrorCode::InvalidToken
        | ErrorCode::ExpiredToken
        | ErrorCode::RevokedToken
        | ErrorCode::WrongCredentials => StatusCode::UNAUTHORIZED,
        ErrorCode::UnknownChannel
        | ErrorCode::UnknownUser
        | ErrorCode::UnknownDevice
        | ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::SignUpClosed | ErrorCode::Blocked => StatusCode::FORBIDDEN,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::Timeout => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::OutOfOrder
        | ErrorCode::RetryExpired
        | ErrorCode::LimitReached
        | ErrorCode::HandleTaken => StatusCode::CONFLICT,
        ErrorCode::Expired => StatusCode::GONE,
        ErrorCode::TooLarge | ErrorCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorCode::CmidReused => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::Busy => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Unavailable | ErrorCode::Draining => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

const fn class_name(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Protocol => "protocol",
        ErrorClass::Auth => "auth",
        ErrorClass::Request => "request",
        ErrorClass::Busy => "busy",
        ErrorClass::Internal => "internal",
    }
}
