//! How a session behaves: what the caller chooses when it makes one.

use super::limits;

/// A point of the caller's monotonic clock, in milliseconds from an origin of its choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// The point this many milliseconds later.
    #[must_use]
    pub const fn after(self, ms: u64) -> Millis {
        Millis(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to here; 0 if it is later.
    pub const fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Choices of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Token of the user. [`Session::set_token`](super::Session::set_token) renews it.
    pub token: String,
    /// Which messages become events.
    pub delivery: Delivery,
    /// What is kept of messages after their event.
    pub keep: Keep,
    /// Whether changes of the cache are collected for `poll_writes`. Without it a session forgets
    /// everything when it is dropped.
    pub persist: bool,
    /// Sends that may wait in the outbox.
    pub outbox_entries_max: usize,
    /// Bytes of bodies that may wait in the outbox.
    pub outbox_bytes_max: usize,
    /// Longest pause between two attempts to connect.
    pub backoff_ms_max: u64,
}

impl Config {
    /// The choices of an application with a screen: newest messages first, some kept.
    pub fn new(token: impl Into<String>) -> Config {
        Config {
            token: token.into(),
            delivery: Delivery::Newest,
            keep: Keep::Rows(limits::ROWS_KEPT_DEFAULT),
            persist: false,
            outbox_entries_max: limits::OUTBOX_ENTRIES_DEFAULT,
            outbox_bytes_max: limits::OUTBOX_BYTES_DEFAULT,
            backoff_ms_max: limits::BACKOFF_MS_MAX,
        }
    }

    /// The choices of a program that must see every message: dense delivery, nothing kept.
    pub fn dense(token: impl Into<String>, start: Start) -> Config {
        Config { delivery: Delivery::Dense(start), keep: Keep::Nothing, ..Config::new(token) }
    }
}

/// Which messages become `Message` events. Either way those of a channel ascend, and none comes
/// twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Every message of every channel, without a gap: what is missing is read first.
    Dense(Start),
    /// After an absence only what the sync brings along (the newest messages); what lies between is
    /// told by `Skipped` and read when the application asks for it.
    Newest,
}

/// Where dense delivery begins in a channel that the cache does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest message kept.
    Oldest,
    /// After the newest message at the time of the first sync. Channels that appear later are
    /// delivered from their first message.
    Head,
}

/// What the session keeps of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: a message is gone from memory once its event was polled.
    Nothing,
    /// The newest so many of each channel.
    Rows(usize),
}
