//! The store's folder: who may use it, which format it has, and whether it is whole.
//!
//! ```text
//!   lock      locked while a process uses the folder; the lock dies with the process
//!   format    "chatring-store 1\n"
//!   rows/     the disk's files; made as rows.new/ and renamed when whole
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::takeover;

/// The format that this engine writes.
pub const STORE_FORMAT: u32 = 1;

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
    _lock: File,
}

impl Folder {
    /// Makes the folder if there is none, locks it and checks its format. A folder in use is waited
    /// for, for [`takeover::TAKEOVER_MS_MAX`].
    pub(crate) fn open(dir: &Path) -> Result<Folder, OpenError> {
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
        let folder = Folder { dir: dir.into(), _lock: lock };
        folder.check_format()?;
        Ok(folder)
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
        let draft = self.dir.join("rows.new");
        match fs::remove_dir_all(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&draft)(error)),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&draft).map_err(at(&draft))?;
        make(&draft)?;
        fs::rename(&draft, self.rows()).map_err(at(&draft))?;
        sync_dir(&self.dir)
    }

    /// An error about the folder's content.
    pub(crate) fn unreadable(&self, reason: impl Into<String>) -> OpenError {
        OpenError::Unreadable { dir: self.dir.clone(), reason: reason.into() }
    }

    fn check_format(&self) -> Result<(), OpenError> {
        let path = self.dir.join("format");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.rows().exists() {
                    return Err(self.unreadable("it has rows but no format file"));
                }
                return self.write_format(&path);
            }
            Err(error) => return Err(at(&path)(error)),
        };
        let found = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.strip_prefix(FORMAT_WORD)?.trim_end().parse().ok());
        match found {
            Some(STORE_FORMAT) => Ok(()),
            Some(found) if found > STORE_FORMAT => {
                Err(OpenError::NewerFormat { dir: self.dir.clone(), found })
            }
            _ => Err(self.unreadable("its format file is damaged")),
        }
    }

    fn write_format(&self, path: &Path) -> Result<(), OpenError> {
        let draft = self.dir.join("format.new");
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(&draft).map_err(at(&draft))?;
        file.write_all(format!("{FORMAT_WORD}{STORE_FORMAT}\n").as_bytes()).map_err(at(&draft))?;
        file.sync_all().map_err(at(&draft))?;
        fs::rename(&draft, path).map_err(at(path))?;
        sync_dir(&self.dir)
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
