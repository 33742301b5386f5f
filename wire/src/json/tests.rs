//! JSON against itself, and against objects that are wrong.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::error::WireError;
use crate::frame::{ClientFrame, ServerFrame};
use crate::id::{Cid, MemberNumber, Seq};
use crate::limits::{BODY_BYTES_MAX, FRAMES_PER_MESSAGE_MAX, JSON_NUMBER_MAX, MESSAGE_BYTES_MAX};
use crate::samples::{client_frame, server_frame};

fn client(json: &str) -> Result<Vec<ClientFrame>, WireError> {
    let mut frames = Vec::new();
    decode_client(&Bytes::copy_from_slice(json.as_bytes()), |frame| frames.push(frame))?;
    Ok(frames)
}

#[test]
fn a_message_is_an_object_or_an_array_of_them() {
    let ack = ClientFrame::Ack { pushes: 3 };
    assert_eq!(client(r#"{"type":"ack","pushes":3}"#), Ok(vec![ack.clone()]));
    let two = r#" [{"type":"ack","pushes":3}, {"later":[{}],"type":"ack","pushes":3}]"#;
    assert_eq!(client(two), Ok(vec![ack.clone(), ack]));
    assert_eq!(client("[]"), Ok(vec![]));
    assert_eq!(client(r#"{"type":"ack","pushes":3} x"#), Err(WireError::Json("it does not parse")));
}

#[test]
fn unknown_types_are_skipped_only_if_they_say_so() {
    assert_eq!(client(r#"{"type":"later"}"#), Err(WireError::UnknownType));
    let message = Bytes::from_static(br#"[{"type":"later","skip":true}]"#);
    assert_eq!(decode_client(&message, |_| panic!("nothing is known")), Ok(1));
}

#[test]
fn bounds_hold() {
    let out_of_range = |field| Err(WireError::OutOfRange { field });
    let pushes = |n: u64| client(&format!(r#"{{"type":"ack","pushes":{n}}}"#));
    assert_eq!(pushes(JSON_NUMBER_MAX + 1), out_of_range("pushes"));
    assert!(pushes(JSON_NUMBER_MAX).is_ok());
    assert_eq!(client(r#"{"type":"mark","cid":"+00000000000000f"}"#), out_of_range("cid"));
    assert_eq!(client(r#"{"type":"ack"}"#), Err(WireError::MissingField { field: "pushes" }));
    let flood = format!("[{}0]", r#"{"type":"x","skip":true},"#.repeat(FRAMES_PER_MESSAGE_MAX + 1));
    assert_eq!(client(&flood), Err(WireError::TooManyFrames(FRAMES_PER_MESSAGE_MAX)));
    let members = format!("{}1", "1,".repeat(64));
    let who =
        format!(r#"{{"type":"who","request":1,"cid":"00000000000000ff","members":[{members}]}}"#);
    assert!(matches!(client(&who), Err(WireError::Json(_))));
    let deep = format!(r#"{{"type":"ack","x":{}"#, "[".repeat(100_000));
    assert!(matches!(client(&deep), Err(WireError::Json(_))));
}

#[test]
fn the_largest_body_of_any_content_fits_into_a_message() {
    for character in ["a", "\"", "\u{1}", "\n", "€", "\u{7f}"] {
        let body = Bytes::from(character.repeat(BODY_BYTES_MAX / character.len()));
        let frame = ServerFrame::Text {
            cid: Cid(1),
            seq: Seq(1),
            sender: MemberNumber(1),
            time_ms: 5,
            body,
        };
        let mut out = BytesMut::new();
        encode_server(&frame, &mut out).expect("within bounds");
        assert!(out.len() < MESSAGE_BYTES_MAX / 2, "{} bytes", out.len());
        let mut frames = Vec::new();
        decode_server(&out.freeze(), |frame| frames.push(frame)).expect("valid");
        assert_eq!(frames, [frame]);
    }
}

proptest! {
    #[test]
    fn what_a_client_says_arrives(frame in client_frame(JSON_NUMBER_MAX)) {
        let mut out = BytesMut::new();
        encode_client(&frame, &mut out).expect("within bounds");
        let json = std::str::from_utf8(&out).expect("JSON is UTF-8");
        prop_assert_eq!(client(json), Ok(vec![frame]));
        for (end, _) in json.char_indices().take(400) {
            prop_assert!(client(&json[..end]).is_err());
        }
    }

    #[test]
    fn what_a_server_says_arrives(frame in server_frame(JSON_NUMBER_MAX)) {
        let mut out = BytesMut::new();
        encode_server(&frame, &mut out).expect("within bounds");
        let message = out.freeze();
        let mut frames = Vec::new();
        let skipped = decode_server(&message, |frame| frames.push(frame));
        prop_assert_eq!((skipped, frames), (Ok(0), vec![frame]));
        for end in 0..message.len().min(400) {
            let cut = decode_server(&message.slice(..end), drop);
            prop_assert!(cut.is_err());
        }
    }

    #[test]
    fn any_bytes_give_frames_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = (decode_client(&bytes, drop), decode_server(&bytes, drop));
    }
}
