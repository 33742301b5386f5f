//! Tries on this kernel what the driver needs.

use std::io::{Error as IoError, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytes::BytesMut;
use io_uring::{IoUring, Probe, opcode};
use thiserror::Error;

use super::RingSizes;
use super::kernel::{Done, Ring, Stop};
use crate::rt::conn::ConnId;
use crate::rt::post::Knock;

/// What the kernel cannot do, or does not let this process do.
#[derive(Debug, Error)]
#[error("{what}: {error}")]
pub struct Missing {
    what: &'static str,
    error: IoError,
}

/// Makes a small ring, and receives, sends and stops on it, as a shard does.
pub fn probe() -> Result<(), Missing> {
    operations().map_err(|error| Missing { what: "operations of io_uring", error })?;
    let sizes = RingSizes { submissions: 8, completions: 16, buffers: 2, buffer_bytes: 64 };
    let ring = Knock::new().and_then(|knock| Ring::new(sizes, knock.into(), Arc::default()));
    let mut ring = ring.map_err(|error| Missing {
        what: "a ring with buffers, work put off and an eventfd",
        error,
    })?;
    receive_and_stop(&mut ring)
        .map_err(|error| Missing { what: "a receive that stays armed", error })
}

fn operations() -> Result<(), IoError> {
    let uring = IoUring::new(2)?;
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::RecvMulti::CODE,
        opcode::Send::CODE,
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
    ];
    match needed.iter().all(|&code| probe.is_supported(code)) {
        true => Ok(()),
        false => Err(ErrorKind::Unsupported.into()),
    }
}

fn receive_and_stop(ring: &mut Ring) -> Result<(), IoError> {
    let (ours, mut theirs) = UnixStream::pair()?;
    let id = ConnId { slot: 0, generation: 1 };
    ring.insert(id, OwnedFd::from(ours));
    ring.receive(id);
    ring.send(id, BytesMut::from(&b"x"[..]));
    for round in 0..3 {
        theirs.write_all(&[round])?;
        ring.enter_if_needed();
        expect(ring, |done| matches!(done, Done::Received(_, buf) if buf[..] == [round]))?;
    }
    if !ring.is_receiving(id) {
        return Err(ErrorKind::Unsupported.into());
    }
    ring.stop(id);
    ring.enter_if_needed();
    expect(ring, |done| matches!(done, Done::Stopped(_, Stop::Asked)))
}

/// Looks for something among what is done.
fn expect(ring: &mut Ring, mut is_it: impl FnMut(&Done) -> bool) -> Result<(), IoError> {
    while let Some(done) = ring.next() {
        match done {
            done if is_it(&done) => return Ok(()),
            Done::RecvFailed(_, error) | Done::SendFailed(_, error) => return Err(error),
            Done::Sent(..) => {}
            _ => return Err(ErrorKind::Unsupported.into()),
        }
    }
    Err(ErrorKind::TimedOut.into())
}
