//! A pool, and the ops on its objects.

use bytes::Bytes;
use holdfast_types::{LogVersion, ObjectName, PoolId};
use holdfast_wire::{Blob, ObjectOp, ObjectStat, OpResult};

use crate::client::{Client, OpOptions};
use crate::core::Outcome;
use crate::error::OperateError;

/// A pool of the cluster; clones share the client.
#[derive(Debug, Clone)]
pub struct Pool {
    client: Client,
    id: PoolId,
    name: String,
}

impl Pool {
    pub(crate) fn new(client: Client, id: PoolId, name: &str) -> Pool {
        Pool { client, id, name: name.to_owned() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// The client that it belongs to.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Executes an op vector on one object: in order, atomically, at most once. When it returns `Ok`, writes are durable
    /// on every OSD that serves the object.
    ///
    /// # Errors
    /// [`OperateError`]. After [`OperateError::Timeout`] the ops may still take effect.
    pub async fn operate(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Outcome, OperateError> {
        self.operate_with(object, ops, OpOptions::default()).await
    }

    /// [`Pool::operate`], with options.
    ///
    /// # Errors
    /// [`OperateError`].
    pub async fn operate_with(
        &self,
        object: &ObjectName,
        ops: Vec<ObjectOp>,
        options: OpOptions,
    ) -> Result<Outcome, OperateError> {
        self.client.operate(self.id, object, ops, options).await
    }

    /// Up to `length` bytes from `offset`; shorter at the object's end.
    ///
    /// # Errors
    /// [`OperateError`].
    pub async fn read(&self, object: &ObjectName, offset: u64, length: u64) -> Result<Bytes, OperateError> {
        match self.one(object, ObjectOp::Read { offset, length }).await? {
            (_, OpResult::Data(Blob(data))) => Ok(data),
            _ => Err(OperateError::UnexpectedResult { index: 0 }),
        }
    }

    /// Size and version.
    ///
    /// # Errors
    /// [`OperateError`].
    pub async fn stat(&self, object: &ObjectName) -> Result<ObjectStat, OperateError> {
        match self.one(object, ObjectOp::Stat).await? {
            (_, OpResult::Stat(stat)) => Ok(stat),
            _ => Err(OperateError::UnexpectedResult { index: 0 }),
        }
    }

    /// Writes bytes at `offset`; a gap before it reads as zeros. Gives the object's new version.
    ///
    /// # Errors
    /// [`OperateError`].
    pub async fn write(
        &self,
        object: &ObjectName,
        offset: u64,
        data: impl Into<Bytes>,
    ) -> Result<LogVersion, OperateError> {
        let op = ObjectOp::Write { offset, data: Blob(data.into()) };
        Ok(self.one(object, op).await?.0)
    }

    /// Replaces all bytes; attributes and rows stay. Gives the object's new version.
    ///
    /// # Errors
    /// [`OperateError`].
    pub async fn write_full(&self, object: &ObjectName, data: impl Into<Bytes>) -> Result<LogVersion, OperateError> {
        Ok(self.one(object, ObjectOp::WriteFull { data: Blob(data.into()) }).await?.0)
    }

    /// Writes at the end. Gives the object's new version.
    ///
    /// # Errors
    /// [`OperateError`].
    pub async fn append(&self, object: &ObjectName, data: impl Into<Bytes>) -> Result<LogVersion, OperateError> {
        Ok(self.one(object, ObjectOp::Append { data: Blob(data.into()) }).await?.0)
    }

    /// Removes the object with attributes and rows.
    ///
    /// # Errors
    /// [`OperateError::NotFound`] when it is missing, and the others.
    pub async fn remove(&self, object: &ObjectName) -> Result<(), OperateError> {
        self.one(object, ObjectOp::Remove).await.map(drop)
    }

    async fn one(&self, object: &ObjectName, op: ObjectOp) -> Result<(LogVersion, OpResult), OperateError> {
        let Outcome { version, mut results } = self.operate(object, vec![op]).await?;
        let result = results.pop().ok_or(OperateError::UnexpectedResult { index: 0 })?;
        Ok((version, result))
    }
}
