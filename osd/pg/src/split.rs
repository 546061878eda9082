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
//! | objects and bytes counted | what is left | counted; where this copy is not whole a guess, until a clean primary counts |
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
//! Invariants: G1 an object is in the one part that its hash is of, with all that the parent had of it; G2 what two copies
//! said of each other before (whose log is newer, where they join, what one lacks) their parts say too; G3 a request that
//! was executed before is found in every part; G4 the parts are made in one transaction, and nothing is said of a child
//! before that is durable; G5 a child inherits all that speaks against it: missing objects, an unfinished fill, a loss, an
//! interval in which others may have written; G6 splits over several maps give the same parts as one.

use std::sync::Arc;

use holdfast_map::{ClusterMap, split_into};
use holdfast_types::{ObjectName, PgId};

use crate::api::{Output, StoreOp, TxnId};
use crate::intervals::Interval;
use crate::key::ObjectKey;
use crate::pg::{Holding, Pg, Role, Step};
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
        let mut end = None;
        let mut made = Vec::with_capacity(ids.len());
        for (index, id) in ids.iter().enumerate() {
            let parts = ids.len() - index + 1;
            let at = first_key(*id);
            made.push(self.split_off_one(*id, (at, end), parts, ops, step));
            end = Some(at);
        }
        ops.push(rows::put_info(&self.holding.info()));
        let epoch = self.map.epoch;
        self.clients.refuse_others(has(&self.map, self.id), epoch, step.out);
        tracing::info!(pg = %self.id, osd = %self.whoami, children = ids.len(), %epoch, "split");
        made
    }

    fn split_off_one(
        &mut self,
        id: PgId,
        (at, end): (Bound, Option<Bound>),
        parts: usize,
        ops: &mut Vec<StoreOp>,
        step: &Step<'_>,
    ) -> Pg {
        let members = self.map.members(id);
        let interval = Interval {
            first: self.interval.first,
            may_be_older: self.interval.may_be_older,
            ..Interval::beginning(&self.map, id, &members)
        };
        let holding = self.split_holding(at, end, parts, step);
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

    fn split_holding(&mut self, at: Bound, end: Option<Bound>, parts: usize, step: &Step<'_>) -> Holding {
        let whole =
            self.holding.missing.is_empty() && self.holding.last_backfill.is_complete() && !self.holding.guessed;
        let missing = self.holding.missing.split_off(&at);
        let counted = step.store.usage(&at, end.as_ref().map(|end| &end[..]));
        let (objects, bytes) = match counted {
            Ok((objects, bytes)) if whole => {
                (i64::try_from(objects).unwrap_or(i64::MAX), i64::try_from(bytes).unwrap_or(i64::MAX))
            }
            Ok(_) | Err(_) => {
                self.holding.guessed = true;
                let parts = i64::try_from(parts).unwrap_or(i64::MAX);
                (self.holding.objects / parts, self.holding.bytes / parts)
            }
        };
        self.holding.objects -= objects;
        self.holding.bytes -= bytes;
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

    /// An active primary whose copy is whole counts what a split had guessed.
    pub(crate) fn count_anew(&mut self, step: &mut Step<'_>) {
        let clean = matches!(&self.role, Role::Active(active) if active.clean);
        if !self.holding.guessed || !clean {
            return;
        }
        if step.submitted {
            step.rerun = true; // the store does not show yet what the log says
            return;
        }
        // What cannot be listed is tried again after the next activation.
        self.holding.guessed = false;
        if let Ok((objects, bytes)) = step.store.usage(&[], None) {
            self.holding.objects = i64::try_from(objects).unwrap_or(i64::MAX);
            self.holding.bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.submit(vec![rows::put_info(&self.holding.info())], None, step);
            step.report = true;
        }
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
            assert_eq!(first, TxnId(1), "G4: a child's first transaction is the split");
        }
        step.submitted = true;
        step.out.push(Output::Split { txn, ops, children });
    }
}
