//! Deterministic simulation of a whole Chatring node, with several shards and many devices that run
//! the real client session, in virtual time, from a seed.
//!
//! ```text
//!  device: client session ── codec ── link (latency, stalls, cuts) ── codec ── shard machines
//!     │ cache image (survives restarts)                                        │ faulty store
//!     └──────────────── checker: what each was told, against what is stored ───┘
//! ```
//!
//! Everything that may vary is drawn from the seed: sizes, faults, crashes, absences, clocks. A run
//! ends with a quiet time without faults, after which every device must know everything that is
//! stored, and everything that was acknowledged must be stored, once and in its sender's order.

#![forbid(unsafe_code)]

mod check;
mod device;
mod node;
mod old_channels;
mod plan;
mod world;

pub use check::Violation;
pub use plan::Plan;
pub use world::{Report, run};
