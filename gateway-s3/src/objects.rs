//! Objects as rows: loading, and the one place where an object becomes visible, is replaced or goes.
//!
//! Every change of a key is one batch that holds the object row to what was seen, so conditional writes are
//! linearizable, and that puts the blobs of what it replaces into a garbage row: nothing leaks and nothing is lost.

use bytes::Bytes;

use crate::backend::{BatchError, Condition, Mutation, TableId};
use crate::conditional::WriteCondition;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Gateway;
use crate::row::{
    BlobRef, DataRef, DataRow, DataRowRef, GcRow, ObjectRow, PartRef, Payload, Row as _, route, row_key, space,
    unique_id,
};

/// How often a change is tried against concurrent ones. Each failure means that another writer succeeded.
const ATTEMPTS_MAX: usize = 64;

/// An object with what its data row holds.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// The object row.
    pub row: ObjectRow,
    /// The data row's payload; there unless the object is one blob.
    pub payload: Option<Payload>,
}

impl Loaded {
    /// Its parts, if it was uploaded in parts.
    pub fn parts(&self) -> Option<&[PartRef]> {
        match &self.payload {
            Some(Payload::Parts(parts)) => Some(parts),
            _ => None,
        }
    }
}

/// Loads an object's row.
pub(crate) async fn load_row(gateway: &Gateway, table: TableId, key: &str) -> S3Result<Option<(ObjectRow, Bytes)>> {
    let route = route(key);
    let rows = gateway.backend.tables.get(table, &route, vec![row_key(space::OBJECTS, &route, &[])]).await?;
    let Some(value) = rows.into_iter().next().flatten() else { return Ok(None) };
    Ok(Some((ObjectRow::from_bytes(&value)?, value)))
}

/// Loads an object with its data row. The two are of the same write.
pub(crate) async fn load(gateway: &Gateway, table: TableId, key: &str) -> S3Result<Option<Loaded>> {
    let route = route(key);
    let keys = vec![row_key(space::OBJECTS, &route, &[]), row_key(space::DATA, &route, &[])];
    for _ in 0..ATTEMPTS_MAX {
        let mut rows = gateway.backend.tables.get(table, &route, keys.clone()).await?.into_iter();
        let (object, data) = (rows.next().flatten(), rows.next().flatten());
        let Some(object) = object else { return Ok(None) };
        let row = ObjectRow::from_bytes(&object)?;
        if matches!(row.data, DataRef::Blob(_)) {
            return Ok(Some(Loaded { row, payload: None }));
        }
        let Some(data) = data else { continue };
        let data = DataRow::from_bytes(&data)?;
        if data.version == row.version {
            return Ok(Some(Loaded { row, payload: Some(data.payload) }));
        }
    }
    Err(Code::OperationAborted.into())
}

/// What is to become visible.
pub(crate) struct NewObject {
    /// The object row.
    pub row: ObjectRow,
    /// The data row's payload, unless the object is one blob.
    pub payload: Option<Payload>,
    /// What else must hold.
    pub guards: Vec<Condition>,
    /// What else to change.
    pub also: Vec<Mutation>,
}

/// How a commit ended.
pub(crate) enum Outcome {
    /// The object is visible.
    Done,
    /// A guard did not hold: nothing was changed.
    GuardFailed,
}

/// The blobs of an object; `None` if its data row is of another write already.
async fn blobs_of(gateway: &Gateway, table: TableId, route: &[u8], row: &ObjectRow) -> S3Result<Option<Vec<BlobRef>>> {
    match &row.data {
        DataRef::Inline => Ok(Some(Vec::new())),
        DataRef::Blob(blob) => Ok(Some(vec![*blob])),
        DataRef::Parts(_) => {
            let rows = gateway.backend.tables.get(table, route, vec![row_key(space::DATA, route, &[])]).await?;
            let Some(value) = rows.into_iter().next().flatten() else { return Ok(None) };
            let data = DataRow::from_bytes(&value)?;
            match data.payload {
                Payload::Parts(parts) if data.version == row.version => {
                    Ok(Some(parts.iter().filter_map(|part| part.data.blob()).collect()))
                }
                _ => Ok(None),
            }
        }
    }
}

/// A mutation that hands blobs to the collector.
pub(crate) fn collect(gateway: &Gateway, route: &[u8], blobs: Vec<BlobRef>) -> Option<Mutation> {
    if blobs.is_empty() {
        return None;
    }
    let row = GcRow { blobs, since_ms: gateway.clock.now_ms(), intent: false };
    Some(Mutation::Put(row_key(space::GC, route, &unique_id()), row.to_bytes()))
}

/// Makes an object visible, replacing what is there.
///
/// # Errors
/// Those of `condition`; those of the storage, when it is unknown whether the object became visible.
pub(crate) async fn commit(
    gateway: &Gateway,
    table: TableId,
    key: &str,
    new: &NewObject,
    condition: &WriteCondition,
) -> S3Result<Outcome> {
    let route = route(key);
    let object_key = row_key(space::OBJECTS, &route, &[]);
    let data_key = row_key(space::DATA, &route, &[]);
    // Most keys are new: guess so, and learn from the failed condition what is there.
    let mut current = match condition {
        WriteCondition::Match(_) => load_row(gateway, table, key).await?.map(|(_, value)| value),
        WriteCondition::Any | WriteCondition::Absent => None,
    };
    let object_value = new.row.to_bytes();
    let data_value = new.payload.as_ref().map(|payload| DataRowRef { version: new.row.version, payload }.to_bytes());
    for _ in 0..ATTEMPTS_MAX {
        let old = current.as_deref().map(ObjectRow::from_bytes).transpose()?;
        condition.check(old.as_ref().map(|old| old.etag.as_str()))?;
        let mut mutations = vec![Mutation::Put(object_key.clone(), object_value.clone())];
        match &data_value {
            Some(value) => mutations.push(Mutation::Put(data_key.clone(), value.clone())),
            None if old.as_ref().is_some_and(|old| !matches!(old.data, DataRef::Blob(_))) => {
                mutations.push(Mutation::Delete(data_key.clone()));
            }
            None => {}
        }
        mutations.extend(new.also.iter().cloned());
        if let Some(old) = &old {
            let Some(blobs) = blobs_of(gateway, table, &route, old).await? else {
                current = load_row(gateway, table, key).await?.map(|(_, value)| value);
                continue;
            };
            mutations.extend(collect(gateway, &route, blobs));
        }
        let seen = match current {
            Some(value) => Condition::Equals(object_key.clone(), value),
            None => Condition::Absent(object_key.clone()),
        };
        let conditions: Vec<Condition> = std::iter::once(seen).chain(new.guards.iter().cloned()).collect();
        match gateway.backend.tables.batch(table, &route, conditions, mutations).await {
            Ok(()) => return Ok(Outcome::Done),
            Err(BatchError::ConditionFailed { index: 0, current: now }) => current = now,
            Err(BatchError::ConditionFailed { .. }) => return Ok(Outcome::GuardFailed),
            Err(BatchError::Backend(error)) => return Err(error.into()),
        }
    }
    Err(busy(condition))
}

fn busy(condition: &WriteCondition) -> S3Error {
    match condition {
        WriteCondition::Any => Code::SlowDown.into(),
        WriteCondition::Absent | WriteCondition::Match(_) => Code::ConditionalRequestConflict.into(),
    }
}

/// Removes an object. Removing one that is not there is a success unless `condition` says otherwise.
pub(crate) async fn remove(gateway: &Gateway, table: TableId, key: &str, condition: &WriteCondition) -> S3Result<()> {
    let route = route(key);
    let object_key = row_key(space::OBJECTS, &route, &[]);
    let mut current = load_row(gateway, table, key).await?.map(|(_, value)| value);
    for _ in 0..ATTEMPTS_MAX {
        let old = current.as_deref().map(ObjectRow::from_bytes).transpose()?;
        condition.check(old.as_ref().map(|old| old.etag.as_str()))?;
        let (Some(old), Some(value)) = (old, current) else { return Ok(()) };
        let Some(blobs) = blobs_of(gateway, table, &route, &old).await? else {
            current = load_row(gateway, table, key).await?.map(|(_, value)| value);
            continue;
        };
        let mut mutations = vec![Mutation::Delete(object_key.clone())];
        if !matches!(old.data, DataRef::Blob(_)) {
            mutations.push(Mutation::Delete(row_key(space::DATA, &route, &[])));
        }
        mutations.extend(collect(gateway, &route, blobs));
        let seen = vec![Condition::Equals(object_key.clone(), value)];
        match gateway.backend.tables.batch(table, &route, seen, mutations).await {
            Ok(()) => return Ok(()),
            Err(BatchError::ConditionFailed { current: now, .. }) => current = now,
            Err(BatchError::Backend(error)) => return Err(error.into()),
        }
    }
    Err(busy(condition))
}
