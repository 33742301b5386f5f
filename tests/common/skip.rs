//! Tests that need more of the machine than others say so when it is not there.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

const STRACE: [&str; 6] = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "signal=none"];

/// Says aloud why a test does not run here: past the test harness, which swallows what a good test
/// prints.
pub fn skipped(reason: &str) {
    // Nobody may be reading; that is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}

/// Whether a command runs to a good end; false also if it is not there.
pub fn succeeds(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Why strace cannot inject faults here, if so.
pub fn no_strace() -> Option<&'static str> {
    if !succeeds(&["strace", "-V"]) {
        return Some("strace is not installed");
    }
    let probe =
        ["strace", "-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_exit=1", "true"];
    (!succeeds(&probe)).then_some("ptrace is not allowed here")
}

/// `strace` with these words, for the words of a command to follow. It stops a process at each call
/// that it watches, so a start under it takes longer; what to watch and to inject is in the words.
pub fn strace(trace: &Path, words: &[&str]) -> Vec<String> {
    let output = ["-o", trace.to_str().expect("text")];
    STRACE.iter().chain(&output).chain(words).map(|word| (*word).to_owned()).collect()
}
