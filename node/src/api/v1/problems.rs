//! What goes wrong with accounts, as a problem.

use chatring_wire::ErrorCode;

use crate::api::accounts::AccountError;
use crate::api::problem::Problem;

impl From<AccountError> for Problem {
    fn from(error: AccountError) -> Problem {
        let detail = error.to_string();
        let code = match &error {
            AccountError::Invalid { field, reason } => return Problem::invalid(*field, reason),
            AccountError::Handle(reason) => return Problem::invalid("handle", reason.to_string()),
            AccountError::HandleTaken => ErrorCode::HandleTaken,
            AccountError::WrongCredentials => ErrorCode::WrongCredentials,
            AccountError::DeadToken => ErrorCode::InvalidToken,
            AccountError::InstallationRemoved => ErrorCode::RevokedToken,
            AccountError::SignUpClosed => ErrorCode::SignUpClosed,
            AccountError::UnknownUser => ErrorCode::UnknownUser,
            AccountError::UnknownDevice => ErrorCode::UnknownDevice,
            AccountError::Blocked => ErrorCode::Blocked,
            AccountError::LimitReached { .. } => ErrorCode::LimitReached,
            AccountError::Limited { retry_after_ms } | AccountError::Busy { retry_after_ms } => {
                let busy = Problem::new(ErrorCode::Busy).detail(detail);
                return busy.retry_after_ms(*retry_after_ms);
            }
            AccountError::Database(cause) => {
                tracing::warn!(%cause, "the accounts cannot be reached");
                ErrorCode::Unavailable
            }
        };
        Problem::new(code).detail(detail)
    }
}
