//! What is known of the kernel's scheduler that makes messages late.

use std::fs;

use tracing::warn;

/// 1 if the kernel gives cores to sessions of processes in turn, and within each to its threads.
const AUTOGROUP: &str = "/proc/sys/kernel/sched_autogroup_enabled";

/// Warns where the kernel's own threads, which syncs of the log need, may wait long for a core.
pub fn check() {
    // A kernel that cannot group has no such file.
    if fs::read_to_string(AUTOGROUP).is_ok_and(|value| value.trim() == "1") {
        warn!(
            "kernel.sched_autogroup_enabled is 1: syncs of the log may be late where cores are \
             busy; see \"The scheduler\" in docs/operating.md"
        );
    }
}
