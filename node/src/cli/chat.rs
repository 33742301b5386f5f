//! `chatring chat`: a plain terminal client, one line a message, that works in a pipe as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use chatring_client::driver::{Client, Gone, Options, UrlError, WsUrl, new_installation};
use chatring_client::tls::{RootsError, client_config};
use chatring_client::{CacheError, CacheFile, Config, Event, SendError, Ticket};
use chatring_wire::frame::{Direction, Failure, Member, MessageKind, Row, UserRef};
use chatring_wire::limits::BODY_BYTES_MAX;
use chatring_wire::{Cid, Cmid, DeviceId, ErrorCode, MemberNumber, Seq, Subprotocol};
use clap::Args;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Messages of the history that are shown at the start.
const HISTORY_ROWS: u64 = 20;
/// Pause before asking again for a user who has not signed in yet.
const OPEN_AGAIN_MS: u64 = 1_000;
/// Lines that may wait to be sent; above it standard input waits.
const LINES_MAX: usize = 64;

/// Arguments of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Where the server listens: `ws://HOST:PORT/PATH` or `wss://HOST:PORT/PATH`.
    #[arg(long, value_name = "URL")]
    url: String,
    /// PEM file with the certificates to trust at a `wss` URL, in place of the machine's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Token of the user; `chatring token` makes one.
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// Whom to write to. Without it, lines go to whoever wrote last.
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// File that keeps messages and unsent lines between runs.
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
}

/// Why the chat ended early.
#[derive(Debug, Error)]
enum ChatError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Ended(String),
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// Runs the command until standard input ends and everything is stored.
pub fn run(args: ChatArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(chat(args));
            // A thread may still sit in a read of standard input.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chatring: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the number of lines that were refused.
async fn chat(args: ChatArgs) -> Result<u64, ChatError> {
    let url: WsUrl = args.url.parse()?;
    let tls =
        url.is_wss().then(|| client_config(args.ca.as_deref(), &[b"http/1.1"])).transpose()?;
    let cache = args.cache.as_deref().map(|path| CacheFile::open(path, new_installation()));
    let client = Client::spawn(Options {
        url,
        subprotocol: Subprotocol::Binary,
        config: Config::new(args.token),
        tls,
        cache: cache.transpose()?,
    });
    let mut chat = Chat::new(client, args.to);
    let outcome = chat.talk(read_lines()).await;
    let closed = chat.client.close().await;
    outcome?;
    closed?;
    Ok(chat.refused)
}

/// Lines of standard input, read by a thread of their own.
fn read_lines() -> mpsc::Receiver<String> {
    let (lines, lines_out) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines_out
}

/// A conversation in a terminal.
struct Chat {
    client: Client,
    to: Option<String>,
    target: Option<Cid>,
    device: Option<DeviceId>,
    names: BTreeMap<Cid, Vec<Member>>,
    /// The newest message printed of each channel.
    printed: BTreeMap<Cid, Seq>,
    /// Messages whose sender's name is not known yet.
    unnamed: BTreeMap<Cid, Vec<Row>>,
    history: Option<Ticket>,
    /// Messages that came while the history was being read.
    after_history: Vec<(Cid, Row)>,
    /// When to ask for the other user again.
    open_at: Option<Instant>,
    said_waiting: bool,
    unsent: Option<String>,
    open_sends: BTreeSet<Cmid>,
    refused: u64,
}

impl Chat {
    fn new(client: Client, to: Option<String>) -> Chat {
        Chat {
            client,
            to,
            target: None,
            device: None,
            names: BTreeMap::new(),
            printed: BTreeMap::new(),
            unnamed: BTreeMap::new(),
            history: None,
            after_history: Vec::new(),
            open_at: None,
            said_waiting: false,
            unsent: None,
            open_sends: BTreeSet::new(),
            refused: 0,
        }
    }

    async fn talk(&mut self, mut lines: mpsc::Receiver<String>) -> Result<(), ChatError> {
        let mut ended = false;
        loop {
            if let Some(line) = self.unsent.take() {
                self.send(line).await?;
            }
            let nothing_left = self.open_sends.is_empty() && self.unsent.is_none();
            if ended && nothing_left && self.outbox_is_empty().await? {
                return Ok(());
            }
            let may_send = self.unsent.is_none() && (self.target.is_some() || self.to.is_none());
            let again = self.open_at;
            tokio::select! {
                event = self.client.next_event() => {
                    let event = event.ok_or(ChatError::Gone(Gone))?;
                    self.take(event).await?;
                }
                line = lines.recv(), if may_send && !ended => match line {
                    Some(line) => self.unsent = Some(line).filter(|line| !line.is_empty()),
                    None => ended = true,
                },
                () = sleep_until(again) => {
                    self.open_at = None;
                    self.open().await?;
                }
            }
        }
    }

    async fn outbox_is_empty(&self) -> Result<bool, Gone> {
        self.client.with(|session, _| session.outbox_len() == 0).await
    }

    async fn take(&mut self, event: Event) -> Result<(), ChatError> {
        match event {
            Event::Connected { device, .. } => self.device = Some(device),
            Event::Disconnected { error } => {
                let why = error.map(|error| format!(": {}", told(&error))).unwrap_or_default();
                eprintln!("chatring: not connected, trying again{why}");
            }
            Event::Ended(end) => return Err(ChatError::Ended(end.to_string())),
            Event::Synced if self.to.is_some() && self.target.is_none() => self.open().await?,
            Event::Opened { cid, .. } if self.target.replace(cid).is_none() => {
                self.meet(cid).await?;
                self.show_history(cid).await?;
                let name = self.to.as_deref().unwrap_or_default();
                eprintln!("chatring: talking to {name}");
            }
            Event::AskRefused { ticket, error } if self.history == Some(ticket) => {
                eprintln!("chatring: the history cannot be read: {}", told(&error));
                self.end_history().await?;
            }
            Event::AskRefused { error, .. } => self.take_refusal(&error)?,
            Event::Members { cid, members, .. } => {
                self.names.insert(cid, members);
                for row in self.unnamed.remove(&cid).unwrap_or_default() {
                    self.print(cid, &row)?;
                }
            }
            Event::Rows { ticket, page } if self.history == Some(ticket) => {
                for row in page.rows {
                    self.show(page.cid, row).await?;
                }
                self.end_history().await?;
            }
            Event::Message { cid, row } => {
                let own = self.is_own(cid, &row).await?;
                if self.to.is_none() {
                    self.target = Some(cid);
                }
                let wanted = self.to.is_none() || self.target == Some(cid);
                if wanted && !own && self.history.is_some() {
                    self.after_history.push((cid, row));
                } else if wanted && !own {
                    self.show(cid, row).await?;
                }
            }
            Event::Stored { cmid, .. } => {
                self.open_sends.remove(&cmid);
            }
            Event::SendRefused { cmid, error, .. } => {
                self.open_sends.remove(&cmid);
                self.refused += 1;
                eprintln!("chatring: not sent: {}", told(&error));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether this installation sent a message. Device numbers are each user's own.
    async fn is_own(&self, cid: Cid, row: &Row) -> Result<bool, Gone> {
        if self.device != Some(row.device) {
            return Ok(false);
        }
        let me = self.client.with(move |session, _| session.channel(cid).map(|head| head.me));
        Ok(me.await? == Some(row.sender))
    }

    fn take_refusal(&mut self, error: &Failure) -> Result<(), ChatError> {
        if error.code != Ok(ErrorCode::UnknownUser) {
            return Err(ChatError::Ended(told(error)));
        }
        if !std::mem::replace(&mut self.said_waiting, true) {
            let name = self.to.as_deref().unwrap_or_default();
            eprintln!("chatring: waiting until {name} has signed in once");
        }
        self.open_at = Some(Instant::now() + Duration::from_millis(OPEN_AGAIN_MS));
        Ok(())
    }

    async fn open(&mut self) -> Result<(), ChatError> {
        let Some(subject) = self.to.clone().filter(|_| self.open_at.is_none()) else {
            return Ok(());
        };
        let with = UserRef::Subject { issuer: String::new(), subject };
        let opened = self.client.with(|session, now| session.open(now, with)).await?;
        opened.map(|_ticket| ()).map_err(|error| ChatError::Ended(error.to_string()))
    }

    /// Asks who is in a channel, once.
    async fn meet(&mut self, cid: Cid) -> Result<(), ChatError> {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.unnamed.entry(cid) {
            entry.insert(Vec::new());
            // A refusal for want of room leaves the messages unnamed until the next one comes.
            if self.client.with(move |session, now| session.members(now, cid)).await?.is_err() {
                self.unnamed.remove(&cid);
            }
        }
        Ok(())
    }

    async fn show_history(&mut self, cid: Cid) -> Result<(), ChatError> {
        let reading = self.client.with(move |session, now| {
            let head = session.channel(cid)?.head;
            let from = Seq(head.0.saturating_sub(HISTORY_ROWS - 1).max(1));
            (head.0 > 0).then(|| session.read(now, cid, from, head, Direction::Ascending))
        });
        self.history = reading.await?.and_then(Result::ok);
        Ok(())
    }

    async fn end_history(&mut self) -> Result<(), ChatError> {
        self.history = None;
        for (cid, row) in std::mem::take(&mut self.after_history) {
            self.show(cid, row).await?;
        }
        Ok(())
    }

    async fn show(&mut self, cid: Cid, row: Row) -> Result<(), ChatError> {
        if self.names.contains_key(&cid) {
            return self.print(cid, &row);
        }
        self.meet(cid).await?;
        if let Some(waiting) = self.unnamed.get_mut(&cid) {
            waiting.push(row);
            waiting.sort_by_key(|row| row.seq);
        }
        Ok(())
    }

    fn print(&mut self, cid: Cid, row: &Row) -> Result<(), ChatError> {
        let printed = self.printed.entry(cid).or_default();
        if row.seq <= *printed || row.kind != MessageKind::TEXT {
            return Ok(());
        }
        *printed = row.seq;
        let name = self.name(cid, row.sender);
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}: {}", clean(&name), clean(&String::from_utf8_lossy(&row.body)))?;
        out.flush()?;
        Ok(())
    }

    fn name(&self, cid: Cid, number: MemberNumber) -> String {
        let members = self.names.get(&cid).map_or(&[][..], Vec::as_slice);
        let member = members.iter().find(|member| member.number == number);
        member.map_or_else(|| "?".to_owned(), |member| member.subject.clone())
    }

    async fn send(&mut self, line: String) -> Result<(), ChatError> {
        let Some(cid) = self.target else {
            eprintln!("chatring: nobody has written yet; name somebody with --to");
            self.refused += 1;
            return Ok(());
        };
        let body = Bytes::from(line.clone());
        match self.client.send(cid, MessageKind::TEXT, body).await? {
            Ok(cmid) => {
                self.open_sends.insert(cmid);
            }
            Err(SendError::Full) => {
                // Room comes with the next outcome.
                self.unsent = Some(line);
                let event = self.client.next_event().await.ok_or(ChatError::Gone(Gone))?;
                Box::pin(self.take(event)).await?;
            }
            Err(error) => {
                self.refused += 1;
                eprintln!("chatring: not sent (at most {BODY_BYTES_MAX} bytes a line): {error}");
            }
        }
        Ok(())
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn told(error: &Failure) -> String {
    let name = match error.code {
        Ok(code) => code.name().to_owned(),
        Err(number) => format!("error {number}"),
    };
    if error.text.is_empty() { name } else { format!("{name}: {}", error.text) }
}

/// One line, without characters that would steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
