//! Bytes that travel beside a message instead of inside it.
//!
//! Encoding a [`Blob`] appends its `Bytes` to the message's payload and writes `[offset, length]`; decoding slices the
//! received payload without copying. Blobs of up to [`INLINE_BYTES_MAX`] bytes are written in place: a slice of
//! scatter-gather IO costs more than copying them.

use std::fmt;

use bytes::Bytes;
use minicbor::{Decode, Decoder, Encode, Encoder, data::Type, decode, encode};

/// Blobs up to this many bytes are encoded inside the message body. Below about 256 bytes one more entry of a
/// vectored write costs more than the copy.
pub const INLINE_BYTES_MAX: usize = 256;

/// What encoding and decoding of messages with payload need: a place to put chunks, and the payload to slice.
#[derive(Debug, Default)]
pub struct Payload {
    /// Chunks to send, in order. While decoding: unused.
    pub chunks: Vec<Bytes>,
    /// Sum of the lengths of `chunks`, in bytes.
    pub chunks_bytes: usize,
    /// The received payload. While encoding: empty.
    pub received: Bytes,
}

/// Access to the [`Payload`] from an encoding context.
pub trait PayloadContext {
    /// The payload of the message at hand.
    fn payload(&mut self) -> &mut Payload;
}

impl PayloadContext for Payload {
    fn payload(&mut self) -> &mut Payload {
        self
    }
}

/// Bytes carried in a message's payload. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Blob(pub Bytes);

impl Blob {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= 32 {
            write!(f, "Blob({})", self.0.escape_ascii())
        } else {
            write!(f, "Blob({} bytes)", self.0.len())
        }
    }
}

impl<T: Into<Bytes>> From<T> for Blob {
    fn from(bytes: T) -> Blob {
        Blob(bytes.into())
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<C: PayloadContext> Encode<C> for Blob {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        if self.0.len() <= INLINE_BYTES_MAX {
            return e.bytes(&self.0)?.ok();
        }
        let payload = ctx.payload();
        let offset = payload.chunks_bytes;
        payload.chunks_bytes += self.0.len();
        payload.chunks.push(self.0.clone());
        e.array(2)?.u64(offset as u64)?.u64(self.0.len() as u64)?.ok()
    }
}

impl<'b, C: PayloadContext> Decode<'b, C> for Blob {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        if d.datatype()? == Type::Bytes {
            return Ok(Blob(Bytes::copy_from_slice(d.bytes()?)));
        }
        if d.array()? != Some(2) {
            return Err(decode::Error::message("a payload reference is [offset, length]"));
        }
        let (offset, length) = (d.u64()?, d.u64()?);
        let received = &ctx.payload().received;
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(length).ok())
            .and_then(|(offset, length)| Some(offset..offset.checked_add(length)?))
            .filter(|range| range.end <= received.len())
            .ok_or_else(|| decode::Error::message("a payload reference points outside the payload"))?;
        Ok(Blob(received.slice(range)))
    }
}
