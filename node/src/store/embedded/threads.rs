//! The engine's threads: a committer, two readers, and one that watches the disk.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use chatring_core::kv::Version;
use rustc_hash::FxHashSet;

use super::committer::{Committer, ElapsedClock, Gatherer, Judge, Lander};
use super::disk::Disk;
use super::health::Health;
use super::limits::{
    QUEUE_COMMITS_MAX, QUEUE_READS_MAX, READER_THREADS, SNAPSHOTS_HELD_MAX, WATCH_INTERVAL_MS,
};
use super::metrics::Counters;
use super::published::Published;
use super::queue::Queues;
use super::readers::Reader;
use super::resolver::Resolver;
use super::room::{Room, space_of};
use super::versions::VersionClock;
use super::{EmbeddedConfig, Parts};

/// The running threads and what they share.
pub(crate) struct Threads {
    pub queues: Arc<Queues>,
    pub published: Arc<Published>,
    pub counters: Arc<Counters>,
    disk: Arc<dyn Disk>,
    /// Dropped to end the watch.
    watch_stop: Option<flume::Sender<()>>,
    workers: Vec<JoinHandle<()>>,
    watch: Option<JoinHandle<()>>,
}

impl Threads {
    /// Starts them over a disk that is at this version.
    pub(crate) fn start(
        dir: &Path,
        config: &EmbeddedConfig,
        parts: Parts,
        disk: Arc<dyn Disk>,
        version: Version,
        counters: Arc<Counters>,
    ) -> io::Result<Threads> {
        // One place more than commits: the closing message never waits behind a full queue.
        let (commits, commit_queue) = flume::bounded(QUEUE_COMMITS_MAX + 1);
        let (reads, read_queue) = flume::bounded(QUEUE_READS_MAX);
        let queues = Arc::new(Queues::new(commits, reads, Arc::clone(&counters)));
        let published = Published::new(version, disk.snapshot(), SNAPSHOTS_HELD_MAX);
        let published = Arc::new(published);
        let fatal = Fatal {
            queues: Arc::clone(&queues),
            action: parts.on_fatal,
            called: Arc::new(AtomicBool::new(false)),
        };
        let probe = parts.space.unwrap_or_else(|| space_of(dir.to_path_buf()));
        let room = Room::new(probe, config.reserve_bytes, Arc::clone(&counters));
        let health = Arc::new(Health::new(Arc::clone(&disk), Arc::clone(&published), room));
        let judge = Judge {
            resolver: Resolver::new(version, parts.bounds),
            clock: VersionClock::new(version),
            elapsed: Arc::clone(&parts.elapsed),
            health: Arc::clone(&health),
            disk: Arc::clone(&disk),
            published: Arc::clone(&published),
            stopped_lanes: FxHashSet::default(),
            counters: Arc::clone(&counters),
        };
        let lander = Lander {
            disk: Arc::clone(&disk),
            published: Arc::clone(&published),
            counters: Arc::clone(&counters),
        };
        let gap = Duration::from_micros(config.commit_gap_us);
        let gatherer = Gatherer::new(commit_queue, gap, Arc::clone(&counters));
        let mut threads = Threads {
            queues,
            published,
            counters,
            disk,
            watch_stop: None,
            workers: Vec::new(),
            watch: None,
        };
        threads.spawn_all(
            Committer::new(gatherer, judge, lander),
            read_queue,
            health,
            parts.elapsed,
            fatal,
        )?;
        Ok(threads)
    }

    /// Lets everything that waits be answered, ends the threads and closes the disk.
    pub(crate) fn stop(&mut self, readers: usize) {
        self.queues.close(readers);
        for worker in self.workers.drain(..) {
            // A panic in it has been reported as fatal.
            let _ = worker.join();
        }
        self.watch_stop = None;
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
        if let Err(error) = self.disk.close() {
            tracing::error!(%error, "the store did not close cleanly; all acked is stored");
        }
    }

    fn spawn_all(
        &mut self,
        mut committer: Committer,
        read_queue: flume::Receiver<super::queue::ReadMessage>,
        health: Arc<Health>,
        elapsed: ElapsedClock,
        fatal: Fatal,
    ) -> io::Result<()> {
        let committer_fatal = fatal.clone();
        self.workers.push(spawn("store-commit", move || {
            match catch_unwind(AssertUnwindSafe(|| committer.run())) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => committer_fatal.report(&format!("cannot store: {error}")),
                Err(_) => committer_fatal.report("the committer panicked"),
            }
            committer.refuse_rest();
        })?);
        for number in 0..READER_THREADS {
            let reader = Reader {
                queue: read_queue.clone(),
                published: Arc::clone(&self.published),
                elapsed: Arc::clone(&elapsed),
                counters: Arc::clone(&self.counters),
            };
            let fatal = fatal.clone();
            self.workers.push(spawn(&format!("store-read-{number}"), move || {
                if catch_unwind(AssertUnwindSafe(|| reader.run())).is_err() {
                    fatal.report("a reader panicked");
                }
            })?);
        }
        let (watch_stop, stopped) = flume::bounded(1);
        self.watch_stop = Some(watch_stop);
        let published = Arc::clone(&self.published);
        self.watch = Some(spawn("store-watch", move || {
            let interval = Duration::from_millis(WATCH_INTERVAL_MS);
            let watch = || {
                while stopped.recv_timeout(interval) == Err(flume::RecvTimeoutError::Timeout) {
                    published.expire(elapsed());
                    if let Err(error) = health.watch() {
                        fatal.report(&format!("the disk has stopped: {error}"));
                    }
                }
            };
            if catch_unwind(AssertUnwindSafe(watch)).is_err() {
                fatal.report("the watch of the disk panicked");
            }
        })?);
        Ok(())
    }
}

/// Ends the process, once.
#[derive(Clone)]
struct Fatal {
    queues: Arc<Queues>,
    action: Arc<dyn Fn(&str) + Send + Sync>,
    called: Arc<AtomicBool>,
}

impl Fatal {
    fn report(&self, reason: &str) {
        self.queues.fail();
        if self.called.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::error!(reason, "the store has failed; the process ends, nothing acked is lost");
        (self.action)(reason);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(work)
}
