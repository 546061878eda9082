//! Objects in memory: executes op vectors as a PG does, for tests of this crate and of those above it.
//!
//! Rows, attributes and asserts only; bytes of objects are not modelled and fail with [`OpError::Invalid`].
//!
//! Beside that what every simulation of tables needs: [`actors`] with random work, the [`history`] of what they saw, whether
//! it is [`linearizable`], and the [`shape`] of a table at rest.

pub mod actors;
pub mod history;
pub mod linearizable;
pub mod shape;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_types::{Epoch, LogVersion, ObjectName};
use holdfast_wire::{Blob, ObjectOp, OpError, OpResult, Row, RowCondition};
use parking_lot::Mutex;

use crate::error::ObjectsError;
use crate::objects::{Objects, Operated};

/// Most bytes of rows that a placement group takes beside a delete while the cluster is full.
const ROWS_BESIDE_DELETE_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// One object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryObject {
    /// Its attributes.
    pub attrs: BTreeMap<Vec<u8>, Bytes>,
    /// Its rows.
    pub rows: BTreeMap<Vec<u8>, Bytes>,
}

/// All objects of a pool, in memory.
#[derive(Debug, Default)]
pub struct MemoryPool {
    /// The objects.
    pub objects: BTreeMap<ObjectName, MemoryObject>,
    /// It takes what frees space, and no other writes.
    pub full: bool,
    /// It is full after so many op vectors.
    pub full_after: Option<u64>,
    ops_count: u64,
}

impl MemoryPool {
    /// Executes an op vector: all or nothing.
    ///
    /// # Errors
    /// The index and error of the op that failed.
    pub fn execute(&mut self, name: &ObjectName, ops: &[ObjectOp]) -> Result<Operated, ObjectsError> {
        self.ops_count += 1;
        let mut object = self.objects.get(name).cloned();
        let mut results = Vec::with_capacity(ops.len());
        for (index, op) in ops.iter().enumerate() {
            let result = step(&mut object, op).map_err(|error| ObjectsError::Op { index: index as u32, error })?;
            results.push(result);
        }
        match object {
            Some(object) => self.objects.insert(name.clone(), object),
            None => self.objects.remove(name),
        };
        Ok(Operated { version: LogVersion { epoch: Epoch(1), counter: self.ops_count }, results })
    }

    /// What a placement group says to a vector while the cluster is full: only deletes, or if it is to free space also rows
    /// beside them, up to [`ROWS_BESIDE_DELETE_BYTES_MAX`].
    fn admit(&self, ops: &[ObjectOp], frees: bool) -> Result<(), ObjectsError> {
        let mut writes = ops.iter().filter(|op| op.is_write());
        let frees = match frees {
            true => writes.any(ObjectOp::frees_space) && rows_bytes(ops) <= ROWS_BESIDE_DELETE_BYTES_MAX,
            false => writes.all(ObjectOp::frees_space),
        };
        let full = self.full || self.full_after.is_some_and(|after| self.ops_count >= after);
        if full && !frees { Err(ObjectsError::Full) } else { Ok(()) }
    }

    /// How many op vectors were executed.
    #[must_use]
    pub fn ops_count(&self) -> u64 {
        self.ops_count
    }
}

fn rows_bytes(ops: &[ObjectOp]) -> usize {
    let rows = ops.iter().filter_map(|op| match op {
        ObjectOp::PutRows { rows } => Some(rows),
        _ => None,
    });
    rows.flatten().map(|row| row.key.len() + row.value.0.len()).sum()
}

fn assert_that(holds: bool, current: Option<&Bytes>) -> Result<OpResult, OpError> {
    if holds { Ok(OpResult::Done) } else { Err(OpError::AssertFailed { current: current.cloned().map(Blob) }) }
}

fn range<'r>(
    rows: &'r BTreeMap<Vec<u8>, Bytes>,
    start: &[u8],
    end: Option<&Vec<u8>>,
) -> impl Iterator<Item = (&'r Vec<u8>, &'r Bytes)> {
    let end = end.cloned();
    rows.range::<[u8], _>((Bound::Included(start), Bound::Unbounded))
        .take_while(move |(key, _)| end.as_ref().is_none_or(|end| *key < end))
}

fn counter(object: &mut MemoryObject, key: &[u8], change: impl Fn(i64) -> Option<i64>) -> Result<OpResult, OpError> {
    let invalid = |reason: &str| OpError::Invalid { reason: reason.to_owned() };
    let old = match object.rows.get(key) {
        None => 0,
        Some(bytes) => i64::from_le_bytes(bytes.as_ref().try_into().map_err(|_| invalid("not a counter"))?),
    };
    let new = change(old).ok_or_else(|| invalid("overflow"))?;
    object.rows.insert(key.to_vec(), Bytes::copy_from_slice(&new.to_le_bytes()));
    Ok(OpResult::Counter(new))
}

fn step(object: &mut Option<MemoryObject>, op: &ObjectOp) -> Result<OpResult, OpError> {
    let there = object.clone().unwrap_or_default();
    match op {
        ObjectOp::AssertExists if object.is_none() => return Err(OpError::NotFound),
        ObjectOp::AssertAbsent if object.is_some() => return Err(OpError::Exists),
        ObjectOp::AssertAttr { name, expected } => {
            let current = there.attrs.get(name);
            return assert_that(current == expected.as_ref().map(|blob| &blob.0), current);
        }
        ObjectOp::AssertRow { key, condition } => {
            let current = there.rows.get(key);
            let holds = match condition {
                RowCondition::Absent => current.is_none(),
                RowCondition::Present => current.is_some(),
                RowCondition::Equals(value) => current == Some(&value.0),
            };
            return assert_that(holds, current);
        }
        ObjectOp::AssertRowRangeEmpty { start, end } => {
            return assert_that(range(&there.rows, start, end.as_ref()).next().is_none(), None);
        }
        ObjectOp::GetAttr { name } => return Ok(OpResult::Attr(there.attrs.get(name).cloned().map(Blob))),
        ObjectOp::GetRows { keys } => {
            let value = |key: &minicbor::bytes::ByteVec| there.rows.get(key.as_slice()).cloned().map(Blob);
            return Ok(OpResult::RowValues(keys.iter().map(value).collect()));
        }
        ObjectOp::ScanRows { start, end, limit_rows, limit_bytes } => {
            let (mut rows, mut bytes) = (Vec::new(), 0);
            let mut all = range(&there.rows, start, end.as_ref()).peekable();
            while rows.len() < *limit_rows as usize
                && bytes < *limit_bytes as usize
                && let Some((key, value)) = all.next()
            {
                bytes += key.len() + value.len();
                rows.push(Row { key: key.clone(), value: Blob(value.clone()) });
            }
            return Ok(OpResult::RowPage { more: all.peek().is_some(), rows });
        }
        ObjectOp::Create { exclusive: true } if object.is_some() => return Err(OpError::Exists),
        ObjectOp::Remove => {
            return object.take().map(|_| OpResult::Done).ok_or(OpError::NotFound);
        }
        _ => {}
    }
    let object = object.get_or_insert_default();
    match op {
        ObjectOp::AssertExists | ObjectOp::AssertAbsent | ObjectOp::Create { .. } => {}
        ObjectOp::SetAttr { name, value } => {
            object.attrs.insert(name.clone(), value.0.clone());
        }
        ObjectOp::RemoveAttr { name } => {
            object.attrs.remove(name);
        }
        ObjectOp::PutRows { rows } => {
            object.rows.extend(rows.iter().map(|row| (row.key.clone(), row.value.0.clone())));
        }
        ObjectOp::DeleteRows { keys } => {
            object.rows.retain(|key, _| !keys.iter().any(|gone| gone.as_slice() == key));
        }
        ObjectOp::DeleteRowRange { start, end } => {
            object.rows.retain(|key, _| key < start || end.as_ref().is_some_and(|end| key >= end));
        }
        ObjectOp::AddRow { key, delta } => return counter(object, key, |old| old.checked_add(*delta)),
        ObjectOp::MaxRow { key, value } => return counter(object, key, |old| Some(old.max(*value))),
        _ => return Err(OpError::Invalid { reason: "not modelled in memory".to_owned() }),
    }
    Ok(OpResult::Done)
}

/// A pool in memory that always answers. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryObjects {
    /// The pool.
    pub pool: Arc<Mutex<MemoryPool>>,
}

impl Objects for MemoryObjects {
    async fn operate(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Operated, ObjectsError> {
        let mut pool = self.pool.lock();
        pool.admit(&ops, false)?;
        pool.execute(object, &ops)
    }

    async fn operate_freeing(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Operated, ObjectsError> {
        let mut pool = self.pool.lock();
        pool.admit(&ops, true)?;
        pool.execute(object, &ops)
    }
}
