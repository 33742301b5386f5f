//! Goal: the program says where it listens, relays there, and refuses what it cannot do.
//! Method: the real binary.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chatring_bare::frame;

struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn relay(arguments: &[&str]) -> (Relay, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatring-bare"));
    let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Relay(child), line)
}

#[test]
fn it_relays_where_it_says_and_syncs_where_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (_relay, line) = relay(&["--log", log.to_str().unwrap(), "--log-mib", "6"]);
    let address = line.trim_end().strip_prefix("listening on ").unwrap();
    let mut users = [0, 1].map(|user| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&frame::hello(user)).unwrap();
        stream.read_exact(&mut [0; frame::SHORT_BYTES]).unwrap();
        stream
    });
    let text = frame::message(0, &[7; frame::BODY_BYTES]);
    users[0].write_all(&text).unwrap();
    let mut came = [0; frame::MESSAGE_BYTES];
    users[1].read_exact(&mut came).unwrap();
    assert_eq!(came, text);
    assert_eq!(std::fs::read(&log).unwrap()[..frame::MESSAGE_BYTES], text);
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 6 << 20);
}

#[test]
fn one_that_may_open_too_few_files_says_so() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 16; exec \"$0\"", env!("CARGO_BIN_EXE_chatring-bare")]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on ").unwrap();
    let streams: Vec<_> = (0..30).filter_map(|_| TcpStream::connect(address).ok()).collect();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let ended = child.try_wait().unwrap();
    let mut errors = child.stderr.take().unwrap();
    let relay = Relay(child);
    assert!(ended.is_some_and(|status| !status.success()), "it goes on without descriptors");
    drop((streams, relay));
    let mut text = String::new();
    errors.read_to_string(&mut text).unwrap();
    assert!(text.contains("Too many open files"), "{text}");
}

#[test]
fn a_log_that_cannot_be_made_is_told() {
    let log = Path::new("/nowhere/log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatring-bare"));
    let output = command.arg("--log").arg(log).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("No such file"));
}
