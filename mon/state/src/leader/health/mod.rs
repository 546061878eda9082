//! `status` and `health`: what is true now, what it means, what to do.
//!
//! Codes are stable. Each check says what, what it means and the next command.

mod osds;
mod pgs;
mod pools;
mod space;

use std::collections::BTreeMap;

use holdfast_map::ClusterMap;
use holdfast_types::{MonId, Timestamp};
use holdfast_wire::mon::{HealthCheck, Severity, StatusReport};

pub(super) use osds::{fate_words, held_words, silence_words};

use super::stats::PgView;
use super::{Leader, Quorum, Scene, reports, scrub};

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
pub(super) fn status(leader: &Leader, now: Timestamp, scene: &Scene, quorum: &Quorum) -> StatusReport {
    let map = &*scene.map;
    let views = leader.stats.views(map, now);
    let checks = checks(leader, now, scene, &views, quorum);
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
        usage: reports::usage(map, &leader.stats),
        scrub: Some(scrub::status(&views)),
    }
}

fn checks(leader: &Leader, now: Timestamp, scene: &Scene, views: &[PgView<'_>], quorum: &Quorum) -> Vec<HealthCheck> {
    let (map, stats) = (&*scene.map, &leader.stats);
    let mut checks = Vec::new();
    checks.extend(mon_down(map, quorum));
    checks.extend(osds::down(leader, now, map));
    checks.extend(osds::flapping(scene));
    checks.extend(osds::silent(leader, now, map));
    checks.extend(osds::damage(map, stats));
    checks.extend(osds::copies_lost(map, stats));
    checks.extend(space::checks(map, stats));
    checks.extend(pgs::checks(views));
    checks.extend(pools::checks(scene, views));
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
