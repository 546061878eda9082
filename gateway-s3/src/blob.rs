//! Object data into and out of storage, in bounded memory.
//!
//! # Writing
//! [`receive`] reads a source to its end. Few bytes are returned, to be put in a row. More of them
//! go to a fresh blob, stripe by stripe, while an *intent* row (a [`GcRow`] with `intent`) says that the blob is being
//! written. The intent is durable before the first stripe is sent, so no crash leaves a blob that nobody knows. The commit
//! must remove the intent row under the condition that it is unchanged: the collector, and whoever gives a blob up, takes
//! the intent away first and deletes stripes afterwards, so either the commit or the deletion wins, never both.
//!
//! # Reading
//! [`Download`] fetches piece by piece with a little read-ahead.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use tokio::task::{JoinHandle, JoinSet};

use crate::backend::{BackendError, BatchError, BlobId, Condition, Mutation, RowKey, TableId};
use crate::body::Source;
use crate::checksum::{Digests, Expectations, HashPipe};
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Gateway;
use crate::range::ByteRange;
use crate::row::{BlobRef, GcRow, PartRef, Row as _, row_key, space, unique_id};

/// Largest object that lives in a row.
pub const INLINE_BYTES_MAX: u64 = 16 * 1024;
/// Largest part that lives in a row: all parts of a key are in one group of at most 32 MiB, and there may be 10,000.
pub const PART_INLINE_BYTES_MAX: u64 = 1024;
/// Bytes of a stripe: one object of the pool.
pub const STRIPE_BYTES: u32 = 4 * 1024 * 1024;
/// Stripes of one upload that are being stored while the next is received.
const STRIPES_IN_FLIGHT_MAX: usize = 2;
/// Bytes fetched at once for a download, and when memory is tight.
const PIECE_BYTES: u64 = 1024 * 1024;
const PIECE_BYTES_TIGHT: u64 = 256 * 1024;
/// Pieces of one download that are fetched or wait to be sent, the one being sent included: a stripe.
const PIECES_IN_FLIGHT_MAX: usize = 4;

/// The row that protects a blob while it is written.
#[derive(Debug, Clone)]
pub(crate) struct Intent {
    key: RowKey,
    value: Bytes,
    written_ms: u64,
    blob: BlobRef,
}

impl Intent {
    /// What a commit must demand.
    pub fn condition(&self) -> Condition {
        Condition::Equals(self.key.clone(), self.value.clone())
    }

    /// What a commit must do.
    pub fn removal(&self) -> Mutation {
        Mutation::Delete(self.key.clone())
    }
}

/// Where received bytes are now.
#[derive(Debug)]
pub(crate) enum Stored {
    /// In memory.
    Inline(Vec<u8>),
    /// In a blob that is not yet part of anything.
    Blob(BlobRef, Intent),
}

impl Stored {
    /// The intent, if there is one.
    pub fn intent(&self) -> Option<&Intent> {
        match self {
            Stored::Inline(_) => None,
            Stored::Blob(_, intent) => Some(intent),
        }
    }
}

/// Reads `source`, which must give exactly `length` bytes, into storage, and verifies it. Up to `inline_max` bytes are kept
/// in memory.
pub(crate) async fn receive(
    gateway: &Arc<Gateway>,
    table: TableId,
    route: &[u8],
    source: &mut impl Source,
    (length, inline_max): (u64, u64),
    expected: &Expectations,
) -> S3Result<(Stored, Digests)> {
    let mut pipe = HashPipe::new(expected);
    if length <= inline_max {
        let mut data = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        while let Some(piece) = source.next().await? {
            if (data.len() + piece.len()) as u64 > length {
                return Err(Code::IncompleteBody.into());
            }
            data.extend_from_slice(&piece);
            pipe.push(piece).await?;
        }
        let digests = pipe.finish().await?;
        if digests.bytes != length {
            return Err(Code::IncompleteBody.into());
        }
        digests.verify(expected, source.trailers())?;
        return Ok((Stored::Inline(data), digests));
    }
    let mut writer = Writer::start(gateway, table, route, length).await?;
    let received = async {
        writer.fill(source, &mut pipe, length).await?;
        let digests = pipe.finish().await?;
        if digests.bytes != length {
            return Err(Code::IncompleteBody.into());
        }
        digests.verify(expected, source.trailers())?;
        writer.settle().await?;
        Ok(digests)
    }
    .await;
    match received {
        Ok(digests) => Ok((Stored::Blob(writer.blob, writer.intent), digests)),
        Err(error) => {
            writer.give_up().await;
            Err(error)
        }
    }
}

/// Gives up a blob whose commit failed. All its stripes are known to be written.
///
/// Safe whatever became of the commit: as the collector does, it takes the intent away before it deletes anything, so
/// the blob of a commit that did happen stays, and one that is still on its way fails.
pub(crate) async fn abandon(gateway: &Gateway, table: TableId, route: &[u8], stored: &Stored) {
    if let Stored::Blob(blob, intent) = stored {
        abandon_intent(gateway, table, route, *blob, intent).await;
    }
}

/// What fails here the collector does later.
async fn abandon_intent(gateway: &Gateway, table: TableId, route: &[u8], blob: BlobRef, intent: &Intent) {
    let since_ms = gateway.clock.now_ms();
    let Ok(Some(garbage)) = condemn(gateway, table, route, &intent.key, &intent.value, vec![blob], since_ms).await
    else {
        return;
    };
    if gateway.backend.blobs.delete(blob.id, blob.stripes()).await.is_ok() {
        let (key, value) = garbage;
        let unchanged = vec![Condition::Equals(key.clone(), value)];
        let _ = gateway.backend.tables.batch(table, route, unchanged, vec![Mutation::Delete(key)]).await;
    }
}

/// Turns an intent into plain garbage: from then on the write that it belongs to cannot commit. `None`: the intent is not
/// what it was. The new row has another key, because a full cluster takes only what deletes something.
pub(crate) async fn condemn(
    gateway: &Gateway,
    table: TableId,
    route: &[u8],
    intent: &RowKey,
    seen: &Bytes,
    blobs: Vec<BlobRef>,
    since_ms: u64,
) -> Result<Option<(RowKey, Bytes)>, BackendError> {
    let key = row_key(space::GC, route, &unique_id());
    let value = GcRow { blobs, since_ms, intent: false }.to_bytes();
    let unchanged = vec![Condition::Equals(intent.clone(), seen.clone())];
    let changes = vec![Mutation::Delete(intent.clone()), Mutation::Put(key.clone(), value.clone())];
    match gateway.backend.tables.batch(table, route, unchanged, changes).await {
        Ok(()) => Ok(Some((key, value))),
        Err(BatchError::ConditionFailed { .. }) => Ok(None),
        Err(BatchError::Backend(error)) => Err(error),
    }
}

struct Writer {
    gateway: Arc<Gateway>,
    table: TableId,
    route: Vec<u8>,
    blob: BlobRef,
    intent: Intent,
    /// The write of the intent row, until it is known to be durable.
    intent_write: Option<JoinHandle<Result<(), BatchError>>>,
    in_flight: JoinSet<Result<(), BackendError>>,
    stripe: u32,
    /// A stripe may still be written later on: deleting the blob now could leave that stripe behind.
    uncertain: bool,
}

impl Writer {
    async fn start(gateway: &Arc<Gateway>, table: TableId, route: &[u8], length: u64) -> S3Result<Writer> {
        let id: BlobId = gateway.backend.blobs.new_id().await?;
        let blob = BlobRef { id, bytes: length, stripe_bytes: STRIPE_BYTES };
        let written_ms = gateway.clock.now_ms();
        let key = row_key(space::GC, route, &unique_id());
        let value = GcRow { blobs: vec![blob], since_ms: written_ms, intent: true }.to_bytes();
        let intent = Intent { key: key.clone(), value: value.clone(), written_ms, blob };
        let (tables, owned_route) = (gateway.backend.tables.clone(), route.to_vec());
        let write = tokio::spawn(async move {
            let put = vec![Mutation::Put(key.clone(), value.clone())];
            match tables.batch(table, &owned_route, vec![Condition::Absent(key)], put).await {
                Err(error) if !error.shows(&value) => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        });
        Ok(Writer {
            gateway: gateway.clone(),
            table,
            route: route.to_vec(),
            blob,
            intent,
            intent_write: Some(write),
            in_flight: JoinSet::new(),
            stripe: 0,
            uncertain: false,
        })
    }

    async fn fill(&mut self, source: &mut impl Source, pipe: &mut HashPipe, length: u64) -> S3Result<()> {
        let mut left = length;
        let mut piece = Bytes::new();
        while left > 0 {
            let want = left.min(u64::from(STRIPE_BYTES));
            let want_bytes = usize::try_from(want).unwrap_or(STRIPE_BYTES as usize);
            let permit = self.gateway.receive_budget.acquire(want_bytes).await?;
            let mut buffer = BytesMut::with_capacity(want_bytes);
            while buffer.len() < want_bytes {
                if piece.is_empty() {
                    piece = source.next().await?.ok_or(Code::IncompleteBody)?;
                }
                let take = piece.len().min(want_bytes - buffer.len());
                buffer.extend_from_slice(&piece.split_to(take));
            }
            self.send(permit.hold_buffer(buffer), pipe).await?;
            left -= want;
        }
        // The source's own end: trailers, signatures, and that there is no byte more.
        if !piece.is_empty() || source.next().await?.is_some() {
            return Err(Code::IncompleteBody.into());
        }
        Ok(())
    }

    async fn send(&mut self, stripe: Bytes, pipe: &mut HashPipe) -> S3Result<()> {
        self.protect().await?;
        pipe.push(stripe.clone()).await?;
        while self.in_flight.len() >= STRIPES_IN_FLIGHT_MAX {
            self.one_done().await?;
        }
        let (blobs, id, index) = (self.gateway.backend.blobs.clone(), self.blob.id, self.stripe);
        self.in_flight.spawn(async move { blobs.put_stripe(id, index, stripe).await });
        self.stripe += 1;
        Ok(())
    }

    /// Makes sure that the intent row is durable and young.
    async fn protect(&mut self) -> S3Result<()> {
        if let Some(write) = self.intent_write.take() {
            write.await.map_err(|_| Code::InternalError)??;
        }
        let now_ms = self.gateway.clock.now_ms();
        if now_ms.saturating_sub(self.intent.written_ms) > self.gateway.config.gc_min_age_ms() / 4 {
            let value = GcRow { blobs: vec![self.blob], since_ms: now_ms, intent: true }.to_bytes();
            let put = vec![Mutation::Put(self.intent.key.clone(), value.clone())];
            let unchanged = vec![self.intent.condition()];
            match self.gateway.backend.tables.batch(self.table, &self.route, unchanged, put).await {
                Err(error) if !error.shows(&value) => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
            self.intent = Intent { value, written_ms: now_ms, ..self.intent.clone() };
        }
        Ok(())
    }

    async fn one_done(&mut self) -> S3Result<()> {
        match self.in_flight.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => {
                self.uncertain |= !matches!(error, BackendError::Full);
                Err(error.into())
            }
            Some(Err(_)) => {
                self.uncertain = true;
                Err(Code::InternalError.into())
            }
        }
    }

    async fn settle(&mut self) -> S3Result<()> {
        while !self.in_flight.is_empty() {
            self.one_done().await?;
        }
        Ok(())
    }

    async fn give_up(mut self) {
        while !self.in_flight.is_empty() {
            let _ = self.one_done().await;
        }
        if let Some(write) = self.intent_write.take() {
            let _ = write.await;
        }
        if self.uncertain {
            return; // the intent stays: the collector deletes the blob when nothing can be on its way any more
        }
        // What was never sent needs no deletion.
        self.intent.blob.bytes = self.intent.blob.bytes.min(u64::from(self.stripe) * u64::from(STRIPE_BYTES));
        abandon_intent(&self.gateway, self.table, &self.route, self.intent.blob, &self.intent).await;
    }
}

/// A stretch of bytes to send.
#[derive(Debug, Clone)]
pub(crate) enum Segment {
    /// These.
    Inline(Bytes),
    /// Those of a blob.
    Blob { blob: BlobRef, range: ByteRange },
}

impl Segment {
    /// The part of a blob or inline value that lies in `range`; `None` if it is empty.
    pub fn cut(data: crate::row::PartData, range: ByteRange) -> Option<Segment> {
        let size = data.size();
        let end = range.start.saturating_add(range.length).min(size);
        if range.start >= end {
            return None;
        }
        match data {
            crate::row::PartData::Inline(bytes) => {
                let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(end).ok()?);
                (end <= bytes.len()).then(|| Segment::Inline(Bytes::from(bytes).slice(start..end)))
            }
            crate::row::PartData::Blob(blob) => {
                Some(Segment::Blob { blob, range: ByteRange { start: range.start, length: end - range.start } })
            }
        }
    }

    /// The segments of consecutive parts that lie in `range`.
    pub fn of_parts(parts: &[PartRef], range: ByteRange) -> Vec<Segment> {
        let end = range.start.saturating_add(range.length);
        let mut at = 0u64;
        let mut segments = Vec::new();
        for part in parts {
            let size = part.data.size();
            if at < end && at.saturating_add(size) > range.start {
                let start = range.start.saturating_sub(at);
                let length = (end - at).min(size) - start;
                segments.extend(Segment::cut(part.data.clone(), ByteRange { start, length }));
            }
            at = at.saturating_add(size);
        }
        segments
    }
}

/// Something to send.
enum Piece {
    Here(Bytes),
    There { blob: BlobId, stripe: u64, offset: u64, length: u64 },
}

enum Fetch {
    Here(Bytes),
    Task(AbortOnDrop),
}

struct AbortOnDrop(JoinHandle<S3Result<Bytes>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Bytes on their way out.
pub(crate) struct Download {
    gateway: Arc<Gateway>,
    segments: VecDeque<Segment>,
    /// The next piece, for which there was no memory.
    waiting: Option<Piece>,
    fetches: VecDeque<Fetch>,
}

impl Download {
    /// A download of some segments.
    pub fn new(gateway: &Arc<Gateway>, segments: Vec<Segment>) -> Download {
        Download { gateway: gateway.clone(), segments: segments.into(), waiting: None, fetches: VecDeque::new() }
    }

    /// The next piece to be fetched.
    fn next_piece(&mut self) -> Option<Piece> {
        let (blob, range) = match self.segments.pop_front()? {
            Segment::Inline(bytes) => return Some(Piece::Here(bytes)),
            Segment::Blob { blob, range } => (blob, range),
        };
        let stripe_bytes = u64::from(blob.stripe_bytes.max(1));
        let (stripe, offset) = (range.start / stripe_bytes, range.start % stripe_bytes);
        let piece_max = if self.gateway.send_budget.is_tight() { PIECE_BYTES_TIGHT } else { PIECE_BYTES };
        let length = range.length.min(stripe_bytes - offset).min(piece_max);
        if length < range.length {
            let range = ByteRange { start: range.start + length, length: range.length - length };
            self.segments.push_front(Segment::Blob { blob, range });
        }
        Some(Piece::There { blob: blob.id, stripe, offset, length })
    }

    /// Begins to fetch pieces, at most [`PIECES_IN_FLIGHT_MAX`]. Memory is waited for with nothing in hand only: whoever
    /// held a piece and waited for another could wait for a request that does the same.
    async fn fetch_ahead(&mut self) -> S3Result<()> {
        while self.fetches.len() < PIECES_IN_FLIGHT_MAX {
            let fetch = match self.waiting.take().or_else(|| self.next_piece()) {
                None => return Ok(()),
                Some(Piece::Here(bytes)) => Fetch::Here(bytes),
                Some(Piece::There { blob, stripe, offset, length }) => {
                    let too_long = || S3Error::from(Code::InternalError);
                    let bytes = usize::try_from(length).map_err(|_| too_long())?;
                    let permit = if self.fetches.is_empty() {
                        self.gateway.send_budget.acquire(bytes).await?
                    } else {
                        match self.gateway.send_budget.acquire(bytes).now_or_never() {
                            Some(Ok(permit)) => permit,
                            Some(Err(_)) | None => {
                                self.waiting = Some(Piece::There { blob, stripe, offset, length });
                                return Ok(());
                            }
                        }
                    };
                    let stripe = u32::try_from(stripe).map_err(|_| too_long())?;
                    let offset = u32::try_from(offset).map_err(|_| too_long())?;
                    let wanted = u32::try_from(length).map_err(|_| too_long())?;
                    let blobs = self.gateway.backend.blobs.clone();
                    Fetch::Task(AbortOnDrop(tokio::spawn(async move {
                        let data = blobs.get(blob, stripe, offset, wanted).await?;
                        if data.len() as u64 != length {
                            return Err(BackendError::NoStripe { blob, stripe }.into());
                        }
                        Ok(permit.hold(data))
                    })))
                }
            };
            self.fetches.push_back(fetch);
        }
        Ok(())
    }
}

impl Source for Download {
    async fn next(&mut self) -> S3Result<Option<Bytes>> {
        self.fetch_ahead().await?;
        match self.fetches.pop_front() {
            None => Ok(None),
            Some(Fetch::Here(bytes)) => Ok(Some(bytes)),
            Some(Fetch::Task(mut task)) => {
                (&mut task.0).await.map_err(|_| S3Error::from(Code::InternalError))?.map(Some)
            }
        }
    }
}
