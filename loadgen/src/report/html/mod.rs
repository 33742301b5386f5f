//! Reports as a page in one file that opens without network, in light and dark.

pub mod chart;
pub mod page;
mod run;

pub use self::run::{curves, latencies, run, settings, throughput};
