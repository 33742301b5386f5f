//! The users of a thread as sessions over WebSockets.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use chatring_client::{Config, Session, Start};
use tokio::task::JoinHandle;

use super::super::{RunError, SOCKETS};
use super::talk::{OUTBOX_ENTRIES_MAX, State, Talk};
use super::{Carrier, Common, user_name};
use crate::pool::{Pool, Wakers, new_session};
use crate::tally::Tally;

/// How long sessions may take to say goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// The sessions of one thread.
pub(super) struct Sessions {
    pool: Rc<Pool<Talk>>,
    wakers: Rc<Wakers>,
    tasks: RefCell<Vec<JoinHandle<Session>>>,
}

impl Sessions {
    /// Connects all of them.
    pub fn carry(common: &Common<'_>, state: State) -> Result<Sessions, RunError> {
        let users: Vec<u32> = state.users.iter().map(|user| user.number).collect();
        let wakers = Wakers::new(users.len());
        let talk = Talk::new(state, wakers.clone());
        let pool = Pool::new(talk, wakers.clone(), &common.options.node, common.origin);
        let pool = Rc::new(pool.map_err(RunError::io(SOCKETS))?);
        let carry = |(place, user): (usize, &u32)| {
            tokio::task::spawn_local(pool.clone().carry(place, session(common, *user)))
        };
        let tasks = users.iter().enumerate().map(carry).collect();
        Ok(Sessions { pool, wakers, tasks: RefCell::new(tasks) })
    }
}

fn session(common: &Common<'_>, user: u32) -> Session {
    let mut config = Config::dense("", Start::Head);
    config.outbox_entries_max = OUTBOX_ENTRIES_MAX;
    config.outbox_bytes_max = OUTBOX_ENTRIES_MAX * common.options.body;
    new_session(&common.key, &user_name(user), "direct", config)
}

impl Carrier for Sessions {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        self.pool.script.with(change)
    }

    fn wake(&self, place: usize) {
        self.wakers.wake(place);
    }

    fn wake_all(&self) {
        self.wakers.wake_all();
    }

    fn tally(&self) -> Tally {
        self.pool.tally()
    }

    fn trouble(&self) -> Option<String> {
        self.pool.failed_connects().1
    }

    async fn leave(&self) -> u64 {
        let end = tokio::time::Instant::now() + GOODBYE_MAX;
        let tasks = self.tasks.take();
        let mut reconnects = 0;
        for mut task in tasks {
            match tokio::time::timeout_at(end, &mut task).await {
                Ok(Ok(session)) => reconnects += session.stats().connections.saturating_sub(1),
                Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                Err(_elapsed) => task.abort(),
            }
        }
        reconnects
    }
}
