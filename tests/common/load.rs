//! The load generator on a server under test, with its books.

use std::path::Path;
use std::thread::JoinHandle;

use chatring_loadgen::cli::{self, Cli, Command};
use chatring_loadgen::report::Report;
use chatring_loadgen::scenario::verify::Verified;
use chatring_loadgen::scenario::{direct, http, verify};
use clap::Parser as _;

use super::Node;

/// A run of `direct` or `http` in a thread of its own.
#[derive(Debug)]
pub struct Load(JoinHandle<Report>);

impl Load {
    /// Starts `direct` with arguments beside `--node` and `--ledger`.
    pub fn start(node: &Node, ledger: &Path, args: &str) -> Load {
        let options = direct_options(node, ledger, args);
        Load(std::thread::spawn(move || {
            let (report, notes) = direct::run(&options).expect("the load begins");
            notes.iter().for_each(|note| eprintln!("{note}"));
            report
        }))
    }

    /// Starts `http` in the same way.
    pub fn start_http(node: &Node, ledger: &Path, args: &str) -> Load {
        let options = http_options(node, ledger, args);
        Load(std::thread::spawn(move || {
            let (report, notes) = http::run(&options).expect("the load begins");
            notes.iter().for_each(|note| eprintln!("{note}"));
            report
        }))
    }

    /// Whether the load has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// What it came to.
    pub fn report(self) -> Report {
        self.0.join().expect("the load has not panicked")
    }
}

/// Why `direct` does not begin.
pub fn refused(node: &Node, ledger: &Path, args: &str) -> String {
    direct::run(&direct_options(node, ledger, args)).expect_err("it does not begin").to_string()
}

/// Why `http` does not begin.
pub fn refused_http(node: &Node, ledger: &Path, args: &str) -> String {
    http::run(&http_options(node, ledger, args)).expect_err("it does not begin").to_string()
}

/// Reads everything that the ledger names from the node and compares.
pub fn verify(node: &Node, ledger: &Path) -> Verified {
    let Command::Verify(options) = command("verify", node, ledger, "") else {
        unreachable!("it is verify")
    };
    verify::run(&options).expect("the node answers")
}

fn direct_options(node: &Node, ledger: &Path, args: &str) -> cli::Direct {
    let Command::Direct(options) = command("direct", node, ledger, args) else {
        unreachable!("it is direct")
    };
    options
}

fn http_options(node: &Node, ledger: &Path, args: &str) -> cli::Http {
    let Command::Http(options) = command("http", node, ledger, args) else {
        unreachable!("it is http")
    };
    options
}

fn command(name: &str, node: &Node, ledger: &Path, args: &str) -> Command {
    let (node, ledger) = (node.ready_file(), ledger.to_owned());
    let fixed = ["chatring-loadgen".into(), name.into(), "--node".into(), node, "--ledger".into()];
    let words = fixed.into_iter().chain([ledger]).map(|word| word.into_os_string());
    Cli::parse_from(words.chain(args.split_whitespace().map(Into::into))).command
}
