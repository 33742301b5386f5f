//! Passwords: Argon2id on threads of its own, behind a bounded queue.
//!
//! A hash costs tens of milliseconds and tens of megabytes on purpose, so it is what a flood of
//! log-ins aims at. The threads bound memory and cores, the queue bounds the wait, and a full queue
//! answers "busy". Jobs that nobody waits for any more are skipped.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use argon2::password_hash::phc::{Output, PasswordHash, Salt};
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::oneshot;
use tracing::{error, warn};
use unicode_normalization::UnicodeNormalization as _;

use super::error::AccountError;
use super::handle::Handle;
use super::limits::{BUSY_RETRY_MS, PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN};
use super::{OpenError, random};
use crate::config;

/// Bytes of a salt (RFC 9106, 3.1: 16 are enough for passwords).
const SALT_BYTES: usize = 16;
/// Bytes of a hash (RFC 9106, 4).
const HASH_BYTES: usize = 32;
/// How much later the threads come than everybody else: chat goes first.
const NICENESS: i32 = 10;

/// A password that keeps the rules, in its one spelling (NFKC, as NIST SP 800-63B asks).
#[derive(Clone)]
pub(super) struct Password(String);

/// The stored form: a PHC string.
pub(super) type Hashed = String;

/// How a password compares with what is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the one.
    Good {
        /// Set if the stored form was made with other parameters than today's.
        renewed: Option<Hashed>,
    },
    /// It is another one, or there was nothing to compare with.
    Wrong,
}

/// The threads and their queue.
#[derive(Debug)]
pub(super) struct Passwords {
    jobs: flume::Sender<Job>,
    counts: Arc<Counts>,
}

/// What the threads have done.
#[derive(Debug, Default)]
struct Counts {
    /// Runs of Argon2id, whatever they were for.
    hashed: AtomicU64,
    /// Jobs that nobody waited for any more.
    skipped: AtomicU64,
}

impl Password {
    /// A password for an account; says what is wrong with it.
    pub(super) fn choose(text: &str, handle: &Handle) -> Result<Password, AccountError> {
        let bad = |reason: String| AccountError::invalid("password", reason);
        let password = Password::given(text)
            .ok_or_else(|| bad(format!("has more than {PASSWORD_BYTES_MAX} bytes")))?;
        if password.0.chars().count() < PASSWORD_CHARS_MIN {
            return Err(bad(format!("has fewer than {PASSWORD_CHARS_MIN} characters")));
        }
        if password.0.to_lowercase() == handle.as_str() {
            return Err(bad("is the handle".to_owned()));
        }
        Ok(password)
    }

    /// A password to compare; `None` if it is longer than any can be.
    pub(super) fn given(text: &str) -> Option<Password> {
        (text.len() <= PASSWORD_BYTES_MAX).then(|| Password(text.nfkc().collect()))
    }
}

impl Passwords {
    /// Starts the threads. They end when this is dropped.
    pub(super) fn start(config: &config::Accounts) -> Result<Passwords, OpenError> {
        let lanes = config.password_lanes;
        let params = Params::new(
            config.password_memory_kib,
            config.password_passes,
            lanes,
            Some(HASH_BYTES),
        )
        .map_err(|error| OpenError::Passwords(error.to_string()))?;
        let threads = match config.password_threads {
            // Half of the cores: the shards keep the other half even if the kernel is unfair.
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get).div_ceil(2),
            threads => threads,
        };
        let counts = Arc::<Counts>::default();
        let hasher = Arc::new(Hasher {
            argon: Argon2::new(Algorithm::Argon2id, Version::V0x13, params),
            dummy: random::<HASH_BYTES>()?,
            counts: Arc::clone(&counts),
        });
        let (jobs, queue) = flume::bounded(config.password_queue_max);
        for n in 0..threads {
            let (hasher, queue) = (hasher.clone(), queue.clone());
            let work = move || {
                go_last();
                while let Ok(job) = queue.recv() {
                    hasher.run(job);
                }
            };
            std::thread::Builder::new()
                .name(format!("password-{n}"))
                .spawn(work)
                .map_err(|error| OpenError::Passwords(error.to_string()))?;
        }
        Ok(Passwords { jobs, counts })
    }

    /// What to store of a password.
    pub(super) async fn hash(&self, password: Password) -> Result<Hashed, AccountError> {
        let (answer, answered) = oneshot::channel();
        self.submit(Job::Hash { password, answer })?;
        answered.await.ok().flatten().ok_or(BUSY)
    }

    /// Compares a password with what is stored. Without anything stored it takes as long.
    pub(super) async fn verify(
        &self,
        password: Password,
        stored: Option<Hashed>,
    ) -> Result<Verdict, AccountError> {
        let (answer, answered) = oneshot::channel();
        self.submit(Job::Verify { password, stored, answer })?;
        answered.await.map_err(|_| BUSY)
    }

    /// Jobs that wait.
    pub(super) fn queued(&self) -> usize {
        self.jobs.len()
    }

    /// Runs of Argon2id, for what was to be stored and for what was compared.
    pub(super) fn hashed(&self) -> u64 {
        self.counts.hashed.load(Ordering::Relaxed)
    }

    /// Jobs that nobody waited for any more.
    pub(super) fn skipped(&self) -> u64 {
        self.counts.skipped.load(Ordering::Relaxed)
    }

    fn submit(&self, job: Job) -> Result<(), AccountError> {
        self.jobs.try_send(job).map_err(|_| BUSY)
    }
}

const BUSY: AccountError = AccountError::Busy { retry_after_ms: BUSY_RETRY_MS };

enum Job {
    Hash { password: Password, answer: oneshot::Sender<Option<Hashed>> },
    Verify { password: Password, stored: Option<Hashed>, answer: oneshot::Sender<Verdict> },
}

struct Hasher {
    argon: Argon2<'static>,
    /// What a password is compared with where there is no account: the hash of nothing.
    dummy: [u8; HASH_BYTES],
    counts: Arc<Counts>,
}

impl Hasher {
    fn run(&self, job: Job) {
        let skip = || _ = self.counts.skipped.fetch_add(1, Ordering::Relaxed);
        match job {
            Job::Hash { answer, .. } if answer.is_closed() => skip(),
            Job::Verify { answer, .. } if answer.is_closed() => skip(),
            Job::Hash { password, answer } => {
                let _ = answer.send(self.hash(&password));
            }
            Job::Verify { password, stored, answer } => {
                let _ = answer.send(self.verify(&password, stored.as_deref()));
            }
        }
    }

    fn hash(&self, password: &Password) -> Option<Hashed> {
        let salt = random::<SALT_BYTES>().ok()?;
        self.counts.hashed.fetch_add(1, Ordering::Relaxed);
        match self.argon.hash_password_with_salt(password.0.as_bytes(), &salt) {
            Ok(hash) => Some(hash.to_string()),
            Err(error) => {
                error!(%error, "a password was not hashed");
                None
            }
        }
    }

    fn verify(&self, password: &Password, stored: Option<&str>) -> Verdict {
        let stored = stored.and_then(|stored| match PasswordHash::new(stored) {
            Ok(stored) => Some(stored),
            Err(error) => {
                error!(%error, "what is stored of a password cannot be read");
                None
            }
        });
        let Some(stored) = stored else {
            let _ = self.is_hash_of(&self.nothing(), password);
            return Verdict::Wrong;
        };
        match self.is_hash_of(&stored, password) {
            true if self.is_of_today(&stored) => Verdict::Good { renewed: None },
            true => Verdict::Good { renewed: self.hash(password) },
            false => Verdict::Wrong,
        }
    }

    /// Hashes the password as what is stored says, and compares.
    fn is_hash_of(&self, stored: &PasswordHash, password: &Password) -> bool {
        self.counts.hashed.fetch_add(1, Ordering::Relaxed);
        self.argon.verify_password(password.0.as_bytes(), stored).is_ok()
    }

    /// The form of a hash with today's parameters that no password has.
    fn nothing(&self) -> PasswordHash {
        let mut nothing = PasswordHash::new("$argon2id").expect("an algorithm alone");
        nothing.version = Some(u32::from(Version::V0x13));
        nothing.params = self.argon.params().try_into().expect("parameters that are in use");
        nothing.salt = Some(Salt::new(&self.dummy[..SALT_BYTES]).expect("a salt of good length"));
        nothing.hash = Some(Output::new(&self.dummy).expect("a hash of good length"));
        nothing
    }

    fn is_of_today(&self, stored: &PasswordHash) -> bool {
        let today = self.nothing();
        (stored.algorithm, stored.version) == (today.algorithm, today.version)
            && stored.params == today.params
    }
}

/// Lets this thread run when nobody else wants the core.
fn go_last() {
    let me = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(me), NICENESS) {
        warn!(%error, "the threads for passwords run as often as the others");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cheap() -> config::Accounts {
        config::Accounts {
            password_memory_kib: 8,
            password_passes: 1,
            password_threads: 1,
            password_queue_max: 2,
            ..config::Accounts::default()
        }
    }

    fn hasher(config: &config::Accounts) -> Hasher {
        let params = Params::new(
            config.password_memory_kib,
            config.password_passes,
            config.password_lanes,
            Some(HASH_BYTES),
        );
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.expect("good"));
        Hasher { argon, dummy: [7; HASH_BYTES], counts: Arc::default() }
    }

    fn password(text: &str) -> Password {
        Password::given(text).expect("short enough")
    }

    #[test]
    fn a_password_is_good_in_each_of_its_spellings_and_no_other_is() {
        let hasher = hasher(&cheap());
        let stored = hasher.hash(&password("Caf\u{e9} au lait")).expect("a hash");
        assert!(stored.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{stored}");
        let verdict = |text| hasher.verify(&password(text), Some(&stored));
        assert_eq!(verdict("Cafe\u{301} au lait"), Verdict::Good { renewed: None });
        assert_eq!(verdict("cafe au lait"), Verdict::Wrong);
        let again = hasher.hash(&password("Caf\u{e9} au lait")).expect("a hash");
        assert_ne!(stored, again, "the salt is new each time");
    }

    #[test]
    fn nothing_and_damage_are_never_a_good_password() {
        let hasher = hasher(&cheap());
        for stored in [None, Some(""), Some("$argon2id$v=19$m=8,t=1,p=1$"), Some("plain")] {
            assert_eq!(hasher.verify(&password("plain"), stored), Verdict::Wrong, "{stored:?}");
        }
    }

    #[test]
    fn nothing_is_compared_with_todays_parameters() {
        let hasher = hasher(&config::Accounts::default());
        let stored = hasher.hash(&password("whatever")).expect("a hash");
        let real = PasswordHash::new(&stored).expect("its own text");
        assert!(hasher.is_of_today(&real));
        let nothing = hasher.nothing();
        assert_eq!(real.params, nothing.params);
        assert_eq!(real.salt.map(|salt| salt.len()), nothing.salt.map(|salt| salt.len()));
        assert_eq!(real.hash.map(|hash| hash.len()), nothing.hash.map(|hash| hash.len()));
    }

    #[test]
    fn a_hash_of_other_parameters_is_renewed() {
        let old = hasher(&cheap()).hash(&password("long enough")).expect("a hash");
        let now = hasher(&config::Accounts { password_memory_kib: 16, ..cheap() });
        let Verdict::Good { renewed: Some(new) } = now.verify(&password("long enough"), Some(&old))
        else {
            panic!("not renewed")
        };
        assert!(new.contains("m=16,"), "{new}");
        let again = now.verify(&password("long enough"), Some(&new));
        assert_eq!(again, Verdict::Good { renewed: None });
    }

    #[test]
    fn passwords_keep_the_rules() {
        let handle = Handle::parse("alexandra").expect("a handle");
        for text in ["", "short", "ALEXANDRA", &"x".repeat(PASSWORD_BYTES_MAX + 1)] {
            assert!(Password::choose(text, &handle).is_err(), "{text:?}");
        }
        assert!(Password::choose("correct horse", &handle).is_ok());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_full_queue_answers_busy_and_jobs_without_anybody_are_skipped() {
        let slow = config::Accounts { password_memory_kib: 65_536, ..cheap() };
        let passwords = Passwords::start(&slow).expect("threads");
        let mut waiting = Vec::new();
        let mut busy = 0;
        for _ in 0..10 {
            let mut one = Box::pin(passwords.hash(password("whatever")));
            match futures_poll(&mut one).await {
                Some(Err(AccountError::Busy { .. })) => busy += 1,
                Some(other) => panic!("{other:?}"),
                None => waiting.push(one),
            }
        }
        assert!(busy >= 7, "one runs and two wait, but only {busy} were refused");
        let first = waiting.remove(0);
        drop(waiting);
        first.await.expect("the first one is done");
        // The others leave the queue when a thread comes to them.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while let Err(error) = passwords.hash(password("after them")).await {
            assert!(matches!(error, AccountError::Busy { .. }), "{error:?}");
            assert!(std::time::Instant::now() < until, "there is room again");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert!(passwords.skipped() >= 1, "nobody waited for the others");
    }

    /// The answer, if there is one at the first look.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
