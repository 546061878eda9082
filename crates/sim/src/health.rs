//! Truthful health: whether what is said of the cluster's state agrees with what is there.
//!
//! TH1: a primary that reports its placement group as clean says that each member holds each object in its newest version. So
//! the disks of all members are compared then. What the primary cannot know is no lie, and is left out:
//!
//! | left out | because |
//! |---|---|
//! | a member whose process is not running, runs anew, or follows another interval | the primary has not heard of it yet |
//! | a member that has stopped in the middle of a step | what it has noted is not on its disk yet |
//! | a version that is not in the member's log yet | the write is on its way, and this primary has not acknowledged it |
//! | what cannot be read, on a disk whose bits were flipped | nobody has read it since |
//!
//! TH2: what `holdfast status` would say. Each second it is compared with what the leader was told: as many placement groups
//! are clean as present primaries have last said are, all is well only when all are and each OSD that is in is up and heard of.
//! In the end, when all is clean, it must say that all is well, or name just what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_mon_state::leader::REPORT_STALE;
use holdfast_pg::ObjectKey;
use holdfast_types::{Incarnation, LogVersion, OsdId, PgId, Timestamp};
use holdfast_wire::mon::{OsdReport, PgReport, Severity, StatusReport};

use crate::monitor::POOL;
use crate::node::Node;
use crate::world::World;

/// How often the disks of a placement group are compared that goes on saying that it is clean.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often the monitors are asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// An OSD of which the leader has heard nothing for so long is known to be silent: what the leader allows, and a moment.
const SILENCE_TOLD: Duration = Duration::from_secs(16);
/// In the end reports arrive, and what was judged is said, within this time.
const REST_MAX: Duration = Duration::from_secs(30);

/// What was said, when, and by which run.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// When the disks of a placement group that this primary calls clean were compared last.
    compared: BTreeMap<(OsdId, PgId), (Incarnation, Timestamp)>,
    /// What the leader was last told by each OSD of each placement group that it leads: by which run, and whether it is clean.
    told: BTreeMap<(PgId, OsdId), (Incarnation, bool)>,
    /// When the leader last heard of each OSD's run.
    heard: BTreeMap<OsdId, (Incarnation, Timestamp)>,
    asked: Timestamp,
    /// OSDs whose boots are refused because they flap.
    pub held_off: BTreeSet<OsdId>,
}

/// The objects of a copy, each with its version; `None`: it cannot be read, or says none.
type Versions = BTreeMap<ObjectKey, Option<LogVersion>>;

/// `None` where nothing can be said because the disk rots.
fn versions(node: &Node, pg: PgId) -> Result<Option<Versions>, String> {
    match node.disk.versions(pg) {
        Ok(versions) => Ok(Some(versions)),
        Err(_) if node.disk.flips > 0 => Ok(None),
        Err(error) => Err(format!("{} cannot list its objects: {error}", node.id)),
    }
}

/// The same version, or not known to be another because the bits of a disk were flipped.
fn agree(one: Option<LogVersion>, other: Option<LogVersion>, flips: u64) -> bool {
    one == other || flips > 0 && (one.is_none() || other.is_none())
}

/// What the copy of a member lacks that the primary has, or has that the primary does not.
/// `acknowledged` is the newest version of an object that the primary has told a client is durable everywhere.
fn differs(
    primary: &Versions,
    member: &Versions,
    heads: (LogVersion, LogVersion),
    flips: u64,
    acknowledged: impl Fn(&ObjectKey) -> LogVersion,
) -> Option<String> {
    let (primary_head, member_head) = heads;
    for (key, version) in primary {
        let theirs = member.get(key).copied();
        let on_its_way = version.is_some_and(|version| version > member_head && version > acknowledged(key));
        if !on_its_way && theirs.is_none_or(|theirs| !agree(*version, theirs, flips)) {
            return Some(format!("{key:?} is of version {version:?} there and {theirs:?} here"));
        }
    }
    // Whose log ends where the primary's does has removed what the primary has removed.
    let beside = member.keys().find(|key| primary_head == member_head && !primary.contains_key(*key));
    beside.map(|key| format!("{key:?} is here alone"))
}

impl World {
    /// TH1: looks at the disks of placement groups that this primary calls clean, when it begins to, and now and then.
    pub(crate) fn check_clean(&mut self, osd: OsdId, reports: &[PgReport]) {
        let (now, run) = (self.now, self.node(osd).incarnation);
        for report in reports {
            let key = (osd, report.pg);
            if !report.state.clean {
                self.health.compared.remove(&key);
                continue;
            }
            let lately = |(by, at): &(Incarnation, Timestamp)| *by == run && now.since(*at) < LOOK_EVERY;
            if self.health.compared.get(&key).is_some_and(lately) {
                continue;
            }
            self.health.compared.insert(key, (run, now));
            if let Err(lie) = self.compare_members(osd, report.pg) {
                let violation = format!("TH1: {osd} says that {} is clean: {lie}", report.pg);
                self.violation.get_or_insert(violation);
            }
        }
    }

    /// Whether each member that the primary can know of holds what the primary holds.
    fn compare_members(&mut self, primary: OsdId, pg: PgId) -> Result<(), String> {
        if !self.is_done(primary, pg) {
            return Ok(());
        }
        let node = self.node(primary);
        let Some(core) = node.pgs.get(&pg) else { return Ok(()) };
        let report = core.report();
        let runs: Vec<_> = report.acting.iter().map(|osd| (*osd, node.step.map.osds.get(osd).cloned())).collect();
        let Some(ours) = versions(node, pg)? else { return Ok(()) };
        let flips = node.disk.flips;
        let began = self.beginning(primary, pg, report.epoch);
        for (member, info) in runs.into_iter().filter(|(member, _)| *member != primary) {
            let is_member = info.is_some_and(|info| info.up && self.is_run(member, info.incarnation));
            if !is_member || !self.is_done(member, pg) {
                continue;
            }
            let node = self.node(member);
            let epoch = node.pgs.get(&pg).map_or(node.epoch(), holdfast_pg::Pg::epoch);
            if self.beginning(member, pg, epoch) != began {
                continue;
            }
            let node = self.node(member);
            let Some(core) = node.pgs.get(&pg) else { return Err(format!("{member} has no copy")) };
            let heads = (report.last_update, core.report().last_update);
            let Some(theirs) = versions(node, pg)? else { continue };
            let flips = flips + node.disk.flips;
            // Who took over may have acknowledged what this one could not.
            let acknowledged = |key: &ObjectKey| {
                let newest = self.acknowledged.get(&key.name()).filter(|newest| newest.by == primary);
                newest.map_or(LogVersion::ZERO, |newest| newest.version)
            };
            if let Some(what) = differs(&ours, &theirs, heads, flips, acknowledged) {
                return Err(format!("{member}, whose log ends at {}: {what}", heads.1));
            }
        }
        Ok(())
    }

    /// Whether all that the OSD's process has decided has reached its store.
    fn is_done(&mut self, osd: OsdId, pg: PgId) -> bool {
        let node = self.node(osd);
        node.running && node.disk.is_open() && node.unperformed.is_empty() && !node.stopped.contains(&pg)
    }

    /// What reaches the leader.
    pub(crate) fn note_report(&mut self, report: &OsdReport) {
        let map = self.monitor.map();
        if map.osds.get(&report.osd).is_some_and(|info| info.up && info.incarnation == report.incarnation) {
            self.health.heard.insert(report.osd, (report.incarnation, self.now));
            for pg in &report.pgs {
                self.health.told.insert((pg.pg, report.osd), (report.incarnation, pg.state.clean));
            }
        }
    }

    /// A new leader has heard nothing.
    pub(crate) fn forget_reports(&mut self) {
        self.health.told.clear();
        let heard = self.monitor.map().osds.iter().map(|(osd, info)| (*osd, (info.incarnation, self.now)));
        self.health.heard = heard.collect();
    }

    /// TH2: asks the monitors as `holdfast status` does, and holds the answer against what they were told.
    pub(crate) fn ask_status(&mut self) {
        for (osd, info) in &self.monitor.newest().map.osds {
            let heard = self.health.heard.get(osd).is_some_and(|(run, _)| *run == info.incarnation);
            if !heard {
                self.health.heard.insert(*osd, (info.incarnation, self.now));
            }
        }
        if self.now.since(self.health.asked) < ASK_EVERY {
            return;
        }
        self.health.asked = self.now;
        self.note_healed();
        self.count_hold_offs();
        let status = self.monitor.status(self.now);
        if let Err(lie) = self.judge_status(&status) {
            self.violation.get_or_insert(format!("TH2: {lie}: {:?}, {:?}", status.pg_states, status.checks));
        }
    }

    fn judge_status(&self, status: &StatusReport) -> Result<(), String> {
        let (map, pgs) = (self.monitor.map(), self.monitor.pgs());
        let said: u32 = status.pg_states.iter().filter(|(words, _)| words.contains("clean")).map(|(_, n)| n).sum();
        let unclean: Vec<PgId> = pgs.into_iter().filter(|pg| !self.was_told_clean(*pg)).collect();
        let told = self.monitor.pgs().len().saturating_sub(unclean.len());
        if said as usize > told {
            return Err(format!("{said} placement groups are said to be clean, of {unclean:?} that was not reported"));
        }
        if status.health != Severity::Ok {
            return Ok(());
        }
        if let Some(pg) = unclean.first() {
            return Err(format!("all is said to be well, and {pg} is not clean"));
        }
        let silent = |osd: &OsdId| self.health.heard.get(osd).is_none_or(|(_, at)| self.now.since(*at) >= SILENCE_TOLD);
        match map.osds.iter().find(|(osd, info)| info.in_cluster && (!info.up || silent(osd))) {
            Some((osd, _)) => Err(format!("all is said to be well, and {osd} is down or silent")),
            None => Ok(()),
        }
    }

    /// Whether the last that the present primary has said of it lately is that it is clean.
    fn was_told_clean(&self, pg: PgId) -> bool {
        let newest = self.monitor.newest();
        let Some(primary) = newest.members_of(pg).primary() else { return false };
        let Some(info) = newest.map.osds.get(&primary).filter(|info| info.up) else { return false };
        let fresh =
            |(run, at): &(Incarnation, Timestamp)| *run == info.incarnation && self.now.since(*at) < REPORT_STALE;
        self.health.heard.get(&primary).is_some_and(fresh)
            && self.health.told.get(&(pg, primary)) == Some(&(info.incarnation, true))
    }

    /// TH2: when all is clean, the monitors say soon that all is well, but for what is not, which they name.
    pub(crate) fn check_status_at_rest(&mut self) -> Result<(), String> {
        let end = self.now + REST_MAX;
        loop {
            let status = self.monitor.status(self.now);
            let said: BTreeSet<&str> = status.checks.iter().map(|check| check.code.as_str()).collect();
            let (must, may) = self.to_be_said();
            let clean: u32 = status.pg_states.iter().filter(|(words, _)| words.contains("clean")).map(|(_, n)| n).sum();
            let missed: Vec<_> = must.difference(&said).collect();
            let beside: Vec<_> = said.iter().filter(|code| !must.contains(*code) && !may.contains(*code)).collect();
            if missed.is_empty()
                && beside.is_empty()
                && clean as usize + self.pgs_of_the_lost().len() >= status.pgs as usize
                && (status.health == Severity::Ok) == said.is_empty()
            {
                return Ok(());
            }
            if self.now >= end {
                return Err(format!(
                    "TH2: at rest, {missed:?} is not said and {beside:?} is: {:?}, {:?}",
                    status.pg_states, status.checks
                ));
            }
            self.run_until(self.now + Duration::from_millis(500))?;
        }
    }

    /// The placement groups that are not clean because nobody can give an object of theirs.
    pub(crate) fn pgs_of_the_lost(&self) -> BTreeSet<PgId> {
        let lost = self.holdings.as_ref().map(|holdings| &holdings.lost);
        lost.into_iter().flatten().filter_map(|key| self.monitor.map().pg_of(POOL, &key.name())).collect()
    }

    /// What must be said at rest, and what may be.
    fn to_be_said(&self) -> (BTreeSet<&'static str>, BTreeSet<&'static str>) {
        let (mut must, mut may) = (BTreeSet::new(), BTreeSet::new());
        let up = || self.nodes.iter().filter(|node| !self.gone.contains(&node.id));
        if self.config.size.min(self.config.min_size) < 2 {
            must.insert("POOL_NO_REDUNDANCY");
        }
        if up().any(|node| node.copies_damaged > 0) {
            must.insert("OSD_CHECKSUM_ERRORS");
        }
        if up().any(|node| node.copies_lost > 0) {
            must.insert("OSD_COPIES_LOST");
        }
        let reports = self.nodes.iter().filter(|node| node.running).flat_map(|node| node.pgs.values());
        let scrubs = reports.filter(|pg| pg.is_primary()).filter_map(|pg| pg.report().scrub);
        if scrubs.into_iter().any(|scrub| scrub.objects_inconsistent > 0) {
            must.extend(["OSD_SCRUB_ERRORS", "PG_DAMAGED"]);
        }
        if self.config.day.is_some() {
            may.extend(["PG_NOT_SCRUBBED", "PG_NOT_DEEP_SCRUBBED"]); // days fly, and scrubs do not
        }
        if !self.pgs_of_the_lost().is_empty() {
            must.insert("OBJECT_UNFOUND");
            may.extend(["PG_DEGRADED", "PG_NOT_CLEAN"]);
        }
        if self.config.fills || self.config.faults.cramps_per_second > 0.0 {
            may.extend(["OSD_NEAR_FULL", "OSD_BACKFILL_FULL", "POOL_NOT_SPLIT"]);
        }
        (must, may)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_pg::{StoreOp, TxnId};
    use holdfast_types::{Epoch, ObjectName};
    use holdfast_wire::Effect;

    use super::*;
    use crate::config::Config;
    use crate::world::Event;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::of(&ObjectName::new(name).expect("valid"))
    }

    fn version(counter: u64) -> LogVersion {
        LogVersion { epoch: Epoch(7), counter }
    }

    fn copy(objects: &[(&str, u64)]) -> Versions {
        objects.iter().map(|(name, counter)| (key(name), Some(version(*counter)))).collect()
    }

    #[test]
    fn what_is_on_its_way_is_no_lie_and_what_a_log_tells_of_and_is_not_there_is_one() {
        let primary = copy(&[("a", 3), ("b", 9)]);
        let lie = |member: &Versions, head| differs(&primary, member, (version(9), version(head)), 0, |_| version(8));
        assert_eq!(lie(&primary, 9), None);
        assert_eq!(lie(&copy(&[("a", 3), ("b", 5)]), 8), None, "the log does not have the write yet");
        assert_eq!(lie(&copy(&[("a", 3)]), 8), None);
        assert!(lie(&copy(&[("a", 3), ("b", 5)]), 9).is_some(), "older");
        let told = differs(&primary, &copy(&[("a", 3)]), (version(9), version(8)), 0, |_| version(9));
        assert!(told.is_some(), "a client was told that it is durable");
        assert!(lie(&copy(&[("b", 9)]), 9).is_some(), "missing");
        assert!(lie(&copy(&[("b", 5)]), 8).is_some(), "missing beside one that is on its way");
        let more = copy(&[("a", 3), ("b", 9), ("c", 4)]);
        assert_eq!(lie(&more, 8), None, "its removal may be on its way");
        assert!(lie(&more, 9).is_some(), "removed elsewhere");
    }

    #[test]
    fn what_cannot_be_read_is_excused_by_flipped_bits_alone() {
        let (whole, mut spoiled) = (copy(&[("a", 3)]), copy(&[("a", 3)]));
        spoiled.insert(key("a"), None);
        let heads = (version(3), version(3));
        assert_eq!(differs(&whole, &spoiled, heads, 1, |_| version(3)), None);
        assert!(differs(&whole, &spoiled, heads, 0, |_| version(3)).is_some());
        assert!(differs(&whole, &copy(&[]), heads, 1, |_| version(3)).is_some(), "what is not there has not rotted");
    }

    /// A cluster that has served for a while, and is at rest.
    fn rested() -> World {
        let mut world = World::new(3, Config::calm()).expect("a world");
        for osd in (0..world.config.osds).map(OsdId) {
            world.schedule(Duration::ZERO, Event::Restart { osd });
        }
        for client in 0..world.clients.len() {
            world.schedule(Duration::from_millis(1), Event::ClientTick { client });
        }
        world.schedule(Duration::from_millis(200), Event::MonTick);
        world.run_until(world.now + Duration::from_secs(4)).expect("no violation");
        world.working = false;
        world.settle().expect("it settles");
        world.check_status_at_rest().expect("all is well");
        world
    }

    #[test]
    fn a_primary_that_calls_a_placement_group_clean_in_which_a_member_lacks_an_object_is_caught() {
        for at_primary in [false, true] {
            let mut world = rested();
            let step = world.monitor.newest().clone();
            let pgs = world.monitor.pgs();
            let full = pgs.into_iter().find(|pg| {
                let first = step.members_of(*pg).primary().expect("a primary");
                !world.nodes[first.0 as usize].disk.versions(*pg).expect("readable").is_empty()
            });
            let pg = full.expect("something was written");
            let acting = step.members_of(pg).acting;
            let node = world.node(acting[usize::from(!at_primary)]);
            let object = node.disk.versions(pg).expect("readable").into_keys().next().expect("an object");
            let ops = vec![StoreOp::Object { key: object, effect: Effect::Remove }];
            node.disk.submit(Incarnation(0), pg, TxnId(0), ops).expect("taken");
            let lie = world.run_until(world.now + LOOK_EVERY + Duration::from_secs(5)).expect_err("it is noticed");
            assert!(lie.starts_with("TH1: "), "{lie}");
        }
    }

    #[test]
    fn monitors_that_say_that_all_is_well_against_what_they_were_told_are_caught() {
        let mut world = rested();
        let status = world.monitor.status(world.now);
        assert_eq!((status.health, world.judge_status(&status)), (Severity::Ok, Ok(())));
        let pg = world.monitor.pgs()[0];
        let primary = world.monitor.newest().members_of(pg).primary().expect("a primary");
        let run = world.node(primary).incarnation;
        world.health.told.insert((pg, primary), (run, false));
        assert!(world.judge_status(&status).is_err(), "a placement group that was last reported otherwise");
        world.health.told.insert((pg, primary), (run, true));
        assert_eq!(world.judge_status(&status), Ok(()));
        world.now = world.now + SILENCE_TOLD;
        assert!(world.judge_status(&status).is_err(), "an OSD of which nothing was heard for long");
    }

    #[test]
    fn at_rest_the_monitors_name_what_is_not_well_and_nothing_else() {
        let mut world = rested();
        world.node(OsdId(1)).copies_damaged = 1;
        world.check_status_at_rest().expect("it is told with the next report");
        assert_eq!(world.monitor.status(world.now).checks[0].code, "OSD_CHECKSUM_ERRORS");
        world.config.min_size = 1; // the pool has 2
        let lie = world.check_status_at_rest().expect_err("it is not said that one copy is enough");
        assert!(lie.starts_with("TH2: "), "{lie}");
    }
}
