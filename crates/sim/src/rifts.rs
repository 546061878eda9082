//! A primary whose network falls apart step by step, while clients reach it: first some OSDs lose it and say so; when it is
//! marked down, the rest of its network goes at the same moment, and it never hears of that.
//!
//! A primary that all lose at once proves nothing of leases: its silence outlives every one of them. Here those who call it
//! silent have granted it nothing lately, and those who have may grant until the last moment:
//!
//! | who hears it until then | who calls it silent | then |
//! |---|---|---|
//! | all other members | two who are no members | they hear it no more; half of the times their processes are killed and back at once |
//! | one other member | all others | that one's process is killed and stays away, or it is cut off together with the primary |

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_pg::Pg;
use holdfast_types::{Incarnation, OsdId, PgId};
use holdfast_wire::{ClientOutcome, ClientReply, ClientRequest};
use rand::Rng;

use crate::cuts::Cut;
use crate::faults::FaultKind;
use crate::monitor::POOL;
use crate::node::Node;
use crate::world::{Event, World};

/// From the first step on, it takes the patience of peers until a primary is marked down; when it takes so long, it never is.
const GIVEN_UP: Duration = Duration::from_secs(14);
/// Calls a primary silent: so many hosts must.
const REPORTERS: usize = 2;

/// A primary that others lose.
#[derive(Debug)]
pub(crate) struct Rift {
    victim: OsdId,
    run: Incarnation,
    /// The members that hear it until it is marked down.
    heard_by: Vec<OsdId>,
    /// Whether they are all other members.
    all: bool,
    fallen: bool,
    /// Counts them: an end that was planned for another one is void.
    number: u64,
}

impl World {
    /// The first step: some OSDs and a primary of theirs lose each other.
    pub(crate) fn begin_rift(&mut self) {
        if self.rift.is_some() || !self.cut_off.is_empty() || !self.one_way.is_empty() {
            return;
        }
        let pg = PgId { pool: POOL, seed: self.rng.random_range(0..self.config.pgs_used) };
        let newest = self.monitor.newest();
        let acting = newest.members_of(pg).acting.clone();
        let up = newest.map.osds.iter().filter(|(_, info)| info.up).map(|(osd, _)| *osd);
        let outside = up.filter(|osd| !acting.contains(osd)).count();
        let Some((victim, members)) = acting.split_first().filter(|(_, members)| !members.is_empty()) else { return };
        let victim = *victim;
        let node = self.node(victim);
        let run = node.incarnation;
        if !node.running || !node.pgs.get(&pg).is_some_and(|core| core.report().state.active) {
            return;
        }
        let all = outside >= REPORTERS && self.rng.random_bool(0.5);
        let heard_by = if all { members.to_vec() } else { vec![members[self.rng.random_range(0..members.len())]] };
        if !self.deals(format!("{victim}, which leads {pg}, is lost by all but {heard_by:?}")) {
            return;
        }
        for other in (0..self.config.osds).map(OsdId).filter(|osd| *osd != victim && !heard_by.contains(osd)) {
            self.one_way.extend([(victim, other), (other, victim)]);
        }
        self.counts.add(FaultKind::RiftBegun, 1);
        self.rifts += 1;
        let number = self.rifts;
        self.rift = Some(Rift { victim, run, heard_by, all, fallen: false, number });
        self.schedule(GIVEN_UP, Event::RiftHealed { number });
    }

    /// A map was made. When it shows the primary down, the rest of its network goes before it hears of that.
    pub(crate) fn rift_sees_map(&mut self) {
        let Some(Rift { victim, run, heard_by, all, fallen: false, number }) = &self.rift else { return };
        let (victim, run, heard_by, all, number) = (*victim, *run, heard_by.clone(), *all, *number);
        let shown = self.monitor.map().osds.get(&victim);
        if shown.is_some_and(|info| info.up && info.incarnation == run) || !self.is_run(victim, run) {
            return;
        }
        self.counts.add(FaultKind::RiftFallen, 1);
        self.cut_off.insert(victim, Cut::FromCluster);
        if all {
            let killed = self.rng.random_bool(0.5);
            for osd in heard_by.into_iter().filter(|_| killed) {
                let back = Duration::from_millis(self.rng.random_range(20..250));
                self.crash_for(osd, false, Some(back));
            }
        } else if let Some(only) = heard_by.first().copied() {
            if self.rng.random_bool(0.5) {
                let away = Duration::from_millis(self.rng.random_range(5_000..12_000));
                self.crash_for(only, false, Some(away));
            } else {
                self.cut_off.insert(only, Cut::FromCluster);
                self.island = BTreeSet::from([victim, only]);
            }
        }
        if let Some(rift) = &mut self.rift {
            rift.fallen = true;
        }
        let healed = Duration::from_millis(self.rng.random_range(3_000..14_000));
        self.schedule(healed, Event::RiftHealed { number });
    }

    /// The primary that has fallen off and never heard of it, if there is one and it still runs.
    fn fallen(&self) -> Option<&Node> {
        let rift = self.rift.as_ref().filter(|rift| rift.fallen && self.is_run(rift.victim, rift.run))?;
        self.nodes.get(rift.victim.0 as usize)
    }

    /// Counts what others acknowledge of what it led.
    pub(crate) fn rift_sees_reply(&mut self, by: OsdId, pg: PgId, client: usize, reply: &ClientReply) {
        let ClientOutcome::Done { version, .. } = &reply.outcome else { return };
        let Some(victim) = self.fallen() else { return };
        let led = victim.id != by && victim.pgs.get(&pg).is_some_and(Pg::is_primary);
        let later = version.epoch > victim.epoch();
        let asked = self.clients.get(client).and_then(|client| client.asked(reply.id.tid, &self.history));
        let changed = asked.is_some_and(|(_, act)| act.changes());
        self.counts.add(FaultKind::RiftOvertaken, u64::from(led && later && changed));
    }

    /// Counts what it is asked that others know better, and what of that it might answer if the leases of some were enough.
    pub(crate) fn rift_is_asked(&mut self, to: OsdId, request: &ClientRequest) {
        let (now, newest) = (self.now, self.acknowledged.get(&request.object).map(|newest| newest.version.epoch));
        let Some(victim) = self.fallen().filter(|victim| victim.id == to) else { return };
        if request.is_write() || newest.is_none_or(|newest| newest <= victim.epoch()) {
            return;
        }
        let Some(acting) = victim.pgs.get(&request.pg).filter(|pg| pg.is_primary()).map(Pg::acting) else { return };
        let run = |osd: &OsdId| victim.step.map.osds.get(osd).map(|info| info.incarnation);
        let has = |osd: &OsdId| run(osd).is_some_and(|run| victim.leases.has(victim.clock(now), *osd, run));
        let (others, held) = (acting.len().saturating_sub(1), acting.iter().filter(|osd| has(osd)).count());
        self.counts.add(FaultKind::RiftAsked, 1);
        self.counts.add(FaultKind::RiftHalfLeased, u64::from(held > 0 && held < others));
    }

    /// The network is whole again.
    pub(crate) fn heal_rift(&mut self, number: u64) {
        let Some(rift) = self.rift.take_if(|rift| rift.number == number) else { return };
        self.one_way.clear();
        self.island.clear();
        for osd in rift.heard_by.into_iter().chain([rift.victim]) {
            self.cut_off.remove(&osd);
            self.schedule(Duration::from_millis(5), Event::MapArrives { osd });
        }
    }
}
