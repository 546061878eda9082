//! Bytes that can be made again from a seed, in pieces, so that a checker keeps eight bytes for each object.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Bytes that a streamed body gives at once.
const PIECE_BYTES: u64 = 64 * 1024;

/// The content of an object: its length, and what its bytes are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Content {
    /// Makes the bytes.
    pub seed: u64,
    /// Length.
    pub bytes: u64,
}

impl Content {
    /// The bytes `from..to`.
    ///
    /// Every eight of them are a mix of seed and position, so a piece of another object, another version or another
    /// place is never equal.
    #[must_use]
    pub fn piece(&self, from: u64, to: u64) -> Bytes {
        let (from, to) = (from.min(self.bytes), to.min(self.bytes));
        let mut bytes = Vec::with_capacity(usize::try_from(to - from).unwrap_or_default() + 16);
        for word in from / 8..to.div_ceil(8) {
            bytes.extend_from_slice(&mix(self.seed ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
        }
        let skip = usize::try_from(from % 8).unwrap_or_default();
        let length = usize::try_from(to - from).unwrap_or_default();
        Bytes::from(bytes).slice(skip..skip + length)
    }

    /// All bytes.
    #[must_use]
    pub fn whole(&self) -> Bytes {
        self.piece(0, self.bytes)
    }

    /// As a body that is made while it is sent.
    #[must_use]
    pub fn body(&self) -> Streamed {
        Streamed { content: *self, at: 0 }
    }
}

/// Splitmix64's last step.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A request body of known length.
#[derive(Debug)]
pub struct Streamed {
    content: Content,
    at: u64,
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.at >= self.content.bytes {
            return Poll::Ready(None);
        }
        let to = (self.at + PIECE_BYTES).min(self.content.bytes);
        let piece = self.content.piece(self.at, to);
        self.at = to;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.at >= self.content.bytes
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.bytes - self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_whole() {
        let content = Content { seed: 7, bytes: 1003 };
        let whole = content.whole();
        assert_eq!(whole.len(), 1003);
        for (from, to) in [(0, 1003), (0, 8), (3, 5), (5, 500), (999, 1003), (1003, 2000)] {
            let (first, last) = (from.min(1003), to.min(1003));
            assert_eq!(content.piece(from as u64, to as u64), whole.slice(first..last), "{from}..{to}");
        }
        assert_ne!(Content { seed: 8, bytes: 1003 }.whole(), whole);
    }
}
