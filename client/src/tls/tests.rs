#![allow(clippy::unwrap_used)]

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ServerConfig;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, SupportedProtocolVersion};

use super::*;

/// Both ends, which know each other.
fn pair(version: &'static SupportedProtocolVersion) -> (TlsSession, TlsSession) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let provider = Arc::new(ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let client = TlsSession::client(Arc::new(client), name).unwrap();
    (client, TlsSession::server(Arc::new(server)).unwrap())
}

/// Carries bytes to and fro in pieces of `step` bytes until nobody has anything to say; answers
/// what each end has read.
fn carry(
    client: &mut TlsSession,
    server: &mut TlsSession,
    to_server: &mut BytesMut,
    to_client: &mut BytesMut,
    step: usize,
) -> (Vec<u8>, Vec<u8>) {
    let (mut at_client, mut at_server) = (Vec::new(), Vec::new());
    let mut scratch = TlsScratch::default();
    while !to_server.is_empty() || !to_client.is_empty() {
        let piece = to_server.split_to(step.min(to_server.len()));
        server.receive(&piece, &mut scratch, to_client).unwrap();
        at_server.extend_from_slice(&scratch.plain);
        let piece = to_client.split_to(step.min(to_client.len()));
        client.receive(&piece, &mut scratch, to_server).unwrap();
        at_client.extend_from_slice(&scratch.plain);
    }
    (at_client, at_server)
}

fn shake_hands(
    client: &mut TlsSession,
    server: &mut TlsSession,
    step: usize,
) -> (BytesMut, BytesMut) {
    let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
    client.receive(&[], &mut TlsScratch::default(), &mut to_server).unwrap();
    carry(client, server, &mut to_server, &mut to_client, step);
    assert!(!client.is_handshaking() && !server.is_handshaking());
    (to_server, to_client)
}

#[test]
fn bytes_come_through_in_pieces_of_any_size_and_nothing_is_kept() {
    for version in [&TLS12, &TLS13] {
        for step in [1, 7, 1_000, 100_000] {
            let (mut client, mut server) = pair(version);
            let (mut to_server, mut to_client) = shake_hands(&mut client, &mut server, step);
            let text: Vec<u8> = (0..50_000u32).map(|n| n as u8).collect();
            client.send(&text, &mut to_server).unwrap();
            server.send(&text[..40_000], &mut to_client).unwrap();
            // Both send while half of what the other one says has come.
            let half = to_server.split_to(to_server.len() / 2);
            let mut scratch = TlsScratch::default();
            server.receive(&half, &mut scratch, &mut to_client).unwrap();
            let mut first = scratch.plain.clone();
            server.send(&text[40_000..], &mut to_client).unwrap();
            let (at_client, at_server) =
                carry(&mut client, &mut server, &mut to_server, &mut to_client, step);
            first.extend_from_slice(&at_server);
            assert_eq!(first, text);
            assert_eq!(at_client, text);
            assert_eq!((client.partial.capacity(), server.partial.capacity()), (0, 0));
        }
    }
}

#[test]
fn the_last_word_is_told_and_said_once() {
    for version in [&TLS12, &TLS13] {
        let (mut client, mut server) = pair(version);
        let (mut to_server, mut to_client) = shake_hands(&mut client, &mut server, 4_096);
        client.send(b"bye", &mut to_server).unwrap();
        client.close(&mut to_server);
        let length = to_server.len();
        client.close(&mut to_server);
        assert_eq!(to_server.len(), length);
        let mut scratch = TlsScratch::default();
        server.receive(&to_server, &mut scratch, &mut to_client).unwrap();
        assert_eq!(scratch.plain, b"bye");
        assert!(server.peer_has_closed());
        // The other direction is open still, whatever follows the last word.
        server.receive(b"garbage", &mut scratch, &mut to_client).unwrap();
        server.send(b"farewell", &mut to_client).unwrap();
        server.close(&mut to_client);
        client.receive(&to_client, &mut scratch, &mut to_server).unwrap();
        assert_eq!(scratch.plain, b"farewell");
    }
}

#[test]
fn plain_bytes_and_garbage_break_the_connection_for_good() {
    let cases = [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Some(&0x15)),
        (&[0; 600], Some(&0x15)),
        // The library gives no alert for a handshake message that is too long.
        (&[0x16, 3, 1, 0, 4, 9, 9, 9, 9], None),
    ];
    for (bytes, alert) in cases {
        let (_, mut server) = pair(&TLS13);
        let (mut scratch, mut out) = (TlsScratch::default(), BytesMut::new());
        let result = server.receive(bytes, &mut scratch, &mut out);
        assert!(matches!(result, Err(TlsError::Protocol(_))), "{bytes:?}: {result:?}");
        assert!(scratch.plain.is_empty());
        assert_eq!(out.first(), alert, "{bytes:?}: {result:?}");
        server.receive(bytes, &mut scratch, &mut out).expect_err("it stays broken");
        server.send(b"x", &mut out).expect_err("nothing can be said");
    }
}

#[test]
fn a_handshake_message_without_end_is_refused() {
    let (_, mut server) = pair(&TLS13);
    let (mut scratch, mut out) = (TlsScratch::default(), BytesMut::new());
    // A ClientHello of 60,000 bytes in records of 1,000.
    let mut record = vec![0x16, 3, 1, 3, 0xe8];
    record.extend_from_slice(&[1, 0, 0xea, 0x60]);
    record.resize(5 + 1_000, 0);
    for n in 0..60 {
        let result = server.receive(&record, &mut scratch, &mut out);
        assert_eq!(result.is_err(), n * record.len() >= PARTIAL_BYTES_MAX - record.len(), "{n}");
        assert!(server.partial.capacity() <= PARTIAL_BYTES_MAX);
        record[5..9].copy_from_slice(&[0; 4]);
    }
}

#[test]
fn a_changed_record_ends_the_connection() {
    let (mut client, mut server) = pair(&TLS13);
    let (mut to_server, mut to_client) = shake_hands(&mut client, &mut server, 4_096);
    client.send(b"pay ten", &mut to_server).unwrap();
    let last = to_server.len() - 1;
    to_server[last] ^= 1;
    let mut scratch = TlsScratch::default();
    server.receive(&to_server, &mut scratch, &mut to_client).expect_err("it was changed");
    assert!(scratch.plain.is_empty());
    let mut out = BytesMut::new();
    client.receive(&to_client, &mut scratch, &mut out).expect_err("the alert");
}
