//! The close handshake of one end (RFC 6455, section 7): who still owes a close frame.
//!
//! ```text
//!           start                        received
//!   Open ----------> AwaitingReply --------------------> Finished
//!     |   received (reply is written), failed (close is written) ^
//!     +----------------------------------------------------------+
//! ```

use bytes::BytesMut;

use super::{MaskKey, WsError, encode_close};
use crate::error::CloseCode;

/// A close frame of the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceivedClose {
    /// Its code; `None` if the frame was empty (which APIs show as 1005).
    pub code: Option<u16>,
    /// Its reason, often empty.
    pub reason: String,
}

impl ReceivedClose {
    pub(super) fn decode(payload: &[u8]) -> Result<ReceivedClose, WsError> {
        let Some((code, reason)) = payload.split_first_chunk::<2>() else {
            return match payload {
                [] => Ok(ReceivedClose::default()),
                _ => Err(WsError::CloseTooShort),
            };
        };
        let code = u16::from_be_bytes(*code);
        if !may_travel(code) {
            return Err(WsError::CloseCode(code));
        }
        let reason = std::str::from_utf8(reason).map_err(|_| WsError::NotUtf8)?;
        Ok(ReceivedClose { code: Some(code), reason: reason.to_owned() })
    }
}

/// How far a connection's closing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseState {
    /// Messages may be sent.
    #[default]
    Open,
    /// We closed first: send nothing, read on (for a bounded time) until the peer's close.
    AwaitingReply,
    /// Flush, then end the connection: a server at once, a client after the server or a timeout.
    Finished,
}

/// Keeps an end from sending two close frames, or none.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloseHandshake {
    state: CloseState,
}

impl CloseHandshake {
    /// How far it is.
    pub const fn state(&self) -> CloseState {
        self.state
    }

    /// We want to close: writes the close frame unless one was written before.
    pub fn start(
        &mut self,
        out: &mut BytesMut,
        code: CloseCode,
        reason: &str,
        mask: Option<MaskKey>,
    ) {
        if self.state == CloseState::Open {
            encode_close(out, Some(code.number()), reason, mask);
            self.state = CloseState::AwaitingReply;
        }
    }

    /// The peer's close came: writes the reply, with the peer's code, if it is still owed.
    pub fn received(&mut self, out: &mut BytesMut, close: &ReceivedClose, mask: Option<MaskKey>) {
        if self.state == CloseState::Open {
            encode_close(out, close.code, "", mask);
        }
        self.state = CloseState::Finished;
    }

    /// The peer's bytes were wrong: writes a close frame with the error's code if none was
    /// written before. There is no reply to wait for.
    pub fn failed(&mut self, out: &mut BytesMut, error: WsError, mask: Option<MaskKey>) {
        if self.state == CloseState::Open {
            encode_close(out, Some(error.close_code().number()), "", mask);
        }
        self.state = CloseState::Finished;
    }
}

/// Codes that a peer may send: those of the RFC, the registered ones, and the open ranges.
const fn may_travel(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(act: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        act(&mut out);
        out.to_vec()
    }

    #[test]
    fn each_end_sends_exactly_one_close() {
        let mut first = CloseHandshake::default();
        let mut second = CloseHandshake::default();
        let out = written(|out| first.start(out, CloseCode::Normal, "bye", None));
        assert_eq!(out, [0x88, 5, 3, 0xe8, b'b', b'y', b'e']);
        assert_eq!(
            written(|out| first.start(out, CloseCode::Normal, "bye", None)),
            Vec::<u8>::new()
        );
        assert_eq!(first.state(), CloseState::AwaitingReply);

        let close = ReceivedClose::decode(&out[2..]).unwrap();
        let reply = written(|out| second.received(out, &close, None));
        assert_eq!(reply, [0x88, 2, 3, 0xe8]);
        assert_eq!(second.state(), CloseState::Finished);

        let close = ReceivedClose::decode(&reply[2..]).unwrap();
        assert_eq!(written(|out| first.received(out, &close, None)), Vec::<u8>::new());
        assert_eq!(first.state(), CloseState::Finished);
    }

    #[test]
    fn an_empty_close_is_answered_by_an_empty_one() {
        let mut end = CloseHandshake::default();
        let reply = written(|out| end.received(out, &ReceivedClose::default(), None));
        assert_eq!(reply, [0x88, 0]);
    }

    #[test]
    fn an_error_after_our_close_sends_nothing_more() {
        let mut end = CloseHandshake::default();
        written(|out| end.start(out, CloseCode::GoingAway, "", None));
        assert_eq!(written(|out| end.failed(out, WsError::NotUtf8, None)), Vec::<u8>::new());
        assert_eq!(end.state(), CloseState::Finished);

        let mut end = CloseHandshake::default();
        let out = written(|out| end.failed(out, WsError::NotUtf8, None));
        assert_eq!(out, [0x88, 2, 0x03, 0xef]);
    }

    #[test]
    fn codes_that_must_not_travel_are_errors() {
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65_535] {
            let decoded = ReceivedClose::decode(&code.to_be_bytes());
            assert_eq!(decoded, Err(WsError::CloseCode(code)));
        }
        for code in [1000u16, 1003, 1007, 1011, 1014, 3000, 4009, 4999] {
            assert_eq!(ReceivedClose::decode(&code.to_be_bytes()).unwrap().code, Some(code));
        }
        assert_eq!(ReceivedClose::decode(&[3]), Err(WsError::CloseTooShort));
        assert_eq!(ReceivedClose::decode(&[3, 0xe8, 0xff]), Err(WsError::NotUtf8));
    }
}
