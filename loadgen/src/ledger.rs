//! The ledger: one JSON line per acked message, written as the ack arrives, read by `verify`.
//!
//! A generator that is killed may leave a torn last line; everything before it was acked.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{LEDGER_LINE_BYTES_MAX, LEDGER_LINES_MAX};

/// An acked message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// `sub` of the sender's token.
    pub from: String,
    /// `sub` of the other user's token.
    pub to: String,
    /// The channel, as 16 hexadecimal digits.
    pub cid: String,
    /// Position of the message.
    pub seq: u64,
    /// Unix time of the message in milliseconds, as the ack gave it.
    pub time_ms: u64,
    /// The body; ASCII.
    pub body: String,
}

/// Appends to a ledger. Several writers may have one file open: each write is of whole lines.
#[derive(Debug)]
pub struct LedgerWriter {
    file: File,
    pending: Vec<u8>,
}

impl LedgerWriter {
    /// Makes the file, empty.
    pub fn create(path: &Path) -> io::Result<()> {
        File::create(path).map(drop)
    }

    /// Opens a made file.
    pub fn open(path: &Path) -> io::Result<LedgerWriter> {
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(LedgerWriter { file, pending: Vec::new() })
    }

    /// Adds a line. It reaches the file with the next [`LedgerWriter::flush`], which follows once
    /// everything that has arrived is taken in.
    pub fn add(&mut self, line: &Line) {
        serde_json::to_writer(&mut self.pending, line).expect("a line is plain text and numbers");
        self.pending.push(b'\n');
    }

    /// Writes what was added to the file.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.file.write_all(&self.pending)?;
            self.pending.clear();
        }
        Ok(())
    }
}

/// Why a ledger cannot be used.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// It cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A line is none, and it is not the torn last one.
    #[error("{path}: line {number} is not a line of a ledger: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// More lines than one `verify` holds.
    #[error("the ledgers have more than {LEDGER_LINES_MAX} lines; verify them in parts")]
    TooLong,
}

/// What ledgers hold.
#[derive(Debug, Default)]
pub struct Ledgers {
    /// All whole lines, in order.
    pub lines: Vec<Line>,
    /// How many files ended in a torn line.
    pub torn: usize,
}

impl Ledgers {
    /// Adds a file's lines.
    pub fn read(&mut self, path: &Path) -> Result<(), LedgerError> {
        let io = |error| LedgerError::Io { path: path.to_owned(), error };
        let mut reader = BufReader::new(File::open(path).map_err(io)?);
        let mut text = Vec::new();
        for number in 1.. {
            text.clear();
            let limit = LEDGER_LINE_BYTES_MAX as u64 + 1;
            let read = io::Read::take(&mut reader, limit).read_until(b'\n', &mut text);
            if read.map_err(io)? == 0 {
                break;
            }
            let line = |reason| LedgerError::Line { path: path.to_owned(), number, reason };
            if text.last() != Some(&b'\n') {
                if text.len() > LEDGER_LINE_BYTES_MAX {
                    return Err(line("it is too long".to_owned()));
                }
                self.torn += 1;
                break;
            }
            if self.lines.len() == LEDGER_LINES_MAX {
                return Err(LedgerError::TooLong);
            }
            self.lines.push(serde_json::from_slice(&text).map_err(|e| line(e.to_string()))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64) -> Line {
        Line {
            from: "loadgen-0".to_owned(),
            to: "loadgen-1".to_owned(),
            cid: "00000000000000c1".to_owned(),
            seq,
            time_ms: 1_700_000_000_000,
            body: "AAAABCDEFGHIJKLM-_00".to_owned(),
        }
    }

    fn written(lines: u64) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        LedgerWriter::create(&path).unwrap();
        let mut writer = LedgerWriter::open(&path).unwrap();
        for seq in 1..=lines {
            writer.add(&line(seq));
            writer.flush().unwrap();
        }
        (folder, path)
    }

    fn read(path: &Path) -> Result<Ledgers, LedgerError> {
        let mut ledgers = Ledgers::default();
        ledgers.read(path).map(|()| ledgers)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_folder, path) = written(3);
        let ledgers = read(&path).unwrap();
        assert_eq!(ledgers.lines, [line(1), line(2), line(3)]);
        assert_eq!(ledgers.torn, 0);
    }

    #[test]
    fn a_torn_last_line_is_legal_at_every_cut() {
        let (_folder, path) = written(2);
        let whole = std::fs::read(&path).unwrap();
        let second = whole.len() / 2;
        for cut in second..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let ledgers = read(&path).unwrap();
            assert_eq!(ledgers.lines, [line(1)], "cut at {cut}");
            assert_eq!(ledgers.torn, usize::from(cut > second));
        }
    }

    #[test]
    fn a_broken_line_before_the_last_is_an_error() {
        let (_folder, path) = written(2);
        let text = std::fs::read_to_string(&path).unwrap().replacen("\"seq\"", "\"sec\"", 1);
        std::fs::write(&path, text).unwrap();
        let error = read(&path).unwrap_err();
        assert!(matches!(error, LedgerError::Line { number: 1, .. }), "{error}");
    }

    #[test]
    fn lines_of_several_writers_stay_whole() {
        let (_folder, path) = written(0);
        let mut writers = [LedgerWriter::open(&path).unwrap(), LedgerWriter::open(&path).unwrap()];
        for seq in 1..=10 {
            for writer in &mut writers {
                writer.add(&line(seq));
                writer.add(&line(seq));
                writer.flush().unwrap();
            }
        }
        assert_eq!(read(&path).unwrap().lines.len(), 40);
    }
}
