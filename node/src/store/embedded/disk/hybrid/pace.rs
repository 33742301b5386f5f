//! Many small syncs of the tables that are being written, so that the log's come between.
//!
//! fjall syncs a table once, when it is whole: up to 64 MiB, during which a log's sync waits.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rustc_hash::FxHashMap;

use super::limits::PACE_BYTES;

/// Syncs what has grown in a folder of tables since the first look.
pub(crate) struct Pace {
    tables: PathBuf,
    /// Tables have numbers; those up to this one were there before.
    last_before: u64,
    /// Bytes that are synced, by table.
    synced: FxHashMap<u64, u64>,
    /// Bytes that may have been written since the last look.
    pending: u64,
}

impl Pace {
    /// Takes a first look.
    pub(crate) fn start(tables: PathBuf) -> io::Result<Pace> {
        let mut pace = Pace { tables, last_before: 0, synced: FxHashMap::default(), pending: 0 };
        pace.last_before = pace.numbers()?.into_iter().max().unwrap_or(0);
        Ok(pace)
    }

    /// So many bytes more were given to whoever writes the tables.
    pub(crate) fn gave(&mut self, bytes: usize) -> io::Result<()> {
        self.pending += bytes as u64;
        if self.pending < PACE_BYTES {
            return Ok(());
        }
        self.pending = 0;
        for number in self.numbers()? {
            if number <= self.last_before {
                continue;
            }
            // A merge may have removed it meanwhile.
            let Ok(file) = File::open(self.tables.join(number.to_string())) else { continue };
            let bytes = file.metadata()?.len();
            let synced = self.synced.entry(number).or_default();
            if bytes > *synced {
                file.sync_data()?;
                *synced = bytes;
            }
        }
        Ok(())
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.tables)? {
            numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(numbers)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_grow_are_synced_for_each_mib_given_and_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: usize| {
            fs::write(folder.path().join(name), vec![1; bytes]).unwrap();
        };
        write("7", 10);
        let mut pace = Pace::start(folder.path().to_path_buf()).unwrap();
        write("8", 20);
        write("8.tmp", 20);
        pace.gave(PACE_BYTES as usize - 1).unwrap();
        assert!(pace.synced.is_empty());
        pace.gave(1).unwrap();
        assert_eq!(pace.synced, [(8, 20)].into_iter().collect());
        write("8", 50);
        write("9", 5);
        pace.gave(PACE_BYTES as usize).unwrap();
        assert_eq!(pace.synced, [(8, 50), (9, 5)].into_iter().collect());
    }
}
