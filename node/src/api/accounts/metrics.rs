//! What the accounts of this process have done, for the scraper.

use std::sync::atomic::{AtomicU64, Ordering};

use super::password::Passwords;
use crate::metrics::{Metric, MetricValue};

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub sign_ups: Count,
    pub sign_ups_refused: Count,
    pub sign_ups_limited: Count,
    pub log_ins: Count,
    pub log_ins_wrong: Count,
    pub log_ins_limited: Count,
    pub busy: Count,
    pub refreshes: Count,
    pub refreshes_repeated: Count,
    pub refreshes_dead: Count,
    pub refresh_reuses: Count,
    pub log_outs: Count,
    pub projections: Count,
    pub tasks_done: Count,
    pub tasks_failed: Count,
    pub tasks_dead: Count,
    pub database_errors: Count,
}

#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Figures {
    pub(super) fn metrics(&self, passwords: &Passwords, revoked: usize) -> Vec<Metric> {
        let counters = [
            ("sign_ups", "accounts made", &self.sign_ups),
            ("sign_ups_refused", "sign-ups refused for their fields", &self.sign_ups_refused),
            ("sign_ups_limited", "sign-ups refused as too many", &self.sign_ups_limited),
            ("log_ins", "log-ins that succeeded", &self.log_ins),
            ("log_ins_wrong", "log-ins with a wrong handle or password", &self.log_ins_wrong),
            ("log_ins_limited", "passwords refused as too many attempts", &self.log_ins_limited),
            ("busy", "requests refused because the queue of passwords was full", &self.busy),
            ("refreshes", "refresh tokens exchanged", &self.refreshes),
            ("refreshes_repeated", "lost answers given again", &self.refreshes_repeated),
            (
                "refreshes_dead",
                "refresh tokens that were none or had expired",
                &self.refreshes_dead,
            ),
            (
                "refresh_reuses",
                "exchanged tokens used again, each ended a log-in",
                &self.refresh_reuses,
            ),
            ("log_outs", "log-ins ended by their user", &self.log_outs),
            ("projections", "changes that the chat store has taken over", &self.projections),
            ("tasks_done", "tasks done", &self.tasks_done),
            ("tasks_failed", "attempts of tasks that failed", &self.tasks_failed),
            ("tasks_dead", "tasks that went to the dead letters", &self.tasks_dead),
            (
                "database_errors",
                "sign-ups, log-ins and exchanges that the database failed",
                &self.database_errors,
            ),
        ];
        let counters =
            counters.map(|(name, help, count)| (name, help, MetricValue::Counter(count.get())));
        let rest = [
            (
                "password_hashes",
                "passwords hashed, right and wrong ones",
                MetricValue::Counter(passwords.hashed()),
            ),
            (
                "password_jobs_skipped",
                "password jobs that nobody waited for",
                MetricValue::Counter(passwords.skipped()),
            ),
            (
                "password_queue",
                "password jobs that wait",
                MetricValue::Gauge(passwords.queued() as u64),
            ),
            (
                "revoked_log_ins",
                "ended log-ins whose tokens have not expired",
                MetricValue::Gauge(revoked as u64),
            ),
        ];
        let all = counters.into_iter().chain(rest);
        let name = |name| format!("chatring_accounts_{name}");
        all.map(|(n, help, value)| Metric::new(&name(n), help, value)).collect()
    }
}
