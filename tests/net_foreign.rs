//! Goal: `docs/protocol.md` is enough to write a client in another language.
//! Method: a client in plain Python, written from that document alone, talks to the real binary.

use std::process::Command;

use crate::common::executable;
use crate::common::skip::skipped;

/// The oldest Python that the client runs on.
const PYTHON_MINOR_MIN: u32 = 10;

#[test]
fn a_client_written_from_the_document_alone_works() {
    let Some(python) = python() else {
        skipped(&format!("a foreign client: no python3 of version 3.{PYTHON_MINOR_MIN} here"));
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/foreign/run.py");
    // It ends by itself within 240 s.
    let run = Command::new(python).arg("-B").arg(script).arg(executable()).output();
    let run = run.expect("python3 starts");
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{}\n{out}\n{err}", run.status);
    assert!(out.lines().any(|line| line.ends_with(" passed, 0 failed")), "{out}\n{err}");
}

/// A Python that is new enough.
fn python() -> Option<&'static str> {
    let check = format!("import sys; sys.exit(sys.version_info < (3, {PYTHON_MINOR_MIN}))");
    let status = Command::new("python3").args(["-c", &check]).status();
    status.is_ok_and(|status| status.success()).then_some("python3")
}
