//! The load that the command line asks for, as segments of the plan and sections of the report.

use std::time::Duration;

use crate::cli;
use crate::limits::RAMP_SECTIONS;
use crate::plan::Segment;
use crate::report::section::Span;

/// The rates of the open loop with its warm-up, which has the rate of the beginning; `None` in the
/// closed loop.
pub fn segments(options: &cli::Direct) -> Option<Vec<Segment>> {
    let measured = measured(options)?;
    let mut segments = Vec::with_capacity(measured.len() + 1);
    if !options.warmup.is_zero() {
        segments.push(Segment::steady(measured[0].from_per_s, options.warmup));
    }
    segments.extend(measured);
    Some(segments)
}

/// The parts that are reported by themselves, if the load changes. `from_ns` is the start of the
/// measured time.
pub fn spans(options: &cli::Direct, from_ns: u64) -> Vec<Span> {
    let segments = match measured(options) {
        Some(segments) if options.rate.is_none() => segments,
        _ => return Vec::new(),
    };
    let parts = segments.iter().flat_map(|segment| match options.ramp {
        Some(_) => cut(segment, RAMP_SECTIONS),
        None => vec![*segment],
    });
    let mut at_ns = from_ns;
    let spans = parts.map(|part| {
        let from_ns = at_ns;
        at_ns += part.length.as_nanos() as u64;
        let Segment { from_per_s, to_per_s, .. } = part;
        Span { from_per_s, to_per_s, from_ns, to_ns: at_ns }
    });
    spans.collect()
}

/// The load in words.
pub fn words(options: &cli::Direct) -> String {
    if let Some(rate) = options.rate {
        format!("{rate}/s offered")
    } else if let Some(ramp) = options.ramp {
        format!("{} to {}/s offered", ramp.from_per_s, ramp.to_per_s)
    } else if let Some(cli::Steps(rates)) = &options.steps {
        let steps: Vec<_> = rates.iter().map(u32::to_string).collect();
        format!("{}/s offered in steps", steps.join(", "))
    } else {
        format!("{} in flight per user", options.window.unwrap_or(1))
    }
}

fn measured(options: &cli::Direct) -> Option<Vec<Segment>> {
    let length = options.duration;
    if let Some(rate) = options.rate {
        return Some(vec![Segment::steady(rate, length)]);
    }
    if let Some(cli::Ramp { from_per_s, to_per_s }) = options.ramp {
        return Some(vec![Segment { from_per_s, to_per_s, length }]);
    }
    let cli::Steps(rates) = options.steps.as_ref()?;
    let parts = (0..).map(|index| part(length, index, rates.len() as u32));
    Some(rates.iter().zip(parts).map(|(rate, length)| Segment::steady(*rate, length)).collect())
}

/// One of `count` parts of a ramp.
fn cut(ramp: &Segment, count: u32) -> Vec<Segment> {
    let rate = |index: u32| {
        let (from, to) = (i64::from(ramp.from_per_s), i64::from(ramp.to_per_s));
        (from + (to - from) * i64::from(index) / i64::from(count)) as u32
    };
    let segment = |index| Segment {
        from_per_s: rate(index),
        to_per_s: rate(index + 1),
        length: part(ramp.length, index, count),
    };
    (0..count).map(segment).collect()
}

/// One of `count` parts of a time, which are together exactly that time.
fn part(length: Duration, index: u32, count: u32) -> Duration {
    length * (index + 1) / count - length * index / count
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn options(load: &str) -> cli::Direct {
        let line = format!("x direct --node r --users 2 --duration 10s --warmup 1s {load}");
        match cli::Cli::parse_from(line.split(' ')).command {
            cli::Command::Direct(options) => options,
            _ => panic!("another command"),
        }
    }

    #[test]
    fn parts_of_a_load_fill_the_measured_time() {
        for (load, sections) in [
            ("--rate 10", 0),
            ("--window 2", 0),
            ("--ramp 10..1000", 10),
            ("--ramp 1000..10", 10),
            ("--steps 10,20,30", 3),
        ] {
            let options = options(load);
            let spans = spans(&options, 5);
            assert_eq!(spans.len(), sections, "{load}");
            assert!(spans.windows(2).all(|pair| pair[0].to_ns == pair[1].from_ns), "{load}");
            if let (Some(first), Some(last)) = (spans.first(), spans.last()) {
                assert_eq!((first.from_ns, last.to_ns), (5, 10_000_000_005), "{load}");
            }
            let Some(segments) = segments(&options) else { continue };
            let length: Duration = segments.iter().map(|segment| segment.length).sum();
            assert_eq!(length, Duration::from_secs(11), "{load}");
            assert_eq!(segments[0].from_per_s, segments[0].to_per_s, "{load}: steady warm-up");
        }
    }
}
