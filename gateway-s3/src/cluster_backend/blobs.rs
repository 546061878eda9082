//! Blobs as objects of the data pool: stripe `i` of a blob is the object `<blob id in hex>.<i, 8 hex digits>`.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use holdfast_client::{BlobName, Client, OperateError, OperateReply, Pool};
use holdfast_types::ObjectName;
use holdfast_wire::mon::{MonCommand, MonReply};
use holdfast_wire::{Blob, ObjectOp, OpResult};

use super::{failed, unavailable};
use crate::backend::{BackendError, BlobId, Blobs};
use crate::runtime::Runtime;

/// Stripes of a blob that are deleted at one time.
const REMOVALS_MAX: usize = 16;
/// The monitors' words for a storage daemon that has, or will soon have, no room for writes. One that is only nearly full
/// may stay so for months.
const SHORT_OF_ROOM: [&str; 2] = ["OSD_FULL", "OSD_BACKFILL_FULL"];

/// Objects of the pool that blobs are in: the only door to it, so that others can stand in.
pub trait DataObjects: Send + Sync + 'static {
    /// Executes an op vector on one object: in order, atomically, at most once, durably.
    ///
    /// # Errors
    /// [`OperateError`].
    fn operate(
        &self,
        object: &ObjectName,
        ops: Vec<ObjectOp>,
    ) -> impl Future<Output = Result<OperateReply, OperateError>> + Send;

    /// Whether room runs out: writes are refused for want of it, or soon will be.
    ///
    /// # Errors
    /// Nobody could be asked.
    fn is_short_of_room(&self) -> impl Future<Output = Result<bool, BackendError>> + Send;
}

impl DataObjects for Pool {
    async fn operate(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<OperateReply, OperateError> {
        Pool::operate(self, object, ops).await
    }

    /// Asked of the monitors: this gateway's own map may be from before, when nothing was refused to it.
    async fn is_short_of_room(&self) -> Result<bool, BackendError> {
        let client: &Client = self.client();
        match client.mon_command(MonCommand::Status).await.map_err(unavailable)? {
            MonReply::Status(status) => {
                Ok(status.checks.iter().any(|check| SHORT_OF_ROOM.contains(&check.code.as_str())))
            }
            _ => Err(BackendError::Corrupt { what: "answer to a status" }),
        }
    }
}

/// Stripes as objects.
pub(super) struct ObjectBlobs<O> {
    objects: O,
    runtime: Runtime,
}

impl<O: DataObjects> ObjectBlobs<O> {
    pub fn new(objects: O, runtime: Runtime) -> ObjectBlobs<O> {
        ObjectBlobs { objects, runtime }
    }

    /// One op on a stripe.
    async fn one(&self, object: &ObjectName, op: ObjectOp) -> Result<OpResult, OperateError> {
        let reply = self.objects.operate(object, vec![op]).await?;
        reply.results.into_iter().next_back().ok_or(OperateError::UnexpectedResult { index: 0 })
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
impl<O: DataObjects> Blobs for ObjectBlobs<O> {
    async fn new_id(&self) -> Result<BlobId, BackendError> {
        Ok(BlobId(self.runtime.unique_id()))
    }

    async fn put_stripe(&self, blob: BlobId, stripe: u32, data: Bytes) -> Result<(), BackendError> {
        let object = object(blob, stripe)?;
        let op = ObjectOp::WriteFull { data: Blob(data) };
        self.one(&object, op).await.map(drop).map_err(|error| backend_error(blob, stripe, error))
    }

    async fn put_range(&self, blob: BlobId, stripe: u32, offset: u32, data: Bytes) -> Result<(), BackendError> {
        let object = object(blob, stripe)?;
        let op = ObjectOp::Write { offset: u64::from(offset), data: Blob(data) };
        self.one(&object, op).await.map(drop).map_err(|error| backend_error(blob, stripe, error))
    }

    async fn get(&self, blob: BlobId, stripe: u32, offset: u32, length: u32) -> Result<Bytes, BackendError> {
        let object = object(blob, stripe)?;
        let op = ObjectOp::Read { offset: u64::from(offset), length: u64::from(length) };
        let data = match self.one(&object, op).await {
            Ok(OpResult::Data(Blob(data))) => data,
            Ok(_) => return Err(backend_error(blob, stripe, OperateError::UnexpectedResult { index: 0 })),
            Err(error) => return Err(backend_error(blob, stripe, error)),
        };
        if data.len() as u64 == u64::from(length) { Ok(data) } else { Err(BackendError::NoStripe { blob, stripe }) }
    }

    async fn delete(&self, blob: BlobId, stripes: u32) -> Result<(), BackendError> {
        let remove = |stripe: u32| async move {
            match self.one(&object(blob, stripe)?, ObjectOp::Remove).await {
                Ok(_) | Err(OperateError::NotFound { .. }) => Ok(()),
                Err(error) => Err(backend_error(blob, stripe, error)),
            }
        };
        stream::iter(0..stripes).map(Ok).try_for_each_concurrent(REMOVALS_MAX, remove).await
    }

    async fn is_short_of_room(&self) -> Result<bool, BackendError> {
        self.objects.is_short_of_room().await
    }
}
