//! `name → hash → placement group → CRUSH → OSDs`, computed alike by everyone who holds the map.

use holdfast_crush::{RuleId, hash32_2, stable_mask, stable_mod, str_hash_rjenkins};
use holdfast_types::{ObjectName, OsdId, PgId, PoolId};

use crate::cluster::ClusterMap;

/// Who keeps a placement group, as of one map.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PgMembers {
    /// The OSDs that placement wants and that are up, in CRUSH's order.
    pub up: Vec<OsdId>,
    /// The OSDs that serve: `up`, or what `pg_temp` says in its place.
    pub acting: Vec<OsdId>,
}

impl PgMembers {
    /// The first of the acting set.
    #[must_use]
    pub fn primary(&self) -> Option<OsdId> {
        self.acting.first().copied()
    }
}

/// Ceph's hash of an object name; with the low bits a placement group is chosen, and backfill walks in its
/// bit-reversed order.
#[must_use]
pub fn object_hash(name: &ObjectName) -> u32 {
    str_hash_rjenkins(name.as_bytes())
}

impl ClusterMap {
    /// The placement group of an object, or `None` when there is no such pool.
    #[must_use]
    pub fn pg_of(&self, pool: PoolId, name: &ObjectName) -> Option<PgId> {
        let info = self.pools.get(&pool)?;
        Some(PgId { pool, seed: stable_mod(object_hash(name), info.pg_num, stable_mask(info.pg_num)) })
    }

    /// Who keeps the placement group; empty sets when it does not exist.
    #[must_use]
    pub fn members(&self, pg: PgId) -> PgMembers {
        let Some(pool) = self.pools.get(&pg.pool).filter(|pool| pg.seed < pool.pg_num) else {
            return PgMembers::default();
        };
        let weights = self.placement_weights();
        self.members_with(pg, pool.rule, pool.size(), pool.pg_num, &weights)
    }

    /// The weights that CRUSH is given, by OSD id: what [`ClusterMap::members_of_all`] computes once for all.
    fn placement_weights(&self) -> Vec<u32> {
        let count = self.osds.keys().next_back().map_or(0, |last| last.0 as usize + 1);
        let mut weights = vec![0; count];
        for (id, info) in &self.osds {
            if info.in_cluster {
                weights[id.0 as usize] = info.reweight;
            }
        }
        weights
    }

    /// Who keeps each placement group, for all of them: what a daemon computes at each new epoch.
    #[must_use]
    pub fn members_of_all(&self) -> Vec<(PgId, PgMembers)> {
        let weights = self.placement_weights();
        let members = |(id, pool): (&PoolId, &crate::Pool)| {
            let (id, rule, size, pg_num) = (*id, pool.rule, pool.size(), pool.pg_num);
            let weights = &weights;
            (0..pg_num).map(move |seed| {
                let pg = PgId { pool: id, seed };
                (pg, self.members_with(pg, rule, size, pg_num, weights))
            })
        };
        self.pools.iter().flat_map(members).collect()
    }

    fn members_with(&self, pg: PgId, rule: u32, size: u32, pg_num: u32, weights: &[u32]) -> PgMembers {
        // Ceph's "hashpspool": the pool id is mixed in, so that pools do not pile up on the same OSDs.
        #[expect(clippy::cast_possible_truncation, reason = "Ceph hashes the low 32 bits of the pool id")]
        let input = hash32_2(stable_mod(pg.seed, pg_num, stable_mask(pg_num)), pg.pool.0 as u32);
        let raw = self.crush.map(RuleId(rule), input, size as usize, weights);
        let up: Vec<OsdId> = raw.into_iter().flatten().filter(|osd| self.is_up(*osd)).collect();
        let acting = match self.pg_temp.get(&pg) {
            Some(temporary) => {
                let live: Vec<OsdId> = temporary.iter().copied().filter(|osd| self.is_up(*osd)).collect();
                if live.is_empty() { up.clone() } else { live }
            }
            None => up.clone(),
        };
        PgMembers { up, acting }
    }
}
