//! Objects of a real pool.

use holdfast_client::{OpOptions, OperateError, OperateReply, Pool};
use holdfast_types::ObjectName;
use holdfast_wire::{ObjectOp, OpError};

use crate::error::ObjectsError;
use crate::objects::{Objects, Operated};

impl Objects for Pool {
    async fn operate(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Operated, ObjectsError> {
        Pool::operate(self, object, ops).await.map(Operated::from).map_err(ObjectsError::from)
    }

    async fn operate_freeing(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Operated, ObjectsError> {
        let options = OpOptions { frees_space: true, ..OpOptions::default() };
        Pool::operate_with(self, object, ops, options).await.map(Operated::from).map_err(ObjectsError::from)
    }
}

impl From<OperateReply> for Operated {
    fn from(outcome: OperateReply) -> Operated {
        Operated { version: outcome.version, results: outcome.results }
    }
}

/// Sorts the client's errors by what is known of the effect.
impl From<OperateError> for ObjectsError {
    fn from(error: OperateError) -> ObjectsError {
        let op = |index, error| ObjectsError::Op { index, error };
        match error {
            OperateError::NotFound { index } => op(index, OpError::NotFound),
            OperateError::Exists { index } => op(index, OpError::Exists),
            OperateError::AssertFailed { index, current } => op(index, OpError::AssertFailed { current }),
            OperateError::Invalid { index, reason } => op(index, OpError::Invalid { reason }),
            OperateError::Unreadable { index } => op(index, OpError::Unreadable),
            OperateError::TooLarge { bytes } => ObjectsError::TooLarge { bytes },
            OperateError::Full => ObjectsError::Full,
            OperateError::Fenced => ObjectsError::Fenced,
            OperateError::PoolGone => ObjectsError::PoolGone,
            // The client resends by itself: an earlier send may have been executed before one of these was answered.
            OperateError::Timeout { .. }
            | OperateError::Forgotten
            | OperateError::UnexpectedResult { .. }
            | OperateError::ShutDown => ObjectsError::OutcomeUnknown,
        }
    }
}
