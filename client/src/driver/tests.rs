//! The driver against a small server over real sockets: it drops the connection between storing
//! and answering, in both subprotocols.

use std::time::Duration;

use bytes::BytesMut;
use chatring_wire::frame::{
    CacheAction, ChannelKind, Durability, Head, HeadRows, RequestId, UserRef, Welcome,
};
use chatring_wire::ws::{self, Limits, Role, ServerHandshake, ServerProgress};
use chatring_wire::{
    ClientFrame, DeviceId, HistoryId, MemberNumber, Ordinal, Outgoing, Seq, ServerCodec,
    ServerFrame, Uid,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::session::Start;

const CHANNEL: Cid = Cid(5);

/// Stores the first send of each cmid; answers only on every second connection.
#[derive(Debug, Default)]
struct TinyServer {
    stored: Vec<(Cmid, Bytes)>,
    connections: u32,
}

impl TinyServer {
    async fn serve(mut self, listener: TcpListener, subprotocol: Subprotocol, connections: u32) {
        while self.connections < connections {
            let (stream, _) = listener.accept().await.expect("it accepts");
            self.connections += 1;
            self.connection(stream, subprotocol).await;
        }
    }

    async fn connection(&mut self, mut stream: TcpStream, subprotocol: Subprotocol) -> Option<()> {
        let mut input = BytesMut::new();
        let names = ["chatring.v1", "chatring.v1.json"];
        let mut handshake = ServerHandshake::default();
        let head_bytes = loop {
            stream.read_buf(&mut input).await.ok().filter(|count| *count > 0)?;
            match handshake.advance(&input, &names).expect("a good request") {
                ServerProgress::Upgrade(upgrade) => {
                    let mut out = BytesMut::new();
                    upgrade.write_response(&mut out);
                    stream.write_all(&out).await.ok()?;
                    break upgrade.head_bytes;
                }
                _ => continue,
            }
        };
        let mut input = input.split_off(head_bytes);
        let mut codec = ServerCodec::new(subprotocol, 1 << 17);
        let mut decoder = ws::Decoder::new(Role::Server, Limits::default());
        loop {
            let mut rest = &input[..];
            let mut frames = Vec::new();
            while let Some(event) = decoder.next(&mut rest).expect("good bytes") {
                match event {
                    ws::Event::Message { payload, .. } => {
                        codec.decode(&payload, |frame| frames.push(frame)).expect("good frames");
                    }
                    ws::Event::Close(_) => return None,
                    _ => {}
                }
            }
            input.clear();
            let mut outgoing = Outgoing::new();
            for frame in frames {
                for answer in self.answer(frame)? {
                    codec.encode(&answer, &mut outgoing).expect("it fits");
                }
            }
            let mut out = BytesMut::new();
            let kind = match subprotocol {
                Subprotocol::Binary => ws::MessageKind::Binary,
                Subprotocol::Json => ws::MessageKind::Text,
            };
            for message in outgoing.messages() {
                ws::encode_message(&mut out, kind, message, None);
            }
            stream.write_all(&out).await.ok()?;
            stream.read_buf(&mut input).await.ok().filter(|count| *count > 0)?;
        }
    }

    /// `None` drops the connection.
    fn answer(&mut self, frame: ClientFrame) -> Option<Vec<ServerFrame>> {
        let head = |rows| Head {
            cid: CHANNEL,
            kind: ChannelKind::Direct,
            peer: Some(Uid(2)),
            me: MemberNumber(0),
            head: Seq(0),
            ordinal: Ordinal(0),
            floor: Seq(1),
            read: Seq(0),
            read_ordinal: Ordinal(0),
            received: Seq(0),
            rows,
        };
        match frame {
            ClientFrame::Hello(hello) => {
                assert_eq!(hello.token, "token");
                let welcome = Welcome {
                    uid: Uid(1),
                    device: DeviceId(1),
                    history: HistoryId(1),
                    time_ms: 0,
                    heartbeat_ms: 60_000,
                    window_pushes: 256,
                    window_bytes: 1 << 18,
                    frame_bytes_max: 1 << 17,
                    body_bytes_max: 1 << 16,
                    open_sends_max: 8,
                    durability: Durability::Memory,
                };
                let request = RequestId(0);
                let cursor = Bytes::from_static(b"here");
                Some(vec![
                    ServerFrame::Welcome(welcome),
                    ServerFrame::Syncing { request, cache: CacheAction::Keep },
                    ServerFrame::Synced { request, cursor },
                ])
            }
            ClientFrame::Open { request, .. } => {
                Some(vec![ServerFrame::Opened { request, head: head(HeadRows::Unchanged) }])
            }
            ClientFrame::Send(send) => {
                if !self.stored.iter().any(|(cmid, _)| *cmid == send.cmid) {
                    self.stored.push((send.cmid, send.body));
                }
                if self.connections % 2 == 1 {
                    return None;
                }
                let at = self.stored.iter().position(|(cmid, _)| *cmid == send.cmid)?;
                let (request, cid, seq) = (send.request, send.cid, Seq(at as u64 + 1));
                Some(vec![ServerFrame::Sent { request, cid, seq, time_ms: 7 }])
            }
            _ => Some(Vec::new()),
        }
    }
}

fn options(url: &str, subprotocol: Subprotocol, path: &std::path::Path) -> Options {
    Options {
        url: url.parse().expect("a URL"),
        subprotocol,
        config: Config::dense("token", Start::Oldest),
        tls: None,
        cache: Some(CacheFile::open(path, new_installation()).expect("it opens")),
    }
}

async fn stored(client: &mut Client) -> (Cmid, Seq) {
    loop {
        if let Event::Stored { cmid, seq, .. } = client.next_event().await.expect("it lives") {
            return (cmid, seq);
        }
    }
}

async fn a_send_survives_a_lost_answer_and_a_restart(subprotocol: Subprotocol) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cache");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ws://{}/", listener.local_addr().expect("an address"));
    let server = tokio::spawn(TinyServer::default().serve(listener, subprotocol, 4));
    let mut client = Client::spawn(options(&url, subprotocol, &path));
    let with = UserRef::Uid(Uid(2));
    client.with(|session, now| session.open(now, with)).await.expect("alive").expect("room");
    while !matches!(client.next_event().await, Some(Event::Opened { .. })) {}
    let text = Bytes::from_static(b"hello");
    let cmid = client.send(CHANNEL, MessageKind::TEXT, text.clone()).await.expect("alive");
    assert_eq!(stored(&mut client).await, (cmid.expect("room"), Seq(1)));
    assert!(client.socket_bytes().sent > 0 && client.socket_bytes().received > 0);
    client.close().await.expect("the cache is fine");

    // Sent over the third connection, which dies; then the process goes, and comes back.
    let client = Client::spawn(options(&url, subprotocol, &path));
    let cmid = client.send(CHANNEL, MessageKind::TEXT, text).await.expect("alive").expect("room");
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.close().await.expect("the cache is fine");
    let mut client = Client::spawn(options(&url, subprotocol, &path));
    assert_eq!(stored(&mut client).await, (cmid, Seq(2)));
    client.close().await.expect("the cache is fine");
    server.await.expect("the server is fine");
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let limit = Duration::from_secs(20);
    let outcome =
        runtime.expect("a runtime").block_on(async { tokio::time::timeout(limit, test).await });
    assert!(outcome.is_ok(), "it hangs");
}

#[test]
fn a_send_survives_a_lost_answer_and_a_restart_in_binary() {
    run(a_send_survives_a_lost_answer_and_a_restart(Subprotocol::Binary));
}

#[test]
fn a_send_survives_a_lost_answer_and_a_restart_in_json() {
    run(a_send_survives_a_lost_answer_and_a_restart(Subprotocol::Json));
}

#[test]
fn message_ids_are_uuids_of_version_7() {
    let (first, second) = (new_cmid(), new_cmid());
    assert_ne!(first, second);
    assert_eq!((first.0[6] >> 4, first.0[8] >> 6), (7, 2));
}
