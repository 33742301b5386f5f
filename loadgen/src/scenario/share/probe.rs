//! What the machine itself takes for a sync and for a way over the loopback and back.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use chatring_bare::frame::MESSAGE_BYTES;
use chatring_bare::log::fill;
use serde::Serialize;

use crate::latency::{Latencies, Percentiles};
use crate::process::pin;

/// Some 300 ms: enough to see a disk that is held up ten times a second.
const SYNCS: u64 = 3_000;
/// Bytes of one sync: a small group.
const SYNC_BYTES: usize = 400;
const FILE_BYTES: u64 = 2 * 1024 * 1024;
/// A sync that takes longer was held up.
const HELD_UP: Duration = Duration::from_millis(5);
const ROUND_TRIPS: u64 = 3_000;

/// Times in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Probe {
    /// Writing 400 bytes into a zero-filled file, and `fdatasync`, from the server's core.
    pub sync: Percentiles,
    /// Share of that time that went into syncs of more than 5 ms.
    pub held_up_percent: f64,
    /// 40 bytes to another thread on the server's core and back, both of which block.
    pub round_trip: Percentiles,
}

impl Probe {
    /// Measures them. `folder` is on the disk that is meant.
    ///
    /// # Errors
    /// The disk, a socket or a core refuses.
    pub fn measure(folder: &Path, server_core: usize) -> io::Result<Probe> {
        let (sync, held_up_percent) = syncs(folder, server_core)?;
        Ok(Probe { sync, held_up_percent, round_trip: round_trips(server_core)? })
    }
}

fn syncs(folder: &Path, server_core: usize) -> io::Result<(Percentiles, f64)> {
    let path = folder.join("probe");
    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let outcome = std::thread::scope(|scope| {
        let times = scope.spawn(|| {
            pin(server_core)?;
            time_syncs(&file)
        });
        times.join().expect("a sync does not panic")
    });
    std::fs::remove_file(&path)?;
    outcome
}

fn time_syncs(file: &File) -> io::Result<(Percentiles, f64)> {
    fill(file, FILE_BYTES)?;
    let mut times = Latencies::new();
    let (mut all, mut held_up) = (Duration::ZERO, Duration::ZERO);
    for number in 0..SYNCS {
        let start = Instant::now();
        file.write_all_at(&[number as u8; SYNC_BYTES], number * SYNC_BYTES as u64)?;
        file.sync_data()?;
        let took = start.elapsed();
        times.record(took.as_nanos() as u64);
        all += took;
        if took > HELD_UP {
            held_up += took;
        }
    }
    Ok((times.percentiles(), 100.0 * held_up.as_secs_f64() / all.as_secs_f64()))
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

const _: () = assert!(SYNCS * SYNC_BYTES as u64 <= FILE_BYTES);

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
        assert!((0.0..=100.0).contains(&probe.held_up_percent));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
