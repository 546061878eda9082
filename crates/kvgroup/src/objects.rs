//! What this crate needs of the cluster: op vectors on objects, a pause, and ids.

use std::future::Future;
use std::time::Duration;

use holdfast_types::{LogVersion, ObjectName};
use holdfast_wire::{ObjectOp, OpResult};
use rand::TryRngCore;
use rand::rngs::OsRng;

use crate::error::ObjectsError;

/// The answer to an op vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operated {
    /// The object's version after the ops.
    pub version: LogVersion,
    /// One result for each op.
    pub results: Vec<OpResult>,
}

/// Objects of one pool, and the outside world: the shell's only door, so that tests can stand in it.
///
/// An op vector is atomic, linearizable, and executed at most once per call. On a missing object reads find nothing
/// (or fail with `NotFound`) and asserts of an attribute's value fail.
pub trait Objects: Send + Sync + 'static {
    /// Executes an op vector on one object.
    ///
    /// # Errors
    /// [`ObjectsError`]; it says whether the ops can have had an effect.
    fn operate(
        &self,
        object: &ObjectName,
        ops: Vec<ObjectOp>,
    ) -> impl Future<Output = Result<Operated, ObjectsError>> + Send;

    /// [`Objects::operate`], for ops that serve to free space: a full cluster takes them, too, if they delete something and
    /// put few rows beside. As here only where nothing is ever full.
    ///
    /// # Errors
    /// Those of [`Objects::operate`].
    fn operate_freeing(
        &self,
        object: &ObjectName,
        ops: Vec<ObjectOp>,
    ) -> impl Future<Output = Result<Operated, ObjectsError>> + Send {
        self.operate(object, ops)
    }

    /// Has work done beside the caller's, whoever drops the caller. It ends with the process.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(work);
    }

    /// Waits.
    fn pause(&self, duration: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(duration)
    }

    /// An id that nobody else ever draws. Panics when the system has no randomness: no id would be safe.
    fn fresh_id(&self) -> [u8; 16] {
        rand::Rng::random(&mut OsRng.unwrap_err())
    }
}
