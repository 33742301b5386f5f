//! Goal: both addresses speak TLS, one of them for both kinds of clients, and a new certificate
//! disturbs nobody. Method: the real binary and client, and a TLS client of another make.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore};

use crate::common::load::{Load, refused, refused_http, verify};
use crate::common::tls::{self, Certificate};
use crate::common::{Bystanders, Node, NodeOptions, Person, executable, run};

/// Time in which anything must have happened.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

fn start(args: &[&str], config: Option<&str>) -> Node {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let config = config.map(str::to_owned);
    Node::start_with(NodeOptions { tls: true, args, config, ..NodeOptions::default() })
}

/// Both drivers, unless another run of the tests has the say.
fn drivers() -> &'static [&'static [&'static str]] {
    match std::env::var_os("CHATRING_TEST_DRIVER") {
        Some(_) => &[&[]],
        None => &[&["--driver", "ring"], &["--driver", "streams"]],
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} has not happened");
        std::thread::sleep(POLL);
    }
}

/// A figure of `/metrics`, asked by somebody who trusts these certificates.
fn figure(node: &Node, trust: &Arc<ClientConfig>, name: &str) -> f64 {
    let mut stream = tls::connect_with(node.http(), Arc::clone(trust)).expect("a connection");
    let text = tls::get(&mut stream, "/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
}

#[test]
fn people_chat_over_tls_on_shards_of_both_drivers() {
    for args in drivers() {
        let node = start(args, None);
        assert!(node.ws().starts_with("wss://") && node.http().starts_with("https://"));
        run(async {
            let mut alice = Person::new(&node, "alice");
            let mut bob = Person::new(&node, "bob");
            alice.synced().await;
            bob.synced().await;
            let cid = alice.open("bob").await;
            // Below, at and above what fits into one record.
            for size in [1, 1_000, 16_384, 60_000] {
                let text = "x".repeat(size);
                let sent = alice.say(cid, &*text).await;
                alice.is_stored(sent).await;
                bob.sees(&text).await;
            }
            bob.open("alice").await;
            let answer = bob.say(cid, "all four").await;
            bob.is_stored(answer).await;
            for person in [&mut alice, &mut bob] {
                person.sees("all four").await;
                let lengths = person.texts(cid).iter().map(String::len).collect::<Vec<_>>();
                assert_eq!(lengths, [1, 1_000, 16_384, 60_000, 8]);
            }
            assert_eq!(alice.stats().await.connections, 1);
            alice.leave().await;
            bob.leave().await;
        });
        let trust = node.trust().expect("it speaks TLS");
        until("two handshakes", || {
            let made = figure(&node, &trust, "chatring_shard_tls_handshakes_total");
            (made == 2.0).then_some(())
        });
        assert_eq!(figure(&node, &trust, "chatring_shard_tls_broken_total"), 0.0);
    }
}

#[test]
fn users_of_every_shard_are_served_by_their_shard() {
    // Whoever does not arrive at the owner's shard moves there with the TLS that stands.
    for args in drivers() {
        let node = start(args, None);
        run(async {
            for n in 0..8 {
                let mut person = Person::new(&node, &format!("user {n}"));
                person.synced().await;
                person.leave().await;
            }
        });
        let trust = node.trust().expect("it speaks TLS");
        // Of eight users on two shards some have moved.
        until("a move", || {
            let moved = figure(&node, &trust, "chatring_gateway_handovers_total");
            let taken = figure(&node, &trust, "chatring_shard_adopted_total");
            (moved > 0.0 && moved == taken).then_some(())
        });
    }
}

#[test]
fn scripts_ask_over_tls_at_both_addresses() {
    for args in drivers() {
        let node = start(args, None);
        let token = node.token("alice");
        let offers: &[&[u8]] = &[b"h2", b"http/1.1"];
        let one = tls::connect(node.http(), node.folder(), offers).expect("a connection");
        assert_eq!(one.conn.alpn_protocol(), Some(&b"h2"[..]));
        let two = tls::connect(node.ws(), node.folder(), offers).expect("a connection");
        assert_eq!(two.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let refused = tls::connect(node.ws(), node.folder(), &[b"h2"]);
        assert!(refused.is_err(), "the WebSocket's address speaks HTTP/1.1 alone");
        for url in [node.http(), node.ws()] {
            for version in [&TLS12, &TLS13] {
                let mut roots = RootCertStore::empty();
                let pem = std::fs::read(Certificate::paths(node.folder()).0).expect("a file");
                let all = rustls::pki_types::pem::PemObject::pem_slice_iter(&pem);
                all.for_each(|der| roots.add(der.expect("PEM")).expect("a certificate"));
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let config = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[version])
                    .expect("a version")
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let mut stream = tls::connect_with(url, Arc::new(config)).expect("a connection");
                let expected = match version.version {
                    ProtocolVersion::TLSv1_2 => ProtocolVersion::TLSv1_2,
                    _ => ProtocolVersion::TLSv1_3,
                };
                assert_eq!(stream.conn.protocol_version(), Some(expected));
                // A request in pieces, then one that is kept alive for, with a body.
                let ask =
                    format!("GET /v1/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}");
                for piece in [&ask[..9], &ask[9..], "\r\n\r\n"] {
                    stream.write_all(piece.as_bytes()).expect("taken");
                    stream.flush().expect("taken");
                }
                let mut answer = Vec::new();
                let whole = |text: &[u8]| text.windows(7).any(|piece| piece == b"\"alice\"");
                while !whole(&answer) {
                    let mut room = [0; 4_096];
                    let count = stream.read(&mut room).expect("an answer");
                    assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
                    answer.extend_from_slice(&room[..count]);
                }
                let rest = tls::get(&mut stream, "/v1/openapi.json");
                assert!(rest.contains("200 OK") && rest.ends_with('}'), "{rest:.200}");
            }
        }
        let trust = node.trust().expect("it speaks TLS");
        until("two connections that are handed over", || {
            let handed = figure(&node, &trust, "chatring_gateway_http_handed_total");
            (handed == 2.0).then_some(())
        });
    }
}

#[test]
fn a_new_certificate_is_used_from_then_on_and_no_session_notices() {
    let node = start(&[], None);
    let bystanders = Bystanders::start(&node);
    let old = node.trust().expect("it speaks TLS");
    let name = "chatring_tls_certificate_expires_seconds";
    assert_eq!(figure(&node, &old, name), 4_102_444_800.0);
    Certificate::make(2101).put(node.folder());
    let new = node.trust().expect("it speaks TLS");
    node.signal(Signal::HUP);
    until("the new certificate", || tls::connect_with(node.ws(), Arc::clone(&new)).ok());
    assert_eq!(figure(&node, &new, name), 4_133_980_800.0);
    assert!(tls::connect_with(node.http(), Arc::clone(&new)).is_ok());
    bystanders.check();

    // One that does not fit the key.
    Certificate::make(2102).put_without_key(node.folder());
    node.signal(Signal::HUP);
    until("the refusal", || node.log().contains("is refused").then_some(()));
    assert_eq!(figure(&node, &new, "chatring_tls_reloads_refused_total"), 1.0);
    assert_eq!(figure(&node, &new, name), 4_133_980_800.0);
    let lines = node.log().lines().filter(|line| line.contains("is refused")).count();
    assert_eq!(lines, 1, "{}", node.log());
    bystanders.check();
    drop(bystanders);
}

#[test]
fn changed_files_are_found_without_a_signal() {
    let node = start(&[], Some("[tls]\nreload = \"50ms\"\n"));
    Certificate::make(2101).put(node.folder());
    let new = node.trust().expect("it speaks TLS");
    until("the new certificate", || tls::connect_with(node.http(), Arc::clone(&new)).ok());
    until("the new certificate", || tls::connect_with(node.ws(), Arc::clone(&new)).ok());
}

#[test]
fn a_hang_up_ends_a_server_that_has_nothing_to_read_again() {
    let mut node = Node::start();
    node.signal(Signal::HUP);
    assert!(!node.wait(PATIENCE).success());
}

#[test]
fn what_is_no_tls_and_what_is_too_slow_is_closed_and_harms_nobody() {
    for args in drivers() {
        let node = start(args, Some("[limits]\nhandshake = \"500ms\"\n"));
        let bystanders = Bystanders::start(&node);
        let hello = client_hello(&node);
        let mut sockets = Vec::new();
        for url in [node.ws(), node.http()] {
            let say = |bytes: &[u8]| {
                let mut socket = TcpStream::connect(tls::address(url)).expect("it listens");
                socket.set_read_timeout(Some(PATIENCE)).expect("a time");
                // It may have closed before all is written.
                let _ = socket.write_all(bytes);
                socket
            };
            for bytes in [
                &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
                &[0; 5_000],
                &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3],
                &[0x16, 3, 1, 0, 4, 9, 9, 9, 9],
                &[0x80; 70_000],
            ] {
                sockets.push(say(bytes));
            }
            // Nothing, half of a first word, and a handshake that never ends.
            for said in [0, hello.len() / 2, hello.len()] {
                sockets.push(say(&hello[..said]));
            }
            // Whoever goes in the middle leaves nothing behind.
            say(&hello).shutdown(Shutdown::Both).expect("open");
        }
        sockets.iter_mut().for_each(ends);
        bystanders.check();
        let trust = node.trust().expect("it speaks TLS");
        // Those of the bystanders are left.
        until("the end of the others", || {
            let left = figure(&node, &trust, "chatring_gateway_connections");
            let broken = figure(&node, &trust, "chatring_shard_tls_broken_total");
            let failed = figure(&node, &trust, "chatring_http_tls_failed_total");
            (left == 2.0 && broken == 5.0 && failed == 9.0).then_some(())
        });
    }
}

fn client_hello(node: &Node) -> Vec<u8> {
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let trust = node.trust().expect("it speaks TLS");
    let mut session = ClientConnection::new(trust, name).expect("a configuration");
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("memory");
    hello
}

/// Reads until the server has ended the connection, one way or the other.
fn ends(socket: &mut TcpStream) {
    let mut room = [0; 4_096];
    loop {
        match socket.read(&mut room) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_last_word_of_a_client_is_answered() {
    for args in drivers() {
        let node = start(args, None);
        for url in [node.ws(), node.http()] {
            let mut stream = tls::connect(url, node.folder(), &[]).expect("a connection");
            stream.conn.send_close_notify();
            stream.flush().expect("taken");
            // `Ok(0)` only after the server's own last word.
            assert_eq!(stream.read(&mut [0; 16]).expect("its last word"), 0, "{url}");
        }
    }
}

#[test]
fn files_that_are_of_no_use_are_refused_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = Certificate::paths(folder.path());
    let check = || {
        let mut command = Command::new(executable());
        command.args(["config", "check", "--tls-certificate"]).arg(&paths.0);
        command.arg("--tls-key").arg(&paths.1).output().expect("the executable runs")
    };
    assert!(crate::common::refusal(&check()).contains("certificate.pem"));
    Certificate::make(2100).put(folder.path());
    assert!(check().status.success());
    Certificate::make(2100).put_without_key(folder.path());
    assert!(crate::common::refusal(&check()).contains("key.pem"));
}

#[test]
fn the_terminal_and_the_load_generator_speak_tls() {
    let node = start(&[], None);
    let ca = Certificate::paths(node.folder()).0;
    run(async {
        let mut bob = Person::new(&node, "bob");
        bob.synced().await;
        let mut chat = chat(&node, &ca);
        chat.stdin.take().expect("it is piped").write_all(b"hello\n").expect("it reads");
        bob.sees("hello").await;
        until("the end of the chat", || chat.try_wait().expect("a child of this process"));
        bob.leave().await;
    });
    chatring_loadgen::link::trust(&ca).expect("a certificate");
    let ledger = node.folder().join("ledger");
    let load = Load::start(&node, &ledger, "--users 20 --rate 200 --duration 1s --warmup 200ms");
    let report = load.report();
    assert!(report.is_good(), "{report}");
    assert!(verify(&node, &ledger).is_good());

    // Over HTTP, each way of receiving.
    let ledger = node.folder().join("ledger-http");
    let load = "--users 20 --rate 200 --duration 2s --warmup 200ms --receive mix \
                --change-every 100ms --poll-every 20ms";
    let report = Load::start_http(&node, &ledger, load).report();
    assert!(report.is_good() && report.errors == 0, "{report}");
    assert!(report.reconnects >= 20, "the ways change, {report}");
    let verified = verify(&node, &ledger);
    assert!(verified.is_good(), "{verified}");
    assert_eq!(verified.lines as u64, report.counts.acked);

    // A certificate of somebody else ends a run before it begins.
    Certificate::make(2101).put(node.folder());
    let new = node.trust().expect("it speaks TLS");
    node.signal(Signal::HUP);
    until("the new certificate", || tls::connect_with(node.http(), Arc::clone(&new)).ok());
    let reason = refused_http(&node, &ledger, "--users 2 --rate 2 --duration 1s --receive sse");
    assert!(reason.starts_with("invalid peer certificate"), "{reason}");
    // At a WebSocket too; one that was there before may resume without looking at it.
    let stranger = start(&[], None);
    let reason = refused(&stranger, &ledger, "--users 2 --rate 2 --duration 1s");
    assert!(reason.contains("cannot go on: invalid peer certificate"), "{reason}");
}

fn chat(node: &Node, ca: &PathBuf) -> std::process::Child {
    let token = node.token("alice");
    let mut command = Command::new(executable());
    command.args(["chat", "--url", node.ws(), "--token", &token, "--to", "bob", "--ca"]).arg(ca);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the executable starts")
}
