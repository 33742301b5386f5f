//! What the benchmarks of each layer share: a node of one shard in one thread, the whole path of a
//! message through our own code, and the cases whose instructions are counted.

#![forbid(unsafe_code)]

mod cases;
mod many_channels;
mod one_shard;
mod path;
pub mod valgrind;
mod writer;

use std::time::{Duration, Instant};

use criterion::Criterion;

pub use cases::{CASES, Case, Work};
pub use many_channels::{Absence, ManyChannels};
pub use one_shard::{Answers, OneShard, Pair, Synced};
pub use path::Path;
pub use writer::{Rows, Writer};

/// Short enough that all benchmarks together take about a minute; criterion's own flags
/// (`--measurement-time 10`) make them longer.
pub fn quick() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_000))
        .without_plots()
}

/// Times `count` items that can only be worked on in streams of a fixed length: `prepare` makes
/// what a stream needs, untimed, and `work` goes through its first so many items.
pub fn time_in_streams<S>(
    count: u64,
    stream_items: u64,
    mut prepare: impl FnMut() -> S,
    mut work: impl FnMut(&mut S, u64),
) -> Duration {
    let (mut left, mut total) = (count, Duration::ZERO);
    while left > 0 {
        let items = left.min(stream_items);
        let mut stream = prepare();
        let start = Instant::now();
        work(&mut stream, items);
        total += start.elapsed();
        left -= items;
    }
    total
}
