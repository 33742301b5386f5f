//! A shard that has more to do than time says so, and still comes to what was put off.

use std::sync::Mutex;

use super::*;

/// How long the shard has something to do.
const BUSY: Duration = Duration::from_millis(60);
/// What each turn takes at least.
const TURN: Duration = Duration::from_micros(200);
/// Two milliseconds hold no more turns, the one before the end of them and that after it included.
const PRESSED_TURNS_MAX: usize = 11;

/// Has something to do as long as its own message comes back.
struct Busy {
    own: Post<Instant>,
    /// Until when, if it has something to do in this turn.
    until: Option<Instant>,
    /// Whether the shard was pressed at the end of each turn.
    turns: Arc<Mutex<Vec<bool>>>,
}

impl Handler for Busy {
    type Message = Instant;

    fn opened(&mut self, _: &mut Io, _: ConnId, _: SocketAddr) {}

    fn received(&mut self, _: &mut Io, _: ConnId, _: &[u8]) -> Flow {
        Flow::Wait
    }

    fn drained(&mut self, _: &mut Io, _: ConnId) {}

    fn closed(&mut self, _: &mut Io, _: ConnId, _: Closed) {}

    fn inbox(&mut self, _: &mut Io, batch: Vec<Instant>) {
        let turn = Instant::now() + TURN;
        while Instant::now() < turn {
            std::hint::spin_loop();
        }
        self.until = batch.into_iter().find(|until| turn < *until);
    }

    fn tick(&mut self, _: &mut Io, _: Now) {}

    fn turn_end(&mut self, io: &mut Io) {
        self.turns.lock().unwrap().push(io.is_pressed());
        if let Some(until) = self.until.take() {
            assert!(self.own.try_post(vec![until]).is_ok());
            io.turn_again();
        }
    }
}

/// Whether the shard was pressed at the ends of its turns while it was busy, and afterwards.
fn turns_of(driver: Driver) -> Vec<bool> {
    let turns = Arc::<Mutex<Vec<bool>>>::default();
    let config = RtConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        backlog: 16,
        shards: 1,
        driver,
        gather: Duration::ZERO,
        ring: RingSizes::default(),
        tls: None,
    };
    let told = Arc::clone(&turns);
    let make = move |seat: Seat<Instant>| Busy {
        own: seat.posts[0].clone(),
        until: None,
        turns: told.clone(),
    };
    let runtime = Runtime::start(&config, make).unwrap();
    runtime.posts()[0].post(vec![Instant::now() + BUSY]);
    // Its ticks make turns, too.
    std::thread::sleep(BUSY * 4);
    drop(runtime);
    std::mem::take(&mut *turns.lock().unwrap())
}

#[test]
fn a_busy_shard_is_pressed_but_not_for_long_in_a_row() {
    let turns = turns_of(Driver::Ring);
    let pressed = turns.iter().filter(|pressed| **pressed).count();
    assert!(pressed > 0, "{turns:?}");
    let longest = turns.split(|pressed| !pressed).map(<[bool]>::len).max();
    assert!(longest <= Some(PRESSED_TURNS_MAX), "{turns:?}");
    assert_eq!(turns.last(), Some(&false), "something may be left");
}

#[test]
fn streams_are_never_pressed() {
    assert!(!turns_of(Driver::Streams).contains(&true));
}
