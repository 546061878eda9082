//! From messages to body and payload bytes and back.

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::payload::Payload;

/// A body or payload that is not the message it claims to be.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The bytes are not the CBOR of the expected message.
    #[error("message of kind {kind} cannot be decoded: {detail}")]
    Malformed {
        /// The frame kind, as a number.
        kind: u16,
        /// What the decoder said.
        detail: String,
    },
}

/// A message ready for a frame: its body, and the payload chunks in order.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// CBOR.
    pub body: Bytes,
    /// Bytes beside it; shared, never copied.
    pub payload: Vec<Bytes>,
}

/// Shorthand for what [`decode`] gives.
pub type Decoded<T> = Result<T, WireError>;

/// Encodes a message. Payload chunks share memory with the message's blobs.
#[must_use]
pub fn encode<T: Encode<Payload>>(message: &T) -> Encoded {
    let mut payload = Payload::default();
    let mut body = Vec::with_capacity(256);
    minicbor::encode_with(message, &mut body, &mut payload).expect("encoding to memory cannot fail");
    Encoded { body: body.into(), payload: payload.chunks }
}

/// Decodes a message of frame kind `kind` (named in the error only) from its body and its contiguous payload.
///
/// # Errors
/// [`WireError::Malformed`].
pub fn decode<T: for<'b> Decode<'b, Payload>>(kind: u16, body: &[u8], payload: &Bytes) -> Decoded<T> {
    let mut context = Payload { received: payload.clone(), ..Payload::default() };
    minicbor::decode_with(body, &mut context).map_err(|error| WireError::Malformed { kind, detail: error.to_string() })
}
