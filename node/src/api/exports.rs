//! Which exports are under way: one of each user, and few in all.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use chatring_core::effect::Identity;
use chatring_wire::ErrorCode;

use super::limits::HTTP_EXPORTS_MAX;
use super::problem::Problem;

/// The exports under way.
#[derive(Debug, Default)]
pub(super) struct Exports {
    users: Mutex<HashSet<User>>,
}

/// The place of one of them, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Exporting {
    exports: Arc<Exports>,
    user: User,
}

/// A user by issuer and subject.
type User = (String, String);

impl Exports {
    /// A place for one more.
    ///
    /// # Errors
    /// `Busy` if the user has one, or there are as many as may be.
    pub(super) fn begin(self: &Arc<Exports>, identity: &Identity) -> Result<Exporting, Problem> {
        let user = (identity.issuer.clone(), identity.subject.clone());
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |detail| Err(Problem::new(ErrorCode::Busy).detail(detail));
        if users.contains(&user) {
            return busy("an export of yours is under way");
        }
        if users.len() >= HTTP_EXPORTS_MAX {
            return busy("too many exports are under way");
        }
        users.insert(user.clone());
        Ok(Exporting { exports: Arc::clone(self), user })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        let mut users = self.exports.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.remove(&self.user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(subject: String) -> Identity {
        let issuer = String::new();
        Identity { issuer, subject, issued_at_s: 0, expires_at_s: 1, installation: None }
    }

    #[test]
    fn a_user_has_one_export_and_all_together_few() {
        let exports = Arc::new(Exports::default());
        let begin = |n: usize| exports.begin(&user(n.to_string()));
        let mut held: Vec<_> = (0..HTTP_EXPORTS_MAX).map(|n| begin(n).expect("room")).collect();
        assert_eq!(begin(HTTP_EXPORTS_MAX).expect_err("full").code(), ErrorCode::Busy);
        held.pop();
        assert_eq!(begin(0).expect_err("has one").code(), ErrorCode::Busy);
        held.push(begin(HTTP_EXPORTS_MAX).expect("room again"));
        drop(held);
        assert_eq!(exports.count(), 0);
    }
}
