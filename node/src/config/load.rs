//! Reads the file, applies the flags and checks the ranges.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use chatring_client::token::OWN_ISSUER;
use chatring_wire::limits::{
    BODY_BYTES_MAX, FRAME_BYTES_MIN, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, URL_BYTES_MAX,
};
use thiserror::Error;

use super::{Config, KeyAlgorithm};
use crate::rt::{Driver, SHARDS_MAX};

/// Largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Most issuers besides the deployment's own.
const ISSUERS_MAX: usize = 64;
/// Most origins of web pages.
const ORIGINS_MAX: usize = 64;
/// Most trusted proxies, or networks of them.
const PROXIES_MAX: usize = 64;
/// Most keys of an issuer: each one may cost a signature check per token.
const KEYS_PER_ISSUER_MAX: usize = 8;
/// Least and most that `limits.frame_bytes_max` may be, by the protocol.
const FRAME_MIN: u64 = FRAME_BYTES_MIN as u64;
const MESSAGE_MAX: u64 = MESSAGE_BYTES_MAX as u64;
/// A mebibyte.
const MIB: u64 = 1 << 20;
/// Largest number of anything that is counted in a `u32`.
const COUNT_MAX: u64 = 1 << 30;

/// What the command line overrides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--data`.
    pub data: Option<PathBuf>,
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--http`.
    pub http: Option<SocketAddr>,
    /// `--shards`.
    pub shards: Option<u16>,
    /// `--driver`.
    pub driver: Option<Driver>,
    /// `--tls-certificate`.
    pub tls_certificate: Option<PathBuf>,
    /// `--tls-key`.
    pub tls_key: Option<PathBuf>,
}

/// What is wrong with a configuration, in one line.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is far too large to be a configuration.
    #[error("{}: larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// The file does not parse, or a key is unknown or of the wrong type.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What, with the key's path.
        message: String,
    },
    /// A value is out of its range.
    #[error("{key} is {value}, but must be between {min} and {max}")]
    Range {
        /// Which key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Anything else that makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Config {
    /// The defaults, overridden by the file (if any), overridden by the flags; then checked.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
        let mut config = match file {
            Some(path) => Config::parse(path, &read(path)?)?,
            None => Config::default(),
        };
        let server = &mut config.server;
        replace(&mut server.data, overrides.data.as_ref());
        replace(&mut server.listen, overrides.listen.as_ref());
        replace(&mut server.http, overrides.http.as_ref());
        replace(&mut server.shards, overrides.shards.as_ref());
        replace(&mut server.driver, overrides.driver.as_ref());
        replace(&mut config.tls.certificate, overrides.tls_certificate.as_ref());
        replace(&mut config.tls.key, overrides.tls_key.as_ref());
        config.check()?;
        Ok(config)
    }

    /// Parses the text of a file; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let error = |message: String, span: Option<std::ops::Range<usize>>| ConfigError::Parse {
            path: path.to_owned(),
            line: span.map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
            message: message.lines().collect::<Vec<_>>().join(" "),
        };
        let deserializer =
            toml::Deserializer::parse(text).map_err(|e| error(e.message().to_owned(), e.span()))?;
        serde_path_to_error::deserialize(deserializer).map_err(|e| {
            let key = e.path().to_string();
            let e = e.into_inner();
            error(format!("{key}: {}", e.message()), e.span())
        })
    }

    /// The file that `config show` prints.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every key is a string in TOML")
    }

    /// Checks what the types cannot say.
    fn check(&self) -> Result<(), ConfigError> {
        let l = &self.limits;
        let a = &self.accounts;
        let pause_ms = self.auth.jwks_pause.as_ms();
        let (body, high) = (BODY_BYTES_MAX as u64, l.unsent_bytes_high as u64);
        let lanes = u64::from(a.password_lanes.min(64));
        let ranges = [
            ("server.shards", self.server.shards.into(), 0, SHARDS_MAX.into()),
            ("server.gather (us)", self.server.gather.as_us(), 0, 1_000),
            ("tls.reload (ms)", self.tls.reload.as_ms(), 10, 86_400_000),
            ("limits.heartbeat (ms)", l.heartbeat.as_ms(), 1_000, 600_000),
            ("limits.window_pushes", l.window_pushes.into(), 1, COUNT_MAX),
            ("limits.window_bytes", l.window_bytes.into(), body, COUNT_MAX),
            ("limits.open_sends_max", l.open_sends_max.into(), 1, COUNT_MAX),
            ("limits.devices_max", l.devices_max.into(), 1, COUNT_MAX),
            ("limits.sessions_per_user_max", l.sessions_per_user_max.into(), 1, COUNT_MAX),
            ("limits.sends_per_second", l.sends_per_second.into(), 1, COUNT_MAX),
            ("limits.sends_burst", l.sends_burst.into(), 1, COUNT_MAX),
            ("limits.lane_appends_max", l.lane_appends_max as u64, 1, COUNT_MAX),
            ("limits.lane_bytes_max", l.lane_bytes_max as u64, 2 * body, 1 << 40),
            ("limits.channels_in_memory_max", l.channels_in_memory_max as u64, 16, COUNT_MAX),
            ("limits.recent_max", l.recent_max as u64, 1, 65_536),
            ("limits.shard_queue_messages_max", l.shard_queue_messages_max.into(), 64, 1_000_000),
            ("limits.calls_max", l.calls_max as u64, 1, COUNT_MAX),
            ("limits.calls_per_user_max", l.calls_per_user_max.into(), 1, COUNT_MAX),
            ("limits.callers_kept_max", l.callers_kept_max as u64, 0, COUNT_MAX),
            ("limits.feed_events_max", l.feed_events_max as u64, 1, 65_536),
            ("limits.audit (ms)", l.audit.as_ms(), 1_000, 86_400_000),
            ("limits.connections_max", l.connections_max as u64, 1, COUNT_MAX),
            ("limits.connections_per_ip_max", l.connections_per_ip_max as u64, 1, COUNT_MAX),
            ("limits.handshakes_max", l.handshakes_max as u64, 1, COUNT_MAX),
            ("limits.handshakes_per_ip_max", l.handshakes_per_ip_max as u64, 1, COUNT_MAX),
            ("limits.handshake (ms)", l.handshake.as_ms(), 100, 600_000),
            ("limits.backlog", l.backlog.try_into().unwrap_or(0), 1, 65_536),
            ("limits.unsent_bytes_high", l.unsent_bytes_high as u64, 4_096, COUNT_MAX),
            ("limits.unsent_bytes_max", l.unsent_bytes_max as u64, high, COUNT_MAX),
            ("limits.frame_bytes_max", l.frame_bytes_max as u64, FRAME_MIN, MESSAGE_MAX),
            ("limits.http_connections_max", l.http_connections_max as u64, 1, COUNT_MAX),
            (
                "limits.http_connections_per_ip_max",
                l.http_connections_per_ip_max as u64,
                1,
                COUNT_MAX,
            ),
            ("limits.bad_tokens_per_ip_hour", l.bad_tokens_per_ip_hour.into(), 1, COUNT_MAX),
            ("limits.bad_tokens_per_ip_burst", l.bad_tokens_per_ip_burst.into(), 1, COUNT_MAX),
            ("store.commit_gap (us)", self.store.commit_gap.as_us(), 0, 1_000_000),
            ("store.cache_bytes", self.store.cache_bytes, MIB, 1 << 40),
            ("store.memtable_bytes", self.store.memtable_bytes, MIB, 1 << 36),
            ("store.reserve_bytes", self.store.reserve_bytes, 0, 1 << 50),
            ("link.calls_max", self.link.calls_max as u64, 1, COUNT_MAX),
            ("auth.leeway (ms)", self.auth.leeway.as_ms(), 0, 300_000),
            ("auth.jwks_pause (ms)", pause_ms, 1_000, 3_600_000),
            ("auth.jwks_refresh (ms)", self.auth.jwks_refresh.as_ms(), pause_ms, 86_400_000),
            ("accounts.database_connections_max", a.database_connections_max.into(), 2, 1_000),
            ("accounts.access_ttl (s)", a.access_ttl.as_s(), 10, 86_400),
            ("accounts.refresh_ttl (s)", a.refresh_ttl.as_s(), 60, 10 * 365 * 86_400),
            ("accounts.password_memory_kib", a.password_memory_kib.into(), lanes * 8, 4 << 20),
            ("accounts.password_passes", a.password_passes.into(), 1, 1_000),
            ("accounts.password_lanes", a.password_lanes.into(), 1, 64),
            ("accounts.password_threads", a.password_threads as u64, 0, 256),
            ("accounts.password_queue_max", a.password_queue_max as u64, 1, 65_536),
            ("accounts.sign_ups_per_ip_hour", a.sign_ups_per_ip_hour.into(), 1, COUNT_MAX),
            ("accounts.sign_ups_per_ip_burst", a.sign_ups_per_ip_burst.into(), 1, COUNT_MAX),
            ("accounts.log_ins_per_ip_hour", a.log_ins_per_ip_hour.into(), 1, COUNT_MAX),
            ("accounts.log_ins_per_ip_burst", a.log_ins_per_ip_burst.into(), 1, COUNT_MAX),
            ("accounts.log_ins_per_handle_hour", a.log_ins_per_handle_hour.into(), 1, COUNT_MAX),
            ("accounts.log_ins_per_handle_burst", a.log_ins_per_handle_burst.into(), 1, COUNT_MAX),
        ];
        for (key, value, min, max) in ranges {
            if value < min || value > max {
                return Err(ConfigError::Range { key, value, min, max });
            }
        }
        let ws_url = &self.server.ws_url;
        let is_ws = ws_url.starts_with("ws://") || ws_url.starts_with("wss://");
        if !ws_url.is_empty() && (!is_ws || ws_url.len() > URL_BYTES_MAX) {
            let message = "server.ws_url must begin with ws:// or wss://".to_owned();
            return Err(ConfigError::Invalid(message));
        }
        if self.server.trusted_proxies.len() > PROXIES_MAX {
            let message = format!("server.trusted_proxies has more than {PROXIES_MAX} entries");
            return Err(ConfigError::Invalid(message));
        }
        let files = [&self.tls.certificate, &self.tls.key];
        if files[0].as_os_str().is_empty() != files[1].as_os_str().is_empty() {
            let message = "tls.certificate and tls.key must both be given, or neither".to_owned();
            return Err(ConfigError::Invalid(message));
        }
        self.check_origins()?;
        self.check_database()?;
        self.check_links()?;
        self.check_issuers()
    }

    fn check_links(&self) -> Result<(), ConfigError> {
        let invalid = |message: &str| Err(ConfigError::Invalid(message.to_owned()));
        if !self.link.listen.is_empty() && self.link.address().is_none() {
            return invalid("link.listen must be an address like \"10.0.0.1:7402\"");
        }
        let nodes = &self.cluster.nodes;
        let is_node = |node: &String| {
            let parts = node.rsplit_once(':');
            parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if !nodes.iter().all(is_node) {
            return invalid("cluster.nodes must have entries like \"node-1:7402\"");
        }
        if nodes.len() > 1 {
            return invalid("cluster.nodes: one node has all users today, name that one alone");
        }
        Ok(())
    }

    fn check_origins(&self) -> Result<(), ConfigError> {
        let origins = &self.server.cors_origins;
        if origins.len() > ORIGINS_MAX {
            let message = format!("server.cors_origins has more than {ORIGINS_MAX} entries");
            return Err(ConfigError::Invalid(message));
        }
        for (n, origin) in origins.iter().enumerate() {
            let host = origin.split_once("://").map(|(_, host)| host);
            let is_host = |host: &str| {
                let of_host = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
                !host.is_empty() && host.chars().all(of_host)
            };
            if origin != "*" && !host.is_some_and(is_host) {
                return Err(ConfigError::Invalid(format!(
                    "server.cors_origins[{n}] must be \"*\" or like \"https://app.example.com\""
                )));
            }
        }
        Ok(())
    }

    fn check_database(&self) -> Result<(), ConfigError> {
        let url = &self.accounts.database;
        let known = ["postgres://", "postgresql://"];
        if url.is_empty() || known.iter().any(|scheme| url.starts_with(scheme)) {
            return Ok(());
        }
        // It may hold a password, so it is not repeated.
        Err(ConfigError::Invalid("accounts.database is no URL of PostgreSQL".to_owned()))
    }

    fn check_issuers(&self) -> Result<(), ConfigError> {
        let issuers = &self.auth.issuers;
        let invalid = |message: String| Err(ConfigError::Invalid(message));
        if issuers.len() > ISSUERS_MAX {
            return invalid(format!("auth.issuers has more than {ISSUERS_MAX} entries"));
        }
        for (n, issuer) in issuers.iter().enumerate() {
            let name = &issuer.name;
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return invalid(format!(
                    "auth.issuers[{n}].name must have 1 to {NAME_BYTES_MAX} bytes"
                ));
            }
            if name == OWN_ISSUER {
                return invalid(format!("auth.issuers[{n}].name: {name:?} is this deployment's"));
            }
            if issuers[..n].iter().any(|other| other.name == *name) {
                return invalid(format!("auth.issuers[{n}].name: {name:?} is there twice"));
            }
            if let Some(jwks) = &issuer.jwks {
                let is_url = jwks.starts_with("https://") || jwks.starts_with("http://");
                if jwks.is_empty() || jwks.len() > URL_BYTES_MAX || jwks.contains("://") && !is_url
                {
                    return invalid(format!(
                        "auth.issuers[{n}].jwks must be a file or begin with http:// or https://"
                    ));
                }
                let is_secret = issuer.algorithms.contains(&KeyAlgorithm::HS256);
                if issuer.algorithms.is_empty() || is_secret {
                    return invalid(format!(
                        "auth.issuers[{n}].algorithms must be some of RS256, ES256 and EdDSA"
                    ));
                }
                if issuer.keys.is_empty() {
                    continue;
                }
            }
            if issuer.keys.is_empty() || issuer.keys.len() > KEYS_PER_ISSUER_MAX {
                return invalid(format!(
                    "auth.issuers[{n}].keys must have 1 to {KEYS_PER_ISSUER_MAX} entries"
                ));
            }
        }
        Ok(())
    }
}

fn replace<T: Clone>(target: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        target.clone_from(value);
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let error = |error| ConfigError::Read { path: path.to_owned(), error };
    if std::fs::metadata(path).map_err(error)?.len() > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(error)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Issuer, IssuerKey};
    use crate::gateway::GatewayLimits;
    use crate::store::embedded::EmbeddedConfig;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let config = Config::parse(Path::new("c.toml"), text)?;
        config.check()?;
        Ok(config)
    }

    fn message(text: &str) -> String {
        let message = parse(text).expect_err(text).to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    }

    #[test]
    fn every_default_is_valid_and_reads_back_as_itself() {
        let config = Config::default();
        assert!(config.check().is_ok());
        assert_eq!(parse(&config.to_toml()).expect("its own text"), config);
        assert_eq!(parse("").expect("an empty file"), config);
        assert_eq!(config.limits.shard(), chatring_core::limits::ShardLimits::default());
        assert_eq!(config.limits.gateway(), GatewayLimits::default());
        assert_eq!(config.store.embedded(), EmbeddedConfig::default());
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_its_line_and_path() {
        let text = message("[server]\nshards = 2\n\n[limits]\nheartbeet = \"3s\"\n");
        assert!(text.starts_with("c.toml:5: limits.heartbeet: unknown field"), "{text}");
        assert!(message("[serve]\nshards = 2\n").starts_with("c.toml:1: serve: unknown field"));
        let text = message(
            "[[auth.issuers]]\nname = \"a\"\n[[auth.issuers.keys]]\n\
             algorithm = \"HS256\"\nfile = \"f\"\nsecret = \"s\"\n",
        );
        assert!(text.contains("auth.issuers[0].keys[0].secret: unknown field"), "{text}");
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_its_path() {
        assert!(message("[limits]\naudit = \"soon\"").contains("limits.audit: \"soon\" is no"));
        assert!(message("[limits]\naudit = 3").contains("limits.audit: invalid type"));
        assert!(message("[limits]\nwindow_pushes = 0").contains("limits.window_pushes is 0"));
        assert!(message("[auth]\nleeway = \"1d\"").contains("auth.leeway"));
        assert!(message("[server]\ntrusted_proxies = ['x']").contains("server.trusted_proxies[0]"));
        assert!(message("[server").starts_with("c.toml:1: "));
    }

    #[test]
    fn issuers_are_checked() {
        let issuer = |name: &str| {
            format!(
                "[[auth.issuers]]\nname = {name:?}\n[[auth.issuers.keys]]\n\
                 algorithm = \"RS256\"\nfile = \"f\"\n"
            )
        };
        assert!(parse(&issuer("https://id.example")).is_ok());
        assert!(message(&issuer("")).contains("auth.issuers[0].name"));
        assert!(message(&issuer("chatring")).contains("this deployment's"));
        assert!(message(&(issuer("a") + &issuer("a"))).contains("twice"));
        assert!(message("[[auth.issuers]]\nname = \"a\"\nkeys = []").contains("keys must have"));
        let set = |more: &str| format!("[[auth.issuers]]\nname = \"a\"\n{more}");
        assert!(parse(&set("jwks = 'https://id.example/keys'")).is_ok());
        assert!(parse(&set("jwks = '/etc/keys.json'\nalgorithms = ['ES256']")).is_ok());
        assert!(message(&set("jwks = 'ftp://id.example/'")).contains("auth.issuers[0].jwks"));
        let secret = set("jwks = 'k'\nalgorithms = ['HS256']");
        assert!(message(&secret).contains("auth.issuers[0].algorithms"));
        let none = issuer("a").replace("RS256", "none");
        assert!(message(&none).contains("auth.issuers[0].keys[0].algorithm: unknown variant"));
    }

    #[test]
    fn origins_are_checked() {
        let origins = |text: &str| format!("[server]\ncors_origins = [{text}]");
        assert!(parse(&origins("'*', 'https://a.example', 'http://[::1]:80'")).is_ok());
        for bad in ["'a.example'", "'https://a.example/'", "'https://'", "'https://a b'"] {
            assert!(message(&origins(bad)).contains("server.cors_origins[0] must be"), "{bad}");
        }
    }

    #[test]
    fn a_certificate_needs_its_key() {
        assert!(parse("[tls]\ncertificate = 'a'\nkey = 'b'").is_ok());
        assert!(message("[tls]\ncertificate = 'a'").contains("tls.certificate and tls.key"));
        assert!(message("[tls]\nkey = 'a'").contains("tls.certificate and tls.key"));
    }

    #[test]
    fn links_are_checked() {
        assert!(parse("[link]\nlisten = '127.0.0.1:0'\n[cluster]\nnodes = ['n-1:7402']").is_ok());
        assert!(message("[link]\nlisten = 'localhost:1'").contains("link.listen must be"));
        for bad in ["'n'", "':1'", "'n:70000'", "''"] {
            let text = message(&format!("[cluster]\nnodes = [{bad}]"));
            assert!(text.contains("cluster.nodes must have"), "{text}");
        }
        let two = message("[cluster]\nnodes = ['a:1', 'b:1']");
        assert!(two.contains("one node has all users"), "{two}");
    }

    #[test]
    fn flags_override_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c.toml");
        std::fs::write(&path, "[server]\nshards = 2\nlisten = \"127.0.0.1:1\"\n").expect("a file");
        let flags =
            Overrides { shards: Some(3), driver: Some(Driver::Streams), ..Overrides::default() };
        let config = Config::load(Some(&path), &flags).expect("a good file");
        assert_eq!((config.server.shards, config.server.driver), (3, Driver::Streams));
        assert_eq!(config.server.listen.port(), 1);
        assert_eq!(config.server.http, Config::default().server.http);
        let flags = Overrides { shards: Some(1_000), ..Overrides::default() };
        assert!(matches!(Config::load(None, &flags), Err(ConfigError::Range { .. })));
        let missing = Config::load(Some(&folder.path().join("no.toml")), &flags);
        assert!(matches!(missing, Err(ConfigError::Read { .. })));
    }

    /// Each row of a table in `docs/operating.md` that opens with a key and its default.
    fn documented() -> BTreeMap<String, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
        let text = std::fs::read_to_string(path).expect("the document is there");
        let rows = text.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let key = cells.next()?.strip_suffix('`')?;
            let default = cells.next()?.trim_matches('`');
            key.contains('.').then(|| (key.to_owned(), default.to_owned()))
        });
        rows.collect()
    }

    fn flatten(path: &str, value: &toml::Value, into: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    flatten(&path, value, into);
                }
            }
            toml::Value::Array(items) if !items.is_empty() => {
                flatten(path, &items[0], into);
            }
            value => {
                into.insert(path.to_owned(), value.to_string());
            }
        }
    }

    #[test]
    fn the_document_lists_every_key_with_its_default() {
        let mut config = Config::default();
        config.auth.issuers.push(Issuer {
            name: "name".to_owned(),
            audience: Some("audience".to_owned()),
            jwks: Some("jwks".to_owned()),
            algorithms: vec![KeyAlgorithm::RS256],
            keys: vec![IssuerKey {
                id: Some("id".to_owned()),
                algorithm: KeyAlgorithm::RS256,
                file: PathBuf::from("file"),
            }],
        });
        let mut keys = BTreeMap::new();
        flatten("", &toml::Value::try_from(&config).expect("TOML"), &mut keys);
        let documented = documented();
        let names = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&documented), names(&keys));
        for (key, default) in &documented {
            if !key.starts_with("auth.issuers.") {
                assert_eq!(default, &keys[key], "{key}");
            }
        }
    }
}
