//! Well-behaved parties: people with the real client, and a pair that chats while others misbehave.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chatring_client::driver::{Client, Options, new_installation};
use chatring_client::session::Stats;
use chatring_client::{CacheFile, Config, Event, Start};
use chatring_wire::frame::{Head, MessageKind, Row};
use chatring_wire::{Cid, Cmid, Seq, Subprotocol};

use super::raw::named;
use super::{Node, PATIENCE};

/// Pause between two exchanges of the bystanders.
const BREATH: Duration = Duration::from_millis(2);

/// Somebody with the real client, who sees every message in order.
#[derive(Debug)]
pub struct Person {
    /// The client.
    pub client: Client,
    /// Every message seen, own ones included, by channel and in the order of the events.
    pub seen: Vec<(Cid, Row)>,
    /// Every send of this person that is stored.
    pub stored: Vec<(Cmid, Seq)>,
}

impl Person {
    /// A new installation without memory. Within a tokio runtime.
    pub fn new(node: &Node, user: &str) -> Person {
        Person::speaking(node, user, Subprotocol::Binary)
    }

    /// The same, speaking this subprotocol.
    pub fn speaking(node: &Node, user: &str, subprotocol: Subprotocol) -> Person {
        let config = Config::dense(node.token(user), Start::Oldest);
        Person::with(node, config, subprotocol, None)
    }

    /// With a cache file, which is made if it is not there.
    pub fn cached(node: &Node, user: &str, subprotocol: Subprotocol, cache: &Path) -> Person {
        let config = Config::dense(node.token(user), Start::Oldest);
        Person::with(node, config, subprotocol, Some(cache))
    }

    /// With these choices.
    pub fn with(
        node: &Node,
        config: Config,
        subprotocol: Subprotocol,
        cache: Option<&Path>,
    ) -> Person {
        let cache =
            cache.map(|path| CacheFile::open(path, new_installation()).expect("a cache file"));
        let url = node.ws().parse().expect("a URL");
        let tls = node.trust();
        let client = Client::spawn(Options { url, subprotocol, config, tls, cache });
        Person { client, seen: Vec::new(), stored: Vec::new() }
    }

    /// The next event; messages and outcomes are noted.
    pub async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.client.next_event()).await;
        let event = event.expect("something happens in time").expect("the client lives");
        match &event {
            Event::Message { cid, row } => self.seen.push((*cid, row.clone())),
            Event::Stored { cmid, seq, .. } => self.stored.push((*cmid, *seq)),
            _ => {}
        }
        event
    }

    /// Waits for an event; those before it are noted.
    pub async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let until = Instant::now() + PATIENCE;
        loop {
            let event = self.event().await;
            if wanted(&event) {
                return event;
            }
            assert!(Instant::now() < until, "other events come without end: {event:?}");
        }
    }

    /// Waits until the session is up to date.
    pub async fn synced(&mut self) {
        self.until(|event| matches!(event, Event::Synced)).await;
    }

    /// Opens the direct channel with a user, who has signed in.
    pub async fn open(&mut self, user: &str) -> Cid {
        let with = named(user);
        let ticket = self.client.with(|session, now| session.open(now, with)).await;
        let ticket = ticket.expect("the client lives").expect("few requests are open");
        match self.until(|event| is_opened(event, ticket)).await {
            Event::Opened { cid, .. } => cid,
            other => panic!("{other:?}"),
        }
    }

    /// Puts a text into the outbox.
    pub async fn say(&self, cid: Cid, text: impl Into<String>) -> Cmid {
        let body = Bytes::from(text.into());
        let sent = self.client.send(cid, MessageKind::TEXT, body).await;
        sent.expect("the client lives").expect("the outbox has room")
    }

    /// Waits until this text is seen.
    pub async fn sees(&mut self, text: &str) {
        if !self.seen.iter().rev().any(|(_, row)| row.body == text.as_bytes()) {
            self.until(
                |event| matches!(event, Event::Message { row, .. } if row.body == text.as_bytes()),
            )
            .await;
        }
    }

    /// Waits until a send is stored.
    pub async fn is_stored(&mut self, cmid: Cmid) -> Seq {
        if let Some((_, seq)) = self.stored.iter().find(|(stored, _)| *stored == cmid) {
            return *seq;
        }
        let wanted = |event: &Event| matches!(event, Event::Stored { cmid: c, .. } if *c == cmid);
        match self.until(wanted).await {
            Event::Stored { seq, .. } => seq,
            other => panic!("{other:?}"),
        }
    }

    /// Texts seen of a channel. Fails if they are not exactly the seqs 1, 2, 3 …
    pub fn texts(&self, cid: Cid) -> Vec<String> {
        let rows: Vec<&Row> = self.seen.iter().filter(|(c, _)| *c == cid).map(|(_, r)| r).collect();
        for (n, row) in rows.iter().enumerate() {
            assert_eq!(row.seq, Seq(n as u64 + 1), "dense and once each");
        }
        rows.iter().map(|row| String::from_utf8_lossy(&row.body).into_owned()).collect()
    }

    /// The channel as the client knows it.
    pub async fn head(&self, cid: Cid) -> Head {
        let head = self.client.with(move |session, _| session.channel(cid)).await;
        head.expect("the client lives").expect("the channel is known")
    }

    /// What the session counted.
    pub async fn stats(&self) -> Stats {
        self.client.with(|session, _| *session.stats()).await.expect("the client lives")
    }

    /// Ends the session in good order.
    pub async fn leave(self) {
        self.client.close().await.expect("the cache file is good");
    }
}

fn is_opened(event: &Event, ticket: chatring_client::Ticket) -> bool {
    match event {
        Event::Opened { ticket: opened, .. } => *opened == ticket,
        Event::AskRefused { ticket: refused, error } if *refused == ticket => {
            panic!("not opened: {error:?}")
        }
        _ => false,
    }
}

/// Runs people on a runtime of this thread.
pub fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(story)
}

/// Two people who chat without pause on a thread of their own, whatever others do.
#[derive(Debug)]
pub struct Bystanders {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    /// Exchanges (a text and its answer, each stored and delivered) that are done.
    done: AtomicU64,
}

impl Bystanders {
    /// Starts to chat; returns after the first exchange.
    pub fn start(node: &Node) -> Bystanders {
        let shared = Arc::new(Shared::default());
        let (mut carol, mut dave) = (None, None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(async {
            carol = Some(Person::new(node, "bystander carol"));
            dave = Some(Person::new(node, "bystander dave"));
        });
        let (Some(carol), Some(dave)) = (carol, dave) else { unreachable!() };
        let theirs = shared.clone();
        let thread = std::thread::spawn(move || runtime.block_on(chat(carol, dave, &theirs)));
        let bystanders = Bystanders { shared, thread: Some(thread) };
        bystanders.check();
        bystanders
    }

    /// Checks that they go on: two exchanges that have not begun yet are done soon.
    pub fn check(&self) {
        let from = self.shared.done.load(Ordering::Acquire);
        let until = Instant::now() + PATIENCE;
        while self.shared.done.load(Ordering::Acquire) < from + 3 {
            assert!(Instant::now() < until, "the bystanders hang");
            std::thread::sleep(BREATH);
        }
    }
}

impl Drop for Bystanders {
    /// Ends the chat; what went wrong in it fails the test.
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the bystanders were disturbed");
        }
    }
}

async fn chat(mut carol: Person, mut dave: Person, shared: &Shared) {
    carol.synced().await;
    dave.synced().await;
    let cid = carol.open("bystander dave").await;
    let mut n = 0u64;
    while !shared.over.load(Ordering::Acquire) {
        let question = format!("question {n}");
        let asked = carol.say(cid, &*question).await;
        dave.sees(&question).await;
        carol.is_stored(asked).await;
        carol.sees(&question).await;
        if n == 0 {
            // Dave learns of the channel by the first message.
            dave.open("bystander carol").await;
        }
        let answer = format!("answer {n}");
        let answered = dave.say(cid, &*answer).await;
        carol.sees(&answer).await;
        dave.is_stored(answered).await;
        dave.sees(&answer).await;
        shared.done.fetch_add(1, Ordering::Release);
        n += 1;
        tokio::time::sleep(BREATH).await;
    }
    for person in [carol, dave] {
        assert_eq!(person.texts(cid).len() as u64, 2 * n);
        let stats = person.stats().await;
        assert_eq!((stats.connections, stats.disconnections), (1, 0), "nobody was thrown out");
        person.leave().await;
    }
}
