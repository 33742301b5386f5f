//! Connections that prepare everything and send the messages, one request in flight on each.

use std::time::Instant;

use chatring_bare::ring::Key;

use crate::http::answer::Answers;

/// How many there are. Each is the sender of as many channels as every other.
pub const COUNT: usize = 16;

/// One of them.
#[derive(Default)]
pub struct Helper {
    /// None once the node has ended what was idle for too long.
    pub key: Option<Key>,
    pub answers: Answers,
    /// What it waits for the answer to.
    pub asked: Option<Task>,
}

/// What is to be done for a user.
#[derive(Clone, Copy, Debug)]
pub enum Task {
    /// The user is made known, and gets a cursor.
    SignIn(usize),
    /// The channel of the helper and the user is opened.
    Open(usize),
    /// The message for the user is sent; it was to be sent at this time.
    Send(usize, Instant),
}

/// Whose channel with a user it is.
pub const fn helper_of(user: usize) -> usize {
    user % COUNT
}

/// The name (`sub`) of a sender.
pub fn sender_name(helper: usize) -> String {
    format!("parked-sender-{helper}")
}

/// The name (`sub`) of a user who waits.
pub fn user_name(user: usize) -> String {
    format!("parked-{user}")
}
