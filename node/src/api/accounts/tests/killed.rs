//! Goal: `kill -9` in the middle of sign-ups leaves accounts that are whole or not there, and what
//! was answered is stored. Method: a process signs users up until it is killed, several times.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::world::{Place, World, block_on};

/// Tells the process which folder to use, and the number of its first user.
const FOLDER: &str = "CHATRING_TEST_ACCOUNTS_FOLDER";
const FIRST: &str = "CHATRING_TEST_ACCOUNTS_FIRST";
const NAME: &str = "api::accounts::tests::killed::sign_ups_are_whole_after_a_kill";
/// Processes that are killed.
const ROUNDS: u32 = 20;
/// Answers after which a process is killed,
const ANSWERS: usize = 3;
/// and how much later in each round than in the one before: a sign-up takes some milliseconds.
const LATER: Duration = Duration::from_micros(300);
/// What comes before the handle of a user that was answered.
const ANSWERED: &str = "answered ";

#[test]
fn sign_ups_are_whole_after_a_kill() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let first = std::env::var(FIRST).expect("set with the folder").parse().expect("a number");
        return sign_up_for_ever(folder.into(), first);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut answered = Vec::new();
    for round in 0..ROUNDS {
        let later = LATER * round;
        answered.extend(killed_after(folder.path().to_owned(), round * 1_000, later));
        let place = Place::Sqlite(folder.path().to_owned());
        block_on(async {
            let world = World::new(place).await;
            for handle in &answered {
                world.log_in(handle, 1).await;
            }
            let accounts = world.count("accounts").await;
            assert!(accounts >= answered.len() as u64);
            for table in ["devices", "sessions"] {
                assert_eq!(world.count(table).await, accounts, "round {round}: {table}");
            }
            world.accounts.close().await;
        });
    }
}

fn sign_up_for_ever(folder: PathBuf, first: u32) {
    block_on(async {
        let world = World::new(Place::Sqlite(folder)).await;
        for n in first..first + 1_000 {
            let handle = format!("user{n}");
            world.sign_up(&handle).await;
            println!("\n{ANSWERED}{handle}");
        }
    });
}

fn killed_after(folder: PathBuf, first: u32, later: Duration) -> Vec<String> {
    let binary = std::env::current_exe().expect("this test runs from a file");
    let mut command = Command::new(binary);
    command.args(["--exact", NAME, "--nocapture", "--test-threads=1"]);
    command.env(FOLDER, folder).env(FIRST, first.to_string()).stdout(Stdio::piped());
    let mut process = command.spawn().expect("it starts again");
    let out = BufReader::new(process.stdout.take().expect("it is piped"));
    let mut answered = Vec::new();
    for line in out.lines() {
        let line = line.expect("text");
        if let Some(handle) = line.strip_prefix(ANSWERED) {
            answered.push(handle.to_owned());
            if answered.len() == ANSWERS {
                std::thread::sleep(later);
                process.kill().expect("it still runs");
            }
        }
    }
    process.wait().expect("it has ended");
    assert!(answered.len() >= ANSWERS, "it ended by itself after {answered:?}");
    answered
}
