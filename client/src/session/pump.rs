//! What a session sends of its own accord, and when.

use bytes::Bytes;
use chatring_wire::frame::{Direction, Hello, RangeRequest, RequestId};
use chatring_wire::{Cid, ClientFrame, CloseCode, Seq};

use super::channel::Fill;
use super::config::Millis;
use super::link::Link;
use super::{Pending, Session, SyncRun, limits};
use crate::cache::CacheWrite;

impl Session {
    /// Puts everything on the wire that may go now. Called after each change.
    pub(super) fn pump(&mut self, now: Millis) {
        let Link::Live(live) = &mut self.link else { return };
        if let Some(pushes) = live.take_ping(now) {
            self.transmits.push_back(ClientFrame::Ping { pushes });
        } else if let Some(pushes) = live.take_ack(now) {
            self.transmits.push_back(ClientFrame::Ack { pushes });
        }
        let open_max = live.welcome.open_sends_max as usize;
        if self.next_request > limits::REQUEST_MAX {
            self.close(CloseCode::Reconnect);
            return;
        }
        self.pump_sync(now);
        self.pump_asks(now);
        self.pump_fills(now);
        self.pump_sends(now, open_max);
    }

    /// The frame that opens a connection.
    pub(super) fn transmit_hello(&mut self) {
        self.transmits.push_back(ClientFrame::Hello(Hello {
            token: self.config.token.clone(),
            installation: self.installation,
            cursor: self.cursor.clone(),
            capabilities: 0,
            frame_bytes_max: chatring_wire::limits::FRAME_BYTES_MAX as u32,
        }));
    }

    pub(super) fn transmit_more(&mut self, request: RequestId) {
        self.transmits.push_back(ClientFrame::More { request });
    }

    fn pump_sync(&mut self, now: Millis) {
        if self.sync.is_some() || self.sync_at.is_none_or(|at| at > now) {
            return;
        }
        self.sync_at = None;
        let request = self.number();
        self.sync = Some(SyncRun { request, replaces_since: None, progress: now });
        let cursor = self.cursor.clone();
        self.transmits.push_back(ClientFrame::Sync { request, cursor });
    }

    fn pump_asks(&mut self, now: Millis) {
        while let Some((ticket, frame)) = self.asks.next(now, RequestId(self.next_request)) {
            let request = self.number();
            self.requests.insert(request, (Pending::Ask(ticket), now));
            self.transmits.push_back(frame);
        }
    }

    fn pump_fills(&mut self, now: Millis) {
        while self.fills_open < limits::FILLS_MAX {
            let Some((at, cid)) = self.fills.first().copied() else { return };
            if at > now {
                return;
            }
            self.set_fill(cid, Fill::Idle);
            let hole = self.channels.get(&cid).and_then(|channel| channel.hole());
            let Some((from, to)) = hole else { continue };
            let request = self.number();
            self.set_fill(cid, Fill::Asked);
            self.fills_open += 1;
            self.out.stats.fills += 1;
            self.requests.insert(request, (Pending::Fill(cid), now));
            self.transmits.push_back(ClientFrame::Range(RangeRequest {
                request,
                cid,
                from,
                to,
                limit: 0,
                direction: Direction::Ascending,
            }));
        }
    }

    fn pump_sends(&mut self, now: Millis, open_max: usize) {
        self.outbox.wake(now);
        while self.outbox.open() < open_max {
            let request = RequestId(self.next_request);
            let channels = &self.channels;
            let seen = |cid| channels.get(&cid).map_or(Seq(0), |channel| channel.record.head);
            let next = self.outbox.next_send(request, seen, &mut self.out);
            let Some((key, send)) = next else { return };
            self.number();
            self.requests.insert(request, (Pending::Send(key), now));
            self.transmits.push_back(ClientFrame::Send(send));
        }
    }

    /// Says markers again that no sync has shown.
    pub(super) fn repeat_marks(&mut self) {
        for channel in self.channels.values() {
            let (read, received) = channel.record.marks;
            if read.0 > 0 || received.0 > 0 {
                let cid = channel.record.cid;
                self.transmits.push_back(ClientFrame::Mark { cid, read, received });
            }
        }
    }

    /// Looks whether a channel misses something, and arranges that it is read.
    pub(super) fn judge(&mut self, now: Millis, cid: Cid) {
        let Some(channel) = self.channels.get(&cid) else { return };
        let hole = channel.hole();
        match (hole, channel.fill) {
            (None, Fill::At(_)) => self.set_fill(cid, Fill::Idle),
            (Some(_), Fill::Idle) => {
                self.out.stats.gaps += 1;
                let patience = if self.outbox.is_open(cid) { limits::GAP_PATIENCE_MS } else { 0 };
                self.set_fill(cid, Fill::At(now.after(patience)));
            }
            _ => {}
        }
    }

    pub(super) fn set_fill(&mut self, cid: Cid, fill: Fill) {
        let Some(channel) = self.channels.get_mut(&cid) else { return };
        if let Fill::At(at) = channel.fill {
            self.fills.remove(&(at, cid));
        }
        if let Fill::At(at) = fill {
            self.fills.insert((at, cid));
        }
        channel.fill = fill;
    }

    pub(super) fn want_sync(&mut self, now: Millis) {
        if self.sync.is_none() && self.sync_at.is_none() {
            self.sync_at = Some(now);
        }
    }

    pub(super) fn set_cursor(&mut self, cursor: Bytes) {
        if self.cursor != cursor {
            self.cursor = cursor.clone();
            self.cursor_write = Some(CacheWrite::Cursor(cursor));
        }
    }

    /// Notes that a channel's record is to be written.
    pub(super) fn touch(&mut self, cid: Cid) {
        if self.out.persist {
            self.dirty.insert(cid);
        }
    }

    pub(super) fn close(&mut self, code: CloseCode) {
        self.link = Link::Closing;
        self.close = Some(code);
        self.transmits.clear();
    }

    fn number(&mut self) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        request
    }
}
