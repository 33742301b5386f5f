//! Whom a client trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

/// Why a client cannot check whom it talks to.
#[derive(Debug, Error)]
pub enum RootsError {
    /// The file of certificates cannot be read, or holds none.
    #[error("certificates {}: {reason}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The machine has no certificates.
    #[error("this machine has no root certificates ({0}); name a file of them")]
    Platform(String),
    /// TLS itself.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// A configuration that trusts the certificates of a PEM file, or those that the machine trusts.
/// Reads files: do it once.
///
/// # Errors
/// There are no certificates.
pub fn client_config(ca: Option<&Path>, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, RootsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let error = |reason: String| RootsError::File { path: path.to_owned(), reason };
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|e| error(e.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|e| error(e.to_string()))?;
                roots.add(certificate).map_err(|e| error(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(error("holds no certificate in PEM".to_owned()));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let reason = found.errors.first().map(ToString::to_string);
                return Err(RootsError::Platform(reason.unwrap_or_else(|| "none found".into())));
            }
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}
