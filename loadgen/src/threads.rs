//! Threads of a run, each with a runtime of its own, which start together and stop when told.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

/// Time from the last thread's being ready to the common start.
const START_DELAY: Duration = Duration::from_millis(20);

/// What all threads are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Get ready.
    Prepare,
    /// Begin at this time.
    Go(Instant),
    /// Start nothing new, wait for what is outstanding (a first Ctrl-C, or another thread failed).
    Stop,
    /// End at once (a second Ctrl-C).
    Abort,
}

/// A thread's line to the others.
pub struct Line {
    orders: watch::Receiver<Order>,
    ready: mpsc::Sender<Said>,
}

enum Said {
    Ready,
    Failed,
}

impl Line {
    /// What was ordered last.
    pub fn order(&self) -> Order {
        *self.orders.borrow()
    }

    /// Waits for another order.
    pub async fn changed(&mut self) {
        if self.orders.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Says that this thread is ready and waits for the common start; `None` if there is none.
    pub async fn ready(&mut self) -> Option<Instant> {
        // A closed line means that nobody waits any more, which the orders tell too.
        let _ = self.ready.send(Said::Ready).await;
        loop {
            match self.order() {
                Order::Prepare => self.changed().await,
                Order::Go(start) => return Some(start),
                Order::Stop | Order::Abort => return None,
            }
        }
    }
}

/// Runs `work` once in each of `threads` threads; gives their results in order.
///
/// # Errors
/// A runtime or a signal handler cannot be made.
pub fn run<T, E, F>(
    threads: u32,
    work: impl Fn(u32, Line) -> F + Sync,
) -> io::Result<Vec<Result<T, E>>>
where
    F: Future<Output = Result<T, E>>,
    T: Send,
    E: Send,
{
    let runtimes: Vec<_> = (0..threads).map(|_| runtime()).collect::<Result<_, _>>()?;
    let (orders, _) = watch::channel(Order::Prepare);
    let (said, heard) = mpsc::channel(threads as usize);
    let main = runtime()?;
    std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for (number, runtime) in (0..threads).zip(runtimes) {
            let line = Line { orders: orders.subscribe(), ready: said.clone() };
            let (work, said) = (&work, said.clone());
            handles.push(scope.spawn(move || {
                let result = LocalSet::new().block_on(&runtime, work(number, line));
                if result.is_err() {
                    // As above.
                    let _ = said.blocking_send(Said::Failed);
                }
                result
            }));
        }
        drop(said);
        let led = main.block_on(lead(threads, &orders, heard));
        if led.is_err() {
            orders.send_replace(Order::Abort);
        }
        let results = handles.into_iter().map(|handle| match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        let results = results.collect();
        led.map(|()| results)
    })
}

/// Passes orders on until all threads have ended.
async fn lead(
    threads: u32,
    orders: &watch::Sender<Order>,
    mut heard: mpsc::Receiver<Said>,
) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ready = 0;
    loop {
        tokio::select! {
            said = heard.recv() => match said {
                None => return Ok(()),
                Some(Said::Failed) => {
                    orders.send_if_modified(stop);
                }
                Some(Said::Ready) => {
                    ready += 1;
                    if ready == threads {
                        orders.send_if_modified(go);
                    }
                }
            },
            _ = interrupt.recv() => {
                orders.send_if_modified(stop_or_abort);
            }
            _ = terminate.recv() => {
                orders.send_if_modified(stop_or_abort);
            }
        }
    }
}

fn go(order: &mut Order) -> bool {
    let waits = *order == Order::Prepare;
    if waits {
        *order = Order::Go(Instant::now() + START_DELAY);
    }
    waits
}

fn stop(order: &mut Order) -> bool {
    let runs = !matches!(order, Order::Stop | Order::Abort);
    if runs {
        *order = Order::Stop;
    }
    runs
}

fn stop_or_abort(order: &mut Order) -> bool {
    if !stop(order) {
        *order = Order::Abort;
    }
    true
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_start_at_one_time() {
        let results = run(3, async |number, mut line| -> Result<_, ()> {
            tokio::time::sleep(Duration::from_millis(u64::from(number))).await;
            Ok((number, line.ready().await))
        })
        .unwrap();
        let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(results.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(results[0].1.is_some());
        assert!(results.iter().all(|(_, start)| *start == results[0].1));
    }

    #[test]
    fn a_thread_that_fails_keeps_nobody_waiting() {
        let results = run(2, async |number, mut line| match number {
            0 => Err("no"),
            _ => Ok(line.ready().await),
        })
        .unwrap();
        assert_eq!(results, [Err("no"), Ok(None)]);
    }

    #[test]
    fn orders_only_become_stricter() {
        let mut order = Order::Prepare;
        assert!(stop_or_abort(&mut order));
        assert_eq!(order, Order::Stop);
        assert!(!go(&mut order) && !stop(&mut order));
        assert!(stop_or_abort(&mut order));
        assert_eq!(order, Order::Abort);
        assert!(!stop(&mut order));
    }
}
