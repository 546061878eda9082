//! The end of a run: nothing strikes any more, and all must come to rest by itself.

use std::time::Duration;

use holdfast_types::{OsdId, PgId, Timestamp};
use holdfast_wire::mon::MonCommand;

use crate::config::Faults;
use crate::faults::FaultKind;
use crate::fence::Fencing;
use crate::front::Front;
use crate::node::Node;
use crate::world::{Event, World};

/// Longest time that a healed cluster may take to be clean and to have answered everything.
const SETTLE_MAX: Duration = Duration::from_secs(300);
/// Longest time for which the monitors hold off an OSD that flaps.
const HELD_OFF_MAX: Duration = Duration::from_secs(16 * 60);

/// What is gone stays so until the run is over.
const NEVER: Duration = Duration::from_secs(100_000);
/// Longest time until an OSD that is gone is out: ten minutes by default, and the time until it is noticed.
const OUT_MAX: Duration = Duration::from_secs(660);

impl World {
    pub(crate) fn heal(&mut self) {
        self.note("nothing strikes any more, and what was cut off or stopped is not".to_owned());
        self.working = false;
        self.heal_fronts();
        self.faults = Faults { delay_max: Duration::from_millis(2), ..Faults::NONE };
        self.cut_off.clear();
        self.one_way.clear();
        (self.rift, self.island) = Default::default();
        self.monitors_gone_until = Timestamp::ZERO;
        self.let_go();
        for node in &mut self.nodes {
            node.lags_until = Timestamp::ZERO;
            node.pauses_at_answer = false;
            node.disk.lie_no_more();
        }
        for osd in 0..self.config.osds {
            self.restart(OsdId(osd));
            self.schedule(Duration::from_millis(5), Event::MapArrives { osd: OsdId(osd) });
        }
        for osd in 0..self.config.osds {
            if self.config.faults.full_file_systems_per_second > 0.0 {
                self.schedule(Duration::ZERO, Event::BlocksBack { osd: OsdId(osd) });
            }
            self.schedule(Duration::ZERO, Event::RoomBack { osd: OsdId(osd) });
        }
        // Only what a command did is undone by one.
        for osd in std::mem::take(&mut self.put_out) {
            self.command(MonCommand::OsdIn(osd));
        }
    }

    /// What waits for a process that is stopped, or for a disk that hangs, goes on now, in the order in which it waits.
    /// The process's own timers are among it: without them it would ask for no heartbeats, and so hold no leases.
    fn let_go(&mut self) {
        let take = |node: &mut Node| (std::mem::take(&mut node.paused_until), std::mem::take(&mut node.stuck_until));
        let until: Vec<_> = self.nodes.iter_mut().map(take).collect();
        self.hasten(|event, at| {
            let osd = World::process_of(event);
            let held = osd.and_then(|osd| until.get(osd.0 as usize));
            held.is_some_and(|(paused, stuck)| at == *paused || (at == *stuck && matches!(event, Event::Commit { .. })))
        });
    }

    pub(crate) fn all_clean(&self) -> bool {
        let newest = self.monitor.newest();
        self.monitor.pgs().into_iter().all(|pg| {
            let primary = newest.members_of(pg).primary().and_then(|osd| self.nodes.get(osd.0 as usize));
            let core = primary.filter(|node| node.running).and_then(|node| node.pgs.get(&pg));
            core.is_some_and(|core| core.report().state.clean && core.epoch() == newest.map.epoch)
        })
    }

    pub(crate) fn settle(&mut self) -> Result<(), String> {
        if let Some(holdings) = &mut self.holdings {
            holdings.lost.clear();
        }
        // Who was held off at the end of the faults comes back by itself, but not sooner.
        let longest = if self.config.flaps { SETTLE_MAX + HELD_OFF_MAX } else { SETTLE_MAX };
        let end = self.now + longest;
        while self.now < end {
            let next = self.now + Duration::from_millis(500);
            self.run_until(next)?;
            let answered = self.clients.iter().all(|client| client.outstanding() == 0);
            if answered && self.is_at_rest() && self.all_clean() {
                return Ok(());
            }
        }
        if self.is_quiet() && self.has_settled_but_for_the_lost() && self.only_the_lost_keep_strays() {
            return Ok(());
        }
        let violation = format!("L1: not settled after {longest:?}: {}", self.explain());
        if self.is_off(&violation) { Ok(()) } else { Err(violation) }
    }

    /// Whether all is up and where it belongs, and nothing goes on but what clients still wait for.
    fn is_at_rest(&self) -> bool {
        self.is_quiet() && self.strays().is_empty()
    }

    /// The same, wherever copies are.
    fn is_quiet(&self) -> bool {
        let fenced = self.fencing.as_ref().is_none_or(Fencing::is_settled);
        let booted = self.nodes.iter().all(|node| node.is_up() || self.gone.contains(&node.id));
        let rested = self.front.as_ref().is_none_or(Front::is_idle);
        fenced && rested && booted
    }

    /// Some OSDs end for good. In time they go out, and all is clean without them.
    pub(crate) fn lose_for_good(&mut self) -> Result<(), String> {
        let osds = (0..self.config.leave).map(|next| OsdId((self.rot_victim.0 + next) % self.config.osds));
        self.gone = osds.collect();
        for osd in self.gone.clone() {
            self.crash_for(osd, true, Some(NEVER));
        }
        self.run_until(self.now + OUT_MAX)?;
        for osd in self.gone.clone() {
            if self.monitor.map().osds.get(&osd).is_some_and(|info| info.in_cluster) {
                let why = self.monitor.explain(self.now, osd);
                let violation = format!("L1: {osd} has been gone for {OUT_MAX:?} and is not out: {why}");
                return if self.is_off(&violation) { Ok(()) } else { Err(violation) };
            }
            self.counts.add(FaultKind::WentOut, 1);
        }
        self.settle()
    }

    /// A placement group that lacks what nobody can give is not clean, and removes no copy: one may have it.
    fn only_the_lost_keep_strays(&self) -> bool {
        let lost = self.pgs_of_the_lost();
        self.strays().iter().all(|(_, pg)| lost.contains(pg))
    }

    /// Copies where none belongs.
    fn strays(&self) -> Vec<(OsdId, PgId)> {
        let newest = self.monitor.newest();
        let mut strays = Vec::new();
        for node in self.nodes.iter().filter(|node| node.disk.is_open()) {
            for pg in node.disk.pgs() {
                let members = newest.members_of(pg);
                if !members.up.contains(&node.id) && !members.acting.contains(&node.id) {
                    strays.push((node.id, pg));
                }
            }
        }
        strays
    }

    pub(crate) fn explain(&self) -> String {
        let stray = |(osd, pg)| format!("{osd} holds a stray copy of {pg}");
        let mut lines: Vec<String> = self.strays().into_iter().map(stray).collect();
        for client in &self.clients {
            if client.outstanding() > 0 {
                lines.push(format!("{} has {} requests without answer", client.id, client.outstanding()));
            }
        }
        lines.extend(self.front.iter().flat_map(Front::explain));
        for node in &self.nodes {
            if !node.is_up() {
                lines.push(format!("{} is not up (process runs: {})", node.id, node.running));
            }
            let primaries = node.pgs.values().filter(|pg| pg.is_primary());
            let reports = primaries.map(holdfast_pg::Pg::report);
            lines.extend(reports.filter(|report| !report.state.clean).map(|report| format!("{}: {report:?}", node.id)));
        }
        lines.join("\n  ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_process_that_was_stopped_when_the_faults_end_asks_for_leases_at_once() {
        let mut world = World::new(1, Config::calm()).expect("a world");
        for osd in (0..world.config.osds).map(OsdId) {
            world.schedule(Duration::ZERO, Event::Restart { osd });
        }
        let run_for = |world: &mut World, ms| {
            let end = world.now + Duration::from_millis(ms);
            world.run_until(end).expect("no violation");
        };
        run_for(&mut world, 3_000);
        let victim = OsdId(1);
        world.node(victim).paused_until = world.now + Duration::from_secs(14);
        // Its timers wait now; nobody has missed it yet.
        run_for(&mut world, 3_000);
        world.heal();
        // By now the leases from before have ended.
        run_for(&mut world, 2_500);
        let now = world.now;
        let node = world.node(victim);
        let (local, peers) = (node.clock(now), node.up_peers());
        assert!(!peers.is_empty());
        for (peer, run) in peers {
            assert!(node.leases.has(local, peer, run), "no lease of {peer}");
        }
    }
}
