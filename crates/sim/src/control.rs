//! What an operator does in the middle of it: OSDs get other weights, pools come and go while clients use another one.

use holdfast_types::OsdId;
use holdfast_wire::mon::MonCommand;
use rand::Rng;

use crate::faults::FaultKind;
use crate::monitor::POOL;
use crate::world::World;

/// The reweight of an OSD that takes its whole share.
const WHOLE: u32 = 0x1_0000;
/// Pools beside that of the clients.
const POOLS_MAX: usize = 2;

impl World {
    /// An OSD takes a part of its share from now on, or the whole one again.
    pub(crate) fn reweight(&mut self, victim: OsdId) {
        let osds = &self.monitor.map().osds;
        let Some(now) = osds.get(&victim).map(|info| info.reweight) else { return };
        // As many with their whole share as there are copies: else some placement groups may find no place for all of theirs.
        let whole = |(osd, info): &(&OsdId, &holdfast_map::OsdInfo)| {
            **osd != victim && info.in_cluster && info.reweight == WHOLE
        };
        let enough = osds.iter().filter(whole).count() >= self.config.size as usize;
        if self.monitors_are_gone() || (now == WHOLE && !enough) {
            return;
        }
        let weight = if now < WHOLE { WHOLE } else { WHOLE / 4 * self.rng.random_range(1..4) };
        if !self.deals(format!("{victim} gets the weight {weight:#x}")) {
            return;
        }
        self.counts.add(FaultKind::Reweighted, 1);
        self.monitors_hear(MonCommand::OsdReweight { osd: victim, weight });
    }

    /// A pool that nobody uses is created, or one of them is deleted, whatever its placement groups are about.
    pub(crate) fn change_pools(&mut self) {
        if self.monitors_are_gone() {
            return;
        }
        let pools = self.monitor.map().pools.iter();
        let others: Vec<String> = pools.filter(|(id, _)| **id != POOL).map(|(_, pool)| pool.name.clone()).collect();
        let creates = others.is_empty() || others.len() < POOLS_MAX && self.rng.random_bool(0.5);
        if creates {
            let name = format!("other-{}", self.monitor.map().next_pool.0);
            if !self.deals(format!("pool {name} is created")) {
                return;
            }
            self.counts.add(FaultKind::PoolCreated, 1);
            self.monitors_hear(MonCommand::PoolCreate {
                name,
                size: Some(self.config.size),
                min_size: Some(self.config.min_size),
                application: "sim".to_owned(),
                failure_domain: Some("host".to_owned()),
                share_percent: Some(1),
            });
        } else {
            let name = others[self.rng.random_range(0..others.len())].clone();
            if !self.deals(format!("pool {name} is deleted")) {
                return;
            }
            self.counts.add(FaultKind::PoolDeleted, 1);
            self.monitors_hear(MonCommand::PoolDelete { confirm: name.clone(), name });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn as_many_osds_keep_their_whole_share_as_there_are_copies() {
        let mut world = World::new(1, Config::storm()).expect("a world");
        for osd in 0..world.config.osds {
            world.command(MonCommand::OsdIn(OsdId(osd)));
        }
        let (osds, size) = (world.config.osds, world.config.size as usize);
        for turn in 0..40 {
            world.reweight(OsdId(turn % osds));
            let weights = world.monitor.map().osds.values().map(|info| info.reweight);
            assert!(weights.clone().all(|weight| weight > 0));
            assert!(weights.filter(|weight| *weight == WHOLE).count() >= size);
        }
        assert!(world.counts.of(FaultKind::Reweighted) > 10);
    }

    #[test]
    fn the_pool_of_the_clients_stays_while_others_come_and_go() {
        let mut world = World::new(1, Config::storm()).expect("a world");
        for _ in 0..40 {
            world.change_pools();
            let pools = &world.monitor.map().pools;
            assert!(pools.contains_key(&POOL) && pools.len() <= 1 + POOLS_MAX);
        }
        let (created, deleted) = (world.counts.of(FaultKind::PoolCreated), world.counts.of(FaultKind::PoolDeleted));
        assert!(created > 5 && deleted > 5, "{created} and {deleted}");
        assert_eq!(world.monitor.map().pools.len() as u64, 1 + created - deleted, "each was carried out");
    }
}
