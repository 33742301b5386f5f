//! Rust client of Chatring: a session without I/O, and a cache that survives restarts.
//!
//! ```text
//!   application ── open, send, mark ──▶ Session ── poll_transmit ──▶ socket
//!               ◀── poll_event ───────          ◀── handle_frame ───
//!                                       │ poll_writes
//!                                       ▼
//!                                     CacheFile
//! ```
//!
//! [`Session`] decides, and does no I/O: it has no clock, no socket, no random source, and so it
//! runs in virtual time as well as over TCP.
#![forbid(unsafe_code)]

pub mod cache;
pub mod driver;
pub mod session;
pub mod tls;
pub mod token;

pub use cache::{CacheError, CacheFile, CacheImage, CacheWrite, OutboxEntry};
pub use session::{
    Config, Delivery, Disconnect, End, Event, Keep, Millis, OpenError, SendError, Session, Start,
    Stats, Ticket, Wish,
};
