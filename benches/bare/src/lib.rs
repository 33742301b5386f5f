//! The bare limit of a machine: a relay that does nothing but pass frames on and ack them.
//!
//! The binary `chatring-bare` is that relay, with or without a group-commit log behind it. The
//! library holds its parts, of which the load generator uses some: the [`frame`]s, so that it can
//! speak with the relay, the [`ring`], so that it can keep up with it, and what both do to a
//! [`log`]'s file and to a thread's [`cpu`].

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cpu;
pub mod frame;
pub mod log;
pub mod relay;
#[expect(unsafe_code, reason = "what is given to the kernel names memory that it uses")]
pub mod ring;
