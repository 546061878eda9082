//! The collector: deletes blobs that nothing refers to.
//!
//! Garbage rows are written in the batch that makes their blobs garbage, so a blob is never forgotten and never collected
//! early. For each row older than the minimum age:
//!
//! 1. an *intent* (a blob being written) is first turned into plain garbage, under the condition that it is unchanged: from
//!    then on the write it belongs to cannot commit;
//! 2. for plain garbage it is looked up again whether any row of the key refers to the blob (it never should);
//! 3. the stripes are deleted, then the row. A crash between repeats the deletion.
//!
//! The table of a deleted bucket is dropped with its garbage rows and the parts of unfinished uploads in it and noted in the
//! global table. When the note is old enough, all of their blobs are deleted, that is noted, then the table purged, then the
//! note removed. A table that cannot be found before its blobs are noted as deleted keeps its note.
//!
//! When room runs out, garbage that was an object is deleted soon after, and rounds follow each other closely: who deletes
//! to make room gets it. What is being written, and tables, keep the whole minimum age.
//!
//! Rounds of several gateways do not disturb each other: every step may be done twice. What cannot be collected does not
//! keep the rest from it.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use tokio_util::sync::CancellationToken;

use crate::backend::{
    BackendError, BatchError, BlobId, Condition, Mutation, Purpose, RowKey, ScanLimit, ScanRange, TableId,
};
use crate::blob::condemn;
use crate::error::{S3Error, S3Result};
use crate::gateway::Gateway;
use crate::objects::load;
use crate::ops::bucket::forget_row;
use crate::row::{
    BlobRef, BucketRow, DataRef, DroppedRow, GLOBAL_TABLE, GcRow, PartRow, Row as _, after_prefix, route, row_key,
    space, split_route,
};
use crate::sabotage::{Sabotage, breaks};

/// Rows of one page.
const PAGE_ROWS: usize = 256;
/// Rows that are worked on at a time: space comes back in step with fast deleters, and requests hardly notice.
const ROWS_AT_A_TIME: usize = 8;

/// Pause between rounds while room is short.
const PRESSED_EVERY: Duration = Duration::from_secs(5);
/// Age at which what was an object is deleted while room is short, for who has just begun to read it.
const PRESSED_AGE_MS: u64 = 10_000;
/// How slowly it may be read then, in bytes for each millisecond: 4 MB/s.
const PRESSED_READ_BYTES_PER_MS: u64 = 4_000;

/// The longest that what was an object is kept while room is short, in milliseconds.
const PRESSED_AGE_MAX_MS: u64 = 60_000;
/// The longest that garbage is kept, in minimum ages: six hours by default. An object of a terabyte that is replaced each
/// day would else stand there eleven times.
const AGES_MAX: u64 = 24;

/// What one round did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Garbage rows that were done with.
    pub rows: u64,
    /// Blobs that were deleted.
    pub blobs: u64,
    /// Room was short when it began.
    pub is_pressed: bool,
}

impl Round {
    fn add(&mut self, other: Round) {
        self.rows += other.rows;
        self.blobs += other.blobs;
        self.is_pressed |= other.is_pressed;
    }
}

/// Runs rounds until `stop`: one `every`, more of them while room is short.
pub async fn run(gateway: &Gateway, every: Duration, stop: CancellationToken) {
    let mut is_pressed = false;
    let closely = PRESSED_EVERY.min(every);
    loop {
        let pause = async {
            tokio::time::sleep(closely).await;
            if !is_pressed {
                tokio::select! {
                    () = tokio::time::sleep(every.saturating_sub(closely)) => {}
                    () = gateway.refused_for_room.notified() => {}
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = pause => {}
        }
        // Who cannot be asked has not said that there is room again.
        is_pressed = gateway.backend.blobs.is_short_of_room().await.unwrap_or(is_pressed);
        match collect(gateway, is_pressed).await {
            Ok(Round { rows: 0, .. }) => {}
            Ok(done) => tracing::debug!(rows = done.rows, blobs = done.blobs, "garbage collected"),
            Err(error) => tracing::warn!(%error, "a round of the collector was cut short"),
        }
    }
}

/// Looks at every bucket once.
pub async fn round(gateway: &Gateway) -> S3Result<Round> {
    let is_pressed = gateway.backend.blobs.is_short_of_room().await.unwrap_or(false);
    collect(gateway, is_pressed).await
}

async fn collect(gateway: &Gateway, is_pressed: bool) -> S3Result<Round> {
    let mut done = Round { is_pressed, ..Round::default() };
    let mut failures = Failures::default();
    let mut range = ScanRange { space: space::BUCKETS, start: Vec::new(), end: None };
    loop {
        let page = gateway
            .backend
            .tables
            .scan(GLOBAL_TABLE, range.clone(), ScanLimit { rows: PAGE_ROWS, bytes: 1 << 20 })
            .await?;
        for (key, value) in page.rows {
            let Some((name, _)) = split_route(&key) else { continue };
            let result = one_bucket(gateway, &name, &value, &mut done).await;
            failures.note(result, "bucket", &name);
        }
        match page.next {
            Some(start) => range.start = start,
            None => break,
        }
    }
    dropped_tables(gateway, &mut done, &mut failures).await?;
    failures.first.map_or(Ok(done), Err)
}

/// What went wrong in a round, which goes on with what can be done.
#[derive(Debug, Default)]
struct Failures {
    first: Option<S3Error>,
}

impl Failures {
    fn note(&mut self, result: S3Result<()>, what: &'static str, name: &str) {
        if let Err(error) = result {
            tracing::warn!(%error, what, name, "garbage is left for a later round");
            self.first.get_or_insert(error);
        }
    }
}

async fn one_bucket(gateway: &Gateway, name: &str, value: &Bytes, done: &mut Round) -> S3Result<()> {
    let bucket = BucketRow::from_bytes(value)?;
    match table(gateway, bucket.table, done).await {
        // A deletion was cut off after the table was dropped. That a table is not to be found proves nothing.
        Err(error) if error.table_dropped => forget_row(gateway, name, &bucket).await,
        other => other,
    }
}

/// Collects what deleted buckets left.
async fn dropped_tables(gateway: &Gateway, done: &mut Round, failures: &mut Failures) -> S3Result<()> {
    let tables = &gateway.backend.tables;
    let limit = ScanLimit { rows: PAGE_ROWS, bytes: 1 << 20 };
    let mut range = ScanRange { space: space::DROPPED, start: Vec::new(), end: None };
    loop {
        let page = tables.scan(GLOBAL_TABLE, range.clone(), limit).await?;
        for (key, value) in page.rows {
            let Some((bucket, _)) = split_route(&key) else { continue };
            let place = RowKey { space: space::DROPPED, key };
            let result = one_dropped_table(gateway, &bucket, place, value, done).await;
            failures.note(result, "deleted bucket", &bucket);
        }
        match page.next {
            Some(start) => range.start = start,
            None => return Ok(()),
        }
    }
}

async fn one_dropped_table(
    gateway: &Gateway,
    bucket: &str,
    place: RowKey,
    value: Bytes,
    done: &mut Round,
) -> S3Result<()> {
    let note = DroppedRow::from_bytes(&value)?;
    if gateway.clock.now_ms().saturating_sub(note.since_ms) < gateway.config.gc_min_age_ms() {
        return Ok(());
    }
    let here = route(bucket);
    let value = match note.collected {
        Some(true) => value,
        Some(false) | None => {
            match garbage_of_dropped(gateway, note.table, done).await {
                // Another gateway has purged it since this note was read, or nothing of it can be seen at the moment: then
                // what it names would be garbage for ever, were the note gone.
                Err(BackendError::TableMissing(_)) if was_collected(gateway, &here, &place).await? => return Ok(()),
                garbage => garbage?,
            }
            match note_collected(gateway, &here, &place, &note, value).await? {
                Some(value) => value,
                None => return Ok(()), // another gateway was faster, and goes on
            }
        }
    };
    gateway.backend.tables.purge_table(note.table).await?;
    remove_row(gateway, &here, place, GLOBAL_TABLE, value).await?;
    done.rows += 1;
    Ok(())
}

/// Whether the note of a dropped table says by now that all is deleted, or is gone.
async fn was_collected(gateway: &Gateway, route: &[u8], place: &RowKey) -> S3Result<bool> {
    let now = gateway.backend.tables.get(GLOBAL_TABLE, route, vec![place.clone()]).await?.into_iter().next().flatten();
    Ok(match now {
        Some(value) => DroppedRow::from_bytes(&value)?.collected == Some(true),
        None => true,
    })
}

/// Notes that all that a dropped table names is deleted; gives the new note. `None`: it is not what it was.
async fn note_collected(
    gateway: &Gateway,
    route: &[u8],
    place: &RowKey,
    note: &DroppedRow,
    seen: Bytes,
) -> S3Result<Option<Bytes>> {
    let value = DroppedRow { collected: Some(true), ..note.clone() }.to_bytes();
    let unchanged = vec![Condition::Equals(place.clone(), seen)];
    // Deleted and put, because what is to free space must delete something.
    let changes = vec![Mutation::Delete(place.clone()), Mutation::Put(place.clone(), value.clone())];
    match gateway.backend.tables.batch(GLOBAL_TABLE, route, unchanged, changes, Purpose::FreeSpace).await {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.shows(&value) => Ok(Some(value)),
        Err(BatchError::ConditionFailed { .. }) => Ok(None),
        Err(BatchError::Backend(error)) => Err(error.into()),
    }
}

/// Deletes all blobs that a dropped table knows. None of them can be part of anything any more.
async fn garbage_of_dropped(gateway: &Gateway, table: TableId, done: &mut Round) -> Result<(), BackendError> {
    let garbage = blobs_of_dropped(gateway, table, space::GC, done).await;
    let parts = blobs_of_dropped(gateway, table, space::PARTS, done).await;
    garbage.and(parts)
}

async fn blobs_of_dropped(gateway: &Gateway, table: TableId, space: u8, done: &mut Round) -> Result<(), BackendError> {
    let limit = ScanLimit { rows: PAGE_ROWS, bytes: 1 << 20 };
    let (mut start, mut first_error) = (Vec::new(), None);
    loop {
        let page = gateway.backend.tables.dropped_rows(table, space, start, limit).await?;
        let mut rows = stream::iter(page.rows)
            .map(|(_, value)| async move {
                let blobs: Vec<BlobRef> = match space {
                    space::PARTS => PartRow::from_bytes(&value)?.data.blob().into_iter().collect(),
                    _ => GcRow::from_bytes(&value)?.blobs,
                };
                for blob in &blobs {
                    gateway.backend.blobs.delete(blob.id, blob.stripes()).await?;
                }
                Ok::<_, BackendError>(blobs.len())
            })
            .buffer_unordered(ROWS_AT_A_TIME);
        while let Some(result) = rows.next().await {
            match result {
                Ok(blobs) => done.blobs += blobs as u64,
                // The others are deleted all the same; the table stays noted, and is gone through again.
                Err(error) => {
                    tracing::warn!(%error, %table, "a blob of a deleted bucket is left for a later round");
                    first_error.get_or_insert(error);
                }
            }
        }
        drop(rows);
        match page.next {
            Some(next) => start = next,
            None => return first_error.map_or(Ok(()), Err),
        }
    }
}

async fn table(gateway: &Gateway, table: TableId, done: &mut Round) -> S3Result<()> {
    let mut failures = Failures::default();
    let is_pressed = done.is_pressed;
    let mut range = ScanRange { space: space::GC, start: Vec::new(), end: None };
    loop {
        let page =
            gateway.backend.tables.scan(table, range.clone(), ScanLimit { rows: PAGE_ROWS, bytes: 1 << 20 }).await?;
        let mut rows = stream::iter(page.rows)
            .map(|(key, value)| async move {
                let row = GcRow::from_bytes(&value)?;
                let age_ms = gateway.clock.now_ms().saturating_sub(row.since_ms);
                if age_ms < min_age_ms(gateway, &row, is_pressed) {
                    return Ok(Round::default());
                }
                collect_row(gateway, table, key, value, row).await
            })
            .buffer_unordered(ROWS_AT_A_TIME);
        while let Some(result) = rows.next().await {
            let result: S3Result<Round> = result;
            failures.note(result.map(|round| done.add(round)), "row", "");
        }
        drop(rows);
        match page.next {
            Some(start) => range.start = start,
            None => return failures.first.map_or(Ok(()), Err),
        }
    }
}

/// The age at which garbage is deleted: once more the minimum for each GiB, up to [`AGES_MAX`], so that whoever began to
/// read it when it was an object can end at 1.2 MB/s. While room is short, not even the minimum: a reader that began just
/// before the object went and reads slowly must fail, lest all who want to write do. What may still become an object is
/// never taken early.
fn min_age_ms(gateway: &Gateway, row: &GcRow, is_pressed: bool) -> u64 {
    let bytes = row.blobs.iter().fold(0u64, |sum, blob| sum.saturating_add(blob.bytes));
    let usual = gateway.config.gc_min_age_ms().saturating_mul((1 + (bytes >> 30)).min(AGES_MAX));
    if breaks(Sabotage::GraceIgnored) && !row.intent {
        return 0;
    }
    let pressed = (PRESSED_AGE_MS + bytes / PRESSED_READ_BYTES_PER_MS).min(PRESSED_AGE_MAX_MS);
    if is_pressed && !row.intent { usual.min(pressed) } else { usual }
}

async fn collect_row(gateway: &Gateway, table: TableId, key: Vec<u8>, value: Bytes, row: GcRow) -> S3Result<Round> {
    let mut done = Round::default();
    let Some((object, _)) = split_route(&key) else { return Ok(done) };
    let here = route(&object);
    let mut place = RowKey { space: space::GC, key };
    let mut value = value;
    if row.intent && !breaks(Sabotage::IntentNotCondemned) {
        match condemn(gateway, table, &here, &place, &value, row.blobs.clone(), row.since_ms).await? {
            Some(plain) => (place, value) = plain,
            None => return Ok(done),
        }
    }
    let referred = referred_blobs(gateway, table, &object).await?;
    for blob in &row.blobs {
        if referred.contains(&blob.id) {
            if !row.intent {
                tracing::error!(blob = %blob.id, "a blob in use was marked as garbage; it is kept");
            }
            continue;
        }
        gateway.backend.blobs.delete(blob.id, blob.stripes()).await?;
        done.blobs += 1;
    }
    if row.intent && breaks(Sabotage::IntentNotCondemned) {
        return Ok(done);
    }
    done.rows += 1;
    remove_row(gateway, &here, place, table, value).await?;
    Ok(done)
}

/// Removes a row as it was seen.
async fn remove_row(gateway: &Gateway, route: &[u8], place: RowKey, table: TableId, value: Bytes) -> S3Result<()> {
    let seen = vec![Condition::Equals(place.clone(), value)];
    match gateway.backend.tables.batch(table, route, seen, vec![Mutation::Delete(place)], Purpose::FreeSpace).await {
        Ok(()) | Err(BatchError::ConditionFailed { .. }) => Ok(()),
        Err(BatchError::Backend(error)) => Err(error.into()),
    }
}

/// All blobs that rows of a key refer to: its object and the parts of its uploads.
async fn referred_blobs(gateway: &Gateway, table: TableId, key: &str) -> S3Result<BTreeSet<BlobId>> {
    let mut blobs = BTreeSet::new();
    // Parts first: completing moves a blob from a part to the object, so in this order it is seen in at least one place.
    let prefix = row_key(space::PARTS, &route(key), &[]).key;
    let mut range = ScanRange { space: space::PARTS, end: after_prefix(&prefix), start: prefix };
    loop {
        let page =
            gateway.backend.tables.scan(table, range.clone(), ScanLimit { rows: PAGE_ROWS, bytes: 1 << 20 }).await?;
        for (_, value) in page.rows {
            blobs.extend(PartRow::from_bytes(&value)?.data.blob().map(|blob| blob.id));
        }
        match page.next {
            Some(start) => range.start = start,
            None => break,
        }
    }
    if let Some(object) = load(gateway, table, key).await? {
        if let DataRef::Blob(blob) = object.row.data {
            blobs.insert(blob.id);
        }
        blobs.extend(object.parts().into_iter().flatten().filter_map(|part| part.data.blob()).map(|blob| blob.id));
    }
    Ok(blobs)
}
