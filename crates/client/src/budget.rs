//! How much may be in flight.

use std::sync::Arc;

use holdfast_wire::{Blob, ObjectOp, RowCondition};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Objects are not larger than this (protocol.md §2.5), so neither is what one read brings back.
const OBJECT_BYTES_MAX: u64 = 4 << 20;
/// Charged for each op beside its bytes.
const OP_OVERHEAD_BYTES: u64 = 512;

/// The client's budget. Waiting for it is how back-pressure reaches the user.
#[derive(Debug)]
pub(crate) struct Budget {
    ops: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
}

/// A share of the budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Share {
    _ops: Option<OwnedSemaphorePermit>,
    _bytes: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(crate) fn new(ops_max: usize, bytes_max: usize) -> Budget {
        let bytes_max = u32::try_from(bytes_max.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Budget {
            ops: Arc::new(Semaphore::new(ops_max.clamp(1, Semaphore::MAX_PERMITS))),
            bytes: Arc::new(Semaphore::new(bytes_max as usize)),
            bytes_max,
        }
    }

    /// Waits for a share for one request. What is larger than the whole budget passes alone.
    pub(crate) async fn take(&self, ops: &[ObjectOp]) -> Share {
        let bytes = u32::try_from(cost(ops)).unwrap_or(u32::MAX).min(self.bytes_max);
        // The semaphores are never closed. Ops first: what waits for bytes holds its place in the queue.
        let of_ops = Arc::clone(&self.ops).acquire_owned().await.ok();
        let of_bytes = Arc::clone(&self.bytes).acquire_many_owned(bytes).await.ok();
        Share { _ops: of_ops, _bytes: of_bytes }
    }
}

/// Bytes that a request carries or may bring back.
fn cost(ops: &[ObjectOp]) -> u64 {
    let of = |blob: &Blob| blob.len() as u64;
    let cost_of = |op: &ObjectOp| match op {
        ObjectOp::Read { length, .. } => (*length).min(OBJECT_BYTES_MAX),
        ObjectOp::ScanRows { limit_bytes, .. } => u64::from(*limit_bytes),
        ObjectOp::Write { data, .. }
        | ObjectOp::WriteFull { data }
        | ObjectOp::Append { data }
        | ObjectOp::CompareExtent { data, .. } => of(data),
        ObjectOp::SetAttr { value, .. } => of(value),
        ObjectOp::AssertAttr { expected, .. } => expected.as_ref().map_or(0, of),
        ObjectOp::AssertRow { condition: RowCondition::Equals(value), .. } => of(value),
        ObjectOp::PutRows { rows } => rows.iter().map(|row| row.key.len() as u64 + of(&row.value)).sum(),
        ObjectOp::GetRows { keys } | ObjectOp::DeleteRows { keys } => keys.iter().map(|key| key.len() as u64).sum(),
        ObjectOp::AssertExists
        | ObjectOp::AssertAbsent
        | ObjectOp::AssertVersion(_)
        | ObjectOp::AssertRow { .. }
        | ObjectOp::AssertRowRangeEmpty { .. }
        | ObjectOp::Stat
        | ObjectOp::GetAttr { .. }
        | ObjectOp::Create { .. }
        | ObjectOp::Zero { .. }
        | ObjectOp::Truncate { .. }
        | ObjectOp::Remove
        | ObjectOp::RemoveAttr { .. }
        | ObjectOp::DeleteRowRange { .. }
        | ObjectOp::AddRow { .. }
        | ObjectOp::MaxRow { .. } => 0,
    };
    ops.iter().map(|op| OP_OVERHEAD_BYTES + cost_of(op)).sum()
}
