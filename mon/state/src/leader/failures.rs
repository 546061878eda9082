//! Who says that whom is silent, and when that is enough.
//!
//! | reports about a run that the map has up | then |
//! |---|---|
//! | silent for less than [`GRACE`] | nothing |
//! | silent, one failure domain says so | the monitor looks for itself |
//! | silent, [`REPORTERS_NEEDED`] failure domains say so, or all there are | down |
//! | silent, one failure domain says so, and the monitor has heard nothing of it for longer either | down |
//! | silent for [`LINK_GRACE`], one failure domain says so, which calls no other silent, and that of the target says the same of the reporter | the weaker end of the link: down |
//! | refused | the monitor looks for itself |
//! | refused, within [`REFUSAL_LIFE`], and the monitor is refused too | down, and known to be dead |
//! | the monitor alone is refused, and has heard nothing of it for long | down, but not known to be dead |
//!
//! A firewall that rejects answers a connection just as a machine does on which nothing listens: so a refusal that one
//! alone has seen does not tell that the process has ended, and a new primary waits for the leases that it may hold.
//! A reporter counts once, only while the run that said it is up, and only for [`REPORT_LIFE`] unless it repeats itself. Domains
//! are hosts, or OSDs where fewer than two other hosts have one, and for the two ends of a link within one host. Silence never takes the cluster below
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
/// A silence that one domain alone speaks of for so long, as the monitor's clock has it, is that of a link.
pub const LINK_GRACE: Duration = Duration::from_secs(20);
/// How long a report counts.
const REPORT_LIFE: Duration = Duration::from_secs(15);
/// How long a refused connection counts: peers connect again at once when a process ends, and the look takes a second.
const REFUSAL_LIFE: Duration = Duration::from_secs(5);
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
    silent_by: BTreeMap<OsdId, Silence>,
}

/// What one reporter says of a target.
#[derive(Debug, Clone, Copy)]
struct Silence {
    /// The reporter's run: what an earlier one said is over.
    run: Incarnation,
    /// Since when it says so without a break.
    first: Timestamp,
    last: Timestamp,
}

/// Whose connections to a target were refused.
#[derive(Debug, Clone, Default)]
struct Refusals {
    incarnation: Incarnation,
    /// The reporter's run, and when.
    by: BTreeMap<OsdId, (Incarnation, Timestamp)>,
}

fn is_run(map: &ClusterMap, osd: OsdId, run: Incarnation) -> bool {
    map.osds.get(&osd).is_some_and(|info| info.up && info.incarnation == run)
}

impl Silence {
    /// Whether what `reporter` said still counts.
    fn counts(&self, now: Timestamp, map: &ClusterMap, reporter: OsdId) -> bool {
        is_run(map, reporter, self.run) && now.since(self.last) < REPORT_LIFE
    }
}

/// Whether what a reporter said of a refused connection still counts.
fn counts(now: Timestamp, map: &ClusterMap, by: OsdId, (run, at): (Incarnation, Timestamp)) -> bool {
    is_run(map, by, run) && now.since(at) < REFUSAL_LIFE
}

/// The reports that count now.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures {
    targets: BTreeMap<OsdId, Target>,
    refusals: BTreeMap<OsdId, Refusals>,
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
        if !is_run(map, target, incarnation) {
            self.targets.remove(&target);
            return Verdict::Stale;
        }
        let Some(run) =
            map.osds.get(&reporter).filter(|info| info.up && reporter != target).map(|info| info.incarnation)
        else {
            return Verdict::Stale;
        };
        let silent_for = match kind {
            FailureKind::Refused => {
                let refusals = self.refusals.entry(target).or_default();
                if refusals.incarnation != incarnation {
                    *refusals = Refusals { incarnation, by: BTreeMap::new() };
                }
                refusals.by.insert(reporter, (run, now));
                return Verdict::Probe;
            }
            FailureKind::Silent { for_ms } => Duration::from_millis(for_ms),
        };
        if silent_for < GRACE {
            return Verdict::Wait;
        }
        let entry = self.targets.entry(target).or_default();
        if entry.incarnation != incarnation {
            *entry = Target { incarnation, silent_by: BTreeMap::new() };
        }
        entry.silent_by.retain(|by, silence| silence.counts(now, map, *by));
        let silence = entry.silent_by.entry(reporter).or_insert(Silence { run, first: now, last: now });
        silence.last = now;
        let lasts = now.since(silence.first) >= LINK_GRACE;
        let reporters: BTreeSet<OsdId> = entry.silent_by.keys().copied().collect();
        let osd = if enough(map, target, &reporters) {
            target
        } else if lasts && self.is_of_a_link(now, map, reporter, target) {
            weaker_end(map, reporter, target)
        } else {
            return Verdict::Probe;
        };
        let Some(incarnation) = map.osds.get(&osd).map(|info| info.incarnation) else { return Verdict::Stale };
        if !may_lose(map, osd) {
            return Verdict::Wait;
        }
        self.targets.remove(&osd);
        Verdict::Propose(Change::MarkDown { osd, incarnation, dead: false })
    }

    /// Whether the reporter's domain calls only that of the target silent: who calls several so is itself cut off, or did
    /// not run. On one host the two are their own domains: the reporter may have failed although its host has not.
    ///
    /// The target's domain says the same of the reporter: heartbeats are asked and answered both ways, so whatever is wrong
    /// with a link, both ends notice. Where one end alone complains, it may be the one that has failed.
    fn is_of_a_link(&self, now: Timestamp, map: &ClusterMap, reporter: OsdId, target: OsdId) -> bool {
        let (here, there) = (host(map, reporter), host(map, target));
        let back = |(by, silence): (&OsdId, &Silence)| silence.counts(now, map, *by) && host(map, *by) == there;
        if !self.targets.get(&reporter).is_some_and(|entry| entry.silent_by.iter().any(back)) {
            return false;
        }
        if here == there {
            let called = |(osd, entry): (&OsdId, &Target)| {
                *osd != target
                    && entry.silent_by.get(&reporter).is_some_and(|silence| silence.counts(now, map, reporter))
            };
            return !self.targets.iter().any(called);
        }
        let from_here = |(by, silence): (&OsdId, &Silence)| silence.counts(now, map, *by) && host(map, *by) == here;
        let mut called = self.targets.iter().filter(|(_, entry)| entry.silent_by.iter().any(from_here));
        called.all(|(osd, _)| host(map, *osd) == there)
    }

    /// Whether a peer's connection to this run, which the map has up, was refused lately.
    pub(super) fn is_refused(&self, now: Timestamp, map: &ClusterMap, osd: OsdId) -> bool {
        let refusals = self.refusals.get(&osd).filter(|refusals| is_run(map, osd, refusals.incarnation));
        refusals.is_some_and(|refusals| refusals.by.iter().any(|(by, refusal)| counts(now, map, *by, *refusal)))
    }

    /// A reporter takes its report back.
    pub(super) fn alive(&mut self, reporter: OsdId, target: OsdId) {
        if let Some(refusals) = self.refusals.get_mut(&target) {
            refusals.by.remove(&reporter);
        }
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
        let counts = |(by, silence): (&OsdId, &Silence)| silence.counts(now, map, *by).then_some(*by);
        target.silent_by.iter().filter_map(counts).collect()
    }

    /// Forgets what no longer counts.
    pub(super) fn expire(&mut self, now: Timestamp, map: &ClusterMap) {
        self.targets.retain(|osd, target| {
            target.silent_by.retain(|by, silence| silence.counts(now, map, *by));
            is_run(map, *osd, target.incarnation) && !target.silent_by.is_empty()
        });
        self.refusals.retain(|osd, refusals| {
            refusals.by.retain(|by, refusal| counts(now, map, *by, *refusal));
            is_run(map, *osd, refusals.incarnation) && !refusals.by.is_empty()
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

/// Of two OSDs that do not hear each other, the one without which less is lost. The same for both.
fn weaker_end(map: &ClusterMap, one: OsdId, other: OsdId) -> OsdId {
    let strength = |osd: OsdId| {
        let domain = host(map, osd);
        let up = map.osds.iter().filter(|(other, info)| info.up && host(map, **other) == domain).count();
        (up, std::cmp::Reverse(domain), std::cmp::Reverse(osd))
    };
    if strength(one) < strength(other) { one } else { other }
}

/// Whether enough OSDs stay up when this one goes down for silence. A lone one may: there is nobody to be cut off from.
pub(crate) fn may_lose(map: &ClusterMap, osd: OsdId) -> bool {
    let inside = || map.osds.iter().filter(|(_, info)| info.in_cluster);
    let up_after = inside().filter(|(other, info)| info.up && **other != osd).count();
    up_after * 100 >= inside().count() * UP_MIN_PERCENT || map.osds.len() == 1
}
