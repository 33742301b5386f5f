//! Goal: the borders and sizes that keep the code readable hold. Method: read every source file.

use std::path::{Path, PathBuf};

/// Longest file.
const LINES_MAX: usize = 800;
/// Longest line of code.
const COLUMNS_MAX: usize = 100;

/// Word, and the folders whose code may name it.
const BORDERS: &[(&str, &[&str])] = &[
    ("glommio", &["node/src/rt/"]),
    ("io_uring", &["node/src/rt/", BARE_RING]),
    ("tokio", TOKIO),
    ("rkyv", &["wire/src/link/"]),
    ("axum", &["node/src/api/", BARE_HTTP]),
    ("sqlx", &["node/src/api/accounts/", "tests/http_enforce.rs"]),
    ("hyper", &["node/src/api/"]),
    ("fjall", &["node/src/store/embedded/", "benches/"]),
    ("foundationdb", &["node/src/store/fdb/"]),
    ("unsafe", &["node/src/rt/", "node/src/store/fdb/", "wire/src/ws/mask.rs", BARE_RING]),
    ("Instant", CLOCKS),
    ("SystemTime", CLOCKS),
];

/// Who may name tokio: what runs on the service thread, clients and tests.
const TOKIO: &[&str] = &[
    "node/src/api/",
    "node/src/link/",
    "node/src/cli/chat.rs",
    "client/src/",
    "loadgen/src/",
    "tests/",
    BARE_HTTP,
];

/// The sockets of the bare relay and of the load generator: this file alone.
const BARE_RING: &str = "benches/bare/src/ring.rs";

/// The bare HTTP handler, which is made of what the node's API is made of.
const BARE_HTTP: &str = "benches/bare-http/src/";

/// Who may read a clock. Examples do I/O, which the crates that they show do not.
const CLOCKS: &[&str] = &["node/", "client/", "loadgen/", "benches/", "tests/", "wire/examples/"];

#[test]
fn files_and_lines_are_short() {
    let mut found = Vec::new();
    for (name, text) in sources() {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            found.push(format!("{name}: {lines} lines"));
        }
        for (n, line) in text.lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX {
                found.push(format!("{name}:{}: {} columns", n + 1, line.chars().count()));
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn only_those_who_may_name_a_runtime_or_an_engine_do() {
    let mut found = Vec::new();
    for (name, text) in sources() {
        if name == "tests/tidy.rs" {
            continue;
        }
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (word, folders) in BORDERS {
                let allowed = folders.iter().any(|folder| name.starts_with(folder));
                if !allowed && words(code).any(|w| w == *word) {
                    found.push(format!("{name}:{}: {word}", n + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_queue_has_a_bound() {
    let mut found = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| name != "tests/tidy.rs") {
        found.extend(queues_without_bound(&text).map(|n| format!("{name}:{n}")));
    }
    assert!(found.is_empty(), "an unbounded queue without `{BOUND}`:\n{}", found.join("\n"));
}

#[test]
fn a_queue_without_bound_is_found_and_one_that_names_its_bound_is_not() {
    let call = ["let (a, b) = flume::unbounded", "();"].concat();
    assert_eq!(queues_without_bound(&call).collect::<Vec<_>>(), [1]);
    assert_eq!(queues_without_bound(&format!("{call} // see above")).count(), 1);
    assert_eq!(queues_without_bound(&format!("{call} {BOUND} one per request")).count(), 0);
    assert_eq!(queues_without_bound(&call.replace("()", "_channel::<u8>()")).count(), 1);
}

/// What a line that makes an unbounded queue must say, followed by what bounds it.
const BOUND: &str = "// bound:";

/// Numbers of the lines that make a queue that could grow for ever.
fn queues_without_bound(text: &str) -> impl Iterator<Item = usize> {
    let makes_one = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        words(code).any(|w| w == "unbounded" || w == "unbounded_channel" || w == "new_unbounded")
    };
    let says_why =
        |line: &str| line.split_once(BOUND).is_some_and(|(_, reason)| !reason.trim().is_empty());
    let lines = text.lines().enumerate();
    lines.filter(move |(_, line)| makes_one(line) && !says_why(line)).map(|(n, _)| n + 1)
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// Every Rust file of the repository with its path from the root.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("node has a parent");
    let mut files = Vec::new();
    for folder in ["wire", "core", "node", "client", "loadgen", "benches", "fuzz", "tests"] {
        walk(&root.join(folder), &mut files);
    }
    assert!(files.len() > 20, "found only {} files", files.len());
    let named = files.into_iter().map(|path| {
        let name = path.strip_prefix(root).expect("within the root").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect(&name);
        (name, text)
    });
    named.collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the repository") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target" && name != "corpus") {
                walk(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
