//! A log that is nothing but one: groups of messages, each written and synced before it is through.
//!
//! The file is filled with zeroes beforehand and written round and round, so that a sync has no
//! metadata to write. A thread of its own syncs, so that the next group gathers meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use crate::frame::MESSAGE_BYTES;

/// Messages of one group.
pub const GROUP_MESSAGES_MAX: usize = 65_536;
/// Shortest log: two of the largest groups.
pub const LOG_BYTES_MIN: u64 = 2 * (GROUP_MESSAGES_MAX * MESSAGE_BYTES) as u64;
/// Bytes of zeroes written at a time: ext4 (since Linux 6.16) keeps what was written at once as one
/// piece of its cache, and writes that piece again for each group in it.
const FILL_BYTES: usize = 4096;

/// Writes `length` zeroes into an empty file, so that syncs of what is written over them later
/// have no metadata to write.
///
/// # Errors
/// The disk refuses.
pub fn fill(mut file: &File, length: u64) -> io::Result<()> {
    let zeroes = [0; FILL_BYTES];
    let mut left = length;
    while left > 0 {
        let piece = left.min(FILL_BYTES as u64);
        file.write_all(&zeroes[..piece as usize])?;
        left -= piece;
    }
    file.sync_all()
}

/// Messages that are stored together, with their senders.
#[derive(Debug, Default)]
pub struct Group {
    bytes: Vec<u8>,
    senders: Vec<u64>,
}

impl Group {
    /// Adds a message; says whether there was room.
    pub fn add(&mut self, sender: u64, message: &[u8; MESSAGE_BYTES]) -> bool {
        let room = self.senders.len() < GROUP_MESSAGES_MAX;
        if room {
            self.senders.push(sender);
            self.bytes.extend_from_slice(message);
        }
        room
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.senders.is_empty()
    }

    /// The messages in order, each with its sender.
    pub fn messages(&self) -> impl Iterator<Item = (u64, &[u8; MESSAGE_BYTES])> {
        let messages = self.bytes.chunks_exact(MESSAGE_BYTES).filter_map(<[u8]>::first_chunk);
        self.senders.iter().copied().zip(messages)
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.senders.clear();
    }
}

/// The file.
#[derive(Debug)]
pub struct Log {
    file: File,
    length: u64,
    at: u64,
    sync_delay: Duration,
}

impl Log {
    /// Makes a file of `length` zeroes. Each sync takes `sync_delay` longer than it would.
    ///
    /// # Errors
    /// The file is there already, or the disk refuses.
    pub fn create(path: &Path, length: u64, sync_delay: Duration) -> io::Result<Log> {
        let length = length.max(LOG_BYTES_MIN);
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        fill(&file, length)?;
        Ok(Log { file, length, at: 0, sync_delay })
    }

    fn store(&mut self, group: &Group) -> io::Result<()> {
        let bytes = group.bytes.len() as u64;
        if self.at + bytes > self.length {
            self.at = 0;
        }
        self.file.write_all_at(&group.bytes, self.at)?;
        self.at += bytes;
        if !self.sync_delay.is_zero() {
            std::thread::sleep(self.sync_delay);
        }
        self.file.sync_data()
    }
}

/// The thread that stores groups, seen from the relay: one group is under way at most.
#[derive(Debug)]
pub struct Committer {
    groups: SyncSender<Group>,
    stored: Receiver<io::Result<Group>>,
    spare: Option<Group>,
    is_busy: bool,
}

impl Committer {
    /// Starts it. A byte can be read from the socket after each group.
    ///
    /// # Errors
    /// The machine refuses a thread or a socket.
    pub fn start(mut log: Log) -> io::Result<(Committer, OwnedFd)> {
        let (groups, to_store) = sync_channel::<Group>(1);
        let (through, stored) = sync_channel(1);
        let (bell, rope) = UnixStream::pair()?;
        std::thread::Builder::new().name("bare-log".to_owned()).spawn(move || {
            for group in to_store {
                let outcome = log.store(&group).map(|()| group);
                // The relay is gone: nobody waits for this group.
                if through.send(outcome).is_err() || (&rope).write_all(&[1]).is_err() {
                    return;
                }
            }
        })?;
        let spare = Some(Group::default());
        Ok((Committer { groups, stored, spare, is_busy: false }, bell.into()))
    }

    /// Starts to store a group, if none is under way; leaves an empty one.
    pub fn offer(&mut self, group: &mut Group) {
        if self.is_busy || group.is_empty() {
            return;
        }
        let next = self.spare.take().unwrap_or_default();
        // If the thread is gone, `take` says so.
        self.is_busy = self.groups.send(std::mem::replace(group, next)).is_ok();
    }

    /// Gives the group that was under way to `on`, if it is stored.
    ///
    /// # Errors
    /// It cannot be stored.
    pub fn take(&mut self, on: impl FnOnce(&Group)) -> io::Result<()> {
        match self.stored.try_recv() {
            Ok(outcome) => {
                let mut group = outcome?;
                self.is_busy = false;
                on(&group);
                group.clear();
                self.spare = Some(group);
                Ok(())
            }
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => Err(io::Error::other("the log's thread is gone")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(numbers: std::ops::Range<u8>) -> Group {
        let mut group = Group::default();
        for number in numbers {
            assert!(group.add(u64::from(number), &[number; MESSAGE_BYTES]));
        }
        group
    }

    #[test]
    fn groups_follow_each_other_and_begin_anew_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::create(&path, 0, Duration::ZERO).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LOG_BYTES_MIN);
        log.store(&group(1..3)).unwrap();
        log.store(&group(3..4)).unwrap();
        let start = std::fs::read(&path).unwrap()[..4 * MESSAGE_BYTES].to_vec();
        let expected: Vec<u8> = [1, 2, 3, 0].iter().flat_map(|n| [*n; MESSAGE_BYTES]).collect();
        assert_eq!(start, expected);
        log.at = LOG_BYTES_MIN - 1;
        log.store(&group(7..8)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[..MESSAGE_BYTES], [7; MESSAGE_BYTES]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LOG_BYTES_MIN);
        assert!(Log::create(&path, 0, Duration::ZERO).is_err(), "nobody's file is overwritten");
    }

    #[test]
    fn a_full_group_takes_no_more() {
        let mut full = Group { bytes: Vec::new(), senders: vec![0; GROUP_MESSAGES_MAX] };
        assert!(!full.add(1, &[0; MESSAGE_BYTES]));
    }
}
