//! Tables for people and programs: `osd tree`, `osd df`, `df`, `pg ls`.

use holdfast_map::ClusterMap;
use holdfast_types::{LogVersion, OsdId, Timestamp};
use holdfast_wire::mon::{DfPoolRow, DfReport, OsdDfRow, OsdTreeNode, PgRow, StoreUsage};

use super::stats::{PgView, Stats};

fn fixed_point(weight: u32) -> f64 {
    f64::from(weight) / 65_536.0
}

/// The hierarchy, each bucket followed by what it holds; then the OSDs that stand nowhere.
pub(super) fn osd_tree(map: &ClusterMap) -> Vec<OsdTreeNode> {
    let leaf = |mut node: OsdTreeNode, osd: OsdId| {
        if let Some(info) = map.osds.get(&osd) {
            node.status = if info.up { "up".into() } else { "down".into() };
            node.reweight = Some(if info.in_cluster { fixed_point(info.reweight) } else { 0.0 });
            node.address = Some(info.address.clone()).filter(|address| !address.is_empty());
        }
        node.class = map.crush.device_class(osd).map(str::to_owned);
        node
    };
    let mut nodes = Vec::new();
    for row in map.crush.tree() {
        let node = OsdTreeNode {
            id: row.id,
            depth: u32::try_from(row.depth).unwrap_or(u32::MAX),
            class: None,
            weight: fixed_point(row.weight),
            kind: row.type_name.to_owned(),
            name: row.name.to_owned(),
            status: String::new(),
            reweight: None,
            address: None,
        };
        nodes.push(match row.osd() {
            Some(osd) => leaf(node, osd),
            None => node,
        });
    }
    for osd in map.crush.stray_devices() {
        let node = OsdTreeNode {
            id: i32::try_from(osd.0).unwrap_or(i32::MAX),
            depth: 0,
            class: None,
            weight: 0.0,
            kind: "osd".into(),
            name: osd.to_string(),
            status: String::new(),
            reweight: None,
            address: None,
        };
        nodes.push(leaf(node, osd));
    }
    nodes
}

/// One line for each OSD.
pub(super) fn osd_df(map: &ClusterMap, stats: &Stats) -> Vec<OsdDfRow> {
    let mut pgs = std::collections::BTreeMap::<OsdId, u32>::new();
    for (_, members) in map.members_of_all() {
        for osd in members.acting {
            *pgs.entry(osd).or_default() += 1;
        }
    }
    let row = |(osd, info): (&OsdId, &holdfast_map::OsdInfo)| OsdDfRow {
        osd: *osd,
        class: map.crush.device_class(*osd).map(str::to_owned),
        up: info.up,
        in_cluster: info.in_cluster,
        weight: fixed_point(map.crush.device_weight(*osd)),
        reweight: if info.in_cluster { fixed_point(info.reweight) } else { 0.0 },
        usage: stats.usage(map, *osd),
        pgs: pgs.get(osd).copied().unwrap_or(0),
    };
    map.osds.iter().map(row).collect()
}

/// The space of all OSDs that are up.
pub(super) fn usage(map: &ClusterMap, stats: &Stats) -> StoreUsage {
    let mut sum = StoreUsage::default();
    for (osd, _) in map.osds.iter().filter(|(_, info)| info.up) {
        if let Some(usage) = stats.usage(map, *osd) {
            sum.total_bytes = sum.total_bytes.saturating_add(usage.total_bytes);
            sum.used_bytes = sum.used_bytes.saturating_add(usage.used_bytes);
            sum.live_bytes = sum.live_bytes.saturating_add(usage.live_bytes);
        }
    }
    sum
}

/// Space over all, and of each pool.
pub(super) fn df(map: &ClusterMap, stats: &Stats, now: Timestamp) -> DfReport {
    let views = stats.views(map, now);
    let pool_row = |(id, pool): (&holdfast_types::PoolId, &holdfast_map::Pool)| {
        let reports = views.iter().filter(|view| view.pg.pool == *id).filter_map(|view| view.last);
        let (objects, stored_bytes) =
            reports.fold((0u64, 0u64), |(objects, bytes), report| (objects + report.objects, bytes + report.bytes));
        DfPoolRow {
            name: pool.name.clone(),
            id: *id,
            objects,
            stored_bytes,
            available_bytes: available(map, stats) / u64::from(pool.size().max(1)),
        }
    };
    DfReport { usage: usage(map, stats), pools: map.pools.iter().map(pool_row).collect() }
}

/// Raw bytes that can be written before the fullest OSD is full, if placement fills all in proportion to their weights.
fn available(map: &ClusterMap, stats: &Stats) -> u64 {
    let placed = |osd: OsdId| u128::from(map.crush.device_weight(osd)).max(1);
    let running: Vec<OsdId> =
        map.osds.iter().filter(|(_, info)| info.up && info.in_cluster).map(|(osd, _)| *osd).collect();
    let total_weight: u128 = running.iter().map(|osd| placed(*osd)).sum();
    let room = |osd: &OsdId| {
        let usage = stats.usage(map, *osd)?;
        let limit = u128::from(usage.total_bytes) * u128::from(map.ratios.full) / 1_000;
        let free = limit.saturating_sub(u128::from(usage.used_bytes));
        Some(free * total_weight / placed(*osd))
    };
    let least = running.iter().filter_map(room).min().unwrap_or(0);
    u64::try_from(least).unwrap_or(u64::MAX)
}

/// One line for each placement group.
pub(super) fn pg_list(map: &ClusterMap, stats: &Stats, now: Timestamp) -> Vec<PgRow> {
    stats.views(map, now).iter().map(pg_row).collect()
}

/// One placement group.
pub(super) fn pg_row(view: &PgView<'_>) -> PgRow {
    PgRow {
        pg: view.pg,
        state: view.describe(),
        up: view.up.to_vec(),
        acting: view.acting.to_vec(),
        objects: view.last.map_or(0, |report| report.objects),
        bytes: view.last.map_or(0, |report| report.bytes),
        copies_missing: view.copies_missing(),
        objects_unfound: view.report.map_or(0, |report| report.objects_unfound),
        last_update: view.last.map_or(LogVersion::ZERO, |report| report.last_update),
        blocked_by: view.report.map_or_else(Vec::new, |report| report.blocked_by.clone()),
        scrub: view.last.and_then(|report| report.scrub.clone()),
    }
}
