//! Answers of a server as their bytes come, one after the other on a kept-alive connection.

use bytes::{Buf as _, BytesMut};
use thiserror::Error;

/// Most headers of an answer.
const HEADERS_MAX: usize = 32;
/// Most bytes that are held of an answer which is not whole yet.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Takes the bytes of one connection.
#[derive(Debug, Default)]
pub struct Answers {
    held: BytesMut,
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Before the head of an answer.
    #[default]
    Head,
    /// Before the size of a chunk.
    Size,
    /// Within a chunk, of which so many bytes are to come.
    Chunk(usize),
    /// Before the end of the line behind a chunk.
    ChunkEnd,
    /// Behind the last chunk.
    Last,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// A whole answer.
    Answer {
        /// Its status.
        status: u16,
        /// Its body.
        body: &'a [u8],
        /// Bytes of it all.
        bytes: usize,
    },
    /// An answer begins that comes in pieces.
    Begun {
        /// Its status.
        status: u16,
    },
    /// A piece of it.
    Piece(&'a [u8]),
    /// The answer that came in pieces is over.
    End,
}

/// The server does not speak HTTP/1.1.
#[derive(Debug, Error)]
pub enum Broken {
    /// It is no head of an answer.
    #[error("no head of an answer: {0}")]
    Head(#[from] httparse::Error),
    /// It tells neither its length nor its pieces.
    #[error("an answer of unknown length")]
    Length,
    /// It is no chunk.
    #[error("a damaged chunk")]
    Chunk,
    /// It is too long.
    #[error("an answer of more than {HELD_BYTES_MAX} bytes")]
    TooLong,
}

#[derive(Clone, Copy)]
struct Head {
    status: u16,
    /// Of the body; none if it comes in pieces.
    length: Option<usize>,
    bytes: usize,
}

impl Answers {
    /// Takes bytes and tells what they are.
    ///
    /// # Errors
    /// The server does not speak HTTP/1.1.
    pub fn feed(&mut self, input: &[u8], mut on: impl FnMut(Heard<'_>)) -> Result<(), Broken> {
        if self.held.is_empty() {
            let used = self.take(input, &mut on)?;
            self.held.extend_from_slice(&input[used..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(input);
            let used = self.take(&held, &mut on)?;
            held.advance(used);
            self.held = held;
        }
        if self.held.len() > HELD_BYTES_MAX { Err(Broken::TooLong) } else { Ok(()) }
    }

    /// Takes what is whole of `bytes`; gives how many those were.
    fn take(&mut self, bytes: &[u8], on: &mut impl FnMut(Heard<'_>)) -> Result<usize, Broken> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            match self.state {
                State::Head => {
                    let Some(head) = head(rest)? else { return Ok(used) };
                    let Some(length) = head.length else {
                        on(Heard::Begun { status: head.status });
                        self.state = State::Size;
                        used += head.bytes;
                        continue;
                    };
                    let whole = head.bytes.saturating_add(length);
                    let Some(answer) = rest.get(..whole) else { return Ok(used) };
                    let (status, body) = (head.status, &answer[head.bytes..]);
                    on(Heard::Answer { status, body, bytes: whole });
                    used += whole;
                }
                State::Size => {
                    let Some((size, length)) = size(rest)? else { return Ok(used) };
                    self.state = if size == 0 { State::Last } else { State::Chunk(size) };
                    used += length;
                }
                State::Chunk(left) => {
                    if rest.is_empty() {
                        return Ok(used);
                    }
                    let here = left.min(rest.len());
                    on(Heard::Piece(&rest[..here]));
                    used += here;
                    self.state = match left - here {
                        0 => State::ChunkEnd,
                        left => State::Chunk(left),
                    };
                }
                State::ChunkEnd | State::Last => match rest {
                    [b'\r', b'\n', ..] => {
                        used += 2;
                        if matches!(self.state, State::Last) {
                            on(Heard::End);
                            self.state = State::Head;
                        } else {
                            self.state = State::Size;
                        }
                    }
                    [] | [b'\r'] => return Ok(used),
                    _ => return Err(Broken::Chunk),
                },
            }
        }
    }
}

fn head(bytes: &[u8]) -> Result<Option<Head>, Broken> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = response.parse(bytes)? else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let header = |name: &str| {
        let named = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        named.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let length = match header("content-length") {
        Some(length) => Some(length.parse().map_err(|_| Broken::Length)?),
        None if status == 204 || status == 304 => Some(0),
        None if header("transfer-encoding").is_some_and(|coding| coding == "chunked") => None,
        None => return Err(Broken::Length),
    };
    Ok(Some(Head { status, length, bytes: head_bytes }))
}

/// The size of the chunk that begins here, and the length of the line that tells it.
fn size(bytes: &[u8]) -> Result<Option<(usize, usize)>, Broken> {
    match httparse::parse_chunk_size(bytes) {
        Ok(httparse::Status::Complete((length, size))) => {
            Ok(Some((usize::try_from(size).map_err(|_| Broken::Chunk)?, length)))
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Broken::Chunk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        "HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "3\r\none\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
    );

    fn heard(pieces: usize) -> Vec<String> {
        let mut answers = Answers::default();
        let mut all = Vec::new();
        for piece in STREAM.as_bytes().chunks(pieces) {
            let on = |heard: Heard<'_>| match heard {
                Heard::Answer { status, body, .. } => {
                    all.push(format!("{status} {}", String::from_utf8_lossy(body)));
                }
                Heard::Begun { status } => all.push(format!("{status}: ")),
                Heard::Piece(piece) => {
                    all.last_mut().unwrap().push_str(std::str::from_utf8(piece).unwrap());
                }
                Heard::End => all.last_mut().unwrap().push('.'),
            };
            answers.feed(piece, on).unwrap();
        }
        assert!(answers.held.is_empty());
        all
    }

    #[test]
    fn answers_are_the_same_however_their_bytes_come() {
        for pieces in [1, 2, 7, 64, STREAM.len()] {
            assert_eq!(heard(pieces), ["201 abc", "200: one0123456789.", "204 "], "{pieces}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for bad in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc",
        ] {
            assert!(Answers::default().feed(bad.as_bytes(), |_| {}).is_err(), "{bad}");
        }
    }
}
