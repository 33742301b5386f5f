//! What a node does for a message while it is loaded: two looks at its counters and at what the
//! kernel counts of it, and what perf sees of its system calls in between.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{figure, head, row};

const LOADS: [(&str, &[&str]); 3] = [
    ("closed loop, 1,000 users", &["--users", "1000", "--window", "1"]),
    ("15,000/s", &["--users", "1000", "--rate", "15000"]),
    ("5,000/s", &["--users", "500", "--rate", "5000"]),
];
/// From the start of the load to the first look.
const WARM_SECONDS: u64 = 4;
const READY_SECONDS_MAX: u64 = 30;
/// System calls that a row of their own shows; all are in the sum.
const CALLS: [&str; 9] = [
    "io_uring_enter",
    "recvfrom",
    "sendto",
    "read",
    "write",
    "writev",
    "pwrite64",
    "fdatasync",
    "futex",
];

/// A figure's name and its value at a look, or between two.
type Figures = BTreeMap<String, f64>;

pub fn table(seconds: u64) -> Result<(), String> {
    let watched: Vec<Figures> =
        LOADS.iter().map(|(_, load)| watch(load, seconds)).collect::<Result<_, _>>()?;
    let messages: Vec<f64> = watched.iter().map(|figures| of(figures, "messages")).collect();
    if messages.contains(&0.0) {
        return Err("no message was stored".to_owned());
    }
    head("a node of one shard, of one message", &LOADS.map(|(name, _)| name));
    row("messages a second", watched.iter().map(|f| figure(of(f, "messages") / of(f, "seconds"))));
    row("messages a commit", watched.iter().map(|f| figure(of(f, "messages") / of(f, "commits"))));
    let mut names: Vec<&String> = watched.iter().flat_map(BTreeMap::keys).collect();
    names.sort();
    names.dedup();
    names.retain(|name| !["messages", "commits", "seconds"].contains(&name.as_str()));
    for name in names {
        let each = watched.iter().zip(&messages).map(|(figures, n)| of(figures, name) / n);
        let each: Vec<f64> = each.collect();
        if each.iter().any(|value| *value >= 0.0005) {
            row(name, each.into_iter().map(figure));
        }
    }
    Ok(())
}

fn of(figures: &Figures, name: &str) -> f64 {
    figures.get(name).copied().unwrap_or(0.0)
}

/// A process that does not outlive this one's interest in it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a node and its load, and gives what happened in so many seconds.
fn watch(load: &[&str], seconds: u64) -> Result<Figures, String> {
    let folder = Folder::new()?;
    let ready = folder.0.join("ready.json");
    let [data, ready_file] =
        [folder.0.join("data"), ready.clone()].map(|p| p.display().to_string());
    let node = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "1"];
    let node = [&node[..], &["--data", &data, "--ready-file", &ready_file]].concat();
    let node = start("chatring", &node, 0)?;
    let http = wait_for_ready(&ready)?;
    let duration = format!("{}s", seconds + 2 * WARM_SECONDS);
    let load = [&["direct", "--node", &ready_file, "--duration", &duration], load].concat();
    let _load = start("chatring-loadgen", &load, 1)?;
    std::thread::sleep(Duration::from_secs(WARM_SECONDS));
    let pid = node.0.id();
    let (start, before) = (Instant::now(), look(pid, &http)?);
    let mut calls = system_calls(pid, seconds);
    let (took, after) = (start.elapsed().as_secs_f64(), look(pid, &http)?);
    // perf takes a while before it counts, so the looks lie further apart.
    calls.values_mut().for_each(|count| *count *= took / seconds as f64);
    calls.insert("seconds".to_owned(), took);
    for (name, value) in after {
        let earlier = of(&before, &name);
        calls.insert(name, value - earlier);
    }
    Ok(calls)
}

/// Starts one of our programs, on a core of its own where there are several.
fn start(program: &str, words: &[&str], core: usize) -> Result<Running, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let path = own.with_file_name(program);
    if !path.exists() {
        return Err(format!("{} is missing: build it first, as a release", path.display()));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = match cores {
        1 => Command::new(path),
        _ => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(path);
            command
        }
    };
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(Running).map_err(|error| format!("{program}: {error}"))
}

/// Waits for the ready file and gives the address of HTTP in it.
fn wait_for_ready(file: &Path) -> Result<String, String> {
    let until = Instant::now() + Duration::from_secs(READY_SECONDS_MAX);
    while Instant::now() < until {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some((_, rest)) = text.split_once("\"http\": \"http://")
            && let Some((address, _)) = rest.split_once('"')
        {
            return Ok(address.to_owned());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("the node does not become ready".to_owned())
}

/// Counts the system calls of a process for so long; none where perf cannot.
fn system_calls(pid: u32, seconds: u64) -> Figures {
    let mut events = vec!["raw_syscalls:sys_enter".to_owned(), "instructions:u".to_owned()];
    events.extend(CALLS.map(|call| format!("syscalls:sys_enter_{call}")));
    let output = Command::new("perf")
        .args(["stat", "-x", ",", "-e", &events.join(","), "-p", &pid.to_string(), "--"])
        .args(["sleep", &seconds.to_string()])
        .output();
    let said = match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stderr).into_owned()
        }
        _ => {
            eprintln!("SKIPPED: system calls: perf cannot count them here");
            std::thread::sleep(Duration::from_secs(seconds));
            return Figures::new();
        }
    };
    let mut figures = Figures::new();
    for line in said.lines() {
        let fields: Vec<&str> = line.split(',').collect();
        let [count, _, event, ..] = fields[..] else { continue };
        let Ok(count) = count.parse() else { continue };
        let name = match event {
            "raw_syscalls:sys_enter" => "system calls".to_owned(),
            "instructions:u" => "instructions, all threads, user".to_owned(),
            event => format!("system calls: {}", event.trim_start_matches("syscalls:sys_enter_")),
        };
        figures.insert(name, count);
    }
    figures
}

/// What the node and the kernel have counted so far.
fn look(pid: u32, http: &str) -> Result<Figures, String> {
    let mut figures = Figures::new();
    let metrics = get(http)?;
    for (metric, name) in [
        ("chatring_sends_stored_total", "messages"),
        ("chatring_store_commits_total", "commits"),
        ("chatring_store_groups_total", "groups (syncs)"),
        ("chatring_store_rows_total", "rows"),
        ("chatring_store_written_bytes_total", "bytes: of the commits"),
        ("chatring_shard_turns_total", "turns of the shard"),
        ("chatring_shard_bytes_in_total", "bytes: from sockets"),
        ("chatring_shard_bytes_out_total", "bytes: to sockets"),
    ] {
        let line = metrics.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        let value = line.and_then(|value| value.trim().parse().ok());
        figures.insert(name.to_owned(), value.ok_or_else(|| format!("no metric {metric}"))?);
    }
    let read = |file: String| fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"));
    let io = read(format!("/proc/{pid}/io"))?;
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
    figures.insert("bytes: written to the disk".to_owned(), written.unwrap_or(0.0));
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| error.to_string())?;
    for task in tasks.flatten() {
        let folder = task.path();
        let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let thread = match text("comm").trim() {
            comm if comm.starts_with("shard") => "shard",
            comm if comm.starts_with("store-commit") => "committer",
            _ => "others",
        };
        let cpu = text("schedstat").split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
        *figures.entry(format!("CPU: {thread} (µs)")).or_default() += cpu.unwrap_or(0.0) / 1e3;
        for line in text("status").lines() {
            let Some((kind, switches)) = line.split_once("ctxt_switches:") else { continue };
            let kind = if kind == "voluntary_" { "waiting" } else { "preempted" };
            let switches = switches.trim().parse().unwrap_or(0.0);
            *figures.entry(format!("switches: {thread}, {kind}")).or_default() += switches;
        }
    }
    Ok(figures)
}

fn get(http: &str) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("metrics: {error}");
    let mut stream = TcpStream::connect(http).map_err(failed)?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// A folder beside this program, on a real disk, that goes with its value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let folder = own.with_file_name(format!("cost-table-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Folder(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
