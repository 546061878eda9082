//! A shard goes on to the next map: its placement groups hear of it, are split by it, and those that it brings here are made.

use std::sync::Arc;

use holdfast_map::PgMembers;
use holdfast_pg::{Input, Pg};
use holdfast_types::{Epoch, PgId};
use tracing::{debug, error};

use super::{Event, Fatal, Inbox, MapStep, Shard, Shared};
use crate::awaited::split_pairs;
use crate::copies::may_be_part_of;
use crate::local::collection_of;

impl Shard {
    pub(super) fn advance_map(&mut self, step: &Arc<MapStep>, inbox: Option<&Inbox>) {
        let before = std::mem::replace(&mut self.step, step.clone());
        self.given.clear();
        // After a restart a placement group may be ahead of what the others are fed first.
        let behind = |pg: &Pg| pg.epoch() < step.map.epoch;
        let known: Vec<PgId> = self.pgs.iter().filter(|(_, pg)| behind(pg)).map(|(id, _)| *id).collect();
        for pg in known {
            // All of them may be split, or peer anew: that takes longer than peers wait.
            if let Some(inbox) = inbox {
                self.answer(inbox);
            }
            self.step_pg(pg, Input::Map { map: step.map.clone(), members: step.members_of(pg) });
        }
        let is_mine = |shard: &Shard, pg| shard.shared.shards.index_of(pg) == shard.index;
        for (parent, child) in split_pairs(&before.map, &step.map) {
            if is_mine(self, parent) && !self.given.contains(&child) && !self.owes(parent, child) {
                self.give(child, None);
            }
            if is_mine(self, child) && !self.pgs.contains_key(&child) {
                self.awaited.expect(child, step.map.epoch);
            }
        }
        self.awaited.passed(step.map.epoch);
        if self.awaited.is_empty() {
            self.settle_map();
        }
    }

    /// Whether there is a copy to split that cannot be, for the store refuses what is asked of it. An empty child would hide
    /// what the next run splits off. This run ends: nobody is to wait for the answer.
    pub(super) fn owes(&self, parent: PgId, child: PgId) -> bool {
        let owed = || self.pgs.get(&parent).is_some_and(|pg| pg.owed_children().contains(&child));
        self.stopped.contains(&parent) || owed()
    }

    /// Tells the shard of a child what became of it.
    pub(super) fn give(&mut self, child: PgId, made: Option<Box<Pg>>) {
        self.given.insert(child);
        self.shared.shards.send(child, Event::Child { pg: child, epoch: self.step.map.epoch, made });
    }

    pub(super) fn child(&mut self, pg: PgId, epoch: Epoch, made: Option<Box<Pg>>, inbox: Option<&Inbox>) {
        if let Some(made) = made {
            if self.pgs.contains_key(&pg) {
                return self.made_twice(pg);
            }
            debug!(%pg, %epoch, "placement group split off on this OSD");
            self.pgs.insert(pg, *made);
            self.told_time = None;
            self.step_pg(pg, Input::Tick);
        }
        if self.awaited.answered(pg, epoch, self.step.map.epoch) {
            self.settle_map();
            while let Some(step) = self.awaited.next_map() {
                self.advance_map(&step, inbox);
            }
        }
    }

    /// A child has come of a placement group that is here already, which the rules of `awaited` are to exclude. The store has
    /// the part that was split off, the one that is here knows nothing of it: only the next run can take it up.
    pub(super) fn made_twice(&mut self, pg: PgId) {
        error!(osd = %self.shared.osd, %pg, "split off after it was made anew: this run ends");
        self.stopped.insert(pg);
        let _ = self.shared.fatal.send(Fatal::NotTaken(format!("{pg} was made anew before its parent was split")));
    }

    /// What the present map brings here beside what was here; then what waited for it.
    pub(super) fn settle_map(&mut self) {
        let (step, me) = (self.step.clone(), self.shared.osd);
        let mine = |members: &PgMembers| members.up.contains(&me) || members.acting.contains(&me);
        let missing: Vec<PgId> = step
            .members
            .iter()
            .filter(|(pg, members)| {
                self.shared.shards.index_of(**pg) == self.index && mine(members) && !self.pgs.contains_key(pg)
            })
            .map(|(pg, _)| *pg)
            .collect();
        for pg in missing {
            self.create(pg);
        }
        for barrier in std::mem::take(&mut self.barriers) {
            self.barrier(barrier);
        }
        for arrival in std::mem::take(&mut self.waiting_for_map) {
            self.client(arrival);
        }
        for (from, incarnation, message) in std::mem::take(&mut self.early) {
            self.peer(from, incarnation, message);
        }
    }

    /// Makes the placement group as of the present map, without a copy on this disk.
    pub(super) fn create(&mut self, pg: PgId) {
        debug!(%pg, epoch = %self.step.map.epoch, "placement group starts on this OSD");
        let Shared { osd, incarnation, limits, lost_now, .. } = &*self.shared;
        let map = self.step.map.clone();
        // All copies were taken up at the start but those that cannot be used and whose pool no map knew then.
        let unusable = self.shared.store.engine().collection_exists(collection_of(pg));
        let made = if unusable || self.may_have_lost(pg) {
            if *lost_now {
                self.shared.counters.copy_lost();
            }
            Pg::create_lost(pg, *osd, *incarnation, map, *limits, unusable)
        } else {
            Pg::create(pg, *osd, *incarnation, map, *limits)
        };
        self.pgs.insert(pg, made);
        self.told_time = None;
        self.step_pg(pg, Input::Tick);
    }

    /// Whether the placement group may have been here in the disk's earlier life, or in a copy that could not be used.
    pub(super) fn may_have_lost(&self, pg: PgId) -> bool {
        let created = self.step.map.pools.get(&pg.pool).map_or(Epoch::ZERO, |pool| pool.created);
        self.shared.lost_before.is_some_and(|before| created <= before) || may_be_part_of(&self.shared.lost_copies, pg)
    }
}
