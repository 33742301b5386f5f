//! How far everything that is committed has been notified here, so that the positions of calls can
//! move without a read of the inbox.
//!
//! ```text
//!  this shard: R = the newest version notified here ── HowFar ──▶ every shard, this one too
//!  each of them: once the groups submitted before that are stored and notified ── ThusFar ──▶
//!  this shard: all have said so: every commit up to R has been notified here, or was lost aloud
//! ```
//!
//! R was given to somebody before the question went out, so what a shard submits after it has the
//! question commits above R. Notifications and the answer go the same way, in their order. Commits
//! of a dead process are notified by nobody: they lie below the version at which their shard was
//! claimed, and positions below that of any shard move by a read alone.
//!
//! No time is set to it, because nothing of it can be lost: question and answer are never refused
//! by a queue, and the answer comes when the commits before it do or with the end of the process.
//! While a store takes its time, so does this, and a feed whose list is full moves by a read.

use std::collections::BTreeSet;

use chatring_wire::Uid;

use crate::effect::{ShardId, ShardMessage};
use crate::kv::Version;
use crate::sabotage::Break;
use crate::shard::Shard;

/// A shard's part in this, as one that asks and as one that is asked.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// The newest version notified here.
    newest: Version,
    /// The version up to which it is asked, and how many shards have yet to answer.
    asked: Option<(Version, u16)>,
    /// Users whose feeds wait for that.
    waiting: BTreeSet<Uid>,
    /// Users whose feeds wait for the next time.
    next: BTreeSet<Uid>,
    /// Commits of dead processes lie below.
    pub(crate) claimed: Version,
    /// Shards that asked, and the group after whose notification they are answered.
    owed: Vec<(ShardId, u64)>,
}

impl Shard {
    /// A message at or below this version was notified here.
    pub(crate) fn reach_grows(&mut self, version: Version) {
        self.reach.newest = self.reach.newest.max(version);
    }

    /// The cursors of a user's calls grow: all shards are asked how far they are.
    pub(crate) fn want_reach(&mut self, uid: Uid) {
        let calls = self.users.get_mut(&uid).and_then(|user| user.calls.as_mut());
        let Some(feed) = calls.and_then(|calls| calls.feed.as_mut()) else { return };
        if !std::mem::replace(&mut feed.awaits_reach, true) {
            self.reach.next.insert(uid);
            self.ask_how_far();
        }
    }

    fn ask_how_far(&mut self) {
        if self.reach.asked.is_some() || self.reach.next.is_empty() {
            return;
        }
        self.counters.reaches += 1;
        self.reach.waiting = std::mem::take(&mut self.reach.next);
        self.reach.asked = Some((self.reach.newest, self.config.shards));
        let asker = self.config.shard;
        for shard in 0..self.config.shards {
            self.tell_shard(ShardId(shard), ShardMessage::HowFar { asker });
        }
    }

    /// A shard asks how far this one is.
    pub(crate) fn asked_how_far(&mut self, asker: ShardId) {
        let submitted = self.lane.as_ref().map_or(0, |lane| lane.progress().0);
        let waits = !self.config.breaks.has(Break::ReachNotAwaited);
        self.reach.owed.push((asker, if waits { submitted } else { 0 }));
        self.say_how_far();
    }

    /// Answers those for whom enough is notified.
    pub(crate) fn say_how_far(&mut self) {
        if self.reach.owed.is_empty() {
            return;
        }
        let Some(lane) = &self.lane else { return };
        let (stored, claimed) = (lane.stored(), lane.claimed());
        let mut owed = std::mem::take(&mut self.reach.owed);
        for (asker, _) in owed.extract_if(.., |(_, group)| *group <= stored) {
            self.tell_shard(asker, ShardMessage::ThusFar { claimed });
        }
        self.reach.owed = owed;
    }

    /// A shard has notified what was asked for.
    pub(crate) fn reached(&mut self, claimed: Version) {
        self.reach.claimed = self.reach.claimed.max(claimed);
        let Some((version, missing)) = &mut self.reach.asked else { return };
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        let version = *version;
        self.reach.asked = None;
        for uid in std::mem::take(&mut self.reach.waiting) {
            let calls = self.users.get_mut(&uid).and_then(|user| user.calls.as_mut());
            if let Some(feed) = calls.and_then(|calls| calls.feed.as_mut()) {
                feed.reaches_to(version);
            }
        }
        self.ask_how_far();
    }
}
