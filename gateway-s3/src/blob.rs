//! Object data into and out of storage, in bounded memory.
//!
//! # Writing
//! Memory for a stripe is taken when its first bytes are there. A client that does not fill it soon
//! ([`STRIPE_FILL_MAX`]) keeps it only while nobody waits for memory: otherwise what is there is stored as a part of the
//! stripe, and the client gets pieces of the size that it can fill.
//!
//! [`receive`] reads a source to its end. Few bytes are returned, to be put in a row. More of them
//! go to a fresh blob, stripe by stripe, while an *intent* row (a [`GcRow`] with `intent`) says that the blob is being
//! written. The intent is durable before the first stripe is sent, so no crash leaves a blob that nobody knows. The commit
//! must remove the intent row under the condition that it is unchanged: the collector, and whoever gives a blob up, takes
//! the intent away first and deletes stripes afterwards, so either the commit or the deletion wins, never both.
//!
//! # Reading
//! [`Download`] fetches piece by piece with a little read-ahead.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use crate::backend::{BackendError, BatchError, BlobId, Condition, Mutation, Purpose, RowKey, TableId};
use crate::body::Source;
use crate::budget::{Permit, RESERVED_BYTES};
use crate::checksum::{Digests, Expectations, HashPipe};
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Gateway;
use crate::range::ByteRange;
use crate::row::{BlobRef, GcRow, PartRef, Row as _, row_key, space};
use crate::runtime::{AbortOnDrop, Task};
use crate::sabotage::{Sabotage, breaks};

/// Largest object that lives in a row.
pub const INLINE_BYTES_MAX: u64 = 16 * 1024;
/// Largest part that lives in a row: all parts of a key are in one group of at most 32 MiB, and there may be 10,000.
pub const PART_INLINE_BYTES_MAX: u64 = 1024;
/// Bytes of a stripe: one object of the pool.
pub const STRIPE_BYTES: u32 = 4 * 1024 * 1024;
/// Stripes of one upload that are being stored while the next is received.
const STRIPES_IN_FLIGHT_MAX: usize = 2;
/// How long an upload may take to fill its buffer while others wait for memory.
const STRIPE_FILL_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether others wait, from then on.
const WANTED_EVERY: Duration = Duration::from_secs(1);
/// Smallest buffer of an upload.
const BUFFER_BYTES_MIN: usize = 64 * 1024;
/// Bytes fetched at once for a download, and when memory is tight.
const PIECE_BYTES: u64 = 1024 * 1024;
const PIECE_BYTES_TIGHT: u64 = 256 * 1024;
/// A download that gets no memory for this long lives on the reserve.
const RESERVE_AFTER: Duration = Duration::from_secs(1);
/// Pieces fetched ahead of the one being sent: with it, a stripe.
const READ_AHEAD: usize = 3;

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
            Stored::Blob(..) if breaks(Sabotage::IntentForgotten) => None,
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
        if breaks(Sabotage::CommitBeforeBlob) {
            writer.leave();
        }
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
    let garbage = match condemn(gateway, table, route, &intent.key, &intent.value, vec![blob], since_ms).await {
        Ok(Some(garbage)) => garbage,
        Ok(None) => return name_again(gateway, table, route, blob).await,
        Err(_) => return,
    };
    if gateway.backend.blobs.delete(blob.id, blob.stripes()).await.is_ok() {
        let (key, value) = garbage;
        let unchanged = vec![Condition::Equals(key.clone(), value)];
        let _ = gateway
            .backend
            .tables
            .batch(table, route, unchanged, vec![Mutation::Delete(key)], Purpose::FreeSpace)
            .await;
    }
}

/// Has the collector look at a blob once more whose intent is gone: the collector took it, and stripes that were stored
/// after it had deleted the blob are named by nothing else; or the commit has happened after all, and it finds the blob in
/// use. As an intent, because nobody knows which.
async fn name_again(gateway: &Gateway, table: TableId, route: &[u8], blob: BlobRef) {
    if blob.stripes() == 0 {
        return;
    }
    let key = row_key(space::GC, route, &gateway.runtime.unique_id());
    let value = GcRow { blobs: vec![blob], since_ms: gateway.clock.now_ms(), intent: true }.to_bytes();
    // Deleted and put, because what is to free space must delete something.
    let changes = vec![Mutation::Delete(key.clone()), Mutation::Put(key.clone(), value)];
    let absent = vec![Condition::Absent(key)];
    if let Err(error) = gateway.backend.tables.batch(table, route, absent, changes, Purpose::FreeSpace).await {
        tracing::warn!(blob = %blob.id, %error, "stripes of an upload that was given up may stay for ever");
    }
}

/// Turns an intent into plain garbage: from then on the write that it belongs to cannot commit. `None`: the intent is not
/// what it was. The new row has another key, because what is to free space must delete something.
pub(crate) async fn condemn(
    gateway: &Gateway,
    table: TableId,
    route: &[u8],
    intent: &RowKey,
    seen: &Bytes,
    blobs: Vec<BlobRef>,
    since_ms: u64,
) -> Result<Option<(RowKey, Bytes)>, BackendError> {
    let key = row_key(space::GC, route, &gateway.runtime.unique_id());
    let value = GcRow { blobs, since_ms, intent: false }.to_bytes();
    let unchanged = vec![Condition::Equals(intent.clone(), seen.clone())];
    let changes = vec![Mutation::Delete(intent.clone()), Mutation::Put(key.clone(), value.clone())];
    match gateway.backend.tables.batch(table, route, unchanged, changes, Purpose::FreeSpace).await {
        Ok(()) => Ok(Some((key, value))),
        Err(BatchError::ConditionFailed { .. }) => Ok(None),
        Err(BatchError::Backend(error)) => Err(error),
    }
}

/// A buffer being filled.
struct Filling {
    permit: Permit,
    data: BytesMut,
    /// When it is full.
    bytes: usize,
    /// Until when it may be kept though others wait.
    until: Instant,
}

struct Writer {
    gateway: Arc<Gateway>,
    table: TableId,
    route: Vec<u8>,
    blob: BlobRef,
    intent: Intent,
    /// The write of the intent row, until it is known to be durable.
    intent_write: Option<Task<Result<(), BatchError>>>,
    in_flight: FuturesUnordered<AbortOnDrop<Result<(), BackendError>>>,
    stripe: u32,
    /// Bytes of that stripe that were sent.
    offset: u32,
    filling: Option<Filling>,
    /// Size of the next buffer.
    buffer_bytes: usize,
    /// A stripe may still be written later on: deleting the blob now could leave that stripe behind.
    uncertain: bool,
}

impl Writer {
    async fn start(gateway: &Arc<Gateway>, table: TableId, route: &[u8], length: u64) -> S3Result<Writer> {
        let id: BlobId = gateway.backend.blobs.new_id().await?;
        let blob = BlobRef { id, bytes: length, stripe_bytes: gateway.config.sizes.stripe_bytes };
        let written_ms = gateway.clock.now_ms();
        let key = row_key(space::GC, route, &gateway.runtime.unique_id());
        let value = GcRow { blobs: vec![blob], since_ms: written_ms, intent: true }.to_bytes();
        let intent = Intent { key: key.clone(), value: value.clone(), written_ms, blob };
        let (tables, owned_route) = (gateway.backend.tables.clone(), route.to_vec());
        let write = gateway.runtime.spawn(async move {
            if breaks(Sabotage::IntentForgotten) {
                return Ok(());
            }
            let put = vec![Mutation::Put(key.clone(), value.clone())];
            match tables.batch(table, &owned_route, vec![Condition::Absent(key)], put, Purpose::Store).await {
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
            in_flight: FuturesUnordered::new(),
            stripe: 0,
            offset: 0,
            filling: None,
            buffer_bytes: blob.stripe_bytes as usize,
            uncertain: false,
        })
    }

    async fn fill(&mut self, source: &mut impl Source, pipe: &mut HashPipe, length: u64) -> S3Result<()> {
        let mut left = usize::try_from(length).map_err(|_| Code::EntityTooLarge)?;
        let mut piece = Bytes::new();
        while left > 0 {
            if piece.is_empty() {
                piece = self.next(source, pipe).await?;
            }
            let mut filling = match self.filling.take() {
                Some(filling) => filling,
                None => {
                    let bytes = left.min((self.blob.stripe_bytes - self.offset) as usize).min(self.buffer_bytes);
                    let permit = self.gateway.receive_budget.acquire(bytes).await?;
                    let until = self.gateway.runtime.now() + STRIPE_FILL_MAX;
                    Filling { permit, data: BytesMut::with_capacity(bytes), bytes, until }
                }
            };
            let take = piece.len().min(filling.bytes - filling.data.len());
            filling.data.extend_from_slice(&piece.split_to(take));
            left -= take;
            let full = filling.data.len() == filling.bytes;
            // Four times as much would have been filled in time, too.
            let quick = filling.until.saturating_duration_since(self.gateway.runtime.now()) >= STRIPE_FILL_MAX * 3 / 4;
            self.filling = Some(filling);
            if full {
                if quick {
                    self.buffer_bytes = (self.buffer_bytes * 4).min(self.blob.stripe_bytes as usize);
                }
                self.store(pipe).await?;
            }
        }
        // The source's own end: trailers, signatures, and that there is no byte more.
        if !piece.is_empty() || source.next().await?.is_some() {
            return Err(Code::IncompleteBody.into());
        }
        Ok(())
    }

    /// The next bytes of the source. While they do not come, others may get the memory.
    async fn next(&mut self, source: &mut impl Source, pipe: &mut HashPipe) -> S3Result<Bytes> {
        let mut next = pin!(source.next());
        loop {
            let Some(filling) = &mut self.filling else {
                return next.await?.ok_or_else(|| Code::IncompleteBody.into());
            };
            tokio::select! {
                biased;
                piece = &mut next => return piece?.ok_or_else(|| Code::IncompleteBody.into()),
                () = self.gateway.runtime.sleep_until(filling.until) => {}
            }
            // A stripe that is filled very slowly must not outlive its protection.
            self.protect().await?;
            let Some(filling) = &mut self.filling else { continue };
            if self.gateway.receive_budget.is_wanted() {
                let filled = filling.data.len();
                self.buffer_bytes = filled.next_multiple_of(BUFFER_BYTES_MIN).max(BUFFER_BYTES_MIN);
                filling.permit.shrink(filled);
                filling.data = BytesMut::from(filling.data.as_ref());
                self.store(pipe).await?;
            } else {
                filling.until = self.gateway.runtime.now() + WANTED_EVERY;
            }
        }
    }

    /// Stores the buffer.
    async fn store(&mut self, pipe: &mut HashPipe) -> S3Result<()> {
        let Some(filling) = self.filling.take() else { return Ok(()) };
        self.protect().await?;
        let data = filling.permit.hold_buffer(filling.data);
        pipe.push(data.clone()).await?;
        while self.in_flight.len() >= STRIPES_IN_FLIGHT_MAX {
            self.one_done().await?;
        }
        let (blobs, id, stripe, offset) = (self.gateway.backend.blobs.clone(), self.blob.id, self.stripe, self.offset);
        let stripe_bytes = self.blob.bytes - u64::from(stripe) * u64::from(self.blob.stripe_bytes);
        let stripe_bytes = u32::try_from(stripe_bytes).unwrap_or(u32::MAX).min(self.blob.stripe_bytes);
        let whole = data.len() as u64 == u64::from(stripe_bytes);
        self.offset += u32::try_from(data.len()).map_err(|_| Code::InternalError)?;
        if self.offset >= stripe_bytes {
            (self.stripe, self.offset) = (self.stripe + 1, 0);
        }
        let write = async move {
            if whole {
                blobs.put_stripe(id, stripe, data).await
            } else {
                blobs.put_range(id, stripe, offset, data).await
            }
        };
        self.in_flight.push(AbortOnDrop(self.gateway.runtime.spawn(write)));
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
            match self.gateway.backend.tables.batch(self.table, &self.route, unchanged, put, Purpose::Store).await {
                Err(error) if !error.shows(&value) => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
            self.intent = Intent { value, written_ms: now_ms, ..self.intent.clone() };
        }
        Ok(())
    }

    async fn one_done(&mut self) -> S3Result<()> {
        match self.in_flight.next().await {
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

    /// Only in a build with seeded bugs: what is on its way goes on alone.
    fn leave(&mut self) {
        let mut left = std::mem::take(&mut self.in_flight);
        self.gateway.runtime.spawn(async move { while left.next().await.is_some() {} });
    }

    async fn settle(&mut self) -> S3Result<()> {
        while !self.in_flight.is_empty() {
            self.one_done().await?;
        }
        Ok(())
    }

    async fn give_up(mut self) {
        self.filling = None;
        while !self.in_flight.is_empty() {
            let _ = self.one_done().await;
        }
        if let Some(write) = self.intent_write.take() {
            let _ = write.await;
        }
        // What was never sent needs no deletion.
        let begun = u64::from(self.stripe) + u64::from(self.offset > 0);
        self.intent.blob.bytes = self.intent.blob.bytes.min(begun * u64::from(self.blob.stripe_bytes));
        if self.uncertain {
            // The intent stays: the collector deletes the blob when nothing can be on its way any more. If the collector
            // has taken it, that begins anew.
            let tables = &self.gateway.backend.tables;
            let row = tables.get(self.table, &self.route, vec![self.intent.key.clone()]).await;
            if matches!(row.as_deref(), Ok([None])) {
                name_again(&self.gateway, self.table, &self.route, self.intent.blob).await;
            }
            return;
        }
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

/// A piece on its way to the one who sends it.
enum Fetch {
    Here(Bytes),
    Task(AbortOnDrop<S3Result<Bytes>>),
}

/// Bytes on their way out.
pub(crate) struct Download {
    gateway: Arc<Gateway>,
    segments: VecDeque<Segment>,
    fetches: VecDeque<Fetch>,
    /// The last piece was of the reserve.
    starved: bool,
}

impl Download {
    /// A download of some segments.
    pub fn new(gateway: &Arc<Gateway>, segments: Vec<Segment>) -> Download {
        Download { gateway: gateway.clone(), segments: segments.into(), fetches: VecDeque::new(), starved: false }
    }

    /// Cuts off what is to be fetched next.
    fn cut(&mut self, bytes_max: u64) -> Option<Segment> {
        let segment = self.segments.pop_front()?;
        let Segment::Blob { blob, range } = segment else { return Some(segment) };
        let stripe_bytes = u64::from(blob.stripe_bytes.max(1));
        let length = range.length.min(stripe_bytes - range.start % stripe_bytes).min(bytes_max);
        if length < range.length {
            let rest = ByteRange { start: range.start + length, length: range.length - length };
            self.segments.push_front(Segment::Blob { blob, range: rest });
        }
        Some(Segment::Blob { blob, range: ByteRange { start: range.start, length } })
    }

    fn piece_max(&self) -> u64 {
        if self.gateway.send_budget.is_tight() { PIECE_BYTES_TIGHT } else { PIECE_BYTES }
    }

    /// Starts the fetch of the piece that is due; waits for memory.
    async fn start(&mut self) -> S3Result<()> {
        let Some(segment) = self.cut(self.piece_max()) else { return Ok(()) };
        let Segment::Blob { range, .. } = &segment else {
            self.fetch(segment, None);
            return Ok(());
        };
        let (gateway, bytes) = (self.gateway.clone(), bytes_of(*range)?);
        let patience = if self.starved { Duration::ZERO } else { RESERVE_AFTER };
        match gateway.runtime.timeout(patience, gateway.send_budget.acquire(bytes)).await {
            Ok(permit) => {
                self.starved = false;
                self.fetch(segment, Some(permit?));
            }
            Err(_) => {
                self.starved = true;
                self.segments.push_front(segment);
                let permit = gateway.send_reserve.acquire(RESERVED_BYTES).await?;
                if let Some(segment) = self.cut(RESERVED_BYTES as u64) {
                    self.fetch(segment, Some(permit));
                }
            }
        }
        Ok(())
    }

    /// Starts the fetch of a later piece, if there is memory: pieces that nobody can send yet must not take it from those
    /// that are due, nor wait for it.
    fn start_ahead(&mut self) -> S3Result<bool> {
        let Some(segment) = self.cut(self.piece_max()) else { return Ok(false) };
        let permit = match &segment {
            Segment::Inline(_) => None,
            Segment::Blob { range, .. } => match self.gateway.send_budget.try_acquire(bytes_of(*range)?) {
                Some(permit) => Some(permit),
                None => {
                    self.segments.push_front(segment);
                    return Ok(false);
                }
            },
        };
        self.fetch(segment, permit);
        Ok(true)
    }

    fn fetch(&mut self, segment: Segment, permit: Option<Permit>) {
        let (blob, range) = match segment {
            Segment::Inline(bytes) => return self.fetches.push_back(Fetch::Here(bytes)),
            Segment::Blob { blob, range } => (blob, range),
        };
        let blobs = self.gateway.backend.blobs.clone();
        self.fetches.push_back(Fetch::Task(AbortOnDrop(self.gateway.runtime.spawn(async move {
            let broken = |_| S3Error::from(Code::InternalError);
            let stripe_bytes = u64::from(blob.stripe_bytes.max(1));
            let stripe = u32::try_from(range.start / stripe_bytes).map_err(broken)?;
            let offset = u32::try_from(range.start % stripe_bytes).map_err(broken)?;
            let wanted = u32::try_from(range.length).map_err(broken)?;
            let data = blobs.get(blob.id, stripe, offset, wanted).await?;
            if data.len() as u64 != range.length {
                return Err(BackendError::NoStripe { blob: blob.id, stripe }.into());
            }
            Ok(match permit {
                Some(permit) => permit.hold(data),
                None => data,
            })
        }))));
    }
}

fn bytes_of(range: ByteRange) -> S3Result<usize> {
    usize::try_from(range.length).map_err(|_| Code::InternalError.into())
}

impl Source for Download {
    async fn next(&mut self) -> S3Result<Option<Bytes>> {
        if self.fetches.is_empty() {
            self.start().await?;
        }
        while self.fetches.len() <= READ_AHEAD && self.start_ahead()? {}
        match self.fetches.pop_front() {
            None => Ok(None),
            Some(Fetch::Here(bytes)) => Ok(Some(bytes)),
            Some(Fetch::Task(task)) => task.await.map_err(|_| S3Error::from(Code::InternalError))?.map(Some),
        }
    }
}
