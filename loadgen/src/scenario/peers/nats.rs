//! NATS JetStream: one file stream for all talks, and a push consumer per receiver, set up as
//! client libraries set up an ordered consumer (no acks of receivers, state in memory).

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::books::Workload;
use super::drive::{Client, Said, Seat};
use super::{Peer, write_file};

/// How long the server may take to make the stream.
const PREPARE_MAX: Duration = Duration::from_secs(10);
const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
                       \"no_responders\":true,\"lang\":\"rust\",\"version\":\"0\"}\r\n";
/// Subscriptions of a connection, by number.
const SID_REPLIES: &str = "1";
const SID_BODIES: &str = "2";

/// The server and how it is set up.
#[derive(Default)]
pub struct Nats {
    syncs_always: bool,
}

impl Peer for Nats {
    type Client = NatsClient;

    fn command(&mut self, program: &Path, folder: &Path, port: u16) -> Result<Command, String> {
        let config = |sync: &str| {
            let store = folder.join("store");
            format!(
                "listen: \"127.0.0.1:{port}\"\nmax_connections: 100000\n\
                 jetstream {{ store_dir: \"{}\"\n{sync} }}\n",
                store.display(),
            )
        };
        let file = write_file(folder, "nats.conf", &config("sync_interval: always"))?;
        // `-t` only reads the configuration: older versions do not know `sync_interval`.
        let test = Command::new(program).arg("-t").arg("-c").arg(&file).output();
        self.syncs_always = test.is_ok_and(|output| output.status.success());
        if !self.syncs_always {
            write_file(folder, "nats.conf", &config(""))?;
        }
        let mut command = Command::new(program);
        command.arg("-c").arg(file);
        Ok(command)
    }

    fn acked(&self) -> String {
        match self.syncs_always {
            true => {
                "the publish acknowledgement: in the stream's file and fsynced \
                     (`sync_interval: always`)"
            }
            false => {
                "the publish acknowledgement: written to the stream's file and not synced (fsync \
                 every 2 min; this version does not know `sync_interval: always`)"
            }
        }
        .to_owned()
    }

    fn prepare(&mut self, server: SocketAddr) -> Result<(), String> {
        let request = "{\"name\":\"M\",\"subjects\":[\"m.*\"],\"storage\":\"file\",\
                       \"retention\":\"limits\",\"num_replicas\":1}";
        let mut stream = TcpStream::connect(server).map_err(text)?;
        stream.set_read_timeout(Some(PREPARE_MAX)).map_err(text)?;
        let length = request.len();
        let all = format!(
            "{CONNECT}SUB r {SID_REPLIES}\r\n\
             PUB $JS.API.STREAM.CREATE.M r {length}\r\n{request}\r\n"
        );
        stream.write_all(all.as_bytes()).map_err(text)?;
        let mut input = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).map_err(text)?;
            input.extend_from_slice(&bytes[..count]);
            let mut used = 0;
            while let Some((message, bytes)) = next_message(&input[used..])? {
                used += bytes;
                if let Message::Msg { payload, .. } = message {
                    return is_good(payload);
                }
            }
            input.drain(..used);
            if count == 0 {
                return Err("the server closed while the stream was made".to_owned());
            }
        }
    }

    fn seats(&self, workload: Workload) -> Vec<Seat<NatsClient>> {
        let seats = (0..workload.users()).map(|user| {
            let sends_in = workload.sends_in(user);
            let receives_in = workload.receives_in(user).map(|(talk, _)| talk);
            let client = NatsClient { user, sends_in, receives_in, in_flight: None };
            Seat { user, sends: sends_in.is_some(), client }
        });
        seats.collect()
    }
}

/// One user's connection. Talk n is the subject `m.n`; replies come to `r.user.…`, bodies to
/// `d.user`.
pub struct NatsClient {
    user: u32,
    sends_in: Option<u32>,
    receives_in: Option<u32>,
    in_flight: Option<u32>,
}

impl Client for NatsClient {
    fn open(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let user = self.user;
        let text =
            format!("{CONNECT}SUB r.{user}.* {SID_REPLIES}\r\nSUB d.{user} {SID_BODIES}\r\n");
        out.extend_from_slice(text.as_bytes());
        let Some(talk) = self.receives_in else {
            out.extend_from_slice(b"PING\r\n");
            return Ok(());
        };
        let request = format!(
            "{{\"stream_name\":\"M\",\"config\":{{\"deliver_subject\":\"d.{user}\",\
             \"filter_subject\":\"m.{talk}\",\"deliver_policy\":\"all\",\"ack_policy\":\"none\",\
             \"max_deliver\":1,\"mem_storage\":true,\"num_replicas\":1,\"flow_control\":true,\
             \"idle_heartbeat\":5000000000}}}}"
        );
        let length = request.len();
        let text = format!("PUB $JS.API.CONSUMER.CREATE.M r.{user}.c {length}\r\n{request}\r\n");
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn receive(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        say: &mut dyn FnMut(Said<'_>),
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some((message, bytes)) = next_message(&input[used..])? {
            used += bytes;
            match message {
                Message::Info => {}
                Message::Ping => out.extend_from_slice(b"PONG\r\n"),
                Message::Pong => say(Said::Ready),
                Message::Error(text) => return Err(text.to_owned()),
                Message::Msg { sid: SID_REPLIES, subject, payload, .. } => {
                    is_good(payload)?;
                    let about = subject.rsplit('.').next().unwrap_or_default();
                    if about == "c" {
                        say(Said::Ready);
                    } else {
                        let number = self.in_flight.take().ok_or("an ack of nothing")?;
                        if about.parse() != Ok(number) {
                            return Err(format!("an ack of another message: {subject}"));
                        }
                        say(Said::Acked(number));
                    }
                }
                Message::Msg { status: Some(status), reply, .. } => {
                    if !status.starts_with("NATS/1.0 100") {
                        return Err(format!("the consumer says {status}"));
                    }
                    // A heartbeat, or a request to say how far one is.
                    if let Some(reply) = reply {
                        out.extend_from_slice(format!("PUB {reply} 0\r\n\r\n").as_bytes());
                    }
                }
                Message::Msg { payload, .. } => say(Said::Delivered(payload)),
            }
        }
        Ok(used)
    }

    fn send(&mut self, number: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let talk = self.sends_in.ok_or("a receiver does not send")?;
        self.in_flight = Some(number);
        let (user, length) = (self.user, body.len());
        // Writing to memory does not fail.
        let _ = write!(out, "PUB m.{talk} r.{user}.{number} {length}\r\n");
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
        Ok(())
    }
}

/// Replies of JetStream are JSON, errors of which have this field. A reply without a body says that
/// nobody serves the subject.
fn is_good(payload: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(payload);
    match text.is_empty() || text.contains("\"error\":") {
        true => Err(format!("the server refuses: {text}")),
        false => Ok(()),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Message<'a> {
    Info,
    Ping,
    Pong,
    Error(&'a str),
    Msg {
        subject: &'a str,
        sid: &'a str,
        reply: Option<&'a str>,
        /// The first line of the headers, where there are any.
        status: Option<&'a str>,
        payload: &'a [u8],
    },
}

/// The message at the beginning, if it is whole, and its length.
fn next_message(input: &[u8]) -> Result<Option<(Message<'_>, usize)>, String> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = std::str::from_utf8(&input[..end]).map_err(|_| "a line that is no text")?;
    let after = end + 2;
    let mut words = line.split_ascii_whitespace();
    let (with_headers, at_least) = match words.next().unwrap_or_default() {
        "INFO" => return Ok(Some((Message::Info, after))),
        "PING" => return Ok(Some((Message::Ping, after))),
        "PONG" => return Ok(Some((Message::Pong, after))),
        "-ERR" => return Ok(Some((Message::Error(line), after))),
        "MSG" => (false, 3),
        "HMSG" => (true, 4),
        _ => return Err(format!("an unexpected line: {line}")),
    };
    let words: Vec<&str> = words.collect();
    let bad = || format!("a line of another form: {line}");
    let reply = match words.len().checked_sub(at_least) {
        Some(0) => None,
        Some(1) => Some(words[2]),
        _ => return Err(bad()),
    };
    let number = |word: &str| word.parse::<u32>().map(|number| number as usize);
    let length = number(words[words.len() - 1]).map_err(|_| bad())?;
    let headers =
        if with_headers { number(words[words.len() - 2]).map_err(|_| bad())? } else { 0 };
    if input.len() < after + length + 2 {
        return Ok(None);
    }
    let head = input.get(after..after + headers.min(length)).unwrap_or_default();
    let status = std::str::from_utf8(head).ok().and_then(|head| head.lines().next());
    let payload = &input[after + headers.min(length)..after + length];
    let message = Message::Msg { subject: words[0], sid: words[1], reply, status, payload };
    Ok(Some((message, after + length + 2)))
}

fn text(error: std::io::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_once_they_are_whole() {
        let input = b"MSG m.3 2 $JS.ACK.x 4\r\nh\r\ni\r\n";
        for cut in 0..input.len() {
            assert_eq!(next_message(&input[..cut]), Ok(None), "{cut} bytes");
        }
        let message = Message::Msg {
            subject: "m.3",
            sid: "2",
            reply: Some("$JS.ACK.x"),
            status: None,
            payload: b"h\r\ni",
        };
        assert_eq!(next_message(input), Ok(Some((message, input.len()))));
        for bad in
            ["MSG a 1\r\n", "MSG a 1 x\r\n", "MSG a 1 2 3 4\r\n", "HMSG a 1 2\r\n", "+OK\r\n"]
        {
            assert!(next_message(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_user_becomes_ready_receives_and_answers() {
        let mut client =
            NatsClient { user: 3, sends_in: Some(3), receives_in: Some(2), in_flight: None };
        let mut out = Vec::new();
        client.open(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\"filter_subject\":\"m.2\""), "{text}");
        let mut said = Vec::new();
        let mut take = |client: &mut NatsClient, input: &[u8]| {
            let mut out = Vec::new();
            let mut say = |word: Said<'_>| said.push(format!("{word:?}"));
            client.receive(input, &mut out, &mut say)?;
            String::from_utf8(out).map_err(|error| error.to_string())
        };
        take(&mut client, b"INFO {}\r\nMSG r.3.c 1 13\r\n{\"type\":\"ok\"}\r\n").unwrap();
        take(&mut client, b"MSG m.2 2 $JS.ACK 2\r\nhi\r\n").unwrap();
        let flow = b"HMSG d.3 2 $FC.x 18 18\r\nNATS/1.0 100 F\r\n\r\n\r\n";
        let flow = [&flow[..], b"PING\r\n"].concat();
        assert_eq!(take(&mut client, &flow).unwrap(), "PUB $FC.x 0\r\n\r\nPONG\r\n");
        let mut out = Vec::new();
        client.send(7, b"hi", &mut out).unwrap();
        assert_eq!(out, b"PUB m.3 r.3.7 2\r\nhi\r\n");
        take(&mut client, b"MSG r.3.7 1 9\r\n{\"seq\":1}\r\n").unwrap();
        client.send(8, b"hi", &mut Vec::new()).unwrap();
        assert!(take(&mut client, b"MSG r.3.7 1 9\r\n{\"seq\":1}\r\n").is_err());
        client.send(8, b"hi", &mut Vec::new()).unwrap();
        assert!(take(&mut client, b"MSG r.3.8 1 12\r\n{\"error\":{ }}\r\n").is_err());
        let gone = b"HMSG d.3 2 18 18\r\nNATS/1.0 409 G\r\n\r\n\r\n";
        assert!(take(&mut client, gone).is_err());
        assert!(take(&mut client, b"-ERR 'Slow Consumer'\r\n").is_err());
        assert_eq!(said, ["Ready", "Delivered([104, 105])", "Acked(7)"]);
    }
}
