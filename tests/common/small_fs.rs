//! Small file systems, mounted for one test, and a filler that takes all room there.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

/// Room at which a file system is full.
const FULL_BYTES_MAX: u64 = 128 << 10;
/// Steps of a filler beyond those that it was asked for.
const FURTHER_STEPS_MAX: u64 = 64;

/// Kinds of file system.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// In memory.
    Tmpfs,
    /// In a file, by way of a loop device.
    Ext4,
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct SmallFs {
    folder: tempfile::TempDir,
}

impl SmallFs {
    /// Makes and mounts one. The error says why that cannot be done here (mostly: not root).
    pub fn mount(kind: Kind, mib: u64) -> Result<SmallFs, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, root) = (folder.path().join("image"), folder.path().join("fs"));
        std::fs::create_dir(&root).map_err(|error| error.to_string())?;
        match kind {
            Kind::Tmpfs => {
                let size = format!("size={mib}m");
                let mut mount = Command::new("mount");
                run(mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&root))?;
            }
            Kind::Ext4 => {
                let file = File::create(&image).map_err(|error| error.to_string())?;
                file.set_len(mib << 20).map_err(|error| error.to_string())?;
                run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
                run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&root))?;
            }
        }
        Ok(SmallFs { folder })
    }

    /// Its root folder.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("fs")
    }

    /// Takes all room but `left_bytes`, in so many steps; [`empty`](Self::empty) gives it back.
    pub fn fill(&self, steps: u64, left_bytes: u64) {
        fill(&self.filler(), steps, left_bytes);
    }

    /// Removes the filler.
    pub fn empty(&self) {
        let _ = std::fs::remove_file(self.filler());
    }

    /// The file that takes the room.
    pub fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        // Lazily: a process that was just killed may still have files open in it.
        let _ = run(Command::new("umount").arg("-l").arg(self.path()));
    }
}

/// Takes the room of the file's file system but `left_bytes`: in so many steps, and further ones
/// as long as there is some, because others may use the file system meanwhile, and tmpfs takes all
/// of a step or nothing.
pub fn fill(filler: &Path, steps: u64, left_bytes: u64) {
    let file = File::create(filler).expect("a file");
    let mut taken = 0;
    let mut step = u64::MAX;
    for number in 0..steps + FURTHER_STEPS_MAX {
        let found = fstatvfs(&file).expect("a file system");
        let room = (found.f_bavail * found.f_frsize).saturating_sub(left_bytes);
        if room < FULL_BYTES_MAX {
            return;
        }
        step = step.min(room / steps.saturating_sub(number).max(1));
        match fallocate(&file, FallocateFlags::empty(), taken, step) {
            Ok(()) => taken += step,
            Err(_) => step = (step / 2).max(FULL_BYTES_MAX / 2),
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output();
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output.map_err(|error| format!("{name}: {error}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{name}: {}", error.trim_end()))
}
