//! Goal: the server starts, tells where it is, refuses what it cannot run on, and ends as promised.
//! Method: the real binary.

use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;

use crate::common::{DRAIN_MAX, Node, NodeOptions, chatring, get, refusal};

#[test]
fn the_ready_file_tells_where_a_ready_server_is() {
    let node = Node::start();
    let mode = std::fs::metadata(node.ready_file()).expect("a file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(node.ws().starts_with("ws://127.0.0.1:") && node.ws().ends_with("/v1/ws"));
    assert_eq!(node.ready()["shards"], 2);
    assert_eq!(get(node.http(), "/healthz").status, 200);
    assert_eq!(get(node.http(), "/readyz").status, 200);
    assert_eq!(node.token("alice").split('.').count(), 3);
    let ws = node.ws().strip_prefix("ws://").and_then(|ws| ws.split('/').next());
    std::net::TcpStream::connect(ws.expect("an address")).expect("it accepts");
}

#[test]
fn the_figures_cover_every_part() {
    let node = Node::start();
    let text = get(node.http(), "/metrics").body;
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    for line in samples.clone() {
        let (name, value) = line.rsplit_once(' ').expect(line);
        assert!(name.starts_with("chatring_") && value.parse::<f64>().is_ok(), "{line}");
    }
    for part in [
        "chatring_sessions ",
        "chatring_gateway_connections ",
        "chatring_store_commits_total ",
        "chatring_shard_ticks_total ",
        "chatring_process_open_fds ",
        "chatring_build_info{",
    ] {
        assert!(samples.clone().any(|line| line.starts_with(part)), "{part} is missing:\n{text}");
    }
}

#[test]
fn sigterm_drains_and_a_killed_server_starts_again() {
    let mut node = Node::start();
    let key = node.ready()["token_key_file"].clone();
    assert_eq!(node.stop().code(), Some(0), "{}", node.log());
    node.restart();
    node.kill();
    node.restart();
    assert_eq!(node.ready()["token_key_file"], key);
    assert_eq!(get(node.http(), "/readyz").status, 200);
    node.signal(Signal::INT);
    assert_eq!(node.wait(DRAIN_MAX).code(), Some(0), "{}", node.log());
}

#[test]
fn what_it_cannot_run_on_is_said_in_one_line() {
    let node = Node::start();
    let data = node.data();
    let free = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let serve = |args: &[&str]| chatring(&[&["serve"][..], &free, args].concat());
    let used = serve(&["--data", data.to_str().expect("text")]);
    assert!(refusal(&used).contains("in use"), "{used:?}");

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "x").expect("a file");
    let output = serve(&["--data", file.to_str().expect("text")]);
    assert!(refusal(&output).contains("data folder"), "{output:?}");

    let http = node.http().strip_prefix("http://").expect("an address");
    let fresh = folder.path().join("fresh");
    let fresh = fresh.to_str().expect("text");
    let output = chatring(&["serve", "--data", fresh, "--listen", "127.0.0.1:0", "--http", http]);
    assert!(refusal(&output).contains("cannot listen on"), "{output:?}");

    let output = serve(&["--data", fresh, "--ready-file", "/no/such/folder/ready.json"]);
    assert!(refusal(&output).contains("ready file"), "{output:?}");
    let output = serve(&["--data", fresh, "--config", "/no/such/file.toml"]);
    assert!(refusal(&output).contains("/no/such/file.toml"), "{output:?}");
}

#[test]
fn logs_are_one_json_object_a_line_if_asked() {
    let config = "[log]\nformat = \"json\"\n".to_owned();
    let mut node = Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() });
    node.stop();
    let log = node.log();
    assert!(log.lines().count() >= 2, "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}
