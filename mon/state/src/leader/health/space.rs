//! Room: who is how full, and what no longer happens for it.

use holdfast_map::{ClusterMap, SpaceLevel};
use holdfast_types::OsdId;
use holdfast_wire::mon::{HealthCheck, Severity};

use super::super::stats::Stats;
use super::{check, plural};

/// One check for each level that some OSD is at; the fullest level that it is at counts.
pub(super) fn checks(map: &ClusterMap, stats: &Stats) -> Vec<HealthCheck> {
    let mut checks = Vec::new();
    let at = |levels: &[SpaceLevel]| -> Vec<String> {
        let of_level = map.space.iter().filter(|(_, level)| levels.contains(level));
        of_level.map(|(osd, level)| line(map, stats, *osd, *level)).collect()
    };
    let percent = |permille: u32| format!("{}.{} %", permille / 10, permille % 10);
    let full = at(&[SpaceLevel::Full, SpaceLevel::Failsafe]);
    if !full.is_empty() || map.flags.full {
        let summary = if full.is_empty() {
            "writes are stopped for want of room".to_owned()
        } else {
            format!("{} full", plural(full.len(), "OSD is", "OSDs are"))
        };
        let impact = "writes that need space are refused; reads and deletes go on";
        let fix = "delete data, or add disks; writes go on by themselves when there is room";
        checks.push(check("OSD_FULL", Severity::Error, summary, full, impact, fix));
    }
    let backfill = at(&[SpaceLevel::BackfillFull]);
    if !backfill.is_empty() {
        let summary = format!("{} too full for further copies", plural(backfill.len(), "OSD is", "OSDs are"));
        let impact =
            format!("copies that should move or be made there wait; writes stop at {}", percent(map.ratios.full));
        let fix = "delete data, or add disks";
        checks.push(check("OSD_BACKFILL_FULL", Severity::Warning, summary, backfill, &impact, fix));
    }
    let near = at(&[SpaceLevel::NearFull]);
    if !near.is_empty() {
        let summary = format!("{} nearly full", plural(near.len(), "OSD is", "OSDs are"));
        let impact = format!("none yet; writes stop at {}", percent(map.ratios.full));
        checks.push(check("OSD_NEAR_FULL", Severity::Warning, summary, near, &impact, "delete data, or add disks"));
    }
    checks
}

fn line(map: &ClusterMap, stats: &Stats, osd: OsdId, level: SpaceLevel) -> String {
    let usage = stats.usage(map, osd).filter(|usage| usage.total_bytes > 0);
    let permille = usage.map(|usage| u128::from(usage.used_bytes) * 1_000 / u128::from(usage.total_bytes));
    let bound = map.ratios.begins(level);
    match permille {
        Some(permille) => format!(
            "{osd} is {}: {}.{} % of its room is used, the level begins at {}.{} %",
            level.name(),
            permille / 10,
            permille % 10,
            bound / 10,
            bound % 10
        ),
        None => format!("{osd} was {} when it last reported", level.name()),
    }
}
