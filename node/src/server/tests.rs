use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::process::{Signal, getpid, kill_process};

use super::*;

/// Clients that drain when they are told to.
struct Fake {
    ready: bool,
    key: PathBuf,
    drain: flume::Receiver<Drained>,
    draining: flume::Sender<()>,
    /// The store does not close.
    stuck: Arc<AtomicBool>,
}

impl Clients for Fake {
    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 7))
    }

    fn shards(&self) -> u16 {
        3
    }

    fn driver(&self) -> &str {
        "none"
    }

    fn connections_max(&self) -> usize {
        9
    }

    fn token_key_file(&self) -> &Path {
        &self.key
    }

    fn verifier(&self) -> Arc<Verifier> {
        Arc::new(Verifier::new(&crate::config::Auth::default(), None).expect("no files"))
    }

    fn calls(&self) -> Option<Calls> {
        None
    }

    fn token_key(&self) -> Arc<TokenKey> {
        Arc::new(TokenKey::generate().expect("a key").0)
    }

    fn is_ready(&self) -> bool {
        self.ready
    }

    fn drain(&self, timeout: Duration) -> Drained {
        let _ = self.draining.send(());
        let drained = self.drain.recv_timeout(timeout).unwrap_or(Drained::TimedOut);
        if self.stuck.load(Ordering::Acquire) {
            let _ = self.drain.recv_timeout(Duration::from_secs(30));
        }
        drained
    }

    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }
}

struct Running {
    server: JoinHandle<Ended>,
    drained: flume::Sender<Drained>,
    draining: flume::Receiver<()>,
    stuck: Arc<AtomicBool>,
    ready: serde_json::Value,
}

fn start(folder: &Path) -> Running {
    let path = folder.join("ready.json");
    std::fs::write(&path, "old").expect("a file");
    let (drained, drain) = flume::bounded(1);
    let (tell_draining, draining) = flume::bounded(1);
    let (is_ready, ready) = flume::bounded(1);
    let key = folder.join("key.pem");
    let (file, data) = (path.clone(), folder.to_owned());
    let stuck = Arc::new(AtomicBool::new(false));
    let is_stuck = Arc::clone(&stuck);
    let server = std::thread::spawn(move || {
        let mut config = Config::default();
        config.server.http.set_port(0);
        config.server.data = data;
        let old = file.clone();
        let clients = move |_: &Config, _: Door| {
            assert!(!old.exists(), "the old ready file is still there");
            Ok(Fake { ready: true, key, drain, draining: tell_draining, stuck: is_stuck })
        };
        run(&config, Some(&file), clients, |_| is_ready.send(()).expect("a waiter"))
            .expect("it starts")
    });
    ready.recv_timeout(Duration::from_secs(30)).expect("it is ready");
    let mode = std::fs::metadata(&path).expect("a ready file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let text = std::fs::read_to_string(&path).expect("a ready file");
    let ready = serde_json::from_str(&text).expect("JSON");
    Running { server, drained, draining, stuck, ready }
}

fn signal_self(signal: Signal) {
    kill_process(getpid(), signal).expect("a signal to this process");
}

fn status(http: &str, path: &str) -> u16 {
    use std::io::{Read as _, Write as _};
    let addr = http.strip_prefix("http://").expect("an address");
    let mut stream = std::net::TcpStream::connect(addr).expect("it listens");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer[9..12].parse().expect("a status")
}

/// One test, since signals go to the whole process.
#[test]
fn it_tells_when_it_is_ready_drains_at_a_signal_and_ends_at_the_second() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(folder.path());
    let http = running.ready["http"].as_str().expect("an address");
    assert_eq!(running.ready["ws"], "ws://127.0.0.1:7/v1/ws");
    assert_eq!(running.ready["pid"], std::process::id());
    assert_eq!(running.ready["shards"], 3);
    assert_eq!(
        running.ready["token_key_file"],
        folder.path().join("key.pem").to_str().expect("text")
    );
    assert_eq!(status(http, "/readyz"), 200);
    signal_self(Signal::TERM);
    running.draining.recv_timeout(Duration::from_secs(30)).expect("it drains");
    assert_eq!(status(http, "/readyz"), 503);
    assert_eq!(status(http, "/healthz"), 200);
    running.drained.send(Drained::Whole).expect("a waiter");
    assert_eq!(running.server.join().expect("no panic"), Ended::Drained);

    let running = start(folder.path());
    signal_self(Signal::INT);
    running.draining.recv_timeout(Duration::from_secs(30)).expect("it drains");
    signal_self(Signal::TERM);
    assert_eq!(running.server.join().expect("no panic"), Ended::Forced);
    drop(running.drained);

    a_signal_ends_a_long_recovery();
    a_store_that_does_not_close_keeps_nobody(folder.path());
}

fn a_signal_ends_a_long_recovery() {
    let (opening, opens) = flume::bounded(1);
    let (finish, finished) = flume::bounded::<()>(1);
    let server = std::thread::spawn(move || {
        let mut config = Config::default();
        config.server.http.set_port(0);
        let clients = move |_: &Config, _: Door| -> Result<Fake, StartError> {
            opening.send(()).expect("a waiter");
            let _ = finished.recv();
            Err(StartError::Clients("the test is over".to_owned()))
        };
        run(&config, None, clients, |_| panic!("it is never ready")).expect("no failure")
    });
    opens.recv_timeout(Duration::from_secs(30)).expect("it opens");
    signal_self(Signal::TERM);
    assert_eq!(server.join().expect("no panic"), Ended::Unstarted);
    drop(finish);
}

fn a_store_that_does_not_close_keeps_nobody(folder: &Path) {
    let mut running = start(folder);
    running.stuck.store(true, Ordering::Release);
    signal_self(Signal::TERM);
    running.draining.recv_timeout(Duration::from_secs(30)).expect("it drains");
    let asked = Instant::now();
    assert_eq!(running.server.join().expect("no panic"), Ended::Forced);
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    // Lets the thread end.
    running.drained = flume::bounded(1).0;
}
