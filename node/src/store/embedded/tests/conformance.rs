//! The suite that every engine passes, over files and over a page cache that crashes empty.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use chatring_core::kv::conformance::{
    Coverage, Harness, ProgramSize, Supported, run_cases, run_program,
};
use chatring_core::kv::mem::SubmitterId;
use rustc_hash::FxHashMap;

use super::*;
use crate::store::embedded::disk::fault::{PageCacheDisk, Platter, Syncing};
use crate::store::embedded::{FIRST_VERSION, system};

/// What is under the engine.
#[derive(Clone)]
enum Under {
    /// A disk's files. A kill: a copy of them as they are at that moment.
    Files(Setup),
    /// A page cache over a platter. A kill: only the platter stays.
    PageCache(Platter, Syncing),
}

/// An embedded store under test; several submitters, one queue of answers.
struct Embedded {
    root: tempfile::TempDir,
    starts: u32,
    under: Under,
    store: Option<EmbeddedStore>,
    handles: FxHashMap<SubmitterId, EmbeddedHandle>,
    answers: (flume::Sender<Answers>, flume::Receiver<Answers>),
    open: usize,
    now_ms: Arc<AtomicU64>,
}

type Answers = Vec<(SubmitterId, Completion)>;

impl Embedded {
    fn new(under: Under) -> Embedded {
        let mut harness = Embedded {
            root: tempfile::tempdir().unwrap(),
            starts: 0,
            under,
            store: None,
            handles: FxHashMap::default(),
            answers: flume::unbounded(), // bound: the program's requests
            open: 0,
            now_ms: Arc::new(AtomicU64::new(0)),
        };
        harness.start();
        harness
    }

    fn over_page_cache(syncing: Syncing) -> Embedded {
        let first = (Bytes::from_static(system::VERSION_KEY), system::version_value(FIRST_VERSION));
        let platter: Platter = Arc::new(Mutex::new([first].into()));
        Embedded::new(Under::PageCache(platter, syncing))
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join(self.starts.to_string())
    }

    fn setup(&self) -> Setup {
        match self.under {
            Under::Files(setup) => setup,
            Under::PageCache(..) => Setup::Plain,
        }
    }

    fn start(&mut self) {
        let (mut parts, _) = counting_parts(self.setup());
        let (clock, opened_ms) = (Arc::clone(&self.now_ms), self.now_ms.load(SeqCst));
        parts.elapsed = Arc::new(move || Duration::from_millis(clock.load(SeqCst) - opened_ms));
        if let Under::PageCache(platter, syncing) = self.under.clone() {
            parts.wrap = Box::new(move |_| Arc::new(PageCacheDisk::new(platter, syncing)));
        }
        let config = self.setup().config();
        self.store = Some(EmbeddedStore::open_with(&self.dir(), config, parts).unwrap());
        self.handles.clear();
        self.answers = flume::unbounded(); // bound: the program's requests
        self.open = 0;
    }

    fn handle(&mut self, submitter: SubmitterId) -> &mut EmbeddedHandle {
        let (store, sink) = (self.store.as_ref().unwrap(), self.answers.0.clone());
        self.handles.entry(submitter).or_insert_with(|| {
            store.handle(move |batch| {
                let _ = sink.send(batch.into_iter().map(|done| (submitter, done)).collect());
            })
        })
    }
}

impl Harness for Embedded {
    fn submit(&mut self, submitter: SubmitterId, request: Request, ticket: Ticket) {
        self.open += 1;
        self.handle(submitter).submit(request, ticket);
    }

    fn resume(&mut self, submitter: SubmitterId, lane: LaneId) {
        self.handle(submitter).resume(lane);
    }

    fn wait(&mut self) -> Vec<(SubmitterId, Completion)> {
        if self.open == 0 {
            return Vec::new();
        }
        let answers = self.answers.1.recv_timeout(PATIENCE).expect("everything is answered");
        self.open -= answers.len();
        answers
    }

    fn reopen(&mut self) {
        self.store.take().unwrap().close();
        self.start();
    }

    fn crash(&mut self) -> Supported {
        let killed = self.dir();
        self.starts += 1;
        let left = self.dir();
        match &mut self.under {
            Under::Files(_) => copy_killed(&killed, &left),
            Under::PageCache(platter, _) => {
                let kept = platter.lock().unwrap().clone();
                *platter = Arc::new(Mutex::new(kept));
            }
        }
        drop(self.store.take());
        let _ = fs::remove_dir_all(killed);
        self.start();
        Supported::Done
    }

    fn advance(&mut self, ms: u64) -> Supported {
        self.now_ms.fetch_add(ms, SeqCst);
        Supported::Done
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.load(SeqCst)
    }
}

#[test]
fn the_engine_keeps_every_rule() {
    for setup in [Setup::Plain, Setup::Hybrid, Setup::Small] {
        run_cases(|| Embedded::new(Under::Files(setup)));
    }
    run_cases(|| Embedded::over_page_cache(Syncing::Honest));
}

fn random_programs_over_files_agree_with_the_model(setup: Setup) {
    programs(0..12, || Embedded::new(Under::Files(setup)));
}

on_every_setup![random_programs_over_files_agree_with_the_model];

#[test]
fn random_programs_over_a_page_cache_agree_with_the_model() {
    programs(100..160, || Embedded::over_page_cache(Syncing::Honest));
}

#[test]
fn random_programs_find_a_skipped_sync() {
    let size = ProgramSize { restarts_per_mille: 30, ..ProgramSize::default() };
    let found = (0..20)
        .filter(|seed| {
            run_program(&mut Embedded::over_page_cache(Syncing::Skipped), *seed, size).is_err()
        })
        .count();
    assert!(found > 0, "a disk that never syncs passed 20 programs");
}

fn programs(seeds: std::ops::Range<u64>, make: impl Fn() -> Embedded) {
    let mut coverage = Coverage::default();
    for seed in seeds {
        let run = run_program(&mut make(), seed, ProgramSize::default());
        coverage.add(&run.unwrap_or_else(|broken| panic!("{broken}")));
    }
    coverage.require(&Coverage::PLAIN).unwrap();
    assert!(coverage.of("crash") > 0);
}

/// Copies a store's folder while threads of the disk work on it: a copy counts if no file came or
/// went meanwhile, for then it is what a kill at one moment might have left.
pub(in crate::store::embedded) fn copy_killed(from: &Path, to: &Path) {
    for _ in 0..1_000 {
        let look = || std::panic::catch_unwind(|| names(from)).ok();
        let before = look();
        let copied = std::panic::catch_unwind(|| copy_tree(from, to));
        if copied.is_ok() && before.is_some() && look() == before {
            return;
        }
        let _ = fs::remove_dir_all(to);
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the disk does not come to rest");
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(self::names(&path));
        }
        names.push(path);
    }
    names.sort();
    names
}

/// Copies a folder file by file, zeros left out: a journal is mostly a hole.
pub(super) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
            continue;
        }
        let bytes = fs::read(entry.path()).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let file = fs::File::create(&target).unwrap();
        std::io::Write::write_all(&mut &file, &bytes[..end]).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
    }
}
