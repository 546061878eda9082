//! Properties of the framing, against arbitrary frames cut, damaged and truncated in every way.
#![allow(clippy::unwrap_used)]

use bytes::{BufMut, Bytes};
use holdfast_wire::frame::{
    BODY_BYTES_MAX, FLAG_RESPONSE, FRAME_BYTES_MAX, Frame, FrameDecoder, FrameError, FrameHeader, HEADER_BYTES, Label,
    Limits, PAYLOAD_BYTES_MAX, Step, encode_frame,
};
use proptest::prelude::*;

/// Feeds `stream` in pieces of at most `piece` bytes; what came out, and how it ended.
fn decode_all(stream: &[u8], piece: usize, limits: Limits) -> (Vec<Frame>, Result<bool, FrameError>) {
    let mut decoder = FrameDecoder::new(limits);
    let (mut frames, mut rest) = (Vec::new(), stream);
    loop {
        match decoder.next() {
            Ok(Step::Frame(frame)) => frames.push(frame),
            Ok(Step::Header(_)) => {}
            Ok(Step::Incomplete) => {
                if rest.is_empty() {
                    return (frames, Ok(decoder.is_mid_frame()));
                }
                let mut space = decoder.space();
                assert!(space.remaining_mut() > 0, "there is always room to go on");
                let taken = rest.len().min(piece).min(space.remaining_mut());
                space.put_slice(&rest[..taken]);
                rest = &rest[taken..];
            }
            Err(error) => return (frames, Err(error)),
        }
    }
}

fn message() -> impl Strategy<Value = (Label, Vec<u8>, Vec<Bytes>)> {
    let bytes = |max: usize| prop::collection::vec(any::<u8>(), 0..max);
    (
        (any::<u16>(), any::<bool>(), any::<u64>(), any::<u64>()),
        bytes(300),
        prop::collection::vec(prop_oneof![bytes(50), bytes(9_000), bytes(100_000)].prop_map(Bytes::from), 0..4),
    )
        .prop_map(|((kind, response, request_id, trace_id), body, payload)| {
            (Label { kind, flags: u16::from(response) * FLAG_RESPONSE, request_id, trace_id }, body, payload)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
        messages in prop::collection::vec(message(), 1..6),
        piece in prop_oneof![1usize..100, 1_000usize..200_000],
    ) {
        let mut stream = Vec::new();
        for (label, body, payload) in &messages {
            stream.extend(encode_frame(*label, body, payload).unwrap());
        }
        let (frames, end) = decode_all(&stream, piece, Limits::ESTABLISHED);
        prop_assert_eq!(end, Ok(false));
        prop_assert_eq!(frames.len(), messages.len());
        for (frame, (label, body, payload)) in frames.iter().zip(&messages) {
            prop_assert_eq!(frame.header, FrameHeader::for_message(*label, body, payload).unwrap());
            prop_assert_eq!(&frame.body[..], &body[..]);
            prop_assert_eq!(&frame.payload[..], &payload.concat()[..]);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed_and_no_damaged_frame_comes_out(
        (label, body, payload) in message(), at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let mut stream = encode_frame(label, &body, &payload).unwrap();
        let index = at.index(stream.len());
        stream[index] ^= 1 << bit;
        let (frames, end) = decode_all(&stream, usize::MAX, Limits::ESTABLISHED);
        prop_assert!(frames.is_empty());
        prop_assert!(end.is_err());
    }

    #[test]
    fn a_truncated_stream_is_known_for_one(
        (label, body, payload) in message(), at in any::<prop::sample::Index>(),
    ) {
        let stream = encode_frame(label, &body, &payload).unwrap();
        let length = at.index(stream.len());
        let (frames, end) = decode_all(&stream[..length], 4096, Limits::ESTABLISHED);
        prop_assert!(frames.is_empty());
        prop_assert_eq!(end, Ok(length > 0));
    }

    #[test]
    fn garbage_is_refused_after_at_most_one_header(garbage in prop::collection::vec(any::<u8>(), HEADER_BYTES..500)) {
        let (frames, end) = decode_all(&garbage, 7, Limits::ESTABLISHED);
        prop_assert!(frames.is_empty());
        prop_assert!(end.is_err());
    }
}

#[test]
fn lengths_above_the_limits_are_refused_by_sender_and_receiver_alike() {
    let (body, payload) = (vec![1u8; 100], [Bytes::from(vec![2u8; 100])]);
    let stream = encode_frame(Label::default(), &body, &payload).unwrap();
    for limits in [
        Limits { body_bytes_max: 99, ..Limits::ESTABLISHED },
        Limits { payload_bytes_max: 99, ..Limits::ESTABLISHED },
        Limits { frame_bytes_max: 199, ..Limits::ESTABLISHED },
        Limits::HANDSHAKE,
    ] {
        let (_, end) = decode_all(&stream, usize::MAX, limits);
        assert_eq!(end, Err(FrameError::TooLarge { body_bytes: 100, payload_bytes: 100 }));
    }
    let block = Bytes::from(vec![0u8; 1 << 20]);
    let largest = vec![block.clone(); PAYLOAD_BYTES_MAX >> 20];
    assert!(FrameHeader::for_message(Label::default(), &body, &largest).is_ok());
    let larger = [largest.clone(), vec![Bytes::from_static(b"x")]].concat();
    assert!(FrameHeader::for_message(Label::default(), &body, &larger).is_err());
    assert!(FrameHeader::for_message(Label::default(), &vec![0; BODY_BYTES_MAX + 1], &[]).is_err());
    let rest = FRAME_BYTES_MAX - PAYLOAD_BYTES_MAX;
    assert!(FrameHeader::for_message(Label::default(), &vec![0; rest + 1], &largest).is_err());
}

#[test]
fn a_huge_length_in_a_forged_header_allocates_nothing() {
    // A header with a right checksum and lengths of 4 GiB: refused before anything is sized by them.
    let header = FrameHeader {
        kind: 1,
        flags: 0,
        request_id: 0,
        trace_id: 0,
        body_bytes: u32::MAX,
        payload_bytes: u32::MAX,
        body_crc: 0,
        payload_crc: 0,
    };
    let (_, end) = decode_all(&header.encode(), usize::MAX, Limits::ESTABLISHED);
    assert!(matches!(end, Err(FrameError::TooLarge { .. })));
}

#[test]
fn flags_that_must_be_understood_are_refused_and_others_ignored() {
    let decode = |flags| {
        let stream = encode_frame(Label { flags, ..Label::default() }, b"", &[]).unwrap();
        decode_all(&stream, usize::MAX, Limits::ESTABLISHED).1
    };
    assert_eq!(decode(0x0002), Err(FrameError::Flags { flags: 0x0002 }));
    assert_eq!(decode(0x0200), Ok(false));
}

#[test]
fn the_header_stands_in_the_stream_as_documented() {
    // docs/formats/frame.md gives this frame; a change of it is a change of the format.
    let label = Label { kind: 0x1234, flags: FLAG_RESPONSE, request_id: 0x0102_0304_0506_0708, trace_id: 9 };
    let stream =
        encode_frame(label, b"123456789", &[Bytes::from_static(b"1234"), Bytes::from_static(b"56789")]).unwrap();
    let expected = concat!(
        "48466672",
        "0100",
        "3412",
        "0100",
        "0000",
        "09000000",
        "09000000",
        "839206e3",
        "0807060504030201",
        "0900000000000000",
        "839206e3",
    );
    let hex: String = stream[..44].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);
    assert_eq!(stream.len(), HEADER_BYTES + 18);
}
