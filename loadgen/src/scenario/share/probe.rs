//! What the machine itself takes for a sync and for a way over the loopback and back.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use chatring_bare::frame::MESSAGE_BYTES;
use serde::Serialize;

use crate::latency::{Latencies, Percentiles};
use crate::process::pin;

const SYNCS: u64 = 300;
/// Bytes of one sync: a small group.
const SYNC_BYTES: usize = 400;
const FILE_BYTES: usize = 1024 * 1024;
const ROUND_TRIPS: u64 = 3_000;

/// Times in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Probe {
    /// Writing 400 bytes into a zero-filled file, and `fdatasync`.
    pub sync: Percentiles,
    /// 40 bytes to another thread on the server's core and back, both of which block.
    pub round_trip: Percentiles,
}

impl Probe {
    /// Measures them, from the generator's core. `folder` is on the disk that is meant.
    ///
    /// # Errors
    /// The disk, a socket or a core refuses.
    pub fn measure(folder: &Path, server_core: usize) -> io::Result<Probe> {
        let sync = syncs(folder)?;
        Ok(Probe { sync, round_trip: round_trips(server_core)? })
    }
}

fn syncs(folder: &Path) -> io::Result<Percentiles> {
    let path = folder.join("probe");
    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let outcome = time_syncs(&file);
    std::fs::remove_file(&path)?;
    outcome
}

fn time_syncs(mut file: &File) -> io::Result<Percentiles> {
    file.write_all(&vec![0; FILE_BYTES])?;
    file.sync_all()?;
    let mut times = Latencies::new();
    for number in 0..SYNCS {
        let start = Instant::now();
        file.write_all_at(&[number as u8; SYNC_BYTES], number * SYNC_BYTES as u64)?;
        file.sync_data()?;
        times.record(start.elapsed().as_nanos() as u64);
    }
    Ok(times.percentiles())
}

fn round_trips(server_core: usize) -> io::Result<Percentiles> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || {
            pin(server_core)?;
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut bytes = [0; MESSAGE_BYTES];
            for _ in 0..ROUND_TRIPS {
                stream.read_exact(&mut bytes)?;
                stream.write_all(&bytes)?;
            }
            io::Result::Ok(())
        });
        let times = time_round_trips(address);
        echo.join().expect("an echo does not panic")?;
        times
    })
}

fn time_round_trips(address: std::net::SocketAddr) -> io::Result<Percentiles> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut times = Latencies::new();
    let mut bytes = [7; MESSAGE_BYTES];
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        times.record(start.elapsed().as_nanos() as u64);
    }
    Ok(times.percentiles())
}

const _: () = assert!(SYNCS as usize * SYNC_BYTES <= FILE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_gives_times_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let probe = Probe::measure(folder.path(), 0).unwrap();
        for p in [probe.sync, probe.round_trip] {
            assert!(p.p50 > 0.0 && p.p50 <= p.p99 && p.p99 <= p.max);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
