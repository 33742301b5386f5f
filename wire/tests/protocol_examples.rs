//! Goal: what `docs/protocol.md` shows is what the code does.
//!
//! Method: each fenced block `hex client` or `hex server` is followed by a `json` block with the
//! same frames. Both are decoded and compared, and what comes out is encoded again and compared
//! with what the document says.

use std::collections::BTreeSet;

use bytes::Bytes;
use chatring_wire::codec::{ClientCodec, Outgoing, ServerCodec, Subprotocol};
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::{CloseCode, ErrorClass, ErrorCode};
use serde_json::Value;

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

/// Every frame's name; an example of each is wanted.
const NAMES: [&str; 32] = [
    "hello", "refresh", "open", "send", "mark", "ack", "sync", "more", "range", "who", "sign_out",
    "ping", "welcome", "done", "opened", "sent", "refused", "unknown", "continue", "text", "entry",
    "marker", "syncing", "head", "page", "page_end", "synced", "behind", "rows", "members",
    "drain", "pong",
];

struct Example {
    speaker: String,
    binary: Bytes,
    json: String,
}

fn blocks() -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((info.to_owned(), body.join("\n")));
        }
    }
    blocks
}

fn examples() -> Vec<Example> {
    let blocks = blocks();
    let mut examples = Vec::new();
    for (at, (info, hex)) in blocks.iter().enumerate() {
        let Some(speaker) = info.strip_prefix("hex ") else { continue };
        let (next, json) = &blocks[at + 1];
        assert_eq!(next, "json", "a block `{info}` is followed by its JSON");
        let bytes = hex
            .lines()
            .flat_map(|line| line.split('#').next().unwrap_or("").split_whitespace())
            .map(|byte| u8::from_str_radix(byte, 16).expect("two hexadecimal digits"));
        let (speaker, binary) = (speaker.to_owned(), bytes.collect());
        examples.push(Example { speaker, binary, json: json.clone() });
    }
    examples
}

fn objects(json: &str) -> Vec<Value> {
    match serde_json::from_str(json).expect("JSON") {
        Value::Array(objects) => objects,
        object => vec![object],
    }
}

macro_rules! check {
    ($example:expr, $from:ident, $to:ident) => {{
        let json = Bytes::from($example.json.clone());
        let decode = |subprotocol, message: &Bytes| {
            let mut frames = Vec::new();
            let skipped =
                $to::new(subprotocol, FRAME_BYTES_MAX).decode(message, |frame| frames.push(frame));
            assert_eq!(skipped, Ok(0), "{}", $example.json);
            frames
        };
        let frames = decode(Subprotocol::Json, &json);
        let encode = |subprotocol| {
            let mut codec = $from::new(subprotocol, FRAME_BYTES_MAX);
            let mut out = Outgoing::new();
            for frame in &frames {
                codec.encode(frame, &mut out).expect("within bounds");
            }
            out.messages().map(Bytes::copy_from_slice).collect::<Vec<_>>()
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x} ")).collect::<String>();
        let binary = encode(Subprotocol::Binary);
        assert_eq!(hex(&$example.binary), hex(&binary[0]), "{}", $example.json);
        assert_eq!(decode(Subprotocol::Binary, &$example.binary), frames, "{}", $example.json);
        let written: Vec<Value> = encode(Subprotocol::Json)
            .iter()
            .map(|message| serde_json::from_slice(message).expect("JSON"))
            .collect();
        assert_eq!(written, objects(&$example.json));
    }};
}

#[test]
fn the_examples_are_what_both_codecs_read_and_write() {
    let examples = examples();
    for example in &examples {
        match example.speaker.as_str() {
            "client" => check!(example, ClientCodec, ServerCodec),
            "server" => check!(example, ServerCodec, ClientCodec),
            other => panic!("who is {other}?"),
        }
    }
    let seen: BTreeSet<String> = examples
        .iter()
        .flat_map(|example| objects(&example.json))
        .map(|object| object["type"].as_str().expect("a type").to_owned())
        .collect();
    let missing: Vec<&str> = NAMES.into_iter().filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "no example of {missing:?}");
    assert!(seen.contains("error"), "no example of error");
}

#[test]
fn the_table_of_errors_is_complete() {
    for code in ErrorCode::ALL {
        let (class, range) = match code.class() {
            ErrorClass::Protocol => ("protocol", 1..=19),
            ErrorClass::Auth => ("auth", 20..=39),
            ErrorClass::Request => ("request", 40..=59),
            ErrorClass::Busy => ("busy", 60..=79),
            ErrorClass::Internal => ("internal", 80..=u16::MAX),
        };
        assert!(range.contains(&code.number()), "{code:?} lies outside of its class's range");
        let row = format!("| {} | `{}` | {class} |", code.number(), code.name());
        assert!(DOCUMENT.contains(&row), "missing: {row}");
        let close = CloseCode::for_error(*code).number().to_string();
        assert!(DOCUMENT.contains(&close), "close code {close} is not explained");
    }
}
