//! Deterministic simulation of a whole Chatring node, with several shards and many clients, in
//! virtual time, from a seed.
//!
//! ```text
//!  device: client session ── codec ── link (latency, stalls, cuts) ── codec ── shard machines
//!     │ cache image (survives restarts)                                        │ │ faulty store
//!  poller: cursor ── calls (late, given up), answers (late, lost) ─────────────┘ │
//!     └──────────────── checker: what each was told, against what is stored ─────┘
//! ```
//!
//! Devices run the real client session. Pollers, in some of the seeds, have no connection: they
//! sync, wait for what is new, and send without a base, by calls. Now and then they go back to an
//! older cursor, or take their cursor to a connection and go on by calls with what it gave.
//!
//! In half of the seeds users block one another, and lift that. No message of the two may be stored
//! between the answer to a block and its end.
//!
//! In half of the seeds the accounts remove devices. From the answer on a device's session is over
//! within a second, nothing that it sends is acknowledged or stored, and it is not let in again,
//! while everybody else goes on.
//!
//! Everything that may vary is drawn from the seed: sizes, faults, crashes, absences, clocks. A run
//! ends with a quiet time without faults, after which every client must know everything that is
//! stored, and everything that was acknowledged must be stored, once and in its device's order.

#![forbid(unsafe_code)]

mod accounts;
mod callers;
mod check;
mod device;
mod node;
mod old_channels;
mod plan;
mod poller;
mod removals;
mod seen;
mod world;

pub use check::Violation;
pub use plan::Plan;
pub use world::{Report, run};
