//! Short names of channels within one direction of one connection.
//!
//! ```text
//!  reference 0      the id follows, and gets no alias (the table is full)
//!  reference 1      the id follows, and gets the next alias: 0, 1, 2 …
//!  reference n ≥ 2  the channel with alias n − 2
//! ```

use bytes::{BufMut, BytesMut};
use rustc_hash::FxHashMap;

use super::fields::Reader;
use crate::error::WireError;
use crate::id::Cid;
use crate::limits::ALIASES_MAX;
use crate::varint;

const FULL: u64 = 0;
const DEFINE: u64 = 1;
const FIRST: u64 = 2;

/// The numbers of an alias's previous frame, which the next one is a difference against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) seq: u64,
    pub(super) time_ms: u64,
}

/// The sender's end of the table. Ids are evenly spread and given by the server, so that a simple
/// hash serves.
#[derive(Debug, Default)]
pub(super) struct AliasWriter {
    slots: FxHashMap<Cid, (u64, Last)>,
}

impl AliasWriter {
    /// Writes a reference to the channel and gives what its numbers are a difference against.
    /// Nothing changes in the table before [`AliasWriter::commit`].
    pub(super) fn put(&self, cid: Cid, out: &mut BytesMut) -> Last {
        if let Some((alias, last)) = self.slots.get(&cid) {
            varint::put(out, alias + FIRST);
            return *last;
        }
        out.put_u8(if self.slots.len() < ALIASES_MAX { DEFINE as u8 } else { FULL as u8 });
        out.put_u64(cid.0);
        Last::default()
    }

    /// A frame that refers to the channel is written; `last` are its numbers if it has some.
    pub(super) fn commit(&mut self, cid: Cid, last: Option<Last>) {
        let next = self.slots.len() as u64;
        if let Some(slot) = self.slots.get_mut(&cid) {
            slot.1 = last.unwrap_or(slot.1);
        } else if self.slots.len() < ALIASES_MAX {
            self.slots.insert(cid, (next, last.unwrap_or_default()));
        }
    }
}

/// The receiver's end of the table.
#[derive(Debug, Default)]
pub(super) struct AliasReader {
    slots: Vec<(Cid, Last)>,
}

/// A reference that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Referred {
    pub(super) cid: Cid,
    pub(super) last: Last,
    slot: Option<usize>,
}

impl AliasReader {
    /// Reads a reference, and defines its alias if it asks for that.
    pub(super) fn take(&mut self, frame: &mut Reader<'_>) -> Result<Referred, WireError> {
        let last = Last::default();
        match frame.varint()? {
            FULL => Ok(Referred { cid: frame.cid()?, last, slot: None }),
            DEFINE => {
                let cid = frame.cid()?;
                if self.slots.len() >= ALIASES_MAX {
                    return Err(WireError::OutOfRange { field: "alias" });
                }
                self.slots.push((cid, last));
                Ok(Referred { cid, last, slot: Some(self.slots.len() - 1) })
            }
            reference => {
                let alias = reference - FIRST;
                let slot = usize::try_from(alias).map_err(|_| WireError::UnknownAlias(alias))?;
                let (cid, last) = *self.slots.get(slot).ok_or(WireError::UnknownAlias(alias))?;
                Ok(Referred { cid, last, slot: Some(slot) })
            }
        }
    }

    /// Keeps the numbers of a frame for the next one of its alias.
    pub(super) fn keep(&mut self, referred: Referred, last: Last) {
        if let Some(slot) = referred.slot {
            self.slots[slot].1 = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_full_table_falls_back_to_full_ids_and_both_ends_agree() {
        let mut writer = AliasWriter::default();
        let mut reader = AliasReader::default();
        for cid in (0..ALIASES_MAX as u64 + 3).chain(0..3).map(Cid) {
            let mut out = BytesMut::new();
            writer.put(cid, &mut out);
            writer.commit(cid, None);
            let bytes = out.freeze();
            let referred = reader.take(&mut Reader::new(&bytes)).expect("known reference");
            assert_eq!(referred.cid, cid);
        }
        assert_eq!(reader.slots.len(), ALIASES_MAX);
        let define = Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, 9]);
        let refused = reader.take(&mut Reader::new(&define)).map(|referred| referred.cid);
        assert_eq!(refused, Err(WireError::OutOfRange { field: "alias" }));
    }

    #[test]
    fn an_alias_that_was_never_defined_is_refused() {
        let mut reader = AliasReader::default();
        let bytes = Bytes::from_static(&[2]);
        let refused = reader.take(&mut Reader::new(&bytes)).map(|referred| referred.cid);
        assert_eq!(refused, Err(WireError::UnknownAlias(0)));
    }
}
