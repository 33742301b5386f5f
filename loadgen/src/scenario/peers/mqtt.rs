//! Mosquitto: MQTT 3.1.1, QoS 1 on both legs, sessions that outlive their connection.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::books::Workload;
use super::drive::{Client, Said, Seat};
use super::{Peer, write_file};

/// Packet types with their fixed flags (MQTT 3.1.1, section 2.2).
mod packet {
    pub const CONNECT: u8 = 0x10;
    pub const CONNACK: u8 = 0x20;
    pub const PUBLISH_QOS1: u8 = 0x32;
    pub const PUBACK: u8 = 0x40;
    pub const SUBSCRIBE: u8 = 0x82;
    pub const SUBACK: u8 = 0x90;
}

/// Identifier of the one SUBSCRIBE of a connection.
const SUBSCRIBE_ID: u16 = 1;
/// Bytes of the longest length field.
const LENGTH_BYTES_MAX: usize = 4;

/// The server and how it is set up.
pub struct Mosquitto;

impl Peer for Mosquitto {
    type Client = MqttClient;

    fn command(&mut self, program: &Path, folder: &Path, port: u16) -> Result<Command, String> {
        // `user` counts only for root, as whom it would otherwise give up its rights to the folder.
        let config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n\
             persistence true\npersistence_location {folder}/\n\
             set_tcp_nodelay true\nmax_queued_messages 0\nlog_type error\n",
            folder = folder.display(),
        );
        let mut command = Command::new(program);
        command.arg("-c").arg(write_file(folder, "mosquitto.conf", &config)?);
        Ok(command)
    }

    fn acked(&self) -> String {
        "PUBACK: in the memory of the server, whose file is saved every 30 min and at its end; \
         a crash loses what came since"
            .to_owned()
    }

    fn prepare(&mut self, _server: SocketAddr) -> Result<(), String> {
        Ok(())
    }

    fn seats(&self, workload: Workload) -> Vec<Seat<MqttClient>> {
        let seats = (0..workload.users()).map(|user| {
            let sends_in = workload.sends_in(user);
            let receives_in = workload.receives_in(user).map(|(talk, _)| talk);
            let client = MqttClient { user, sends_in, receives_in, in_flight: None };
            Seat { user, sends: sends_in.is_some(), client }
        });
        seats.collect()
    }
}

/// One user's connection. Talk n is the topic `t/n`.
pub struct MqttClient {
    user: u32,
    sends_in: Option<u32>,
    receives_in: Option<u32>,
    in_flight: Option<u32>,
}

impl Client for MqttClient {
    fn open(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let mut rest = Vec::new();
        put_text(&mut rest, b"MQTT");
        // Level 4; neither will nor credentials nor a clean session; no keep-alive.
        rest.extend_from_slice(&[4, 0, 0, 0]);
        put_text(&mut rest, format!("u{}", self.user).as_bytes());
        put_packet(out, packet::CONNECT, &rest);
        Ok(())
    }

    fn receive(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        say: &mut dyn FnMut(Said<'_>),
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some((head, rest, bytes)) = next_packet(&input[used..])? {
            used += bytes;
            match (head, rest) {
                (packet::CONNACK, [_, 0]) => match self.receives_in {
                    None => say(Said::Ready),
                    Some(talk) => {
                        let mut rest = SUBSCRIBE_ID.to_be_bytes().to_vec();
                        put_text(&mut rest, topic(talk).as_bytes());
                        rest.push(1);
                        put_packet(out, packet::SUBSCRIBE, &rest);
                    }
                },
                (packet::SUBACK, [_, _, 1]) => say(Said::Ready),
                (packet::PUBACK, [high, low]) => {
                    let number = self.in_flight.take().ok_or("an ack of nothing")?;
                    if packet_id(number) != u16::from_be_bytes([*high, *low]) {
                        return Err("an ack of another message".to_owned());
                    }
                    say(Said::Acked(number));
                }
                // Without the flag that says that it may have come before.
                (head, rest) if head & 0xf6 == packet::PUBLISH_QOS1 => {
                    let (id, body) = published(rest).ok_or("a PUBLISH that is too short")?;
                    say(Said::Delivered(body));
                    put_packet(out, packet::PUBACK, &id);
                }
                (head, rest) => return Err(format!("an unexpected packet {head:#x} {rest:?}")),
            }
        }
        Ok(used)
    }

    fn send(&mut self, number: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let talk = self.sends_in.ok_or("a receiver does not send")?;
        self.in_flight = Some(number);
        let mut rest = Vec::with_capacity(body.len() + 16);
        put_text(&mut rest, topic(talk).as_bytes());
        rest.extend_from_slice(&packet_id(number).to_be_bytes());
        rest.extend_from_slice(body);
        put_packet(out, packet::PUBLISH_QOS1, &rest);
        Ok(())
    }
}

fn topic(talk: u32) -> String {
    format!("t/{talk}")
}

/// Identifiers are not zero.
fn packet_id(number: u32) -> u16 {
    (number % u32::from(u16::MAX)) as u16 + 1
}

/// Identifier and body of a PUBLISH.
fn published(rest: &[u8]) -> Option<([u8; 2], &[u8])> {
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*length))..)?;
    let (id, body) = rest.split_first_chunk::<2>()?;
    Some((*id, body))
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

fn put_packet(out: &mut Vec<u8>, head: u8, rest: &[u8]) {
    out.push(head);
    let mut length = rest.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(rest);
}

/// The first byte of a packet, what follows its length, and its own length.
type Packet<'a> = (u8, &'a [u8], usize);

/// The packet at the beginning, if it is whole.
fn next_packet(input: &[u8]) -> Result<Option<Packet<'_>>, String> {
    let Some((head, rest)) = input.split_first() else { return Ok(None) };
    let mut length = 0;
    for (at, byte) in rest.iter().take(LENGTH_BYTES_MAX).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let from = at + 2;
            let body = input.get(from..from + length);
            return Ok(body.map(|body| (*head, body, from + length)));
        }
    }
    match rest.len() < LENGTH_BYTES_MAX {
        true => Ok(None),
        false => Err("a length of more than four bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_any_length_are_read_back() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 70_000] {
            let rest = vec![7; length];
            let mut bytes = Vec::new();
            put_packet(&mut bytes, packet::PUBACK, &rest);
            let whole = bytes.len();
            assert_eq!(next_packet(&bytes), Ok(Some((packet::PUBACK, &rest[..], whole))));
            assert_eq!(next_packet(&bytes[..whole - 1]), Ok(None));
        }
        assert_eq!(next_packet(&[]), Ok(None));
        assert_eq!(next_packet(&[0x30, 0x80]), Ok(None));
        assert!(next_packet(&[0x30, 0x80, 0x80, 0x80, 0x80]).is_err());
    }

    #[test]
    fn a_user_signs_in_subscribes_receives_and_acks() {
        let mut client =
            MqttClient { user: 3, sends_in: Some(3), receives_in: Some(2), in_flight: None };
        let mut out = Vec::new();
        client.open(&mut out).unwrap();
        assert_eq!(out, b"\x10\x0e\0\x04MQTT\x04\0\0\0\0\x02u3");
        let mut said = Vec::new();
        let mut take = |client: &mut MqttClient, input: &[u8]| {
            let mut out = Vec::new();
            let mut say = |word: Said<'_>| said.push(format!("{word:?}"));
            client.receive(input, &mut out, &mut say).map(|used| (used, out))
        };
        let subscribe = b"\x82\x08\0\x01\0\x03t/2\x01".to_vec();
        assert_eq!(take(&mut client, b"\x20\x02\0\0\x90"), Ok((4, subscribe)));
        take(&mut client, b"\x90\x03\0\x01\x01").unwrap();
        let puback = b"\x40\x02\x12\x34".to_vec();
        assert_eq!(take(&mut client, b"\x3a\x09\0\x03t/2\x12\x34hi"), Ok((11, puback)));
        let mut out = Vec::new();
        client.send(65_534, b"hi", &mut out).unwrap();
        assert_eq!(out, b"\x32\x09\0\x03t/3\xff\xffhi");
        take(&mut client, b"\x40\x02\xff\xff").unwrap();
        client.send(65_535, b"hi", &mut Vec::new()).unwrap();
        assert!(take(&mut client, b"\x40\x02\xff\xff").is_err(), "an ack of the one before");
        assert!(take(&mut client, b"\x20\x02\0\x05").is_err(), "not let in");
        assert!(take(&mut client, b"\x32\x03\0\x03t").is_err(), "too short");
        assert_eq!(said, ["Ready", "Delivered([104, 105])", "Acked(65534)"]);
    }
}
