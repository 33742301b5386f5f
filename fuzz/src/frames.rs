//! The two codecs of frames.

use bytes::{Bytes, BytesMut};
use chatring_wire::codec::{ClientCodec, Outgoing, ServerCodec, Subprotocol};
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::{ClientFrame, ServerFrame, WireError};

pub(crate) fn varint(data: &[u8]) {
    if let Ok((value, used)) = chatring_wire::varint::take(data) {
        let mut out = BytesMut::new();
        chatring_wire::varint::put(&mut out, value);
        assert_eq!(&out[..], &data[..used], "only the shortest form parses");
    }
}

pub(crate) fn client_binary(data: &[u8]) {
    let frames = client_frames(Subprotocol::Binary, data);
    client_again(Subprotocol::Binary, &frames);
    client_again(Subprotocol::Json, &frames);
}

pub(crate) fn client_json(data: &[u8]) {
    let frames = client_frames(Subprotocol::Json, data);
    client_again(Subprotocol::Json, &frames);
    client_again(Subprotocol::Binary, &frames);
}

pub(crate) fn server_binary(data: &[u8]) {
    let frames = server_frames(Subprotocol::Binary, data);
    server_again(Subprotocol::Binary, &frames);
    server_again(Subprotocol::Json, &frames);
}

pub(crate) fn server_json(data: &[u8]) {
    let frames = server_frames(Subprotocol::Json, data);
    server_again(Subprotocol::Json, &frames);
    server_again(Subprotocol::Binary, &frames);
}

/// The frames before the first error.
fn client_frames(subprotocol: Subprotocol, data: &[u8]) -> Vec<ClientFrame> {
    let mut frames = Vec::new();
    let message = Bytes::copy_from_slice(data);
    let _ =
        ServerCodec::new(subprotocol, FRAME_BYTES_MAX).decode(&message, |frame| frames.push(frame));
    frames
}

fn server_frames(subprotocol: Subprotocol, data: &[u8]) -> Vec<ServerFrame> {
    let mut frames = Vec::new();
    let message = Bytes::copy_from_slice(data);
    let _ =
        ClientCodec::new(subprotocol, FRAME_BYTES_MAX).decode(&message, |frame| frames.push(frame));
    frames
}

/// What was read can be written and read again, unless it is too large or a number is.
fn client_again(subprotocol: Subprotocol, frames: &[ClientFrame]) {
    let mut writer = ClientCodec::new(subprotocol, FRAME_BYTES_MAX);
    let mut reader = ServerCodec::new(subprotocol, FRAME_BYTES_MAX);
    for frame in frames {
        let mut out = Outgoing::new();
        if is_written(subprotocol, writer.encode(frame, &mut out)) {
            let message = Bytes::copy_from_slice(out.messages().next().expect("one message"));
            let mut again = Vec::new();
            let skipped = reader.decode(&message, |frame| again.push(frame));
            assert_eq!((skipped, again), (Ok(0), vec![frame.clone()]));
        }
    }
}

fn server_again(subprotocol: Subprotocol, frames: &[ServerFrame]) {
    let mut writer = ServerCodec::new(subprotocol, FRAME_BYTES_MAX);
    let mut reader = ClientCodec::new(subprotocol, FRAME_BYTES_MAX);
    for frame in frames {
        let mut out = Outgoing::new();
        if is_written(subprotocol, writer.encode(frame, &mut out)) {
            let message = Bytes::copy_from_slice(out.messages().next().expect("one message"));
            let mut again = Vec::new();
            let skipped = reader.decode(&message, |frame| again.push(frame));
            assert_eq!((skipped, again), (Ok(0), vec![frame.clone()]));
        }
    }
}

fn is_written(subprotocol: Subprotocol, result: Result<(), WireError>) -> bool {
    match (subprotocol, result) {
        (_, Ok(())) => true,
        (_, Err(WireError::TooLarge { field: "frame", .. })) => false,
        (Subprotocol::Json, Err(WireError::OutOfRange { .. })) => false,
        (_, Err(error)) => panic!("a frame that was read cannot be written: {error}"),
    }
}
