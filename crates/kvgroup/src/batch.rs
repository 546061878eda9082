//! Conditional batches: their checks, their op vector, and what its answer means. Pure.

use bytes::Bytes;
use holdfast_types::ObjectName;
use holdfast_wire::{Blob, ObjectOp, OpError, OpResult, Row, RowCondition};

use crate::error::{BatchError, InvalidRequest, KvError, ObjectsError};
use crate::header::assert_version;
use crate::key::{Affinity, KEY_BYTES_MAX, RowKey, SPACE_RESERVED, WEIGHT_ROW, physical};
use crate::objects::Operated;
use crate::sabotage::{self, Sabotage};
use crate::weight::{Config, WeightChange};

/// Conditions and mutations of a batch, at most: a PG executes it in one piece, so it must stay short.
pub const BATCH_ROWS_MAX: usize = 4096;
/// Bytes of keys and values of a batch, at most. It is one op, one log entry and one record.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// The longest value of a row, in bytes: what a placement group takes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// What must hold of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Require {
    /// There is no such row.
    Absent,
    /// There is such a row.
    Present,
    /// The row has exactly this value.
    Equals(Bytes),
}

/// A condition of a batch. All are judged on the rows as they are before the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The row.
    pub row: RowKey,
    /// What must hold of it.
    pub require: Require,
}

/// A change of a batch. They take effect in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Sets a row.
    Put {
        /// The row.
        row: RowKey,
        /// Its new value.
        value: Bytes,
    },
    /// Deletes a row, if it is there.
    Delete {
        /// The row.
        row: RowKey,
    },
    /// Deletes all rows of a space with keys in `start..end`. All possible ones must be of the batch's route.
    DeleteRange {
        /// The space.
        space: u8,
        /// The first key.
        start: Vec<u8>,
        /// The first key after the range.
        end: Vec<u8>,
    },
    /// Adds to a counter row: 8 bytes, little-endian `i64`, 0 when missing.
    Add {
        /// The row.
        row: RowKey,
        /// What to add.
        delta: i64,
    },
    /// Raises a counter row to at least `value`.
    Max {
        /// The row.
        row: RowKey,
        /// The lower bound.
        value: i64,
    },
}

impl Mutation {
    fn place(&self) -> (u8, &[u8]) {
        match self {
            Mutation::Put { row, .. }
            | Mutation::Delete { row }
            | Mutation::Add { row, .. }
            | Mutation::Max { row, .. } => (row.space, &row.key),
            Mutation::DeleteRange { space, start, .. } => (*space, start),
        }
    }
}

/// What a batch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Anything.
    Change,
    /// To free space: it is let in where nothing else is. Its caller says so, because what deletes may as well replace.
    FreeSpace,
}

/// Checks the name of a row.
pub(crate) fn check_row(space: u8, key: &[u8]) -> Result<(), InvalidRequest> {
    if space == SPACE_RESERVED {
        return Err(InvalidRequest::ReservedSpace { space });
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(InvalidRequest::KeyTooLong { length: key.len() });
    }
    Ok(())
}

/// A checked batch, ready to be sent to whatever group holds its route.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The ops but the first, which asserts the group's version.
    ops: Vec<ObjectOp>,
    conditions: usize,
    counters: usize,
    /// By how much it makes the group heavier; `None` when it changes nothing.
    pub weight_change: Option<i64>,
    /// It is let into a full group: it is to free space; or it deletes a range, whose weight is not known but is what fills groups, or rows that
    /// are known to be there, and puts hardly more than it deletes. Otherwise a full group could never be emptied.
    pub makes_room: bool,
}

/// What a batch's op vector came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BatchAnswer {
    /// It took effect.
    Done {
        /// New values of the counters, in the order of their mutations.
        counters: Vec<i64>,
        /// The group's estimated weight, when it changed.
        estimate: Option<i64>,
    },
    /// The group is not what it was; nothing happened.
    Stale,
    /// It failed for good.
    Failed(BatchError),
}

impl Batch {
    /// Checks a batch over rows of `route` and builds its ops.
    pub fn new(
        affinity: Affinity,
        route: &[u8],
        conditions: &[Condition],
        mutations: &[Mutation],
        purpose: Purpose,
        config: &Config,
    ) -> Result<Batch, InvalidRequest> {
        check_size(conditions, mutations)?;
        for (space, key) in
            conditions.iter().map(|c| (c.row.space, &*c.row.key)).chain(mutations.iter().map(Mutation::place))
        {
            check_row(space, key)?;
            if affinity.route(key) != route {
                return Err(InvalidRequest::ForeignRoute);
            }
        }
        let mut weight = WeightChange::new(config);
        let mut ops = Vec::with_capacity(conditions.len() + mutations.len() + 1);
        for Condition { row, require } in conditions {
            let condition = match require {
                Require::Absent => {
                    weight.absent(row.space, &row.key);
                    RowCondition::Absent
                }
                Require::Present => {
                    weight.present(row.space, &row.key);
                    RowCondition::Present
                }
                Require::Equals(value) => {
                    weight.value(row.space, &row.key, value.len());
                    RowCondition::Equals(Blob(value.clone()))
                }
            };
            ops.push(ObjectOp::AssertRow { key: row.physical(), condition });
        }
        let mut counters = 0;
        for mutation in mutations {
            match mutation {
                Mutation::Put { value, .. } if value.len() > VALUE_BYTES_MAX => {
                    return Err(InvalidRequest::ValueTooLong { length: value.len() });
                }
                Mutation::Put { row, value } => {
                    weight.put(row.space, &row.key, value.len());
                    let put = Row { key: row.physical(), value: Blob(value.clone()) };
                    match ops.last_mut() {
                        Some(ObjectOp::PutRows { rows }) => rows.push(put),
                        _ => ops.push(ObjectOp::PutRows { rows: vec![put] }),
                    }
                }
                Mutation::Delete { row } => {
                    weight.delete(row.space, &row.key);
                    let key = row.physical().into();
                    match ops.last_mut() {
                        Some(ObjectOp::DeleteRows { keys }) => keys.push(key),
                        _ => ops.push(ObjectOp::DeleteRows { keys: vec![key] }),
                    }
                }
                Mutation::DeleteRange { space, start, end } => {
                    if !affinity.range_stays_in(start, end, route) {
                        return Err(InvalidRequest::ForeignRoute);
                    }
                    weight.delete_range(*space, start, end);
                    let (start, end) = (physical(*space, start), Some(physical(*space, end)));
                    ops.push(ObjectOp::DeleteRowRange { start, end });
                }
                Mutation::Add { row, delta } => {
                    weight.put(row.space, &row.key, size_of::<i64>());
                    counters += 1;
                    ops.push(ObjectOp::AddRow { key: row.physical(), delta: *delta });
                }
                Mutation::Max { row, value } => {
                    weight.put(row.space, &row.key, size_of::<i64>());
                    counters += 1;
                    ops.push(ObjectOp::MaxRow { key: row.physical(), value: *value });
                }
            }
        }
        let weight_change = (!mutations.is_empty()).then_some(weight.sum());
        let slack = i64::try_from(config.row_overhead).unwrap_or(i64::MAX);
        let deletes = |mutation: &Mutation| match mutation {
            Mutation::DeleteRange { .. } => true,
            Mutation::Delete { row } => {
                weight.sum() <= slack
                    && conditions.iter().any(|c| c.row == *row && matches!(c.require, Require::Equals(_)))
            }
            Mutation::Put { .. } | Mutation::Add { .. } | Mutation::Max { .. } => false,
        };
        let makes_room = purpose == Purpose::FreeSpace || mutations.iter().any(deletes);
        if let Some(delta) = weight_change {
            ops.push(ObjectOp::AddRow { key: WEIGHT_ROW.to_vec(), delta });
        }
        Ok(Batch { ops, conditions: conditions.len(), counters, weight_change, makes_room })
    }

    /// The op vector for a group of this version.
    pub fn ops(&self, version: u64) -> Vec<ObjectOp> {
        let mut ops = Vec::with_capacity(self.ops.len() + 1);
        ops.push(match sabotage::breaks(Sabotage::BatchIgnoresVersion) {
            false => assert_version(version),
            true => ObjectOp::AssertExists,
        });
        ops.extend_from_slice(&self.ops);
        ops
    }

    /// What the answer to the op vector means.
    pub fn answer(&self, object: &ObjectName, outcome: Result<Operated, ObjectsError>) -> BatchAnswer {
        let failed = |error: KvError| BatchAnswer::Failed(BatchError::Kv(error));
        match outcome {
            Ok(operated) => self.done(object, &operated.results),
            Err(ObjectsError::OutcomeUnknown) if sabotage::breaks(Sabotage::BatchResent) => BatchAnswer::Stale,
            Err(ObjectsError::OutcomeUnknown | ObjectsError::Fenced | ObjectsError::PoolGone)
                if self.weight_change.is_some() =>
            {
                BatchAnswer::Failed(BatchError::OutcomeUnknown)
            }
            Err(ObjectsError::Op { index: 0, error: OpError::AssertFailed { .. } | OpError::NotFound })
            | Err(ObjectsError::Op { error: OpError::NotFound, .. }) => BatchAnswer::Stale,
            Err(ObjectsError::Op { index, error: OpError::AssertFailed { current } })
                if (index as usize) <= self.conditions =>
            {
                let current = current.map(|blob| blob.0);
                BatchAnswer::Failed(BatchError::Condition { index: index as usize - 1, current })
            }
            Err(ObjectsError::Op { index, error: OpError::Invalid { .. } }) if self.is_counter(index) => {
                failed(InvalidRequest::Counter.into())
            }
            Err(error) => failed(kv_error(object, error)),
        }
    }

    /// Whether op `index` of the vector moves a counter of the caller's.
    fn is_counter(&self, index: u32) -> bool {
        let own = (index as usize).checked_sub(1).and_then(|index| self.ops.get(index));
        matches!(own, Some(ObjectOp::AddRow { key, .. } | ObjectOp::MaxRow { key, .. }) if key != WEIGHT_ROW)
    }

    fn done(&self, object: &ObjectName, results: &[OpResult]) -> BatchAnswer {
        let mut counters: Vec<i64> = results
            .iter()
            .filter_map(|result| if let OpResult::Counter(value) = result { Some(*value) } else { None })
            .collect();
        let estimate = if self.weight_change.is_some() { counters.pop() } else { None };
        if counters.len() != self.counters || estimate.is_some() != self.weight_change.is_some() {
            // The batch did take effect; only its counters' values are lost.
            tracing::error!(%object, "the answer to a batch has the wrong number of counters");
            counters.resize(self.counters, 0);
        }
        BatchAnswer::Done { counters, estimate }
    }
}

fn check_size(conditions: &[Condition], mutations: &[Mutation]) -> Result<(), InvalidRequest> {
    let rows = conditions.len() + mutations.len();
    let bytes = conditions
        .iter()
        .map(|c| c.row.key.len() + if let Require::Equals(value) = &c.require { value.len() } else { 0 })
        .chain(
            mutations
                .iter()
                .map(|m| m.place().1.len() + if let Mutation::Put { value, .. } = m { value.len() } else { 0 }),
        )
        .fold(0usize, usize::saturating_add);
    if rows > BATCH_ROWS_MAX || bytes > BATCH_BYTES_MAX {
        return Err(InvalidRequest::BatchTooLarge { rows, bytes });
    }
    Ok(())
}

/// An error of the cluster, where it has no meaning of its own in the protocol. Not for `OutcomeUnknown` of a write
/// that a caller could see.
pub(crate) fn kv_error(object: &ObjectName, error: ObjectsError) -> KvError {
    match error {
        ObjectsError::OutcomeUnknown => KvError::Unanswered,
        ObjectsError::Full => KvError::ClusterFull,
        ObjectsError::TooLarge { bytes } => InvalidRequest::BatchTooLarge { rows: 0, bytes }.into(),
        ObjectsError::Fenced => KvError::Fenced,
        ObjectsError::PoolGone => KvError::PoolGone,
        ObjectsError::Op { error: OpError::Unreadable, .. } => KvError::Unreadable { object: object.clone() },
        ObjectsError::Op { .. } => {
            KvError::Corrupt { object: object.clone(), reason: "an op failed that cannot fail on such an object" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &'static str) -> Mutation {
        Mutation::Put { row: RowKey::new(1, key), value: Bytes::from_static(value.as_bytes()) }
    }

    fn batch(conditions: &[Condition], mutations: &[Mutation]) -> Result<Batch, InvalidRequest> {
        Batch::new(Affinity::S3, b"k\x00\x01", conditions, mutations, Purpose::Change, &Config::default())
    }

    #[test]
    fn rows_of_another_route_are_refused() {
        assert!(batch(&[], &[put("k\x00\x01", "v"), put("k\x00\x01x", "v")]).is_ok());
        assert_eq!(batch(&[], &[put("l\x00\x01", "v")]).err(), Some(InvalidRequest::ForeignRoute));
        let escaping = Mutation::DeleteRange { space: 1, start: b"k\x00\x01".to_vec(), end: b"l".to_vec() };
        assert_eq!(batch(&[], &[escaping]).err(), Some(InvalidRequest::ForeignRoute));
        let reserved = Mutation::Delete { row: RowKey::new(SPACE_RESERVED, "k\x00\x01") };
        assert_eq!(batch(&[], &[reserved]).err(), Some(InvalidRequest::ReservedSpace { space: SPACE_RESERVED }));
    }

    #[test]
    fn mutations_keep_their_order_and_neighbours_share_an_op() {
        let delete = Mutation::Delete { row: RowKey::new(1, "k\x00\x01a") };
        let batch = batch(&[], &[put("k\x00\x01a", "1"), put("k\x00\x01b", "2"), delete, put("k\x00\x01a", "3")]);
        let ops = batch.expect("valid").ops(4);
        let kinds: Vec<_> = ops.iter().map(|op| format!("{op:?}").chars().take(8).collect::<String>()).collect();
        assert_eq!(kinds, ["AssertAt", "PutRows ", "DeleteRo", "PutRows ", "AddRow {"]);
    }

    #[test]
    fn a_failed_op_is_told_by_its_place() {
        let object = ObjectName::new("o").expect("valid");
        let row = RowKey::new(1, "k\x00\x01");
        let condition = Condition { row, require: Require::Absent };
        let batch = batch(&[condition], &[put("k\x00\x01", "v")]).expect("valid");
        let failed = |index| {
            let current = Some(Blob(Bytes::from_static(b"there")));
            batch.answer(&object, Err(ObjectsError::Op { index, error: OpError::AssertFailed { current } }))
        };
        assert_eq!(failed(0), BatchAnswer::Stale);
        let current = Some(Bytes::from_static(b"there"));
        assert_eq!(failed(1), BatchAnswer::Failed(BatchError::Condition { index: 0, current }));
        let unknown = batch.answer(&object, Err(ObjectsError::OutcomeUnknown));
        assert_eq!(unknown, BatchAnswer::Failed(BatchError::OutcomeUnknown));
    }
}
