//! Against a server of the test that does what it is told to do wrong.

use std::net::TcpListener;
use std::thread;

use super::*;
use crate::scenario::peers::books::Shape;

const BODY: usize = 20;
/// A sent message: its number and its body.
const SENT: usize = 4 + BODY;

/// What a server does wrong, with the message of number 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    NoDelivery,
    TwoDeliveries,
    NoAck,
    Changed,
    Close,
}

/// The simplest protocol: `R`, then `A` with a number, `D` with a body.
struct Plain;

impl Client for Plain {
    fn open(&mut self, _out: &mut Vec<u8>) -> Result<(), String> {
        Ok(())
    }

    fn receive(
        &mut self,
        input: &[u8],
        _out: &mut Vec<u8>,
        say: &mut dyn FnMut(Said<'_>),
    ) -> Result<usize, String> {
        let mut rest = input;
        loop {
            match rest {
                [b'R', more @ ..] => {
                    say(Said::Ready);
                    rest = more;
                }
                [b'A', a, b, c, d, more @ ..] => {
                    say(Said::Acked(u32::from_be_bytes([*a, *b, *c, *d])));
                    rest = more;
                }
                [b'D', more @ ..] if more.len() >= BODY => {
                    say(Said::Delivered(&more[..BODY]));
                    rest = &more[BODY..];
                }
                _ => return Ok(input.len() - rest.len()),
            }
        }
    }

    fn send(&mut self, number: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(body);
        Ok(())
    }
}

/// Relays between two connections; ends when they do.
fn serve(listener: &TcpListener, fault: Fault) {
    let mut streams: Vec<TcpStream> = (0..2).map(|_| listener.accept().unwrap().0).collect();
    let mut handles = Vec::new();
    for place in 0..2 {
        let mut own = streams[place].try_clone().unwrap();
        let mut other = streams[place ^ 1].try_clone().unwrap();
        own.set_nodelay(true).unwrap();
        own.write_all(b"R").unwrap();
        handles.push(thread::spawn(move || {
            let mut sent = [0; SENT];
            while own.read_exact(&mut sent).is_ok() {
                let faulty = sent[..4] == 3_u32.to_be_bytes() && place == 0;
                let fault = if faulty { fault } else { Fault::None };
                let deliveries = match fault {
                    Fault::NoDelivery => 0,
                    Fault::TwoDeliveries => 2,
                    _ => 1,
                };
                if fault == Fault::Close {
                    own.shutdown(std::net::Shutdown::Both).unwrap();
                }
                if fault == Fault::Changed {
                    sent[SENT - 1] ^= 1;
                }
                for _ in 0..deliveries {
                    let _ = other.write_all(&[b"D", &sent[4..]].concat());
                }
                if fault != Fault::NoAck {
                    let _ = own.write_all(&[b"A", &sent[..4]].concat());
                }
            }
        }));
    }
    streams.clear();
    handles.into_iter().for_each(|handle| handle.join().unwrap());
}

fn drive(fault: Fault) -> Result<Outcome, String> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || serve(&listener, fault));
    let load = Load {
        workload: Workload::new(Shape::Direct, 2),
        body_bytes: BODY,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(300),
        patience: Duration::from_millis(300),
        stop: &AtomicBool::new(false),
    };
    let seats = (0..2).map(|user| Seat { user, sends: true, client: Plain }).collect();
    // A server that uses half of a core, of which others use a quarter.
    let start = Instant::now();
    let usage = || Usage { server: start.elapsed() / 2, core: start.elapsed() / 4 * 3 };
    let outcome = run(address, seats, &load, usage);
    server.join().unwrap();
    outcome
}

#[test]
fn what_a_server_does_wrong_is_counted() {
    let counts = |fault| drive(fault).unwrap().counts;
    let good = drive(Fault::None).unwrap();
    assert!(good.counts.is_clean() && good.counts.sent > 10, "{good:?}");
    assert_eq!(good.counts.sent, good.counts.delivered);
    assert!(good.delivered_per_s > 10.0 && good.ack.p50 > 0.0 && good.deliver.p50 > 0.0);
    assert!((good.server_cpu_percent - 50.0).abs() < 1.0, "{good:?}");
    assert!((good.others_percent - 25.0).abs() < 1.0, "{good:?}");
    let cpu_per_s = good.server_cpu_us * good.delivered_per_s / 1e6;
    assert!((0.4..2.0).contains(&cpu_per_s), "{good:?}");
    assert_eq!(counts(Fault::NoDelivery).lost, 1);
    assert_eq!(counts(Fault::TwoDeliveries).duplicated, 1);
    assert_eq!(counts(Fault::NoAck).unacked, 1);
    let changed = counts(Fault::Changed);
    assert_eq!((changed.corrupt, changed.lost), (1, 1));
    assert!(drive(Fault::Close).unwrap_err().contains("closed user 0"));
}

#[test]
fn a_run_ends_when_it_is_told_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let load = Load {
        workload: Workload::new(Shape::Direct, 2),
        body_bytes: BODY,
        warmup: Duration::ZERO,
        duration: Duration::from_secs(60),
        patience: Duration::ZERO,
        stop: &AtomicBool::new(true),
    };
    let seats = vec![Seat { user: 0, sends: true, client: Plain }];
    let address = listener.local_addr().unwrap();
    assert_eq!(run(address, seats, &load, Usage::default).unwrap_err(), "stopped");
}
