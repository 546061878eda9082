//! `name → hash → placement group → CRUSH → OSDs`, computed alike by everyone who holds the map.

use holdfast_crush::{RuleId, hash32_2, stable_mask, stable_mod, str_hash_rjenkins};
use holdfast_types::{ObjectName, OsdId, PgId, PoolId};

use crate::cluster::{ClusterMap, UpmapItem};
use crate::rule::RuleShape;

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
    pub(crate) fn placement_weights(&self) -> Vec<u32> {
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

    /// What CRUSH chooses for the placement group, and who is placed there, by position, up or not.
    pub(crate) fn chosen_and_placed(&self, pg: PgId, weights: &[u32]) -> (Vec<OsdId>, Vec<OsdId>) {
        let Some(pool) = self.pools.get(&pg.pool) else { return (Vec::new(), Vec::new()) };
        let chosen = self.chosen(pg, pool.rule, pool.size(), pool.pg_num, weights);
        let mut placed = chosen.clone();
        if let Some(items) = self.upmap.get(&pg) {
            exchange(&mut placed, items, weights);
        }
        (chosen, placed)
    }

    /// Where placement wants the placement group, by position, up or not; empty when it does not exist.
    #[must_use]
    pub fn placed(&self, pg: PgId) -> Vec<OsdId> {
        let exists = self.pools.get(&pg.pool).is_some_and(|pool| pg.seed < pool.pg_num);
        if exists { self.chosen_and_placed(pg, &self.placement_weights()).1 } else { Vec::new() }
    }

    fn chosen(&self, pg: PgId, rule: u32, size: u32, pg_num: u32, weights: &[u32]) -> Vec<OsdId> {
        let placed = self.placed_as.get(&pg.pool).copied().unwrap_or(pg_num);
        // Ceph's "hashpspool": the pool id is mixed in, so that pools do not pile up on the same OSDs.
        #[expect(clippy::cast_possible_truncation, reason = "Ceph hashes the low 32 bits of the pool id")]
        let input = hash32_2(stable_mod(pg.seed, placed, stable_mask(placed)), pg.pool.0 as u32);
        self.crush.map(RuleId(rule), input, size as usize, weights).into_iter().flatten().collect()
    }

    /// Drops the exchanges that have no effect any more or would break the pool's rule: after a change of the hierarchy,
    /// of the weights or of the pools.
    pub fn prune_upmap(&mut self) {
        if self.upmap.is_empty() {
            return;
        }
        let weights = self.placement_weights();
        let mut shapes = std::collections::BTreeMap::new();
        let mut kept = std::collections::BTreeMap::new();
        for (pg, items) in &self.upmap {
            let Some(pool) = self.pools.get(&pg.pool).filter(|pool| pg.seed < pool.pg_num) else { continue };
            let shape = shapes.entry(pool.rule).or_insert_with(|| RuleShape::of(&self.crush, RuleId(pool.rule)));
            let Some(shape) = shape else { continue };
            let (chosen, mut placed) = self.chosen_and_placed(*pg, &weights);
            if !shape.is_kept_by(&placed) {
                placed.clone_from(&chosen);
                for item in items {
                    let mut with = placed.clone();
                    exchange(&mut with, std::slice::from_ref(item), &weights);
                    if shape.is_kept_by(&with) {
                        placed = with;
                    }
                }
            }
            let left = chosen.iter().zip(&placed).filter(|(chosen, placed)| chosen != placed);
            let left: Vec<UpmapItem> = left.map(|(from, to)| UpmapItem { from: *from, to: *to }).collect();
            if !left.is_empty() {
                kept.insert(*pg, left);
            }
        }
        self.upmap = kept;
    }

    fn members_with(&self, pg: PgId, rule: u32, size: u32, pg_num: u32, weights: &[u32]) -> PgMembers {
        let mut raw = self.chosen(pg, rule, size, pg_num, weights);
        if let Some(items) = self.upmap.get(&pg) {
            exchange(&mut raw, items, weights);
        }
        let up: Vec<OsdId> = raw.into_iter().filter(|osd| self.is_up(*osd)).collect();
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

/// Puts other members in the place of some that CRUSH chose. An exchange does nothing if its old member was not chosen,
/// or its new one was, or is out: so a map whose hierarchy has changed since still places every copy.
fn exchange(members: &mut [OsdId], items: &[UpmapItem], weights: &[u32]) {
    for item in items {
        let is_in = usize::try_from(item.to.0).ok().and_then(|to| weights.get(to)).is_some_and(|weight| *weight > 0);
        if !is_in || members.contains(&item.to) {
            continue;
        }
        if let Some(member) = members.iter_mut().find(|member| **member == item.from) {
            *member = item.to;
        }
    }
}
