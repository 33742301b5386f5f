//! Every parser of bytes that a peer or a store hands in, as a function that must not panic.
//!
//! Each target checks more than that where it can: what parses is written again and must parse to
//! the same. `cargo test -p chatring-fuzz` replays the kept corpus; `fuzz/run SECONDS` looks for
//! new inputs, guided by coverage.

#![forbid(unsafe_code)]

mod frames;
mod link;
mod store;
mod websocket;

/// A parser under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Runs it; panics if the parser does or breaks a promise.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "varint", run: frames::varint },
    Target { name: "client_binary", run: frames::client_binary },
    Target { name: "server_binary", run: frames::server_binary },
    Target { name: "client_json", run: frames::client_json },
    Target { name: "server_json", run: frames::server_json },
    Target { name: "ws_decode", run: websocket::decode },
    Target { name: "ws_server_handshake", run: websocket::server_handshake },
    Target { name: "ws_client_handshake", run: websocket::client_handshake },
    Target { name: "link", run: link::envelopes },
    Target { name: "link_archive", run: link::archives },
    Target { name: "link_handshake", run: link::handshake },
    Target { name: "cursor", run: store::cursor },
    Target { name: "values", run: store::values },
];

/// The target with this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
