//! Runs a test in a process of its own, in which it may spoil limits or end everything.

use std::process::{Command, Output};

use rustix::process::{Resource, Rlimit, setrlimit};

/// Tells a test that it runs in a process of its own.
const MARK: &str = "CHATRING_TEST_OWN_PROCESS";

/// How the test of this full name ended in a process of its own; nothing in that process.
pub(crate) fn in_own_process(test: &str) -> Option<Output> {
    if std::env::var_os(MARK).is_some() {
        // An abort is asked for: it leaves no core file behind.
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
        return None;
    }
    let binary = std::env::current_exe().expect("this test runs from a file");
    let mut command = Command::new(binary);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(MARK, "1");
    Some(command.output().expect("it starts again"))
}

/// Checks that the process aborted itself, and says what it wrote if it did not.
pub(crate) fn assert_aborted(output: &Output) {
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
}
