//! The lane against every answer that a store may give.

use chatring_wire::frame::Durability;

use super::*;
use crate::kv::Stamp;
use crate::values::RowStamp;

const NOW: Now = Now { mono_ms: 1_000, unix_ms: 0 };
const ME: u64 = 7;

fn lane() -> Lane<u32> {
    let config = LaneConfig {
        id: LaneId(0),
        fence: Bytes::from_static(b"fence"),
        journal: Bytes::from_static(b"journal"),
        store: StoreIncarnation(1),
        incarnation: ME,
        kv: Limits {
            lane_commits_max: 2,
            commit_bytes_target: 100,
            durability: Durability::Memory,
        },
        appends_max: 4,
        bytes_max: 1_000,
        breaks: Breaks::default(),
    };
    Lane::new(config, Version(10), NOW.mono_ms)
}

fn append(tag: u32) -> Append<u32> {
    let write = Write::Set { key: Bytes::from_static(b"k"), value: vec![0; 60].into() };
    Append { writes: vec![write], tag }
}

fn flush(lane: &mut Lane<u32>, now: Now) -> Vec<LaneOutput<u32>> {
    let mut out = Vec::new();
    lane.flush(now, &mut out);
    out
}

fn answer(lane: &mut Lane<u32>, op: LaneOp, outcome: Outcome) -> Vec<LaneOutput<u32>> {
    let mut out = Vec::new();
    lane.completed(NOW, op, outcome, &mut out);
    out
}

fn committed(version: u64) -> Outcome {
    Outcome::Committed(Stamp { version: Version(version), order: 0 })
}

fn rows(version: u64, gets: Vec<Option<Bytes>>) -> Outcome {
    Outcome::Rows(Rows { version: Version(version), gets, ranges: Vec::new() })
}

fn fence(incarnation: u64, writes: u64) -> Option<Bytes> {
    Some(FenceRow { incarnation, writes }.encode())
}

fn journal(group: u64) -> Option<Bytes> {
    let row = JournalRow::write(Bytes::new(), StoreIncarnation(1), ME, group);
    let Write::SetStamped { value, .. } = row else { panic!("the journal is stamped") };
    Some(value)
}

fn ops(out: &[LaneOutput<u32>]) -> Vec<LaneOp> {
    let submitted = |output: &LaneOutput<u32>| match output {
        LaneOutput::Submit(op, _) => Some(*op),
        _ => None,
    };
    out.iter().filter_map(submitted).collect()
}

fn stored(out: &[LaneOutput<u32>]) -> Vec<u32> {
    let tags = |output: &LaneOutput<u32>| match output {
        LaneOutput::Stored(_, tags) => tags.clone(),
        _ => Vec::new(),
    };
    out.iter().flat_map(tags).collect()
}

/// A lane with groups 1 and 2 in flight, 3 waiting, and group 1 answered with `Unknown(Maybe)`.
fn unsettled() -> Lane<u32> {
    let mut lane = lane();
    for tag in 1..=3 {
        assert!(lane.push(append(tag)).is_ok());
    }
    assert_eq!(ops(&flush(&mut lane, NOW)), [LaneOp::Group(1), LaneOp::Group(2)]);
    let unknown = Outcome::Unknown(InFlight::Maybe);
    assert!(answer(&mut lane, LaneOp::Group(1), unknown).is_empty(), "group 2 is awaited");
    lane
}

#[test]
fn groups_are_told_in_their_order() {
    let mut lane = lane();
    assert!(lane.push(append(1)).is_ok() && lane.push(append(2)).is_ok());
    flush(&mut lane, NOW);
    assert!(stored(&answer(&mut lane, LaneOp::Group(2), committed(12))).is_empty());
    assert_eq!(stored(&answer(&mut lane, LaneOp::Group(1), committed(11))), [1, 2]);
    assert!(lane.is_idle());
}

#[test]
fn a_full_lane_gives_the_append_back() {
    let mut lane = lane();
    for tag in 0..4 {
        assert!(lane.push(append(tag)).is_ok());
    }
    assert_eq!(lane.push(append(9)).err(), Some(9));
}

#[test]
fn a_commit_that_may_land_later_is_fenced_off_before_the_journal_is_read() {
    let mut lane = unsettled();
    let out = answer(&mut lane, LaneOp::Group(2), Outcome::LaneStopped);
    let [LaneOutput::Submit(LaneOp::Fence, Request::Commit(commit))] = out.as_slice() else {
        panic!("{out:?}");
    };
    assert_eq!(commit.read_version, Some(Version(10)), "the write is conditional");
    assert_eq!(commit.conflicts.len(), 1);

    let out = answer(&mut lane, LaneOp::Fence, committed(20));
    assert_eq!(ops(&out), [LaneOp::Settle]);
    let out = answer(&mut lane, LaneOp::Settle, rows(21, vec![fence(ME, 1), journal(1)]));
    assert_eq!(stored(&out), [1], "the journal says that group 1 is stored");
    assert!(matches!(out[1], LaneOutput::Resume(_)));
    assert_eq!(ops(&out), [LaneOp::Group(2), LaneOp::Group(3)]);
}

/// Found by the simulation: stores give false conflicts, so that a conflict of the fence's own
/// write does not prove that it was written, and the old commit could still land.
#[test]
fn a_false_conflict_of_the_fence_proves_nothing() {
    let mut lane = unsettled();
    answer(&mut lane, LaneOp::Group(2), Outcome::LaneStopped);
    assert!(answer(&mut lane, LaneOp::Fence, Outcome::Conflict).is_empty());
    let later = Now { mono_ms: lane.deadline_ms().expect("a retry"), ..NOW };
    assert_eq!(ops(&flush(&mut lane, later)), [LaneOp::Refence]);
    let out = answer(&mut lane, LaneOp::Refence, rows(30, vec![fence(ME, 0)]));
    assert_eq!(ops(&out), [LaneOp::Fence], "it was not written: once more");
    // This time it was, although the answer says otherwise.
    answer(&mut lane, LaneOp::Fence, Outcome::Conflict);
    let later = Now { mono_ms: lane.deadline_ms().expect("a retry"), ..NOW };
    flush(&mut lane, later);
    let out = answer(&mut lane, LaneOp::Refence, rows(31, vec![fence(ME, 1)]));
    assert_eq!(ops(&out), [LaneOp::Settle]);
}

#[test]
fn another_process_in_the_fence_ends_the_lane() {
    let mut lane = unsettled();
    answer(&mut lane, LaneOp::Group(2), Outcome::LaneStopped);
    answer(&mut lane, LaneOp::Fence, committed(20));
    let out = answer(&mut lane, LaneOp::Settle, rows(21, vec![fence(ME + 1, 0), journal(2)]));
    assert!(matches!(out.as_slice(), [LaneOutput::Lost(FatalCause::FenceTaken)]), "{out:?}");
}

#[test]
fn an_old_fence_is_read_again_before_the_next_commit() {
    let mut lane = lane();
    assert!(lane.push(append(1)).is_ok());
    let late = Now { mono_ms: NOW.mono_ms + VERIFY_MS_MAX + 1, ..NOW };
    assert_eq!(ops(&flush(&mut lane, late)), [LaneOp::Verify]);
    assert!(flush(&mut lane, late).is_empty(), "once");
    let mut out = Vec::new();
    lane.completed(late, LaneOp::Verify, rows(99, vec![fence(ME, 0)]), &mut out);
    assert_eq!(ops(&out), [LaneOp::Group(1)]);
}

#[test]
fn a_store_that_asks_to_wait_gets_the_same_groups_again() {
    let mut lane = lane();
    assert!(lane.push(append(1)).is_ok());
    let first = format!("{:?}", flush(&mut lane, NOW));
    assert!(answer(&mut lane, LaneOp::Group(1), Outcome::Unavailable).is_empty());
    let later = Now { mono_ms: lane.deadline_ms().expect("a pause"), ..NOW };
    let again = flush(&mut lane, later);
    assert!(matches!(again[0], LaneOutput::Resume(_)));
    assert_eq!(format!("[{:?}]", again[1]), first);
}

#[test]
fn journals_of_an_earlier_process_settle_nothing() {
    let row = JournalRow {
        stamp: RowStamp { incarnation: StoreIncarnation(1), stamp: Stamp::default() },
        incarnation: ME,
        group: 5,
    };
    assert_eq!(JournalRow::decode(journal(5).expect("a row")), Ok(row));
    let mut lane = unsettled();
    answer(&mut lane, LaneOp::Group(2), Outcome::LaneStopped);
    answer(&mut lane, LaneOp::Fence, committed(20));
    let old = JournalRow::write(Bytes::new(), StoreIncarnation(1), ME - 1, 9);
    let Write::SetStamped { value, .. } = old else { panic!("the journal is stamped") };
    let out = answer(&mut lane, LaneOp::Settle, rows(21, vec![fence(ME, 1), Some(value)]));
    assert!(stored(&out).is_empty());
    assert_eq!(ops(&out), [LaneOp::Group(1), LaneOp::Group(2)]);
}
