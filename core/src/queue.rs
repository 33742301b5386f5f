//! The queue to another shard: bounded by credits, never blocking, never dropping.
//!
//! Requests are refused when the credits are used up, answers wait (there are no more of them than
//! requests that were taken), and notifications collapse to the newest of each user and channel.

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
