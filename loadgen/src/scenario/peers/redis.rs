//! Redis Streams: a stream per receiver's talk, XADD, and XREAD BLOCK on a second connection.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::books::Workload;
use super::drive::{Client, Said, Seat};
use super::{Peer, write_file};

/// Deepest nesting of a reply to XREAD: list, stream, entries, entry, fields.
const DEPTH_MAX: u32 = 6;

/// The server and how it is set up.
pub struct Redis;

impl Peer for Redis {
    type Client = RedisClient;

    fn command(&mut self, program: &Path, folder: &Path, port: u16) -> Result<Command, String> {
        let config = format!(
            "bind 127.0.0.1\nport {port}\ndir {folder}\ndaemonize no\nmaxclients 100000\n\
             appendonly yes\nappendfsync always\nsave \"\"\nauto-aof-rewrite-percentage 0\n",
            folder = folder.display(),
        );
        let mut command = Command::new(program);
        command.arg(write_file(folder, "redis.conf", &config)?);
        Ok(command)
    }

    fn acked(&self) -> String {
        "the reply to XADD: in the append-only file and fsynced (`appendfsync always`)".to_owned()
    }

    fn prepare(&mut self, _server: SocketAddr) -> Result<(), String> {
        Ok(())
    }

    fn seats(&self, workload: Workload) -> Vec<Seat<RedisClient>> {
        let mut seats = Vec::new();
        for user in 0..workload.users() {
            if let Some((talk, _)) = workload.receives_in(user) {
                let reader = Role::Reader { talk, last: "0-0".to_owned() };
                seats.push(Seat { user, sends: false, client: RedisClient(reader) });
            }
            if let Some(talk) = workload.sends_in(user) {
                let sender = Role::Sender { talk, in_flight: None, up: false };
                seats.push(Seat { user, sends: true, client: RedisClient(sender) });
            }
        }
        seats
    }
}

/// One connection: it adds, or it waits for what is added.
pub struct RedisClient(Role);

enum Role {
    Sender { talk: u32, in_flight: Option<u32>, up: bool },
    Reader { talk: u32, last: String },
}

impl Client for RedisClient {
    fn open(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        command(out, &[b"PING"]);
        Ok(())
    }

    fn receive(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        say: &mut dyn FnMut(Said<'_>),
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some((value, bytes)) = parse(&input[used..], DEPTH_MAX)? {
            used += bytes;
            match (&mut self.0, value) {
                (_, Value::Error(text)) => return Err(String::from_utf8_lossy(text).into_owned()),
                (Role::Sender { up, .. }, Value::Simple(b"PONG")) if !*up => {
                    *up = true;
                    say(Said::Ready);
                }
                (Role::Sender { in_flight, .. }, Value::Bulk(Some(_id))) => {
                    say(Said::Acked(in_flight.take().ok_or("a reply to nothing")?));
                }
                (reader @ Role::Reader { .. }, Value::Simple(b"PONG")) => {
                    reader.read_on(out);
                    say(Said::Ready);
                }
                (reader @ Role::Reader { .. }, Value::Array(Some(streams))) => {
                    reader.take(&streams, say)?;
                    reader.read_on(out);
                }
                (_, value) => return Err(format!("an unexpected reply: {value:?}")),
            }
        }
        Ok(used)
    }

    fn send(&mut self, number: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let Role::Sender { talk, in_flight, .. } = &mut self.0 else {
            return Err("a reader does not send".to_owned());
        };
        *in_flight = Some(number);
        command(out, &[b"XADD", format!("s{talk}").as_bytes(), b"*", b"m", body]);
        Ok(())
    }
}

impl Role {
    fn read_on(&self, out: &mut Vec<u8>) {
        if let Role::Reader { talk, last } = self {
            let stream = format!("s{talk}");
            let parts: [&[u8]; 6] =
                [b"XREAD", b"BLOCK", b"0", b"STREAMS", stream.as_bytes(), last.as_bytes()];
            command(out, &parts);
        }
    }

    /// Takes a reply to XREAD: `[[stream, [[id, [field, body]], …]]]`.
    fn take(&mut self, streams: &[Value<'_>], say: &mut dyn FnMut(Said<'_>)) -> Result<(), String> {
        let Role::Reader { last, .. } = self else { return Err("not a reader".to_owned()) };
        let [Value::Array(Some(stream))] = streams else { return Err("not one stream".to_owned()) };
        let [_, Value::Array(Some(entries))] = stream.as_slice() else {
            return Err("a stream without entries".to_owned());
        };
        for entry in entries {
            let Value::Array(Some(entry)) = entry else { return Err("no entry".to_owned()) };
            let [Value::Bulk(Some(id)), Value::Array(Some(fields))] = entry.as_slice() else {
                return Err("an entry without fields".to_owned());
            };
            let [_, Value::Bulk(Some(body))] = fields.as_slice() else {
                return Err("an entry of another form".to_owned());
            };
            say(Said::Delivered(body));
            *last = String::from_utf8_lossy(id).into_owned();
        }
        Ok(())
    }
}

/// A value of RESP 2.
#[derive(Debug, PartialEq, Eq)]
enum Value<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Int(i64),
    Bulk(Option<&'a [u8]>),
    Array(Option<Vec<Value<'a>>>),
}

/// The value at the beginning, if it is whole, and its length.
fn parse(input: &[u8], depth_max: u32) -> Result<Option<(Value<'_>, usize)>, String> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let (line, after) = (&input[1.min(end)..end], end + 2);
    let number = || {
        let text = std::str::from_utf8(line).ok();
        text.and_then(|text| text.parse::<i64>().ok()).ok_or("a length that is no number")
    };
    Ok(match input[0] {
        b'+' => Some((Value::Simple(line), after)),
        b'-' => Some((Value::Error(line), after)),
        b':' => Some((Value::Int(number()?), after)),
        b'$' => match usize::try_from(number()?) {
            Err(_negative) => Some((Value::Bulk(None), after)),
            Ok(length) => {
                let end = after.checked_add(length).ok_or("a length beyond all bounds")?;
                let body = input.get(after..end).filter(|_| input.len() >= end + 2);
                body.map(|body| (Value::Bulk(Some(body)), end + 2))
            }
        },
        b'*' => match usize::try_from(number()?) {
            Err(_negative) => Some((Value::Array(None), after)),
            Ok(_) if depth_max == 0 => return Err("a reply that is nested too deep".to_owned()),
            Ok(count) => {
                let (mut values, mut at) = (Vec::new(), after);
                for _ in 0..count {
                    match parse(&input[at..], depth_max - 1)? {
                        Some((value, bytes)) => {
                            values.push(value);
                            at += bytes;
                        }
                        None => return Ok(None),
                    }
                }
                Some((Value::Array(Some(values)), at))
            }
        },
        other => return Err(format!("a reply that begins with {other:#x}")),
    })
}

fn command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    // Writing to memory does not fail.
    let _ = write!(out, "*{}\r\n", parts.len());
    for part in parts {
        let _ = write!(out, "${}\r\n", part.len());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XREAD: &[u8] =
        b"*1\r\n*2\r\n$2\r\ns4\r\n*1\r\n*2\r\n$3\r\n9-1\r\n*2\r\n$1\r\nm\r\n$2\r\nhi\r\n";

    #[test]
    fn a_reply_is_taken_once_it_is_whole() {
        for cut in 0..XREAD.len() {
            assert_eq!(parse(&XREAD[..cut], DEPTH_MAX), Ok(None), "{cut} bytes");
        }
        let (_, bytes) = parse(XREAD, DEPTH_MAX).unwrap().unwrap();
        assert_eq!(bytes, XREAD.len());
        assert_eq!(parse(b"$-1\r\n", 1), Ok(Some((Value::Bulk(None), 5))));
        assert_eq!(parse(b":-7\r\n", 1), Ok(Some((Value::Int(-7), 5))));
        assert!(parse(b"$18446744073709551615\r\n", 1).is_err());
        assert!(parse(b"?\r\n", 1).is_err());
        assert!(parse("*1\r\n".repeat(9).as_bytes(), DEPTH_MAX).is_err());
    }

    #[test]
    fn a_reader_reads_on_behind_the_last_entry() {
        let mut client = RedisClient(Role::Reader { talk: 4, last: "0-0".to_owned() });
        let (mut out, mut bodies) = (Vec::new(), Vec::new());
        let used = client.receive(XREAD, &mut out, &mut |said| {
            if let Said::Delivered(body) = said {
                bodies.push(body.to_vec());
            }
        });
        assert_eq!(used, Ok(XREAD.len()));
        assert_eq!(bodies, [b"hi"]);
        assert!(out.ends_with(b"$7\r\nSTREAMS\r\n$2\r\ns4\r\n$3\r\n9-1\r\n"));
    }

    #[test]
    fn a_sender_tells_acks_from_errors() {
        let mut client = RedisClient(Role::Sender { talk: 1, in_flight: None, up: true });
        let mut out = Vec::new();
        client.send(5, b"hi", &mut out).unwrap();
        assert_eq!(out, b"*5\r\n$4\r\nXADD\r\n$2\r\ns1\r\n$1\r\n*\r\n$1\r\nm\r\n$2\r\nhi\r\n");
        let mut acked = Vec::new();
        let mut say = |said: Said<'_>| {
            if let Said::Acked(number) = said {
                acked.push(number);
            }
        };
        client.receive(b"$3\r\n1-0\r\n", &mut out, &mut say).unwrap();
        assert!(client.receive(b"-OOM no\r\n", &mut out, &mut say).unwrap_err().contains("OOM"));
        assert_eq!(acked, [5]);
    }
}
