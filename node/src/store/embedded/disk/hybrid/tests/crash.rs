//! A crash after each step of sealing, ingesting and recycling, with what was not synced kept,
//! lost, or kept in part.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use tempfile::TempDir;

use super::crash_dir::Kept;
use super::*;
use crate::store::embedded::disk::hybrid::probe::Step;
use crate::store::embedded::tests::copy_killed;

/// Batches of a run: enough for several memtables.
const BATCHES: u64 = 60;

/// The batch of a number: rows of its own, one that all batches write, and one that goes again.
fn numbered(number: u64) -> Batch {
    let old = number.saturating_sub(7);
    batch(vec![
        (format!("\x10{number:08}x{number:08}"), Some("v".repeat(150))),
        (format!("\x10{old:08}x{old:08}"), (number < 7).then(|| "first".into())),
        ("inbox".into(), Some(format!("{number} {}", "i".repeat((number % 50) as usize)))),
        ("number".into(), Some(number.to_string())),
    ])
}

fn model_after(batches: u64) -> Rows {
    let mut model = Rows::new();
    (1..=batches).for_each(|number| apply(&mut model, &numbered(number)));
    model
}

/// What a crash left.
struct Left {
    acked: u64,
    dir: CrashDir,
    rows: TempDir,
}

/// Runs all batches, with a crash after the step's nth time. The run itself goes on.
fn crash_at(step: Step, nth: usize, kept: Kept) -> Option<Left> {
    let folder = tempfile::tempdir().unwrap();
    make_rows(folder.path());
    let dir = CrashDir::default();
    let acked = Arc::new(AtomicU64::new(0));
    let left: Arc<Mutex<Option<Left>>> = Arc::default();
    // While the one looks, the others stand at their next step.
    let gate = Mutex::new(());
    let is_finishing = AtomicBool::new(false);
    let at = {
        let (acked, left, dir) = (Arc::clone(&acked), Arc::clone(&left), dir.clone());
        let (times, source) = (AtomicUsize::new(0), folder.path().to_path_buf());
        move |reached: Step| {
            if reached == Step::RowsIngested {
                is_finishing.store(false, SeqCst);
            }
            let _gate = gate.lock().unwrap();
            if reached == step && times.fetch_add(1, SeqCst) + 1 == nth {
                while is_finishing.load(SeqCst) {
                    std::thread::yield_now();
                }
                let acked = acked.load(SeqCst);
                let dir = dir.crashed(kept);
                let rows = tempfile::tempdir().unwrap();
                copy_killed(&source, &rows.path().join("rows"));
                *left.lock().unwrap() = Some(Left { acked, dir, rows });
            }
            if reached == Step::RowsGiven {
                is_finishing.store(true, SeqCst);
            }
        }
    };
    let probe = Probe { at: Some(Arc::new(at)) };
    let disk = open(folder.path(), &dir, options(probe)).unwrap();
    for number in 1..=BATCHES {
        disk.write(numbered(number)).unwrap();
        acked.store(number, SeqCst);
    }
    disk.drain().unwrap();
    drop(disk);
    left.lock().unwrap().take()
}

/// Opens what is left twice, and goes on writing in between.
fn check(left: Left, what: &str) {
    let rows_dir = left.rows.path().join("rows");
    let reopened = |dir: &CrashDir| {
        open(&rows_dir, dir, options(Probe::default())).unwrap_or_else(|e| panic!("{what}: {e}"))
    };
    let disk = reopened(&left.dir);
    let found = number_of(&disk);
    assert!(found >= left.acked, "{what}: {} were acked, {found} are there", left.acked);
    agree(&disk, found, what);
    for number in found + 1..=found + 25 {
        disk.write(numbered(number)).unwrap();
    }
    agree(&disk, found + 25, what);
    let dir = left.dir.crashed(Kept::Synced);
    drop(disk);
    let disk = reopened(&dir);
    agree(&disk, found + 25, what);
}

fn number_of(disk: &HybridDisk) -> u64 {
    let number = disk.snapshot().get(b"number").unwrap();
    number.map_or(0, |number| std::str::from_utf8(&number).unwrap().parse().unwrap())
}

fn agree(disk: &HybridDisk, batches: u64, what: &str) {
    let found: Rows = rows(&*disk.snapshot(), &all(), Order::Forward).into_iter().collect();
    assert!(found == model_after(batches), "{what}: not the state after {batches} batches");
}

fn crash_after_each(steps: &[Step]) {
    for step in steps {
        for nth in [1, 2, 5] {
            for kept in [Kept::All, Kept::Synced, Kept::Some(nth as u64 * 31)] {
                let what = format!("{step:?} for the {nth}. time, {kept:?}");
                match crash_at(*step, nth, kept) {
                    Some(left) => check(left, &what),
                    None => assert!(nth > 2, "{what}: not reached"),
                }
            }
        }
    }
}

#[test]
fn a_crash_after_any_step_of_writing_loses_nothing_acked() {
    crash_after_each(&Step::ALL[..3]);
}

#[test]
fn a_crash_after_any_step_of_ingesting_loses_nothing_acked() {
    crash_after_each(&Step::ALL[3..6]);
}

#[test]
fn a_crash_after_any_step_of_preparing_a_segment_loses_nothing_acked() {
    crash_after_each(&Step::ALL[6..11]);
}

#[test]
fn a_crash_after_any_step_of_recycling_a_segment_loses_nothing_acked() {
    crash_after_each(&Step::ALL[11..]);
}

/// The process dies again while it reads the log, and again.
#[test]
fn crashes_in_a_row_lose_nothing_and_leave_no_heap_of_segments() {
    let folder = tempfile::tempdir().unwrap();
    make_rows(folder.path());
    let mut dir = CrashDir::default();
    for life in 0..30 {
        let disk = open(folder.path(), &dir, options(Probe::default())).unwrap();
        agree(&disk, life, "life");
        disk.write(numbered(life + 1)).unwrap();
        dir = dir.crashed(if life % 2 == 0 { Kept::Synced } else { Kept::All });
        drop(disk);
    }
    let names = crate::store::embedded::disk::hybrid::files::LogDir::list(&dir).unwrap();
    assert!(names.len() < 25, "{names:?}");
}
