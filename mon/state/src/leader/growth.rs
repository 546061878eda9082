//! More placement groups for pools that have outgrown theirs: the cluster's choice, never the user's.
//!
//! | what holds of a pool, while all placement groups have been clean for [`SETTLE`] | then |
//! |---|---|
//! | it was split, and not all is spread yet | place it by a few more of its placement groups |
//! | by its part of the data it should have at least twice as many | split each in two |
//! | else | nothing |
//!
//! One step at a time over all pools; each makes placement groups unclean, and the next waits until they are clean
//! again. None is begun that could not end: not while an OSD takes no copies, and a split not while one is nearly full. No
//! pool is split while an OSD of the map, even one that is down, has not said at its newest boot that it splits its copies
//! ([`held_back`]). A pool is never given fewer. With the option `pg_split` set to `off` nothing of it is done;
//! `pg_split_bytes_min` takes the place of [`DATA_BYTES_MIN`].

use std::time::Duration;

use holdfast_map::{SpaceLevel, pg_num_for};
use holdfast_types::{OsdId, PoolId, Timestamp};

use super::Scene;
use super::explain::names;
use super::stats::{PgView, Stats};
use crate::Change;
use crate::notes::unable_to_split;

/// How long all must have been clean before a pool is split; the steps of spreading follow each other at once.
const SETTLE: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// With less data than this, parts of it say nothing of what is to come.
const DATA_BYTES_MIN: u64 = 256 << 20;
/// A pool is spread in so many steps, so that few placement groups move at once.
const SPREAD_STEPS: u32 = 16;

#[derive(Debug, Clone, Default)]
pub(super) struct Growth {
    next: Timestamp,
    settled_at: Timestamp,
}

impl Growth {
    pub(super) fn due(&mut self, now: Timestamp, scene: &Scene, stats: &Stats) -> Option<Change> {
        if !scene.split_on || now < self.next {
            return None;
        }
        self.next = now + LOOK_EVERY;
        let map = &*scene.map;
        let views = stats.views(map, now);
        let clean = |view: &PgView<'_>| view.report.is_some() && view.state.active && view.state.clean;
        if !views.iter().all(clean) || views.is_empty() {
            if map.placed_as.is_empty() {
                self.settled_at = now + SETTLE;
            }
            return None;
        }
        if let Some((pool, placed)) = map.placed_as.iter().next() {
            if !at_least(scene, SpaceLevel::BackfillFull).is_empty() {
                return None;
            }
            let pg_num = map.pools.get(pool)?.pg_num;
            let placed = placed.saturating_add((pg_num / SPREAD_STEPS).max(1)).min(pg_num);
            return Some(Change::Spread { pool: *pool, placed });
        }
        if now < self.settled_at {
            return None;
        }
        self.settled_at = now + SETTLE;
        if held_back(scene).is_some() {
            return None;
        }
        let grown = map.pools.keys().find(|pool| wanted(scene, &views, **pool) > map.pools[*pool].pg_num)?;
        Some(Change::Split { pool: *grown, pg_num: wanted(scene, &views, *grown) })
    }
}

/// The OSDs that are as full as this, or fuller.
fn at_least(scene: &Scene, level: SpaceLevel) -> Vec<OsdId> {
    let holds = |osd: &OsdId| scene.map.osds.get(osd).is_some_and(|info| info.up && info.in_cluster);
    let full = scene.map.space.iter().filter(|(osd, has)| **has >= level && holds(osd));
    full.map(|(osd, _)| *osd).collect()
}

/// What keeps pools from being split, and what to do about it.
pub(super) fn held_back(scene: &Scene) -> Option<(String, &'static str)> {
    let unable = unable_to_split(&scene.map, &scene.notes);
    if !unable.is_empty() {
        let says =
            format!("{} did not say at the last start that pools may be split: an earlier build", names(&unable));
        return Some((
            says,
            "restart these OSDs with this build, after the monitors; `holdfast osd rm` those that are gone for good",
        ));
    }
    let full = at_least(scene, SpaceLevel::NearFull);
    if scene.map.flags.full || scene.map.flags.near_full || !full.is_empty() {
        let which = if full.is_empty() { "the cluster".to_owned() } else { names(&full) };
        return Some((format!("nearly full or more: {which}"), "delete data, or add disks"));
    }
    None
}

/// Pools that should have more placement groups, with how many; none while the operator wants no splits.
pub(super) fn outgrown(scene: &Scene, views: &[PgView<'_>]) -> Vec<(PoolId, u32)> {
    if !scene.split_on {
        return Vec::new();
    }
    let wanted = scene.map.pools.iter().map(|(pool, info)| (*pool, info.pg_num, wanted(scene, views, *pool)));
    wanted.filter(|(_, present, wanted)| wanted > present).map(|(pool, _, wanted)| (pool, wanted)).collect()
}

/// Twice what the pool has, if it should have that many or more; else what it has.
fn wanted(scene: &Scene, views: &[PgView<'_>], pool: PoolId) -> u32 {
    let Some(info) = scene.map.pools.get(&pool) else { return 0 };
    let bytes = |of: &dyn Fn(&PgView<'_>) -> bool| -> u64 {
        views.iter().filter(|view| of(view)).filter_map(|view| view.report).map(|report| report.bytes).sum()
    };
    let (own, all) = (bytes(&|view| view.pg.pool == pool), bytes(&|_| true));
    if all < scene.split_bytes_min.unwrap_or(DATA_BYTES_MIN) {
        return info.pg_num;
    }
    #[expect(clippy::cast_precision_loss, reason = "a part needs no more than 52 bits")]
    let share = own as f64 / all as f64;
    let inside = scene.map.osds.values().filter(|info| info.in_cluster).count();
    let fits = pg_num_for(u32::try_from(inside).unwrap_or(u32::MAX), info.size(), share);
    let doubled = info.pg_num.saturating_mul(2);
    if fits >= doubled { doubled } else { info.pg_num }
}
