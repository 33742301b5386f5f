use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use chatring_core::counters::Counters;

use super::*;
use crate::metrics::{of_process, of_runtime, of_shards, of_store};
use crate::rt::StatValues;
use crate::store::embedded::StoreMetrics;

fn api(connections_max: usize) -> Api {
    Api::start(SocketAddr::from(([127, 0, 0, 1], 0)), connections_max, |_| {}).expect("a port")
}

fn exchange(api: &Api, request: &str) -> String {
    let mut stream = TcpStream::connect(api.local_addr()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
    // A refusal may come, and the connection go, before everything is written.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("text")
}

fn get(api: &Api, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = exchange(api, &request);
    let status = answer[9..12].parse().expect("a status");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    (status, body.to_owned())
}

#[test]
fn readiness_follows_the_phase_and_health_does_not() {
    let api = api(4);
    assert_eq!(get(&api, "/readyz"), (503, "starting\n".to_owned()));
    api.set_phase(Phase::Ready);
    assert_eq!(get(&api, "/readyz"), (200, "ready\n".to_owned()));
    api.set_phase(Phase::Draining);
    assert_eq!(get(&api, "/readyz"), (503, "draining\n".to_owned()));
    assert_eq!(get(&api, "/healthz"), (200, "ok\n".to_owned()));
    api.stop();
}

#[test]
fn anything_else_is_a_problem_in_json() {
    let api = api(4);
    for (path, status) in [("/", 404), ("/v1/ws", 404), ("/metrics/x", 404)] {
        let (got, body) = get(&api, path);
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((got, body["status"].as_u64()), (status, Some(status.into())), "{path}");
    }
    let request = "POST /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = exchange(&api, request);
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("problem+json"), "{answer}");
    api.stop();
}

#[test]
fn heads_are_bounded() {
    let api = api(4);
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nmore: {}\r\n\r\n", "a".repeat(64 * 1024));
    let answer = exchange(&api, &long);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(100));
    assert!(exchange(&api, &many).starts_with("HTTP/1.1 431"));
    api.stop();
}

#[test]
fn connections_above_the_bound_wait() {
    let api = api(1);
    let first = TcpStream::connect(api.local_addr()).expect("it listens");
    let mut second = TcpStream::connect(api.local_addr()).expect("it listens");
    second.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").expect("the backlog takes it");
    second.set_read_timeout(Some(Duration::from_millis(300))).expect("a time");
    let mut byte = [0];
    assert!(second.read(&mut byte).is_err(), "it was served beside the first");
    drop(first);
    second.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
    assert_eq!(second.read(&mut byte).expect("its turn"), 1);
    api.stop();
}

#[test]
fn the_figures_are_prometheus_text() {
    let api = api(4);
    let mut store = StoreMetrics { write_us_sum: 500_000, ..StoreMetrics::default() };
    store.write_us_buckets[3] = 3;
    store.write_us_buckets[6] = 2;
    *store.write_us_buckets.last_mut().expect("buckets") = 1;
    api.set_scrape(Box::new(move || {
        let mut metrics = of_process(SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        metrics.extend(of_shards(&Counters { sends: 7, sessions: 3, ..Counters::default() }));
        metrics.extend(of_runtime(&StatValues { ticks: 9, ..StatValues::default() }));
        metrics.extend(of_store(&store));
        metrics
    }));
    let (status, text) = get(&api, "/metrics");
    assert_eq!(status, 200);
    let mut samples = std::collections::HashMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect(line);
        let value: f64 = value.parse().expect(line);
        assert!(name.starts_with("chatring_") && value.is_finite(), "{line}");
        assert!(samples.insert(name.to_owned(), value).is_none(), "twice: {name}");
    }
    for (name, value) in [
        ("chatring_sends_total", 7.0),
        ("chatring_sessions", 3.0),
        ("chatring_process_start_time_seconds", 5.0),
        ("chatring_store_write_seconds_bucket{le=\"0.001\"}", 3.0),
        ("chatring_store_write_seconds_bucket{le=\"0.01\"}", 5.0),
        ("chatring_store_write_seconds_bucket{le=\"+Inf\"}", 6.0),
        ("chatring_store_write_seconds_count", 6.0),
        ("chatring_store_write_seconds_sum", 0.5),
        ("chatring_shard_ticks_total", 9.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name}\n{text}");
    }
    for name in ["chatring_process_resident_bytes", "chatring_process_open_fds"] {
        assert!(samples.get(name).is_some_and(|value| *value > 1.0), "{name}\n{text}");
    }
    assert!(text.contains("chatring_build_info{version="), "{text}");
    api.stop();
}
