//! How much may be in flight, and how much of it at one placement group.
//!
//! Waiting for the budget is how back-pressure reaches the user. A placement group that does not answer must make only its
//! own ops wait, so:
//!
//! - Small ops are counted and large ones weighed, in two lanes that do not wait for each other: metadata passes while
//!   data queue.
//! - One placement group gets at most a quarter of a lane ([`GROUP_SHARE`]), or what keeps a pipeline full where that is
//!   more ([`GROUP_OPS_MIN`], [`GROUP_BYTES_MIN`]).
//! - An op that is not done after [`LATE_AFTER`] gives its share of the lane back, and its placement group counts as
//!   *late* until that op ends. Ops to late groups share a quarter of the lane of their own ([`LATE_SHARE`]). So any number
//!   of stuck groups delays the others for [`LATE_AFTER`] at most; what is outstanding exceeds the lane by what those
//!   groups had when they got stuck, a quarter of it each at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_types::PgId;
use holdfast_wire::{Blob, ObjectOp, RowCondition};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Objects are not larger than this, so neither is what one read brings back.
const OBJECT_BYTES_MAX: u64 = 4 << 20;
/// Requests up to this are small: the bytes of all small ones together stay below `ops_in_flight_max` times this.
const SMALL_BYTES_MAX: u64 = 16 << 10;
/// After this long without an end an op is late: healthy groups answer within a few milliseconds, busy ones within some
/// hundred.
pub(crate) const LATE_AFTER: Duration = Duration::from_secs(2);
/// One group gets the lane divided by this, but enough for a pipeline.
const GROUP_SHARE: u32 = 4;
const GROUP_OPS_MIN: u32 = 16;
const GROUP_BYTES_MIN: u32 = 8 << 20;
/// All late groups together get the lane divided by this.
const LATE_SHARE: u32 = 4;

/// The client's budget.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In ops.
    small: Lane,
    /// In bytes.
    large: Lane,
    /// What a large op costs at least, so that no more than the wanted number of them is in flight.
    large_cost_min: u32,
}

#[derive(Debug)]
struct Lane {
    main: Arc<Semaphore>,
    main_max: u32,
    late: Arc<Semaphore>,
    late_max: u32,
    group_max: u32,
    /// As many as the cluster has placement groups, at most.
    groups: Mutex<BTreeMap<PgId, Arc<Group>>>,
}

#[derive(Debug)]
struct Group {
    room: Arc<Semaphore>,
    /// Ops that are late.
    late: AtomicUsize,
    recovered: Notify,
}

/// A share of the budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Share {
    of_lane: Option<OwnedSemaphorePermit>,
    group: Option<Arc<Group>>,
    _of_group: Option<OwnedSemaphorePermit>,
    from_late: bool,
    is_late: bool,
}

impl Share {
    /// The op is late: others need not wait for it any more.
    pub(crate) fn late(&mut self) {
        if self.is_late {
            return;
        }
        if let Some(group) = &self.group {
            self.is_late = true;
            group.late.fetch_add(1, Ordering::SeqCst);
            if !self.from_late {
                self.of_lane = None;
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(group) = &self.group
            && self.is_late
            && group.late.fetch_sub(1, Ordering::SeqCst) == 1
        {
            group.recovered.notify_waiters();
        }
    }
}

impl Lane {
    fn new(max: usize, group_min: u32) -> Lane {
        let main_max = u32::try_from(max.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let late_max = (main_max / LATE_SHARE).max(1);
        Lane {
            main: Arc::new(Semaphore::new(main_max as usize)),
            main_max,
            late: Arc::new(Semaphore::new(late_max as usize)),
            late_max,
            group_max: (main_max / GROUP_SHARE).max(group_min).min(main_max),
            groups: Mutex::default(),
        }
    }

    fn group(&self, pg: PgId) -> Arc<Group> {
        let make = || {
            let room = Arc::new(Semaphore::new(self.group_max as usize));
            Arc::new(Group { room, late: AtomicUsize::new(0), recovered: Notify::new() })
        };
        Arc::clone(self.groups.lock().entry(pg).or_insert_with(make))
    }

    /// What is larger than a limit passes alone. The semaphores are never closed.
    async fn take(&self, pg: Option<PgId>, units: u32) -> Share {
        let group = pg.map(|pg| self.group(pg));
        let mut of_group = None;
        let mut from_late = false;
        let mut of_lane = None;
        if let Some(group) = &group {
            // The group's own queue first: what waits here holds nothing that others want.
            of_group = Arc::clone(&group.room).acquire_many_owned(units.min(self.group_max)).await.ok();
            loop {
                let mut recovered = std::pin::pin!(group.recovered.notified());
                recovered.as_mut().enable();
                if group.late.load(Ordering::SeqCst) == 0 {
                    break;
                }
                tokio::select! {
                    biased;
                    permit = Arc::clone(&self.late).acquire_many_owned(units.min(self.late_max)) => {
                        of_lane = permit.ok();
                        from_late = true;
                        break;
                    }
                    () = recovered => {}
                }
            }
        }
        if !from_late {
            of_lane = Arc::clone(&self.main).acquire_many_owned(units.min(self.main_max)).await.ok();
        }
        Share { of_lane, group, _of_group: of_group, from_late, is_late: false }
    }
}

impl Budget {
    pub(crate) fn new(ops_max: usize, bytes_max: usize) -> Budget {
        let large = Lane::new(bytes_max, GROUP_BYTES_MIN);
        let ops_max_u32 = u32::try_from(ops_max.max(1)).unwrap_or(u32::MAX);
        Budget { small: Lane::new(ops_max, GROUP_OPS_MIN), large_cost_min: large.main_max / ops_max_u32, large }
    }

    /// Waits for a share for one request to a placement group; without one (its pool is gone) it is sent nowhere.
    pub(crate) async fn take(&self, pg: Option<PgId>, ops: &[ObjectOp]) -> Share {
        let bytes = cost(ops);
        if bytes <= SMALL_BYTES_MAX {
            return self.small.take(pg, 1).await;
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).max(self.large_cost_min);
        self.large.take(pg, bytes).await
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
    ops.iter().map(cost_of).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use futures::FutureExt as _;
    use holdfast_types::PoolId;

    use super::*;

    const MIB: usize = 1 << 20;

    fn pg(seed: u32) -> Option<PgId> {
        Some(PgId { pool: PoolId(1), seed })
    }

    fn stripe() -> Vec<ObjectOp> {
        vec![ObjectOp::WriteFull { data: Blob(Bytes::from(vec![0; 4 * MIB])) }]
    }

    /// A share if it is there at once.
    fn now(budget: &Budget, seed: u32, ops: &[ObjectOp]) -> Option<Share> {
        budget.take(pg(seed), ops).now_or_never()
    }

    fn all_of(budget: &Budget, seed: u32) -> Vec<Share> {
        std::iter::from_fn(|| now(budget, seed, &stripe())).collect()
    }

    #[test]
    fn one_group_gets_a_quarter_and_the_others_go_on() {
        let budget = Budget::new(1024, 64 * MIB);
        let stuck = all_of(&budget, 0);
        assert_eq!(stuck.len(), 4);
        let small: Vec<Share> = std::iter::from_fn(|| now(&budget, 0, &[ObjectOp::Stat])).collect();
        assert_eq!(small.len(), 256);
        assert!(now(&budget, 1, &stripe()).is_some());
        assert!(now(&budget, 1, &[ObjectOp::Stat]).is_some());
        drop((stuck, small));
        assert_eq!(all_of(&budget, 0).len(), 4, "given back");
    }

    #[test]
    fn small_ops_pass_when_large_ones_have_taken_everything() {
        let budget = Budget::new(1024, 64 * MIB);
        let held: Vec<Vec<Share>> = (0..4).map(|seed| all_of(&budget, seed)).collect();
        assert!(now(&budget, 9, &stripe()).is_none(), "all is taken");
        assert!(now(&budget, 9, &[ObjectOp::Stat]).is_some());
        drop(held);
    }

    #[test]
    fn any_number_of_stuck_groups_delays_the_others_only_until_they_are_late() {
        let budget = Budget::new(1024, 64 * MIB);
        let mut stuck: Vec<Share> = (0..4).flat_map(|seed| all_of(&budget, seed)).collect();
        assert!(now(&budget, 9, &stripe()).is_none());
        stuck.iter_mut().for_each(Share::late);
        stuck.iter_mut().for_each(Share::late); // twice is once
        assert_eq!(all_of(&budget, 9).len(), 4);
        // With room of their own again, the late groups together get their quarter and no more.
        stuck.retain({
            let mut index = 0;
            move |_| {
                index += 1;
                index % 4 == 0 // one late op of each group is left
            }
        });
        let more: Vec<Share> = (0..4).flat_map(|seed| all_of(&budget, seed)).collect();
        assert_eq!(more.len(), 4);
        assert!(now(&budget, 9, &stripe()).is_some());
    }

    #[tokio::test]
    async fn a_group_that_answers_again_is_like_any_other() {
        let budget = Arc::new(Budget::new(1024, 64 * MIB));
        let mut stuck = vec![now(&budget, 0, &stripe()).unwrap(), now(&budget, 1, &stripe()).unwrap()];
        stuck.iter_mut().for_each(Share::late);
        let late: Vec<Share> = [0, 1].into_iter().flat_map(|seed| all_of(&budget, seed)).collect();
        assert_eq!(late.len(), 4, "the late groups' quarter is used up");
        let waiting = Arc::clone(&budget);
        let waiting = tokio::spawn(async move { waiting.take(pg(1), &stripe()).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        stuck.pop();
        waiting.await.unwrap();
        drop(late);
    }

    #[test]
    fn no_more_large_ops_than_allowed_and_giants_pass_alone() {
        let budget = Budget::new(2, 64 * MIB);
        let kib = vec![ObjectOp::WriteFull { data: Blob(Bytes::from(vec![0; 20_000])) }];
        let shares: Vec<Share> = (0..9).filter_map(|seed| now(&budget, seed, &kib)).collect();
        assert_eq!(shares.len(), 2);
        drop(shares);
        let giant = vec![ObjectOp::WriteFull { data: Blob(Bytes::from(vec![0; 65 * MIB])) }];
        let giant = now(&budget, 0, &giant);
        assert!(giant.is_some() && now(&budget, 1, &stripe()).is_none());
    }
}
