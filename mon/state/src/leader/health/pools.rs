//! Pools: copies that survive less than the cluster could have them survive.
//!
//! A pool keeps the size and the failure domain that its maker could have: one that was made while there was one disk, or
//! one host, stays so until somebody says otherwise.

use holdfast_map::{ClusterMap, Pool};
use holdfast_types::PoolId;
use holdfast_wire::mon::{HealthCheck, Severity};

use super::{check, plural};
use crate::hierarchy;
use crate::leader::stats::PgView;
use crate::leader::{Scene, growth};

/// Copies below which one failure may lose data.
const SIZE_SAFE: u32 = 2;

pub(super) fn checks(scene: &Scene, views: &[PgView<'_>]) -> Vec<HealthCheck> {
    let map = &*scene.map;
    [no_redundancy(map), weak_domain(map), not_split(scene, views)].into_iter().flatten().collect()
}

/// Pools that have outgrown their placement groups, and what keeps them from getting more.
fn not_split(scene: &Scene, views: &[PgView<'_>]) -> Option<HealthCheck> {
    let outgrown = growth::outgrown(scene, views);
    if outgrown.is_empty() {
        return None;
    }
    let (cause, fix) = growth::held_back(scene)?;
    let line = |(pool, wanted): &(PoolId, u32)| {
        let info = scene.map.pools.get(pool)?;
        Some(format!("pool {} has {} placement groups and should have {wanted}: {cause}", info.name, info.pg_num))
    };
    Some(check(
        "POOL_NOT_SPLIT",
        Severity::Warning,
        format!("{} more placement groups", plural(outgrown.len(), "pool cannot be given", "pools cannot be given")),
        outgrown.iter().filter_map(line).collect(),
        "OSDs are filled less evenly than they could be; nothing is at risk",
        fix,
    ))
}

/// Pools that acknowledge what is on one disk only, though there are others.
fn no_redundancy(map: &ClusterMap) -> Option<HealthCheck> {
    if hierarchy::domains(&map.crush, "osd") < SIZE_SAFE {
        return None; // the first thing to do is to add a disk, and then this is said
    }
    let weak = |pool: &&Pool| pool.size() < SIZE_SAFE || pool.min_size() < SIZE_SAFE;
    let weak: Vec<&Pool> = map.pools.values().filter(weak).collect();
    if weak.is_empty() {
        return None;
    }
    let line = |pool: &&Pool| match pool.size() {
        1 => format!("pool {} keeps one copy", pool.name),
        size => format!("pool {} keeps {size} copies, and serves with {}", pool.name, pool.min_size()),
    };
    Some(check(
        "POOL_NO_REDUNDANCY",
        Severity::Warning,
        format!("{} what only one disk has", plural(weak.len(), "pool acknowledges", "pools acknowledge")),
        weak.iter().map(line).collect(),
        "the loss of one disk loses acknowledged data of these pools",
        "`holdfast pool set NAME --size 3`; when all is clean again, `holdfast pool set NAME --min-size 2`",
    ))
}

/// Pools whose copies may share a host, though there are enough hosts.
fn weak_domain(map: &ClusterMap) -> Option<HealthCheck> {
    let hosts = hierarchy::domains(&map.crush, "host");
    let weak = |pool: &&Pool| {
        pool.size() > 1 && hosts >= pool.size() && hierarchy::domain_of_rule(&map.crush, pool.rule) == "osd"
    };
    let weak: Vec<&Pool> = map.pools.values().filter(weak).collect();
    let several = map.osds.len() > usize::try_from(hosts).unwrap_or(usize::MAX);
    if weak.is_empty() || !several {
        return None; // with one disk on each host they cannot share one
    }
    let line =
        |pool: &&Pool| format!("pool {} keeps {} copies on any disks; there are {hosts} hosts", pool.name, pool.size());
    Some(check(
        "POOL_WEAK_DOMAIN",
        Severity::Warning,
        format!("{} several copies on one host", plural(weak.len(), "pool may keep", "pools may keep")),
        weak.iter().map(line).collect(),
        "the loss of one host may lose, or make unavailable, data of these pools",
        "`holdfast pool set NAME --failure-domain host`; data moves by itself",
    ))
}
