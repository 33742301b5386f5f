//! The binary form of what several frames carry: heads, pages with their rows, and members.

use bytes::{BufMut, BytesMut};

use super::fields::{Reader, check_length, put_blob, put_body, put_difference};
use crate::error::WireError;
use crate::frame::{ChannelKind, Head, HeadRows, Member, MessageKind, Page, Row};
use crate::id::{Cmid, DeviceId, MemberNumber, Ordinal, Seq, Uid};
use crate::limits::{BODY_BYTES_MAX, NAME_BYTES_MAX, ROWS_PER_FRAME_MAX, WHO_MEMBERS_MAX};
use crate::varint;

/// What a row takes at the least: skip, time, ordinal, sender, kind, device, cmid, tagged, length.
const ROW_BYTES_MIN: usize = 8 + 16;
/// What a member takes at the least: number, uid, two lengths, tagged.
const MEMBER_BYTES_MIN: usize = 1 + 8 + 3;

pub(super) fn put_head(head: &Head, out: &mut BytesMut) {
    out.put_u64(head.cid.0);
    out.put_u8(head.kind as u8);
    match head.peer {
        None => out.put_u8(0),
        Some(peer) => {
            out.put_u8(1);
            out.put_u64(peer.0);
        }
    }
    varint::put(out, u64::from(head.me.0));
    for value in [
        head.head.0,
        head.ordinal.0,
        head.floor.0,
        head.read.0,
        head.read_ordinal.0,
        head.received.0,
    ] {
        varint::put(out, value);
    }
    out.put_u8(match head.rows {
        HeadRows::Unchanged => 0,
        HeadRows::Follow => 1,
        HeadRows::Stale => 2,
    });
}

pub(super) fn take_head(fields: &mut Reader<'_>) -> Result<Head, WireError> {
    let cid = fields.cid()?;
    let kind = fields.choice("kind", ChannelKind::from_number)?;
    let peer = if fields.flag("peer")? { Some(Uid(fields.u64()?)) } else { None };
    Ok(Head {
        cid,
        kind,
        peer,
        me: MemberNumber(fields.varint_u32("me")?),
        head: Seq(fields.varint()?),
        ordinal: Ordinal(fields.varint()?),
        floor: Seq(fields.varint()?),
        read: Seq(fields.varint()?),
        read_ordinal: Ordinal(fields.varint()?),
        received: Seq(fields.varint()?),
        rows: fields.choice("rows", |byte| match byte {
            0 => Some(HeadRows::Unchanged),
            1 => Some(HeadRows::Follow),
            2 => Some(HeadRows::Stale),
            _ => None,
        })?,
    })
}

pub(super) fn put_page(page: &Page, out: &mut BytesMut) -> Result<(), WireError> {
    check_page(page)?;
    out.put_u64(page.cid.0);
    varint::put(out, page.from.0);
    varint::put(out, page.to.0);
    out.put_u8(u8::from(page.gap));
    varint::put(out, page.rows.len() as u64);
    let mut before = Before::new(page.from.0);
    for row in &page.rows {
        varint::put(out, row.seq.0 - before.next_seq);
        put_difference(out, before.time_ms, row.time_ms);
        put_difference(out, before.ordinal, row.ordinal.0);
        varint::put(out, u64::from(row.sender.0));
        out.put_u8(row.kind.0);
        varint::put(out, u64::from(row.device.0));
        out.put_slice(&row.cmid.0);
        varint::put(out, 0);
        varint::put(out, row.body.len() as u64);
        put_body(out, row.kind, &row.body)?;
        before = Before::after(row);
    }
    Ok(())
}

pub(super) fn take_page(fields: &mut Reader<'_>) -> Result<Page, WireError> {
    let cid = fields.cid()?;
    let from = Seq(fields.varint()?);
    let to = Seq(fields.varint()?);
    let gap = fields.flag("gap")?;
    let count = fields.count("rows", ROWS_PER_FRAME_MAX, ROW_BYTES_MIN)?;
    let mut rows = Vec::with_capacity(count);
    let mut before = Before::new(from.0);
    for _ in 0..count {
        let row = take_row(&before, fields)?;
        before = Before::after(&row);
        rows.push(row);
    }
    let page = Page { cid, from, to, gap, rows };
    check_page(&page)?;
    Ok(page)
}

fn take_row(before: &Before, fields: &mut Reader<'_>) -> Result<Row, WireError> {
    let out_of_range = WireError::OutOfRange { field: "seq" };
    let seq = Seq(before.next_seq.checked_add(fields.varint()?).ok_or(out_of_range)?);
    let time_ms = varint::apply(before.time_ms, fields.varint()?);
    let ordinal = Ordinal(varint::apply(before.ordinal, fields.varint()?));
    let sender = MemberNumber(fields.varint_u32("sender")?);
    let kind = MessageKind(fields.u8()?);
    let device = DeviceId(fields.varint_u32("device")?);
    let cmid = Cmid(fields.id16()?);
    fields.tagged_block()?;
    let length = fields.varint()?;
    check_length("body", length, BODY_BYTES_MAX)?;
    let body = fields.part(length)?.rest_body(kind)?;
    Ok(Row { seq, ordinal, kind, sender, device, cmid, time_ms, body })
}

/// The rows of a page ascend and lie within what it covers.
pub(crate) fn check_page(page: &Page) -> Result<(), WireError> {
    check_length("rows", page.rows.len() as u64, ROWS_PER_FRAME_MAX)?;
    let mut lowest = page.from.0;
    for row in &page.rows {
        if row.seq.0 < lowest || row.seq.0 > page.to.0 || row.seq.0 == u64::MAX {
            return Err(WireError::OutOfRange { field: "seq" });
        }
        lowest = row.seq.0 + 1;
    }
    Ok(())
}

/// What the numbers of a page's row are a difference against.
struct Before {
    next_seq: u64,
    time_ms: u64,
    ordinal: u64,
}

impl Before {
    fn new(from: u64) -> Before {
        Before { next_seq: from, time_ms: 0, ordinal: 0 }
    }

    fn after(row: &Row) -> Before {
        let next_seq = row.seq.0.saturating_add(1);
        Before { next_seq, time_ms: row.time_ms, ordinal: row.ordinal.0 }
    }
}

pub(super) fn put_members(members: &[Member], out: &mut BytesMut) -> Result<(), WireError> {
    check_length("members", members.len() as u64, WHO_MEMBERS_MAX)?;
    varint::put(out, members.len() as u64);
    for member in members {
        varint::put(out, u64::from(member.number.0));
        out.put_u64(member.uid.0);
        put_blob(out, "issuer", member.issuer.as_bytes(), NAME_BYTES_MAX)?;
        put_blob(out, "subject", member.subject.as_bytes(), NAME_BYTES_MAX)?;
        varint::put(out, 0);
    }
    Ok(())
}

pub(super) fn take_members(fields: &mut Reader<'_>) -> Result<Vec<Member>, WireError> {
    let count = fields.count("members", WHO_MEMBERS_MAX, MEMBER_BYTES_MIN)?;
    let mut members = Vec::with_capacity(count);
    for _ in 0..count {
        let number = MemberNumber(fields.varint_u32("number")?);
        let uid = Uid(fields.u64()?);
        let issuer = fields.text("issuer", NAME_BYTES_MAX)?;
        let subject = fields.text("subject", NAME_BYTES_MAX)?;
        fields.tagged_block()?;
        members.push(Member { number, uid, issuer, subject });
    }
    Ok(members)
}
