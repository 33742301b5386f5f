//! Sends without a base: a row for each keeps its client message id for as long as its message.
//!
//! The row is written with the message. A send that the map of recent messages does not know reads
//! it first, and counts as new if there is none and no message came meanwhile that the map has
//! forgotten again.

use chatring_wire::ErrorCode;
use chatring_wire::Seq;
use chatring_wire::frame::Row;

use crate::call::Again;
use crate::channel::{ChannelSlot, Checked};
use crate::effect::{SendAnswer, SendRequest};
use crate::keys;
use crate::kv::{Read, ReadVersion, Rows, Write};
use crate::shard::{Asker, Shard};
use crate::values::SentRow;

/// A send whose row is being read.
#[derive(Clone, Debug)]
pub(crate) struct LookUp {
    request: SendRequest,
    /// Up to here the read sees every row.
    stored: Seq,
}

impl Shard {
    /// Looks whether a send without a base was stored before. Others pass it meanwhile.
    pub(crate) fn look_up(&mut self, request: SendRequest) {
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get(&request.cid) else { return };
        self.counters.sends_looked_up += 1;
        let stored = channel.stored_head();
        let SendRequest { cid, uid, device, cmid, .. } = request;
        let read = Read {
            gets: vec![keys::sent(cid, uid, device, cmid)],
            ranges: Vec::new(),
            version: ReadVersion::Fresh,
        };
        self.read(Asker::LookUp(Box::new(LookUp { request, stored })), read);
    }

    pub(crate) fn looked_up(&mut self, look_up: LookUp, rows: Rows) {
        let LookUp { request, stored } = look_up;
        let row = match rows.gets.into_iter().next().flatten().map(SentRow::decode).transpose() {
            Ok(row) => row,
            Err(error) => {
                self.note_damage(error);
                return self.refuse(&request, ErrorCode::Internal);
            }
        };
        if let Some(SentRow { seq, time_ms, print }) = row {
            self.counters.sends_repeated += 1;
            let answer = if print == SentRow::print(request.kind, &request.body) {
                SendAnswer::Stored { seq, time_ms, again: Again::Repeat }
            } else {
                SendAnswer::Refused { code: ErrorCode::CmidReused, retry_after_ms: None }
            };
            return self.answer(request.uid, request.origin, request.cid, answer);
        }
        match self.channels.get(&request.cid) {
            Some(ChannelSlot::Loaded(channel)) if channel.remembers_above(stored) => {
                self.take_send(request, Checked::UpToTheMap);
            }
            // A copy of it may have come and be forgotten since the read.
            Some(_) | None => self.channel_send(request),
        }
    }
}

/// The row that keeps the client message id of a send.
pub(crate) fn sent_row(request: &SendRequest, row: &Row) -> Write {
    let SendRequest { cid, uid, device, cmid, kind, ref body, .. } = *request;
    let print = SentRow::print(kind, body);
    let value = SentRow { seq: row.seq, time_ms: row.time_ms, print }.encode();
    Write::Set { key: keys::sent(cid, uid, device, cmid), value }
}
