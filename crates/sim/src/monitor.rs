//! A scripted monitor: it knows who is up, records `up_thru` and `pg_temp`, and publishes a map for each change.
//!
//! It stands in for `mon/state`: one decision per call, no quorum, never wrong about what it was told.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_map::{ClusterMap, OsdInfo, PgMembers, Pool, PoolKind};
use holdfast_types::{ClusterId, DiskUuid, Epoch, Incarnation, OsdId, PgId, PoolId};

use crate::config::Config;

/// The one pool.
pub(crate) const POOL: PoolId = PoolId(1);

#[derive(Debug)]
pub(crate) struct Monitor {
    /// All maps, from epoch 1.
    maps: Vec<Arc<ClusterMap>>,
}

impl Monitor {
    pub fn new(config: &Config) -> Monitor {
        let mut map = ClusterMap::empty(ClusterId([7; 16]));
        map.epoch = Epoch(1);
        for id in 0..config.osds {
            let info = OsdInfo {
                disk: DiskUuid([id as u8; 16]),
                incarnation: Incarnation(1),
                address: format!("osd-{id}:0"),
                up: true,
                in_cluster: true,
                reweight: 0x1_0000,
                up_from: Epoch(1),
                up_thru: Epoch(0),
                down_at: Epoch(0),
                dead_epoch: Epoch(0),
                formatted_at: Epoch(0),
            };
            map.osds.insert(OsdId(id), info);
        }
        let pool = Pool {
            name: "sim".to_owned(),
            kind: PoolKind::Replicated { size: config.size, min_size: config.min_size },
            pg_num: config.pg_num,
            rule: 0,
            created: Epoch(1),
            application: "sim".to_owned(),
        };
        map.pools.insert(POOL, pool);
        map.next_pool = PoolId(2);
        Monitor { maps: vec![Arc::new(map)] }
    }

    pub fn newest(&self) -> &Arc<ClusterMap> {
        self.maps.last().expect("there is always a map")
    }

    pub fn map(&self, epoch: Epoch) -> Option<&Arc<ClusterMap>> {
        self.maps.get(usize::try_from(epoch.0).ok()?.checked_sub(1)?)
    }

    fn publish(&mut self, change: impl FnOnce(&mut ClusterMap)) {
        let mut map = ClusterMap::clone(self.newest());
        map.epoch = map.epoch.next();
        change(&mut map);
        self.maps.push(Arc::new(map));
    }

    pub fn is_up(&self, osd: OsdId) -> bool {
        self.newest().is_up(osd)
    }

    pub fn mark_down(&mut self, osd: OsdId) {
        self.publish(|map| {
            let epoch = map.epoch;
            if let Some(info) = map.osds.get_mut(&osd) {
                info.up = false;
                info.down_at = epoch;
            }
        });
    }

    pub fn boot(&mut self, osd: OsdId, incarnation: Incarnation) {
        self.publish(|map| {
            let epoch = map.epoch;
            if let Some(info) = map.osds.get_mut(&osd) {
                info.up = true;
                info.up_from = epoch;
                info.incarnation = incarnation;
            }
        });
    }

    pub fn toggle_in(&mut self, osd: OsdId) {
        self.publish(|map| {
            if let Some(info) = map.osds.get_mut(&osd) {
                info.in_cluster = !info.in_cluster;
            }
        });
    }

    pub fn set_all_in(&mut self) {
        self.publish(|map| map.osds.values_mut().for_each(|info| info.in_cluster = true));
    }

    /// Records `up_thru`, if the OSD is in the run that asks. Gives whether there is a new map.
    pub fn up_thru(&mut self, osd: OsdId, incarnation: Incarnation, at_least: Epoch) -> bool {
        let current = self.newest().osds.get(&osd);
        let needed = current.is_some_and(|info| info.up && info.incarnation == incarnation && info.up_thru < at_least);
        if needed {
            self.publish(|map| {
                let epoch = map.epoch;
                if let Some(info) = map.osds.get_mut(&osd) {
                    info.up_thru = epoch;
                }
            });
        }
        needed
    }

    /// Records a wish for another acting set, if the OSD is in the run that asks.
    pub fn pg_temp(&mut self, osd: OsdId, incarnation: Incarnation, pg: PgId, want: Vec<OsdId>) -> bool {
        let newest = self.newest();
        let live = newest.osds.get(&osd).is_some_and(|info| info.up && info.incarnation == incarnation);
        let unchanged = newest.pg_temp.get(&pg).map_or(want.is_empty(), |set| *set == want);
        if !live || unchanged {
            return false;
        }
        self.publish(|map| {
            if want.is_empty() {
                map.pg_temp.remove(&pg);
            } else {
                map.pg_temp.insert(pg, want);
            }
        });
        true
    }

    pub fn pgs(&self) -> Vec<PgId> {
        self.newest().pgs().collect()
    }
}

/// Who keeps a placement group: a stand-in for CRUSH that needs no hierarchy (highest random weight).
pub(crate) fn members(map: &ClusterMap, pg: PgId) -> PgMembers {
    let Some(pool) = map.pools.get(&pg.pool) else { return PgMembers::default() };
    let ranked: BTreeMap<u64, OsdId> = map
        .osds
        .iter()
        .filter(|(_, info)| info.in_cluster)
        .map(|(osd, _)| (mix(u64::from(pg.seed) << 32 | u64::from(osd.0)), *osd))
        .collect();
    let chosen = ranked.into_values().take(pool.size() as usize);
    let up: Vec<OsdId> = chosen.filter(|osd| map.is_up(*osd)).collect();
    let temporary = map.pg_temp.get(&pg).map(|set| set.iter().copied().filter(|osd| map.is_up(*osd)).collect());
    let acting = temporary.filter(|set: &Vec<OsdId>| !set.is_empty()).unwrap_or_else(|| up.clone());
    PgMembers { up, acting }
}

/// SplitMix64's finaliser.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
