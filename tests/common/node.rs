//! A server process under test.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chatring_client::token::TokenKey;
use chatring_loadgen::scenario::flood::Usage;
use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use serde_json::Value;
use tempfile::TempDir;

use super::executable;
use super::tls::{self, Certificate};

/// Time in which a server must be ready; a busy machine and an unoptimised build are slow.
const READY_MAX: Duration = Duration::from_secs(60);
/// Time in which the port of a restarted server must be free again.
const PORT_MAX: Duration = Duration::from_secs(30);
/// How long its end may take on a busy machine; it promises 5 s on one that is not.
pub const DRAIN_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// Who says in the log what held the server up.
const HELD_UP: &str = "chatring_node::held";
/// Longest log that is kept; what comes later is dropped.
const LOG_BYTES_MAX: usize = 4 << 20;

/// How to start a server.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// `--shards`. Two, so that hops between shards are real.
    pub shards: u16,
    /// Further arguments.
    pub args: Vec<String>,
    /// Text of the configuration file, if any.
    pub config: Option<String>,
    /// Data folder, if not one of the server's own.
    pub data: Option<PathBuf>,
    /// Whether it speaks TLS, with a certificate of its own.
    pub tls: bool,
    /// Words before the executable and its arguments (`strace …`).
    pub wrapper: Vec<String>,
}

impl Default for NodeOptions {
    fn default() -> NodeOptions {
        NodeOptions {
            shards: 2,
            args: Vec::new(),
            config: None,
            data: None,
            tls: false,
            wrapper: Vec::new(),
        }
    }
}

/// A running (or killed) server with a folder of its own, which lives on over restarts. Dropped, it
/// is killed; if the test has failed, its log is printed.
#[derive(Debug)]
pub struct Node {
    folder: TempDir,
    options: NodeOptions,
    child: Option<Child>,
    log: Arc<Mutex<String>>,
    ready: Value,
}

impl Node {
    /// A server with two shards that is ready.
    pub fn start() -> Node {
        Node::start_with(NodeOptions::default())
    }

    /// A server that is ready.
    pub fn start_with(options: NodeOptions) -> Node {
        let folder = tempfile::tempdir().expect("a folder");
        if let Some(config) = &options.config {
            std::fs::write(folder.path().join("chatring.toml"), config).expect("a file");
        }
        if options.tls {
            Certificate::make(2100).put(folder.path());
        }
        let log = Arc::default();
        let mut node = Node { folder, options, child: None, log, ready: Value::Null };
        node.launch();
        node
    }

    /// Starts the server again, at the same addresses and in the same folder; kills it before if it
    /// still runs.
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// Ends it with SIGKILL and starts it again without waiting until it is gone, as an impatient
    /// supervisor would.
    pub fn kill_and_restart_at_once(&mut self) {
        let mut dying = self.child.take().expect("it was started");
        dying.kill().expect("it lives");
        self.launch();
        dying.wait().expect("a child of this process");
    }

    /// Ends it with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Under a wrapper the server is another process than the child.
            if self.ready.is_object() && !self.options.wrapper.is_empty() {
                let _ = kill_process(self.pid(), Signal::KILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// From the next start on it runs under these words (`strace …`); none for none.
    pub fn set_wrapper(&mut self, words: &[&str]) {
        self.options.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(self.child.is_some(), "it has ended");
        kill_process(self.pid(), signal).expect("it lives");
    }

    /// Waits until it has ended, for at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let until = Instant::now() + limit;
        let child = self.child.as_mut().expect("it was started");
        loop {
            if let Some(status) = child.try_wait().expect("a child of this process") {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < until, "it has not ended within {limit:?}");
            std::thread::sleep(POLL);
        }
    }

    /// Ends it with SIGTERM and waits.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(DRAIN_MAX)
    }

    /// `ws://HOST:PORT/v1/ws`.
    pub fn ws(&self) -> &str {
        self.ready["ws"].as_str().expect("an address")
    }

    /// `http://HOST:PORT`.
    pub fn http(&self) -> &str {
        self.ready["http"].as_str().expect("an address")
    }

    /// The server's process.
    pub fn pid(&self) -> Pid {
        let pid = self.ready["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw).expect("a process id")
    }

    /// How many threads it has, by the kernel's count.
    pub fn threads(&self) -> u64 {
        let pid = self.pid().as_raw_nonzero().get().unsigned_abs();
        Usage::of(pid).expect("it lives").threads
    }

    /// All that its ready file says.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// Its ready file.
    pub fn ready_file(&self) -> PathBuf {
        self.folder.path().join("ready.json")
    }

    /// Where its certificate and key lie, if it speaks TLS.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How clients know it, if it speaks TLS.
    pub fn trust(&self) -> Option<Arc<ClientConfig>> {
        self.options.tls.then(|| tls::trust(self.folder()))
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.options.data.clone().unwrap_or_else(|| self.folder.path().join("data"))
    }

    /// A token for a user, good for an hour.
    pub fn token(&self, user: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        self.token_key().mint(user, now.as_secs(), 3_600)
    }

    /// The key that signs tokens.
    pub fn token_key(&self) -> TokenKey {
        let path = self.ready["token_key_file"].as_str().expect("a path");
        TokenKey::read(Path::new(path)).expect("the token key")
    }

    /// What it has written to stderr, without what a busy machine makes of any server: that it was
    /// held up.
    pub fn log(&self) -> String {
        let log = self.log.lock().expect("no panic while it is held");
        let own = log.split_inclusive('\n').filter(|line| !line.contains(HELD_UP));
        own.collect()
    }

    fn launch(&mut self) {
        let until = Instant::now() + PORT_MAX;
        while let Err(status) = self.try_launch() {
            // A client of another test may hold the port for a moment.
            let taken = self.log().lines().last().is_some_and(|line| line.contains("in use (os"));
            assert!(taken && Instant::now() < until, "it ended at its start: {status}");
            std::thread::sleep(POLL);
        }
    }

    fn try_launch(&mut self) -> Result<(), ExitStatus> {
        // What the dead server left must not be taken for the new one's.
        let _ = std::fs::remove_file(self.ready_file());
        let mut child = self.command().spawn().expect("the executable starts");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = log.lock().expect("no panic while it is held");
                if log.len() < LOG_BYTES_MAX {
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        self.child = Some(child);
        self.wait_ready()
    }

    fn command(&self) -> Command {
        let mut words = self.options.wrapper.clone();
        words.push(executable().to_str().expect("text").to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("serve").arg("--data").arg(self.data());
        // At a restart the addresses of the first start.
        let address = |key: &str| {
            let url = self.ready[key].as_str().and_then(|url| url.split('/').nth(2));
            url.unwrap_or("127.0.0.1:0").to_owned()
        };
        command.args(["--listen", &address("ws"), "--http", &address("http")]);
        command.args(["--shards", &self.options.shards.to_string()]);
        if self.options.tls {
            let (certificate, key) = Certificate::paths(self.folder.path());
            command.arg("--tls-certificate").arg(certificate).arg("--tls-key").arg(key);
        }
        // A second run of the tests can use the other driver.
        if let Ok(driver) = std::env::var("CHATRING_TEST_DRIVER") {
            command.args(["--driver", &driver]);
        }
        command.arg("--ready-file").arg(self.ready_file());
        if self.options.config.is_some() {
            command.arg("--config").arg(self.folder.path().join("chatring.toml"));
        }
        command.args(&self.options.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn wait_ready(&mut self) -> Result<(), ExitStatus> {
        let until = Instant::now() + READY_MAX;
        loop {
            if let Ok(text) = std::fs::read_to_string(self.ready_file()) {
                self.ready = serde_json::from_str(&text).expect("JSON");
                return Ok(());
            }
            let child = self.child.as_mut().expect("it was started");
            if let Some(status) = child.try_wait().expect("a child of this process") {
                self.child = None;
                return Err(status);
            }
            assert!(Instant::now() < until, "it is not ready after {READY_MAX:?}");
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- log of the server ----\n{}", self.log());
        }
    }
}
