//! The handles: [`Tables`] of a pool, and one [`Table`].

use std::sync::Arc;

use bytes::Bytes;
use holdfast_wire::{ObjectOp, OpResult};

use crate::batch::{Batch, BatchAnswer, Condition, Mutation, Purpose, check_row};
use crate::cache::KnownGroup;
use crate::error::{BatchError, InvalidRequest, KvError};
use crate::header::{TableId, assert_version};
use crate::key::{Affinity, RowKey, physical, space_end, successor};
use crate::locate::Intent;
use crate::objects::{Objects, Operated};
use crate::sabotage::{self, Sabotage};
use crate::shell::{Patience, Shared, page_of};
use crate::weight::Config;

/// The tables of one pool, as one process sees them. Cheap to clone; clones share their cache.
#[derive(Debug)]
pub struct Tables<O> {
    pub(crate) shared: Arc<Shared<O>>,
}

impl<O> Clone for Tables<O> {
    fn clone(&self) -> Tables<O> {
        Tables { shared: Arc::clone(&self.shared) }
    }
}

/// One table. Cheap to clone.
#[derive(Debug)]
pub struct Table<O> {
    shared: Arc<Shared<O>>,
    id: TableId,
    affinity: Affinity,
}

impl<O> Clone for Table<O> {
    fn clone(&self) -> Table<O> {
        Table { shared: Arc::clone(&self.shared), id: self.id.clone(), affinity: self.affinity }
    }
}

/// What a batch that took effect answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BatchReply {
    /// The new values of the counters, in the order of the `Add` and `Max` mutations.
    pub counters: Vec<i64>,
}

/// A part of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// Keys (without the space) and values, in order.
    pub rows: Vec<(Vec<u8>, Bytes)>,
    /// Where to go on; `None`: the scan is over. A page may be short, even empty, and have a `next`. It is a key and
    /// stays right whatever happens to the table in between.
    pub next: Option<Vec<u8>>,
}

/// The limits of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    /// At most this many rows.
    pub rows: u32,
    /// End the page with the row that makes keys and values reach so many bytes.
    pub bytes: u32,
}

impl<O: Objects> Tables<O> {
    /// Opens the tables in a pool.
    pub fn new(objects: O, config: Config) -> Tables<O> {
        Tables { shared: Arc::new(Shared::new(objects, config)) }
    }

    /// A handle to a table; asks nobody. Operations on a table that does not exist fail with
    /// [`KvError::TableMissing`], on a dropped one with [`KvError::TableGone`].
    #[must_use]
    pub fn table(&self, id: TableId, affinity: Affinity) -> Table<O> {
        Table { shared: Arc::clone(&self.shared), id, affinity }
    }
}

impl<O: Objects> Table<O> {
    /// The table's id.
    #[must_use]
    pub fn id(&self) -> &TableId {
        &self.id
    }

    /// Applies mutations to rows of one route, all or none, if all conditions hold: one op on one group.
    ///
    /// `route` is the rows' route or any key of it.
    ///
    /// # Errors
    /// [`BatchError::Condition`] names the first condition that does not hold. After [`BatchError::OutcomeUnknown`]
    /// the batch may have had its effect, or may have it later. After all others it had none and will have none.
    pub async fn batch(
        &self,
        route: &[u8],
        conditions: &[Condition],
        mutations: &[Mutation],
    ) -> Result<BatchReply, BatchError> {
        self.apply(route, conditions, mutations, Purpose::Change).await
    }

    /// As [`Table::batch`], for a batch that serves to free space: it deletes something for good, and puts no more than
    /// notes of what is left to be deleted. A full cluster takes it, and so does a group that is full.
    ///
    /// # Errors
    /// Those of [`Table::batch`].
    pub async fn batch_freeing(
        &self,
        route: &[u8],
        conditions: &[Condition],
        mutations: &[Mutation],
    ) -> Result<BatchReply, BatchError> {
        self.apply(route, conditions, mutations, Purpose::FreeSpace).await
    }

    async fn apply(
        &self,
        route: &[u8],
        conditions: &[Condition],
        mutations: &[Mutation],
        purpose: Purpose,
    ) -> Result<BatchReply, BatchError> {
        let route = self.affinity.route(route);
        let batch = Batch::new(self.affinity, route, conditions, mutations, purpose, &self.shared.config);
        let batch = batch.map_err(KvError::Invalid)?;
        let mut patience = Patience::default();
        let mut stale: Option<KnownGroup> = None;
        loop {
            patience.round()?;
            let mut group = self.locate(route, Intent::Write, stale.as_ref(), &mut patience).await?;
            if self.is_full(&group, &batch) {
                group = self.make_room(route, group, &batch, &mut patience).await?;
            }
            let object = self.id.group_object(group.id);
            let ops = batch.ops(group.header.version);
            let outcome = match purpose {
                Purpose::Change => self.shared.objects.operate(&object, ops).await,
                Purpose::FreeSpace => self.shared.objects.operate_freeing(&object, ops).await,
            };
            match batch.answer(&object, outcome) {
                BatchAnswer::Stale => stale = Some(group),
                BatchAnswer::Failed(error) => return Err(error),
                BatchAnswer::Done { counters, estimate } => {
                    if let Some(estimate) = estimate {
                        self.shared.cache.lock().estimated(&self.id, &group, estimate, group.count_from);
                        group.estimate = estimate;
                        self.shared.split_if_due(&self.id, self.affinity, group).await;
                    }
                    return Ok(BatchReply { counters });
                }
            }
        }
    }

    fn is_full(&self, group: &KnownGroup, batch: &Batch) -> bool {
        let limit = i64::try_from(self.shared.config.weight_max).unwrap_or(i64::MAX);
        !batch.makes_room && batch.weight_change.is_some_and(|change| change > 0) && group.estimate >= limit
    }

    /// Counts and splits a full group before the batch, which must wait for room.
    async fn make_room(
        &self,
        route: &[u8],
        group: KnownGroup,
        batch: &Batch,
        patience: &mut Patience,
    ) -> Result<KnownGroup, KvError> {
        self.shared.consider_split(&self.id, self.affinity, &group).await?;
        let group = self.locate(route, Intent::Write, Some(&group), patience).await?;
        if self.is_full(&group, batch) { Err(KvError::GroupFull) } else { Ok(group) }
    }

    /// The value of a row.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn get(&self, row: &RowKey) -> Result<Option<Bytes>, KvError> {
        let mut values = self.get_many(&row.key, std::slice::from_ref(row)).await?;
        Ok(values.pop().flatten())
    }

    /// The values of rows of one route, all at one moment.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn get_many(&self, route: &[u8], rows: &[RowKey]) -> Result<Vec<Option<Bytes>>, KvError> {
        let route = self.affinity.route(route);
        if rows.len() > crate::batch::BATCH_ROWS_MAX {
            return Err(InvalidRequest::BatchTooLarge { rows: rows.len(), bytes: 0 }.into());
        }
        for row in rows {
            check_row(row.space, &row.key)?;
            if self.affinity.route(&row.key) != route {
                return Err(InvalidRequest::ForeignRoute.into());
            }
        }
        let keys = rows.iter().map(|row| row.physical().into()).collect();
        let (group, operated) = self.read(route, ObjectOp::GetRows { keys }).await?;
        match operated.results.into_iter().nth(1) {
            Some(OpResult::RowValues(values)) if values.len() == rows.len() => {
                Ok(values.into_iter().map(|value| value.map(|blob| blob.0)).collect())
            }
            _ => Err(KvError::Corrupt {
                object: self.id.group_object(group.id),
                reason: "the answer to a get does not fit it",
            }),
        }
    }

    /// A page of the rows of `space` with keys in `start..end` (`end` `None`: to the last).
    ///
    /// A page shows one group at one moment: over a whole scan, each row that was there from its beginning to its end
    /// is seen once, each row that was absent all the time is not, and keys only grow.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn scan(&self, space: u8, start: &[u8], end: Option<&[u8]>, limit: PageLimit) -> Result<Page, KvError> {
        check_row(space, start)?;
        if limit.rows == 0 || limit.bytes == 0 {
            return Err(InvalidRequest::ZeroLimit.into());
        }
        if end.is_some_and(|end| end <= start) {
            return Ok(Page::default());
        }
        let scan = scan_op(space, start, end, limit);
        let (group, operated) = self.read(start, scan).await?;
        let (rows, more) = page_of(&self.id.group_object(group.id), &operated, 1)?;
        let group_end = group.header.end.as_deref().filter(|group_end| {
            end.is_none_or(|end| *group_end < end) && !sabotage::breaks(Sabotage::ScanSkipsNextGroup)
        });
        Ok(page(rows, more, group_end))
    }

    /// Adds to a counter row and answers its new value.
    ///
    /// # Errors
    /// [`BatchError`], as [`Table::batch`].
    pub async fn add(&self, row: RowKey, delta: i64) -> Result<i64, BatchError> {
        self.count(Mutation::Add { row, delta }).await
    }

    /// Raises a counter row to at least `value` and answers its new value.
    ///
    /// # Errors
    /// [`BatchError`], as [`Table::batch`].
    pub async fn max(&self, row: RowKey, value: i64) -> Result<i64, BatchError> {
        self.count(Mutation::Max { row, value }).await
    }

    async fn count(&self, mutation: Mutation) -> Result<i64, BatchError> {
        let route = match &mutation {
            Mutation::Add { row, .. } | Mutation::Max { row, .. } => row.key.clone(),
            _ => Vec::new(),
        };
        let reply = self.batch(&route, &[], &[mutation]).await?;
        Ok(reply.counters.first().copied().unwrap_or(0))
    }

    async fn locate(
        &self,
        key: &[u8],
        intent: Intent,
        stale: Option<&KnownGroup>,
        patience: &mut Patience,
    ) -> Result<KnownGroup, KvError> {
        self.shared.locate((&self.id, self.affinity), key, intent, stale, patience).await
    }

    /// Executes a reading op on the group that serves `key`; its result is the second.
    async fn read(&self, key: &[u8], op: ObjectOp) -> Result<(KnownGroup, Operated), KvError> {
        let mut patience = Patience::default();
        let mut stale = None;
        loop {
            patience.round()?;
            let group = self.locate(key, Intent::Read, stale.as_ref(), &mut patience).await?;
            let ops = vec![assert_version(group.header.version), op.clone()];
            match self.shared.read(&self.id.group_object(group.id), ops).await? {
                Some(operated) => return Ok((group, operated)),
                None => stale = Some(group),
            }
        }
    }
}

/// The op that reads a page.
pub(crate) fn scan_op(space: u8, start: &[u8], end: Option<&[u8]>, limit: PageLimit) -> ObjectOp {
    ObjectOp::ScanRows {
        start: physical(space, start),
        end: Some(end.map_or_else(|| space_end(space), |end| physical(space, end))),
        limit_rows: limit.rows,
        limit_bytes: limit.bytes,
    }
}

/// A page from what a group answered; `group_end` is where the scan goes on after it, if it does.
pub(crate) fn page(rows: &[holdfast_wire::Row], more: bool, group_end: Option<&[u8]>) -> Page {
    let rows: Vec<_> = rows
        .iter()
        .filter_map(|row| row.key.split_first().map(|(_, key)| (key.to_vec(), row.value.0.clone())))
        .collect();
    let next = match rows.last() {
        Some((last, _)) if more => Some(successor(last)),
        _ => group_end.map(<[u8]>::to_vec),
    };
    Page { rows, next }
}
