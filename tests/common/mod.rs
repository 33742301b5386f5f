//! Starts the real binary on free ports in a folder of its own, and ends it by its process id.

pub mod api;
mod http;
pub mod line;
pub mod load;
mod node;
mod people;
pub mod postgres;
pub mod raw;
pub mod skip;
pub mod small_fs;
pub mod tls;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

pub use self::http::{Full, Http, figure, figure_at, get};
pub use self::node::{DRAIN_MAX, Node, NodeOptions};
pub use self::people::{Bystanders, Person, run};

/// How long a test waits for what must happen: what comes is met at once, and what never comes ends
/// the wait, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Threads that a server starts when they are needed: one for each connection to its database.
pub const THREADS_MORE_MAX: u64 = 8;

/// The server's executable, built for this test.
pub fn executable() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_chatring"))
}

/// Runs `chatring` with arguments to its end. For commands that end by themselves.
pub fn chatring(args: &[&str]) -> Output {
    Command::new(executable()).args(args).output().expect("the executable runs")
}

/// What a command wrote to its standard output.
pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

/// Checks that a command refused its work the way operators are promised: exit code 2 and one line
/// on stderr, which is returned.
pub fn refusal(output: &Output) -> &str {
    let text = std::str::from_utf8(&output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(text.lines().count(), 1, "one line: {text:?}");
    assert!(text.starts_with("chatring: "), "{text:?}");
    text.trim_end()
}
