//! The kept counts, in `benches/instructions.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// A count that is worse by more than this and the spread of its case fails.
const TOLERANCE: f64 = 0.05;
/// A count that differs by less than this is not written anew.
const NOISE: f64 = 0.005;

/// What else may move a count.
pub const RUSTC_HINT: &str = "the rustc, glibc and Cargo.lock that are here";

const HEAD: &str = "\
# Instructions per item of the hot cases, as counted by
#
#     cargo run --release -p chatring-benches --bin instructions
#
# A count that is more than 5 % worse fails in CI. Change it together with the code, and say why:
#
#     cargo run --release -p chatring-benches --bin instructions -- --write \"REASON\"
#
# A spread, where there is one, is added to the 5 %: the part by which the counts of the same code
# differ where threads wait for each other. A thread that has to wait takes more instructions than
# one that finds its work there.
";

/// The kept counts.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Baseline(BTreeMap<String, Entry>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    instructions: f64,
    /// The part by which counts of the same code differ.
    #[serde(default)]
    spread: f64,
    /// Why it is not what it was before.
    reason: String,
}

/// How a count compares with the kept one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    Better,
    Worse,
    /// None is kept.
    Unknown,
}

impl Verdict {
    /// What is printed behind the count.
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Same => "",
            Verdict::Better => "  better: write it down",
            Verdict::Worse => "  WORSE",
            Verdict::Unknown => "  NOT KEPT",
        }
    }
}

impl Baseline {
    /// Reads it; an entry without a reason is refused.
    pub fn read() -> Result<Baseline, String> {
        match std::fs::read_to_string(path()) {
            Ok(text) => Baseline::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Baseline(BTreeMap::new()))
            }
            Err(error) => Err(format!("{}: {error}", path().display())),
        }
    }

    /// Kept counts of cases that there are none of any more.
    pub fn unknown<'a>(&self, cases: impl Iterator<Item = &'a str>) -> Vec<String> {
        let cases: Vec<&str> = cases.collect();
        self.0.keys().filter(|name| !cases.contains(&name.as_str())).cloned().collect()
    }

    /// The kept count of a case.
    pub fn count(&self, case: &str) -> Option<f64> {
        self.0.get(case).map(|entry| entry.instructions)
    }

    /// Compares a count with the kept one.
    pub fn judge(&self, case: &str, now: f64) -> Verdict {
        let Some(entry) = self.0.get(case) else { return Verdict::Unknown };
        let tolerance = TOLERANCE + entry.spread;
        match now / entry.instructions - 1.0 {
            change if change > tolerance => Verdict::Worse,
            change if change < -tolerance => Verdict::Better,
            _ => Verdict::Same,
        }
    }

    /// Keeps a count, and the spread that stands there.
    pub fn set(&mut self, case: &str, now: f64, reason: &str) {
        let instructions = (now * 10.0).round() / 10.0;
        let kept = self.count(case).is_some_and(|before| (now / before - 1.0).abs() < NOISE);
        if !kept {
            let spread = self.0.get(case).map_or(0.0, |entry| entry.spread);
            let reason = reason.to_owned();
            self.0.insert(case.to_owned(), Entry { instructions, spread, reason });
        }
    }

    /// Writes it.
    pub fn write(&self) -> Result<(), String> {
        std::fs::write(path(), self.text()).map_err(|error| error.to_string())
    }

    fn parse(text: &str) -> Result<Baseline, String> {
        let baseline: Baseline = toml::from_str(text).map_err(|error| error.to_string())?;
        match baseline.0.iter().find(|(_, entry)| entry.reason.trim().is_empty()) {
            Some((name, _)) => Err(format!("the count of {name} has no reason")),
            None => Ok(baseline),
        }
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for (name, entry) in &self.0 {
            let reason = entry.reason.replace('\\', "\\\\").replace('"', "\\\"");
            text += &format!("\n[\"{name}\"]\ninstructions = {:.1}\n", entry.instructions);
            if entry.spread > 0.0 {
                text += &format!("spread = {}\n", entry.spread);
            }
            text += &format!("reason = \"{reason}\"\n");
        }
        text
    }
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("instructions.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn almost_five_percent_more_is_the_same_and_six_are_worse() {
        let mut baseline = Baseline(BTreeMap::new());
        assert_eq!(baseline.judge("a", 100.0), Verdict::Unknown);
        baseline.set("a", 100.0, "first");
        assert_eq!(baseline.judge("a", 104.9), Verdict::Same);
        assert_eq!(baseline.judge("a", 106.0), Verdict::Worse);
        assert_eq!(baseline.judge("a", 94.0), Verdict::Better);
    }

    #[test]
    fn a_spread_is_added_to_what_is_the_same_and_stays() {
        let text = "[a]\ninstructions = 100.0\nspread = 0.07\nreason = \"first\"\n";
        let mut baseline = Baseline::parse(text).expect("it parses");
        assert_eq!(baseline.judge("a", 111.0), Verdict::Same);
        assert_eq!(baseline.judge("a", 113.0), Verdict::Worse);
        baseline.set("a", 120.0, "second");
        let again = Baseline::parse(&baseline.text()).expect("it parses");
        assert_eq!(again.judge("a", 133.0), Verdict::Same);
    }

    #[test]
    fn what_is_written_reads_back_and_an_entry_needs_a_reason() {
        let mut baseline = Baseline(BTreeMap::new());
        baseline.set("a/b", 12.34, "because of \"x\"");
        let again = Baseline::parse(&baseline.text()).expect("it parses");
        assert_eq!(again.count("a/b"), Some(12.3));
        assert_eq!(again.0["a/b"].reason, "because of \"x\"");
        assert_eq!(again.unknown(["c"].into_iter()), ["a/b"]);
        assert!(!baseline.text().contains("spread ="));
        baseline.set("a/b", 20.0, " ");
        assert!(Baseline::parse(&baseline.text()).is_err());
    }
}
