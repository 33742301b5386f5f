//! The store's folder: who may use it, which format it has, and whether it is whole.
//!
//! ```text
//!   lock      locked while a process uses the folder; the lock dies with the process
//!   format    "chatring-store 1\n" of a plain disk, "chatring-store 2 hybrid\n" of a hybrid one
//!   rows/     fjall's files; made as rows.new/ and renamed when whole
//!   log/      of the hybrid disk; has no meaning in a folder with a plain one
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::DiskKind;
use crate::takeover;

/// The newest format that this engine knows.
pub const STORE_FORMAT: u32 = 2;

const FORMAT_WORD: &str = "chatring-store ";

/// Why a store cannot be opened. All but `Io` are for the operator to settle.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the data folder {} is in use by another process", .dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A newer release has written it.
    #[error(
        "the data folder {} has format {found}; this release knows formats up to {STORE_FORMAT}",
        .dir.display()
    )]
    NewerFormat {
        /// The folder.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// What is in it cannot be understood.
    #[error("the data folder {} cannot be read: {reason}", .dir.display())]
    Unreadable {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The operating system refused.
    #[error("the data folder: {}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A locked folder of a known format. Dropping it unlocks.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    disk: DiskKind,
    _lock: File,
}

impl Folder {
    /// Makes the folder if there is none, locks it and checks its format; a new one gets the format
    /// of this disk. A folder in use is waited for, for [`takeover::TAKEOVER_MS_MAX`].
    pub(crate) fn open(dir: &Path, new: DiskKind) -> Result<Folder, OpenError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        let lock_path = dir.join("lock");
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(&lock_path).map_err(at(&lock_path))?;
        let is_held = |error: &TryLockError| matches!(error, TryLockError::WouldBlock);
        takeover::wait_while_held("the data folder", is_held, || lock.try_lock()).map_err(
            |error| match error {
                TryLockError::WouldBlock => OpenError::InUse { dir: dir.into() },
                TryLockError::Error(source) => OpenError::Io { path: lock_path, source },
            },
        )?;
        let mut folder = Folder { dir: dir.into(), disk: new, _lock: lock };
        folder.check_format(new)?;
        Ok(folder)
    }

    /// The disk whose files the folder holds.
    pub(crate) fn disk(&self) -> DiskKind {
        self.disk
    }

    /// Where the hybrid disk's log is.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Makes an empty log, in place of one that has lost its meaning.
    pub(crate) fn make_log(&self) -> Result<(), OpenError> {
        self.remove_log()?;
        DirBuilder::new().mode(0o700).create(self.log()).map_err(at(&self.log()))?;
        sync_dir(&self.dir)
    }

    /// Removes the log of a folder with a plain disk, if it has one.
    pub(crate) fn remove_log(&self) -> Result<(), OpenError> {
        remove_all(&self.log())
    }

    /// Where the disk's files are.
    pub(crate) fn rows(&self) -> PathBuf {
        self.dir.join("rows")
    }

    /// Makes the rows' folder if there is none: `make` fills one that gets its name when whole.
    pub(crate) fn ensure_rows(
        &self,
        make: impl FnOnce(&Path) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        if self.rows().try_exists().map_err(at(&self.rows()))? {
            return Ok(());
        }
        if self.disk == DiskKind::Hybrid && has_files(&self.log()) {
            return Err(self.unreadable("it has a log but no rows"));
        }
        let draft = self.dir.join("rows.new");
        remove_all(&draft)?;
        DirBuilder::new().mode(0o700).create(&draft).map_err(at(&draft))?;
        make(&draft)?;
        fs::rename(&draft, self.rows()).map_err(at(&draft))?;
        sync_dir(&self.dir)
    }

    /// An error about the folder's content.
    pub(crate) fn unreadable(&self, reason: impl Into<String>) -> OpenError {
        OpenError::Unreadable { dir: self.dir.clone(), reason: reason.into() }
    }

    fn check_format(&mut self, new: DiskKind) -> Result<(), OpenError> {
        let path = self.dir.join("format");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.rows().exists() {
                    return Err(self.unreadable("it has rows but no format file"));
                }
                return self.set_disk(new);
            }
            Err(error) => return Err(at(&path)(error)),
        };
        let damaged = || self.unreadable("its format file is damaged");
        let text = std::str::from_utf8(&text).map_err(|_| damaged())?;
        let mut words = text.strip_prefix(FORMAT_WORD).ok_or_else(damaged)?.split_whitespace();
        let found = words.next().and_then(|word| word.parse::<u32>().ok());
        self.disk = match (found, words.next(), words.next()) {
            (Some(1), None, None) => DiskKind::Plain,
            (Some(2), Some("hybrid"), None) => DiskKind::Hybrid,
            (Some(found), _, _) if found > STORE_FORMAT => {
                return Err(OpenError::NewerFormat { dir: self.dir.clone(), found });
            }
            _ => return Err(damaged()),
        };
        Ok(())
    }

    /// Says durably which disk the folder's files are of.
    pub(crate) fn set_disk(&mut self, disk: DiskKind) -> Result<(), OpenError> {
        let format = match disk {
            DiskKind::Plain => "1",
            DiskKind::Hybrid => "2 hybrid",
        };
        let (draft, path) = (self.dir.join("format.new"), self.dir.join("format"));
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(&draft).map_err(at(&draft))?;
        file.write_all(format!("{FORMAT_WORD}{format}\n").as_bytes()).map_err(at(&draft))?;
        file.sync_all().map_err(at(&draft))?;
        fs::rename(&draft, &path).map_err(at(&path))?;
        sync_dir(&self.dir)?;
        self.disk = disk;
        Ok(())
    }
}

/// Turns an error of the operating system into one that names the path.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io { path, source }
}

fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

fn remove_all(dir: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(dir)(error)),
        _ => Ok(()),
    }
}

fn has_files(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}
