//! Goal: the server uses the ring where the kernel can, says what it uses, steps back where it may
//! and refuses where it may not. Method: the real binary, under strace where the kernel is to lack
//! something.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::skip::{no_strace, skipped};
use crate::common::{Node, NodeOptions, PATIENCE, executable, figure, refusal};

/// Fails the second registration of a thread: that of the eventfd, where it is tried whether the
/// kernel can do what the ring needs; elsewhere one that can be done without.
const LACKING: [&str; 9] = [
    "strace",
    "-f",
    "-qq",
    "-e",
    "signal=none",
    "-e",
    "trace=io_uring_register",
    "-e",
    "inject=io_uring_register:error=EINVAL:when=2",
];

fn options(driver: &str) -> NodeOptions {
    let args = vec!["--driver".to_owned(), driver.to_owned()];
    NodeOptions { args, ..NodeOptions::default() }
}

/// Whether another run of the tests has the say.
fn is_forced() -> bool {
    std::env::var_os("CHATRING_TEST_DRIVER").is_some()
}

/// Waits until the log has it, which may be a moment after the server is ready.
fn says(node: &Node, text: &str) {
    let until = Instant::now() + PATIENCE;
    while !node.log().contains(text) {
        assert!(Instant::now() < until, "{text} is missing:\n{}", node.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn each_driver_serves_and_its_figures_tell_which_one_it_is() {
    if is_forced() {
        return skipped("CHATRING_TEST_DRIVER chooses the driver");
    }
    for (driver, on_the_ring) in [("ring", true), ("streams", false), ("auto", true)] {
        let node = Node::start_with(options(driver));
        says(&node, if on_the_ring { "driver=\"ring\"" } else { "driver=\"streams\"" });
        let _alice = crate::common::raw::Raw::sign_in(&node, "alice");
        let enters = figure(&node, "chatring_shard_ring_enters_total");
        assert_eq!(enters > 0.0, on_the_ring, "{driver}");
    }
}

#[test]
fn without_what_the_ring_needs_auto_serves_on_streams_and_ring_is_refused() {
    if is_forced() {
        return skipped("CHATRING_TEST_DRIVER chooses the driver");
    }
    if let Some(reason) = no_strace() {
        return skipped(reason);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    let wrapper: Vec<String> = LACKING
        .iter()
        .chain(&["-o", trace.to_str().expect("text")])
        .map(|w| w.to_string())
        .collect();
    let node = Node::start_with(NodeOptions { wrapper: wrapper.clone(), ..options("auto") });
    says(&node, "driver=\"streams (a ring with buffers");
    says(&node, "Invalid argument");
    let _alice = crate::common::raw::Raw::sign_in(&node, "alice");
    drop(node);
    let mut command = Command::new(&wrapper[0]);
    command.args(&wrapper[1..]).arg(executable()).args(["serve", "--driver", "ring"]);
    command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]);
    let output = command.arg(folder.path().join("data")).output().expect("strace runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().last().unwrap_or_default().to_owned() + "\n";
    let refused = std::process::Output { stderr: last.into_bytes(), ..output };
    let line = refusal(&refused);
    assert!(line.contains("\"ring\" cannot be used") && line.contains("Linux 6.1"), "{text}");
}
