//! Certificates of the tests' own, and a TLS client that shares no code with the server's TLS.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chatring_client::tls::client_config;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// Time in which a server must say something.
const PATIENCE: Duration = Duration::from_secs(30);

/// A certificate for this machine that has signed itself.
#[derive(Debug)]
pub struct Certificate {
    certificate: String,
    key: String,
}

impl Certificate {
    /// A new one, good until this year.
    pub fn make(year: i32) -> Certificate {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Certificate { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Where the two files of a server lie.
    pub fn paths(folder: &Path) -> (PathBuf, PathBuf) {
        (folder.join("certificate.pem"), folder.join("key.pem"))
    }

    /// Puts both files in place.
    pub fn put(&self, folder: &Path) {
        let (certificate, key) = Certificate::paths(folder);
        std::fs::write(key, &self.key).expect("a file");
        std::fs::write(certificate, &self.certificate).expect("a file");
    }

    /// Puts the certificate in place, beside a key that is not its own.
    pub fn put_without_key(&self, folder: &Path) {
        std::fs::write(Certificate::paths(folder).0, &self.certificate).expect("a file");
    }
}

/// Trusts the certificate that lies there now.
pub fn trust(folder: &Path) -> Arc<ClientConfig> {
    client_config(Some(&Certificate::paths(folder).0), &[]).expect("a certificate")
}

/// A connection that trusts the certificate in `folder` and offers these protocols.
pub fn connect(
    url: &str,
    folder: &Path,
    alpn: &[&[u8]],
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let config = client_config(Some(&Certificate::paths(folder).0), alpn).expect("a certificate");
    connect_with(url, config)
}

/// A connection with a configuration of the test's own; the handshake is made.
pub fn connect_with(
    url: &str,
    config: Arc<ClientConfig>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut socket = TcpStream::connect(address(url)).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
    socket.set_nodelay(true).expect("a socket");
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let mut session = ClientConnection::new(config, name).expect("a configuration");
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(session, socket))
}

/// `HOST:PORT` of a URL.
pub fn address(url: &str) -> &str {
    url.split('/').nth(2).expect("an address")
}

/// Asks for a path over HTTP/1.1; answers all that comes until the server ends the connection.
pub fn get(stream: &mut StreamOwned<ClientConnection, TcpStream>, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer, and the last word of TLS");
    answer
}
