//! Making and dropping tables.
//!
//! A drop is decided in the root object, and only there:
//!
//! | step | object | what |
//! |---|---|---|
//! | 1 | root | `Open` v → `Dropping` v+1: no group can be added |
//! | 2 | each group | `Open`, and asserted empty → `Dropping{v+1}`: frozen |
//! | 3 | root | `Dropping` v+1 → `Dropped`: **committed** – at this moment all groups are frozen and empty |
//! | or 3' | root | `Dropping` v+1 → `Open` v+2, by anyone: that attempt is over for ever, its groups are thawed by whoever meets them |
//!
//! Both 3 and 3' are conditional on v+1, so one of them happens. A step 2 that comes late freezes a group for an
//! attempt that is over; it is thawed. A full cluster takes all of these steps: dropping is deleting. Rows of spaces that need not be empty stay readable until the purge.

use futures::StreamExt;
use holdfast_wire::{Blob, ObjectOp, Row};

use crate::batch::check_row;
use crate::cache::KnownGroup;
use crate::error::{DropError, InvalidRequest, KvError};
use crate::header::{
    GroupHeader, GroupId, GroupState, Record, RootHeader, RootRow, RootState, TableId, assert_version, encoded,
};
use crate::key::{Affinity, GROUP_COUNT_ROW, root_row_key, space_end};
use crate::objects::Objects;
use crate::sabotage::{self, Sabotage};
use crate::shell::{Change, Patience, UNKNOWN_MAX, page_of};
use crate::table::{Page, PageLimit, Tables, page, scan_op};

/// Groups that are visited at a time: keeps a drop of a thousand groups below a second.
const VISITS_MAX: usize = 16;

/// Whether a table was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is new.
    New,
    /// There is one of this id already (or was: a dropped table counts until it is purged).
    AlreadyThere,
}

/// How freezing one group went.
enum Frozen {
    Yes,
    NotEmpty {
        space: u8,
    },
    /// It is in the middle of something.
    Unready,
}

impl<O: Objects> Tables<O> {
    /// Makes a table. Making it again is harmless.
    ///
    /// # Errors
    /// [`KvError`]; after [`KvError::Unanswered`] the table may be there, now or later.
    pub async fn create(&self, id: &TableId, affinity: Affinity) -> Result<Created, KvError> {
        let shared = &self.shared;
        if shared.read_root(id).await?.is_some() {
            return Ok(Created::AlreadyThere);
        }
        // The group first: a root always leads somewhere. One that loses the race below is removed again.
        let group = GroupId(shared.objects.fresh_id());
        let mut ops = vec![ObjectOp::Create { exclusive: true }];
        ops.extend(GroupHeader::first().set());
        if let Change::Unknown = shared.change(&id.group_object(group), ops).await? {
            return Err(KvError::Unanswered);
        }
        let row = Row { key: root_row_key(&[]), value: Blob(encoded(&RootRow { group })) };
        let mut ops = vec![ObjectOp::Create { exclusive: true }];
        ops.extend(RootHeader::first(affinity).set());
        ops.push(ObjectOp::PutRows { rows: vec![row] });
        ops.push(ObjectOp::AddRow { key: GROUP_COUNT_ROW.to_vec(), delta: 1 });
        match shared.change(&id.root_object(), ops).await? {
            Change::Done => Ok(Created::New),
            // Our group may be the one that the root leads to.
            Change::Unknown => Err(KvError::Unanswered),
            Change::Lost | Change::Failed { .. } => {
                shared.change(&id.group_object(group), vec![ObjectOp::Remove]).await?;
                Ok(Created::AlreadyThere)
            }
        }
    }

    /// Drops a table if `spaces` hold no row. From then on every operation on it fails with [`KvError::TableGone`];
    /// rows of other spaces can be read by [`Tables::dropped_rows`] until [`Tables::purge`]. Dropping a dropped table
    /// is harmless.
    ///
    /// # Errors
    /// [`DropError::NotEmpty`] when a row was found: it was there at some moment of the call. [`KvError::TableMissing`]
    /// when there is no such table. After [`KvError::Unanswered`] the table may be dropped, now or later.
    pub async fn drop_if_empty(&self, id: &TableId, spaces: &[u8]) -> Result<(), DropError> {
        for space in spaces {
            check_row(*space, &[]).map_err(KvError::Invalid)?;
        }
        let mut patience = Patience::default();
        loop {
            patience.round()?;
            let root = self.shared.read_root(id).await?.ok_or(KvError::TableMissing)?;
            match root.state {
                RootState::Dropped => return Ok(()),
                RootState::Dropping => self.shared.meet_dropping_root(id, &root, &mut patience).await?,
                RootState::Open => {
                    if self.groups_are_ready(id, &root, spaces, &mut patience).await?
                        && self.try_drop(id, &root, spaces).await?
                    {
                        self.shared.cache.lock().remove_table(id);
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Looks at all groups without freezing any: finds rows cheaply, and finishes what is under way.
    async fn groups_are_ready(
        &self,
        id: &TableId,
        root: &RootHeader,
        spaces: &[u8],
        patience: &mut Patience,
    ) -> Result<bool, DropError> {
        let Some(groups) = self.shared.list_groups(id, root.version).await? else { return Ok(false) };
        let mut ready = true;
        for group in groups {
            let Some(group) = self.shared.read_group(id, group).await? else { return Ok(false) };
            if group.header.state != GroupState::Open {
                match self.shared.meet(id, &group, patience).await {
                    Ok(()) | Err(KvError::TableGone | KvError::TableMissing) => {} // somebody else dropped it: the root tells
                    Err(error) => return Err(error.into()),
                }
                ready = false;
                continue;
            }
            let mut ops = vec![assert_version(group.header.version)];
            ops.extend(spaces.iter().map(|space| ObjectOp::ScanRows {
                start: vec![*space],
                end: Some(space_end(*space)),
                limit_rows: 1,
                limit_bytes: 1,
            }));
            let object = id.group_object(group.id);
            let Some(operated) = self.shared.read(&object, ops).await? else { return Ok(false) };
            for (index, space) in spaces.iter().enumerate() {
                if !page_of(&object, &operated, 1 + index)?.0.is_empty() {
                    return Err(DropError::NotEmpty { space: *space });
                }
            }
        }
        Ok(ready)
    }

    /// One attempt; `false`: begin anew.
    async fn try_drop(&self, id: &TableId, open: &RootHeader, spaces: &[u8]) -> Result<bool, DropError> {
        let shared = &self.shared;
        let Some(dropping) = open.with_state(RootState::Dropping) else { return Ok(false) };
        // With an unknown outcome the attempt, if it began, is treated as somebody else's.
        if !matches!(shared.set_root_state(id, open, RootState::Dropping).await?, Change::Done) {
            return Ok(false);
        }
        let Some(groups) = shared.list_groups(id, dropping.version).await? else { return Ok(false) };
        let mut visits = futures::stream::iter(groups)
            .map(|group| self.freeze(id, group, dropping.version, spaces))
            .buffer_unordered(VISITS_MAX);
        let mut obstacle = None;
        while let Some(visit) = visits.next().await {
            match visit {
                Ok(Frozen::Yes) => {}
                Ok(Frozen::NotEmpty { space }) => obstacle = Some(Err(DropError::NotEmpty { space })),
                Ok(Frozen::Unready) => obstacle = Some(Ok(false)),
                Err(error) => obstacle = Some(Err(error.into())),
            }
            if obstacle.is_some() {
                break;
            }
        }
        drop(visits);
        if let Some(outcome) = obstacle {
            // Should this not get through, whoever meets the attempt undoes it.
            shared.set_root_state(id, &dropping, RootState::Open).await?;
            return outcome;
        }
        self.commit_drop(id, &dropping).await
    }

    async fn commit_drop(&self, id: &TableId, dropping: &RootHeader) -> Result<bool, DropError> {
        if sabotage::breaks(Sabotage::DropIgnoresRootVersion)
            && let Some(root) = self.shared.read_root(id).await?
        {
            let mut dropped = root;
            dropped.state = RootState::Dropped;
            self.shared.change(&id.root_object(), dropped.set().into()).await?;
        }
        for _ in 0..UNKNOWN_MAX {
            match self.shared.set_root_state(id, dropping, RootState::Dropped).await? {
                Change::Done => return Ok(true),
                Change::Unknown => {}
                // Undone by somebody, or done by an earlier try of ours.
                Change::Lost | Change::Failed { .. } => {
                    return Ok(matches!(
                        self.shared.read_root(id).await?,
                        None | Some(RootHeader { state: RootState::Dropped, .. })
                    ));
                }
            }
        }
        Err(KvError::Unanswered.into())
    }

    async fn freeze(&self, id: &TableId, group: GroupId, root_version: u64, spaces: &[u8]) -> Result<Frozen, KvError> {
        let mut patience = Patience::default();
        loop {
            patience.round()?;
            let Some(group) = self.shared.read_group(id, group).await? else { return Ok(Frozen::Unready) };
            match group.header.state {
                GroupState::Dropping { root_version: of } if of == root_version => return Ok(Frozen::Yes),
                GroupState::Dropping { root_version: of } if of < root_version => self.shared.thaw(id, &group).await?,
                GroupState::Open => match self.freeze_open(id, &group, root_version, spaces).await? {
                    Change::Done => return Ok(Frozen::Yes),
                    Change::Lost | Change::Unknown => {}
                    // The asserts of emptiness follow that of the version.
                    Change::Failed { index, .. } => {
                        let space = (index as usize).checked_sub(1).and_then(|index| spaces.get(index));
                        return Ok(space.map_or(Frozen::Unready, |space| Frozen::NotEmpty { space: *space }));
                    }
                },
                _ => return Ok(Frozen::Unready),
            }
        }
    }

    async fn freeze_open(
        &self,
        id: &TableId,
        group: &KnownGroup,
        root_version: u64,
        spaces: &[u8],
    ) -> Result<Change, KvError> {
        let Some(frozen) = group.header.freeze(root_version) else { return Ok(Change::Lost) };
        let mut ops = vec![assert_version(group.header.version)];
        ops.extend(
            spaces
                .iter()
                .filter(|_| !sabotage::breaks(Sabotage::DropIgnoresRows))
                .map(|space| ObjectOp::AssertRowRangeEmpty { start: vec![*space], end: Some(space_end(*space)) }),
        );
        ops.extend(frozen.replace());
        self.shared.change_freeing(&id.group_object(group.id), ops).await
    }

    /// A page of the rows that a dropped table still holds, such as work left for a garbage collector.
    ///
    /// # Errors
    /// [`KvError::TableMissing`] when the table was purged, [`KvError::Contended`] when it is not dropped.
    pub async fn dropped_rows(&self, id: &TableId, space: u8, start: &[u8], limit: PageLimit) -> Result<Page, KvError> {
        check_row(space, start)?;
        if limit.rows == 0 || limit.bytes == 0 {
            return Err(InvalidRequest::ZeroLimit.into());
        }
        let (root, group) = self.shared.find_group(id, start).await?.ok_or(KvError::TableMissing)?;
        if root.state != RootState::Dropped {
            return Err(KvError::Contended { rounds: 0 });
        }
        let group = self.shared.read_group(id, group).await?.ok_or(KvError::TableMissing)?;
        let object = id.group_object(group.id);
        let scan = scan_op(space, start, None, limit);
        let operated = self.shared.read(&object, vec![scan]).await?.ok_or(KvError::TableMissing)?;
        let (rows, more) = page_of(&object, &operated, 0)?;
        Ok(page(rows, more, group.header.end.as_deref()))
    }

    /// Removes what is left of a dropped table. Doing it again is harmless.
    ///
    /// # Errors
    /// [`KvError::Contended`] when the table is not dropped; others: to be repeated.
    pub async fn purge(&self, id: &TableId) -> Result<(), KvError> {
        let shared = &self.shared;
        let Some(root) = shared.read_root(id).await? else { return Ok(()) };
        if root.state != RootState::Dropped {
            return Err(KvError::Contended { rounds: 0 });
        }
        let groups = shared.list_groups(id, root.version).await?.unwrap_or_default();
        let mut visits = futures::stream::iter(groups)
            .map(|group| async move { shared.change(&id.group_object(group), vec![ObjectOp::Remove]).await })
            .buffer_unordered(VISITS_MAX);
        while let Some(removed) = visits.next().await {
            if let Change::Unknown = removed? {
                return Err(KvError::Unanswered);
            }
        }
        drop(visits);
        // The root last: it is the only list of the groups.
        match shared.change(&id.root_object(), vec![assert_version(root.version), ObjectOp::Remove]).await? {
            Change::Unknown => Err(KvError::Unanswered),
            Change::Done | Change::Lost | Change::Failed { .. } => Ok(()),
        }
    }
}
