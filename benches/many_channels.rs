//! A user with 300 channels, and the cursors with which it comes back.

use bytes::Bytes;

use crate::one_shard::OneShard;

const MESSAGES_PER_CHANNEL: usize = 5;
/// A session has at most 256 sends open.
const SENDS_PER_TURN: usize = 100;
/// Channels of which a sync gives the newest messages; of the others it gives heads.
const CHANNELS_WITH_PAGES: usize = 64;
/// Channels with a new message since the short absence.
const CHANNELS_CHANGED: usize = 3;

/// A node with the user `me`, who is signed in from device 1.
pub struct ManyChannels {
    node: OneShard,
    short: Bytes,
    now: Bytes,
}

/// After which absence the user comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It was never there.
    Endless,
    /// Three of its channels have a new message.
    Short,
    /// Nothing has changed.
    None,
}

impl ManyChannels {
    /// How many channels the user has.
    pub const CHANNELS: usize = 300;

    /// Makes the channels and their messages.
    pub fn new() -> ManyChannels {
        let body = Bytes::from_static(b"twenty bytes of text");
        let mut node = OneShard::new();
        let (me, _) = node.sign_in("me", 1, Bytes::new());
        let mut pairs = Vec::with_capacity(ManyChannels::CHANNELS);
        for n in 0..ManyChannels::CHANNELS {
            let name = format!("peer-{n}");
            let (peer, _) = node.sign_in(&name, 1, Bytes::new());
            pairs.push(node.open(me, peer, &name));
        }
        for _ in 0..MESSAGES_PER_CHANNEL {
            pairs.chunks_mut(SENDS_PER_TURN).for_each(|pairs| node.talk(pairs, &body));
        }
        let (other, before) = node.sign_in("me", 2, Bytes::new());
        node.sign_out(other);
        node.talk(&mut pairs[..CHANNELS_CHANGED], &body);
        let (other, now) = node.sign_in("me", 2, before.cursor.clone());
        node.sign_out(other);
        ManyChannels { node, short: before.cursor, now: now.cursor }
    }

    /// The user comes back with its second device, is brought up to date, and goes.
    pub fn sync(&mut self, absence: Absence) {
        let whole = CHANNELS_WITH_PAGES * MESSAGES_PER_CHANNEL + CHANNELS_CHANGED;
        let (cursor, heads, messages) = match absence {
            Absence::Endless => (Bytes::new(), ManyChannels::CHANNELS, whole),
            Absence::Short => (self.short.clone(), CHANNELS_CHANGED, CHANNELS_CHANGED),
            Absence::None => (self.now.clone(), 0, 0),
        };
        let (session, synced) = self.node.sign_in("me", 2, cursor);
        assert_eq!((synced.heads, synced.messages), (heads, messages));
        self.node.sign_out(session);
    }
}

impl Default for ManyChannels {
    fn default() -> ManyChannels {
        ManyChannels::new()
    }
}
