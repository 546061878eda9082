//! Objects of a real pool.

use holdfast_client::{OperateError, Pool};
use holdfast_types::ObjectName;
use holdfast_wire::{ObjectOp, OpError};

use crate::error::ObjectsError;
use crate::objects::{Objects, Operated};

impl Objects for Pool {
    async fn operate(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Operated, ObjectsError> {
        match Pool::operate(self, object, ops).await {
            Ok(outcome) => Ok(Operated { version: outcome.version, results: outcome.results }),
            Err(error) => Err(objects_error(error)),
        }
    }
}

/// Sorts the client's errors by what is known of the effect.
fn objects_error(error: OperateError) -> ObjectsError {
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
