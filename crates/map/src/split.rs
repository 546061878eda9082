//! More placement groups for a pool: splitting, and moving what was split away.
//!
//! Two steps, so that no copy has to move for a split. **Split:** `pg_num` grows; what was split away lies where it was,
//! for placement still goes by the old number ([`ClusterMap::placed_as`]). **Spread:** that number follows, a few
//! placement groups at a time. A placement group's objects are those whose hash ends in its seed, so a split of `pg`
//! gives its objects to itself and to [`split_into`] alone; backfill's order keeps them together.

use holdfast_crush::{stable_mask, stable_mod};
use holdfast_types::{PgId, PoolId};

use crate::cluster::ClusterMap;
use crate::pg_count::PG_NUM_MAX;

/// The placement group that held the objects of `pg` when the pool had `pg_num`: itself, if it existed then.
#[must_use]
pub fn split_from(pg: PgId, pg_num: u32) -> PgId {
    PgId { pool: pg.pool, seed: stable_mod(pg.seed, pg_num, stable_mask(pg_num)) }
}

/// The placement groups that objects of `pg` go to, beside itself, when the pool goes from `old` to `new`.
pub fn split_into(pg: PgId, old: u32, new: u32) -> impl Iterator<Item = PgId> {
    let all = (old..new.max(old)).map(move |seed| PgId { pool: pg.pool, seed });
    all.filter(move |child| pg.seed < old && split_from(*child, old) == pg)
}

impl ClusterMap {
    /// The number of placement groups by which a pool is placed.
    #[must_use]
    pub fn placed_num(&self, pool: PoolId) -> u32 {
        let pg_num = self.pools.get(&pool).map_or(0, |info| info.pg_num);
        self.placed_as.get(&pool).copied().unwrap_or(pg_num)
    }

    /// Splits the placement groups of a pool; what is split away stays where it is. Answers whether anything changed:
    /// `pg_num` only grows, and only after an earlier split has been spread.
    pub fn split_pool(&mut self, pool: PoolId, pg_num: u32) -> bool {
        let Some(info) = self.pools.get_mut(&pool) else { return false };
        let old = info.pg_num;
        if pg_num <= old || pg_num > PG_NUM_MAX || self.placed_as.contains_key(&pool) {
            return false;
        }
        info.pg_num = pg_num;
        self.placed_as.insert(pool, old);
        for seed in old..pg_num {
            let child = PgId { pool, seed };
            let parent = split_from(child, old);
            if let Some(items) = self.upmap.get(&parent).cloned() {
                self.upmap.insert(child, items);
            }
            if let Some(acting) = self.pg_temp.get(&parent).cloned() {
                self.pg_temp.insert(child, acting);
            }
        }
        true
    }

    /// Places a pool by more of its placement groups. Answers whether anything changed.
    pub fn spread_pool(&mut self, pool: PoolId, placed: u32) -> bool {
        let (Some(info), Some(now)) = (self.pools.get(&pool), self.placed_as.get(&pool).copied()) else {
            return false;
        };
        if placed <= now {
            return false;
        }
        if placed >= info.pg_num {
            self.placed_as.remove(&pool);
        } else {
            self.placed_as.insert(pool, placed);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object_hash;
    use holdfast_types::ObjectName;

    #[test]
    fn every_object_of_a_split_goes_to_where_it_belongs_and_nowhere_else() {
        let pool = PoolId(3);
        for (old, new) in [(8, 16), (8, 64), (8, 9), (12, 24), (1, 8)] {
            for n in 0..500 {
                let hash = object_hash(&ObjectName::new(format!("object-{n}").into_bytes()).expect("a name"));
                let at = |pg_num| PgId { pool, seed: stable_mod(hash, pg_num, stable_mask(pg_num)) };
                let (before, after) = (at(old), at(new));
                assert_eq!(split_from(after, old), before, "{old} → {new}: {after} came of {before}");
                assert!(after == before || split_into(before, old, new).any(|child| child == after));
            }
            let children: Vec<PgId> = (0..old).flat_map(|seed| split_into(PgId { pool, seed }, old, new)).collect();
            assert_eq!(children.len() as u32, new - old, "each has one parent");
        }
    }
}
