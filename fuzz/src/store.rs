//! What comes back from the store, or from clients that kept it for us.

use bytes::Bytes;
use chatring_core::cursor::Cursor;
use chatring_core::values::{
    ChannelRow, DeploymentRow, DeviceRow, FenceRow, InboxRow, JournalRow, MarkerRow, MessageRow,
    RelationRow, TrimRow, UserRow,
};
use chatring_wire::Seq;

pub(crate) fn cursor(data: &[u8]) {
    if let Some(cursor) = Cursor::decode(Bytes::copy_from_slice(data)) {
        assert_eq!(Cursor::decode(cursor.encode()), Some(cursor));
    }
}

/// Whatever stands under a key is a row or an error.
pub(crate) fn values(data: &[u8]) {
    let value = Bytes::copy_from_slice(data);
    let _ = DeploymentRow::decode(value.clone());
    let _ = FenceRow::decode(value.clone());
    let _ = JournalRow::decode(value.clone());
    let _ = UserRow::decode(value.clone());
    let _ = DeviceRow::decode(value.clone());
    let _ = ChannelRow::decode(value.clone());
    let _ = RelationRow::decode(value.clone());
    let _ = TrimRow::decode(value.clone());
    let _ = InboxRow::decode(value.clone());
    let _ = MarkerRow::decode(value.clone());
    let _ = MessageRow::decode(Seq(1), value);
}
