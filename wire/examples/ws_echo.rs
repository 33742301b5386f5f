//! Echoes WebSocket messages, for foreign conformance suites: `ws_echo 127.0.0.1:0`.
//!
//! It prints one line, `listening on ws://ADDRESS`, and runs until it is stopped. One thread per
//! connection, no subprotocol, limits far above those of Chatring.

use std::env;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use chatring_wire::ws::{
    CloseHandshake, CloseState, Decoder, Event, HttpStatus, Limits, Role, ServerHandshake,
    ServerProgress, encode_message, encode_pong,
};

/// Connections, and so threads, at once; further ones are closed as they come.
const CONNECTIONS_MAX: usize = 64;
/// Longest wait for a peer, at any point.
const SILENCE_MS_MAX: u64 = 60_000;
/// Longest wait for a peer to end the connection after the closing.
const LINGER_MS_MAX: u64 = 1_000;
/// Longest life of a connection.
const LIFE_MS_MAX: u64 = 600_000;
/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;
/// Answers are written when so many bytes of them have gathered, and after each read.
const GATHER_BYTES: usize = 256 * 1024;
const LIMITS: Limits = Limits { message_bytes_max: 16 * 1024 * 1024, fragments_max: 100_000 };

fn main() -> ExitCode {
    let Some(address) = env::args().nth(1) else {
        eprintln!("usage: ws_echo ADDRESS:PORT");
        return ExitCode::from(2);
    };
    match listen(&address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ws_echo: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn listen(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on ws://{}", listener.local_addr()?)?;
    stdout.flush()?;
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = listener.accept()?;
        let Some(place) = Place::take(&open) else { continue };
        thread::spawn(move || {
            // A connection that breaks is its peer's affair.
            let _ = serve(stream);
            drop(place);
        });
    }
}

/// One of the places for connections, given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Option<Place> {
        let place = Place(Arc::clone(open));
        (open.fetch_add(1, Ordering::Relaxed) < CONNECTIONS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_millis(LIFE_MS_MAX);
    let silence = Some(Duration::from_millis(SILENCE_MS_MAX));
    stream.set_nodelay(true)?;
    stream.set_read_timeout(silence)?;
    stream.set_write_timeout(silence)?;
    let Some(rest) = shake_hands(&mut stream)? else { return linger(&mut stream) };
    let mut echo = Echo::new();
    echo.take(&mut stream, &rest)?;
    let mut scratch = vec![0; READ_BYTES];
    while echo.closing.state() != CloseState::Finished && Instant::now() < deadline {
        let read = stream.read(&mut scratch)?;
        if read == 0 {
            return Ok(());
        }
        echo.take(&mut stream, &scratch[..read])?;
    }
    linger(&mut stream)
}

/// What came behind the handshake; `None` if it was refused.
fn shake_hands(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut handshake = ServerHandshake::default();
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    let mut out = BytesMut::new();
    let rest = loop {
        match handshake.advance(&received, &[]) {
            Ok(ServerProgress::Incomplete) => {}
            Ok(ServerProgress::Upgrade(upgrade)) => {
                upgrade.write_response(&mut out);
                break Some(received.split_off(upgrade.head_bytes));
            }
            Ok(ServerProgress::NotWebSocket(_)) => {
                HttpStatus::UpgradeRequired.write_response(&mut out);
                break None;
            }
            Err(error) => {
                error.status().write_response(&mut out);
                break None;
            }
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => received.extend_from_slice(&chunk[..read]),
        }
    };
    stream.write_all(&out)?;
    Ok(rest)
}

struct Echo {
    decoder: Decoder,
    closing: CloseHandshake,
    out: BytesMut,
}

impl Echo {
    fn new() -> Echo {
        let decoder = Decoder::new(Role::Server, LIMITS);
        Echo { decoder, closing: CloseHandshake::default(), out: BytesMut::new() }
    }

    fn take(&mut self, stream: &mut TcpStream, mut input: &[u8]) -> io::Result<()> {
        loop {
            match self.decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(event)) => self.answer(event),
                Err(error) => {
                    self.closing.failed(&mut self.out, error, None);
                    break;
                }
            }
            if self.out.len() >= GATHER_BYTES {
                self.flush(stream)?;
            }
        }
        self.flush(stream)
    }

    fn answer(&mut self, event: Event) {
        match event {
            Event::Message { kind, payload } => {
                encode_message(&mut self.out, kind, &payload, None);
            }
            Event::Ping(payload) => encode_pong(&mut self.out, &payload, None),
            Event::Pong(_) => {}
            Event::Close(close) => self.closing.received(&mut self.out, &close, None),
        }
    }

    fn flush(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }
}

/// Ends our direction and reads the peer's to its end: a socket that is dropped with unread bytes
/// resets the connection, and the peer may lose our last frame.
fn linger(stream: &mut TcpStream) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_millis(LINGER_MS_MAX);
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_millis(LINGER_MS_MAX)))?;
    let mut scratch = [0; 4096];
    while stream.read(&mut scratch)? > 0 && Instant::now() < deadline {}
    Ok(())
}
