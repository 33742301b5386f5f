//! An API server process under test, and a node for it.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::postgres::free_port;
use super::{Node, NodeOptions, executable};

/// Time in which whatever a test waits for must happen.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// A node that takes links, under these words (`strace …`) or none, and the configuration of API
/// servers for it.
pub fn linked_node(database: &str, wrapper: Vec<String>) -> (Node, String) {
    let link = format!("127.0.0.1:{}", free_port());
    let config = format!(
        "[accounts]\ndatabase = \"{database}\"\npassword_memory_kib = 64\npassword_passes = 1\n\
         [link]\nlisten = \"{link}\"\n[cluster]\nnodes = [\"{link}\"]\n"
    );
    let options = NodeOptions { config: Some(config.clone()), wrapper, ..NodeOptions::default() };
    (Node::start_with(options), config)
}

/// `chatring api`. Dropped, it is killed.
#[derive(Debug)]
pub struct ApiServer {
    folder: TempDir,
    data: PathBuf,
    child: Child,
    http: String,
}

impl ApiServer {
    /// Starts one with the keys in `data`; it need not be ready.
    pub fn launch(data: PathBuf, config: &str) -> ApiServer {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("api.toml"), config).expect("a file");
        let child = Command::new("true").spawn().expect("it is there");
        let mut api = ApiServer { folder, data, child, http: String::new() };
        api.spawn();
        api
    }

    /// Starts one that is ready, beside a node.
    pub fn start(node: &Node, config: &str) -> ApiServer {
        let mut api = ApiServer::launch(node.data(), config);
        api.wait_ready();
        api
    }

    /// `http://HOST:PORT`, the same after a restart.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// What it has written to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it with SIGKILL, and starts it again at the same address.
    pub fn restart(&mut self) {
        self.kill();
        self.spawn();
        self.wait_ready();
    }

    /// Ends it with SIGTERM, and waits.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), Signal::TERM).expect("it lives");
        self.wait()
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < until, "it has not ended:\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    fn spawn(&mut self) {
        let ready = self.folder.path().join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let log = std::fs::File::options();
        let log = log.clone().create(true).append(true).open(self.folder.path().join("log"));
        let addr = self.http.strip_prefix("http://").unwrap_or("127.0.0.1:0").to_owned();
        let mut command = Command::new(executable());
        command.arg("api").arg("--config").arg(self.folder.path().join("api.toml"));
        command.arg("--data").arg(&self.data).args(["--http", &addr]);
        command.arg("--ready-file").arg(ready);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a file"));
        self.child = command.spawn().expect("the executable starts");
    }

    /// Waits until it is linked.
    pub fn wait_ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let ready = std::fs::read_to_string(self.folder.path().join("ready.json"));
            if let Ok(text) = ready {
                let ready: Value = serde_json::from_str(&text).expect("JSON");
                ready["http"].as_str().expect("an address").clone_into(&mut self.http);
                return;
            }
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "it has ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < until, "it is not ready:\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- log of an API server ----\n{}", self.log());
        }
    }
}

/// One request on a connection of its own, to a server that may die meanwhile: status and body, or
/// nothing if no whole answer came.
pub fn attempt(
    http: &str,
    token: Option<&str>,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Option<(u16, Value)> {
    use std::io::Write as _;
    let addr = http.strip_prefix("http://").expect("an address");
    let mut stream = std::net::TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let token = token.map_or_else(String::new, |t| format!("authorization: Bearer {t}\r\n"));
    let content = match body.is_empty() {
        true => String::new(),
        false => {
            format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len())
        }
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{token}{content}{headers}\
         \r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.get(9..12)?.parse().ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let length = head.to_ascii_lowercase();
    let length =
        length.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let whole = length.is_none_or(|length: usize| length == body.len());
    whole.then(|| (status, serde_json::from_str(body).unwrap_or(Value::Null)))
}
