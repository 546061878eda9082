//! Counting a group and splitting it (ADR 0002).
//!
//! | step | object | op vector | from here on |
//! |---|---|---|---|
//! | 1 freeze | G | version n → `Splitting{mid, N}`, n+1 | G's rows stand still; reads go on |
//! | 2 copy | N | create as `Building`; put G's rows ≥ mid, page by page, while version 1 | N can be rebuilt by anyone |
//! | 3 root | root | while `Open`: put row mid → N, if absent | lookups ≥ mid end at N, which waits |
//! | 4 cut | G | version n+1 → `Open` up to mid, n+2; delete rows ≥ mid | **committed**: N holds the rows |
//! | 5 open | N | version 1 → `Open`, 2 | N serves |
//!
//! A full cluster takes no first step, and all others: a group that stands still must not do so until there is room, because
//! its rows could not be deleted to make some. So all but the first also delete something, if only what they put.
//!
//! Every step is conditional on a version that exists once, and repeating it with the same condition does nothing or
//! the same. Any number of processes may be at any steps, stop between them, or have a step take effect late.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_wire::{Blob, ObjectOp, OpError, Row, RowCondition};

use crate::cache::KnownGroup;
use crate::error::KvError;
use crate::header::{GroupId, GroupState, Record, RootHeader, RootRow, RootState, TableId, assert_version, encoded};
use crate::key::{Affinity, GROUP_COUNT_ROW, SPACE_RESERVED, WEIGHT_ROW, physical, root_row_key, space_end, successor};
use crate::objects::Objects;
use crate::sabotage::{self, Sabotage};
use crate::shell::{Change, Patience, Shared, UNKNOWN_MAX, counter_value, page_of, root_row};
use crate::weight::{Census, Verdict};

/// Splits that a process runs in the background at a time. A split is a burst of 1 MiB reads and writes; four keep up
/// with any writer, since a group takes thousands of batches to become due again.
const BACKGROUND_SPLITS_MAX: usize = 4;

/// How a step of the protocol went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Done,
    /// Somebody was faster: look again.
    Overtaken,
}

impl<O: Objects> Shared<O> {
    /// Counts and splits a group when its estimate says that it is due.
    pub async fn split_if_due(self: &Arc<Self>, table: &TableId, affinity: Affinity, group: KnownGroup) {
        let limit = i64::try_from(self.config.weight_split).unwrap_or(i64::MAX);
        if group.estimate < limit.max(group.count_from) {
            return;
        }
        let Some(claim) = self.claim(group.id, BACKGROUND_SPLITS_MAX) else { return };
        let (shared, table) = (Arc::clone(self), table.clone());
        let work = async move {
            if let Err(error) = shared.consider_split(&table, affinity, &group).await {
                // Nobody waits for it; the next batch finds the group due again.
                tracing::warn!(%table, group = %group.id, %error, "a group could not be split");
            }
            drop(claim);
        };
        if self.config.split_in_background {
            self.objects.spawn(work);
        } else {
            work.await;
        }
    }

    /// Counts an open group, then splits it or corrects its estimate.
    pub async fn consider_split(
        self: &Arc<Self>,
        table: &TableId,
        affinity: Affinity,
        group: &KnownGroup,
    ) -> Result<(), KvError> {
        if group.header.state != GroupState::Open {
            return Ok(());
        }
        let Some((census, estimate)) = self.count(table, affinity, group).await? else { return Ok(()) };
        let total = i64::try_from(census.total()).unwrap_or(i64::MAX);
        let mut verdict = census.verdict(&group.header.start, estimate, &self.config);
        if matches!(verdict, Verdict::SplitAt(_)) && self.root_is_full(table).await? {
            tracing::error!(%table, "the table has as many groups as it may have and cannot be split further");
            verdict = Verdict::Keep;
        }
        let next = match &verdict {
            Verdict::SplitAt(mid) => group.header.split(mid, GroupId(self.objects.fresh_id())),
            Verdict::Correct => group.header.bumped(),
            Verdict::Keep => None,
        };
        let Some(next) = next else {
            // Not again before it has grown by half.
            let count_from = total.saturating_add(total / 2);
            self.cache.lock().estimated(table, group, estimate, count_from);
            return Ok(());
        };
        let mut ops = vec![assert_version(group.header.version)];
        ops.extend(next.set());
        ops.push(ObjectOp::AddRow { key: WEIGHT_ROW.to_vec(), delta: total.saturating_sub(estimate) });
        self.cache.lock().remove(table, group);
        if matches!(self.change(&table.group_object(group.id), ops).await?, Change::Done)
            && matches!(verdict, Verdict::SplitAt(_))
        {
            let frozen = KnownGroup { header: next.into(), ..group.clone() };
            self.finish_split(table, &frozen, &mut Patience::default()).await?;
        }
        Ok(())
    }

    /// The exact weight of a group while it has the version it was seen with, and its estimate before counting.
    async fn count(
        &self,
        table: &TableId,
        affinity: Affinity,
        group: &KnownGroup,
    ) -> Result<Option<(Census, i64)>, KvError> {
        let object = table.group_object(group.id);
        let mut census = Census::default();
        let mut estimate = None;
        let mut start = Vec::new();
        loop {
            let ops = vec![
                assert_version(group.header.version),
                ObjectOp::GetRows { keys: vec![WEIGHT_ROW.to_vec().into()] },
                self.scan_op(start, vec![SPACE_RESERVED]),
            ];
            let Some(operated) = self.read(&object, ops).await? else { return Ok(None) };
            if estimate.is_none() {
                estimate = Some(counter_value(&object, &operated, 1)?);
            }
            let (rows, more) = page_of(&object, &operated, 2)?;
            for Row { key, value } in rows {
                let route = affinity.route(key.get(1..).unwrap_or_default());
                census.count(route, self.config.row_weight(key.len(), value.len()));
            }
            match rows.last() {
                Some(last) if more => start = successor(&last.key),
                _ => return Ok(Some((census, estimate.unwrap_or(0)))),
            }
        }
    }

    async fn root_is_full(&self, table: &TableId) -> Result<bool, KvError> {
        let object = table.root_object();
        let ops = vec![ObjectOp::GetRows { keys: vec![GROUP_COUNT_ROW.to_vec().into()] }];
        match self.read(&object, ops).await? {
            Some(operated) => Ok(counter_value(&object, &operated, 0)? >= i64::from(self.config.groups_max)),
            None => Err(KvError::TableMissing),
        }
    }

    fn scan_op(&self, start: Vec<u8>, end: Vec<u8>) -> ObjectOp {
        let (limit_rows, limit_bytes) = (self.config.page_rows, self.config.page_bytes);
        ObjectOp::ScanRows { start, end: Some(end), limit_rows, limit_bytes }
    }

    /// Does steps 2 to 5 for a group seen frozen; returns when they are done or somebody was faster.
    pub async fn finish_split(
        &self,
        table: &TableId,
        frozen: &KnownGroup,
        patience: &mut Patience,
    ) -> Result<(), KvError> {
        let GroupState::Splitting { mid, new } = &frozen.header.state else { return Ok(()) };
        if self.create_child(table, frozen, *new).await? == Step::Overtaken {
            return Ok(());
        }
        let Some((spaces, weight)) = self.copy_rows(table, frozen, mid, *new).await? else { return Ok(()) };
        if !sabotage::breaks(Sabotage::RootRowForgotten) {
            self.put_root_row(table, mid, *new, patience).await?;
        }
        if sabotage::breaks(Sabotage::OpenBeforeCut)
            && let Some(child) = self.read_group(table, *new).await?
        {
            self.open_child(table, &child).await?;
        }
        if self.cut(table, frozen, mid, &spaces, weight).await? == Step::Done
            && let Some(child) = frozen.header.child(frozen.id)
        {
            let child = KnownGroup { id: *new, header: child.into(), estimate: 0, count_from: 0 };
            self.open_child(table, &child).await?;
        }
        Ok(())
    }

    /// Step 2, its beginning. An existing group is as good as a new one.
    async fn create_child(&self, table: &TableId, frozen: &KnownGroup, new: GroupId) -> Result<Step, KvError> {
        let Some(child) = frozen.header.child(frozen.id) else { return Ok(Step::Overtaken) };
        let mut ops = vec![ObjectOp::Create { exclusive: true }];
        ops.extend(child.replace());
        self.change_surely(table, new, ops).await.map(|_| Step::Done)
    }

    /// Step 2: copies the rows from `mid` on, of all spaces. Answers which spaces have such rows and what they weigh,
    /// or `None` when the split is past this step already.
    async fn copy_rows(
        &self,
        table: &TableId,
        frozen: &KnownGroup,
        mid: &[u8],
        new: GroupId,
    ) -> Result<Option<(Vec<u8>, u64)>, KvError> {
        let object = table.group_object(frozen.id);
        let mut spaces = Vec::new();
        let mut weight = 0;
        // Spaces are found by looking: callers need not say which there are, and later versions may add some.
        let mut space_next = 0;
        while space_next != SPACE_RESERVED {
            let first = ObjectOp::ScanRows {
                start: vec![space_next],
                end: Some(vec![SPACE_RESERVED]),
                limit_rows: 1,
                limit_bytes: self.config.page_bytes,
            };
            let ops = vec![assert_version(frozen.header.version), first];
            let Some(operated) = self.read(&object, ops).await? else { return Ok(None) };
            let (rows, _) = page_of(&object, &operated, 1)?;
            let Some(space) = rows.first().and_then(|row| row.key.first().copied()) else { break };
            match self.copy_space(table, frozen, (space, mid), new).await? {
                None => return Ok(None),
                Some(0) => {}
                Some(copied) => {
                    spaces.push(space);
                    weight += copied;
                }
            }
            space_next = match sabotage::breaks(Sabotage::CopyForgetsSpaces) {
                false => space.saturating_add(1),
                true => SPACE_RESERVED,
            };
        }
        let counted = i64::try_from(weight).unwrap_or(i64::MAX).to_le_bytes();
        let estimate = Row { key: WEIGHT_ROW.to_vec(), value: Blob(Bytes::copy_from_slice(&counted)) };
        let fresh = ObjectOp::DeleteRows { keys: vec![WEIGHT_ROW.to_vec().into()] };
        let ops = vec![assert_version(1), fresh, ObjectOp::PutRows { rows: vec![estimate] }];
        match self.change_surely(table, new, ops).await? {
            Step::Done => Ok(Some((spaces, weight))),
            Step::Overtaken => Ok(None),
        }
    }

    /// Copies the rows of a space from `mid` on and answers their weight; `None` as in [`Self::copy_rows`].
    async fn copy_space(
        &self,
        table: &TableId,
        frozen: &KnownGroup,
        (space, mid): (u8, &[u8]),
        new: GroupId,
    ) -> Result<Option<u64>, KvError> {
        let object = table.group_object(frozen.id);
        let mut weight = 0;
        let mut start = physical(space, mid);
        loop {
            let ops = vec![assert_version(frozen.header.version), self.scan_op(start, space_end(space))];
            let Some(operated) = self.read(&object, ops).await? else { return Ok(None) };
            let (rows, more) = page_of(&object, &operated, 1)?;
            let Some(last) = rows.last() else { return Ok(Some(weight)) };
            weight += rows.iter().map(|row| self.config.row_weight(row.key.len(), row.value.len())).sum::<u64>();
            start = successor(&last.key);
            let building = match sabotage::breaks(Sabotage::CopyIgnoresVersion) {
                false => assert_version(1),
                true => ObjectOp::AssertExists,
            };
            // A page ends with the row that fills it; a full cluster takes no more at once than one such row may have.
            for rows in pieces(rows, self.config.page_bytes as usize) {
                // Deleted and put, because what is to free space must delete something.
                let keys = rows.last().map(|row| row.key.clone().into()).into_iter().collect();
                let put =
                    vec![building.clone(), ObjectOp::DeleteRows { keys }, ObjectOp::PutRows { rows: rows.to_vec() }];
                if self.change_surely(table, new, put).await? == Step::Overtaken {
                    return Ok(None);
                }
            }
            if !more || sabotage::breaks(Sabotage::CopyStopsEarly) {
                return Ok(Some(weight));
            }
        }
    }

    /// Step 3. Waits while somebody tries to drop the table: the set of groups must then stand still.
    async fn put_root_row(
        &self,
        table: &TableId,
        mid: &[u8],
        new: GroupId,
        patience: &mut Patience,
    ) -> Result<(), KvError> {
        let object = table.root_object();
        let row_key = root_row_key(mid);
        loop {
            patience.round()?;
            let root = match self.read_root(table).await? {
                // Others finished this split, and dropped the table.
                None => return Err(KvError::TableMissing),
                Some(RootHeader { state: RootState::Dropped, .. }) => return Err(KvError::TableGone),
                Some(root) => root,
            };
            if root.state == RootState::Dropping {
                self.meet_dropping_root(table, &root, patience).await?;
                continue;
            }
            let row = Row { key: row_key.clone(), value: Blob(encoded(&RootRow { group: new })) };
            let ops = vec![
                assert_version(root.version),
                ObjectOp::AssertRow { key: row_key.clone(), condition: RowCondition::Absent },
                ObjectOp::DeleteRows { keys: vec![row_key.clone().into()] }, // there is none: for the sake of the next
                ObjectOp::PutRows { rows: vec![row] },
                ObjectOp::AddRow { key: GROUP_COUNT_ROW.to_vec(), delta: 1 },
            ];
            match self.change_freeing(&object, ops).await? {
                Change::Done => return Ok(()),
                Change::Lost | Change::Unknown => {}
                Change::Failed { error: OpError::AssertFailed { current: Some(present) }, .. } => {
                    if root_row(&object, present.as_ref())?.group == new {
                        return Ok(());
                    }
                    return Err(KvError::Corrupt { object, reason: "two groups start at the same key" });
                }
                Change::Failed { .. } => {}
            }
        }
    }

    /// Step 4. Only after steps 2 and 3 were seen done.
    async fn cut(
        &self,
        table: &TableId,
        frozen: &KnownGroup,
        mid: &[u8],
        spaces: &[u8],
        weight: u64,
    ) -> Result<Step, KvError> {
        let Some(cut) = frozen.header.cut() else { return Ok(Step::Overtaken) };
        let mut ops = vec![assert_version(frozen.header.version)];
        ops.extend(cut.replace());
        ops.extend(
            spaces
                .iter()
                .map(|space| ObjectOp::DeleteRowRange { start: physical(*space, mid), end: Some(space_end(*space)) }),
        );
        let delta = i64::try_from(weight).unwrap_or(i64::MAX).saturating_neg();
        ops.push(ObjectOp::AddRow { key: WEIGHT_ROW.to_vec(), delta });
        let step = self.change_surely(table, frozen.id, ops).await?;
        if step == Step::Done {
            tracing::debug!(%table, group = %frozen.id, bytes = weight, "group split");
        }
        Ok(step)
    }

    /// Step 5. Right only after the parent was seen cut.
    pub async fn open_child(&self, table: &TableId, child: &KnownGroup) -> Result<(), KvError> {
        let Some(opened) = child.header.opened() else { return Ok(()) };
        let mut ops = vec![assert_version(child.header.version)];
        ops.extend(opened.replace());
        self.change_surely(table, child.id, ops).await.map(|_| ())
    }

    /// A change that does the same when it is done twice, repeated until its outcome is known. When an earlier try of
    /// ours was the one that was faster, that reads as `Overtaken`: the caller looks again.
    async fn change_surely(&self, table: &TableId, group: GroupId, ops: Vec<ObjectOp>) -> Result<Step, KvError> {
        let object = table.group_object(group);
        for _ in 0..UNKNOWN_MAX {
            match self.change_freeing(&object, ops.clone()).await? {
                Change::Done => return Ok(Step::Done),
                Change::Lost => return Ok(Step::Overtaken),
                Change::Failed { .. } => {
                    return Err(KvError::Corrupt { object, reason: "an op failed that has no condition" });
                }
                Change::Unknown => {}
            }
        }
        Err(KvError::Unanswered)
    }
}

/// Cuts rows into pieces of so many bytes at most, or of one row.
fn pieces(mut rows: &[Row], bytes_max: usize) -> Vec<&[Row]> {
    let mut pieces = Vec::new();
    while !rows.is_empty() {
        let mut bytes = 0;
        let fits = rows.iter().take_while(|row| {
            bytes += row.key.len() + row.value.0.len();
            bytes <= bytes_max
        });
        let (piece, rest) = rows.split_at(fits.count().max(1));
        pieces.push(piece);
        rows = rest;
    }
    pieces
}
