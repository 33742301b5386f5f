//! Chatring's load generator: open- and closed-loop load on the real client, and its own books.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod book;
pub mod cli;
pub mod connection;
pub mod evidence;
pub mod http;
pub mod latency;
pub mod ledger;
pub mod limits;
pub mod link;
pub mod machine;
pub mod plan;
pub mod pool;
pub mod process;
pub mod ready;
pub mod report;
pub mod scenario;
pub mod stall;
pub mod stamp;
pub mod tally;
pub mod threads;
pub mod trend;
pub mod turns;
