use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

use axum::http::Method;
use chatring_client::token::TokenKey;
use chatring_core::counters::Counters;
use chatring_wire::ErrorCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::describe::About;
use super::endpoints::Endpoints;
use super::extract::{Answer, Caller, InPath, InQuery, Json};
use super::problem::Problem;
use super::*;
use crate::metrics::{of_process, of_runtime, of_shards, of_store};
use crate::rt::StatValues;
use crate::store::embedded::StoreMetrics;

fn config(connections_max: usize) -> ApiConfig {
    ApiConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        connections_max,
        connections_per_ip_max: connections_max,
        cors_origins: Vec::new(),
        tls: None,
        reloads: false,
        trusted_proxies: Vec::new(),
        forwarded_header: config::ForwardedHeader::default(),
        bad_tokens_per_ip_hour: 1,
        bad_tokens_per_ip_burst: 100,
        idle_ms_max: limits::HTTP_HEAD_MS_MAX,
    }
}

fn api(connections_max: usize) -> Api {
    Api::start(&config(connections_max), |_| {}).expect("a port")
}

fn exchange(api: &Api, request: &str) -> String {
    let mut stream = TcpStream::connect(api.local_addr()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
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
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nmore: {}\r\n\r\n", "a".repeat(1 << 20));
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
    second.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
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

#[derive(Deserialize, JsonSchema)]
struct PathOf {
    /// Which one.
    number: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct QueryOf {
    /// How many.
    limit: Option<u8>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BodyOf {
    /// A list.
    items: Vec<Item>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Item {
    /// A word.
    word: String,
}

async fn echo(
    _: Caller,
    InPath(path): InPath<PathOf>,
    InQuery(query): InQuery<QueryOf>,
    Json(body): Json<BodyOf>,
) -> Result<Answer<BodyOf, 201>, Problem> {
    match query.limit {
        Some(limit) if path.number > u32::from(limit) => Err(ErrorCode::Busy.into()),
        _ => Ok(Answer(body)),
    }
}

/// An API that echoes, and what opens the head of a good request.
fn echoing() -> (Api, String) {
    let about = About { id: "echo", tag: "test", summary: "Says it again" };
    let at = (Method::POST, "/v1/echo/{number}");
    let endpoints = Endpoints::new().add(at, about, &[ErrorCode::SelfChannel], echo);
    let api = Api::start_with(&config(64), endpoints, |_| {}).expect("a port");
    let (key, _) = TokenKey::generate().expect("a key");
    let verifier = Verifier::new(&config::Auth::default(), Some(&key)).expect("no files");
    api.set_node(NodeParts { verifier: Arc::new(verifier), shards: None });
    api.set_phase(Phase::Ready);
    let token = key.mint("alice", extract::unix_s(), 600);
    (api, format!("authorization: Bearer {token}\r\ncontent-type: application/json\r\n"))
}

/// Posts a body. Answers the head in lower case, and the body.
fn post(api: &Api, path: &str, headers: &str, body: &str) -> (u16, String, serde_json::Value) {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\
         {headers}\r\n{body}"
    );
    let answer = exchange(api, &request);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    let status = head[9..12].parse().expect("a status");
    (status, head.to_ascii_lowercase(), serde_json::from_str(body).expect("JSON"))
}

#[test]
fn what_is_wrong_with_a_request_is_told_with_its_place() {
    let (api, head) = echoing();
    let good = r#"{"items":[{"word":"a"}]}"#;
    let (status, _, answer) = post(&api, "/v1/echo/7", &head, good);
    assert_eq!((status, answer.to_string()), (201, good.to_owned()));

    let json = "content-type: application/json\r\n";
    let bearer = &*head.replace(json, "");
    let other = format!("{bearer}content-type: text/plain\r\n");
    let twice = format!("{bearer}{head}");
    let cases = [
        ("/v1/echo/7", json, good, 401, "invalid_token", None),
        ("/v1/echo/7", &bearer.replace("Bearer", "Basic"), good, 401, "invalid_token", None),
        ("/v1/echo/7", "authorization: Bearer bad\r\n", good, 401, "invalid_token", None),
        ("/v1/echo/7", &twice, good, 401, "invalid_token", None),
        ("/v1/echo/7", bearer, good, 415, "unsupported_media_type", None),
        ("/v1/echo/7", &other, good, 415, "unsupported_media_type", None),
        ("/v1/echo/x", &head, good, 400, "invalid", Some("path")),
        ("/v1/echo/7?limit=300", &head, good, 400, "invalid", Some("limit")),
        ("/v1/echo/7?limti=3", &head, good, 400, "invalid", Some("limti")),
        ("/v1/echo/7", &head, "{", 400, "malformed", None),
        ("/v1/echo/7", &head, r#"{"items":[]} {}"#, 400, "malformed", None),
        ("/v1/echo/7", &head, "[1]", 400, "invalid", None),
        ("/v1/echo/7", &head, r#"{"items":[{"wrod":1}]}"#, 400, "invalid", Some("items[0].wrod")),
        ("/v1/echo/7", &head, r#"{"items":[{"word":1}]}"#, 400, "invalid", Some("items[0].word")),
        ("/v1/echo/7?limit=3", &head, good, 429, "busy", None),
        ("/v1/ehco/7", &head, good, 404, "not_found", None),
        ("/healthz", &head, good, 405, "method_not_allowed", None),
    ];
    for (path, headers, body, expected, name, field) in cases {
        let (status, answered, problem) = post(&api, path, headers, body);
        let case = format!("{path} {headers} {body}\n{answered}\n{problem}");
        assert_eq!(status, expected, "{case}");
        assert_eq!(problem["status"], expected, "{case}");
        assert_eq!(problem["name"], name, "{case}");
        let code = ErrorCode::from_name(name).expect("a code").number();
        assert_eq!(problem["code"], code, "{case}");
        if let Some(field) = field {
            assert_eq!(problem["field"], field, "{case}");
        }
        assert!(answered.contains("content-type: application/problem+json"), "{case}");
        assert_eq!(answered.contains("retry-after: 1"), expected == 429, "{case}");
        assert_eq!(answered.contains("www-authenticate: bearer"), expected == 401, "{case}");
    }
    api.set_phase(Phase::Draining);
    let (status, answered, problem) = post(&api, "/v1/echo/7", &head, good);
    assert_eq!((status, problem["name"].as_str()), (503, Some("draining")));
    assert!(answered.contains("retry-after:"), "{answered}");
    api.stop();
}

#[test]
fn bodies_are_bounded_whether_their_length_is_told_or_not() {
    let (api, head) = echoing();
    let word = "a".repeat(limits::HTTP_BODY_BYTES_MAX);
    let large = format!(r#"{{"items":[{{"word":"{word}"}}]}}"#);
    let (status, _, problem) = post(&api, "/v1/echo/7", &head, &large);
    assert_eq!((status, problem["name"].as_str()), (413, Some("too_large")));
    let chunked = format!(
        "POST /v1/echo/7 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n{head}\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let answer = exchange(&api, &chunked);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(api.state.bodies.held(), 0);
    api.stop();
}

#[test]
fn the_description_and_the_figures_follow_from_the_handlers() {
    let (api, head) = echoing();
    post(&api, "/v1/echo/7", &head, r#"{"items":[]}"#);
    post(&api, "/v1/echo/7", &head, "{");
    let (status, text) = get(&api, "/v1/openapi.json");
    assert_eq!(status, 200);
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(document["openapi"], "3.1.0");
    let operation = &document["paths"]["/v1/echo/{number}"]["post"];
    let statuses: Vec<_> = operation["responses"].as_object().expect("answers").keys().collect();
    assert_eq!(
        statuses,
        ["201", "400", "401", "404", "408", "413", "415", "429", "431", "500", "503"]
    );
    let places: Vec<_> = operation["parameters"]
        .as_array()
        .expect("parameters")
        .iter()
        .map(|one| (one["name"].as_str(), one["in"].as_str(), one["required"].as_bool()))
        .collect();
    let number = (Some("number"), Some("path"), Some(true));
    assert_eq!(places, [number, (Some("limit"), Some("query"), Some(false))]);
    assert_eq!(operation["security"][0]["bearer"], serde_json::json!([]));
    let body = &document["components"]["schemas"]["BodyOf"];
    assert_eq!(body["additionalProperties"], false, "{body}");
    assert!(document["components"]["schemas"]["Problem"]["properties"]["code"].is_object());

    let (_, text) = get(&api, "/metrics");
    for line in [
        r#"chatring_http_requests_total{route="POST /v1/echo/{number}"} 2"#,
        r#"chatring_http_request_seconds_count{route="POST /v1/echo/{number}"} 2"#,
        r#"chatring_http_errors_total{route="POST /v1/echo/{number}",code="malformed"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let (status, page) = get(&api, "/docs");
    assert_eq!(status, 200);
    assert!(!page.contains("http://") && !page.contains("https://"), "it loads from outside");
    api.stop();
}

#[test]
fn other_origins_are_let_in_only_if_they_are_listed() {
    let preflight = "OPTIONS /v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
        origin: https://app.example\r\naccess-control-request-method: GET\r\n\r\n";
    let closed = api(4);
    assert!(!exchange(&closed, preflight).contains("access-control"));
    closed.stop();
    let mut config = config(4);
    config.cors_origins = vec!["https://app.example".to_owned()];
    let api = Api::start(&config, |_| {}).expect("a port");
    let allowed = exchange(&api, preflight);
    assert!(allowed.contains("access-control-allow-origin: https://app.example"), "{allowed}");
    let other = exchange(&api, &preflight.replace("app", "evil"));
    assert!(!other.contains("access-control-allow-origin"), "{other}");
    api.stop();
}

#[test]
fn http_2_is_spoken_on_the_same_port() {
    let api = api(4);
    let mut stream = TcpStream::connect(api.local_addr()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
    // The preface, cut in two, and an empty SETTINGS frame (RFC 9113, 3.4 and 6.5).
    stream.write_all(b"PRI * HTTP/2.0\r\n").expect("it reads");
    std::thread::sleep(Duration::from_millis(50));
    stream.write_all(b"\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("it reads");
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).expect("it answers");
    assert_eq!((frame[3], frame[4]), (4, 0), "SETTINGS");
    drop(stream);
    api.stop();
}

#[test]
fn an_http_2_connection_without_requests_is_closed() {
    let mut config = config(4);
    config.idle_ms_max = 50;
    let api = Api::start(&config, |_| {}).expect("a port");
    let mut stream = TcpStream::connect(api.local_addr()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
    let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(opening).expect("it reads");
    // It answers pings as a good client does, and says nothing more.
    let mut kinds = Vec::new();
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            break;
        }
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).expect("the whole frame");
        kinds.push(head[3]);
        if head[3] == 6 && head[4] == 0 {
            head[4] = 1;
            stream.write_all(&[&head[..], &payload].concat()).expect("it reads");
        }
    }
    assert!(kinds.contains(&7), "GOAWAY: {kinds:?}");
    api.stop();
}
