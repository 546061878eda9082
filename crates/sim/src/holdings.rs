//! What becomes of each copy of each version of each object: what is durable on which disk, and how it ceased to be there.
//!
//! A transaction counts from when it is durable: a version that a disk never had cannot be lost with that disk. After a crash
//! the disk itself tells what it holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_pg::{ObjectKey, StoreOp};
use holdfast_types::{Incarnation, LogVersion, ObjectName, OsdId, PgId, RequestId};
use holdfast_wire::peer::EntryKind;

use crate::disk::Disk;
use crate::node::Node;
use crate::world::World;

/// What has become of a copy of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The simulator made a sector of it unreadable, or its disk was given up.
    Struck,
    /// This later write was carried out over it.
    Replaced(LogVersion),
    /// It is whole, or nothing explains why it is not there any more.
    Unexplained,
}

/// How a disk ceased to hold a version of an object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    /// The write that was carried out over it; `None`: it was removed otherwise.
    pub by: Option<LogVersion>,
    /// Whether a sector of it could not be read then.
    struck: bool,
}

/// A disk in one of its lives.
pub(crate) type Life = (OsdId, u8);

/// What a transaction does to one object.
#[derive(Debug)]
pub(crate) struct Change {
    key: ObjectKey,
    /// The version that the disk ceases to hold.
    ends: Option<(LogVersion, End)>,
    /// The version that it holds from then on.
    begins: Option<LogVersion>,
}

/// A request was told that no copy can be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ToldUnreadable {
    /// Whether that was so each time.
    pub right: bool,
    /// Who told it last.
    by: (OsdId, Incarnation),
}

/// Each copy of each version that there ever was, and what the clients were told.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    pub copies: BTreeMap<ObjectKey, BTreeMap<LogVersion, BTreeMap<Life, Option<End>>>>,
    /// What was submitted to each disk and is not known to be durable, with its position in the store's log.
    submitted: BTreeMap<Life, VecDeque<(u64, Vec<Change>)>>,
    pub told: BTreeMap<ObjectKey, LogVersion>,
    /// Requests that were told that no copy can be read.
    pub unreadable: BTreeMap<RequestId, ToldUnreadable>,
    /// Objects that are lost in the end.
    pub lost: BTreeSet<ObjectKey>,
}

/// What a transaction does to the objects of a placement group, seen just before it is submitted.
pub(crate) fn changes(disk: &Disk, pg: PgId, ops: &[StoreOp]) -> Vec<Change> {
    let mut objects: BTreeSet<ObjectKey> = ops
        .iter()
        .filter_map(|op| match op {
            StoreOp::Object { key, .. } => Some(key.clone()),
            _ => None,
        })
        .collect();
    let dropped = ops.contains(&StoreOp::RemoveCollection);
    if dropped {
        objects.extend(disk.keys_of(pg));
    }
    let given: BTreeMap<&ObjectKey, LogVersion> = ops.iter().filter_map(StoreOp::version_given).collect();
    let deleted = |key: &ObjectKey| {
        let entries = ops.iter().filter_map(StoreOp::entry_logged);
        let deletes = entries.filter(|entry| entry.kind == EntryKind::Delete && ObjectKey::of(&entry.object) == *key);
        deletes.map(|entry| entry.version).max()
    };
    let change = |key: ObjectKey| {
        let begins = given.get(&key).copied();
        let held = disk.version_of(pg, &key).filter(|held| Some(*held) != begins);
        // What goes with its whole collection was not written over, whatever comes after it.
        let by = || begins.or_else(|| deleted(&key)).filter(|_| !dropped);
        let ends = held.map(|held| (held, End { by: by(), struck: disk.has_bad_sector(pg, &key) }));
        Change { ends, begins, key }
    };
    objects.into_iter().map(change).collect()
}

impl Holdings {
    /// A request was told that no copy can be read. `right`: by the judgement of now; `None` where nobody lacks the object.
    /// Then it is right only to repeat what the same run has told a request that changes something: what has failed stays so
    /// (C4), whatever has become of the object since.
    pub fn told_unreadable(&mut self, id: RequestId, changes: bool, by: (OsdId, Incarnation), right: Option<bool>) {
        let before = self.unreadable.get(&id);
        let repeated = changes && before.is_some_and(|before| before.by == by);
        let right = right.unwrap_or(repeated) && before.is_none_or(|before| before.right);
        self.unreadable.insert(id, ToldUnreadable { right, by });
    }

    /// A transaction was taken.
    pub fn submitted(&mut self, life: Life, position: u64, changes: Vec<Change>) {
        self.submitted.entry(life).or_default().push_back((position, changes));
    }

    /// All up to this position is durable.
    pub fn durable(&mut self, life: Life, position: u64) {
        let Some(submitted) = self.submitted.get_mut(&life) else { return };
        let now = submitted.iter().take_while(|(at, _)| *at <= position).count();
        for Change { key, ends, begins } in submitted.drain(..now).flat_map(|(_, changes)| changes) {
            let versions = self.copies.entry(key).or_default();
            for (version, end) in
                ends.map(|(held, end)| (held, Some(end))).into_iter().chain(begins.map(|new| (new, None)))
            {
                versions.entry(version).or_default().insert(life, end);
            }
        }
    }

    /// A disk was opened after a crash, which kept all up to this position. What it holds comes before what was noted: what
    /// should be there, and is not, excuses nothing.
    pub fn found(&mut self, life: Life, position: u64, disk: &Disk) {
        self.durable(life, position);
        self.submitted.remove(&life);
        let pgs = disk.pgs();
        for (key, versions) in &mut self.copies {
            let held: Vec<LogVersion> = pgs.iter().filter_map(|pg| disk.version_of(*pg, key)).collect();
            for (version, lives) in versions {
                let Some(end) = lives.get_mut(&life) else { continue };
                if held.contains(version) {
                    *end = None;
                } else if end.is_none() {
                    *end = Some(End { by: None, struck: false });
                }
            }
        }
    }

    /// Every member of every placement group has a copy again: what became of disks that were given up before is over, and
    /// explains nothing that is lost later.
    pub fn healed(&mut self, nodes: &[Node]) {
        let is_now = |life: &Life| nodes.get(life.0.0 as usize).is_some_and(|node| node.life == life.1);
        self.submitted.retain(|life, _| is_now(life));
        for versions in self.copies.values_mut() {
            versions.retain(|_, lives| {
                lives.retain(|life, _| is_now(life));
                !lives.is_empty()
            });
        }
        self.copies.retain(|_, versions| !versions.is_empty());
    }

    /// What a running process has done to its copy of a version, which need not be durable yet.
    fn ending(&self, life: Life, key: &ObjectKey, version: LogVersion) -> Option<End> {
        let changes = self.submitted.get(&life).into_iter().flatten().flat_map(|(_, changes)| changes);
        let ends = changes.filter(|change| change.key == *key).filter_map(|change| change.ends);
        ends.filter(|(held, _)| *held == version).map(|(_, end)| end).next_back()
    }

    /// Disks that may have a version, though it is not known to be durable there.
    fn may_have(&self, key: &ObjectKey, version: LogVersion) -> Vec<Life> {
        let begins = |change: &Change| change.key == *key && change.begins == Some(version);
        let begun = |submitted: &VecDeque<(u64, Vec<Change>)>| submitted.iter().any(|(_, all)| all.iter().any(begins));
        self.submitted.iter().filter(|(_, submitted)| begun(submitted)).map(|(life, _)| *life).collect()
    }

    pub fn told(&mut self, object: &ObjectName, version: LogVersion) {
        let told = self.told.entry(ObjectKey::of(object)).or_default();
        *told = version.max(*told);
    }

    /// The disks whose copy of one of these versions was struck.
    pub fn struck<'a>(
        &self,
        nodes: &[Node],
        key: &ObjectKey,
        versions: impl Iterator<Item = &'a LogVersion>,
    ) -> BTreeSet<Life> {
        let mut struck = BTreeSet::new();
        for version in versions {
            let copies = self.copies.get(key).and_then(|of_all| of_all.get(version));
            for (life, end) in copies.into_iter().flatten() {
                if fate(nodes, *life, key, *version, *end, self.ending(*life, key, *version)) == Fate::Struck {
                    struck.insert(*life);
                }
            }
        }
        struck
    }

    pub fn fates(&self, nodes: &[Node], key: &ObjectKey, version: LogVersion) -> Vec<Fate> {
        let copies = self.copies.get(key).and_then(|versions| versions.get(&version));
        let fate = |(life, end): (&Life, &Option<End>)| {
            fate(nodes, *life, key, version, *end, self.ending(*life, key, version))
        };
        let mut fates: Vec<Fate> = copies.into_iter().flatten().map(fate).collect();
        // What may be there, and is whole, is as good as what is; what is not there was never a copy that could be lost.
        let maybe = self.may_have(key, version).into_iter().filter(|life| copies.is_none_or(|c| !c.contains_key(life)));
        fates.extend(maybe.filter(|life| may_be_whole(nodes, *life, key, version)).map(|_| Fate::Unexplained));
        fates
    }
}

/// The node, if the disk of this life is in use yet.
fn in_use(nodes: &[Node], (osd, life): Life) -> Option<&Node> {
    nodes.get(osd.0 as usize).filter(|node| life == node.life && !node.disk_failed)
}

/// Whether an open disk holds this version, and if so, whether each copy there is struck.
fn held_struck(node: &Node, key: &ObjectKey, version: LogVersion) -> Option<bool> {
    let copies = node.disk.pgs().into_iter().filter(|pg| node.disk.version_of(*pg, key) == Some(version));
    copies.map(|pg| node.disk.has_bad_sector(pg, key)).reduce(|all, struck| all && struck)
}

/// Whether a disk may hold a whole copy of a version that was submitted to it.
fn may_be_whole(nodes: &[Node], life: Life, key: &ObjectKey, version: LogVersion) -> bool {
    let Some(node) = in_use(nodes, life) else { return false };
    !node.disk.is_open() || held_struck(node, key, version) == Some(false)
}

/// What has become of the copy that a disk held in one of its lives. `end`: how it durably ceased to; `ending`: how the process
/// has it.
fn fate(
    nodes: &[Node],
    life: Life,
    key: &ObjectKey,
    version: LogVersion,
    end: Option<End>,
    ending: Option<End>,
) -> Fate {
    let ended = |end| match end {
        Some(End { struck: true, .. }) => Fate::Struck,
        Some(End { by: Some(by), .. }) => Fate::Replaced(by),
        Some(End { by: None, .. }) | None => Fate::Unexplained,
    };
    let Some(node) = in_use(nodes, life) else {
        // It had the copy to the last, or not: what was not durable never counted.
        return if end.is_none() { Fate::Struck } else { ended(end) };
    };
    if !node.disk.is_open() {
        return Fate::Unexplained;
    }
    match held_struck(node, key, version) {
        Some(true) => Fate::Struck,
        Some(false) => Fate::Unexplained,
        None => ended(ending.or(end)),
    }
}

impl World {
    /// What a transaction is about to do, if anybody wants to know.
    pub(crate) fn changes(&self, osd: OsdId, pg: PgId, ops: &[StoreOp]) -> Vec<Change> {
        let node = self.nodes.get(osd.0 as usize).filter(|_| self.holdings.is_some());
        node.map(|node| changes(&node.disk, pg, ops)).unwrap_or_default()
    }

    /// It was taken.
    pub(crate) fn changed(&mut self, osd: OsdId, changes: Vec<Change>) {
        let Some((life, node)) = self.nodes.get(osd.0 as usize).map(|node| ((osd, node.life), node)) else { return };
        if let Some(holdings) = &mut self.holdings {
            holdings.submitted(life, node.disk.submitted_position(), changes);
        }
    }

    /// Takes note of it when all is whole again.
    pub(crate) fn note_healed(&mut self) {
        if self.holdings.is_none() || !self.nodes.iter().all(Node::is_up) || !self.all_clean() {
            return;
        }
        if let Some(holdings) = &mut self.holdings {
            holdings.healed(&self.nodes);
        }
    }

    /// Takes note of what is durable on a disk by now.
    pub(crate) fn note_durable(&mut self, osd: OsdId) {
        let Some(node) = self.nodes.get(osd.0 as usize).filter(|node| node.disk.is_open()) else { return };
        if let Some(holdings) = &mut self.holdings {
            holdings.durable((osd, node.life), node.disk.durable_position());
        }
    }

    /// Takes note of what a crash has left of a disk, which has just been opened.
    pub(crate) fn note_found(&mut self, osd: OsdId) {
        let Some(node) = self.nodes.get(osd.0 as usize) else { return };
        if let Some(holdings) = &mut self.holdings {
            holdings.found((osd, node.life), node.disk.submitted_position(), &node.disk);
        }
    }
}
