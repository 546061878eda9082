//! The framing of OSD traffic: a fixed header with its own checksum, a CBOR body, and the payload beside it.
//!
//! Duty: bytes ⇄ [`Frame`]s, and the first frame of each direction ([`Hello`]) and the last ([`Goodbye`]).
//! It opens no socket and knows no message but those two. Format, byte by byte: `docs/formats/frame.md`.
//!
//! Invariants:
//! - Nothing in a header is believed, least of all a length, before the header's checksum and the limits are checked.
//! - No input makes [`FrameDecoder`] panic, and none makes it hold more than one frame and one read buffer.
//! - A frame is handed on only when the checksums of its body and of its payload match.
//!
//! Source: the message header of TigerBeetle (header checksummed and trusted before its body is read), ours in bytes.

mod decoder;
mod hello;

use bytes::Bytes;

pub use decoder::{FrameDecoder, READ_BUFFER_BYTES, Step};
pub use hello::{Goodbye, GoodbyeReason, Hello, PeerIdentity};

/// `HFfr` as it stands in the stream.
pub const MAGIC: u32 = u32::from_le_bytes(*b"HFfr");

/// Version of the header's layout. Versions of messages are negotiated in [`Hello`].
pub const HEADER_VERSION: u16 = 1;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 48;

/// The longest body. Room for more than is sent: a whole KV group (≤ 32 MiB of keys and values, ≤ 64k rows), which travels in
/// pieces, would fit, with 16 bytes of CBOR for each row.
pub const BODY_BYTES_MAX: usize = 33 << 20;

/// The longest payload: the same KV group with large values; what is sent (results of a request, effects of a write) is at most
/// half of it.
pub const PAYLOAD_BYTES_MAX: usize = 33 << 20;

/// The longest body and payload together. The same KV group can be spread over both, so this is no sum of the two.
pub const FRAME_BYTES_MAX: usize = 34 << 20;

const _: () = assert!(BODY_BYTES_MAX >= (32 << 20) + 65_536 * 16, "a full KV group fits into a body");
const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize, "lengths are 32 bits in the header");

/// The largest frame of a handshake; see [`Limits::HANDSHAKE`].
pub const HANDSHAKE_BODY_BYTES_MAX: usize = 4 << 10;

/// Flag: the frame answers the request whose id it carries (of the receiver's numbering).
pub const FLAG_RESPONSE: u16 = 1 << 0;

/// Flags that a receiver must understand to handle the frame; the others may be ignored.
const FLAGS_MUST_UNDERSTAND: u16 = 0x00ff;

/// Flags of the above that this build understands.
const FLAGS_KNOWN: u16 = FLAG_RESPONSE;

/// Bytes that are no frame, or a frame that must not be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not carry our frames, or we lost step.
    #[error("bad magic {found:#010x}")]
    Magic {
        /// The four bytes, little-endian.
        found: u32,
    },
    /// The header is damaged.
    #[error("header checksum mismatch: sent {sent:#010x}, computed {computed:#010x}")]
    HeaderChecksum {
        /// The checksum in the header.
        sent: u32,
        /// The checksum of what arrived.
        computed: u32,
    },
    /// A header of a later layout.
    #[error("header version {found} is not {HEADER_VERSION}")]
    HeaderVersion {
        /// The version in the header.
        found: u16,
    },
    /// A flag that must be understood is not.
    #[error("unknown flags {flags:#06x}")]
    Flags {
        /// All flags of the frame.
        flags: u16,
    },
    /// Body or payload exceed the limits.
    #[error("frame with a body of {body_bytes} and a payload of {payload_bytes} bytes exceeds the limits")]
    TooLarge {
        /// Length of the body.
        body_bytes: usize,
        /// Length of the payload.
        payload_bytes: usize,
    },
    /// The body is damaged.
    #[error("body checksum mismatch: sent {sent:#010x}, computed {computed:#010x}")]
    BodyChecksum {
        /// The checksum in the header.
        sent: u32,
        /// The checksum of what arrived.
        computed: u32,
    },
    /// The payload is damaged.
    #[error("payload checksum mismatch: sent {sent:#010x}, computed {computed:#010x}")]
    PayloadChecksum {
        /// The checksum in the header.
        sent: u32,
        /// The checksum of what arrived.
        computed: u32,
    },
}

/// What a decoder accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest body.
    pub body_bytes_max: usize,
    /// The longest payload.
    pub payload_bytes_max: usize,
    /// The longest body and payload together.
    pub frame_bytes_max: usize,
}

impl Limits {
    /// Before the peer is known: one small body. What an unknown peer can make us hold is this and a read buffer.
    pub const HANDSHAKE: Limits = Limits {
        body_bytes_max: HANDSHAKE_BODY_BYTES_MAX,
        payload_bytes_max: 0,
        frame_bytes_max: HANDSHAKE_BODY_BYTES_MAX,
    };
    /// Between authenticated peers.
    pub const ESTABLISHED: Limits = Limits {
        body_bytes_max: BODY_BYTES_MAX,
        payload_bytes_max: PAYLOAD_BYTES_MAX,
        frame_bytes_max: FRAME_BYTES_MAX,
    };

    /// Whether a frame of these lengths is acceptable.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`].
    pub fn check(&self, body_bytes: usize, payload_bytes: usize) -> Result<(), FrameError> {
        let sum = body_bytes.saturating_add(payload_bytes);
        if body_bytes > self.body_bytes_max || payload_bytes > self.payload_bytes_max || sum > self.frame_bytes_max {
            return Err(FrameError::TooLarge { body_bytes, payload_bytes });
        }
        Ok(())
    }
}

/// The fixed part of a frame. Made for sending by [`FrameHeader::for_message`], received only through the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the body is; see [`crate::Kind`].
    pub kind: u16,
    /// `FLAG_*`.
    pub flags: u16,
    /// Of the request that this is or answers; 0: one way.
    pub request_id: u64,
    /// Follows one client op through all daemons; 0: none.
    pub trace_id: u64,
    /// Length of the body.
    pub body_bytes: u32,
    /// Length of the payload.
    pub payload_bytes: u32,
    /// CRC-32C of the body.
    pub body_crc: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

/// What a message says of itself in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Label {
    /// See [`FrameHeader::kind`].
    pub kind: u16,
    /// See [`FrameHeader::flags`].
    pub flags: u16,
    /// See [`FrameHeader::request_id`].
    pub request_id: u64,
    /// See [`FrameHeader::trace_id`].
    pub trace_id: u64,
}

impl FrameHeader {
    /// The header for a message: checks the limits and computes both checksums.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`].
    pub fn for_message(label: Label, body: &[u8], payload: &[Bytes]) -> Result<FrameHeader, FrameError> {
        let payload_bytes = payload.iter().fold(0usize, |sum, chunk| sum.saturating_add(chunk.len()));
        Limits::ESTABLISHED.check(body.len(), payload_bytes)?;
        let too_large = |_| FrameError::TooLarge { body_bytes: body.len(), payload_bytes };
        Ok(FrameHeader {
            kind: label.kind,
            flags: label.flags,
            request_id: label.request_id,
            trace_id: label.trace_id,
            body_bytes: u32::try_from(body.len()).map_err(too_large)?,
            payload_bytes: u32::try_from(payload_bytes).map_err(too_large)?,
            body_crc: crc_fast::crc32_iscsi(body),
            payload_crc: crc_of_chunks(payload),
        })
    }

    /// Length of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.body_bytes as usize + self.payload_bytes as usize
    }

    /// Whether this answers a request of the receiver.
    #[must_use]
    pub fn is_response(&self) -> bool {
        self.flags & FLAG_RESPONSE != 0
    }

    /// The header as it stands in the stream.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0u8; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&HEADER_VERSION.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&0u16.to_le_bytes()); // reserved
        put(&self.body_bytes.to_le_bytes());
        put(&self.payload_bytes.to_le_bytes());
        put(&self.body_crc.to_le_bytes());
        put(&self.request_id.to_le_bytes());
        put(&self.trace_id.to_le_bytes());
        put(&self.payload_crc.to_le_bytes());
        debug_assert_eq!(at, HEADER_BYTES - 4, "all but the header's checksum");
        let crc = crc_fast::crc32_iscsi(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks a header. Magic first, so that a stranger is told from damage; then the checksum; only then
    /// version, flags and lengths.
    fn decode(bytes: &[u8; HEADER_BYTES], limits: &Limits) -> Result<FrameHeader, FrameError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC {
            return Err(FrameError::Magic { found: u32_at(0) });
        }
        let (sent, computed) = (u32_at(HEADER_BYTES - 4), crc_fast::crc32_iscsi(&bytes[..HEADER_BYTES - 4]));
        if sent != computed {
            return Err(FrameError::HeaderChecksum { sent, computed });
        }
        if u16_at(4) != HEADER_VERSION {
            return Err(FrameError::HeaderVersion { found: u16_at(4) });
        }
        let header = FrameHeader {
            kind: u16_at(6),
            flags: u16_at(8),
            body_bytes: u32_at(12),
            payload_bytes: u32_at(16),
            body_crc: u32_at(20),
            request_id: u64_at(24),
            trace_id: u64_at(32),
            payload_crc: u32_at(40),
        };
        if header.flags & FLAGS_MUST_UNDERSTAND & !FLAGS_KNOWN != 0 {
            return Err(FrameError::Flags { flags: header.flags });
        }
        limits.check(header.body_bytes as usize, header.payload_bytes as usize)?;
        Ok(header)
    }
}

/// A received frame; both checksums matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The header.
    pub header: FrameHeader,
    /// The body, in memory of its own: keeping it keeps no read buffer.
    pub body: Bytes,
    /// The payload, in memory of its own and of exactly its size.
    pub payload: Bytes,
}

fn crc_of_chunks(chunks: &[Bytes]) -> u32 {
    match chunks {
        [] => crc_fast::crc32_iscsi(&[]),
        [chunk] => crc_fast::crc32_iscsi(chunk),
        chunks => {
            let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
            for chunk in chunks {
                digest.update(chunk);
            }
            u32::try_from(digest.finalize()).expect("a CRC-32 has 32 bits")
        }
    }
}

/// A whole frame in one buffer: for handshakes and tests. Connections write header, body and payload vectored.
///
/// # Errors
/// [`FrameError::TooLarge`].
pub fn encode_frame(label: Label, body: &[u8], payload: &[Bytes]) -> Result<Vec<u8>, FrameError> {
    let header = FrameHeader::for_message(label, body, payload)?;
    let mut frame = Vec::with_capacity(header.frame_bytes());
    frame.extend_from_slice(&header.encode());
    frame.extend_from_slice(body);
    for chunk in payload {
        frame.extend_from_slice(chunk);
    }
    Ok(frame)
}
