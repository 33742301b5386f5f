//! A cache on disk: one redb file, one transaction for each batch of changes.

use std::path::Path;

use bytes::Bytes;
use chatring_wire::{Cid, HistoryId, InstallationId, Seq, Uid};
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};
use thiserror::Error;

use super::record;
use super::{CacheImage, CacheWrite};

const FORMAT: u64 = 1;
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const CHANNELS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("channels");
const ROWS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("rows");
const OUTBOX: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outbox");

/// Why a cache file is of no use.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The file cannot be opened, read or written, or is in use.
    #[error("the cache file: {0}")]
    Store(#[from] redb::Error),
    /// A record is not as this build wrote it.
    #[error("the cache file holds a broken {0}")]
    Broken(&'static str),
    /// A newer build wrote it.
    #[error("the cache file is of format {0}, this build knows {FORMAT}")]
    Format(u64),
}

macro_rules! store_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for CacheError {
            fn from(error: $error) -> CacheError {
                CacheError::Store(error.into())
            }
        }
    )*};
}
store_errors!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

/// An open cache file. One process has it at a time.
#[derive(Debug)]
pub struct CacheFile {
    database: Database,
}

impl CacheFile {
    /// Opens the file, or makes it for the installation `fresh`, and reads what it holds.
    ///
    /// # Errors
    /// It cannot be opened, is in use, or holds something else.
    pub fn open(path: &Path, fresh: InstallationId) -> Result<(CacheFile, CacheImage), CacheError> {
        let file = CacheFile { database: Database::create(path)? };
        let change = file.database.begin_write()?;
        let image = {
            let mut meta = change.open_table(META)?;
            let format = meta.get("format")?.map(|value| number(value.value()));
            match format {
                None => {
                    meta.insert("format", FORMAT.to_be_bytes().as_slice())?;
                    meta.insert("installation", fresh.0.as_slice())?;
                }
                Some(Some(FORMAT)) => {}
                Some(Some(other)) => return Err(CacheError::Format(other)),
                Some(None) => return Err(CacheError::Broken("format")),
            }
            drop(meta);
            change.open_table(CHANNELS)?;
            change.open_table(ROWS)?;
            change.open_table(OUTBOX)?;
            change.commit()?;
            file.read()?
        };
        Ok((file, image))
    }

    /// Makes a batch durable, all of it or nothing.
    ///
    /// # Errors
    /// The disk says no. The batch is not there then; the session must not go on.
    pub fn write(&self, batch: &[CacheWrite]) -> Result<(), CacheError> {
        if batch.is_empty() {
            return Ok(());
        }
        let change = self.database.begin_write()?;
        for write in batch {
            apply(&change, write)?;
        }
        change.commit()?;
        Ok(())
    }

    fn read(&self) -> Result<CacheImage, CacheError> {
        let view = self.database.begin_read()?;
        let meta = view.open_table(META)?;
        let get = |name: &str| -> Result<Option<Vec<u8>>, CacheError> {
            Ok(meta.get(name)?.map(|value| value.value().to_vec()))
        };
        let installation = get("installation")?
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(CacheError::Broken("installation"))?;
        let mut image = CacheImage::new(InstallationId(installation));
        let numbered = |name: &'static str| -> Result<Option<u64>, CacheError> {
            let bytes = get(name)?;
            bytes.map(|bytes| number(&bytes).ok_or(CacheError::Broken(name))).transpose()
        };
        image.uid = numbered("uid")?.map(Uid);
        image.history = numbered("history")?.map(HistoryId);
        image.cursor = get("cursor")?.map(Bytes::from).unwrap_or_default();
        for item in view.open_table(CHANNELS)?.iter()? {
            let (key, value) = item?;
            let cid = Cid(key.value());
            let channel = record::decode_channel(cid, value.value());
            image.channels.insert(cid, channel.ok_or(CacheError::Broken("channel"))?);
        }
        for item in view.open_table(ROWS)?.iter()? {
            let (key, value) = item?;
            let (cid, seq) = key.value();
            let row = record::decode_row(Seq(seq), value.value());
            image.rows.insert((Cid(cid), Seq(seq)), row.ok_or(CacheError::Broken("message"))?);
        }
        for item in view.open_table(OUTBOX)?.iter()? {
            let (key, value) = item?;
            let entry = record::decode_send(value.value()).ok_or(CacheError::Broken("send"))?;
            image.outbox.insert(key.value(), entry);
        }
        Ok(image)
    }
}

fn apply(change: &WriteTransaction, write: &CacheWrite) -> Result<(), CacheError> {
    match write {
        CacheWrite::Owner { uid, history } => {
            let mut meta = change.open_table(META)?;
            meta.insert("uid", uid.0.to_be_bytes().as_slice())?;
            meta.insert("history", history.0.to_be_bytes().as_slice())?;
        }
        CacheWrite::Cursor(cursor) => {
            change.open_table(META)?.insert("cursor", cursor.as_ref())?;
        }
        CacheWrite::Channel(record) => {
            let bytes = record::encode_channel(record);
            change.open_table(CHANNELS)?.insert(record.cid.0, bytes.as_slice())?;
        }
        CacheWrite::DropChannel(cid) => {
            change.open_table(CHANNELS)?.remove(cid.0)?;
            drop_rows(change, *cid, Seq(0), Seq(u64::MAX))?;
        }
        CacheWrite::Row { cid, row } => {
            let bytes = record::encode_row(row);
            change.open_table(ROWS)?.insert((cid.0, row.seq.0), bytes.as_slice())?;
        }
        CacheWrite::DropRows { cid, from, to } => drop_rows(change, *cid, *from, *to)?,
        CacheWrite::OutboxPut { number, entry } => {
            let bytes = record::encode_send(entry);
            change.open_table(OUTBOX)?.insert(*number, bytes.as_slice())?;
        }
        CacheWrite::OutboxDrop { number } => {
            change.open_table(OUTBOX)?.remove(*number)?;
        }
    }
    Ok(())
}

fn drop_rows(change: &WriteTransaction, cid: Cid, from: Seq, to: Seq) -> Result<(), CacheError> {
    if from <= to {
        change.open_table(ROWS)?.retain_in((cid.0, from.0)..=(cid.0, to.0), |_, _| false)?;
    }
    Ok(())
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use chatring_wire::frame::{ChannelKind, MessageKind, Row};
    use chatring_wire::{Cmid, DeviceId, MemberNumber, Ordinal};
    use proptest::prelude::*;

    use super::super::{ChannelRecord, OutboxEntry};
    use super::*;

    fn writes() -> impl Strategy<Value = CacheWrite> {
        let cid = (0_u64..3).prop_map(Cid);
        let seq = (0_u64..6).prop_map(Seq);
        let body = proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        let row = (cid.clone(), seq.clone(), any::<u64>(), any::<[u8; 16]>(), body.clone())
            .prop_map(|(cid, seq, number, cmid, body)| {
                let row = Row {
                    seq,
                    ordinal: Ordinal(number),
                    kind: MessageKind(number as u8),
                    sender: MemberNumber(number as u32),
                    device: DeviceId(!number as u32),
                    cmid: Cmid(cmid),
                    time_ms: number ^ 77,
                    body,
                };
                CacheWrite::Row { cid, row }
            });
        let send = (cid.clone(), 0_u64..4, any::<[u8; 16]>(), any::<Option<u64>>(), body).prop_map(
            |(cid, number, cmid, base, body)| {
                let (cmid, base, kind) = (Cmid(cmid), base.map(Seq), MessageKind(number as u8));
                CacheWrite::OutboxPut { number, entry: OutboxEntry { cid, cmid, base, kind, body } }
            },
        );
        let channel =
            (cid.clone(), any::<[u64; 10]>(), any::<Option<u64>>()).prop_map(|(cid, n, peer)| {
                CacheWrite::Channel(ChannelRecord {
                    cid,
                    kind: ChannelKind::Group,
                    peer: peer.map(Uid),
                    me: MemberNumber(n[0] as u32),
                    head: Seq(n[0]),
                    ordinal: Ordinal(n[1]),
                    floor: Seq(n[2]),
                    read: Seq(n[3]),
                    read_ordinal: Ordinal(n[4]),
                    received: Seq(n[5]),
                    marks: (Seq(n[6]), Seq(n[7])),
                    delivered: Seq(n[8]),
                    delivered_ordinal: Ordinal(n[9]),
                })
            });
        let drop_rows = (cid.clone(), seq.clone(), seq)
            .prop_map(|(cid, from, to)| CacheWrite::DropRows { cid, from, to });
        prop_oneof![
            row,
            send,
            channel,
            drop_rows,
            cid.prop_map(CacheWrite::DropChannel),
            (0_u64..4).prop_map(|number| CacheWrite::OutboxDrop { number }),
            any::<(u64, u64)>().prop_map(|(uid, history)| CacheWrite::Owner {
                uid: Uid(uid),
                history: HistoryId(history)
            }),
            any::<[u8; 4]>().prop_map(|c| CacheWrite::Cursor(Bytes::copy_from_slice(&c))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_reopened_file_holds_what_the_image_holds(
            batches in proptest::collection::vec(proptest::collection::vec(writes(), 0..12), 0..6)
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("cache");
            let fresh = InstallationId([7; 16]);
            let mut image = CacheImage::new(fresh);
            for batch in &batches {
                // Opened anew for each batch, as after a crash in between.
                let (file, found) = CacheFile::open(&path, fresh).expect("it opens");
                prop_assert_eq!(&found, &image);
                file.write(batch).expect("it writes");
                image.apply(batch);
            }
            let (_, found) = CacheFile::open(&path, InstallationId([9; 16])).expect("it opens");
            if batches.is_empty() {
                prop_assert_eq!(found.installation, InstallationId([9; 16]));
            } else {
                prop_assert_eq!(found, image);
            }
        }
    }

    #[test]
    fn a_file_in_use_and_a_foreign_one_are_told_apart_from_a_cache() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cache");
        let fresh = InstallationId([7; 16]);
        let (_held, _) = CacheFile::open(&path, fresh).expect("it opens");
        assert!(matches!(CacheFile::open(&path, fresh), Err(CacheError::Store(_))));
        let other = folder.path().join("other");
        std::fs::write(&other, b"not a cache").expect("it writes");
        assert!(matches!(CacheFile::open(&other, fresh), Err(CacheError::Store(_))));
    }
}
