//! What the server's frames do to a session.

use chatring_wire::frame::{CacheAction, Failure, Head, Page, RequestId, Row, Welcome};
use chatring_wire::{
    Cid, CloseCode, Cmid, DeviceId, ErrorClass, ErrorCode, Ordinal, Seq, ServerFrame,
};

use super::channel::{Channel, Fill, HeadSource};
use super::config::Millis;
use super::event::{End, Event};
use super::link::{Link, Live};
use super::out::Taken;
use super::outbox::SendKey;
use super::{Pending, Session, SyncRun, limits};
use crate::cache::CacheWrite;

/// Why a connection is given up.
pub(super) struct Broken;

impl Session {
    /// A frame came.
    pub fn handle_frame(&mut self, now: Millis, frame: ServerFrame) {
        let result = match &self.link {
            Link::Hello { .. } => self.take_first(now, frame),
            Link::Live(_) => self.take(now, frame),
            Link::Down { .. } | Link::Closing | Link::Ended(_) => return,
        };
        if let Err(Broken) = result {
            self.close(CloseCode::Never);
        }
        self.pump(now);
    }

    fn take_first(&mut self, now: Millis, frame: ServerFrame) -> Result<(), Broken> {
        match frame {
            ServerFrame::Welcome(welcome) => self.take_welcome(now, welcome),
            ServerFrame::Error(error) => self.reconnect.error = Some(error),
            ServerFrame::Drain { after_ms, spread_ms } => self.take_drain(now, after_ms, spread_ms),
            _ => return Err(Broken),
        }
        Ok(())
    }

    fn take_drain(&mut self, now: Millis, after_ms: u32, spread_ms: u32) {
        self.reconnect.drain = Some((now.after(u64::from(after_ms)), spread_ms));
    }

    fn take_welcome(&mut self, now: Millis, welcome: Welcome) {
        let (uid, history) = (welcome.uid, welcome.history);
        if let Some(cached) = self.uid.filter(|cached| *cached != uid) {
            self.end = Some(End::OtherUser { cached, given: uid });
            self.close(CloseCode::Normal);
            return;
        }
        if self.history.is_some_and(|cached| cached != history) {
            self.drop_history();
        }
        if self.uid != Some(uid) || self.history != Some(history) {
            self.out.write(CacheWrite::Owner { uid, history });
            self.uid = Some(uid);
            self.history = Some(history);
        }
        self.device = Some(welcome.device);
        let body_bytes_max = welcome.body_bytes_max as usize;
        self.body_bytes_max = body_bytes_max.min(chatring_wire::limits::BODY_BYTES_MAX);
        self.out.stats.connections += 1;
        self.out.event(Event::Connected {
            uid,
            device: welcome.device,
            time_ms: welcome.time_ms,
            durability: welcome.durability,
        });
        for channel in self.channels.values_mut() {
            channel.delivered_at_attach = channel.record.delivered;
        }
        self.link = Link::Live(Live::new(now, welcome));
        self.sync = Some(SyncRun { request: RequestId(0), replaces_since: None, progress: now });
    }

    /// Another history: nothing that was seen of the old one holds. The outbox stays.
    fn drop_history(&mut self) {
        for cid in std::mem::take(&mut self.channels).into_keys() {
            self.out.write(CacheWrite::DropChannel(cid));
        }
        self.fills.clear();
        self.strangers.clear();
        self.dirty.clear();
        self.set_cursor(bytes::Bytes::new());
        self.outbox.forget_bases(&mut self.out);
        self.out.event(Event::CacheDropped);
    }

    fn take(&mut self, now: Millis, frame: ServerFrame) -> Result<(), Broken> {
        match frame {
            ServerFrame::Text { .. } | ServerFrame::Entry { .. } | ServerFrame::Marker { .. } => {
                self.take_push(now, frame)
            }
            ServerFrame::Sent { request, cid, seq, time_ms } => {
                self.take_sent(now, request, cid, seq, time_ms)
            }
            ServerFrame::Refused { request, error } => {
                self.take_refused(now, request, error);
                Ok(())
            }
            ServerFrame::Unknown { request } => {
                match self.requests.remove(&request) {
                    Some((Pending::Send(key), _)) => self.outbox.requeue(key, now, None),
                    Some((Pending::Ask(ticket), _)) => self.asks.requeue(ticket, now),
                    Some((Pending::Fill(cid), _)) => self.fill_again(cid, now),
                    Some((Pending::Refresh, _)) | None => {}
                }
                Ok(())
            }
            ServerFrame::Continue { request, checked_to } => {
                check_seq(checked_to)?;
                if let Some((Pending::Send(key), _)) = self.requests.remove(&request) {
                    self.outbox.rebase(key, checked_to, &mut self.out);
                }
                Ok(())
            }
            ServerFrame::Done { request } => {
                if let Some((Pending::Ask(ticket), _)) = self.requests.remove(&request)
                    && self.asks.remove(ticket)
                {
                    self.out.event(Event::Done { ticket });
                }
                Ok(())
            }
            ServerFrame::Opened { request, head } => self.take_opened(now, request, &head),
            ServerFrame::Rows { request, page } => self.take_rows(now, request, page),
            ServerFrame::Members { request, cid, members } => {
                if let Some((Pending::Ask(ticket), _)) = self.requests.remove(&request)
                    && self.asks.remove(ticket)
                {
                    self.out.event(Event::Members { ticket, cid, members });
                }
                Ok(())
            }
            ServerFrame::Syncing { .. }
            | ServerFrame::Head(_)
            | ServerFrame::Page(_)
            | ServerFrame::PageEnd { .. }
            | ServerFrame::Synced { .. }
            | ServerFrame::Behind => self.take_sync(now, frame),
            ServerFrame::Pong { pushes, .. } => {
                self.take_pong(now, pushes);
                Ok(())
            }
            ServerFrame::Drain { after_ms, spread_ms } => {
                self.take_drain(now, after_ms, spread_ms);
                Ok(())
            }
            ServerFrame::Error(error) => {
                self.reconnect.error = Some(error);
                Ok(())
            }
            ServerFrame::Welcome(_) => Err(Broken),
        }
    }

    fn take_pong(&mut self, now: Millis, pushes: u64) {
        let Link::Live(live) = &mut self.link else { return };
        live.heard(now);
        if live.pushes != pushes {
            self.out.stats.count_mismatches += 1;
            self.close(CloseCode::Reconnect);
        }
    }

    fn take_push(&mut self, now: Millis, frame: ServerFrame) -> Result<(), Broken> {
        let bytes = match &frame {
            ServerFrame::Text { body, .. } => body.len(),
            ServerFrame::Entry { row, .. } => row.body.len(),
            _ => 0,
        };
        if let Link::Live(live) = &mut self.link {
            live.push(now, bytes);
        }
        self.out.stats.pushes += 1;
        match frame {
            ServerFrame::Text { cid, seq, sender, time_ms, body } => {
                let kind = chatring_wire::frame::MessageKind::TEXT;
                let (device, cmid) = (DeviceId(0), Cmid([0; 16]));
                let ordinal = Ordinal(0);
                let row = Row { seq, ordinal, kind, sender, device, cmid, time_ms, body };
                self.take_row(now, cid, row, false)
            }
            ServerFrame::Entry { cid, row } => self.take_row(now, cid, row, true),
            ServerFrame::Marker { cid, read, read_ordinal, received } => {
                if let Some(channel) = self.channels.get_mut(&cid) {
                    let record = &mut channel.record;
                    record.read = record.read.max(read);
                    record.read_ordinal = record.read_ordinal.max(read_ordinal);
                    record.received = record.received.max(received);
                    self.touch(cid);
                    self.out.event(Event::Channel { cid });
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A single message came, pushed or by the answer to an own send.
    fn take_row(&mut self, now: Millis, cid: Cid, row: Row, exact: bool) -> Result<(), Broken> {
        check_seq(row.seq)?;
        if row.seq.0 == 0 {
            return Err(Broken);
        }
        let Some(channel) = self.channels.get_mut(&cid) else {
            self.meet_stranger(now, cid, row.seq);
            return Ok(());
        };
        // What comes live is not missing from a sync that opens after it.
        channel.seen_in = self.syncs + 1;
        channel.accept(row, exact, &mut self.out);
        self.touch(cid);
        self.judge(now, cid);
        Ok(())
    }

    /// A channel that no head has introduced: what came of it is read again once a sync has.
    fn meet_stranger(&mut self, now: Millis, cid: Cid, seq: Seq) {
        if self.strangers.len() < limits::STRANGERS_MAX || self.strangers.contains_key(&cid) {
            let reaches = self.strangers.entry(cid).or_insert(seq);
            *reaches = seq.max(*reaches);
        }
        self.want_sync(now);
    }

    fn take_sent(
        &mut self,
        now: Millis,
        request: RequestId,
        cid: Cid,
        seq: Seq,
        time_ms: u64,
    ) -> Result<(), Broken> {
        check_seq(seq)?;
        let settled = match self.requests.remove(&request) {
            Some((Pending::Send(key), _)) if key.cid == cid => {
                self.outbox.settle(key).map(|settled| (key, settled))
            }
            Some((Pending::Send(_), _)) => return Err(Broken),
            _ => None,
        };
        let Some((SendKey { number, .. }, sent)) = settled else {
            if let Some(channel) = self.channels.get_mut(&cid) {
                channel.reaches(seq);
                self.touch(cid);
                self.judge(now, cid);
            }
            return Ok(());
        };
        let stored = Event::Stored { cid, cmid: sent.cmid, seq, time_ms };
        self.out.events.push_back((stored, Taken::Settled { number }));
        let Some(me) = self.channels.get(&cid).map(|channel| channel.record.me) else {
            self.meet_stranger(now, cid, seq);
            return Ok(());
        };
        let row = Row {
            seq,
            ordinal: Ordinal(0),
            kind: sent.kind,
            sender: me,
            device: self.device.unwrap_or(DeviceId(0)),
            cmid: sent.cmid,
            time_ms,
            body: sent.body,
        };
        self.take_row(now, cid, row, false)
    }

    fn take_refused(&mut self, now: Millis, request: RequestId, error: Failure) {
        let pause = retry_pause(&error);
        match self.requests.remove(&request) {
            Some((Pending::Send(key), _)) => {
                if error.code == Ok(ErrorCode::OutOfOrder) {
                    self.outbox.requeue(key, now, None);
                } else if let Some(pause) = pause {
                    self.outbox.requeue(key, now, Some(pause));
                } else if let Some(settled) = self.outbox.settle(key) {
                    let refused = Event::SendRefused { cid: key.cid, cmid: settled.cmid, error };
                    self.out.events.push_back((refused, Taken::Settled { number: key.number }));
                }
            }
            Some((Pending::Ask(ticket), _)) => {
                if let Some(pause) = pause {
                    self.asks.requeue(ticket, now.after(pause));
                } else if self.asks.remove(ticket) {
                    self.out.event(Event::AskRefused { ticket, error });
                }
            }
            Some((Pending::Fill(cid), _)) => self.fill_refused(now, cid, pause, &error),
            Some((Pending::Refresh, _)) => self.reconnect.error = Some(error),
            None => {
                // The number of a sync: it failed and is to be asked for again.
                if self.sync.as_ref().is_some_and(|run| run.request == request) {
                    self.sync = None;
                    let pause = pause.unwrap_or(limits::RETRY_MS_DEFAULT);
                    self.sync_at = Some(now.after(pause));
                }
            }
        }
    }

    fn fill_refused(&mut self, now: Millis, cid: Cid, pause: Option<u64>, error: &Failure) {
        self.fills_open -= 1;
        let at = now.after(pause.unwrap_or(limits::RETRY_MS_DEFAULT));
        self.set_fill(cid, Fill::At(at));
        let peer = self.channels.get(&cid).and_then(|channel| channel.record.peer);
        if let (Ok(ErrorCode::Expired), Some(peer)) = (error.code, peer) {
            // The floor has risen: the head tells where it is now. A full table asks again later.
            let _ =
                self.asks.push(super::asks::Ask::Open(chatring_wire::frame::UserRef::Uid(peer)));
        }
    }

    fn fill_again(&mut self, cid: Cid, at: Millis) {
        self.fills_open -= 1;
        self.set_fill(cid, Fill::At(at));
    }

    fn take_opened(&mut self, now: Millis, request: RequestId, head: &Head) -> Result<(), Broken> {
        self.take_head(now, head, HeadSource::Opened)?;
        if let Some((Pending::Ask(ticket), _)) = self.requests.remove(&request)
            && self.asks.remove(ticket)
        {
            self.out.event(Event::Opened { ticket, cid: head.cid });
        }
        Ok(())
    }

    fn take_head(&mut self, now: Millis, head: &Head, source: HeadSource) -> Result<(), Broken> {
        check_seq(head.head)?;
        check_seq(head.floor)?;
        let cid = head.cid;
        if let Some(channel) = self.channels.get_mut(&cid) {
            channel.update(head, source, &mut self.out);
        } else {
            let first = self.cursor.is_empty();
            let channel = Channel::new(&self.config, head, source, first);
            self.channels.insert(cid, channel);
        }
        let reaches = self.strangers.remove(&cid);
        if let Some(channel) = self.channels.get_mut(&cid) {
            channel.seen_in = self.syncs;
            if let Some(seq) = reaches {
                channel.reaches(seq);
            }
        }
        self.touch(cid);
        self.judge(now, cid);
        self.out.event(Event::Channel { cid });
        Ok(())
    }

    fn take_rows(&mut self, now: Millis, request: RequestId, page: Page) -> Result<(), Broken> {
        check_page(&page)?;
        let cid = page.cid;
        match self.requests.remove(&request) {
            Some((Pending::Fill(asked), _)) => {
                self.fills_open -= 1;
                if asked != cid {
                    return Err(Broken);
                }
                let Some(channel) = self.channels.get_mut(&cid) else { return Ok(()) };
                let before = channel.record.delivered;
                channel.fill = Fill::Idle;
                for row in page.rows {
                    channel.take_stored_row(row, &mut self.out);
                }
                if channel.record.delivered == before && channel.hole().is_some() {
                    self.set_fill(cid, Fill::At(now.after(limits::RETRY_MS_DEFAULT)));
                }
                self.touch(cid);
                self.judge(now, cid);
            }
            Some((Pending::Ask(ticket), _)) if self.asks.remove(ticket) => {
                self.out.event(Event::Rows { ticket, page });
            }
            _ => {}
        }
        Ok(())
    }

    fn take_sync(&mut self, now: Millis, frame: ServerFrame) -> Result<(), Broken> {
        if let Some(run) = &mut self.sync {
            run.progress = now;
        }
        match frame {
            ServerFrame::Syncing { cache, .. } => {
                self.syncs += 1;
                if cache == CacheAction::Replace {
                    self.take_replace();
                }
                Ok(())
            }
            ServerFrame::Head(head) => {
                let replaces = self.sync.as_ref().is_some_and(|run| run.replaces_since.is_some());
                let source = if replaces { HeadSource::Replace } else { HeadSource::Sync };
                self.take_head(now, &head, source)
            }
            ServerFrame::Page(page) => {
                check_page(&page)?;
                let cid = page.cid;
                let channel = self.channels.get_mut(&cid).ok_or(Broken)?;
                channel.take_page(page, &mut self.out);
                self.touch(cid);
                self.judge(now, cid);
                Ok(())
            }
            ServerFrame::PageEnd { request } => {
                self.transmit_more(request);
                Ok(())
            }
            ServerFrame::Synced { request, cursor } => {
                if cursor.len() > chatring_wire::limits::CURSOR_BYTES_MAX {
                    return Err(Broken);
                }
                self.take_synced(now, request, cursor);
                Ok(())
            }
            _ => {
                self.out.stats.behinds += 1;
                if let Link::Live(live) = &mut self.link {
                    live.hurry_ack(now);
                }
                self.sync = None;
                self.sync_at = Some(now);
                Ok(())
            }
        }
    }

    fn take_replace(&mut self) {
        let had = !self.cursor.is_empty();
        if let Some(run) = &mut self.sync {
            run.replaces_since = Some(self.syncs);
        }
        for channel in self.channels.values_mut() {
            channel.drop_rows(&mut self.out);
        }
        if had {
            self.out.event(Event::CacheDropped);
        }
    }

    fn take_synced(&mut self, now: Millis, request: RequestId, cursor: bytes::Bytes) {
        let run = self.sync.take_if(|run| run.request == request);
        let replaces_since = run.and_then(|run| run.replaces_since).unwrap_or(0);
        // An audit of the server counts what was pushed as given; only a sync from the cursor
        // before will name a channel that is not known yet.
        let attached = matches!(&self.link, Link::Live(live) if live.attached);
        let is_audit = attached && request == RequestId(0);
        if self.strangers.is_empty() || !is_audit {
            self.set_cursor(cursor);
        }
        self.drop_unlisted(replaces_since);
        self.judge_all(now);
        if !self.strangers.is_empty() && self.sync.is_none() {
            self.sync_at = Some(now.after(limits::RETRY_MS_DEFAULT));
        }
        self.reconnect.succeeded();
        if let Link::Live(live) = &mut self.link
            && !live.attached
        {
            live.attached = true;
            self.repeat_marks();
        }
        self.out.event(Event::Synced);
    }

    /// Drops channels that a replacing sync did not name. Empty ones may be known by `open` alone.
    fn drop_unlisted(&mut self, replaces_since: u64) {
        let gone: Vec<Cid> = self
            .channels
            .values()
            .filter(|channel| channel.seen_in < replaces_since && channel.record.head.0 > 0)
            .map(|channel| channel.record.cid)
            .collect();
        for cid in gone {
            self.set_fill(cid, Fill::Idle);
            self.channels.remove(&cid);
            self.out.write(CacheWrite::DropChannel(cid));
        }
    }

    /// Looks for holes: in all channels when the connection is new (a sync names only what
    /// changed), later in those whose page did not come.
    fn judge_all(&mut self, now: Millis) {
        let attached = matches!(&self.link, Link::Live(live) if live.attached);
        let waiting: Vec<Cid> = self
            .channels
            .values()
            .filter(|channel| channel.page_expected || (!attached && channel.hole().is_some()))
            .map(|channel| channel.record.cid)
            .collect();
        for cid in waiting {
            if let Some(channel) = self.channels.get_mut(&cid)
                && channel.page_expected
            {
                channel.page_missed(&mut self.out);
            }
            self.touch(cid);
            self.judge(now, cid);
        }
    }
}

/// Refuses positions that no server has.
fn check_seq(seq: Seq) -> Result<(), Broken> {
    if seq.0 < limits::SEQ_MAX { Ok(()) } else { Err(Broken) }
}

/// Refuses a page that does not hold exactly the messages that it says.
fn check_page(page: &Page) -> Result<(), Broken> {
    check_seq(page.from)?;
    check_seq(page.to)?;
    let expected = (page.to.0 + 1).saturating_sub(page.from.0);
    let dense = page.rows.iter().zip(page.from.0..).all(|(row, seq)| row.seq.0 == seq);
    if dense && page.rows.len() as u64 == expected { Ok(()) } else { Err(Broken) }
}

/// After how many milliseconds a refusal is worth another try, if it is.
fn retry_pause(error: &Failure) -> Option<u64> {
    let code = error.code.ok()?;
    let again = matches!(code.class(), ErrorClass::Busy | ErrorClass::Internal);
    let pause = error.retry_after_ms.map(|ms| u64::from(ms).min(limits::RETRY_MS_MAX));
    again.then(|| pause.unwrap_or(limits::RETRY_MS_DEFAULT).max(1))
}
