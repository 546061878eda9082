//! `status` and `health`: what is true now, what it means, what to do.
//!
//! Codes are stable. Each check says what, what it means and the next command.

use std::collections::BTreeMap;

use holdfast_map::ClusterMap;
use holdfast_types::{MonId, OsdId, Timestamp};
use holdfast_wire::mon::{HealthCheck, Severity, StatusReport};

use super::stats::{PgView, Stats};
use super::{Quorum, reports, scrub};

/// Most lines of detail of one check.
const DETAIL_MAX: usize = 50;

pub(super) fn check(
    code: &str,
    severity: Severity,
    summary: String,
    mut detail: Vec<String>,
    impact: &str,
    fix: &str,
) -> HealthCheck {
    if detail.len() > DETAIL_MAX {
        let more = detail.len() - DETAIL_MAX;
        detail.truncate(DETAIL_MAX);
        detail.push(format!("and {more} more"));
    }
    HealthCheck { code: code.into(), severity, summary, detail, impact: impact.into(), fix: fix.into() }
}

pub(super) fn plural(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// The whole answer to `status`.
pub(super) fn status(map: &ClusterMap, stats: &Stats, now: Timestamp, quorum: &Quorum) -> StatusReport {
    let views = stats.views(map, now);
    let checks = checks(map, stats, &views, quorum);
    let mut pg_states = BTreeMap::<String, u32>::new();
    for view in &views {
        *pg_states.entry(view.describe()).or_default() += 1;
    }
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    StatusReport {
        cluster: map.cluster.to_string(),
        epoch: map.epoch,
        health: checks.iter().map(|check| check.severity).max().unwrap_or(Severity::Ok),
        checks,
        mons: count(map.mons.len()),
        mons_in_quorum: quorum.answering.iter().copied().collect(),
        leader: quorum.leader,
        osds: count(map.osds.len()),
        osds_up: count(map.osds.values().filter(|info| info.up).count()),
        osds_in: count(map.osds.values().filter(|info| info.in_cluster).count()),
        services: map.services.keys().cloned().collect(),
        pools: count(map.pools.len()),
        pgs: count(views.len()),
        pg_states,
        objects: views.iter().filter_map(|view| view.last).map(|report| report.objects).sum(),
        copies_missing: views.iter().map(PgView::copies_missing).sum(),
        objects_unfound: views.iter().filter_map(|view| view.report).map(|report| report.objects_unfound).sum(),
        usage: reports::usage(map, stats),
        scrub: Some(scrub::status(&views)),
    }
}

fn checks(map: &ClusterMap, stats: &Stats, views: &[PgView<'_>], quorum: &Quorum) -> Vec<HealthCheck> {
    let mut checks = Vec::new();
    checks.extend(mon_down(map, quorum));
    checks.extend(osd_down(map));
    checks.extend(space(map, stats));
    checks.extend(damage(map, stats));
    checks.extend(copies_lost(map, stats));
    checks.extend(pgs(views));
    checks.extend(scrub::checks(views));
    checks.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.code.cmp(&b.code)));
    checks
}

fn mon_down(map: &ClusterMap, quorum: &Quorum) -> Option<HealthCheck> {
    let down: Vec<(&MonId, &String)> = map.mons.iter().filter(|(mon, _)| !quorum.answering.contains(*mon)).collect();
    if down.is_empty() {
        return None;
    }
    let left = map.mons.len() - down.len();
    let spare = left.saturating_sub(map.mons.len() / 2 + 1);
    let impact = format!(
        "changes of the cluster go on; {} would stop them",
        if spare == 0 { "the loss of one more monitor".to_owned() } else { format!("the loss of {} more", spare + 1) }
    );
    Some(check(
        "MON_DOWN",
        Severity::Warning,
        format!("{} of {} down", plural(down.len(), "monitor", "monitors"), map.mons.len()),
        down.iter().map(|(mon, address)| format!("{mon} at {address} does not answer the leader")).collect(),
        &impact,
        "start `holdfast mon` on that host and read its log",
    ))
}

fn osd_down(map: &ClusterMap) -> Option<HealthCheck> {
    let down: Vec<_> = map.osds.iter().filter(|(_, info)| !info.up && info.in_cluster).collect();
    if down.is_empty() {
        return None;
    }
    let place = |osd: OsdId| map.crush.failure_domain_of(osd, "host").unwrap_or_else(|| "no host".into());
    Some(check(
        "OSD_DOWN",
        Severity::Warning,
        format!("{} of {} down", plural(down.len(), "OSD", "OSDs"), map.osds.len()),
        down.iter().map(|(osd, info)| format!("{osd} on {} ({}) is down", place(**osd), info.address)).collect(),
        "objects on it have fewer copies until it is back or its data has been copied elsewhere",
        "start `holdfast osd` on that host and read its log; a lost disk is replaced after `holdfast osd out`",
    ))
}

fn space(map: &ClusterMap, stats: &Stats) -> Option<HealthCheck> {
    if !map.flags.full && !map.flags.near_full {
        return None;
    }
    let line = |osd: &OsdId| {
        let usage = stats.usage(map, *osd).filter(|usage| usage.total_bytes > 0)?;
        let percent = u128::from(usage.used_bytes) * 100 / u128::from(usage.total_bytes);
        (percent >= u128::from(super::NEAR_FULL_PERCENT - super::CLEAR_PERCENT))
            .then(|| format!("{osd} is {percent} % full"))
    };
    let detail: Vec<String> = map.osds.keys().filter_map(line).collect();
    let summary = plural(detail.len(), "OSD is", "OSDs are");
    let fix = "delete data, or add disks";
    Some(if map.flags.full {
        let impact = "writes that need space are refused; reads and deletes go on";
        check("OSD_FULL", Severity::Error, format!("{summary} full or nearly so"), detail, impact, fix)
    } else {
        let impact = "none yet; writes stop at 95 %";
        check("OSD_NEAR_FULL", Severity::Warning, format!("{summary} nearly full"), detail, impact, fix)
    })
}

fn damage(map: &ClusterMap, stats: &Stats) -> Option<HealthCheck> {
    let damaged: Vec<(OsdId, u64, u64)> = map
        .osds
        .keys()
        .map(|osd| {
            let (found, repaired) = stats.damage(*osd);
            (*osd, found, repaired)
        })
        .filter(|(_, found, _)| *found > 0)
        .collect();
    if damaged.is_empty() {
        return None;
    }
    Some(check(
        "OSD_CHECKSUM_ERRORS",
        Severity::Warning,
        format!("{} returned damaged blocks", plural(damaged.len(), "OSD has", "OSDs have")),
        damaged
            .iter()
            .map(|(osd, found, repaired)| format!("{osd}: {found} damaged blocks, {repaired} repaired from a copy"))
            .collect(),
        "no wrong byte was served; the device loses data",
        "check the device's health log; replace it if this goes on",
    ))
}

fn copies_lost(map: &ClusterMap, stats: &Stats) -> Option<HealthCheck> {
    let losers = map.osds.keys().map(|osd| (*osd, stats.copies_lost(*osd))).filter(|(_, lost)| *lost > 0);
    let losers: Vec<(OsdId, u64)> = losers.collect();
    if losers.is_empty() {
        return None;
    }
    let copies = |lost| format!("{} of placement groups", plural(lost, "copy", "copies"));
    Some(check(
        "OSD_COPIES_LOST",
        Severity::Warning,
        format!("{} given up what could not be used", plural(losers.len(), "OSD has", "OSDs have")),
        losers
            .iter()
            .map(|(osd, lost)| {
                format!("{osd}: {} since its start", copies(usize::try_from(*lost).unwrap_or(usize::MAX)))
            })
            .collect(),
        "they are filled anew from the other copies; until then a further failure weighs more",
        "read that daemon's log and check the device; replace it if it happens again",
    ))
}

fn pgs(views: &[PgView<'_>]) -> Vec<HealthCheck> {
    let line = |view: &PgView<'_>| {
        let acting: Vec<String> = view.acting.iter().map(|osd| osd.0.to_string()).collect();
        let mut line = format!("pg {} is {}, acting [{}]", view.pg, view.describe(), acting.join(","));
        if let Some(report) = view.report
            && !report.blocked_by.is_empty()
        {
            let blocked: Vec<String> = report.blocked_by.iter().map(ToString::to_string).collect();
            line.push_str(&format!(", waits for {}", blocked.join(", ")));
        }
        line
    };
    let select = |wanted: &dyn Fn(&PgView<'_>) -> bool| -> Vec<String> {
        views.iter().filter(|view| wanted(view)).map(line).collect()
    };
    let short = |view: &PgView<'_>| (view.acting.len() as u64) < u64::from(view.pool.min_size());
    let unavailable = select(&|view| short(view) || view.report.is_some_and(|_| !view.state.active));
    let unknown = select(&|view| view.report.is_none() && !short(view));
    let degraded = select(&|view| view.state.degraded);
    let moving =
        select(&|view| view.report.is_some() && view.state.active && !view.state.clean && !view.state.degraded);
    let unfound = select(&|view| view.report.is_some_and(|report| report.objects_unfound > 0));
    let total = views.len();
    let mut checks = Vec::new();
    if !unavailable.is_empty() {
        checks.push(check(
            "PG_UNAVAILABLE",
            Severity::Error,
            format!(
                "{} of {total} serve neither reads nor writes",
                plural(unavailable.len(), "placement group", "placement groups")
            ),
            unavailable,
            "requests for their objects wait",
            "bring back the OSDs that they wait for (`holdfast pg ls`, `holdfast osd tree`); peering ends by itself",
        ));
    }
    if !unknown.is_empty() {
        checks.push(check(
            "PG_UNKNOWN",
            Severity::Warning,
            format!(
                "{} of {total} have not been reported by their present primary",
                plural(unknown.len(), "placement group", "placement groups")
            ),
            unknown,
            "whether their objects are available and complete is not known",
            "wait some seconds; if it stays, look at their primaries with `holdfast pg ls`",
        ));
    }
    if !degraded.is_empty() {
        let copies: u64 = views.iter().map(PgView::copies_missing).sum();
        checks.push(check(
            "PG_DEGRADED",
            Severity::Warning,
            format!(
                "{} of {total} lack copies; {copies} copies of objects missing",
                plural(degraded.len(), "placement group", "placement groups")
            ),
            degraded,
            "their objects are served, but survive fewer further failures",
            "bring back the OSDs that are down; recovery then goes on by itself",
        ));
    }
    if !moving.is_empty() {
        checks.push(check(
            "PG_NOT_CLEAN",
            Severity::Warning,
            format!(
                "{} of {total} move data or have not counted their copies",
                plural(moving.len(), "placement group", "placement groups")
            ),
            moving,
            "none; all copies that are needed exist",
            "wait; it ends by itself",
        ));
    }
    if !unfound.is_empty() {
        checks.push(check(
            "OBJECT_UNFOUND",
            Severity::Error,
            format!(
                "{} have objects whose newest version no live OSD has",
                plural(unfound.len(), "placement group", "placement groups")
            ),
            unfound,
            "reads and writes of these objects wait",
            "bring back the OSDs that were up last; do not remove them",
        ));
    }
    checks
}
