//! Seeds that every test run replays: a few of each kind, and those that found a bug.
//!
//! A change of the simulator gives seeds another meaning, so that each bug has a test of its own
//! beside the code as well.

use chatring_core::sabotage::{Break, Breaks};
use chatring_sim::run;

/// Found that a late write of a dead process's fence landed over the living one's.
const FENCE_OF_A_DEAD_PROCESS: [u64; 4] = [44, 108, 141, 266];
/// Found that a conflict was taken for proof that the fence had been written.
const FALSE_CONFLICT_OF_THE_FENCE: [u64; 5] = [1, 227, 246, 252, 272];
/// Found that a client forgot what it was given live when a replacing sync did not name it.
const LIVE_BEFORE_A_REPLACING_SYNC: [u64; 2] = [53, 208];
/// Found that sends refused for being too many cost the tokens of those that could go.
const TOKENS_WASTED: [u64; 1] = [269];
/// Found that a client's cursor went past a channel that it did not know yet.
const AUDIT_BEYOND_AN_UNKNOWN_CHANNEL: [u64; 1] = [681];

#[test]
fn seeds_that_found_a_bug_pass() {
    let seeds = FENCE_OF_A_DEAD_PROCESS
        .into_iter()
        .chain(FALSE_CONFLICT_OF_THE_FENCE)
        .chain(LIVE_BEFORE_A_REPLACING_SYNC)
        .chain(TOKENS_WASTED)
        .chain(AUDIT_BEYOND_AN_UNKNOWN_CHANNEL);
    for seed in seeds {
        run_seed(seed);
    }
}

#[test]
fn a_range_of_seeds_passes() {
    for seed in 300..312 {
        run_seed(seed);
    }
}

/// The same seed gives the same run, whatever else the machine does.
#[test]
fn a_seed_determines_its_run() {
    assert_eq!(run(5, Breaks::default()), run(5, Breaks::default()));
}

/// The simulation proves something only if it finds code that is broken on purpose.
#[test]
fn every_break_is_found_within_a_few_seeds() {
    for broken in Break::ALL {
        let breaks = Breaks::default().with(broken);
        assert!((1..=300).any(|seed| run(seed, breaks).is_err()), "{broken} was not found");
    }
}

fn run_seed(seed: u64) {
    match run(seed, Breaks::default()) {
        Ok(report) => {
            assert!(report.acks >= 2_000, "seed {seed} stored only {} messages", report.acks);
            assert!(report.faults.len() >= 3, "seed {seed} met only {:?}", report.faults);
        }
        Err(violation) => panic!("seed {seed}: {violation}"),
    }
}
