//! Values of any size as immutable objects.
//!
//! A blob is written once, under a name that is never used again, as objects of [`STRIPE_BYTES`]; whoever wrote it keeps
//! its name and size. Nothing here is atomic over the stripes: a blob counts only when its name is committed elsewhere,
//! and a blob that is not is garbage for its owner to collect.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use holdfast_types::{OBJECT_NAME_BYTES_MAX, ObjectName};
use holdfast_wire::ObjectOp;
use tokio::task::JoinSet;

use crate::client::OpOptions;
use crate::error::OperateError;
use crate::pool::Pool;

/// Bytes in each stripe but the last: the largest object, so that recovery of one stays short.
pub const STRIPE_BYTES: u64 = 4 << 20;
/// Stripes of one blob in flight: covers the latency of a write at 1 GB/s, and bounds the memory of a request to 16 MiB.
const STRIPES_IN_FLIGHT: usize = 4;
/// Of a stripe's number in its object's name: a dot and 8 hex digits.
const SUFFIX_BYTES: usize = 9;

/// A name that cannot be a blob's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a blob name has 1 to {max} bytes, not {length}", max = OBJECT_NAME_BYTES_MAX - SUFFIX_BYTES)]
pub struct InvalidBlobName {
    /// The length that was given, in bytes.
    pub length: usize,
}

/// The name of a blob: any bytes, short enough that each stripe's object has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobName(Box<[u8]>);

impl BlobName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`InvalidBlobName`] when it is empty or too long.
    pub fn new(name: impl Into<Vec<u8>>) -> Result<BlobName, InvalidBlobName> {
        let name: Vec<u8> = name.into();
        if name.is_empty() || name.len() + SUFFIX_BYTES > OBJECT_NAME_BYTES_MAX {
            return Err(InvalidBlobName { length: name.len() });
        }
        Ok(BlobName(name.into_boxed_slice()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The object of stripe `index`.
    #[must_use]
    pub fn stripe(&self, index: u32) -> ObjectName {
        let mut name = Vec::with_capacity(self.0.len() + SUFFIX_BYTES);
        name.extend_from_slice(&self.0);
        name.extend_from_slice(format!(".{index:08x}").as_bytes());
        ObjectName::new(name).expect("a blob name leaves room for the suffix")
    }
}

/// Writes, reads and removes blobs in one pool.
#[derive(Debug, Clone)]
pub struct Striper {
    pool: Pool,
    options: OpOptions,
}

impl Striper {
    /// Over `pool`; `options` are those of each op.
    #[must_use]
    pub fn new(pool: Pool, options: OpOptions) -> Striper {
        Striper { pool, options }
    }

    /// Begins a blob that must be new.
    #[must_use]
    pub fn write(&self, blob: BlobName) -> StripeWriter {
        StripeWriter {
            striper: self.clone(),
            blob,
            stripe: BytesMut::new(),
            begun: 0,
            size: 0,
            in_flight: JoinSet::new(),
        }
    }

    /// Writes a whole blob that is at hand.
    ///
    /// # Errors
    /// [`OperateError`]; some stripes may be there then.
    pub async fn write_all(&self, blob: BlobName, data: Bytes) -> Result<(), OperateError> {
        let stripes = stripes_of(0..data.len() as u64);
        let whole = |stripe: &Stripe| {
            let start = u64::from(stripe.index) * STRIPE_BYTES;
            data.slice(to_usize(start)..to_usize(start + stripe.within.end))
        };
        let writes = stripes.map(|stripe| Ok((blob.stripe(stripe.index), whole(&stripe))));
        stream::iter(writes).try_for_each_concurrent(STRIPES_IN_FLIGHT, |(name, data)| self.put(name, data)).await
    }

    async fn put(&self, name: ObjectName, data: Bytes) -> Result<(), OperateError> {
        let ops = vec![ObjectOp::WriteFull { data: data.into() }];
        self.pool.operate_with(&name, ops, self.options).await.map(drop)
    }

    /// The bytes of `range` in order, piece by piece; a few stripes are read ahead. `range` must lie within the blob: a
    /// stripe that is missing or too short is [`OperateError::NotFound`] or [`OperateError::Unreadable`].
    pub fn read(
        &self,
        blob: &BlobName,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, OperateError>> + Send + use<> {
        let (striper, blob) = (self.clone(), blob.clone());
        let reads = stripes_of(range).map(move |stripe| striper.clone().get(blob.stripe(stripe.index), stripe.within));
        stream::iter(reads).buffered(STRIPES_IN_FLIGHT)
    }

    async fn get(self, name: ObjectName, within: Range<u64>) -> Result<Bytes, OperateError> {
        let length = within.end - within.start;
        let ops = vec![ObjectOp::Read { offset: within.start, length }];
        let outcome = self.pool.operate_with(&name, ops, self.options).await?;
        match outcome.results.into_iter().next() {
            Some(holdfast_wire::OpResult::Data(data)) if data.len() as u64 == length => Ok(data.0),
            Some(holdfast_wire::OpResult::Data(_)) => Err(OperateError::Unreadable { index: 0 }),
            _ => Err(OperateError::UnexpectedResult { index: 0 }),
        }
    }

    /// Removes a blob of `size` bytes, or what is there of it.
    ///
    /// # Errors
    /// [`OperateError`]; it can be repeated.
    pub async fn remove(&self, blob: &BlobName, size: u64) -> Result<(), OperateError> {
        let removals = stripes_of(0..size).map(|stripe| Ok(blob.stripe(stripe.index)));
        let remove = |name: ObjectName| async move {
            match self.pool.operate_with(&name, vec![ObjectOp::Remove], self.options).await {
                Ok(_) | Err(OperateError::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        stream::iter(removals).try_for_each_concurrent(STRIPES_IN_FLIGHT, remove).await
    }
}

/// A blob that is being written. Dropping it stops; what was written stays, for its owner to remove.
#[derive(Debug)]
pub struct StripeWriter {
    striper: Striper,
    blob: BlobName,
    stripe: BytesMut,
    /// Stripes whose writing has begun.
    begun: u32,
    /// Bytes taken so far.
    size: u64,
    in_flight: JoinSet<Result<(), OperateError>>,
}

impl StripeWriter {
    /// Takes the next bytes. Waits while too many stripes are in flight.
    ///
    /// # Errors
    /// [`OperateError`] of any stripe so far; the blob cannot be finished then.
    pub async fn push(&mut self, mut data: Bytes) -> Result<(), OperateError> {
        while !data.is_empty() {
            let room = to_usize(STRIPE_BYTES) - self.stripe.len();
            let taken = data.split_to(room.min(data.len()));
            self.size += taken.len() as u64;
            if self.stripe.is_empty() && taken.len() as u64 == STRIPE_BYTES {
                self.begin(taken).await?; // a whole stripe in one piece is not copied
                continue;
            }
            if self.stripe.capacity() == 0 && self.begun > 0 {
                // Small blobs grow their buffer as they need it; of larger ones whole stripes are likely.
                self.stripe.reserve(to_usize(STRIPE_BYTES));
            }
            self.stripe.extend_from_slice(&taken);
            if self.stripe.len() as u64 == STRIPE_BYTES {
                let stripe = std::mem::take(&mut self.stripe).freeze();
                self.begin(stripe).await?;
            }
        }
        Ok(())
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes the rest; when it returns `Ok`, all of the blob is durable. Gives its size. An empty blob has no objects.
    ///
    /// # Errors
    /// [`OperateError`] of any stripe.
    pub async fn finish(mut self) -> Result<u64, OperateError> {
        if !self.stripe.is_empty() {
            let stripe = std::mem::take(&mut self.stripe).freeze();
            self.begin(stripe).await?;
        }
        while let Some(done) = self.in_flight.join_next().await {
            flatten(done)?;
        }
        Ok(self.size)
    }

    /// Gives the blob up and removes what was written of it.
    ///
    /// # Errors
    /// [`OperateError`] of a removal.
    pub async fn abort(mut self) -> Result<(), OperateError> {
        // Not cancelled: a write that may be executed after the removal would leave its stripe behind.
        while self.in_flight.join_next().await.is_some() {}
        self.striper.remove(&self.blob, u64::from(self.begun) * STRIPE_BYTES).await
    }

    async fn begin(&mut self, stripe: Bytes) -> Result<(), OperateError> {
        while self.in_flight.len() >= STRIPES_IN_FLIGHT {
            if let Some(done) = self.in_flight.join_next().await {
                flatten(done)?;
            }
        }
        let name = self.blob.stripe(self.begun);
        self.begun += 1;
        let striper = self.striper.clone();
        self.in_flight.spawn(async move { striper.put(name, stripe).await });
        Ok(())
    }
}

fn flatten(done: Result<Result<(), OperateError>, tokio::task::JoinError>) -> Result<(), OperateError> {
    done.unwrap_or(Err(OperateError::ShutDown)) // the runtime ended, or the task panicked and said so
}

/// One stripe, and the part of it that is meant.
#[derive(Debug, PartialEq, Eq)]
struct Stripe {
    index: u32,
    within: Range<u64>,
}

/// The stripes that `range` of a blob touches.
fn stripes_of(range: Range<u64>) -> impl Iterator<Item = Stripe> + Send {
    let indices = if range.is_empty() { 0..0 } else { range.start / STRIPE_BYTES..range.end.div_ceil(STRIPE_BYTES) };
    indices.map_while(move |index| {
        let start = index * STRIPE_BYTES;
        let within = range.start.saturating_sub(start)..(range.end - start).min(STRIPE_BYTES);
        // 2^32 stripes are 16 PiB: nothing larger was written, so nothing beyond is there to be read.
        Some(Stripe { index: u32::try_from(index).ok()?, within })
    })
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("what is in memory is addressable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_cover_a_range_exactly() {
        let cases = [0..0, 0..1, 0..STRIPE_BYTES, 5..STRIPE_BYTES + 1, STRIPE_BYTES..STRIPE_BYTES * 3, 7..9];
        for range in cases {
            let mut at = range.start;
            for stripe in stripes_of(range.clone()) {
                let start = u64::from(stripe.index) * STRIPE_BYTES;
                assert_eq!(start + stripe.within.start, at, "{range:?} has no gap");
                assert!(stripe.within.end <= STRIPE_BYTES && !stripe.within.is_empty());
                at = start + stripe.within.end;
            }
            assert_eq!(at, range.end);
        }
    }

    #[test]
    fn each_stripe_of_the_longest_name_has_a_name() {
        let longest = OBJECT_NAME_BYTES_MAX - SUFFIX_BYTES;
        let blob = BlobName::new(vec![0xff; longest]).expect("short enough");
        assert_eq!(blob.stripe(u32::MAX).as_bytes().len(), OBJECT_NAME_BYTES_MAX);
        assert!(BlobName::new(vec![0xff; longest + 1]).is_err());
        assert!(BlobName::new("").is_err());
    }
}
