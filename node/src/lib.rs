//! The server: moves bytes between sockets, the machines of `chatring-core` and store engines.
//!
//! The binary `chatring` is a thin shell over this crate; tests and benchmarks use its modules.

pub mod api;
pub mod auth;
pub mod cli;
pub mod config;
pub mod files;
pub mod gateway;
pub mod held;
pub mod limits;
pub mod link;
pub mod log;
pub mod metrics;
pub mod node;
#[cfg(test)]
mod own_process;
pub mod rt;
pub mod scheduler;
pub mod server;
pub mod store;
pub mod takeover;
pub mod tls;
