//! What a shard's runtime counts: one writer each, read by anybody.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

macro_rules! stats {
    ($($name:ident: $help:literal;)*) => {
        /// Counts of one shard since its start.
        #[derive(Debug, Default)]
        pub struct ShardStats {
            $(#[doc = $help] pub(super) $name: AtomicU64,)*
            /// The kernel's number of the shard's thread; 0 before it runs.
            pub(super) thread: AtomicI32,
        }

        /// The counts at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct StatValues { $(#[doc = $help] pub $name: u64,)* }

        impl ShardStats {
            /// Reads all of them.
            pub fn values(&self) -> StatValues {
                StatValues { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl StatValues {
            /// Name, help text and value of each, in the order of declaration.
            pub fn each(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $help, self.$name)),*]
            }

            /// Adds another shard's.
            pub fn add(&mut self, other: &StatValues) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

stats! {
    ticks: "ticks of the shard's clock";
    turns: "turns of the shard's loop";
    accepted: "connections accepted";
    accept_errors: "accepts that failed";
    adopted: "connections taken over from another shard";
    bytes_in: "bytes read from sockets";
    bytes_out: "bytes written to sockets";
    reads: "reads that gave bytes";
    writes: "writes that took bytes";
    ring_enters: "entries of the ring driver into the kernel";
    ring_waits: "entries of the ring driver into the kernel to wait there";
    ring_completions: "operations, or steps of them, that the kernel told the ring driver of";
    ring_gathers: "times that a shard on the ring let a turn wait for its store";
    ring_no_buffers: "receives that stopped because every buffer was full";
    ring_stops: "receives stopped because the connection's handler took no bytes";
    ring_cancels: "operations that the ring driver cancelled";
    ring_overflows: "times the completion queue had no room";
    ring_retries: "entries into the kernel that it could not serve at once";
    tls_handshakes: "handshakes of TLS that were made";
    tls_broken: "connections whose TLS, or what came in place of it, made no sense";
    panics: "panics caught";
    pulses: "times the watchdog woke the shard";
}

/// Adds to a count that only this thread writes.
pub(super) fn count(counter: &AtomicU64, add: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(add), Ordering::Relaxed);
}
