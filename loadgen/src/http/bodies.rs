//! The parts of the API's answers that the generator looks at.

use std::borrow::Cow;

use serde::Deserialize;

/// What is new.
#[derive(Debug, Deserialize)]
pub struct Sync<'a> {
    /// In their order.
    #[serde(borrow)]
    pub events: Vec<Event<'a>>,
    /// Where to go on.
    pub cursor: &'a str,
    /// Whether it is worth asking again at once.
    pub more: bool,
    /// Whether the cursor was of no use.
    pub replace: bool,
}

/// An event of any type: what some of them have is optional.
#[derive(Debug, Deserialize)]
pub struct Event<'a> {
    /// `message`, `gap`, and others that do not matter here.
    pub r#type: &'a str,
    /// The channel.
    pub channel: Option<&'a str>,
    /// Of a gap: the newest position that may be missing.
    pub below: Option<u64>,
    /// Of a message: its position.
    pub seq: Option<u64>,
    /// Of a message: the sender's number in the channel.
    pub sender: Option<u32>,
    /// Of a text.
    #[serde(borrow)]
    pub text: Option<Cow<'a, str>>,
}

/// Where a message is stored.
#[derive(Debug, Deserialize)]
pub struct Sent<'a> {
    /// Its position.
    pub seq: u64,
    /// Its Unix time in milliseconds.
    pub time: u64,
    /// What "stored" means.
    pub durability: &'a str,
}

/// A channel.
#[derive(Debug, Deserialize)]
pub struct Channel<'a> {
    /// Its id.
    pub id: &'a str,
    /// The user's own number in it.
    pub me: u32,
    /// Its newest position.
    pub head: u64,
}

/// A part of the history.
#[derive(Debug, Deserialize)]
pub struct History<'a> {
    /// Ascending.
    #[serde(borrow)]
    pub messages: Vec<Message<'a>>,
    /// Whether there are more.
    pub gap: bool,
}

/// A stored message.
#[derive(Debug, Deserialize)]
pub struct Message<'a> {
    /// Its position.
    pub seq: u64,
    /// The sender's number in the channel.
    pub sender: u32,
    /// The text, if it is one.
    #[serde(borrow)]
    pub text: Option<Cow<'a, str>>,
}

/// An error.
#[derive(Debug, Deserialize)]
pub struct Problem<'a> {
    /// Its number.
    pub code: u16,
    /// For people.
    #[serde(borrow)]
    pub detail: Cow<'a, str>,
    /// When it is worth another try.
    pub retry_after_ms: Option<u32>,
}
