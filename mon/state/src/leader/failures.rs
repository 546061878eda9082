//! Who says that whom is silent, and when that is enough.
//!
//! | reports about a run that the map has up | then |
//! |---|---|
//! | silent for less than [`GRACE`] | nothing |
//! | silent, one failure domain says so | the monitor looks for itself |
//! | silent, [`REPORTERS_NEEDED`] failure domains say so, or all there are | down |
//! | silent, one failure domain says so, and the monitor has heard nothing of it for longer either | down |
//! | refused | the monitor looks for itself |
//! | the monitor is refused too | down, and known to be dead |
//!
//! A reporter counts once, only while it is up itself, and only for [`REPORT_LIFE`] unless it repeats itself. Domains
//! are hosts, or OSDs where fewer than two other hosts have one. Silence never takes the cluster below
//! [`UP_MIN_PERCENT`]: then it is more likely the network. What is held back for that is judged here against the newest
//! map, and again when it is applied, for many are reported at the same moment (`osds::mark_down`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_types::{Incarnation, OsdId, Timestamp};
use holdfast_wire::mon::FailureKind;

use crate::Change;

/// Silence shorter than this is none.
pub const GRACE: Duration = Duration::from_secs(5);
/// Failure domains that must agree on a silence.
pub const REPORTERS_NEEDED: usize = 2;
/// How long a report counts.
const REPORT_LIFE: Duration = Duration::from_secs(15);
/// Silence takes no OSD down that would leave fewer than this part of the OSDs that are in.
const UP_MIN_PERCENT: usize = 30;

/// What a report leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Nothing yet.
    Wait,
    /// Connect to the OSD's address, and say what came of it with [`super::Leader::on_probe`].
    Probe,
    /// Propose this at once.
    Propose(Change),
    /// The report is of another run, or the OSD is down already.
    Stale,
}

#[derive(Debug, Clone, Default)]
struct Target {
    incarnation: Incarnation,
    silent_by: BTreeMap<OsdId, Timestamp>,
}

/// The reports that count now.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures {
    targets: BTreeMap<OsdId, Target>,
}

fn host(map: &ClusterMap, osd: OsdId) -> String {
    map.crush.failure_domain_of(osd, "host").unwrap_or_else(|| osd.to_string())
}

impl Failures {
    pub(super) fn report(
        &mut self,
        now: Timestamp,
        map: &ClusterMap,
        reporter: OsdId,
        target: OsdId,
        incarnation: Incarnation,
        kind: FailureKind,
    ) -> Verdict {
        let runs = map.osds.get(&target).is_some_and(|info| info.up && info.incarnation == incarnation);
        if !runs {
            self.targets.remove(&target);
            return Verdict::Stale;
        }
        if reporter == target || !map.is_up(reporter) {
            return Verdict::Stale;
        }
        let silent_for = match kind {
            FailureKind::Refused => return Verdict::Probe,
            FailureKind::Silent { for_ms } => Duration::from_millis(for_ms),
        };
        if silent_for < GRACE {
            return Verdict::Wait;
        }
        let entry = self.targets.entry(target).or_default();
        if entry.incarnation != incarnation {
            *entry = Target { incarnation, silent_by: BTreeMap::new() };
        }
        entry.silent_by.insert(reporter, now);
        entry.silent_by.retain(|by, at| now.since(*at) < REPORT_LIFE && map.is_up(*by));
        let reporters: BTreeSet<OsdId> = entry.silent_by.keys().copied().collect();
        if !enough(map, target, &reporters) {
            return Verdict::Probe;
        }
        if !may_lose(map, target) {
            return Verdict::Wait;
        }
        self.targets.remove(&target);
        Verdict::Propose(Change::MarkDown { osd: target, incarnation, dead: false })
    }

    /// A reporter takes its report back.
    pub(super) fn alive(&mut self, reporter: OsdId, target: OsdId) {
        if let Some(entry) = self.targets.get_mut(&target) {
            entry.silent_by.remove(&reporter);
            if entry.silent_by.is_empty() {
                self.targets.remove(&target);
            }
        }
    }

    /// Who says that it is silent.
    pub(super) fn silent_to(&self, now: Timestamp, map: &ClusterMap, osd: OsdId) -> Vec<OsdId> {
        let runs = |target: &&Target| map.osds.get(&osd).is_some_and(|info| info.incarnation == target.incarnation);
        let Some(target) = self.targets.get(&osd).filter(runs) else { return Vec::new() };
        let counts = |(by, at): (&OsdId, &Timestamp)| (now.since(*at) < REPORT_LIFE && map.is_up(*by)).then_some(*by);
        target.silent_by.iter().filter_map(counts).collect()
    }

    /// Forgets what no longer counts.
    pub(super) fn expire(&mut self, now: Timestamp, map: &ClusterMap) {
        self.targets.retain(|osd, target| {
            target.silent_by.retain(|_, at| now.since(*at) < REPORT_LIFE);
            let runs = map.osds.get(osd).is_some_and(|info| info.up && info.incarnation == target.incarnation);
            runs && !target.silent_by.is_empty()
        });
    }
}

/// Whether the reporters stand in enough different failure domains.
fn enough(map: &ClusterMap, target: OsdId, reporters: &BTreeSet<OsdId>) -> bool {
    let others: Vec<OsdId> =
        map.osds.iter().filter(|(osd, info)| info.up && **osd != target).map(|(osd, _)| *osd).collect();
    let target_host = host(map, target);
    let other_hosts: BTreeSet<String> =
        others.iter().map(|osd| host(map, *osd)).filter(|name| *name != target_host).collect();
    let (reporting, available) = if other_hosts.len() >= REPORTERS_NEEDED {
        let hosts: BTreeSet<String> =
            reporters.iter().map(|osd| host(map, *osd)).filter(|name| *name != target_host).collect();
        (hosts.len(), other_hosts.len())
    } else {
        (reporters.len(), others.len())
    };
    reporting >= REPORTERS_NEEDED.min(available).max(1)
}

/// Whether enough OSDs stay up when this one goes down for silence. A lone one may: there is nobody to be cut off from.
pub(crate) fn may_lose(map: &ClusterMap, osd: OsdId) -> bool {
    let inside = || map.osds.iter().filter(|(_, info)| info.in_cluster);
    let up_after = inside().filter(|(other, info)| info.up && **other != osd).count();
    up_after * 100 >= inside().count() * UP_MIN_PERCENT || map.osds.len() == 1
}
