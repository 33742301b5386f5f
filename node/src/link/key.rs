//! The file of the cluster's key: 64 hexadecimal digits that its owner alone may read.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use chatring_wire::link::{ClusterKey, KEY_BYTES};
use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;

use crate::auth::write_private;

/// Its name in the data folder, if the configuration names no other file.
pub const CLUSTER_KEY_FILE: &str = "cluster.key";

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1_024;

/// Why the cluster's key cannot be used.
#[derive(Debug, Error)]
#[error("cluster key {}: {reason}", path.display())]
pub struct KeyError {
    /// Its file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Reads the key.
///
/// # Errors
/// Nobody else may read the file, and there must be 64 hexadecimal digits in it.
pub fn read_key(path: &Path) -> Result<ClusterKey, KeyError> {
    let error = |reason: String| KeyError { path: path.to_owned(), reason };
    read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            error("not there; a node makes it when it starts with link.listen".to_owned())
        }
        _ => error(e.to_string()),
    })
}

/// The same for a node, which makes the file if there is none. Call it while the data folder is
/// locked.
pub fn own_key(path: &Path) -> Result<ClusterKey, KeyError> {
    let error = |e: io::Error| KeyError { path: path.to_owned(), reason: e.to_string() };
    match read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        read => return read.map_err(error),
    }
    let mut bytes = [0; KEY_BYTES];
    let random = SystemRandom::new().fill(&mut bytes);
    random.map_err(|_| error(io::Error::other("the system's random source failed")))?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write_private(path, format!("{text}\n").as_bytes()).map_err(error)?;
    Ok(ClusterKey::new(&bytes))
}

fn read(path: &Path) -> io::Result<ClusterKey> {
    let file = std::fs::metadata(path)?;
    if file.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other("others may read it: chmod 600"));
    }
    if file.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("holds something else than a key"));
    }
    let text = std::fs::read_to_string(path)?;
    let bytes = parse(text.trim_ascii().as_bytes());
    bytes
        .map(|bytes| ClusterKey::new(&bytes))
        .ok_or_else(|| io::Error::other(format!("must hold {} hexadecimal digits", 2 * KEY_BYTES)))
}

fn parse(text: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; KEY_BYTES];
    if text.len() != 2 * KEY_BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn a_node_makes_a_key_that_reads_back_and_that_nobody_else_may_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(CLUSTER_KEY_FILE);
        let missing = read_key(&path).expect_err("none yet").to_string();
        assert!(missing.contains("not there"), "{missing}");
        own_key(&path).expect("a new one");
        let text = fs::read_to_string(&path).expect("it is there");
        assert!(parse(text.trim_ascii().as_bytes()).is_some(), "{text}");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        own_key(&path).expect("the same again");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), text);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("allowed");
        for refused in [read_key(&path), own_key(&path)] {
            assert!(refused.expect_err("too open").to_string().contains("chmod 600"));
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        for bad in ["", "00", &"g".repeat(64), &"0".repeat(65), &"0".repeat(2_000)] {
            write_private(&path, bad.as_bytes()).expect("a file");
            assert!(read_key(&path).is_err(), "{bad:?}");
            assert!(own_key(&path).is_err(), "{bad:?} must not be replaced");
        }
    }
}
