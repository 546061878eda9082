//! An OSD: placement groups over a disk, in one run of a process. The simulator's counterpart of the `osd` shell.

use std::collections::BTreeMap;

use holdfast_pg::memory::MemoryCollection;
use holdfast_pg::{Input, Limits, Outbox, Pg};
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, Timestamp};

use crate::disk::Disk;
use crate::monitor::{Monitor, members};

/// One OSD.
#[derive(Debug)]
pub(crate) struct Node {
    pub id: OsdId,
    pub incarnation: Incarnation,
    pub running: bool,
    pub disk: Disk,
    pub pgs: BTreeMap<PgId, Pg>,
    /// Newest map that this node has applied; kept over restarts.
    pub epoch: Epoch,
    /// No map reaches this node before this time.
    pub lags_until: Timestamp,
    /// It has no room for bytes of objects until then.
    pub tight_until: Timestamp,
    /// Nor for a copy that is being filled.
    pub full: bool,
    /// Whether the next map is taken as a whole, without those before it.
    pub skips: bool,
    /// When each placement group wants to be woken; older wishes are void.
    pub wakes: BTreeMap<PgId, Timestamp>,
    limits: Limits,
}

impl Node {
    pub fn new(id: OsdId, limits: Limits) -> Node {
        Node {
            id,
            incarnation: Incarnation(1),
            running: true,
            disk: Disk::default(),
            pgs: BTreeMap::new(),
            epoch: Epoch(0),
            lags_until: Timestamp::ZERO,
            tight_until: Timestamp::ZERO,
            full: false,
            skips: false,
            wakes: BTreeMap::new(),
            limits,
        }
    }

    /// Gives one input to one placement group.
    pub fn step(&mut self, now: Timestamp, pg: PgId, input: Input) -> Outbox {
        let mut outbox = Outbox::new();
        let empty = MemoryCollection::default();
        if let Some(core) = self.pgs.get_mut(&pg) {
            self.disk.set_room(pg, now < self.tight_until, self.full && now < self.tight_until);
            let store = self.disk.collection(pg).unwrap_or(&empty);
            core.step(now, input, store, &mut outbox);
        }
        outbox
    }

    /// The placement groups that exist, or must exist now, at the next epoch; and the inputs for it.
    pub fn next_map(&mut self, monitor: &Monitor) -> Option<Vec<(PgId, Option<Input>)>> {
        let newest = monitor.newest().epoch;
        let epoch = if std::mem::take(&mut self.skips) && newest > self.epoch { newest } else { self.epoch.next() };
        let map = monitor.map(epoch)?.clone();
        self.epoch = epoch;
        let mut inputs = Vec::new();
        for pg in monitor.pgs() {
            let members = members(&map, pg);
            if let Some(core) = self.pgs.get(&pg) {
                if core.epoch() < epoch {
                    inputs.push((pg, Some(Input::Map { map: map.clone(), members })));
                }
            } else if members.up.contains(&self.id) || members.acting.contains(&self.id) {
                let core = Pg::create_with(pg, self.id, self.incarnation, map.clone(), members, self.limits);
                self.pgs.insert(pg, core);
                inputs.push((pg, None));
            }
        }
        Some(inputs)
    }

    /// Makes a placement group without a copy, if this node is a member by the map that it has.
    pub fn begin_anew(&mut self, pg: PgId, monitor: &Monitor) -> bool {
        let Some(map) = monitor.map(self.epoch) else { return false };
        let members = members(map, pg);
        let member = members.up.contains(&self.id) || members.acting.contains(&self.id);
        if member {
            let core = Pg::create_with(pg, self.id, self.incarnation, map.clone(), members, self.limits);
            self.pgs.insert(pg, core);
        }
        member
    }

    /// Starts again from the disk, as a new run. Placement groups begin at the maps that they had stored.
    pub fn restart(&mut self, incarnation: Incarnation, monitor: &Monitor) -> Result<(), String> {
        self.incarnation = incarnation;
        self.running = true;
        self.pgs.clear();
        self.wakes.clear();
        for (pg, collection) in self.disk.collections() {
            let stored = Pg::stored_epoch(collection).map_err(|error| format!("{}: {pg}: {error}", self.id))?;
            let oldest = stored.map(|epoch| if self.skips { epoch.max(self.epoch) } else { epoch });
            let Some(map) = oldest.and_then(|epoch| monitor.map(epoch)) else {
                return Err(format!("{}: {pg} has no stored epoch", self.id));
            };
            let members = members(map, *pg);
            let core = Pg::load_with(*pg, self.id, incarnation, map.clone(), members, self.limits, collection);
            self.pgs.insert(*pg, core.map_err(|error| format!("{}: {pg}: {error}", self.id))?);
        }
        Ok(())
    }

    /// What a loaded placement group must still be fed: all maps from its own up to the node's.
    pub fn catch_up(&self, monitor: &Monitor) -> Vec<(PgId, Input)> {
        let mut inputs = Vec::new();
        for (pg, core) in &self.pgs {
            for epoch in core.epoch().0 + 1..=self.epoch.0 {
                if let Some(map) = monitor.map(Epoch(epoch)) {
                    inputs.push((*pg, Input::Map { map: map.clone(), members: members(map, *pg) }));
                }
            }
        }
        inputs
    }
}
