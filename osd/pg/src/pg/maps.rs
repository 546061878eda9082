//! Maps and intervals: a placement group goes on to the next map, and begins anew where its members changed.

use std::sync::Arc;

use holdfast_map::{ClusterMap, PgMembers};
use holdfast_types::Epoch;
use holdfast_wire::RefusedReason;
use holdfast_wire::peer::PgHistory;

use super::{AfterDurable, Holding, Pg, Role, STORED_EPOCH_LAG_MAX, Step};
use crate::api::{Output, Slot, StoreOp};
use crate::follower::Follower;
use crate::intervals::{self, Interval};
use crate::mutants::{Mutant, on};
use crate::rows::{self, HistoryRow};

impl Pg {
    pub(super) fn on_map(&mut self, map: Arc<ClusterMap>, members: PgMembers, step: &mut Step<'_>) {
        if map.epoch <= self.map.epoch || matches!(self.role, Role::Removing) {
            return;
        }
        let deleted = map.is_deleted(self.id.pool);
        if !deleted && !map.pools.contains_key(&self.id.pool) {
            // No map after the one that created the pool can lack it but by its deletion: these monitors have
            // forgotten. What they do not know is kept as it is.
            tracing::error!(pg = %self.id, osd = %self.whoami, epoch = %map.epoch, "a map without this pool is ignored");
            return;
        }
        let gap = map.epoch != self.map.epoch.next();
        let next = Interval::beginning(&map, self.id, &members);
        let continues = self.interval.continues_as(&next) && !gap;
        let led = self.is_primary() && !gap;
        let last_map = std::mem::replace(&mut self.map, map);
        let last_members = std::mem::replace(&mut self.members, members);
        if !led || !self.is_primary() {
            self.leads_since = self.map.epoch;
        }
        if deleted {
            self.remove_copy(RefusedReason::PoolGone, step);
        } else if continues {
            let lag = self.stored_epoch.map_or(0, |stored| self.map.epoch.0 - stored.0);
            if lag >= STORED_EPOCH_LAG_MAX {
                let mut ops = Vec::new();
                self.push_history_row(&mut ops);
                self.submit(ops, None, step);
            }
            self.on_same_interval(step);
        } else {
            let ended = self.interval.ended(&last_map);
            let left = matches!(self.role, Role::Follower(_)).then(|| self.activation()).flatten();
            self.interval = next;
            self.keep_leases(if gap { None } else { last_members.primary() }, step);
            if gap {
                // Whether this is a new interval cannot be told: it counts as one, of unknown age.
                self.interval.may_be_older = Some(true);
                self.forget_past();
            } else if ended.maybe_rw && !on(Mutant::PastForgotten) {
                self.history.past.push(ended);
            }
            self.start_interval(step);
            if let Some(activation) = left.filter(|_| gap) {
                self.ask_activation(activation, step);
            }
        }
        self.deliver_early(step);
    }

    pub(super) fn forget_past(&mut self) {
        self.history.past.clear();
        self.history.known_from = self.interval.first;
    }

    /// Whether the map means this run of this OSD, and says that it serves.
    pub(super) fn is_alive(&self) -> bool {
        self.map.osds.get(&self.whoami).is_some_and(|info| info.up && info.incarnation == self.incarnation)
    }

    /// Whether this OSD leads the placement group in the present map.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.members.primary() == Some(self.whoami) && self.is_alive()
    }

    /// Whether this OSD is the primary and has heard, in this interval, one of each earlier one that may have served: none of
    /// those can commit anything any more.
    #[must_use]
    pub fn has_peered(&self) -> bool {
        matches!(self.role, Role::Active(_))
    }

    /// Starts a role anew: in a new interval, or because a member has lost track of the present one (see `peering`).
    pub(crate) fn start_interval(&mut self, step: &mut Step<'_>) {
        self.interval_number += 1;
        self.inbox.clear();
        self.cramped = self.is_cramped();
        self.tick_at = None;
        if matches!(self.role, Role::Stopped) {
            return;
        }
        self.leave_role(Role::Removing, step);
        let mut ops = Vec::new();
        if self.stored_epoch.is_none() {
            if std::mem::take(&mut self.discards) {
                // In one transaction with what takes its place: there is no moment at which this disk has no copy and
                // nothing says that it had one.
                ops.push(StoreOp::RemoveCollection);
            }
            ops.push(StoreOp::CreateCollection);
            ops.push(rows::put_info(&self.holding.info()));
        }
        let children = self.split_off(&mut ops, step);
        self.push_history_row(&mut ops);
        if children.is_empty() {
            self.submit(ops, None, step);
        } else {
            self.submit_split(ops, children, step);
        }
        if self.is_primary() {
            self.clients.wait_for_activation();
            self.role = Role::Peering(Box::default());
        } else {
            self.clients.refuse_all(RefusedReason::WrongPrimary, self.map.epoch, step.out);
            self.role = Role::Follower(Follower::new(step.now));
            self.greet_primary(step);
        }
        step.report = true;
    }

    /// Ends the present role: slots are given back, requests that it had executed but not answered wait again.
    pub(super) fn leave_role(&mut self, next: Role, step: &mut Step<'_>) {
        self.scrub.reset(step.out);
        match std::mem::replace(&mut self.role, next) {
            Role::Active(active) => {
                active.release_slots(step.out);
                self.clients.take_back(active.into_requests());
            }
            Role::Follower(follower) if follower.holds_slot() => step.out.push(Output::Release(Slot::Incoming)),
            Role::Follower(_) | Role::Peering(_) | Role::Removing | Role::Stopped => {}
        }
    }

    /// Puts the history row as it is now.
    pub(crate) fn push_history_row(&mut self, ops: &mut Vec<StoreOp>) {
        let row = HistoryRow { epoch: self.map.epoch, interval: self.interval.clone(), history: self.history.clone() };
        self.stored_epoch = Some(row.epoch);
        ops.push(rows::put_history(&row));
    }

    pub(super) fn on_same_interval(&mut self, step: &mut Step<'_>) {
        match &self.role {
            Role::Peering(_) => self.peering_saw_map(step),
            Role::Active(_) => self.active_saw_map(),
            Role::Follower(_) | Role::Removing | Role::Stopped => {}
        }
    }

    /// Takes over what a peer knows of the past.
    pub(crate) fn learn_history(&mut self, theirs: &PgHistory, their_interval_start: Epoch, step: &mut Step<'_>) {
        let learnt = intervals::merge_history(&mut self.history, theirs);
        if self.learn_beginning(their_interval_start) || learnt {
            let mut ops = Vec::new();
            self.push_history_row(&mut ops);
            self.submit(ops, None, step);
        }
    }

    /// A sender in the same interval may have seen it begin earlier. Gives whether that is news.
    pub(crate) fn learn_beginning(&mut self, their_interval_start: Epoch) -> bool {
        let earlier = their_interval_start < self.interval.first;
        if earlier {
            self.interval.first = their_interval_start;
        }
        earlier
    }

    /// Drops the copy and, when that is durable, the placement group.
    pub(crate) fn remove_copy(&mut self, reason: RefusedReason, step: &mut Step<'_>) {
        self.leave_role(Role::Removing, step);
        self.clients.refuse_all(reason, self.map.epoch, step.out);
        self.holding = Holding::empty();
        self.submit(vec![StoreOp::RemoveCollection], Some(AfterDurable::Gone), step);
    }
}
