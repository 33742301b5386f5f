//! TLS of the server's addresses: its certificate, looked after while the server runs.
//!
//! ```text
//!  files ──(at the start, SIGHUP, or changed)──▶ checked ─▶ in use for connections from now on
//!                                                  └ refused: one line, the one before stays
//! ```
//!
//! Connections that stand keep what they have agreed on.

mod expiry;

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tracing::{info, warn};

use crate::config;
use crate::metrics::{Metric, MetricValue};

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Most certificates of a chain.
const CHAIN_MAX: usize = 16;
/// Files that have just changed may be about to change again (the key after the certificate): they
/// are read once they have stayed as they are for so long.
const SETTLE_MS: u64 = 1_000;

/// Why TLS cannot be used. The operator's to put right.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or holds not what it should.
    #[error("tls: {}: {reason}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificate and key are not of use together.
    #[error("tls: {} and {}: {error}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        error: rustls::Error,
    },
    /// The certificate that would replace a better one has expired.
    #[error("tls: {}: the certificate has expired", path.display())]
    Expired {
        /// Its file.
        path: PathBuf,
    },
    /// The library itself.
    #[error("tls: {0}")]
    Library(#[from] rustls::Error),
}

/// What the server's addresses speak TLS with.
pub struct ServerTls {
    certificate: PathBuf,
    key: PathBuf,
    reload: Duration,
    current: Arc<Current>,
    websocket: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    /// The files when they were last read.
    read: Mutex<Stamps>,
    reloads: AtomicU64,
    refused: AtomicU64,
}

impl ServerTls {
    /// Reads the files that the configuration names; `None` if it names none.
    ///
    /// # Errors
    /// They are of no use.
    pub fn open(config: &config::Tls) -> Result<Option<Arc<ServerTls>>, TlsError> {
        if config.certificate.as_os_str().is_empty() {
            return Ok(None);
        }
        let (certificate, key) = (config.certificate.clone(), config.key.clone());
        let read = Stamps::of(&certificate, &key);
        let loaded = load(&certificate, &key)?;
        if loaded.expires_s <= unix_s() {
            warn!(certificate = %certificate.display(), "the certificate has expired");
        }
        let current = Arc::new(Current(RwLock::new(loaded)));
        let websocket = server_config(&current, &[b"http/1.1"])?;
        let http = server_config(&current, &[b"h2", b"http/1.1"])?;
        Ok(Some(Arc::new(ServerTls {
            certificate,
            key,
            reload: Duration::from_millis(config.reload.as_ms()),
            current,
            websocket,
            http,
            read: Mutex::new(read),
            reloads: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })))
    }

    /// For the address of the WebSocket.
    pub fn websocket(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.websocket)
    }

    /// For the address of HTTP.
    pub fn http(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.http)
    }

    /// Reads the files again. A pair that is of no use is refused with one line in the log, and the
    /// one before stays.
    pub fn reload(&self) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        *read = Stamps::of(&self.certificate, &self.key);
        let loaded = load(&self.certificate, &self.key).and_then(|loaded| {
            let expired = loaded.expires_s <= unix_s();
            match expired {
                true => Err(TlsError::Expired { path: self.certificate.clone() }),
                false => Ok(loaded),
            }
        });
        match loaded {
            Ok(loaded) => {
                let expires_s = loaded.expires_s;
                *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = loaded;
                self.reloads.fetch_add(1, Ordering::Relaxed);
                info!(expires_unix_s = expires_s, "a new certificate is in use");
            }
            Err(error) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                warn!("a new certificate is refused, the one before stays: {error}");
            }
        }
    }

    /// Reloads when the files have changed or when somebody wakes the other end of `wake`, until
    /// that is dropped. On a thread of its own: a file system may be slow.
    pub fn watch(self: &Arc<Self>, wake: flume::Receiver<()>) -> std::io::Result<()> {
        let tls = Arc::clone(self);
        let body = move || tls.watch_until_gone(&wake);
        std::thread::Builder::new().name("certificate".to_owned()).spawn(body).map(drop)
    }

    fn watch_until_gone(&self, wake: &flume::Receiver<()>) {
        let settle = self.reload.min(Duration::from_millis(SETTLE_MS));
        let mut changed = None;
        loop {
            let pause = if changed.is_some() { settle } else { self.reload };
            match wake.recv_timeout(pause) {
                Ok(()) => {
                    changed = None;
                    self.reload();
                    continue;
                }
                Err(flume::RecvTimeoutError::Disconnected) => return,
                Err(flume::RecvTimeoutError::Timeout) => {}
            }
            let now = Stamps::of(&self.certificate, &self.key);
            if now == *self.read.lock().unwrap_or_else(PoisonError::into_inner) {
                changed = None;
            } else if changed.as_ref() == Some(&now) {
                changed = None;
                self.reload();
            } else {
                changed = Some(now);
            }
        }
    }

    /// What a scraper is told.
    pub fn metrics(&self) -> Vec<Metric> {
        let expires_s = self.current.0.read().unwrap_or_else(PoisonError::into_inner).expires_s;
        let count = |count: &AtomicU64| MetricValue::Counter(count.load(Ordering::Relaxed));
        vec![
            Metric::new(
                "chatring_tls_certificate_expires_seconds",
                "Unix time at which the certificate in use expires",
                MetricValue::Gauge(expires_s),
            ),
            Metric::new(
                "chatring_tls_reloads",
                "certificates that were taken in place of one before",
                count(&self.reloads),
            ),
            Metric::new(
                "chatring_tls_reloads_refused",
                "new certificates that were refused",
                count(&self.refused),
            ),
        ]
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// The certificate in use.
#[derive(Debug)]
struct Current(RwLock<Loaded>);

#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    expires_s: u64,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

/// How the files looked.
#[derive(Debug, PartialEq, Eq)]
struct Stamps([Option<Stamp>; 2]);

/// What changes when a file is replaced or written.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl Stamps {
    fn of(certificate: &Path, key: &Path) -> Stamps {
        let stamp = |file: Metadata| Stamp {
            inode: file.ino(),
            length: file.len(),
            written: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        };
        Stamps([certificate, key].map(|path| std::fs::metadata(path).ok().map(stamp)))
    }
}

fn server_config(current: &Arc<Current>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(current) as _);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // Who comes back is known by a ticket that it keeps itself: nothing is kept here.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

fn load(certificate: &Path, key: &Path) -> Result<Loaded, TlsError> {
    let chain = read(certificate)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(certificate, error.to_string()))?;
    if !(1..=CHAIN_MAX).contains(&chain.len()) {
        let reason = format!("holds {} certificates in PEM, not 1 to {CHAIN_MAX}", chain.len());
        return Err(wrong(certificate, reason));
    }
    let expires_s = expiry::not_after(&chain[0])
        .ok_or_else(|| wrong(certificate, "holds no certificate that can be read".to_owned()))?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| wrong(key, "holds no private key in PEM".to_owned()))?;
    let pair = CertifiedKey::from_der(chain, private, &ring::default_provider());
    let pair = pair.map_err(|error| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        error,
    })?;
    Ok(Loaded { key: Arc::new(pair), expires_s })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let error = |error: std::io::Error| wrong(path, error.to_string());
    if std::fs::metadata(path).map_err(error)?.len() > FILE_BYTES_MAX {
        return Err(wrong(path, format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read(path).map_err(error)
}

fn wrong(path: &Path, reason: String) -> TlsError {
    TlsError::File { path: path.to_owned(), reason }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Period;

    struct Files {
        _folder: tempfile::TempDir,
        config: config::Tls,
    }

    fn files() -> Files {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let config = config::Tls {
            certificate: path("cert.pem"),
            key: path("key.pem"),
            reload: Period::from_ms(20),
        };
        Files { _folder: folder, config }
    }

    fn put(config: &config::Tls, year: i32) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(year, 6, 1);
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(&config.certificate, certificate.pem()).expect("a file");
        std::fs::write(&config.key, key.serialize_pem()).expect("a file");
    }

    fn expires_s(tls: &ServerTls) -> u64 {
        match tls.metrics()[0].value {
            MetricValue::Gauge(value) => value,
            ref other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_files_there_is_no_tls() {
        assert!(ServerTls::open(&config::Tls::default()).expect("nothing to read").is_none());
    }

    #[test]
    fn files_that_are_of_no_use_are_named() {
        let files = files();
        let message = || ServerTls::open(&files.config).expect_err("no use").to_string();
        assert!(message().contains("cert.pem"));
        std::fs::write(&files.config.certificate, "nothing").expect("a file");
        assert!(message().contains("holds 0 certificates"));
        put(&files.config, 2100);
        let key = std::fs::read(&files.config.key).expect("the key");
        std::fs::write(&files.config.key, "nothing").expect("a file");
        assert!(message().contains("key.pem: holds no private key"));
        put(&files.config, 2100);
        std::fs::write(&files.config.key, key).expect("a file");
        assert!(message().contains("cert.pem and"), "{}", message());
        assert_eq!(message().lines().count(), 1);
    }

    #[test]
    fn a_wrong_or_expired_pair_is_refused_and_the_one_before_stays() {
        let files = files();
        put(&files.config, 2100);
        let tls = ServerTls::open(&files.config).expect("good files").expect("files");
        assert_eq!(expires_s(&tls), 4_115_491_200);
        let key = std::fs::read(&files.config.key).expect("the key");
        put(&files.config, 2101);
        std::fs::write(&files.config.key, key).expect("a file");
        tls.reload();
        put(&files.config, 2020);
        tls.reload();
        assert_eq!((expires_s(&tls), tls.refused.load(Ordering::Relaxed)), (4_115_491_200, 2));
        put(&files.config, 2101);
        tls.reload();
        assert_eq!((expires_s(&tls), tls.reloads.load(Ordering::Relaxed)), (4_147_027_200, 1));
    }

    #[test]
    fn changed_files_are_read_without_being_told() {
        let files = files();
        put(&files.config, 2100);
        let tls = ServerTls::open(&files.config).expect("good files").expect("files");
        let (wake, woken) = flume::bounded(1);
        tls.watch(woken).expect("a thread");
        put(&files.config, 2101);
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while expires_s(&tls) != 4_147_027_200 {
            assert!(std::time::Instant::now() < until, "it is not read");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(wake);
    }
}
