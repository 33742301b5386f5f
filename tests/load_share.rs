//! Goal: one command compares the server with the bare relay, and leaves nothing behind.
//! Method: the smallest run of `share`, which proves no figure, with the real programs.

use std::path::Path;

use chatring_loadgen::cli::{Cli, Command};
use chatring_loadgen::scenario::share::{self, Who};
use clap::Parser as _;

use crate::common::executable;
use crate::common::skip::skipped;

#[test]
fn share_measures_every_server_in_every_loop_and_cleans_up() {
    let bare = executable().with_file_name("chatring-bare");
    if !bare.exists() {
        // Built by `cargo test --workspace`.
        return skipped("chatring-bare is not built");
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let (dir, chatring, bare) = (path(folder.path()), path(&executable()), path(&bare));
    let short = "chatring-loadgen share --rounds 1 --users 10 --duration 300ms --warmup 100ms";
    let words = short.split(' ').map(str::to_owned);
    let more = ["--half", "--log-mib", "6", "--server-core", "0", "--generator-core", "0"];
    let more = more.map(str::to_owned).into_iter();
    let places = ["--dir", &dir, "--chatring", &chatring, "--bare", &bare].map(str::to_owned);
    let cli = Cli::parse_from(words.chain(more).chain(places));
    let Command::Share(options) = cli.command else { panic!("another command") };
    // The run pins its thread.
    let rounds =
        std::thread::spawn(move || share::run(&options)).join().expect("it ends").expect("it runs");
    assert!(rounds.is_good(), "{rounds}");
    for list in [&rounds.closed, &rounds.open] {
        let all: Vec<Who> = list.iter().map(|measured| measured.who).collect();
        assert_eq!(all, [Who::Bare, Who::BareLog, Who::Chatring]);
        for measured in list {
            assert!(measured.acked_per_s > 0.0 && measured.server_us > 0.0, "{measured:?}");
            assert!(measured.ack.p50 > 0.0 && measured.deliver.p50 > 0.0, "{measured:?}");
        }
    }
    assert!(rounds.open.iter().all(|measured| measured.offered_per_s == Some(rounds.half_rate())));
    assert!(rounds.closed[1].server_us_by_thread.contains_key("bare-log"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
