//! What differs between two runs, and whether it is more than noise.
//!
//! Each second of a run gives a value of a figure. A difference counts if it is 2 % at least and if
//! the seconds of one run rank above those of the other by more than three standard deviations of
//! chance (Mann and Whitney's test, which a few wild seconds do not mislead). Seconds of a run
//! resemble their neighbours, so the noise between runs is larger than this: what is found here
//! needs a second pair of runs to be believed.

use std::fmt;
use std::io;
use std::path::Path;

use super::Report;
use super::interval::{Row, Stage};
use crate::limits::REPORT_FILE_BYTES_MAX;

/// Differences below this are none.
const CHANGE_PERCENT_MIN: f64 = 2.0;
/// A difference that no answer passes over in silence.
const CHANGE_PERCENT_LARGE: f64 = 10.0;
/// So many standard deviations are more than chance.
const DEVIATIONS_MIN: f64 = 3.0;
/// Fewer seconds of a run than this cannot rank so far apart.
const SECONDS_MIN: usize = 8;
/// Seconds that are cut off more than this by the end of the run are left out.
const SECOND_LENGTH_MIN: f64 = 0.9;

/// Two runs beside each other.
#[derive(Debug)]
pub struct Comparison<'a> {
    /// The first run, against which the second is judged.
    pub a: &'a Report,
    /// The second run.
    pub b: &'a Report,
    /// The figures.
    pub differences: Vec<Difference>,
    /// Why the runs cannot be compared as if only one thing differed.
    pub warnings: Vec<String>,
}

/// A figure of both.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Its name, with its unit.
    pub what: &'static str,
    /// That of the first run.
    pub a: f64,
    /// That of the second run.
    pub b: f64,
    /// What is to be thought of it.
    pub word: Word,
}

/// What is to be thought of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// There is none to speak of.
    Same,
    /// There is one, within what seconds of a run differ, or the runs are too short to tell.
    Unclear,
    /// The second run is better.
    Better,
    /// The second run is worse.
    Worse,
    /// A single value of each run, which proves nothing.
    NotJudged,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Good {
    High,
    Low,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Word::Same => "the same",
            Word::Unclear => "unclear",
            Word::Better => "BETTER",
            Word::Worse => "WORSE",
            Word::NotJudged => "not judged",
        })
    }
}

impl Report {
    /// Reads what `direct --json` wrote.
    ///
    /// # Errors
    /// The file cannot be read, or is no such report.
    pub fn read_json(path: &Path) -> io::Result<Report> {
        if std::fs::metadata(path)?.len() > REPORT_FILE_BYTES_MAX {
            return Err(io::Error::other("too long for a report"));
        }
        let text = std::fs::read(path)?;
        serde_json::from_slice(&text)
            .map_err(|error| io::Error::other(format!("no report of `direct --json`: {error}")))
    }
}

impl<'a> Comparison<'a> {
    /// Compares `b` with `a`.
    pub fn new(a: &'a Report, b: &'a Report) -> Comparison<'a> {
        let judged = |what, good, of: fn(&Report) -> f64, second: fn(&Row) -> f64| {
            let word = judge([seconds(a, second), seconds(b, second)], [of(a), of(b)], good);
            Difference { what, a: of(a), b: of(b), word }
        };
        let single = |what, of: fn(&Report) -> f64| Difference {
            what,
            a: of(a),
            b: of(b),
            word: Word::NotJudged,
        };
        use Good::{High, Low};
        let differences = vec![
            judged("acked/s", High, |r| r.acked_per_s, |s| s.acked_per_s),
            judged("delivered/s", High, |r| r.delivered_per_s, |s| s.delivered_per_s),
            judged("ack 50 %, ms", Low, |r| r.ack.p50 / 1e3, |s| s.ack.p50),
            judged("ack 99 %, ms", Low, |r| r.ack.p99 / 1e3, |s| s.ack.p99),
            single("ack 99.9 %, ms", |r| r.ack.p999 / 1e3),
            single("ack max, ms", |r| r.ack.max / 1e3),
            judged("delivery 50 %, ms", Low, |r| r.deliver.p50 / 1e3, |s| s.deliver.p50),
            judged("delivery 99 %, ms", Low, |r| r.deliver.p99 / 1e3, |s| s.deliver.p99),
            single("delivery 99.9 %, ms", |r| r.deliver.p999 / 1e3),
            single("delivery max, ms", |r| r.deliver.max / 1e3),
            single("generator, % of a core", |r| r.loadgen_cpu_percent),
        ];
        Comparison { a, b, differences, warnings: warnings(a, b) }
    }

    /// The result in a sentence.
    pub fn answer(&self) -> String {
        let of = |word, percent: f64| {
            let is_meant = move |d: &&Difference| d.word == word && d.percent().abs() >= percent;
            let those = self.differences.iter().filter(is_meant);
            let texts = those.map(|d| format!("{} ({})", d.what, d.change()));
            texts.collect::<Vec<_>>().join("; ")
        };
        let unclear = match of(Word::Unclear, CHANGE_PERCENT_LARGE) {
            unclear if unclear.is_empty() => String::new(),
            unclear => format!(" Large, but not beyond chance: {unclear}; longer runs tell."),
        };
        let clear = match (of(Word::Better, 0.0), of(Word::Worse, 0.0)) {
            (better, worse) if better.is_empty() && worse.is_empty() => {
                "There is no clear difference.".to_owned()
            }
            (better, worse) if worse.is_empty() => format!("B is better: {better}."),
            (better, worse) if better.is_empty() => format!("B is worse: {worse}."),
            (better, worse) => format!("B is better: {better}; and worse: {worse}."),
        };
        clear + &unclear
    }
}

/// The form for people.
impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "WARNING    {warning}")?;
        }
        writeln!(f, "{:24}{:>12}{:>12}{:>12}", "", "A", "B", "change")?;
        for difference in &self.differences {
            let Difference { what, a, b, word } = difference;
            writeln!(f, "{what:24}{a:12.2}{b:12.2}{:>12}  {word}", difference.change())?;
        }
        let revisions = [self.a, self.b].map(|report| report.versions.git_revision.as_str());
        writeln!(f, "revisions  A {}, B {}", revisions[0], revisions[1])?;
        writeln!(f, "verdict    {}", self.answer())
    }
}

impl Difference {
    /// The change from the first to the second, in percent of the first.
    pub fn change(&self) -> String {
        match self.percent() {
            percent if percent.is_infinite() => "–".to_owned(),
            percent => format!("{percent:+.1} %"),
        }
    }

    fn percent(&self) -> f64 {
        match self.a == self.b {
            true => 0.0,
            false => (self.b - self.a) / self.a * 100.0,
        }
    }
}

/// The values of a figure in each whole measured second.
fn seconds(report: &Report, value: fn(&Row) -> f64) -> Vec<f64> {
    let rows = report.series.iter();
    let whole = |row: &&Row| row.stage == Stage::Measured && row.length_s >= SECOND_LENGTH_MIN;
    rows.filter(whole).map(value).collect()
}

fn judge(seconds: [Vec<f64>; 2], [a, b]: [f64; 2], good: Good) -> Word {
    let is_small = |a: f64, b: f64| (b - a).abs() < a.abs() * CHANGE_PERCENT_MIN / 100.0;
    if a == b || is_small(a, b) {
        return Word::Same;
    }
    if seconds.iter().any(|values| values.len() < SECONDS_MIN) {
        return Word::Unclear;
    }
    let [seconds_a, seconds_b] = seconds;
    let deviations = rank(seconds_a, &seconds_b);
    // The seconds must agree with the whole.
    if deviations.abs() < DEVIATIONS_MIN || (deviations > 0.0) != (b > a) {
        return Word::Unclear;
    }
    match (good, b > a) {
        (Good::High, true) | (Good::Low, false) => Word::Better,
        (Good::High, false) | (Good::Low, true) => Word::Worse,
    }
}

/// How far `b` ranks above `a`, in standard deviations of chance.
fn rank(mut a: Vec<f64>, b: &[f64]) -> f64 {
    a.sort_by(f64::total_cmp);
    let above = b.iter().map(|value| {
        let below = a.partition_point(|other| other < value);
        let equal = a.partition_point(|other| other <= value) - below;
        below as f64 + equal as f64 / 2.0
    });
    let (count_a, count_b) = (a.len() as f64, b.len() as f64);
    let expected = count_a * count_b / 2.0;
    (above.sum::<f64>() - expected) / (expected * (count_a + count_b + 1.0) / 6.0).sqrt()
}

fn warnings(a: &Report, b: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, report) in [("A", a), ("B", b)] {
        if !report.is_good() {
            warnings.push(format!("run {name} FAILED, its figures mean little"));
        }
        for reason in &report.generator.bottleneck {
            warnings.push(format!("in run {name} the generator was the bottleneck: {reason}"));
        }
        if report.versions.build != "release" {
            warnings.push(format!("run {name} was made by a {} build", report.versions.build));
        }
    }
    // The end of a run is no setting.
    let setup = |report: &Report| {
        serde_json::to_value(super::Setup { cut_short: None, ..report.setup.clone() })
    };
    differing("setting", setup(a), setup(b), &mut warnings);
    let machine = |report: &Report| serde_json::to_value(&report.machine);
    differing("machine", machine(a), machine(b), &mut warnings);
    if a.durability != b.durability {
        let name = |report: &Report| report.durability.clone().unwrap_or_default();
        let text = format!("an ack does not mean the same: {} in A, {} in B", name(a), name(b));
        warnings.push(text);
    }
    warnings
}

/// Names each field that differs.
fn differing(
    kind: &str,
    a: serde_json::Result<serde_json::Value>,
    b: serde_json::Result<serde_json::Value>,
    warnings: &mut Vec<String>,
) {
    let (a, b) = (a.expect("plain data"), b.expect("plain data"));
    let fields = a.as_object().into_iter().flatten();
    for (field, of_a) in fields {
        let of_b = &b[field];
        if of_a != of_b {
            warnings.push(format!("{kind} {field} differs: {of_a} in A, {of_b} in B"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    /// A run whose seconds have these ack p99, in microseconds.
    fn run(p99: &[f64]) -> Report {
        let mut report = report();
        report.versions.build = "release".to_owned();
        let row = |(second, p99): (usize, &f64)| {
            let mut row = Row { time_s: second as f64, length_s: 1.0, ..Row::default() };
            row.acked_per_s = 1_000.0;
            row.ack.p99 = *p99;
            row
        };
        report.series = p99.iter().enumerate().map(row).collect();
        report.ack.p99 = p99.iter().sum::<f64>() / p99.len() as f64;
        report
    }

    fn word(a: &[f64], b: &[f64]) -> Word {
        let (a, b) = (run(a), run(b));
        let comparison = Comparison::new(&a, &b);
        assert_eq!(comparison.warnings, Vec::<String>::new());
        comparison.differences.iter().find(|d| d.what == "ack 99 %, ms").unwrap().word
    }

    #[test]
    fn a_difference_counts_if_it_is_more_than_the_noise() {
        let calm = [1_000.0, 1_010.0, 990.0, 1_005.0, 995.0, 1_000.0, 1_008.0, 992.0];
        let slower = calm.map(|us| us * 1.2);
        let wild = [400.0, 3_000.0, 700.0, 900.0, 1_500.0, 800.0, 1_400.0, 600.0];
        assert_eq!(word(&calm, &calm), Word::Same);
        assert_eq!(word(&calm, &calm.map(|us| us * 1.01)), Word::Same);
        assert_eq!(word(&calm, &slower), Word::Worse);
        assert_eq!(word(&slower, &calm), Word::Better);
        assert_eq!(word(&calm, &wild), Word::Unclear);
        assert_eq!(word(&calm[..7], &slower[..7]), Word::Unclear, "too short");
        // One wild second hides nothing.
        let mut stalled = slower;
        stalled[3] = 900_000.0;
        assert_eq!(word(&calm, &stalled), Word::Worse);
    }

    #[test]
    fn chance_alone_is_rarely_a_difference() {
        let mut random = crate::stamp::Mixer(7);
        let mut second = || 1_000.0 + f64::from(random.below(500));
        let mut found = 0;
        for _ in 0..1_000 {
            let (a, b): (Vec<_>, Vec<_>) = (0..30).map(|_| (second(), second())).unzip();
            found += u32::from(rank(a, &b).abs() >= DEVIATIONS_MIN);
        }
        assert!(found <= 10, "{found} of 1,000 for 2.7 expected");
    }

    #[test]
    fn the_answer_names_what_differs_and_by_how_much() {
        let (a, b) = (run(&[1_000.0; 8]), run(&[1_500.0; 8]));
        let comparison = Comparison::new(&a, &b);
        assert_eq!(comparison.answer(), "B is worse: ack 99 %, ms (+50.0 %).");
        assert!(comparison.to_string().contains("WORSE"), "{comparison}");
        let same = Comparison::new(&a, &a);
        assert_eq!(same.answer(), "There is no clear difference.");
        let (a, b) = (run(&[1_000.0; 3]), run(&[1_500.0; 3]));
        let short = Comparison::new(&a, &b).answer();
        assert!(short.contains("no clear") && short.contains("ack 99 %, ms (+50.0 %)"), "{short}");
    }

    #[test]
    fn whatever_else_differs_is_a_warning() {
        let a = run(&[1_000.0; 8]);
        type Change = fn(&mut Report);
        let changes: [(Change, &str); 7] = [
            (|r| r.setup.users = 7, "setting users differs: 2 in A, 7 in B"),
            (|r| r.setup.rate_per_s = None, "setting rate_per_s"),
            (|r| r.machine.kernel = "9".to_owned(), "machine kernel"),
            (|r| r.durability = Some("memory".to_owned()), "ack does not mean the same"),
            (|r| r.counts.lost = 1, "run B FAILED"),
            (|r| r.generator.bottleneck.push("slow".to_owned()), "bottleneck: slow"),
            (|r| r.versions.build = "debug".to_owned(), "debug build"),
        ];
        for (change, text) in changes {
            let mut b = a.clone();
            change(&mut b);
            let warnings = Comparison::new(&a, &b).warnings;
            assert_eq!(warnings.len(), 1, "{text}: {warnings:?}");
            assert!(warnings[0].contains(text), "{text}: {warnings:?}");
        }
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        report().write_json(&path).unwrap();
        assert_eq!(Report::read_json(&path).unwrap().counts, report().counts);
        for text in ["", "{}", "[1]", "{\"acked\": 1}"] {
            std::fs::write(&path, text).unwrap();
            let error = Report::read_json(&path).unwrap_err().to_string();
            assert!(error.contains("no report of `direct --json`"), "{error}");
        }
    }
}
