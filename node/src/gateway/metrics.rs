//! What a shard's connections count.

use chatring_core::counters::Counters;

use crate::rt::StatValues;

macro_rules! counters {
    ($($name:ident: $help:literal;)*) => {
        /// Counts of one shard since its start; `connections` is a present number.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct GatewayCounters { $(#[doc = $help] pub $name: u64,)* }

        impl GatewayCounters {
            /// Name, help text and value of each, in the order of declaration.
            pub fn each(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $help, self.$name)),*]
            }

            /// Adds another shard's.
            pub fn add(&mut self, other: &GatewayCounters) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    connections: "open connections";
    refused_full: "connections refused because a bound on their number was reached";
    http_answered: "requests answered without a WebSocket";
    http_handed: "connections handed to the HTTP API";
    handshakes_timed_out: "connections that said no hello in time";
    hellos_refused: "hellos refused";
    handovers: "connections handed to the shard that owns their user";
    messages_in: "WebSocket messages read";
    messages_out: "WebSocket messages written";
    frames_in: "frames read";
    frames_out: "frames written";
    frames_skipped: "frames of a later protocol version that were skipped";
    pings: "WebSocket pings answered";
    malformed: "connections closed because of what their peer sent";
    read_pauses: "times reading stopped because a peer was slow";
    overflows: "connections closed because a peer took nothing";
    posts_full: "times another shard's inbox was full";
}

/// What a shard makes known each tick.
#[derive(Clone, Debug, Default)]
pub struct Published {
    pub gateway: GatewayCounters,
    pub core: Counters,
}

/// Everything that one shard counts.
#[derive(Clone, Debug)]
pub struct ShardMetrics {
    /// Its runtime.
    pub rt: StatValues,
    /// Its connections.
    pub gateway: GatewayCounters,
    /// Its machine.
    pub core: Counters,
}
