//! An OSD: placement groups over a disk, in one run of a process. The simulator's counterpart of the `osd` shell: the same
//! store, the same translation, the same way to take copies up; only threads and sockets are events here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use holdfast_map::{ClusterMap, PgMembers};
use holdfast_osd::parts::{
    CaughtUp, EarlyBeats, HeartbeatTable, Leases, Local, MapStep, PeerSpace, Slots, Standing, collection_of,
    may_be_part_of, needed_maps, take_up,
};
use holdfast_pg::{Input, Limits, Outbox, Pg};
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, Timestamp};
use holdfast_wire::ClientRequest;
use holdfast_wire::mon::StoreUsage;
use holdfast_wire::peer::PeerMessage;

use crate::disk::{CLUSTER, Disk};
use crate::monitor::Monitor;

/// One OSD.
#[derive(Debug)]
pub(crate) struct Node {
    pub id: OsdId,
    pub incarnation: Incarnation,
    pub running: bool,
    /// How this run stands by the maps that it has seen.
    pub standing: Standing,
    pub disk: Disk,
    /// Counts crashes: what a dead process had under way is void.
    pub generation: u64,
    pub pgs: BTreeMap<PgId, Pg>,
    /// The map that the placement groups were fed last.
    pub step: Arc<MapStep>,
    /// No map reaches this node before this time.
    pub lags_until: Timestamp,
    /// Whether the next map is taken as a whole, without those before it.
    pub skips: bool,
    /// When each placement group wants to be woken; older wishes are void.
    pub wakes: BTreeMap<PgId, Timestamp>,
    pub slots: Slots,
    pub heartbeats: HeartbeatTable,
    pub leases: Leases,
    pub early_beats: EarlyBeats,
    /// What its clock counts while a thousand units pass.
    pub clock_rate: u64,
    /// Whether the process is to stop before it answers a read the next time.
    pub pauses_at_answer: bool,
    /// Whether a report is on its way.
    pub report_due: bool,
    /// Whether its machine has power, so that connections are refused when no process listens.
    pub powered: bool,
    /// The process does nothing before this time.
    pub paused_until: Timestamp,
    /// Its disk does nothing before this time.
    pub stuck_until: Timestamp,
    /// Whether its disk has failed a write or a sync: it is not used again.
    pub disk_failed: bool,
    /// What it stopped before: it goes on with this, whatever has come in meanwhile.
    pub unperformed: VecDeque<(PgId, Undone)>,
    pub space: PeerSpace,
    /// For a mutant: how full it was when it was fullest, and when that was.
    pub fullest: Option<(Timestamp, StoreUsage)>,
    /// Placement groups of which the store refused a transaction in this run.
    pub stopped: BTreeSet<PgId>,
    /// Messages and requests that came with a newer map than this node's.
    pub early: Vec<(OsdId, Incarnation, PeerMessage)>,
    pub waiting: Vec<(usize, ClientRequest)>,
    /// Formattings after a loss.
    pub life: u8,
    /// Up to this epoch the disk has lost all that it held.
    pub lost_before: Option<Epoch>,
    /// Copies that could not be used when the present run began.
    pub unusable: BTreeSet<PgId>,
    pub copies_lost: u64,
    /// Objects found damaged, and how many of them are whole again.
    pub copies_damaged: u64,
    pub copies_repaired: u64,
    limits: Limits,
    segments: u32,
}

/// What a process that has stopped in the middle of a step has yet to do.
#[derive(Debug)]
pub(crate) enum Undone {
    /// What a step has decided.
    Outputs(Outbox),
    /// The next step: it reads what the one before has written.
    Step(Box<Input>),
}

impl Node {
    pub fn new(id: OsdId, limits: Limits, segments: u32, clock_rate: u64) -> Result<Node, String> {
        Ok(Node {
            id,
            incarnation: Incarnation(0),
            running: false,
            standing: Standing::Unseen,
            disk: Disk::format(id, 0, segments)?,
            generation: 0,
            pgs: BTreeMap::new(),
            step: MapStep::new(Arc::new(ClusterMap::empty(CLUSTER))),
            lags_until: Timestamp::ZERO,
            skips: false,
            wakes: BTreeMap::new(),
            slots: Slots::default(),
            heartbeats: HeartbeatTable::default(),
            leases: Leases::new(Timestamp::ZERO),
            early_beats: EarlyBeats::default(),
            clock_rate,
            pauses_at_answer: false,
            report_due: false,
            powered: true,
            paused_until: Timestamp::ZERO,
            stuck_until: Timestamp::ZERO,
            disk_failed: false,
            unperformed: VecDeque::new(),
            space: PeerSpace::default(),
            fullest: None,
            stopped: BTreeSet::new(),
            early: Vec::new(),
            waiting: Vec::new(),
            life: 0,
            lost_before: None,
            unusable: BTreeSet::new(),
            copies_lost: 0,
            copies_damaged: 0,
            copies_repaired: 0,
            limits,
            segments,
        })
    }

    pub fn epoch(&self) -> Epoch {
        self.step.map.epoch
    }

    /// Whether its process runs and the newest map that it has seen has it up.
    pub fn is_up(&self) -> bool {
        self.running && self.standing == Standing::Up
    }

    /// What its clock shows.
    pub fn clock(&self, now: Timestamp) -> Timestamp {
        scaled(now, self.clock_rate, RATE)
    }

    /// When its clock shows this.
    pub fn until(&self, at: Timestamp) -> Timestamp {
        let earliest = scaled(at, RATE, self.clock_rate);
        if self.clock(earliest) < at { Timestamp::from_nanos(earliest.as_nanos() + 1) } else { earliest }
    }

    /// The other OSDs that are up, by its map.
    pub fn up_peers(&self) -> BTreeMap<OsdId, Incarnation> {
        let up = self.step.map.osds.iter().filter(|(osd, info)| info.up && **osd != self.id);
        up.map(|(osd, info)| (*osd, info.incarnation)).collect()
    }

    pub fn waits_for_lease(&self, pg: PgId) -> bool {
        self.pgs.get(&pg).is_some_and(Pg::waits_for_lease)
    }

    /// Gives one input to one placement group.
    pub fn step_pg(&mut self, now: Timestamp, pg: PgId, input: Input) -> Outbox {
        let (mut outbox, local) = (Outbox::new(), self.clock(now));
        if let Some(core) = self.pgs.get_mut(&pg) {
            let view = Local::new(self.disk.engine(), pg, &self.space, &self.leases);
            core.step(local, input, &view, &mut outbox);
        }
        outbox
    }

    /// Whether this node is a member, by the map that it has.
    pub fn is_member(&self, pg: PgId) -> bool {
        is_member(&self.step.members_of(pg), self.id)
    }

    /// The placement groups that must exist now and do not.
    pub fn missing_pgs(&self) -> Vec<PgId> {
        // A copy that could not be split may hold what a child made anew would hide: this run ends.
        let unsplit = |pool| self.stopped.iter().any(|stopped| stopped.pool == pool);
        let owed = |pg: PgId| self.pgs.values().any(|copy| copy.owed_children().contains(&pg));
        let missing = |pg: &&PgId| !self.pgs.contains_key(*pg) && !unsplit(pg.pool) && !owed(**pg);
        let mine = self.step.members.iter().filter(|(_, members)| is_member(members, self.id)).map(|(pg, _)| pg);
        mine.filter(missing).copied().collect()
    }

    /// Makes a placement group as of the present map, without a copy on this disk.
    pub fn create(&mut self, pg: PgId) {
        let map = self.step.map.clone();
        let unusable = self.disk.engine().collection_exists(collection_of(pg));
        let made = if unusable || self.may_have_lost(pg) {
            Pg::create_lost(pg, self.id, self.incarnation, map, self.limits, unusable)
        } else {
            Pg::create(pg, self.id, self.incarnation, map, self.limits)
        };
        self.pgs.insert(pg, made);
    }

    /// Whether the placement group may have been here in the disk's earlier life, or in a copy that could not be used.
    pub fn may_have_lost(&self, pg: PgId) -> bool {
        let created = self.step.map.pools.get(&pg.pool).map_or(Epoch::ZERO, |pool| pool.created);
        self.lost_before.is_some_and(|before| created <= before) || may_be_part_of(&self.unusable, pg)
    }

    /// Gives up what the disk held; it begins anew, empty.
    pub fn give_up_disk(&mut self) -> Result<(), String> {
        self.life += 1;
        self.lost_before = None;
        self.disk = Disk::format(self.id, self.life, self.segments)?;
        Ok(())
    }

    /// Starts a run from the disk. Gives the maps that are to be fed, in order, and the newest epoch that it has kept.
    pub fn begin(
        &mut self,
        incarnation: Incarnation,
        monitor: &Monitor,
        now: Timestamp,
    ) -> Result<(Vec<Arc<MapStep>>, Epoch), String> {
        self.incarnation = incarnation;
        (self.running, self.standing, self.powered) = (true, Standing::Unseen, true);
        self.pgs.clear();
        self.wakes.clear();
        self.stopped.clear();
        self.early.clear();
        self.waiting.clear();
        (self.heartbeats, self.report_due) = (HeartbeatTable::default(), false);
        (self.leases, self.early_beats) = (Leases::new(self.clock(now)), EarlyBeats::default());
        self.pauses_at_answer = false;
        (self.slots, self.space) = (Slots::default(), PeerSpace::default());
        let held = needed_maps(self.disk.engine(), CLUSTER).map_err(|error| format!("N0: {}: {error}", self.id))?;
        let known = |map: &Arc<ClusterMap>| {
            let step = monitor.step(map.epoch).filter(|step| step.map == *map).cloned();
            step.ok_or_else(|| format!("N0: {} kept a map {} that never was", self.id, map.epoch))
        };
        let mut steps =
            std::iter::once(&held.start).chain(&held.kept).map(known).collect::<Result<Vec<_>, String>>()?;
        let (newest, kept) = (monitor.map().epoch, held.newest().epoch);
        // Who has nothing begins with the newest.
        let skips = std::mem::take(&mut self.skips) || kept == Epoch::ZERO;
        let first = if skips { newest.0.max(kept.0 + 1) } else { kept.0 + 1 };
        let new: Vec<_> = (first..=newest.0).filter_map(|epoch| monitor.step(Epoch(epoch)).cloned()).collect();
        let caught_up = CaughtUp { new: new.iter().map(|step| step.map.clone()).collect(), ..held };
        steps.extend(new);
        if self.life > 0 && self.lost_before.is_none() {
            self.lost_before = Some(caught_up.newest().epoch);
        }
        let taken = take_up(self.disk.engine(), self.id, incarnation, &caught_up, self.limits)
            .map_err(|(pg, error)| format!("N0: {} cannot take {pg} up: {error}", self.id))?;
        if let Some((pg, error)) = taken.lost.first()
            && self.disk.flips == 0
        {
            return Err(format!("N1: {} lost its copy of {pg}, though nothing rotted: {error}", self.id));
        }
        self.copies_lost += taken.lost.len() as u64;
        self.unusable = taken.lost.iter().map(|(pg, _)| *pg).collect();
        self.pgs = taken.pgs;
        self.step = steps.remove(0);
        // Those that it has kept need not be kept again, but the placement groups must see them.
        Ok((steps, kept))
    }

    /// The map that this node takes next, if there is one.
    pub fn next_map(&mut self, monitor: &Monitor) -> Option<Arc<MapStep>> {
        let newest = monitor.map().epoch;
        let skips = newest > self.epoch() && std::mem::take(&mut self.skips);
        let epoch = if skips { newest } else { self.epoch().next() };
        monitor.step(epoch).cloned()
    }
}

/// The rate of a clock that runs right.
pub(crate) const RATE: u64 = 1_000;

fn scaled(time: Timestamp, by: u64, of: u64) -> Timestamp {
    let nanos = u128::from(time.as_nanos()) * u128::from(by) / u128::from(of);
    Timestamp::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn is_member(members: &PgMembers, osd: OsdId) -> bool {
    members.up.contains(&osd) || members.acting.contains(&osd)
}

#[cfg(test)]
mod tests {
    use holdfast_map::{OsdInfo, Pool, PoolKind};
    use holdfast_pg::Output;
    use holdfast_types::{DiskUuid, PoolId};

    use super::*;

    const ME: OsdId = OsdId(0);
    const PARENT: PgId = PgId { pool: PoolId(1), seed: 0 };
    const CHILD: PgId = PgId { pool: PoolId(1), seed: 1 };

    /// A pool of one placement group, which the node keeps alone; split in two from epoch 2 on.
    fn map(epoch: u64) -> Arc<ClusterMap> {
        let mut map = ClusterMap::empty(CLUSTER);
        map.epoch = Epoch(epoch);
        let info = OsdInfo {
            disk: DiskUuid([1; 16]),
            incarnation: Incarnation(1),
            address: "osd-0:0".to_owned(),
            up: true,
            in_cluster: true,
            reweight: 0x1_0000,
            up_from: Epoch(1),
            up_thru: Epoch(1),
            down_at: Epoch(0),
            dead_epoch: Epoch(0),
            formatted_at: Epoch(0),
        };
        map.osds.insert(ME, info);
        let kind = PoolKind::Replicated { size: 1, min_size: 1 };
        let (name, application) = ("pool".to_owned(), "test".to_owned());
        map.pools.insert(PARENT.pool, Pool { name, kind, pg_num: 1, rule: 0, created: Epoch(1), application });
        map.next_pool = PoolId(2);
        map.pg_temp.insert(PARENT, vec![ME]);
        assert!(epoch == 1 || map.split_pool(PARENT.pool, 2));
        Arc::new(map)
    }

    #[test]
    fn no_empty_child_is_made_while_its_parent_is_not_split() {
        let mut node = Node::new(ME, Limits::default(), 40, RATE).expect("a node");
        node.incarnation = Incarnation(1);
        node.step = MapStep::new(map(1));
        node.create(PARENT);
        for output in node.step_pg(Timestamp::ZERO, PARENT, Input::Tick) {
            if let Output::Submit { txn, ops } = output {
                node.disk.submit(Incarnation(1), PARENT, txn, ops).expect("taken");
            }
        }
        node.step = MapStep::new(map(3));
        assert_eq!(node.missing_pgs(), [CHILD], "nothing speaks for it but this");
        node.stopped.insert(PARENT);
        assert!(node.missing_pgs().is_empty(), "the store has refused to split the copy");
        node.stopped.clear();
        let view = Local::new(node.disk.engine(), PARENT, &node.space, &node.leases);
        let taken_up = Pg::load(PARENT, ME, Incarnation(1), map(3), node.limits, &view).expect("a copy");
        node.pgs.insert(PARENT, taken_up);
        assert!(node.missing_pgs().is_empty(), "its first step will split it");
    }
}
