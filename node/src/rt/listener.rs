//! The listening sockets: one per shard on the same port, so that the kernel spreads connections.

use std::io::Error as IoError;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use super::{RtConfig, StartError};
use crate::takeover;

/// One listener per shard, and where they listen. With port 0 the first one picks the port.
///
/// They stay in blocking mode: io_uring does the waiting, and answers `EAGAIN` at once, again and
/// again, for a listener in non-blocking mode.
pub fn bind(config: &RtConfig) -> Result<(Vec<TcpListener>, SocketAddr), StartError> {
    let mut address = config.listen;
    // Shared ports let a second server in without a word: a bind that does not share says so.
    if address.port() != 0 {
        let result = takeover::wait_for_address(address, || unshared(address));
        result.map_err(|source| StartError::Listen { address, source })?;
    }
    let mut listeners = Vec::with_capacity(usize::from(config.shards));
    for _ in 0..config.shards {
        let listener = bind_one(address, config.backlog)
            .map_err(|source| StartError::Listen { address, source })?;
        address = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;
        listeners.push(listener);
    }
    Ok((listeners, address))
}

fn unshared(address: SocketAddr) -> Result<(), IoError> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

fn bind_one(address: SocketAddr, backlog: i32) -> Result<TcpListener, IoError> {
    // `Socket::new` sets close-on-exec.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}
