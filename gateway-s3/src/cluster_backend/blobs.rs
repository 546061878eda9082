//! Blobs as objects of the data pool: stripe `i` of a blob is the object `<blob id in hex>.<i, 8 hex digits>`.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use holdfast_client::{BlobName, Client, OperateError, Pool};
use holdfast_types::ObjectName;
use holdfast_wire::mon::{MonCommand, MonReply};

use super::{failed, unavailable};
use crate::backend::{BackendError, BlobId, Blobs};
use crate::row::unique_id;

/// Stripes of a blob that are deleted at one time.
const REMOVALS_MAX: usize = 16;
/// The monitors' words for a storage daemon that has, or will soon have, no room for writes. One that is only nearly full
/// may stay so for months.
const SHORT_OF_ROOM: [&str; 2] = ["OSD_FULL", "OSD_BACKFILL_FULL"];

/// Objects of the data pool.
pub(super) struct PoolBlobs {
    pool: Pool,
    client: Client,
}

impl PoolBlobs {
    pub fn new(pool: Pool, client: Client) -> PoolBlobs {
        PoolBlobs { pool, client }
    }
}

fn object(blob: BlobId, stripe: u32) -> Result<ObjectName, BackendError> {
    Ok(BlobName::new(blob.to_string()).map_err(failed)?.stripe(stripe))
}

fn backend_error(blob: BlobId, stripe: u32, error: OperateError) -> BackendError {
    match error {
        OperateError::NotFound { .. } => BackendError::NoStripe { blob, stripe },
        OperateError::Full => BackendError::Full,
        OperateError::Timeout { .. }
        | OperateError::Fenced
        | OperateError::PoolGone
        | OperateError::Forgotten
        | OperateError::ShutDown => unavailable(error),
        OperateError::Exists { .. }
        | OperateError::AssertFailed { .. }
        | OperateError::Invalid { .. }
        | OperateError::Unreadable { .. }
        | OperateError::TooLarge { .. }
        | OperateError::UnexpectedResult { .. } => failed(error),
    }
}

#[async_trait]
impl Blobs for PoolBlobs {
    async fn new_id(&self) -> Result<BlobId, BackendError> {
        Ok(BlobId(unique_id()))
    }

    async fn put_stripe(&self, blob: BlobId, stripe: u32, data: Bytes) -> Result<(), BackendError> {
        let object = object(blob, stripe)?;
        self.pool.write_full(&object, data).await.map(drop).map_err(|error| backend_error(blob, stripe, error))
    }

    async fn put_range(&self, blob: BlobId, stripe: u32, offset: u32, data: Bytes) -> Result<(), BackendError> {
        let object = object(blob, stripe)?;
        let written = self.pool.write(&object, u64::from(offset), data).await;
        written.map(drop).map_err(|error| backend_error(blob, stripe, error))
    }

    async fn get(&self, blob: BlobId, stripe: u32, offset: u32, length: u32) -> Result<Bytes, BackendError> {
        let object = object(blob, stripe)?;
        let data = self
            .pool
            .read(&object, u64::from(offset), u64::from(length))
            .await
            .map_err(|error| backend_error(blob, stripe, error))?;
        if data.len() as u64 == u64::from(length) { Ok(data) } else { Err(BackendError::NoStripe { blob, stripe }) }
    }

    async fn delete(&self, blob: BlobId, stripes: u32) -> Result<(), BackendError> {
        let remove = |stripe: u32| async move {
            match self.pool.remove(&object(blob, stripe)?).await {
                Ok(()) | Err(OperateError::NotFound { .. }) => Ok(()),
                Err(error) => Err(backend_error(blob, stripe, error)),
            }
        };
        stream::iter(0..stripes).map(Ok).try_for_each_concurrent(REMOVALS_MAX, remove).await
    }

    /// Asked of the monitors: this gateway's own map may be from before, when nothing was refused to it.
    async fn is_short_of_room(&self) -> Result<bool, BackendError> {
        match self.client.mon_command(MonCommand::Status).await.map_err(unavailable)? {
            MonReply::Status(status) => {
                Ok(status.checks.iter().any(|check| SHORT_OF_ROOM.contains(&check.code.as_str())))
            }
            _ => Err(BackendError::Corrupt { what: "answer to a status" }),
        }
    }
}
