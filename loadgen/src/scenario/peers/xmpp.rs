//! ejabberd: XMPP with accounts and archive in its own database, groups as rooms.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::books::{Shape, Workload};
use super::drive::{Client, Said, Seat};
use super::{Peer, write_file};

const HEADER: &str = "<stream:stream xmlns='jabber:client' to='localhost' version='1.0' \
                      xmlns:stream='http://etherx.jabber.org/streams'>";
const REQUEST: &str = "<r xmlns='urn:xmpp:sm:3'/>";
const ROOMS: &str = "conference.localhost";

/// The server and how it is set up: as Debian's configuration, without TLS, traffic shaping and
/// what the workload does not use.
pub struct Ejabberd;

impl Peer for Ejabberd {
    type Client = XmppClient;

    fn command(&mut self, program: &Path, folder: &Path, port: u16) -> Result<Command, String> {
        let config = format!(
            "loglevel: warning\nhosts: [localhost]\nregistration_timeout: infinity\n\
             auth_method: internal\nauth_password_format: plain\n\
             listen:\n  - port: {port}\n    ip: 127.0.0.1\n    module: ejabberd_c2s\n    \
             backlog: 1024\n    access: all\n    shaper: none\n\
             modules:\n  mod_register:\n    access: all\n    ip_access: all\n  \
             mod_stream_mgmt: {{}}\n  mod_offline: {{}}\n  \
             mod_mam:\n    db_type: mnesia\n    default: always\n    assume_mam_usage: true\n  \
             mod_muc:\n    access: all\n    access_create: all\n    max_users: 10000\n    \
             default_room_options:\n      mam: true\n"
        );
        let config = write_file(folder, "ejabberd.yml", &config)?;
        let (erl, libraries) = erlang_of(program)?;
        // As `ejabberdctl foreground` does, but as this user, and without a node name, so that no
        // daemon for names (epmd) is left behind.
        let mut command = Command::new(erl);
        command
            .args(["-noinput", "+K", "true", "+P", "250000", "-mnesia", "dir"])
            .arg(format!("\"{}\"", folder.join("database").display()))
            .args(["-s", "ejabberd"])
            .env("ERL_LIBS", libraries)
            .env("HOME", folder)
            .env("ERL_MAX_PORTS", "100000")
            .env("ERL_CRASH_DUMP_BYTES", "0")
            .env("EJABBERD_CONFIG_PATH", config)
            .env("EJABBERD_LOG_PATH", folder.join("ejabberd.log"));
        Ok(command)
    }

    fn acked(&self) -> String {
        "`<a/>` of XEP-0198, asked for with each message: the session has handled it; the archive \
         (mod_mam in mnesia, an entry for each side or one for the room) is not synced"
            .to_owned()
    }

    fn prepare(&mut self, _server: SocketAddr) -> Result<(), String> {
        Ok(())
    }

    fn seats(&self, workload: Workload) -> Vec<Seat<XmppClient>> {
        let seats = (0..workload.users()).map(|user| {
            let sends_in = workload.sends_in(user);
            let receives_in = workload.receives_in(user).map(|(talk, _)| talk);
            let (to, room) = match workload.shape {
                Shape::Direct => (format!("to='u{}@localhost' type='chat'", user ^ 1), None),
                Shape::FanOut { .. } => {
                    let room = format!("g{}@{ROOMS}", sends_in.or(receives_in).unwrap_or_default());
                    (format!("to='{room}' type='groupchat'"), Some(room))
                }
            };
            let receives = receives_in.is_some();
            let client = XmppClient { user, to, room, receives, step: Step::Open, ..new() };
            Seat { user, sends: sends_in.is_some(), client }
        });
        seats.collect()
    }
}

fn new() -> XmppClient {
    XmppClient {
        user: 0,
        to: String::new(),
        room: None,
        receives: true,
        step: Step::Open,
        in_flight: None,
        sent: 0,
        received: 0,
    }
}

/// Erlang's runtime and the folder of its libraries, which the script of the package names.
pub fn erlang_of(ejabberdctl: &Path) -> Result<(String, String), String> {
    let script = std::fs::read_to_string(ejabberdctl);
    let script = script.map_err(|error| format!("{}: {error}", ejabberdctl.display()))?;
    let value = |name: &str| {
        let line =
            script.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['\'', '"']).to_owned())
    };
    let libraries = value("ERL_LIBS").ok_or("ejabberdctl does not say where its libraries are")?;
    Ok((value("ERL").unwrap_or_else(|| "erl".to_owned()), libraries))
}

/// Asks the package for its version.
pub fn version_command(ejabberdctl: &Path) -> Result<Command, String> {
    let (erl, libraries) = erlang_of(ejabberdctl)?;
    let mut command = Command::new(erl);
    let ask = "application:load(ejabberd), {ok, V} = application:get_key(ejabberd, vsn), \
               io:format(\"~s~n\", [V]), halt().";
    command.env("ERL_LIBS", libraries).args(["-noshell", "-eval", ask]);
    Ok(command)
}

/// One user's connection.
pub struct XmppClient {
    user: u32,
    /// Attributes of each message that is sent.
    to: String,
    room: Option<String>,
    receives: bool,
    step: Step,
    in_flight: Option<u32>,
    /// Stanzas sent since stream management began, as the server's acks count them.
    sent: u32,
    /// Stanzas received since then.
    received: u32,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Open,
    Features,
    Registered,
    SignedIn,
    Bound,
    Managed,
    Present,
    InRoom,
    Up,
}

impl Client for XmppClient {
    fn open(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        self.step = Step::Features;
        out.extend_from_slice(HEADER.as_bytes());
        Ok(())
    }

    fn receive(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        say: &mut dyn FnMut(Said<'_>),
    ) -> Result<usize, String> {
        let mut used = 0;
        while let Some((element, bytes)) = next_element(&input[used..])? {
            used += bytes;
            if let Some(element) = element {
                self.element(element, out, say)?;
            }
        }
        Ok(used)
    }

    fn send(&mut self, number: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        self.in_flight = Some(number);
        self.sent = self.sent.wrapping_add(1);
        out.extend_from_slice(format!("<message {} id='{number}'><body>", self.to).as_bytes());
        // Of the digits of a stamp, so nothing in it needs an escape.
        out.extend_from_slice(body);
        out.extend_from_slice(b"</body></message>");
        out.extend_from_slice(REQUEST.as_bytes());
        Ok(())
    }
}

impl XmppClient {
    fn element(
        &mut self,
        element: &str,
        out: &mut Vec<u8>,
        say: &mut dyn FnMut(Said<'_>),
    ) -> Result<(), String> {
        let name = name_of(element);
        if self.step > Step::Managed {
            match name {
                "r" => {
                    let ack = format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", self.received);
                    out.extend_from_slice(ack.as_bytes());
                    return Ok(());
                }
                "a" => return self.acked(element, say),
                "message" | "presence" | "iq" => self.received = self.received.wrapping_add(1),
                _ => {}
            }
        }
        if attribute(element, "type") == Some("error")
            || name.contains("error")
            || name == "failure"
        {
            return Err(format!("the server refuses: {element}"));
        }
        if self.step == Step::Up {
            // The sender has its own copy back from a room. What has no body is a subject.
            if self.receives
                && name == "message"
                && let Some(body) = body_of(element)
            {
                say(Said::Delivered(body.as_bytes()));
            }
            return Ok(());
        }
        self.step = match (self.step, name) {
            (Step::Features, "stream:features") => {
                let user = self.user;
                let text = format!(
                    "<iq type='set' id='r'><query xmlns='jabber:iq:register'>\
                     <username>u{user}</username><password>p</password></query></iq>"
                );
                self.ask(out, &text, Step::Registered)
            }
            (Step::Registered, "iq") => {
                let secret = STANDARD.encode(format!("\0u{}\0p", self.user));
                let text = format!(
                    "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>\
                     {secret}</auth>"
                );
                self.ask(out, &text, Step::SignedIn)
            }
            (Step::SignedIn, "success") => self.ask(out, HEADER, Step::SignedIn),
            (Step::SignedIn, "stream:features") => {
                let text = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
                            <resource>r</resource></bind></iq>";
                self.ask(out, text, Step::Bound)
            }
            (Step::Bound, "iq") => self.ask(out, "<enable xmlns='urn:xmpp:sm:3'/>", Step::Managed),
            (Step::Managed, "enabled") => self.ask(out, "<presence/>", Step::Present),
            // One's own presence comes back.
            (Step::Present, "presence") => match &self.room {
                None => Step::Up,
                Some(room) => {
                    let text = format!(
                        "<presence to='{room}/u{}'><x xmlns='http://jabber.org/protocol/muc'>\
                         <history maxstanzas='0'/></x></presence>",
                        self.user
                    );
                    self.ask(out, &text, Step::InRoom)
                }
            },
            // The subject comes last of what a room says to somebody who comes in.
            (Step::InRoom, "message") => Step::Up,
            (step, _) => step,
        };
        if self.step == Step::Up {
            say(Said::Ready);
        }
        Ok(())
    }

    /// Sends a request of the start and counts it where acks count it.
    fn ask(&mut self, out: &mut Vec<u8>, text: &str, step: Step) -> Step {
        self.sent += u32::from(text.starts_with("<presence"));
        out.extend_from_slice(text.as_bytes());
        step
    }

    fn acked(&mut self, element: &str, say: &mut dyn FnMut(Said<'_>)) -> Result<(), String> {
        let handled = attribute(element, "h").and_then(|h| h.parse::<u32>().ok());
        let handled = handled.ok_or_else(|| format!("an ack of another form: {element}"))?;
        // An ack that was asked for before the message does not cover it.
        if handled == self.sent
            && let Some(number) = self.in_flight.take()
        {
            say(Said::Acked(number));
        }
        Ok(())
    }
}

/// The element, declaration or header at the beginning, if it is whole, and its length. Headers and
/// declarations, after which everything begins anew, and space between elements give no element.
fn next_element(input: &[u8]) -> Result<Option<(Option<&str>, usize)>, String> {
    let (mut at, mut depth) = (0, 0_u32);
    loop {
        let Some(open) = input[at..].iter().position(|byte| *byte == b'<') else {
            return Ok((depth == 0 && !input.is_empty()).then_some((None, input.len())));
        };
        let start = at + open;
        if depth == 0 && start > at {
            return Ok(Some((None, start)));
        }
        let Some(end) = tag_end(&input[start..]) else { return Ok(None) };
        let tag = &input[start..start + end];
        at = start + end;
        match (tag.get(1), tag[tag.len() - 2]) {
            (Some(b'?'), _) => {}
            (Some(b'/'), _) if depth == 0 => return Err("the server ended the stream".to_owned()),
            (Some(b'/'), _) => depth -= 1,
            (_, b'/') => {}
            _ if tag.starts_with(b"<stream:stream") => {}
            _ => depth += 1,
        }
        if depth == 0 {
            let is_head = tag.starts_with(b"<?") || tag.starts_with(b"<stream:stream");
            let text =
                std::str::from_utf8(&input[..at]).map_err(|_| "an element that is no text")?;
            return Ok(Some(((!is_head).then_some(text), at)));
        }
    }
}

/// Length of the tag at the beginning, if it is whole. A quoted value may hold a `>`.
fn tag_end(input: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in input.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'\'' | b'"') => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    None
}

fn name_of(element: &str) -> &str {
    let rest = element.strip_prefix('<').unwrap_or(element);
    rest.split([' ', '>', '/']).next().unwrap_or_default()
}

/// The value of an attribute of the element itself, not of what is in it.
fn attribute<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let tag = &element[..tag_end(element.as_bytes())?];
    let mut rest = tag;
    while let Some(at) = rest.find(name) {
        let (before, after) = (&rest[..at], &rest[at + name.len()..]);
        if before.ends_with(' ')
            && let Some(value) = after.strip_prefix('=')
            && let Some(quote) = value.chars().next()
        {
            return value[1..].split(quote).next();
        }
        rest = after;
    }
    None
}

fn body_of(element: &str) -> Option<&str> {
    let (_, rest) = element.split_once("<body>")?;
    rest.split_once("</body>").map(|(body, _)| body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(room: Option<&str>) -> XmppClient {
        let room = room.map(str::to_owned);
        XmppClient { user: 1, to: "to='u0@localhost' type='chat'".to_owned(), room, ..new() }
    }

    /// What it says and what it answers.
    fn take(client: &mut XmppClient, input: &str) -> Result<(String, String), String> {
        let (mut out, mut said) = (Vec::new(), String::new());
        let mut say = |word: Said<'_>| said.push_str(&format!("{word:?}"));
        let used = client.receive(input.as_bytes(), &mut out, &mut say)?;
        assert_eq!(used, input.len());
        Ok((said, String::from_utf8(out).unwrap()))
    }

    const HEAD: &str = "<?xml version='1.0'?><stream:stream id='1' xmlns='jabber:client'>";

    fn signed_in(room: Option<&str>) -> XmppClient {
        let mut client = client(room);
        client.open(&mut Vec::new()).unwrap();
        let mut step = |input: &str, answer: &str| {
            let (said, out) = take(&mut client, input).unwrap();
            assert!(said.is_empty() && out.contains(answer), "{input} gives {out}");
        };
        step(&format!("{HEAD}<stream:features><x/></stream:features>"), "iq:register");
        step("<iq type='result' id='r'/>", "AHUxAHA=");
        step("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>", "<stream:stream ");
        step(&format!("{HEAD}<stream:features/>"), "<bind ");
        step("<iq type='result' id='b'><bind><jid>u1@localhost/r</jid></bind></iq>", "<enable ");
        step("<enabled xmlns='urn:xmpp:sm:3'/>", "<presence/>");
        client
    }

    #[test]
    fn elements_are_taken_once_they_are_whole() {
        let text = "<message a='>' b=\"'/>\"><x/><body>hi</body></message>";
        for cut in 1..text.len() {
            assert_eq!(next_element(&text.as_bytes()[..cut]), Ok(None), "{cut} bytes");
        }
        let more = format!("{text}<r/>");
        assert_eq!(next_element(more.as_bytes()), Ok(Some((Some(text), text.len()))));
        assert_eq!(next_element(b"<r/>"), Ok(Some((Some("<r/>"), 4))));
        assert_eq!(next_element(b" \n<r/>"), Ok(Some((None, 2))));
        assert_eq!(next_element(b" "), Ok(Some((None, 1))));
        assert_eq!(next_element(b""), Ok(None));
        assert!(next_element(b"</stream:stream>").is_err());
        assert_eq!(attribute("<a xh='1' h='2'><b c='3'/></a>", "h"), Some("2"));
        assert_eq!(attribute("<a><b c='3'/></a>", "c"), None);
    }

    #[test]
    fn a_user_becomes_ready_receives_and_is_acked() {
        let mut client = signed_in(None);
        let (said, out) = take(&mut client, "<presence from='u1@localhost/r'/>").unwrap();
        assert_eq!((said.as_str(), out.as_str()), ("Ready", ""));
        let message = "<message from='u0@localhost/r'><archived id='1'/><body>hi</body></message>";
        assert_eq!(take(&mut client, message).unwrap().0, "Delivered([104, 105])");
        let (_, out) = take(&mut client, REQUEST).unwrap();
        assert_eq!(out, "<a xmlns='urn:xmpp:sm:3' h='2'/>");
        client.send(7, b"hi", &mut Vec::new()).unwrap();
        assert_eq!(take(&mut client, "<a h='1' xmlns='urn:xmpp:sm:3'/>").unwrap().0, "");
        assert_eq!(take(&mut client, "<a h='2' xmlns='urn:xmpp:sm:3'/>").unwrap().0, "Acked(7)");
        assert!(take(&mut client, "<stream:error><conflict/></stream:error>").is_err());
    }

    #[test]
    fn a_member_of_a_room_is_ready_once_the_subject_came() {
        let mut client = signed_in(Some("g0@conference.localhost"));
        let (said, out) = take(&mut client, "<presence from='u1@localhost/r'/>").unwrap();
        assert!(said.is_empty() && out.contains("to='g0@conference.localhost/u1'"), "{out}");
        assert_eq!(take(&mut client, "<presence from='g0@c/u1'/>").unwrap().0, "");
        let subject = "<message type='groupchat'><subject/></message>";
        assert_eq!(take(&mut client, subject).unwrap().0, "Ready");
        client.receives = false;
        let own = "<message type='groupchat'><body>hi</body></message>";
        assert_eq!(take(&mut client, own).unwrap().0, "", "the sender's own copy");
    }

    #[test]
    fn a_refusal_is_an_error() {
        let mut client = client(None);
        client.open(&mut Vec::new()).unwrap();
        take(&mut client, &format!("{HEAD}<stream:features/>")).unwrap();
        let refusal = "<iq type='error' id='r'><error type='cancel'/></iq>";
        assert!(take(&mut client, refusal).unwrap_err().contains("cancel"));
    }
}
