//! What chat is: the store interface, the keyspace, and the pure state machines of a shard.
//!
//! A [`shard::Shard`] owns users and channels. It is driven by [`effect::Input`]s and answers with
//! [`effect::Effect`]s; it has no socket, thread, file or clock of its own, so that a whole cluster
//! can run in one thread, in virtual time, from a seed. The contract of the driver:
//!
//! 1. call `step(now, input)` for whatever happened,
//! 2. drain `poll_effect()` until it is empty and carry each effect out, in that order; with
//!    `hold_appends` in between, so that what several steps append becomes one group,
//! 3. call `step(now, Input::Tick)` once `deadline()` has passed.
//!
//! Every request to the store that was submitted comes back as exactly one `Input::Store`.

#![forbid(unsafe_code)]

mod attach;
mod boot;
pub mod call;
mod calls;
mod channel;
pub mod counters;
pub mod cursor;
mod decided;
pub mod effect;
mod feed;
pub mod keys;
pub mod kv;
pub mod lane;
pub mod limits;
mod marker;
mod once;
pub mod placement;
mod poll;
mod queue;
mod reach;
mod recent;
mod relation;
mod request;
pub mod sabotage;
mod session;
pub mod shard;
mod sync;
mod timers;
mod user;
pub mod values;
