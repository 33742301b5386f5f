//! Accounts of a test, with a clock that it moves.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chatring_client::token::TokenKey;
use chatring_wire::{ErrorCode, InstallationId};

use crate::api::accounts::{AccountError, Accounts, Caller, LogIn, SignUp, SignedIn, SignedUp};
use crate::auth::{TokenVerifier as _, Verifier};
use crate::config;

pub const PASSWORD: &str = "correct horse battery";
pub const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const START_MS: u64 = 1_800_000_000_000;

/// Where the accounts are kept.
#[derive(Clone, Debug)]
pub enum Place {
    Sqlite(PathBuf),
    /// A URL.
    Postgres(String),
}

pub struct World {
    pub accounts: Accounts,
    pub verifier: Verifier,
    pub config: config::Accounts,
    pub place: Place,
    key: Arc<TokenKey>,
    now_ms: Arc<AtomicU64>,
}

impl World {
    pub async fn new(place: Place) -> World {
        let config = config::Accounts {
            password_memory_kib: 8,
            password_passes: 1,
            password_threads: 1,
            sign_ups_per_ip_burst: 10_000,
            log_ins_per_ip_burst: 10_000,
            database_connections_max: 4,
            ..config::Accounts::default()
        };
        World::with(place, config).await
    }

    pub async fn with(place: Place, config: config::Accounts) -> World {
        let (key, _) = TokenKey::generate().expect("random bytes");
        let now_ms = Arc::new(AtomicU64::new(START_MS));
        World::open(place, config, Arc::new(key), now_ms).await
    }

    async fn open(
        place: Place,
        mut config: config::Accounts,
        key: Arc<TokenKey>,
        now_ms: Arc<AtomicU64>,
    ) -> World {
        let verifier = Verifier::new(&config::Auth::default(), Some(&key)).expect("no other keys");
        let folder = match &place {
            Place::Sqlite(folder) => folder.clone(),
            Place::Postgres(url) => {
                config.database = url.clone().into();
                PathBuf::new()
            }
        };
        let revocations = Arc::clone(verifier.revocations());
        let clock = Arc::clone(&now_ms);
        let clock = Arc::new(move || clock.load(Ordering::Relaxed));
        let accounts = Accounts::open(&config, &folder, Arc::clone(&key), revocations, clock);
        let accounts = accounts.await.expect("the accounts open");
        World { accounts, verifier, config, place, key, now_ms }
    }

    /// Another process on the same database and the same key.
    pub async fn another(&self) -> World {
        let (key, now_ms) = (Arc::clone(&self.key), Arc::clone(&self.now_ms));
        World::open(self.place.clone(), self.config.clone(), key, now_ms).await
    }

    /// Same place, other configuration.
    pub async fn reopened_with(self, change: impl FnOnce(&mut config::Accounts)) -> World {
        self.accounts.close().await;
        let mut config = self.config.clone();
        change(&mut config);
        World::open(self.place.clone(), config, self.key, self.now_ms).await
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    pub fn pass_ms(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    pub fn set_ms(&self, ms: u64) {
        self.now_ms.store(ms, Ordering::Relaxed);
    }

    pub async fn try_sign_up(&self, handle: &str) -> Result<SignedUp, AccountError> {
        self.accounts.sign_up(FROM, &sign_up(handle)).await
    }

    /// Signs up on the user's first device.
    pub async fn sign_up(&self, handle: &str) -> SignedIn {
        let signed_up = self.try_sign_up(handle).await.expect(handle);
        signed_up.session.expect("an installation was named")
    }

    pub async fn try_log_in(
        &self,
        handle: &str,
        password: &str,
        device: u8,
    ) -> Result<SignedIn, AccountError> {
        self.accounts.log_in(FROM, &log_in(handle, password, device)).await
    }

    pub async fn log_in(&self, handle: &str, device: u8) -> SignedIn {
        self.try_log_in(handle, PASSWORD, device).await.expect(handle)
    }

    /// The holder of an access token, as an HTTP request would be told.
    pub fn caller(&self, signed_in: &SignedIn) -> Caller {
        let token = &signed_in.access_token;
        let verified = self.verifier.verify_whole(token, self.now_ms() / 1_000);
        let verified = verified.expect("a good token");
        Caller::of(&verified.identity, verified.family).expect("an account's token")
    }

    /// What the verifier says of an access token.
    pub fn token_error(&self, signed_in: &SignedIn) -> Option<ErrorCode> {
        let token = &signed_in.access_token;
        self.verifier.verify_whole(token, self.now_ms() / 1_000).err()
    }

    /// The figure of this name.
    pub fn figure(&self, name: &str) -> u64 {
        let name = format!("chatring_accounts_{name}");
        let metrics = self.accounts.metrics();
        let metric = metrics.iter().find(|metric| metric.name == name).expect(&name);
        match metric.value {
            crate::metrics::MetricValue::Counter(value)
            | crate::metrics::MetricValue::Gauge(value) => value,
            ref other => panic!("{other:?}"),
        }
    }

    /// Rows of a table.
    pub async fn count(&self, from: &str) -> u64 {
        let count = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {from}"));
        let row = sqlx::query(count).fetch_one(self.accounts.inner.db.pool()).await;
        crate::api::accounts::db::number(&row.expect(from), 0).expect("a count")
    }

    pub async fn execute(&self, statement: String) {
        let statement = sqlx::query(sqlx::AssertSqlSafe(statement));
        statement.execute(self.accounts.inner.db.pool()).await.expect("a good statement");
    }
}

pub fn installation(device: u8) -> InstallationId {
    InstallationId([device; 16])
}

/// On device 1.
pub fn sign_up(handle: &str) -> SignUp {
    SignUp {
        handle: handle.to_owned(),
        password: PASSWORD.to_owned(),
        name: None,
        installation: Some(installation(1)),
        label: "phone".to_owned(),
    }
}

pub fn log_in(handle: &str, password: &str, device: u8) -> LogIn {
    LogIn {
        handle: handle.to_owned(),
        password: password.to_owned(),
        installation: installation(device),
        label: String::new(),
    }
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}
