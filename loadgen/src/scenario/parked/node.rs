//! What the node tells of itself, and the kernel of it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use super::super::RunError;
use crate::http::answer::{Answers, Heard};
use crate::http::requests;
use crate::process::core_busy;
use crate::ready::Ready;

/// How long a connection or an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A node and its process.
pub struct Node {
    address: SocketAddr,
    /// Where the kernel tells of its memory, if it is on this machine.
    rollup: Option<PathBuf>,
}

/// What it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that wait at the shards.
    pub parked: u64,
    /// Rows that the store gave.
    pub rows_read: u64,
    /// Syncs that read an inbox.
    pub inbox_reads: u64,
}

impl Node {
    /// The one that a ready file names.
    pub fn new(ready: &Ready) -> Result<Node, RunError> {
        let rollup = ready.pid.map(|pid| PathBuf::from(format!("/proc/{pid}/smaps_rollup")));
        Ok(Node { address: ready.plain_api()?, rollup })
    }

    /// Resident bytes of the process.
    pub fn memory(&self) -> Result<Option<u64>, RunError> {
        let Some(path) = &self.rollup else { return Ok(None) };
        let text = std::fs::read_to_string(path);
        let text = text.map_err(RunError::io(path.display().to_string()))?;
        Ok(resident(&text))
    }

    /// A connection, in blocking mode.
    pub async fn connect(&self) -> Result<TcpStream, RunError> {
        let failed = |error: String| RunError::Node(format!("no connection: {error}"));
        let connect = tokio::net::TcpStream::connect(self.address);
        let stream = tokio::time::timeout(ANSWER_MAX, connect).await;
        let stream = stream.map_err(|_| failed("none in time".to_owned()))?;
        let ready = stream.and_then(|stream| {
            stream.set_nodelay(true)?;
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            Ok(stream)
        });
        ready.map_err(|error| failed(error.to_string()))
    }

    /// What it counts at this moment.
    pub fn counts(&self) -> Result<Counts, RunError> {
        self.metrics().map_err(|error| RunError::Node(format!("/metrics: {error}")))
    }

    fn metrics(&self) -> std::io::Result<Counts> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.write_all(requests::get("/metrics", "host: loadgen\r\n").as_bytes())?;
        let (mut answers, mut counts) = (Answers::default(), None);
        let mut bytes = vec![0; 64 * 1024];
        while counts.is_none() {
            let length = stream.read(&mut bytes)?;
            if length == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let fed = answers.feed(&bytes[..length], |heard| {
                if let Heard::Answer { status: 200, body, .. } = heard {
                    counts = Some(counts_of(&String::from_utf8_lossy(body)));
                }
            });
            fed.map_err(std::io::Error::other)?;
        }
        Ok(counts.unwrap_or_default())
    }
}

/// Time that all cores were busy.
pub fn busy() -> Duration {
    (0..cores()).filter_map(|core| core_busy(core).ok()).sum()
}

/// How many cores there are.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn resident(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn counts_of(text: &str) -> Counts {
    let value = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_default()
    };
    Counts {
        parked: value("chatring_calls_parked "),
        rows_read: value("chatring_store_rows_read_total "),
        inbox_reads: value("chatring_call_syncs_total "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_whole_names() {
        let text = "# HELP chatring_calls_parked x\nchatring_calls_parked 7\n\
                    chatring_calls_parked_more 9\nchatring_store_rows_read_total 12\n\
                    chatring_call_syncs_total 3\n";
        assert_eq!(counts_of(text), Counts { parked: 7, rows_read: 12, inbox_reads: 3 });
        assert_eq!(resident("a-b\nRss:      12 kB\nPss: 3 kB\n"), Some(12 * 1024));
        assert_eq!(resident("Pss: 3 kB\n"), None);
        assert!(busy() > Duration::ZERO);
    }
}
