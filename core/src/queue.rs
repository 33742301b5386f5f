//! The queue to another shard: bounded by credits, never blocking, never dropping.
//!
//! Requests are refused when the credits are used up, answers wait (there are no more of them than
//! requests that were taken), and notifications collapse to the newest of each user and channel.
//! How far this shard is goes out last, after all notifications.

use std::collections::{BTreeMap, VecDeque};

use chatring_wire::{Cid, Seq, Uid};

use crate::effect::ShardMessage;
use crate::kv::Version;

/// What waits for one shard, and what it may still be sent.
#[derive(Debug)]
pub(crate) struct ShardQueue {
    credit: u32,
    credit_max: u32,
    waiting: VecDeque<ShardMessage>,
    collapsed: BTreeMap<(Uid, Cid), (Seq, Version)>,
    /// There is one at a time.
    thus_far: Option<ShardMessage>,
    owed: u32,
}

/// Whether a message was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It goes out as it is.
    Yes,
    /// It is a notification and went into the one of its channel.
    Collapsed,
    /// It is a request and has to be refused.
    Refused,
}

impl ShardQueue {
    /// A queue with all its credits: so many messages may be under way.
    pub(crate) fn new(messages_max: u32) -> ShardQueue {
        ShardQueue {
            credit: messages_max,
            credit_max: messages_max,
            waiting: VecDeque::new(),
            collapsed: BTreeMap::new(),
            thus_far: None,
            owed: 0,
        }
    }

    /// Puts a message into the queue.
    pub(crate) fn push(&mut self, message: ShardMessage) -> Queued {
        let room = (self.waiting.len() as u32) < self.credit;
        match message {
            ShardMessage::Notify { uid, version, message }
                if !room || !self.collapsed.is_empty() =>
            {
                let newest = (message.row.seq, version);
                let entry = self.collapsed.entry((uid, message.cid)).or_insert(newest);
                *entry = (*entry).max(newest);
                Queued::Collapsed
            }
            ShardMessage::Send(_)
            | ShardMessage::OpenDirect { .. }
            | ShardMessage::Block(_)
            | ShardMessage::Typing { .. }
                if !room =>
            {
                Queued::Refused
            }
            message @ ShardMessage::ThusFar { .. } => {
                self.thus_far = Some(message);
                Queued::Yes
            }
            message => {
                self.waiting.push_back(message);
                Queued::Yes
            }
        }
    }

    /// What may go out now.
    pub(crate) fn take(&mut self) -> Vec<ShardMessage> {
        let mut out = Vec::new();
        // Credits go back in a few large steps, and long before the other side has none left.
        if self.owed > self.credit_max / 4 {
            out.push(ShardMessage::Credit { messages: std::mem::take(&mut self.owed) });
        }
        let count = self.waiting.len().min(self.credit as usize);
        self.credit -= count as u32;
        out.extend(self.waiting.drain(..count));
        while self.waiting.is_empty() && self.credit > 0 {
            let Some(((uid, cid), (seq, version))) = self.collapsed.pop_first() else { break };
            self.credit -= 1;
            out.push(ShardMessage::NotifyCollapsed { uid, cid, seq, version });
        }
        if self.is_empty()
            && self.credit > 0
            && let Some(thus_far) = self.thus_far.take()
        {
            self.credit -= 1;
            out.push(thus_far);
        }
        out
    }

    /// The other shard has taken in so many.
    pub(crate) fn credited(&mut self, messages: u32) {
        self.credit = (self.credit + messages).min(self.credit_max);
    }

    /// So many of the other shard's messages were taken in here.
    pub(crate) fn received(&mut self, messages: u32) {
        self.owed += messages;
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.collapsed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chatring_wire::frame::{MessageKind, Row};
    use chatring_wire::{Cmid, DeviceId, MemberNumber, Ordinal};

    use super::*;
    use crate::effect::{Origins, Stored};

    fn notify(seq: u64) -> ShardMessage {
        let row = Row {
            seq: Seq(seq),
            ordinal: Ordinal(seq),
            kind: MessageKind::TEXT,
            sender: MemberNumber(0),
            device: DeviceId(1),
            cmid: Cmid([0; 16]),
            time_ms: 1,
            body: Bytes::new(),
        };
        let message = Stored { cid: Cid(seq), uid: Uid(1), row, origins: Origins::None };
        ShardMessage::Notify { uid: Uid(1), version: Version(seq), message }
    }

    #[test]
    fn how_far_a_shard_is_goes_out_after_every_notification_before_it() {
        let mut queue = ShardQueue::new(2);
        for seq in 1..=4 {
            queue.push(notify(seq));
        }
        let thus_far = ShardMessage::ThusFar { claimed: Version(0) };
        assert_eq!(queue.push(thus_far.clone()), Queued::Yes);
        assert_eq!(queue.take().len(), 2, "as many as there are credits");
        let collapsed =
            |message: &ShardMessage| matches!(message, ShardMessage::NotifyCollapsed { .. });
        queue.credited(2);
        assert!(queue.take().iter().all(collapsed));
        assert_eq!(queue.take(), [], "it takes a credit, too");
        queue.credited(1);
        assert_eq!(queue.take(), [thus_far]);
    }
}
