//! Every key of the configuration with its default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use chatring_core::limits::ShardLimits;
use serde::{Deserialize, Serialize};

use super::{DatabaseUrl, Network, Period};
use crate::gateway::{Driver, GatewayLimits};
use crate::link::CLUSTER_KEY_FILE;
use crate::store::embedded::{DiskKind, EmbeddedConfig};

/// The default of `server.gather`: about the time of a sync. Measured in the closed loop, three
/// rounds, it saves a shard some 6 % of its time for each message.
const GATHER_US: u64 = 100;

/// The default of `log.held_up`: half of what a user may notice in an answer, and above any good
/// disk's sync.
const HELD_UP_MS: u64 = 25;

/// The whole configuration. `docs/operating.md` has a line for each key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the node keeps its data and listens.
    pub server: Server,
    /// TLS of both addresses.
    pub tls: Tls,
    /// Bounds that protect the node from its peers.
    pub limits: Limits,
    /// The embedded store.
    pub store: Store,
    /// Whose tokens are good.
    pub auth: Auth,
    /// The deployment's own users.
    pub accounts: Accounts,
    /// Where API servers that run alone reach this node.
    pub link: Link,
    /// What the processes of a deployment share.
    pub cluster: Cluster,
    /// What is logged, and how.
    pub log: Log,
}

/// Where the node keeps its data and listens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The data folder.
    pub data: PathBuf,
    /// Address for WebSocket clients; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address for HTTP; port 0 takes a free one.
    pub http: SocketAddr,
    /// URL of the WebSocket that clients are told when they log in; empty for the address above.
    pub ws_url: String,
    /// Origins of web pages that browsers let use the HTTP API; `*` for all of them.
    pub cors_origins: Vec<String>,
    /// Proxies that are believed when they say from whom an HTTP request comes.
    pub trusted_proxies: Vec<Network>,
    /// In which header they say it.
    pub forwarded_header: ForwardedHeader,
    /// Shards, one thread each; 0 means one per core.
    pub shards: u16,
    /// What moves the bytes of the clients' sockets.
    pub driver: Driver,
    /// How long a shard with much on its way to disk waits for the store before its next turn, with
    /// the ring driver.
    pub gather: Period,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            data: PathBuf::from("./chatring-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            http: SocketAddr::from(([127, 0, 0, 1], 7401)),
            ws_url: String::new(),
            cors_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            shards: 0,
            driver: Driver::Auto,
            gather: Period::from_us(GATHER_US),
        }
    }
}

/// TLS of both addresses; off as long as no files are named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// A PEM file with the certificate, then those that link it to a root.
    pub certificate: PathBuf,
    /// A PEM file with its private key.
    pub key: PathBuf,
    /// How often both files are looked at, to be read again if they have changed.
    pub reload: Period,
}

impl Default for Tls {
    fn default() -> Tls {
        let (certificate, key) = (PathBuf::new(), PathBuf::new());
        Tls { certificate, key, reload: Period::from_s(10) }
    }
}

/// The header in which proxies say from whom a request comes. The one that they do not write is not
/// read, for a client may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Bounds that protect the node from its peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Clients ping at least this often.
    pub heartbeat: Period,
    /// Pushes that a session may leave unacknowledged.
    pub window_pushes: u32,
    /// Bytes of pushes that a session may leave unacknowledged.
    pub window_bytes: u32,
    /// Sends that a session may have open.
    pub open_sends_max: u32,
    /// Devices that a user may have.
    pub devices_max: u32,
    /// Sessions that a user may have.
    pub sessions_per_user_max: u32,
    /// Sends a second of a user, on average.
    pub sends_per_second: u32,
    /// Sends that a user may make at once after a pause.
    pub sends_burst: u32,
    /// Appends that may wait in a shard's lane.
    pub lane_appends_max: usize,
    /// Bytes of appends that may wait in a shard's lane.
    pub lane_bytes_max: usize,
    /// Time between audits of a live session.
    pub audit: Period,
    /// Channels that a shard keeps in memory; those not used lately give way.
    pub channels_in_memory_max: usize,
    /// Messages of a channel that a repeat is compared with in memory.
    pub recent_max: usize,
    /// Messages that may be under way from one shard to another.
    pub shard_queue_messages_max: u32,
    /// Calls under way at a shard, parked ones among them.
    pub calls_max: usize,
    /// Calls of a user that may be under way.
    pub calls_per_user_max: u32,
    /// Users that a shard keeps in memory for a while after their last call.
    pub callers_kept_max: usize,
    /// Events that a user's shard keeps for the user's next syncs.
    pub feed_events_max: usize,
    /// Connections of clients.
    pub connections_max: usize,
    /// Connections of one address (IPv6: of one /64).
    pub connections_per_ip_max: usize,
    /// Connections that have not said `hello` yet.
    pub handshakes_max: usize,
    /// Connections of one address that have not said `hello` yet.
    pub handshakes_per_ip_max: usize,
    /// Time from the accept to a good `hello`.
    pub handshake: Period,
    /// Connections that the kernel holds until they are accepted.
    pub backlog: i32,
    /// Unsent bytes of a connection above which nothing is read from it.
    pub unsent_bytes_high: usize,
    /// Unsent bytes of a connection above which it is closed.
    pub unsent_bytes_max: usize,
    /// Largest frame that is taken.
    pub frame_bytes_max: usize,
    /// HTTP connections at a time.
    pub http_connections_max: usize,
    /// HTTP connections of one address (IPv6: of one /64).
    pub http_connections_per_ip_max: usize,
    /// Tokens of HTTP requests of one address (IPv6: of one /64) that may be no good, an hour, on
    /// average.
    pub bad_tokens_per_ip_hour: u32,
    /// The same at once.
    pub bad_tokens_per_ip_burst: u32,
}

impl Limits {
    /// The bounds that each shard keeps.
    pub fn shard(&self) -> ShardLimits {
        ShardLimits {
            heartbeat_ms: u32::try_from(self.heartbeat.as_ms()).unwrap_or(u32::MAX),
            window_pushes: self.window_pushes,
            window_bytes: self.window_bytes,
            frame_bytes_max: u32::try_from(self.frame_bytes_max).unwrap_or(u32::MAX),
            open_sends_max: self.open_sends_max,
            devices_max: self.devices_max,
            sessions_per_user_max: self.sessions_per_user_max,
            sends_per_second: self.sends_per_second,
            sends_burst: self.sends_burst,
            lane_appends_max: self.lane_appends_max,
            lane_bytes_max: self.lane_bytes_max,
            audit_ms: self.audit.as_ms(),
            channels_in_memory_max: self.channels_in_memory_max,
            recent_max: self.recent_max,
            shard_queue_messages_max: self.shard_queue_messages_max,
            calls_max: self.calls_max,
            calls_per_user_max: self.calls_per_user_max,
            callers_kept_max: self.callers_kept_max,
            feed_events_max: self.feed_events_max,
        }
    }

    /// The bounds of clients' connections.
    pub fn gateway(&self) -> GatewayLimits {
        GatewayLimits {
            connections_max: self.connections_max,
            connections_per_ip_max: self.connections_per_ip_max,
            handshakes_max: self.handshakes_max,
            handshakes_per_ip_max: self.handshakes_per_ip_max,
            handshake_ms_max: self.handshake.as_ms(),
            backlog: self.backlog,
            unsent_bytes_high: self.unsent_bytes_high,
            unsent_bytes_max: self.unsent_bytes_max,
            frame_bytes_max: self.frame_bytes_max,
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        let shard = ShardLimits::default();
        let gateway = GatewayLimits::default();
        Limits {
            heartbeat: Period::from_ms(shard.heartbeat_ms.into()),
            window_pushes: shard.window_pushes,
            window_bytes: shard.window_bytes,
            open_sends_max: shard.open_sends_max,
            devices_max: shard.devices_max,
            sessions_per_user_max: shard.sessions_per_user_max,
            sends_per_second: shard.sends_per_second,
            sends_burst: shard.sends_burst,
            lane_appends_max: shard.lane_appends_max,
            lane_bytes_max: shard.lane_bytes_max,
            audit: Period::from_ms(shard.audit_ms),
            channels_in_memory_max: shard.channels_in_memory_max,
            recent_max: shard.recent_max,
            shard_queue_messages_max: shard.shard_queue_messages_max,
            calls_max: shard.calls_max,
            calls_per_user_max: shard.calls_per_user_max,
            callers_kept_max: shard.callers_kept_max,
            feed_events_max: shard.feed_events_max,
            connections_max: gateway.connections_max,
            connections_per_ip_max: gateway.connections_per_ip_max,
            handshakes_max: gateway.handshakes_max,
            handshakes_per_ip_max: gateway.handshakes_per_ip_max,
            handshake: Period::from_ms(gateway.handshake_ms_max),
            backlog: gateway.backlog,
            unsent_bytes_high: gateway.unsent_bytes_high,
            unsent_bytes_max: gateway.unsent_bytes_max,
            frame_bytes_max: gateway.frame_bytes_max,
            http_connections_max: 16_384,
            http_connections_per_ip_max: 16_384,
            bad_tokens_per_ip_hour: 36_000,
            bad_tokens_per_ip_burst: 1_000,
        }
    }
}

/// The embedded store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// What it writes to. A folder of the other one is converted at the start.
    pub disk: DiskKind,
    /// Least time between the starts of two commits: fewer and larger syncs, later answers.
    pub commit_gap: Period,
    /// Bytes of memory for rows read from disk.
    pub cache_bytes: u64,
    /// Bytes of new rows gathered in memory before they go into a table; up to five times this.
    pub memtable_bytes: u64,
    /// Bytes of disk kept free, at most; a sixteenth of the file system if that is less.
    pub reserve_bytes: u64,
}

impl Store {
    /// What the engine is opened with.
    pub fn embedded(&self) -> EmbeddedConfig {
        EmbeddedConfig {
            disk: self.disk,
            commit_gap_us: self.commit_gap.as_us(),
            cache_bytes: self.cache_bytes,
            memtable_bytes: self.memtable_bytes,
            reserve_bytes: self.reserve_bytes,
        }
    }
}

impl Default for Store {
    fn default() -> Store {
        let engine = EmbeddedConfig::default();
        Store {
            disk: engine.disk,
            commit_gap: Period::from_us(engine.commit_gap_us),
            cache_bytes: engine.cache_bytes,
            memtable_bytes: engine.memtable_bytes,
            reserve_bytes: engine.reserve_bytes,
        }
    }
}

/// Whose tokens are good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// How far the clocks of issuers may be off.
    pub leeway: Period,
    /// How often issuers' key sets are fetched, beside when a token has a key that is not known.
    pub jwks_refresh: Period,
    /// Least time between two fetches of a key set, whatever tokens ask for.
    pub jwks_pause: Period,
    /// A PEM file with the certificates to trust at `https` URLs of key sets; empty for those that
    /// the machine trusts.
    pub ca: PathBuf,
    /// Issuers besides the deployment's own.
    pub issuers: Vec<Issuer>,
}

impl Default for Auth {
    fn default() -> Auth {
        Auth {
            leeway: Period::from_s(5),
            jwks_refresh: Period::from_s(10 * 60),
            jwks_pause: Period::from_s(5),
            ca: PathBuf::new(),
            issuers: Vec::new(),
        }
    }
}

/// Somebody whose tokens are good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// The claim `iss` of its tokens. It is part of its users' identity and never changes.
    pub name: String,
    /// What the claim `aud` must hold; without it a token that has the claim is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// A file or an `http` or `https` URL with its key set (JWKS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// What keys of the set may be used with; a key's own kind says with which of these.
    #[serde(default = "public_algorithms")]
    pub algorithms: Vec<KeyAlgorithm>,
    /// Its keys; several during a change of keys.
    #[serde(default)]
    pub keys: Vec<IssuerKey>,
}

/// Those whose keys may be told to anybody.
pub fn public_algorithms() -> Vec<KeyAlgorithm> {
    vec![KeyAlgorithm::RS256, KeyAlgorithm::ES256, KeyAlgorithm::EdDSA]
}

/// A key of an issuer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerKey {
    /// The header's `kid` that selects it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The only algorithm that it is used with.
    pub algorithm: KeyAlgorithm,
    /// A PEM file with the public key, or for `HS256` the secret itself (at least 32 bytes).
    pub file: PathBuf,
}

/// What a key is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// RSA (PKCS#1 1.5) with SHA-256, at least 2,048 bits.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// The deployment's own users.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Accounts {
    /// URL of a PostgreSQL database; empty for SQLite in the data folder.
    pub database: DatabaseUrl,
    /// Connections to the database.
    pub database_connections_max: u32,
    /// Who may sign up.
    pub sign_up: SignUps,
    /// Handles that nobody may take, besides the built-in ones.
    pub reserved_handles: Vec<String>,
    /// Life of an access token.
    pub access_ttl: Period,
    /// Life of a refresh token that is not used.
    pub refresh_ttl: Period,
    /// Memory that hashing a password takes.
    pub password_memory_kib: u32,
    /// Passes over it.
    pub password_passes: u32,
    /// Argon2's degree of parallelism; the lanes are computed one after the other.
    pub password_lanes: u32,
    /// Threads that hash passwords; 0 means half as many as there are cores.
    pub password_threads: usize,
    /// Passwords that may wait for a thread.
    pub password_queue_max: usize,
    /// Sign-ups of an address (IPv6: of one /64) an hour, on average.
    pub sign_ups_per_ip_hour: u32,
    /// Sign-ups of an address at once.
    pub sign_ups_per_ip_burst: u32,
    /// Log-ins of an address an hour, on average.
    pub log_ins_per_ip_hour: u32,
    /// Log-ins of an address at once.
    pub log_ins_per_ip_burst: u32,
    /// Wrong passwords for a handle an hour, on average.
    pub log_ins_per_handle_hour: u32,
    /// Wrong passwords for a handle at once.
    pub log_ins_per_handle_burst: u32,
}

impl Default for Accounts {
    /// Argon2id's parameters are those that OWASP names first (19 MiB, 2 passes, 1 lane).
    fn default() -> Accounts {
        Accounts {
            database: DatabaseUrl::default(),
            database_connections_max: 8,
            sign_up: SignUps::Open,
            reserved_handles: Vec::new(),
            access_ttl: Period::from_s(10 * 60),
            refresh_ttl: Period::from_s(30 * 86_400),
            password_memory_kib: 19_456,
            password_passes: 2,
            password_lanes: 1,
            password_threads: 0,
            password_queue_max: 64,
            sign_ups_per_ip_hour: 600,
            sign_ups_per_ip_burst: 100,
            log_ins_per_ip_hour: 6_000,
            log_ins_per_ip_burst: 300,
            log_ins_per_handle_hour: 120,
            log_ins_per_handle_burst: 10,
        }
    }
}

/// Who may sign up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignUps {
    /// Whoever comes.
    #[default]
    Open,
    /// Nobody.
    Closed,
}

/// Where API servers that run alone reach this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// Address for links; port 0 takes a free one, empty for none.
    pub listen: String,
    /// Calls under way over a link, parked ones among them; of both ends the smaller number counts.
    pub calls_max: usize,
}

impl Link {
    /// The address, if there is one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listen.parse().ok()
    }
}

impl Default for Link {
    fn default() -> Link {
        Link { listen: String::new(), calls_max: 32_768 }
    }
}

/// What the processes of a deployment share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// File of the key that both ends of a link prove; empty for `cluster.key` in the data folder.
    pub key_file: PathBuf,
    /// `HOST:PORT` of the link addresses of the nodes, for API servers that run alone.
    pub nodes: Vec<String>,
}

impl Cluster {
    /// The key's file.
    pub fn key_file(&self, data: &Path) -> PathBuf {
        match self.key_file.as_os_str().is_empty() {
            true => data.join(CLUSTER_KEY_FILE),
            false => self.key_file.clone(),
        }
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Least important level that is logged. The environment's `CHATRING_LOG` overrides it.
    pub level: LogLevel,
    /// How lines look.
    pub format: LogFormat,
    /// What holds messages up for at least so long is logged with its cause; zero: nothing.
    pub held_up: Period,
}

impl Default for Log {
    fn default() -> Log {
        Log {
            level: LogLevel::default(),
            format: LogFormat::default(),
            held_up: Period::from_ms(HELD_UP_MS),
        }
    }
}

/// How important a line of the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Somebody must act.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level with this name.
    pub fn from_name(name: &str) -> Option<LogLevel> {
        match name {
            "error" => Some(LogLevel::Error),
            "warn" => Some(LogLevel::Warn),
            "info" => Some(LogLevel::Info),
            "debug" => Some(LogLevel::Debug),
            "trace" => Some(LogLevel::Trace),
            _ => None,
        }
    }
}

/// How lines of the log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
