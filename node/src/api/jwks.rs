//! Fetches the key sets of issuers: one task for each, with a pause between any two fetches.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use chatring_client::tls::{MaybeTls, TlsSession, TlsStream};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::extract::unix_ms;
use crate::auth::{JWKS_BYTES_MAX, JwksError, KeySet, Source};

/// Time that a fetch may take.
const FETCH_MS_MAX: u64 = 10_000;
/// Pause after a fetch that failed.
const RETRY_MS: u64 = 30_000;

/// Keeps a set up to date, for ever. A fetch that fails says so once, until one has worked again.
pub(super) async fn keep(set: Arc<KeySet>) {
    let mut failed = false;
    loop {
        let fetched = fetch(set.source()).await;
        let before = set.figures().0;
        let pause = match set.take(fetched, unix_ms() / 1_000) {
            Ok(keys) => {
                if failed || before != keys as u64 {
                    info!(issuer = set.issuer(), keys, "keys of an issuer are in use");
                }
                failed = false;
                set.pace().refresh
            }
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    let issuer = set.issuer();
                    warn!(issuer, keys = before, "keys of an issuer cannot be had: {error}");
                }
                set.pace().refresh.min(Duration::from_millis(RETRY_MS))
            }
        };
        // Whatever tokens ask for, the issuer is not asked more often.
        let least = set.pace().pause;
        sleep(least).await;
        let _ = timeout(pause.saturating_sub(least), set.asked().recv_async()).await;
    }
}

async fn fetch(source: &Source) -> Result<Vec<u8>, JwksError> {
    let fetching = async {
        match source {
            Source::File(path) => {
                let path = path.clone();
                let read = move || crate::auth::read_jwks(&path);
                match tokio::task::spawn_blocking(read).await {
                    Ok(read) => read,
                    Err(error) => Err(failed(error)),
                }
            }
            Source::Plain(url) => get(url, None).await,
            Source::Url(url, tls) => get(url, Some(tls)).await,
        }
    };
    match timeout(Duration::from_millis(FETCH_MS_MAX), fetching).await {
        Ok(fetched) => fetched,
        Err(elapsed) => Err(failed(elapsed)),
    }
}

/// One request on a connection of its own. A redirect is a failure: keys come from where the
/// operator says.
async fn get(url: &str, tls: Option<&Arc<ClientConfig>>) -> Result<Vec<u8>, JwksError> {
    let uri: Uri = url.parse().map_err(failed)?;
    let stream = connect(&uri, tls).await.map_err(failed)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(failed)?;
    let asking = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        if answer.status() != StatusCode::OK {
            return Err(failed(format!("the answer is {}", answer.status())));
        }
        let body = Limited::new(answer.into_body(), JWKS_BYTES_MAX).collect().await;
        Ok(body.map_err(failed)?.to_bytes().to_vec())
    };
    let serving = async {
        // Its error is that of the request, too.
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = asking => answer,
        () = serving => Err(failed("the connection has ended")),
    }
}

async fn connect(uri: &Uri, tls: Option<&Arc<ClientConfig>>) -> io::Result<MaybeTls> {
    let host = uri.host().unwrap_or_default();
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = TcpStream::connect((name.as_str(), port)).await?;
    let Some(tls) = tls else { return Ok(MaybeTls::Plain(stream)) };
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let session = TlsSession::client(Arc::clone(tls), name).map_err(io::Error::other)?;
    let mut stream = TlsStream::new(stream, Box::new(session));
    stream.handshake().await?;
    Ok(MaybeTls::Tls(Box::new(stream)))
}

fn failed(error: impl ToString) -> JwksError {
    JwksError::Fetch(error.to_string())
}
