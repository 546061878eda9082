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
//! Rounds of several gateways do not disturb each other: every step may be done twice.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::backend::{BackendError, BatchError, BlobId, Condition, Mutation, RowKey, ScanLimit, ScanRange, TableId};
use crate::error::S3Result;
use crate::gateway::Gateway;
use crate::objects::load;
use crate::ops::bucket::forget_row;
use crate::row::{
    BucketRow, DataRef, GLOBAL_TABLE, GcRow, PartRow, Row as _, after_prefix, route, row_key, space, split_route,
};

/// Rows of one page.
const PAGE_ROWS: usize = 256;

/// What one round did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Garbage rows that were done with.
    pub rows: u64,
    /// Blobs that were deleted.
    pub blobs: u64,
}

/// Runs rounds until `stop`.
pub async fn run(gateway: &Gateway, every: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        match round(gateway).await {
            Ok(Round { rows: 0, .. }) => {}
            Ok(done) => tracing::debug!(rows = done.rows, blobs = done.blobs, "garbage collected"),
            Err(error) => tracing::warn!(%error, "a round of the collector was cut short"),
        }
    }
}

/// Looks at every bucket once.
pub async fn round(gateway: &Gateway) -> S3Result<Round> {
    let mut done = Round::default();
    let mut range = ScanRange { space: space::BUCKETS, start: Vec::new(), end: None };
    loop {
        let page = gateway
            .backend
            .tables
            .scan(GLOBAL_TABLE, range.clone(), ScanLimit { rows: PAGE_ROWS, bytes: 1 << 20 })
            .await?;
        for (key, value) in page.rows {
            let Some((name, _)) = split_route(&key) else { continue };
            let bucket = BucketRow::from_bytes(&value)?;
            match table(gateway, bucket.table, &mut done).await {
                // A deletion was cut off after the table was dropped.
                Err(error) if error.table_gone => forget_row(gateway, &name, &bucket).await?,
                other => other?,
            }
        }
        match page.next {
            Some(start) => range.start = start,
            None => break,
        }
    }
    table(gateway, GLOBAL_TABLE, &mut done).await?;
    Ok(done)
}

async fn table(gateway: &Gateway, table: TableId, done: &mut Round) -> S3Result<()> {
    let mut range = ScanRange { space: space::GC, start: Vec::new(), end: None };
    loop {
        let page =
            gateway.backend.tables.scan(table, range.clone(), ScanLimit { rows: PAGE_ROWS, bytes: 1 << 20 }).await?;
        for (key, value) in page.rows {
            let row = GcRow::from_bytes(&value)?;
            let age_ms = gateway.clock.now_ms().saturating_sub(row.since_ms);
            if age_ms >= gateway.config.gc_min_age_ms() {
                collect_row(gateway, table, key, value, row, done).await?;
            }
        }
        match page.next {
            Some(start) => range.start = start,
            None => return Ok(()),
        }
    }
}

async fn collect_row(
    gateway: &Gateway,
    table: TableId,
    key: Vec<u8>,
    value: Bytes,
    row: GcRow,
    done: &mut Round,
) -> S3Result<()> {
    let Some((object, suffix)) = split_route(&key) else { return Ok(()) };
    let (owner_table, owner_key) = if table == GLOBAL_TABLE {
        match moved_from(suffix) {
            Some((table, original)) => {
                // Moved by the deletion of a bucket. If that was cut off, the row there still speaks for itself.
                let Some((object, _)) = split_route(&original) else { return Ok(()) };
                if row_exists(gateway, table, &route(&object), original).await? {
                    return remove_row(gateway, GLOBAL_TABLE, &route(""), key, value).await;
                }
                (table, object)
            }
            None => return Ok(()),
        }
    } else {
        (table, object.clone())
    };
    let here = route(&object);
    let mut value = value;
    if row.intent {
        let plain = GcRow { intent: false, ..row.clone() }.to_bytes();
        let place = RowKey { space: space::GC, key: key.clone() };
        let seen = vec![Condition::Equals(place.clone(), value)];
        match gateway.backend.tables.batch(table, &here, seen, vec![Mutation::Put(place, plain.clone())]).await {
            Ok(()) => value = plain,
            Err(BatchError::ConditionFailed { .. }) => return Ok(()),
            Err(BatchError::Backend(error)) => return Err(error.into()),
        }
    }
    let referred = match referred_blobs(gateway, owner_table, &owner_key).await {
        Err(error) if error.table_gone && table == GLOBAL_TABLE => BTreeSet::new(),
        other => other?,
    };
    for blob in &row.blobs {
        if referred.contains(&blob.id) {
            if !(row.intent || table == GLOBAL_TABLE) {
                tracing::error!(blob = %blob.id, "a blob in use was marked as garbage; it is kept");
            }
            continue;
        }
        gateway.backend.blobs.delete(blob.id, blob.stripes()).await?;
        done.blobs += 1;
    }
    done.rows += 1;
    remove_row(gateway, table, &here, key, value).await
}

/// Splits the suffix of a moved garbage row into the table it was in and its key there.
fn moved_from(suffix: &[u8]) -> Option<(TableId, Vec<u8>)> {
    let (table, key) = suffix.split_first_chunk::<16>()?;
    Some((TableId(*table), key.to_vec()))
}

async fn row_exists(gateway: &Gateway, table: TableId, route: &[u8], key: Vec<u8>) -> S3Result<bool> {
    match gateway.backend.tables.get(table, route, vec![RowKey { space: space::GC, key }]).await {
        Ok(rows) => Ok(rows.into_iter().any(|row| row.is_some())),
        Err(BackendError::NoTable(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn remove_row(gateway: &Gateway, table: TableId, route: &[u8], key: Vec<u8>, value: Bytes) -> S3Result<()> {
    let place = RowKey { space: space::GC, key };
    let seen = vec![Condition::Equals(place.clone(), value)];
    match gateway.backend.tables.batch(table, route, seen, vec![Mutation::Delete(place)]).await {
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
