//! The node's ready file: where it listens, and the key that makes the users' tokens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use chatring_client::token::{TokenKey, TokenKeyError};
use serde::Deserialize;
use thiserror::Error;

use crate::limits::READY_FILE_BYTES_MAX;

/// What a ready file says, of which other keys are skipped.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ready {
    /// Where clients connect: `ws://HOST:PORT/…` or `wss://HOST:PORT/…`.
    pub ws: String,
    /// Where the API is: `http://HOST:PORT` or `https://HOST:PORT`.
    #[serde(default)]
    pub http: String,
    /// The Ed25519 key file of the deployment's own tokens.
    pub token_key_file: PathBuf,
    /// The node's process, on its own machine.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// Why a ready file is of no use (yet: a node that starts removes it and writes it anew).
#[derive(Debug, Error)]
pub enum ReadyError {
    /// It cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not what a node writes.
    #[error("{path} is no ready file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The API is not where plain bytes can be sent to.
    #[error("{reason}: {http:?}")]
    Api {
        /// Where the file says that it is.
        http: String,
        /// Why not.
        reason: &'static str,
    },
    /// The key that it names is of no use.
    #[error("{path}: {error}")]
    Key {
        /// The key's file.
        path: PathBuf,
        /// Why.
        error: TokenKeyError,
    },
}

impl Ready {
    /// Reads the file as it is now.
    pub fn read(path: &Path) -> Result<Ready, ReadyError> {
        let io = |error| ReadyError::Io { path: path.to_owned(), error };
        let format = |reason| ReadyError::Format { path: path.to_owned(), reason };
        if std::fs::metadata(path).map_err(io)?.len() > READY_FILE_BYTES_MAX {
            return Err(format("it is too long".to_owned()));
        }
        let text = std::fs::read(path).map_err(io)?;
        serde_json::from_slice(&text).map_err(|error| format(error.to_string()))
    }

    /// `HOST:PORT` of the API, if there is one, and whether TLS is spoken there.
    pub fn api(&self) -> Option<(&str, bool)> {
        match self.http.split_once("://")? {
            ("http", host) => Some((host, false)),
            ("https", host) => Some((host, true)),
            _ => None,
        }
    }

    /// The address of the API, for bytes that go there without TLS.
    ///
    /// # Errors
    /// There is no API, it speaks TLS, or its host is a name.
    pub fn plain_api(&self) -> Result<SocketAddr, ReadyError> {
        let unfit = |reason| ReadyError::Api { http: self.http.clone(), reason };
        match self.api() {
            Some((host, false)) => host.parse().map_err(|_| unfit("the API is at no address")),
            Some((_, true)) => Err(unfit("this load does not speak TLS")),
            None => Err(unfit("the ready file names no API")),
        }
    }

    /// Reads the key that the file names.
    pub fn token_key(&self) -> Result<TokenKey, ReadyError> {
        let path = self.token_key_file.clone();
        TokenKey::read(&path).map_err(|error| ReadyError::Key { path, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_speaks_tls_if_its_url_says_so() {
        let ready = |http: &str| Ready {
            ws: String::new(),
            http: http.to_owned(),
            token_key_file: PathBuf::new(),
            pid: None,
        };
        assert_eq!(ready("http://127.0.0.1:1").api(), Some(("127.0.0.1:1", false)));
        assert_eq!(ready("https://[::1]:1").api(), Some(("[::1]:1", true)));
        for none in ["", "127.0.0.1:1", "wss://127.0.0.1:1"] {
            assert_eq!(ready(none).api(), None, "{none}");
        }
        assert_eq!(ready("http://[::1]:7").plain_api().unwrap().port(), 7);
        for (http, reason) in
            [("https://[::1]:7", "TLS"), ("", "no API"), ("http://x:7", "no address")]
        {
            let error = ready(http).plain_api().unwrap_err().to_string();
            assert!(error.contains(reason), "{http}: {error}");
        }
    }

    #[test]
    fn the_file_may_say_more_but_not_less() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready.json");
        assert!(matches!(Ready::read(&path), Err(ReadyError::Io { .. })));
        std::fs::write(&path, r#"{"ws":"ws://127.0.0.1:1/v1","token_key_file":"/k","pid":1}"#)
            .unwrap();
        let ready = Ready::read(&path).unwrap();
        assert_eq!(ready.ws, "ws://127.0.0.1:1/v1");
        assert!(matches!(ready.token_key(), Err(ReadyError::Key { .. })));
        for text in ["", r#"{"ws":"ws://127.0.0.1:1/v1"}"#, "[]"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Ready::read(&path), Err(ReadyError::Format { .. })), "{text}");
        }
    }
}
