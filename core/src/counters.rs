//! What a shard counts. One writer each; the node sums them over its shards when it is asked.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $kind:ident, $help:literal;)*) => {
        /// Counts since the start (`Counter`) and present numbers (`Gauge`) of one shard.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $(#[doc = $help] pub $name: u64,)* }

        impl Counters {
            /// Name, kind, help text and value of each, in the order of declaration.
            pub fn each(&self) -> Vec<(&'static str, CounterKind, &'static str, u64)> {
                vec![$((stringify!($name), CounterKind::$kind, $help, self.$name)),*]
            }

            /// Adds another shard's.
            pub fn add(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

/// Whether a value only rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// Only rises.
    Counter,
    /// May fall.
    Gauge,
}

counters! {
    sessions: Gauge, "live sessions";
    sessions_attached: Counter, "sessions that were attached";
    sessions_refused: Counter, "attaches that were refused";
    sessions_ended: Counter, "sessions that a decision of the accounts ended";
    sessions_behind: Counter, "times a session's window was full";
    sends: Counter, "sends taken from sessions";
    sends_stored: Counter, "messages stored";
    sends_repeated: Counter, "sends answered with the message of an earlier one";
    sends_refused: Counter, "sends refused";
    sends_unknown: Counter, "sends that were open for too long";
    pushes: Counter, "pushes to sessions";
    groups: Counter, "groups submitted to the store";
    groups_committed: Counter, "groups that are stored";
    lane_settles: Counter, "times a lane stopped and was settled";
    lane_appends: Gauge, "appends waiting in the lane";
    lane_append_bytes: Gauge, "bytes of appends waiting in the lane";
    lane_committing: Gauge, "appends in groups that the store has yet to answer";
    dedupe_scans: Counter, "scans for repeats in stored messages";
    channels: Gauge, "channels in memory";
    users: Gauge, "users in memory";
    syncs: Counter, "syncs started";
    sync_rows: Counter, "rows read for syncs";
    syncs_replaced: Counter, "syncs that replaced the client's cache";
    audits: Counter, "audits of live sessions";
    audit_repairs: Counter, "channels that an audit found behind";
    markers_written: Counter, "marker rows written";
    notifications: Counter, "notifications sent to members' shards";
    notifications_collapsed: Counter, "notifications that a full queue collapsed";
    shard_messages: Counter, "messages sent to other shards";
    shard_queue_full: Counter, "sends refused because the queue to another shard was full";
    rate_limited: Counter, "requests refused by a user's token bucket";
    rows_damaged: Counter, "stored rows that did not parse";
    calls: Gauge, "calls under way, parked ones among them";
    calls_parked: Gauge, "syncs that wait for something new";
    calls_taken: Counter, "calls taken";
    calls_refused: Counter, "calls refused";
    callers: Gauge, "users kept in memory for their calls";
    call_syncs: Counter, "syncs of calls that read the user's inbox";
    call_rows: Counter, "rows read for calls";
    call_events: Counter, "events given to calls as they came";
    reaches: Counter, "times all shards were asked how far they have notified what is stored";
    feeds_lost: Counter, "times what a user was notified of was lost to a full queue";
    sends_looked_up: Counter, "sends without a base that were looked up in the store";
    store_requests: Gauge, "store requests under way";
}
