//! Objects as rows: loading, and the one place where an object becomes visible, is replaced or goes.
//!
//! Every change of a key is one batch that puts the blobs of what it replaces into a garbage row: nothing leaks and
//! nothing is lost. A conditional change holds the object row to what was seen, so it is linearizable. Any other holds
//! only the row that names the blobs to what was seen, and guesses at first that there is none: replacing or deleting a
//! small object takes one op, and a wrong guess is answered with that row.

use bytes::Bytes;

use crate::backend::{BackendError, BatchError, Condition, Mutation, Purpose, TableId};
use crate::conditional::WriteCondition;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Gateway;
use crate::row::{
    BlobRef, DataRef, DataRow, DataRowRef, GcRow, ObjectRow, PartRef, Payload, Row as _, route, row_key, space,
};
use crate::sabotage::{Sabotage, breaks};

/// How often a change is tried against concurrent ones. Each failure means that another writer succeeded.
const ATTEMPTS_MAX: usize = 64;

/// An object with what its data row holds.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// The object row.
    pub row: ObjectRow,
    /// The data row's payload, if it was loaded.
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

/// Loads an object with what its data row holds. The two are of the same write.
pub(crate) async fn load(gateway: &Gateway, table: TableId, key: &str) -> S3Result<Option<Loaded>> {
    let route = route(key);
    let keys = [space::OBJECTS, space::DATA, space::EXTERNAL].map(|space| row_key(space, &route, &[]));
    for _ in 0..ATTEMPTS_MAX {
        let mut rows = gateway.backend.tables.get(table, &route, keys.to_vec()).await?.into_iter();
        let (object, data, external) = (rows.next().flatten(), rows.next().flatten(), rows.next().flatten());
        let Some(object) = object else { return Ok(None) };
        let row = ObjectRow::from_bytes(&object)?;
        let data = match row.data {
            DataRef::Inline => data,
            DataRef::Blob(_) | DataRef::Parts(_) => external,
        };
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
    /// The data row's payload.
    pub payload: Payload,
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

/// What a writer knows of a key's rows.
#[derive(Debug, Default)]
struct Seen {
    /// The object row.
    object: Option<Bytes>,
    /// The row that names its blobs.
    external: Option<Bytes>,
}

impl Seen {
    /// Reads both.
    async fn read(gateway: &Gateway, table: TableId, route: &[u8]) -> S3Result<Seen> {
        let keys = [space::OBJECTS, space::EXTERNAL].map(|space| row_key(space, route, &[]));
        let mut rows = gateway.backend.tables.get(table, route, keys.to_vec()).await?.into_iter();
        Ok(Seen { object: rows.next().flatten(), external: rows.next().flatten() })
    }

    /// What a writer begins with that will be told, by a failed condition, what is there instead.
    async fn first(gateway: &Gateway, table: TableId, route: &[u8], condition: &WriteCondition) -> S3Result<Seen> {
        match condition {
            WriteCondition::Any | WriteCondition::Absent => Ok(Seen::default()),
            WriteCondition::Match(_) => Seen::read(gateway, table, route).await,
        }
    }

    /// What is seen after the first condition failed, because the row is `now` this.
    async fn after(
        now: Option<Bytes>,
        gateway: &Gateway,
        table: TableId,
        route: &[u8],
        condition: &WriteCondition,
    ) -> S3Result<Seen> {
        match condition {
            WriteCondition::Any => Ok(Seen { object: None, external: now }),
            WriteCondition::Absent => Ok(Seen { object: now, external: None }),
            WriteCondition::Match(_) => Seen::read(gateway, table, route).await,
        }
    }

    /// Whether this write is what is there: the storage repeated a batch that it had executed, because its answer was
    /// lost, and took the first execution for somebody else's.
    fn is_written_by(&self, version: [u8; 16]) -> S3Result<bool> {
        let object = self.object.as_deref().map(ObjectRow::from_bytes).transpose()?;
        let external = self.external.as_deref().map(DataRow::from_bytes).transpose()?;
        Ok(object.is_some_and(|row| row.version == version) || external.is_some_and(|row| row.version == version))
    }

    /// Judges the client's condition.
    fn check(&self, condition: &WriteCondition) -> S3Result<()> {
        if *condition == WriteCondition::Any {
            return Ok(());
        }
        let object = self.object.as_deref().map(ObjectRow::from_bytes).transpose()?;
        condition.check(object.as_ref().map(|object| object.etag.as_str()))
    }

    /// What must hold for a change to be what was decided: a writer that replaces anything needs to know the blobs, any
    /// other the object (whose blobs change only with it).
    fn unchanged(&self, route: &[u8], condition: &WriteCondition) -> Condition {
        let (space, value) = match condition {
            WriteCondition::Any => (space::EXTERNAL, &self.external),
            WriteCondition::Absent | WriteCondition::Match(_) => (space::OBJECTS, &self.object),
        };
        let key = row_key(space, route, &[]);
        match value {
            Some(value) => Condition::Equals(key, value.clone()),
            None => Condition::Absent(key),
        }
    }

    /// The blobs that become garbage.
    fn blobs(&self) -> S3Result<Vec<BlobRef>> {
        match &self.external {
            Some(value) => Ok(DataRow::from_bytes(value)?.payload.blobs()),
            None => Ok(Vec::new()),
        }
    }
}

/// A mutation that hands blobs to the collector.
pub(crate) fn collect(gateway: &Gateway, route: &[u8], blobs: Vec<BlobRef>) -> Option<Mutation> {
    if blobs.is_empty() {
        return None;
    }
    let row = GcRow { blobs, since_ms: gateway.clock.now_ms(), intent: false };
    Some(Mutation::Put(row_key(space::GC, route, &gateway.runtime.unique_id()), row.to_bytes()))
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
    let data = DataRowRef { version: new.row.version, payload: &new.payload }.to_bytes();
    let (object, place) = (row_key(space::OBJECTS, &route, &[]), row_key(new.payload.space(), &route, &[]));
    let puts = [Mutation::Put(object, new.row.to_bytes()), Mutation::Put(place, data)];
    let mut seen = Seen::first(gateway, table, &route, condition).await?;
    for _ in 0..ATTEMPTS_MAX {
        seen.check(condition)?;
        // Deletions before puts: neighbours of a kind are one step of the op.
        let mut mutations = Vec::with_capacity(new.also.len() + 4);
        if new.payload.space() != space::DATA {
            mutations.push(Mutation::Delete(row_key(space::DATA, &route, &[])));
        } else if seen.external.is_some() {
            mutations.push(Mutation::Delete(row_key(space::EXTERNAL, &route, &[])));
        }
        mutations.extend(new.also.iter().cloned());
        mutations.extend(puts.iter().cloned());
        mutations.extend(collect(gateway, &route, seen.blobs()?));
        let mut conditions = vec![seen.unchanged(&route, condition)];
        conditions.extend(new.guards.iter().cloned());
        if breaks(Sabotage::OldBlobDeletedFirst) {
            for blob in seen.blobs()? {
                gateway.backend.blobs.delete(blob.id, blob.stripes()).await?;
            }
        }
        match gateway.backend.tables.batch(table, &route, conditions, mutations, Purpose::Store).await {
            Ok(()) => return Ok(Outcome::Done),
            Err(BatchError::ConditionFailed { index: 0, current }) => {
                seen = Seen::after(current, gateway, table, &route, condition).await?;
                if seen.is_written_by(new.row.version)? {
                    return Ok(Outcome::Done);
                }
            }
            Err(BatchError::ConditionFailed { .. }) => return Ok(Outcome::GuardFailed),
            Err(BatchError::Backend(error @ BackendError::Unavailable(_))) => {
                // Perhaps it happened. A client that is told "perhaps" of a put-if-absent would lose to itself.
                return match Seen::read(gateway, table, &route).await {
                    Ok(seen) if seen.is_written_by(new.row.version)? => Ok(Outcome::Done),
                    Ok(_) | Err(_) => Err(error.into()),
                };
            }
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
    let mut seen = Seen::first(gateway, table, &route, condition).await?;
    for _ in 0..ATTEMPTS_MAX {
        seen.check(condition)?;
        let rows = [space::OBJECTS, space::DATA, space::EXTERNAL];
        let mut mutations: Vec<_> =
            rows.into_iter().map(|space| Mutation::Delete(row_key(space, &route, &[]))).collect();
        if !breaks(Sabotage::DeleteLeavesBlob) {
            mutations.extend(collect(gateway, &route, seen.blobs()?));
        }
        let unchanged = vec![seen.unchanged(&route, condition)];
        match gateway.backend.tables.batch(table, &route, unchanged, mutations, Purpose::FreeSpace).await {
            Ok(()) => return Ok(()),
            Err(BatchError::ConditionFailed { current, .. }) => {
                seen = Seen::after(current, gateway, table, &route, condition).await?;
            }
            Err(BatchError::Backend(error)) => return Err(error.into()),
        }
    }
    Err(busy(condition))
}
