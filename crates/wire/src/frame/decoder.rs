//! Frames out of a stream that arrives in pieces of any size.

use bytes::buf::Limit;
use bytes::{BufMut, BytesMut};

use super::{Frame, FrameError, FrameHeader, HEADER_BYTES, Limits};

/// Size of the buffer that headers, and what was read beyond them, arrive in: 16 requests of 4 KiB in one read.
pub const READ_BUFFER_BYTES: usize = 64 << 10;

/// Below this many free bytes the read buffer is compacted: moving a few bytes costs less than one short read.
const READ_BUFFER_FREE_BYTES_MIN: usize = 16 << 10;

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed: read into [`FrameDecoder::space`].
    Incomplete,
    /// A checked header. Body and payload are read on the calls after this one: until then nothing was allocated for
    /// them, so this is the place to wait for credit.
    Header(FrameHeader),
    /// A whole frame.
    Frame(Frame),
}

/// An incremental decoder of one direction of a connection.
///
/// Call [`FrameDecoder::next`] until it says [`Step::Incomplete`], then read into [`FrameDecoder::space`], and so on.
/// Body and payload have buffers of exactly their size; while they are incomplete, `space` is that buffer, so large
/// payloads are read into their place and not copied. After an error the stream is out of step and must be closed.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: Limits,
    /// Bytes not yet consumed are `read[consumed..]`.
    read: BytesMut,
    consumed: usize,
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    header: FrameHeader,
    body: BytesMut,
    payload: BytesMut,
}

impl FrameDecoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new(limits: Limits) -> FrameDecoder {
        FrameDecoder { limits, read: BytesMut::with_capacity(READ_BUFFER_BYTES), consumed: 0, partial: None }
    }

    /// Other limits from the next header on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether a frame has begun to arrive and is not complete: the stream must not end here.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.partial.is_some() || self.consumed < self.read.len()
    }

    /// Where the next bytes of the stream belong. Never empty after [`Step::Incomplete`].
    pub fn space(&mut self) -> Limit<&mut BytesMut> {
        if let Some(partial) = &mut self.partial {
            let body_missing = partial.header.body_bytes as usize - partial.body.len();
            if body_missing > 0 {
                return (&mut partial.body).limit(body_missing);
            }
            let payload_missing = partial.header.payload_bytes as usize - partial.payload.len();
            if payload_missing > 0 {
                return (&mut partial.payload).limit(payload_missing);
            }
        }
        if self.consumed == self.read.len() {
            self.read.clear();
            self.consumed = 0;
        } else if self.read.capacity() - self.read.len() < READ_BUFFER_FREE_BYTES_MIN {
            self.read.copy_within(self.consumed.., 0);
            self.read.truncate(self.read.len() - self.consumed);
            self.consumed = 0;
        }
        let free = self.read.capacity() - self.read.len();
        (&mut self.read).limit(free)
    }

    /// Advances over the bytes that are there.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is then out of step.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot say that it waits for bytes")]
    pub fn next(&mut self) -> Result<Step, FrameError> {
        let Some(mut partial) = self.partial.take() else {
            let Some(bytes) = self.read[self.consumed..].first_chunk::<HEADER_BYTES>() else {
                return Ok(Step::Incomplete);
            };
            let header = FrameHeader::decode(bytes, &self.limits)?;
            self.consumed += HEADER_BYTES;
            self.partial = Some(Partial { header, body: BytesMut::new(), payload: BytesMut::new() });
            return Ok(Step::Header(header));
        };
        if !self.fill(&mut partial) {
            self.partial = Some(partial);
            return Ok(Step::Incomplete);
        }
        let Partial { header, body, payload } = partial;
        let computed = crc_fast::crc32_iscsi(&body);
        if computed != header.body_crc {
            return Err(FrameError::BodyChecksum { sent: header.body_crc, computed });
        }
        let computed = crc_fast::crc32_iscsi(&payload);
        if computed != header.payload_crc {
            return Err(FrameError::PayloadChecksum { sent: header.payload_crc, computed });
        }
        Ok(Step::Frame(Frame { header, body: body.freeze(), payload: payload.freeze() }))
    }

    /// Moves what was read ahead to its place; whether body and payload are complete.
    fn fill(&mut self, partial: &mut Partial) -> bool {
        let header = &partial.header;
        for (part, length) in
            [(&mut partial.body, header.body_bytes as usize), (&mut partial.payload, header.payload_bytes as usize)]
        {
            let missing = length - part.len();
            let ahead = &self.read[self.consumed..];
            let taken = missing.min(ahead.len());
            if part.capacity() == 0 && length > 0 {
                *part = BytesMut::with_capacity(length); // the header is checked: `length` is within the limits
            }
            part.extend_from_slice(&ahead[..taken]);
            self.consumed += taken;
            if taken < missing {
                return false;
            }
        }
        true
    }
}
