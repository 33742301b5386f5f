//! The rules of the store interface, one by one.

use bytes::Bytes;

use super::{Harness, Supported};
use crate::kv::mem::SubmitterId;
use crate::kv::{
    COMMIT_BYTES_MAX, Class, Commit, KEY_BYTES_MAX, KeyRange, LaneId, Order, Outcome,
    READ_VERSION_AGE_MS_MAX, RangeEnd, RangeRead, Read, ReadVersion, Request, Rows, Stamp, Ticket,
    VALUE_BYTES_MAX, Version, Write,
};

/// A rule and the check of it. A check panics when the rule is broken; it wants an empty engine
/// without faults.
#[derive(Clone, Copy, Debug)]
pub struct Case<H> {
    /// What is checked.
    pub name: &'static str,
    /// Checks it.
    pub check: fn(&mut H),
}

/// How many cases there are.
pub const CASES: usize = 12;

/// Runs every case, each on an engine of its own. Panics at the first rule that is broken.
pub fn run_cases<H: Harness>(mut make: impl FnMut() -> H) {
    for case in cases::<H>() {
        (case.check)(&mut make());
    }
}

/// Every case.
pub fn cases<H: Harness>() -> [Case<H>; CASES] {
    [
        Case { name: "writes apply in order", check: writes_apply_in_order },
        Case { name: "stamps are put in", check: stamps_are_put_in },
        Case { name: "ranges are read up to their bounds", check: ranges_are_bounded },
        Case { name: "old versions are read", check: old_versions_are_read },
        Case { name: "conflicts are found", check: conflicts_are_found },
        Case { name: "writes alone never conflict", check: writes_alone_never_conflict },
        Case { name: "lanes stop and resume", check: lanes_stop_and_resume },
        Case { name: "lanes are in order", check: lanes_are_in_order },
        Case { name: "bounds are kept", check: bounds_are_kept },
        Case { name: "age is judged", check: age_is_judged },
        Case { name: "a reopened store goes on", check: a_reopened_store_goes_on },
        Case { name: "a kill takes nothing back", check: a_kill_takes_nothing_back },
    ]
}

const A: SubmitterId = SubmitterId(1);
const B: SubmitterId = SubmitterId(2);
const LANE: LaneId = LaneId(3);

fn key(name: &'static str) -> Bytes {
    Bytes::from_static(name.as_bytes())
}

fn set(name: &'static str, value: &'static str) -> Write {
    Write::Set { key: key(name), value: key(value) }
}

fn clear(name: &'static str) -> Write {
    Write::Clear { key: key(name) }
}

fn range(start: &'static str, end: &'static str) -> KeyRange {
    KeyRange { start: key(start), end: key(end) }
}

fn blind(writes: Vec<Write>) -> Commit {
    let class = Class::Interactive;
    Commit { lane: None, class, read_version: None, conflicts: Vec::new(), writes }
}

fn fenced(at: Version, conflict: KeyRange) -> Commit {
    Commit { read_version: Some(at), conflicts: vec![conflict], ..blind(vec![set("fenced", "")]) }
}

fn in_lane(commit: Commit) -> Commit {
    Commit { lane: Some(LANE), ..commit }
}

/// Submits all at once and gives the outcomes in the order of the requests.
fn all<H: Harness>(h: &mut H, requests: Vec<(SubmitterId, Request)>) -> Vec<Outcome> {
    let mut outcomes = vec![None; requests.len()];
    for (ticket, (submitter, request)) in requests.into_iter().enumerate() {
        h.submit(submitter, request, Ticket(ticket as u64));
    }
    while outcomes.iter().any(Option::is_none) {
        let answers = h.wait();
        assert!(!answers.is_empty(), "a request is never answered");
        for (_, done) in answers {
            let at = usize::try_from(done.ticket.0).expect("a ticket of ours");
            assert!(outcomes[at].replace(done.outcome).is_none(), "answered twice");
        }
    }
    outcomes.into_iter().flatten().collect()
}

fn commits<H: Harness>(h: &mut H, list: Vec<(SubmitterId, Commit)>) -> Vec<Outcome> {
    all(h, list.into_iter().map(|(who, commit)| (who, Request::Commit(commit))).collect())
}

fn commit<H: Harness>(h: &mut H, commit: Commit) -> Outcome {
    commits(h, vec![(A, commit)]).remove(0)
}

fn committed<H: Harness>(h: &mut H, writes: Vec<Write>) -> Stamp {
    stamp(&commit(h, blind(writes)))
}

#[track_caller]
fn stamp(outcome: &Outcome) -> Stamp {
    let Outcome::Committed(stamp) = outcome else { panic!("not committed: {outcome:?}") };
    *stamp
}

fn read<H: Harness>(h: &mut H, read: Read) -> Outcome {
    all(h, vec![(A, Request::Read(read))]).remove(0)
}

fn rows<H: Harness>(h: &mut H, request: Read) -> Rows {
    match read(h, request) {
        Outcome::Rows(rows) => rows,
        other => panic!("no rows: {other:?}"),
    }
}

fn gets(names: &[&'static str], version: ReadVersion) -> Read {
    Read { gets: names.iter().map(|name| key(name)).collect(), ranges: Vec::new(), version }
}

fn get<H: Harness>(h: &mut H, name: &'static str) -> Option<Bytes> {
    rows(h, gets(&[name], ReadVersion::Fresh)).gets.remove(0)
}

fn fresh<H: Harness>(h: &mut H) -> Version {
    rows(h, gets(&[], ReadVersion::Fresh)).version
}

fn writes_apply_in_order<H: Harness>(h: &mut H) {
    committed(h, vec![set("a", "1"), set("b", "1"), set("c", "1"), set("d", "1")]);
    let cut = Write::ClearRange(range("b", "d"));
    committed(h, vec![set("a", "2"), clear("a"), cut, set("c", "2"), clear("none")]);
    let found = rows(h, gets(&["a", "b", "c", "d", "none"], ReadVersion::Fresh));
    assert_eq!(found.gets, [None, None, Some(key("2")), Some(key("1")), None]);
    committed(h, vec![set("c", "3"), Write::ClearRange(range("d", "a")), clear("d")]);
    assert_eq!((get(h, "c"), get(h, "d")), (Some(key("3")), None));
}

fn stamps_are_put_in<H: Harness>(h: &mut H) {
    let stamped = |name| Write::SetStamped { key: key(name), value: vec![9; 13].into(), offset: 2 };
    let list = vec![(A, blind(vec![stamped("a")])), (B, blind(vec![stamped("b")]))];
    let told: Vec<_> = commits(h, list).iter().map(stamp).collect();
    assert_ne!(told[0], told[1]);
    let found = rows(h, gets(&["a", "b"], ReadVersion::Fresh));
    for (told, value) in told.iter().zip(found.gets) {
        let value = value.expect("it was set");
        assert_eq!((&value[..2], &value[12..]), (&[9, 9][..], &[9][..]));
        assert_eq!(value[2..12], told.to_bytes());
        assert!(found.version >= told.version);
    }
}

fn ranges_are_bounded<H: Harness>(h: &mut H) {
    committed(h, vec![set("a", "v"), set("b", "v"), set("c", "v"), set("d", "v")]);
    let mut ask = |order, rows_max, bytes_max| {
        let ranges = vec![RangeRead { range: range("a", "d"), rows_max, bytes_max, order }];
        let found = rows(h, Read { gets: Vec::new(), ranges, version: ReadVersion::Fresh });
        let names: Vec<_> = found.ranges[0].rows.iter().map(|(name, _)| name.clone()).collect();
        (names.concat(), found.ranges[0].end)
    };
    assert_eq!(ask(Order::Forward, 9, 99), (b"abc".to_vec(), RangeEnd::Complete));
    assert_eq!(ask(Order::Reverse, 9, 99), (b"cba".to_vec(), RangeEnd::Complete));
    assert_eq!(ask(Order::Forward, 2, 99), (b"ab".to_vec(), RangeEnd::More));
    assert_eq!(ask(Order::Reverse, 1, 99), (b"c".to_vec(), RangeEnd::More));
    assert_eq!(ask(Order::Forward, 9, 3), (b"ab".to_vec(), RangeEnd::More));
    assert_eq!(ask(Order::Reverse, 9, 1), (b"c".to_vec(), RangeEnd::More));
}

fn old_versions_are_read<H: Harness>(h: &mut H) {
    committed(h, vec![set("k", "1")]);
    let old = fresh(h);
    committed(h, vec![set("k", "2"), set("other", "2")]);
    let found = rows(h, gets(&["k", "other"], ReadVersion::At(old)));
    assert_eq!((found.version, found.gets), (old, vec![Some(key("1")), None]));
    assert_eq!(get(h, "k"), Some(key("2")));
}

fn conflicts_are_found<H: Harness>(h: &mut H) {
    committed(h, vec![set("k", "1"), set("m", "1")]);
    let known = fresh(h);
    let k = KeyRange::key(&key("k"));
    stamp(&commit(h, fenced(known, k.clone())));
    committed(h, vec![set("kk", "next to it")]);
    stamp(&commit(h, fenced(known, k.clone())));
    for write in [set("k", "2"), clear("k"), clear("k"), Write::ClearRange(range("a", "l"))] {
        let known = fresh(h);
        committed(h, vec![write.clone()]);
        assert_eq!(commit(h, fenced(known, k.clone())), Outcome::Conflict, "{write:?}");
        let known = fresh(h);
        stamp(&commit(h, fenced(known, k.clone())));
    }
    let known = fresh(h);
    committed(h, vec![set("m", "2")]);
    assert_eq!(commit(h, fenced(known, range("l", "n"))), Outcome::Conflict);
    stamp(&commit(h, fenced(known, range("ma", "n"))));
    // Two at once: whichever comes second meets the first.
    let known = fresh(h);
    let rival = || Commit { writes: vec![set("k", "3")], ..fenced(known, k.clone()) };
    let told = commits(h, vec![(A, rival()), (B, rival())]);
    assert_eq!(told.iter().filter(|told| **told == Outcome::Conflict).count(), 1, "{told:?}");
}

fn writes_alone_never_conflict<H: Harness>(h: &mut H) {
    let list = (0..20).map(|_| (A, blind(vec![set("k", "1"), clear("k")]))).collect();
    let known = fresh(h);
    commits(h, list).iter().for_each(|told| _ = stamp(told));
    let plain = Commit { read_version: Some(known), ..blind(vec![set("k", "2")]) };
    stamp(&commit(h, plain));
}

fn lanes_stop_and_resume<H: Harness>(h: &mut H) {
    let known = fresh(h);
    committed(h, vec![set("fence", "moved")]);
    let bad = fenced(known, KeyRange::key(&key("fence")));
    let list = vec![
        (A, in_lane(blind(vec![set("first", "1")]))),
        (A, in_lane(bad)),
        (A, in_lane(blind(vec![set("behind", "1")]))),
        (A, Commit { lane: Some(LaneId(4)), ..blind(vec![set("other", "1")]) }),
        (B, in_lane(blind(vec![set("foreign", "1")]))),
        (A, blind(vec![set("laneless", "1")])),
    ];
    let told = commits(h, list);
    assert_eq!(told[1..3], [Outcome::Conflict, Outcome::LaneStopped]);
    for at in [0, 3, 4, 5] {
        stamp(&told[at]);
    }
    assert_eq!(commit(h, in_lane(blind(vec![set("behind", "2")]))), Outcome::LaneStopped);
    assert_eq!(get(h, "behind"), None);
    h.resume(A, LANE);
    stamp(&commit(h, in_lane(blind(vec![set("behind", "3")]))));
    assert_eq!(get(h, "behind"), Some(key("3")));
}

fn lanes_are_in_order<H: Harness>(h: &mut H) {
    let list = (0..6u8).map(|n| {
        let class = if n % 2 == 0 { Class::Background } else { Class::Interactive };
        let value = vec![n].into();
        let writes = vec![Write::Set { key: key("k"), value }];
        (A, Commit { class, ..in_lane(blind(writes)) })
    });
    let told: Vec<_> = commits(h, list.collect()).iter().map(stamp).collect();
    assert!(told.is_sorted_by(|a, b| a < b), "{told:?}");
    assert_eq!(get(h, "k"), Some(Bytes::from_static(&[5])));
    let next = committed(h, vec![set("k", "x")]);
    assert!(next.version > told[5].version);
}

fn bounds_are_kept<H: Harness>(h: &mut H) {
    let sized = |key_bytes: usize, value_bytes: usize| {
        let (key, value) = (vec![b'k'; key_bytes].into(), vec![0; value_bytes].into());
        blind(vec![Write::Set { key, value }])
    };
    stamp(&commit(h, sized(KEY_BYTES_MAX, VALUE_BYTES_MAX)));
    assert_eq!(commit(h, sized(KEY_BYTES_MAX + 1, 1)), Outcome::TooLarge);
    assert_eq!(commit(h, sized(1, VALUE_BYTES_MAX + 1)), Outcome::TooLarge);
    let value = Bytes::from(vec![0; VALUE_BYTES_MAX]);
    let each = |n: usize| Write::Set { key: format!("{n:04}").into(), value: value.clone() };
    let many = |count| blind((0..count).map(each).collect());
    let fits = COMMIT_BYTES_MAX / (VALUE_BYTES_MAX + 4);
    assert_eq!(commit(h, many(fits + 1)), Outcome::TooLarge);
    assert_eq!(get(h, "0000"), None);
    stamp(&commit(h, many(fits)));
    let stamped = |offset| {
        blind(vec![Write::SetStamped { key: key("s"), value: vec![0; 12].into(), offset }])
    };
    stamp(&commit(h, stamped(2)));
    assert_eq!(commit(h, stamped(3)), Outcome::TooLarge);
    assert_eq!(commit(h, stamped(u32::MAX)), Outcome::TooLarge);
    let long = Read {
        gets: vec![vec![0; KEY_BYTES_MAX + 1].into()],
        ranges: Vec::new(),
        version: ReadVersion::Fresh,
    };
    assert_eq!(read(h, long), Outcome::TooLarge);
    // Conflicts without a read version cannot be judged, nor can versions that are yet to come.
    let unknown = KeyRange::key(&key("k"));
    let none = Commit { read_version: None, ..fenced(Version(0), unknown.clone()) };
    assert_eq!(commit(h, none), Outcome::TooOld);
    let ahead = Version(u64::MAX / 2);
    assert_eq!(commit(h, fenced(ahead, unknown)), Outcome::TooOld);
    assert_eq!(read(h, gets(&["k"], ReadVersion::At(ahead))), Outcome::TooOld);
}

fn age_is_judged<H: Harness>(h: &mut H) {
    committed(h, vec![set("k", "1")]);
    let old = fresh(h);
    committed(h, vec![set("other", "1")]);
    if h.advance(READ_VERSION_AGE_MS_MAX + 1_000) == Supported::No {
        return;
    }
    let newer = committed(h, vec![set("other", "2")]);
    assert_eq!(read(h, gets(&["k"], ReadVersion::At(old))), Outcome::TooOld);
    assert_eq!(commit(h, fenced(old, KeyRange::key(&key("k")))), Outcome::TooOld);
    stamp(&commit(h, fenced(newer.version, KeyRange::key(&key("k")))));
}

fn a_reopened_store_goes_on<H: Harness>(h: &mut H) {
    committed(h, vec![set("k", "1"), set("gone", "1")]);
    let before = committed(h, vec![clear("gone"), set("k", "2")]);
    h.advance(50);
    let known = fresh(h);
    assert!(known >= before.version);
    h.reopen();
    let found = rows(h, gets(&["k", "gone"], ReadVersion::Fresh));
    assert!(found.version >= known);
    assert_eq!(found.gets, [Some(key("2")), None]);
    let after = committed(h, vec![set("k", "3")]);
    assert!(after.version > known, "{after:?} is not above {known:?}");
    let told = commit(h, fenced(known, KeyRange::key(&key("k"))));
    assert!(matches!(told, Outcome::Conflict | Outcome::TooOld), "{told:?}");
}

fn a_kill_takes_nothing_back<H: Harness>(h: &mut H) {
    for round in 0..3 {
        let value = Bytes::from(vec![round; 3]);
        let acked = committed(h, vec![Write::Set { key: key("k"), value: value.clone() }]);
        h.advance(1_000);
        let known = fresh(h);
        h.submit(A, Request::Commit(in_lane(blind(vec![set("open", "1")]))), Ticket(99));
        if h.crash() == Supported::No {
            return;
        }
        let found = rows(h, gets(&["k"], ReadVersion::Fresh));
        assert!(found.version >= known && known >= acked.version);
        assert_eq!(found.gets, [Some(value)]);
        let next = committed(h, vec![set("next", "1")]);
        assert!(next.version > known, "{next:?} is not above {known:?}");
    }
}
