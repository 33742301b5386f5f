//! Chatring's client.

pub mod token;
