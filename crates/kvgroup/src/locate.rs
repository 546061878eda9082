//! Finding the group that serves a key, and what to do with one that is in the middle of something.
//!
//! Whoever meets an unfinished split or drop first leaves it alone for a while, then finishes or undoes it itself.

use std::sync::Arc;

use crate::cache::KnownGroup;
use crate::error::KvError;
use crate::header::{GroupId, GroupState, Record, RootHeader, RootState, TableId, assert_version};
use crate::key::Affinity;
use crate::objects::Objects;
use crate::sabotage::{self, Sabotage};
use crate::shell::{Change, Patience, Shared};

/// What a group is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
}

/// How much longer a split is left alone when this very process is at it, in multiples of the usual patience.
const OWN_SPLIT_PATIENCE: u32 = 20;

fn serves(state: &GroupState, intent: Intent) -> bool {
    match state {
        GroupState::Open => true,
        // Until it is cut, a frozen group holds the truth of its whole range.
        GroupState::Splitting { .. } => intent == Intent::Read || sabotage::breaks(Sabotage::FrozenTakesWrites),
        GroupState::Building { .. } => sabotage::breaks(Sabotage::BuildingServes),
        GroupState::Dropping { .. } => false,
    }
}

impl<O: Objects> Shared<O> {
    /// The group that serves `key`. `stale` is one that was just found to have changed.
    pub async fn locate(
        self: &Arc<Self>,
        (table, affinity): (&TableId, Affinity),
        key: &[u8],
        intent: Intent,
        stale: Option<&KnownGroup>,
        patience: &mut Patience,
    ) -> Result<KnownGroup, KvError> {
        let mut suspect = match stale {
            Some(stale) => {
                self.cache.lock().remove(table, stale);
                Some(stale.id)
            }
            None => match self.cache.lock().find(table, key) {
                Some(group) if serves(&group.header.state, intent) => return Ok(group),
                group => group.map(|group| group.id),
            },
        };
        loop {
            patience.round()?;
            let (id, from_root) = match suspect.take() {
                Some(id) => (id, false),
                None => (self.ask_root(table, affinity, key).await?, true),
            };
            let Some(group) = self.read_group(table, id).await? else {
                if from_root {
                    patience.pause(&self.objects).await; // a purge is under way: the root goes last
                }
                continue;
            };
            if !group.header.covers(key) {
                // It was split: the root had the new group's row before this one was cut.
                self.cache.lock().insert(table, group);
                continue;
            }
            if serves(&group.header.state, intent) {
                self.cache.lock().insert(table, group.clone());
                return Ok(group);
            }
            self.meet(table, &group, patience).await?;
            suspect = Some(id);
        }
    }

    async fn ask_root(&self, table: &TableId, affinity: Affinity, key: &[u8]) -> Result<GroupId, KvError> {
        match self.find_group(table, key).await? {
            Some((RootHeader { state: RootState::Dropped, .. }, _)) => {
                self.cache.lock().remove_table(table);
                Err(KvError::TableGone)
            }
            None => {
                self.cache.lock().remove_table(table);
                Err(KvError::TableMissing)
            }
            Some((root, _)) if root.affinity != affinity => {
                Err(KvError::AffinityMismatch { expected: affinity, actual: root.affinity })
            }
            Some((_, group)) => Ok(group),
        }
    }

    /// Waits for, or finishes, what a group is in the middle of.
    pub async fn meet(
        self: &Arc<Self>,
        table: &TableId,
        group: &KnownGroup,
        patience: &mut Patience,
    ) -> Result<(), KvError> {
        match group.header.state {
            GroupState::Open => Ok(()),
            GroupState::Splitting { .. } => self.meet_split(table, group, patience).await,
            GroupState::Building { parent, parent_version } => {
                let Some(parent) = self.read_group(table, parent).await? else {
                    patience.pause(&self.objects).await; // being purged, or left over from a table that was
                    return Ok(());
                };
                if parent.header.version == parent_version {
                    self.meet_split(table, &parent, patience).await
                } else {
                    self.open_child(table, group).await
                }
            }
            GroupState::Dropping { root_version } => self.meet_drop(table, group, root_version, patience).await,
        }
    }

    async fn meet_split(
        self: &Arc<Self>,
        table: &TableId,
        group: &KnownGroup,
        patience: &mut Patience,
    ) -> Result<(), KvError> {
        let leave_alone = self.config.help_after * if self.is_busy(group.id) { OWN_SPLIT_PATIENCE } else { 1 };
        if patience.waited < leave_alone {
            patience.pause(&self.objects).await;
            return Ok(());
        }
        let _claim = self.claim(group.id, usize::MAX);
        self.finish_split(table, group, patience).await
    }

    async fn meet_drop(
        &self,
        table: &TableId,
        group: &KnownGroup,
        root_version: u64,
        patience: &mut Patience,
    ) -> Result<(), KvError> {
        match self.read_root(table).await? {
            None => {
                self.cache.lock().remove_table(table);
                Err(KvError::TableMissing)
            }
            Some(RootHeader { state: RootState::Dropped, .. }) => {
                self.cache.lock().remove_table(table);
                Err(KvError::TableGone)
            }
            Some(root) if root.version == root_version && !sabotage::breaks(Sabotage::ThawUndecided) => {
                self.meet_dropping_root(table, &root, patience).await
            }
            Some(_) => self.thaw(table, group).await,
        }
    }

    /// Waits for an attempt to drop the table, or undoes it.
    pub async fn meet_dropping_root(
        &self,
        table: &TableId,
        root: &RootHeader,
        patience: &mut Patience,
    ) -> Result<(), KvError> {
        if patience.waited < self.config.drop_patience {
            patience.pause(&self.objects).await;
            return Ok(());
        }
        self.set_root_state(table, root, RootState::Open).await.map(|_| ())
    }

    /// Moves the root from the state it was seen in to another.
    pub async fn set_root_state(
        &self,
        table: &TableId,
        root: &RootHeader,
        state: RootState,
    ) -> Result<Change, KvError> {
        let Some(next) = root.with_state(state) else { return Ok(Change::Lost) };
        let mut ops = vec![assert_version(root.version)];
        ops.extend(next.replace());
        self.change_freeing(&table.root_object(), ops).await
    }

    /// Opens a group again that an undone attempt to drop the table froze. Right only after the root was seen to have
    /// left that attempt, undropped.
    pub async fn thaw(&self, table: &TableId, group: &KnownGroup) -> Result<(), KvError> {
        if let Some(thawed) = group.header.thawed() {
            let mut ops = vec![assert_version(group.header.version)];
            ops.extend(thawed.replace());
            self.change_freeing(&table.group_object(group.id), ops).await?;
        }
        Ok(())
    }
}
