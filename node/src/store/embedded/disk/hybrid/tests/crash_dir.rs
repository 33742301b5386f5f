//! A log folder in memory under a page cache, which a crash empties, or leaves in part.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::store::embedded::disk::hybrid::files::{LogDir, LogFile};

/// What a crash leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// All of it: the process was killed, the machine lives.
    All,
    /// Nothing of it.
    Synced,
    /// Sectors and names at random, from a seed.
    Some(u64),
}

/// See the module. Clones are the same folder.
#[derive(Clone, Default)]
pub(super) struct CrashDir {
    fs: Arc<Mutex<Fs>>,
    pub faults: Arc<DirFaults>,
}

/// What a [`CrashDir`] does wrong.
#[derive(Debug, Default)]
pub(super) struct DirFaults {
    /// Syncs of files fail.
    pub fail_sync: AtomicBool,
    /// Writes fail for want of room.
    pub full: AtomicBool,
    /// Each sync of a file takes this much longer, in milliseconds.
    pub sync_delay_ms: AtomicU64,
}

#[derive(Clone, Default)]
struct Fs {
    files: Vec<Bytes>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    /// Changes of names since the last sync.
    changes: Vec<Change>,
}

#[derive(Clone, Default)]
struct Bytes {
    cached: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Clone)]
enum Change {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

const SECTOR_BYTES: usize = 512;

impl CrashDir {
    /// The folder that a crash at this moment leaves.
    pub(super) fn crashed(&self, kept: Kept) -> CrashDir {
        let mut fs = self.fs.lock().unwrap().clone();
        let mut random = match kept {
            Kept::Some(seed) => seed | 1,
            _ => 1,
        };
        let mut keeps = || match kept {
            Kept::All => true,
            Kept::Synced => false,
            Kept::Some(_) => {
                random =
                    random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x14057b7ef767814f);
                random >> 63 == 1
            }
        };
        for file in &mut fs.files {
            for at in (0..file.cached.len()).step_by(SECTOR_BYTES) {
                let sector = at..file.cached.len().min(at + SECTOR_BYTES);
                if keeps() {
                    let end = sector.end.max(file.synced.len());
                    file.synced.resize(end, 0);
                    file.synced[sector.clone()].copy_from_slice(&file.cached[sector]);
                }
            }
            file.cached = file.synced.clone();
        }
        let changes = std::mem::take(&mut fs.changes);
        let mut names = std::mem::take(&mut fs.synced_names);
        changes.iter().filter(|_| keeps()).for_each(|change| change.apply(&mut names));
        (fs.names, fs.synced_names) = (names.clone(), names);
        CrashDir { fs: Arc::new(Mutex::new(fs)), faults: Arc::default() }
    }

    /// Changes a file's bytes.
    pub(super) fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut fs = self.fs.lock().unwrap();
        let file = fs.names[name];
        edit(&mut fs.files[file].cached);
        fs.files[file].synced = fs.files[file].cached.clone();
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut fs = self.fs.lock().unwrap();
        let fs = &mut *fs;
        change.apply(&mut fs.names);
        fs.changes.push(change);
        Ok(())
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        let fs = self.fs.lock().unwrap();
        fs.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn handle(&self, file: usize) -> Arc<dyn LogFile> {
        Arc::new(CrashFile { dir: self.clone(), file })
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Change::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            Change::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Change::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl LogDir for CrashDir {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.fs.lock().unwrap().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Ok(self.handle(self.file(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let mut fs = self.fs.lock().unwrap();
        fs.files.push(Bytes::default());
        let file = fs.files.len() - 1;
        drop(fs);
        self.change(Change::Create(name.to_owned(), file))?;
        Ok(self.handle(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.file(from)?;
        self.change(Change::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name)?;
        self.change(Change::Remove(name.to_owned()))
    }

    fn sync(&self) -> io::Result<()> {
        let mut fs = self.fs.lock().unwrap();
        fs.synced_names = fs.names.clone();
        fs.changes.clear();
        Ok(())
    }
}

struct CrashFile {
    dir: CrashDir,
    file: usize,
}

impl LogFile for CrashFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.dir.faults.full.load(SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut fs = self.dir.fs.lock().unwrap();
        let cached = &mut fs.files[self.file].cached;
        let end = offset as usize + bytes.len();
        cached.resize(end.max(cached.len()), 0);
        cached[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(self.dir.faults.sync_delay_ms.load(SeqCst)));
        if self.dir.faults.fail_sync.load(SeqCst) {
            return Err(io::Error::other("injected"));
        }
        let mut fs = self.dir.fs.lock().unwrap();
        let file = &mut fs.files[self.file];
        file.synced.clone_from(&file.cached);
        Ok(())
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.dir.fs.lock().unwrap().files[self.file].cached.clone())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.dir.fs.lock().unwrap().files[self.file].cached.len() as u64)
    }
}
