//! Server-sent events, as the pieces of their stream come.

use thiserror::Error;

/// Longest event.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Takes the pieces of one stream.
#[derive(Debug, Default)]
pub struct Events {
    held: Vec<u8>,
    /// Where the search for an end goes on.
    searched: usize,
}

/// An event is longer than anybody would send.
#[derive(Debug, Error)]
#[error("an event of more than {EVENT_BYTES_MAX} bytes")]
pub struct TooLong;

impl Events {
    /// Takes a piece, and gives the data of each event that is whole to `on`, with all bytes that
    /// the event took. Comments are skipped.
    ///
    /// # Errors
    /// An event does not end.
    pub fn feed(&mut self, piece: &[u8], mut on: impl FnMut(&[u8], usize)) -> Result<(), TooLong> {
        self.held.extend_from_slice(piece);
        let mut start = 0;
        while let Some(end) = find_end(&self.held[self.searched..]) {
            let end = self.searched + end;
            let event = &self.held[start..end];
            for line in event.split(|byte| *byte == b'\n') {
                if let Some(data) = line.strip_prefix(b"data: ") {
                    on(data, event.len() + 2);
                }
            }
            start = end + 2;
            self.searched = start;
        }
        self.held.drain(..start);
        self.searched = self.held.len().saturating_sub(1);
        if self.held.len() > EVENT_BYTES_MAX { Err(TooLong) } else { Ok(()) }
    }
}

fn find_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_their_pieces_come() {
        let stream = b": nothing new\n\nid: a\nevent: sync\ndata: one\n\nid: b\ndata: two\n\n";
        for pieces in 1..stream.len() {
            let (mut events, mut all) = (Events::default(), Vec::new());
            for piece in stream.chunks(pieces) {
                events.feed(piece, |data, _| all.push(data.to_vec())).unwrap();
            }
            assert_eq!(all, [b"one", b"two"], "{pieces}");
            assert!(events.held.is_empty());
        }
    }
}
