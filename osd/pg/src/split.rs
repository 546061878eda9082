//! Splitting a copy: a map with more placement groups in the pool makes one placement group into several.
//!
//! Every OSD splits what it has, by itself, when it gets the map: a member, a stray, a copy that is being filled, one that
//! is lost, one that missed the maps between. Nothing is asked of others and nothing is moved: what was split away lies
//! where it was until placement follows (`holdfast_map::ClusterMap::spread_pool`), and then moves by backfill.
//!
//! The **parent** keeps the lower part of its range of keys, each **child** takes one of the parts above. All of it is one
//! transaction ([`Output::Split`]) with the parent's history row of the new interval, so a crash leaves either the copy as
//! it was, as of an older map — then it is split when it is fed that map again — or all parts.
//!
//! | of the copy | parent | child |
//! |---|---|---|
//! | objects, and the missing set | those below the child's range | those in its range |
//! | log entries and dups, memory of sessions, answers without entry | all | all |
//! | head, tail, last activation, backfill cursor, `lost` | as they were | the same |
//! | history: `les`, `lec`, past intervals; leases of their primaries | as they were, and those of the interval that ends | the same |
//! | objects and bytes counted | a share, which is a guess until a clean primary has counted ([`Recount`]) | the same |
//! | role, transfers, slots, requests under way | a new interval, which ends them | nothing |
//! | requests that wait | its own; the others' are refused (`WrongPrimary`) | none: they are sent again |
//! | what scrubs have found, damaged copies | its own | its own |
//!
//! | before the split | what follows |
//! |---|---|
//! | any role | parent and child begin a new interval: they peer again |
//! | nothing stored yet | the pieces begin empty, too |
//! | `Removing` | no child: the copy was not needed |
//! | the collection of a child exists | that child is left alone (the shell): the copy here was given up and begun anew after it had been split before |
//!
//! **Why the log is kept whole.** Copies trim and lag each on their own. Were entries taken out by object, the ends of two
//! logs of one child would say nothing about each other any more. With all of them in both, heads, tails and joints stay
//! as comparable as they were, and a request is found wherever it is sent again. Entries about objects elsewhere
//! ([`has`]) are history only: a merge touches nothing for them; they are trimmed with the rest.
//!
//! **What it costs.** A split reads no object and lists none: it goes over the missing set, and the store copies the
//! collection's own rows (the log, within its bounds) and notes where the range of keys is cut. So all copies of an OSD
//! may split in the same map. Counting comes later and in pages.
//!
//! Invariants: G1 an object is in the one part that its hash is of, with all that the parent had of it; G2 what two copies
//! said of each other before (whose log is newer, where they join, what one lacks) their parts say too; G3 a request that
//! was executed before is found in every part; G4 the parts are made in one transaction, and nothing is said of a child
//! before that is durable; G5 a child inherits all that speaks against it: missing objects, an unfinished fill, a loss, an
//! interval in which others may have written; G6 splits over several maps give the same parts as one.

use std::sync::Arc;
use std::time::Duration;

use holdfast_map::{ClusterMap, split_into};
use holdfast_types::{ObjectName, PgId, Timestamp};

use crate::api::{Output, StoreOp, TxnId};
use crate::intervals::Interval;
use crate::key::ObjectKey;
use crate::pg::{Holding, Pg, Step};
use crate::rows::{self, HistoryRow};
use crate::scrub::Scrub;

/// A part of the keys that a copy is split at.
pub(crate) type Bound = [u8; 4];

/// Where a placement group's keys begin: the hash is bit-reversed in them, and its low bits are the seed.
pub(crate) fn first_key(pg: PgId) -> Bound {
    pg.seed.reverse_bits().to_be_bytes()
}

/// The children of a placement group, the highest range of keys first: so each takes all that is left from its first key
/// on.
pub(crate) fn children(pg: PgId, old: u32, new: u32) -> Vec<PgId> {
    let mut children: Vec<PgId> = split_into(pg, old, new).collect();
    children.sort_unstable_by_key(|child| std::cmp::Reverse(first_key(*child)));
    children
}

/// Tells which objects are of a placement group. Its log may have entries of others (see the module document).
pub(crate) fn has(map: &Arc<ClusterMap>, pg: PgId) -> impl Fn(&ObjectName) -> bool + use<> {
    let map = map.clone();
    move |object| map.pg_of(pg.pool, object) == Some(pg)
}

/// Between two pages of [`Limits::backfill_batch`](crate::Limits::backfill_batch) objects. All placement groups of an OSD
/// count at the same time after a split, and clients go first.
const RECOUNT_PAUSE: Duration = Duration::from_millis(100);
/// After objects could not be listed.
const RECOUNT_RETRY: Duration = Duration::from_secs(60);

/// Counting anew, while clients write: all up to `upto` is counted, and what they change there is followed. What comes
/// after it is counted as it will be by then.
#[derive(Debug, Default)]
pub(crate) struct Recount {
    upto: Option<ObjectKey>,
    objects: i64,
    bytes: i64,
    next_at: Timestamp,
}

impl Recount {
    /// A write has changed an object.
    pub fn follow(&mut self, key: &ObjectKey, objects_delta: i64, bytes_delta: i64) {
        if self.upto.as_ref().is_some_and(|upto| key <= upto) {
            self.objects += objects_delta;
            self.bytes += bytes_delta;
        }
    }

    fn take(&mut self, page: &[(ObjectKey, u64)]) {
        for (_, size) in page {
            self.objects += 1;
            self.bytes = self.bytes.saturating_add(i64::try_from(*size).unwrap_or(i64::MAX));
        }
        if let Some((last, _)) = page.last() {
            self.upto = Some(last.clone());
        }
    }
}

impl Pg {
    /// The placement groups that this copy will be split into at its next step, beside itself: those of a loaded copy
    /// that has missed the maps between.
    #[must_use]
    pub fn owed_children(&self) -> Vec<PgId> {
        children(self.id, self.split_to, self.interval.pg_num)
    }

    /// Takes the children of the present map out of this copy. Gives them; `ops` is what that does to the store.
    pub(crate) fn split_off(&mut self, ops: &mut Vec<StoreOp>, step: &mut Step<'_>) -> Vec<Pg> {
        let ids = self.owed_children();
        self.split_to = self.split_to.max(self.interval.pg_num);
        if ids.is_empty() {
            return Vec::new();
        }
        let mut made = Vec::with_capacity(ids.len());
        for (index, id) in ids.iter().enumerate() {
            made.push(self.split_off_one(*id, ids.len() - index + 1, ops));
        }
        ops.push(rows::put_info(&self.holding.info()));
        let epoch = self.map.epoch;
        self.clients.refuse_others(has(&self.map, self.id), epoch, step.out);
        tracing::info!(pg = %self.id, osd = %self.whoami, children = ids.len(), %epoch, "split");
        made
    }

    /// Takes out one of so many parts that are left.
    fn split_off_one(&mut self, id: PgId, parts: usize, ops: &mut Vec<StoreOp>) -> Pg {
        let at = first_key(id);
        let members = self.map.members(id);
        let interval = Interval {
            first: self.interval.first,
            may_be_older: self.interval.may_be_older,
            ..Interval::beginning(&self.map, id, &members)
        };
        let holding = self.split_holding(at, parts);
        let first_damaged = self.damaged.iter().find(|key| key.as_bytes() >= &at[..]).cloned();
        let damaged = first_damaged.map_or_else(Default::default, |first| self.damaged.split_off(&first));
        let record = self.scrub.split_off(parts, |object| ObjectKey::of(object).as_bytes() >= &at[..]);
        let map = self.map.clone();
        let mut child = Pg::create_with(id, self.whoami, self.incarnation, map, members, self.limits);
        child.interval = interval;
        child.history = self.history.clone();
        child.holding = holding;
        child.clients = self.clients.for_child();
        child.leases = self.leases.clone();
        child.damaged = damaged;
        (child.unlisted, child.cramped, child.gave_up) = (self.unlisted, self.cramped, self.gave_up);
        child.scrub = Scrub::stored(Some(record));
        child.stored_epoch = Some(self.map.epoch);
        let row =
            HistoryRow { epoch: child.map.epoch, interval: child.interval.clone(), history: child.history.clone() };
        let then = vec![
            rows::delete_missing_before(at),
            rows::put_info(&child.holding.info()),
            rows::put_history(&row),
            rows::put_scrub(&child.scrub.record),
        ];
        ops.push(StoreOp::Split { child: id, at: at.to_vec().into(), then });
        ops.push(rows::delete_missing_from(at));
        ops.push(rows::put_scrub(&self.scrub.record));
        child
    }

    fn split_holding(&mut self, at: Bound, parts: usize) -> Holding {
        let missing = self.holding.missing.split_off(&at);
        self.holding.guessed |= (self.holding.objects, self.holding.bytes) != (0, 0);
        let share = |count: &mut i64| {
            let share = *count / i64::try_from(parts).unwrap_or(i64::MAX);
            *count -= share;
            share
        };
        let (objects, bytes) = (share(&mut self.holding.objects), share(&mut self.holding.bytes));
        let replaces_bytes = self.holding.replaces_bytes.map(|bytes| bytes / parts as u64);
        let left = |all: u64| all - replaces_bytes.unwrap_or(0);
        self.holding.replaces_bytes = self.holding.replaces_bytes.map(left);
        Holding {
            log: self.holding.log.clone(),
            missing,
            last_backfill: self.holding.last_backfill.clone(),
            last_epoch_started: self.holding.last_epoch_started,
            lost: self.holding.lost,
            guessed: self.holding.guessed,
            replaces_bytes,
            objects,
            bytes,
        }
    }

    /// The primary of a clean placement group counts what a split had guessed, a page at a time.
    pub(crate) fn count_anew(&mut self, step: &mut Step<'_>) {
        if !self.holding.guessed {
            return;
        }
        let limit = self.limits.backfill_batch.max(1);
        let Some(active) = self.active() else { return };
        if !active.clean {
            active.recount = Recount::default();
            return;
        }
        let next_at = active.recount.next_at;
        if step.now < next_at {
            return self.tick_within(next_at.since(step.now), step);
        }
        if step.submitted {
            step.rerun = true; // the store does not show yet what the log says
            return;
        }
        let Ok(page) = step.store.list_sizes(active.recount.upto.as_ref().map(ObjectKey::as_bytes), limit) else {
            // Scrubs tell of what cannot be listed.
            active.recount = Recount { next_at: step.now + RECOUNT_RETRY, ..Recount::default() };
            return self.tick_within(RECOUNT_RETRY, step);
        };
        active.recount.take(&page);
        if page.len() == limit {
            active.recount.next_at = step.now + RECOUNT_PAUSE;
            return self.tick_within(RECOUNT_PAUSE, step);
        }
        let Recount { objects, bytes, .. } = std::mem::take(&mut active.recount);
        (self.holding.objects, self.holding.bytes, self.holding.guessed) = (objects, bytes, false);
        self.submit(vec![rows::put_info(&self.holding.info())], None, step);
        step.report = true;
    }

    /// The transaction that a child begins with (G4): told durable to it when the parent's is to the parent.
    pub(crate) fn await_split(&mut self) -> TxnId {
        let txn = TxnId(self.next_txn);
        self.next_txn += 1;
        self.push_pending(txn);
        txn
    }

    /// Submits the transaction of a split.
    pub(crate) fn submit_split(&mut self, ops: Vec<StoreOp>, mut children: Vec<Pg>, step: &mut Step<'_>) {
        let txn = TxnId(self.next_txn);
        self.next_txn += 1;
        self.push_pending(txn);
        for child in &mut children {
            let first = child.await_split();
            // `split_off` has just made it: nothing that a map or a disk says has a part in it.
            assert_eq!(first, TxnId(1), "G4: a child's first transaction is the split");
        }
        step.submitted = true;
        step.out.push(Output::Split { txn, ops, children });
    }
}
