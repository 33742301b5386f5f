//! The stalls of a run, and what explains each of them.
//!
//! Evidence is joined by time: with the interval from the intended time of a stall's slowest
//! message to its ack, and with the queue that it found. If what is known covers at least half of
//! that, the stall is explained.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::evidence::{Evidence, Found, Who};
use crate::stall::Stalls;

/// The share of the slowest message's time that must be covered.
const COVERED_MIN: f64 = 0.5;
/// The share from which on something is named.
const NAMED_MIN: f64 = 0.1;
/// Of a thread that neither ran nor waited for a core.
const NOT_WOKEN: &str = "was not woken";
/// Most lines of a table.
const LINES_MAX: usize = 200;

/// The stalls of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StallReport {
    /// Acks older than this make a stall.
    pub bound_ms: f64,
    /// In the order of time.
    pub list: Vec<StallRow>,
    /// Slow messages beyond the stalls that are kept.
    pub left_out: u64,
    /// What the machine did meanwhile, and the generator's own lags.
    pub found: Found,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StallRow {
    /// When its first slow message was intended, in seconds from the start of the measured time.
    pub begin_s: f64,
    /// When the last slow ack came.
    pub end_s: f64,
    /// Slow messages.
    pub messages: u64,
    /// The longest time to an ack.
    pub longest_ms: f64,
    /// When that message was intended, Unix time.
    pub longest_begin_unix_us: u64,
    /// The longest that the generator itself was late with a send meanwhile.
    pub generator_lag_ms: f64,
    /// Time that the host took from the core that lost most.
    pub steal_ms: f64,
    /// Time that threads of the node waited for a core, by name.
    pub node_waits_ms: BTreeMap<String, f64>,
}

/// Stalls with what explains them.
#[derive(Clone, Debug, Default)]
pub struct Explained {
    bound_ms: f64,
    max_ms: f64,
    rows: Vec<Explanation>,
    /// What was not kept, of stalls and of evidence.
    left_out: u64,
}

/// What is known of one stall.
#[derive(Clone, Debug)]
struct Explanation {
    row: StallRow,
    reasons: Vec<Reason>,
    /// The share of the slowest message's time that the reasons make up.
    covered: f64,
    /// How long before that message the first of them began whose queue it found.
    queue_us: u64,
}

/// Something that took part of a slow message's time, or left the queue before it.
#[derive(Clone, Debug, PartialEq)]
struct Reason {
    who: Who,
    cause: String,
    note: String,
    /// Microseconds of that time.
    us: u64,
}

impl StallReport {
    /// Brings together what was seen. `origin_unix_us` and `from_ns` are the common origin of
    /// both lists, and the start of the measured time after it.
    pub fn new(
        bound_ms: f64,
        stalls: &Stalls,
        lags: &Stalls,
        mut found: Found,
        origin_unix_us: u64,
        from_ns: u64,
    ) -> StallReport {
        let unix_us = |ns: u64| origin_unix_us + ns / 1_000;
        let own = lags.list().iter().map(|lag| Evidence {
            who: Who::Generator,
            cause: "lag".to_owned(),
            note: format!("{} sends were late", lag.messages),
            begin_unix_us: unix_us(lag.longest_begin_ns),
            end_unix_us: unix_us(lag.longest_begin_ns + lag.longest_ns),
            took_us: lag.longest_ns / 1_000,
        });
        found.evidence.extend(own);
        found.left_out += lags.left_out();
        let rows = stalls.list().iter().map(|stall| {
            let (begin, end) = (unix_us(stall.begin_ns), unix_us(stall.end_ns));
            let mut stolen = BTreeMap::<&str, u64>::new();
            let mut waits = BTreeMap::<&str, u64>::new();
            for item in found.evidence.iter().filter(|item| item.overlap_us(begin, end) > 0) {
                match (item.who, item.cause.as_str()) {
                    (Who::Host, "steal") => *stolen.entry(&item.note).or_default() += item.took_us,
                    (Who::Core, "wait") => *waits.entry(&item.note).or_default() += item.took_us,
                    _ => {}
                }
            }
            let seconds = |ns: u64| (ns as f64 - from_ns as f64) / 1e9;
            let lag_ns = lags.longest_ns_within(stall.begin_ns, stall.end_ns);
            StallRow {
                begin_s: seconds(stall.begin_ns),
                end_s: seconds(stall.end_ns),
                messages: stall.messages,
                longest_ms: stall.longest_ns as f64 / 1e6,
                longest_begin_unix_us: unix_us(stall.longest_begin_ns),
                generator_lag_ms: lag_ns as f64 / 1e6,
                steal_ms: ms(stolen.values().max().copied().unwrap_or(0)),
                node_waits_ms: waits.into_iter().map(|(name, us)| (name.into(), ms(us))).collect(),
            }
        });
        let list = rows.collect();
        StallReport { bound_ms, list, left_out: stalls.left_out(), found }
    }

    /// The longest ones, in the order of time.
    pub fn longest(&self, count: usize) -> Vec<&StallRow> {
        let mut rows: Vec<_> = self.list.iter().collect();
        rows.sort_by(|a, b| b.longest_ms.total_cmp(&a.longest_ms));
        rows.truncate(count);
        rows.sort_by(|a, b| a.begin_s.total_cmp(&b.begin_s));
        rows
    }

    /// Explains each stall by the run's own evidence and the node's.
    pub fn explain(&self, node: &[Evidence], max_ms: f64) -> Explained {
        let all: Vec<_> = self.found.evidence.iter().chain(node).collect();
        let busy = self.found.node_busy.clamp(0.0, 1.0);
        let rows = self.list.iter().map(|row| Explanation::of(row, &all, busy));
        Explained {
            bound_ms: self.bound_ms,
            max_ms,
            rows: rows.collect(),
            left_out: self.left_out + self.found.left_out,
        }
    }
}

impl Explained {
    /// Stalls that nothing explains.
    pub fn unexplained(&self) -> usize {
        self.rows.iter().filter(|known| known.covered < COVERED_MIN).count()
    }

    /// Stalls above the bound that none may reach.
    pub fn too_long(&self) -> usize {
        self.rows.iter().filter(|known| known.row.longest_ms > self.max_ms).count()
    }

    /// Whether all are explained and none was too long.
    pub fn is_good(&self) -> bool {
        self.unexplained() == 0 && self.too_long() == 0 && self.left_out == 0
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.rows.is_empty() {
            writeln!(f, "     at s  longest ms  messages  covered  explanation")?;
        }
        for Explanation { row, reasons, covered, queue_us } in self.rows.iter().take(LINES_MAX) {
            let words: Vec<_> = reasons.iter().map(Reason::to_string).collect();
            let mut words = words.join("; ");
            if *queue_us > 0 {
                words += &format!("; with the queue of the {:.0} ms before", ms(*queue_us));
            }
            if *covered < COVERED_MIN {
                words = format!("UNEXPLAINED {words}");
            }
            let StallRow { begin_s, longest_ms, messages, .. } = row;
            let percent = covered * 100.0;
            writeln!(f, "{begin_s:9.3} {longest_ms:11.1} {messages:9} {percent:6.0} %  {words}")?;
        }
        if self.rows.len() > LINES_MAX {
            writeln!(f, "and {} more", self.rows.len() - LINES_MAX)?;
        }
        writeln!(
            f,
            "{} stalls above {} ms, {} of them unexplained, {} above {} ms; {} things not kept",
            self.rows.len(),
            self.bound_ms,
            self.unexplained(),
            self.too_long(),
            self.max_ms,
            self.left_out
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = format!("{:?}", self.who).to_lowercase();
        write!(f, "{who} {} {:.0} ms", self.cause, ms(self.us))?;
        match self.note.as_str() {
            "" => Ok(()),
            note => write!(f, " ({note})"),
        }
    }
}

impl Evidence {
    /// How much of it lies in this time, at most.
    fn overlap_us(&self, begin: u64, end: u64) -> u64 {
        let overlap = self.end_unix_us.min(end).saturating_sub(self.begin_unix_us.max(begin));
        overlap.min(self.took_us)
    }
}

/// What the node's log says in lines of JSON.
pub fn of_node_log(log: &str) -> Vec<Evidence> {
    log.lines().filter_map(of_line).collect()
}

fn of_line(line: &str) -> Option<Evidence> {
    #[derive(Deserialize)]
    struct Line {
        cause: String,
        took_us: u64,
        began_unix_us: u64,
        #[serde(default)]
        thread: String,
        ran_us: Option<u64>,
        waited_us: Option<u64>,
        message: String,
    }
    let line: Line = serde_json::from_str(line).ok()?;
    if line.message != "held up" {
        return None;
    }
    let mut note = line.thread;
    if let (Some(ran), Some(waited)) = (line.ran_us, line.waited_us) {
        let why = match line.took_us / 2 {
            half if waited >= half => "had no core",
            half if ran >= half => "was busy",
            _ => NOT_WOKEN,
        };
        note = format!("{note} {why}");
    }
    Some(Evidence {
        who: Who::Node,
        cause: line.cause,
        note,
        begin_unix_us: line.began_unix_us,
        end_unix_us: line.began_unix_us + line.took_us,
        took_us: line.took_us,
    })
}

impl Explanation {
    /// What made the slowest message late. `busy` is the share of its cores that the node uses.
    ///
    /// A message waits for what holds it up, and for the queue that it finds. What is held up for a
    /// time leaves a queue of that length, and each second works off what is left of it after the
    /// second's own load, 1 − `busy` (Lindley's recursion). A queue is looked for as far back as
    /// the message took.
    fn of(row: &StallRow, evidence: &[&Evidence], busy: f64) -> Explanation {
        let begin = row.longest_begin_unix_us;
        let length = (row.longest_ms * 1e3) as u64;
        let (earliest, end) = (begin.saturating_sub(length), begin + length);
        let near: Vec<_> =
            evidence.iter().copied().filter(|item| item.overlap_us(earliest, end) > 0).collect();
        let known_us = |start: u64| {
            let worked_off = (1.0 - busy) * (begin - start) as f64;
            held_up_us(&near, start, end) as f64 - worked_off
        };
        // The message's own time comes last, and so wins where nothing before it adds to it.
        let starts = near.iter().map(|item| item.begin_unix_us.clamp(earliest, begin));
        let known = starts.chain([begin]).map(|start| (known_us(start), start));
        let (known_us, from) =
            known.max_by(|a, b| a.0.total_cmp(&b.0)).expect("the message's own time is one");
        let mut reasons = named(&near, from, end);
        reasons.retain(|reason| reason.us as f64 >= length as f64 * NAMED_MIN);
        reasons.sort_by_key(|reason| (rank(reason), std::cmp::Reverse(reason.us)));
        Explanation {
            row: row.clone(),
            reasons,
            covered: (known_us / length.max(1) as f64).min(1.0),
            queue_us: begin - from,
        }
    }
}

/// What took part in this time, each cause once.
fn named(evidence: &[&Evidence], begin: u64, end: u64) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = Vec::new();
    for item in evidence {
        let us = item.overlap_us(begin, end);
        let known = reasons.iter_mut().find(|known| {
            (known.who, &known.cause, &known.note) == (item.who, &item.cause, &item.note)
        });
        match known {
            Some(known) => known.us = (known.us + us).min(end - begin),
            None => reasons.push(Reason {
                who: item.who,
                cause: item.cause.clone(),
                note: item.note.clone(),
                us,
            }),
        }
    }
    reasons
}

/// Causes come before what follows from them.
fn rank(reason: &Reason) -> u8 {
    match (reason.who, reason.cause.as_str()) {
        (Who::Node, "queue") => 7,
        (Who::Node, "group") => 6,
        (Who::Core, _) => 5,
        // A process that was stopped finds its turn long and late afterwards.
        (Who::Node, "process") if reason.note.ends_with(NOT_WOKEN) => 3,
        (Who::Node, "turn" | "late" | "process") => 5,
        (Who::Node, _) => 4,
        (Who::Generator, _) => 2,
        (Who::Disk, _) => 1,
        (Who::Host, _) => 0,
    }
}

/// How much of this time something is known to have been held up; what overlaps counts once.
fn held_up_us(evidence: &[&Evidence], begin: u64, end: u64) -> u64 {
    let span = |item: &&Evidence| {
        // Of a sample nobody knows where in it the time lies.
        let from = item.begin_unix_us.max(begin);
        (from, from + item.overlap_us(begin, end))
    };
    let mut spans: Vec<_> = evidence.iter().map(span).collect();
    spans.sort_unstable();
    let (mut sum, mut reached) = (0, 0);
    for (begin, end) in spans {
        sum += end.saturating_sub(begin.max(reached));
        reached = reached.max(end);
    }
    sum
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN_US: u64 = 1_000_000_000;

    fn evidence(who: Who, cause: &str, begin_ms: u64, end_ms: u64, took_ms: u64) -> Evidence {
        Evidence {
            who,
            cause: cause.to_owned(),
            note: String::new(),
            begin_unix_us: ORIGIN_US + begin_ms * 1_000,
            end_unix_us: ORIGIN_US + end_ms * 1_000,
            took_us: took_ms * 1_000,
        }
    }

    /// One stall: a message of 100 ms from 1,000 on.
    fn report(lag: Option<(u64, u64)>, found: Vec<Evidence>) -> StallReport {
        let (mut stalls, mut lags) = (Stalls::new(50_000_000), Stalls::new(10_000_000));
        stalls.answered(1_000_000_000, 1_100_000_000);
        if let Some((from, to)) = lag {
            lags.answered(from * 1_000_000, to * 1_000_000);
        }
        let found = Found { evidence: found, ..Found::default() };
        StallReport::new(50.0, &stalls, &lags, found, ORIGIN_US, 500_000_000)
    }

    #[test]
    fn a_stall_is_explained_by_what_lies_in_its_time_and_by_nothing_else() {
        let report = report(None, Vec::new());
        let sync = |begin, end| [evidence(Who::Node, "sync", begin, end, end - begin)];
        let explained = report.explain(&sync(1_010, 1_090), 200.0);
        assert!(explained.is_good(), "{explained}");
        assert!(explained.to_string().contains("  node sync 80 ms\n"), "{explained}");
        for elsewhere in [sync(900, 1_000), sync(1_100, 1_200), sync(1_070, 1_200)] {
            let explained = report.explain(&elsewhere, 200.0);
            assert_eq!(explained.unexplained(), 1, "{explained}");
            assert!(explained.to_string().contains("UNEXPLAINED"), "{explained}");
        }
    }

    #[test]
    fn what_overlaps_does_not_cover_twice() {
        let report = report(None, Vec::new());
        let node = [
            evidence(Who::Node, "sync", 1_000, 1_030, 30),
            evidence(Who::Node, "group", 1_000, 1_032, 32),
            evidence(Who::Node, "queue", 1_005, 1_031, 26),
        ];
        assert_eq!(report.explain(&node, 200.0).unexplained(), 1);
        let apart = [node[0].clone(), evidence(Who::Node, "sync", 1_050, 1_080, 30)];
        let explained = report.explain(&apart, 200.0);
        assert!(explained.is_good(), "{explained}");
        assert!(explained.to_string().contains("sync 60 ms"), "{explained}");
    }

    #[test]
    fn the_queue_that_a_hold_up_leaves_explains_as_much_as_the_node_s_load_lets_it() {
        let mut report = report(None, Vec::new());
        let late = |begin, end| [evidence(Who::Host, "still", begin, end, end - begin)];
        let explain = |report: &StallReport, node: &[Evidence]| report.explain(node, 200.0);
        // 80 ms of queue, of which 40 ms work off 40, 20, or 8.
        for (busy, covered) in [(0.0, "40 %"), (0.5, "60 %"), (0.8, "72 %")] {
            report.found.node_busy = busy;
            let explained = explain(&report, &late(960, 1_040));
            assert_eq!(explained.unexplained(), usize::from(busy == 0.0), "{explained}");
            assert!(explained.to_string().contains(covered), "{busy}: {explained}");
        }
        assert!(explain(&report, &late(960, 1_040)).to_string().contains("of the 40 ms before"));
        // One that lies within the message's time needs no queue.
        assert!(!explain(&report, &late(1_010, 1_090)).to_string().contains("queue"));
        // Small ones with time between them leave none, nor does one that ended long ago.
        let small = [late(910, 920), late(960, 970), late(1_010, 1_020)].concat();
        assert_eq!(explain(&report, &small).unexplained(), 1);
        assert_eq!(explain(&report, &late(800, 900)).unexplained(), 1);
    }

    #[test]
    fn a_sample_counts_for_what_it_took_and_causes_come_before_what_follows() {
        let steal = evidence(Who::Host, "steal", 1_000, 1_050, 10);
        let few = report(None, vec![steal.clone()]).explain(&[], 200.0);
        assert_eq!(few.unexplained(), 1, "{few}");
        let still = evidence(Who::Host, "still", 1_000, 1_080, 80);
        let node = [
            evidence(Who::Node, "queue", 1_000, 1_090, 90),
            evidence(Who::Node, "sync", 1_000, 1_070, 70),
        ];
        let text = report(None, vec![still]).explain(&node, 200.0).to_string();
        let places = ["host still", "node sync", "node queue"].map(|word| text.find(word));
        assert!(places.is_sorted() && places[0].is_some(), "{text}");
    }

    #[test]
    fn the_generator_and_the_host_are_in_the_row_of_a_stall() {
        let mut wait = evidence(Who::Core, "wait", 1_040, 1_090, 33);
        wait.note = "shard-0".to_owned();
        let steal = evidence(Who::Host, "steal", 1_040, 1_090, 20);
        let report = report(Some((990, 1_070)), vec![wait, steal]);
        let row = &report.list[0];
        assert_eq!((row.begin_s, row.end_s, row.messages), (0.5, 0.6, 1));
        assert_eq!((row.longest_ms, row.generator_lag_ms, row.steal_ms), (100.0, 80.0, 20.0));
        assert_eq!(row.node_waits_ms["shard-0"], 33.0);
        let explained = report.explain(&[], 200.0);
        assert!(explained.is_good() && explained.to_string().contains("generator lag 70 ms"));
    }

    #[test]
    fn one_above_the_last_bound_is_too_long_however_well_explained() {
        let report = report(None, Vec::new());
        let node = [evidence(Who::Node, "sync", 1_000, 1_100, 100)];
        assert_eq!(report.explain(&node, 100.0).too_long(), 0);
        let explained = report.explain(&node, 99.0);
        assert_eq!((explained.unexplained(), explained.is_good()), (0, false));
    }

    #[test]
    fn the_node_s_log_is_read_and_other_lines_are_passed_over() {
        let log = concat!(
            "Chatring\n",
            r#"{"level":"WARN","message":"held up","cause":"sync","took_us":80000,"#,
            r#""began_unix_us":1000000000,"thread":"store-commit","left_out":0}"#,
            "\n",
            r#"{"message":"held up","cause":"late","took_us":90000,"began_unix_us":5,"#,
            r#""thread":"shard-0","ran_us":1000,"waited_us":60000,"left_out":0}"#,
            "\n",
            r#"{"message":"ready","cause":"x","took_us":1,"began_unix_us":1}"#,
            "\n{\"message\":\"held up\"}\n",
        );
        let found = of_node_log(log);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].cause.as_str(), found[0].note.as_str()), ("sync", "store-commit"));
        assert_eq!(found[0].end_unix_us, 1_000_080_000);
        assert_eq!(found[1].note, "shard-0 had no core");
        let note = |ran: u64, waited: u64| {
            let times = format!(r#""ran_us":{ran},"waited_us":{waited}"#);
            let line = log.replace(r#""ran_us":1000,"waited_us":60000"#, &times);
            of_node_log(&line)[1].note.clone()
        };
        assert_eq!(note(1_000, 1_000), "shard-0 was not woken");
        assert_eq!(note(60_000, 1_000), "shard-0 was busy");
    }
}
