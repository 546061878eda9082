//! What only the present leader knows, and what it decides from it. Pure: time and reports come in, proposals come out.
//!
//! A new leader starts with nothing: reports arrive within seconds, clocks of downs and leases start anew. Errors are
//! therefore on the side of waiting, never of "clean".

mod balancer;
mod explain;
mod explain_osd;
pub(crate) mod failures;
mod growth;
mod health;
mod out;
mod removal;
mod reports;
mod scrub;
mod stats;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::{ClusterFlags, ClusterMap, OsdInfo, SpaceLevel};
use holdfast_types::{Epoch, Incarnation, MonId, OsdId, Timestamp};
use holdfast_wire::mon::{FailureKind, MonCommand, MonError, MonReply, OsdReport};

use crate::Change;
use crate::notes::OsdNotes;
use balancer::Balancer;
use explain::Explainer;
use failures::Failures;
use growth::Growth;
use out::{Fate, Limits};
use stats::Stats;

pub use failures::{GRACE, REPORTERS_NEEDED, Verdict};
pub use stats::REPORT_STALE;

/// A service that does not renew its registration for this long is gone.
pub const SERVICE_LEASE: Duration = Duration::from_secs(30);
/// An OSD that has reported nothing for this long is looked at by the monitor itself: this finds the death of OSDs that
/// no peer is left to report.
const SILENCE_PROBE: Duration = Duration::from_secs(4);
/// How often one OSD is looked at, at most.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// An OSD that has reported nothing for this long is down if one peer hears nothing of it either, if its port refuses the
/// monitor's connection, or if it does not answer and no OSD is heard of that could say so.
const SILENCE_DOWN: Duration = Duration::from_secs(15);
/// An OSD of which this monitor alone has heard nothing for so long goes down, if it hears most others: with maps alone, which
/// its peers bring it, it can lead no placement group in a new interval, and what waits for that would wait for ever.
const UNREACHED_DOWN: Duration = Duration::from_secs(60);
/// Maps are trimmed when this many more than needed are kept.
const TRIM_SLACK: u64 = 500;
/// What the monitor saw when it connected to an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResult {
    /// Something listens.
    Connected,
    /// Nothing listens: the process has ended. Or a firewall rejects the connection.
    Refused,
    /// No answer at all.
    NoAnswer,
}

/// What a leader should do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Due {
    /// Put this into the log.
    Propose(Change),
    /// Connect to an OSD and tell [`Leader::on_probe`].
    Probe {
        /// Which.
        osd: OsdId,
        /// Which run.
        incarnation: Incarnation,
        /// Where it listens.
        address: String,
    },
}

/// The quorum as the consensus sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    /// The leader.
    pub leader: MonId,
    /// The monitors that answered lately, the leader included.
    pub answering: BTreeSet<MonId>,
}

/// A moment of what is replicated: what the leader decides from, beside what it was told.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The wall clock, in Unix milliseconds.
    pub at_unix_ms: u64,
    /// The newest map.
    pub map: Arc<ClusterMap>,
    /// The oldest map that is kept.
    pub oldest_epoch: Epoch,
    /// What is kept of the OSDs beside the map.
    pub notes: OsdNotes,
    /// Whether the balancer may move data.
    pub balancer_on: bool,
    /// Whether pools may be split.
    pub split_on: bool,
    /// Bytes in all pools below which none is split, where it is not the usual number.
    pub split_bytes_min: Option<u64>,
}

/// Of an OSD that is down.
#[derive(Debug, Clone, Copy)]
struct DownSince {
    at: Timestamp,
    inside: bool,
}

/// One that the map has up and somebody hears nothing of.
#[derive(Debug, Clone)]
struct Suspect {
    osd: OsdId,
    /// OSDs that hear nothing of it.
    silent_to: Vec<OsdId>,
    /// For how long the leader has heard nothing, if that is long.
    silence: Option<Duration>,
    /// It could not be marked down: too few would be left.
    withheld: bool,
}

/// The leader's memory.
#[derive(Debug, Clone)]
pub struct Leader {
    since: Timestamp,
    seen: Epoch,
    failures: Failures,
    stats: Stats,
    /// Since when it has been down and, if it is in, in.
    down_since: BTreeMap<OsdId, DownSince>,
    booted_at: BTreeMap<OsdId, (Incarnation, Timestamp)>,
    probed_at: BTreeMap<OsdId, Timestamp>,
    services: BTreeMap<String, Timestamp>,
    balancer: Balancer,
    growth: Growth,
}

impl Leader {
    /// A leader that has just been elected.
    #[must_use]
    pub fn new(now: Timestamp, map: &ClusterMap) -> Leader {
        let mut leader = Leader {
            since: now,
            seen: Epoch::ZERO,
            failures: Failures::default(),
            stats: Stats::default(),
            down_since: BTreeMap::new(),
            booted_at: BTreeMap::new(),
            probed_at: BTreeMap::new(),
            services: BTreeMap::new(),
            balancer: Balancer::default(),
            growth: Growth::default(),
        };
        leader.observe(now, map);
        leader
    }

    /// The epoch of the map that was last noted.
    #[must_use]
    pub fn seen(&self) -> Epoch {
        self.seen
    }

    /// Takes note of a map. Call it for every map, in order, and for the newest before any question.
    pub fn observe(&mut self, now: Timestamp, map: &ClusterMap) {
        if map.epoch <= self.seen && map.epoch != Epoch::ZERO {
            return;
        }
        self.stats.observe(self.seen, map);
        self.seen = map.epoch;
        let down = |osd: &OsdId| map.osds.get(osd).is_some_and(|info| !info.up);
        self.down_since.retain(|osd, _| down(osd));
        self.booted_at.retain(|osd, (incarnation, _)| {
            map.osds.get(osd).is_some_and(|info| info.up && info.incarnation == *incarnation)
        });
        for (osd, info) in &map.osds {
            if info.up {
                self.booted_at.entry(*osd).or_insert((info.incarnation, now));
            } else {
                let since = self.down_since.entry(*osd).or_insert(DownSince { at: now, inside: info.in_cluster });
                if info.in_cluster && !since.inside {
                    since.at = now; // an operator wants its data to stay with it
                }
                since.inside = info.in_cluster;
            }
        }
        self.probed_at.retain(|osd, _| map.osds.contains_key(osd));
        self.services.retain(|name, _| map.services.contains_key(name));
        for name in map.services.keys().filter(|name| !self.services.contains_key(*name)).collect::<Vec<_>>() {
            self.services.insert(name.clone(), now);
        }
    }

    /// A peer reports an OSD.
    pub fn on_failure(
        &mut self,
        now: Timestamp,
        map: &ClusterMap,
        reporter: OsdId,
        target: OsdId,
        incarnation: Incarnation,
        kind: FailureKind,
    ) -> Verdict {
        self.failures.report(now, map, reporter, target, incarnation, kind)
    }

    /// A peer takes its report back.
    pub fn on_alive(&mut self, reporter: OsdId, target: OsdId) {
        self.failures.alive(reporter, target);
    }

    /// The monitor has looked for itself.
    pub fn on_probe(
        &mut self,
        now: Timestamp,
        map: &ClusterMap,
        osd: OsdId,
        incarnation: Incarnation,
        result: ProbeResult,
    ) -> Option<Change> {
        map.osds.get(&osd).filter(|info| info.up && info.incarnation == incarnation)?;
        match result {
            ProbeResult::Refused if self.failures.is_refused(now, map, osd) => {
                Some(Change::MarkDown { osd, incarnation, dead: true })
            }
            // A firewall may stand between: it lets pass what the OSD itself says, or its peers are still served. A peer
            // that is refused, too, says so, and this is called again.
            ProbeResult::Refused => {
                let silent = now.since(self.heard(osd, incarnation)) >= SILENCE_DOWN;
                (silent && failures::may_lose(map, osd)).then_some(Change::MarkDown { osd, incarnation, dead: false })
            }
            ProbeResult::Connected | ProbeResult::NoAnswer => {
                // The monitor is a witness, too. A process that hangs still lets others connect.
                let witnessed = !self.failures.silent_to(now, map, osd).is_empty();
                let heard = |(other, info): (&OsdId, &OsdInfo)| {
                    *other != osd && info.up && now.since(self.heard(*other, info.incarnation)) < SILENCE_DOWN
                };
                let alone = result == ProbeResult::NoAnswer && !map.osds.iter().any(heard);
                let silence = now.since(self.heard(osd, incarnation));
                let unreached = silence >= UNREACHED_DOWN && self.hears_most(now, map, osd);
                let down = silence >= SILENCE_DOWN && (witnessed || alone || unreached);
                let down = down && failures::may_lose(map, osd);
                down.then_some(Change::MarkDown { osd, incarnation, dead: false })
            }
        }
    }

    /// Whether this monitor has heard most OSDs lately that the map has up, one left out: then it is not the one that is cut off.
    fn hears_most(&self, now: Timestamp, map: &ClusterMap, but: OsdId) -> bool {
        let up: Vec<_> = map.osds.iter().filter(|(osd, info)| info.up && **osd != but).collect();
        let heard = up.iter().filter(|(osd, info)| now.since(self.heard(**osd, info.incarnation)) < SILENCE_DOWN);
        heard.count() * 2 > up.len()
    }

    /// Those that the map has up and somebody hears nothing of.
    fn suspects(&self, now: Timestamp, map: &ClusterMap) -> Vec<Suspect> {
        let suspect = |(osd, info): (&OsdId, &OsdInfo)| {
            let silent_to = self.failures.silent_to(now, map, *osd);
            let silence = Some(now.since(self.heard(*osd, info.incarnation))).filter(|time| *time >= SILENCE_DOWN);
            let withheld = !failures::may_lose(map, *osd);
            let some = !silent_to.is_empty() || silence.is_some();
            some.then_some(Suspect { osd: *osd, silent_to, silence, withheld })
        };
        map.osds.iter().filter(|(_, info)| info.up).filter_map(suspect).collect()
    }

    /// When the run last said something, or was first seen.
    fn heard(&self, osd: OsdId, incarnation: Incarnation) -> Timestamp {
        let reported = self.stats.last_report(osd, incarnation).unwrap_or(self.since);
        let booted = self.booted_at.get(&osd).map_or(self.since, |(_, at)| *at);
        reported.max(booted)
    }

    /// An OSD reports what it holds.
    ///
    /// # Errors
    /// [`MonError::Stale`] when the map shows the OSD otherwise, and when the leader does not know all placement groups
    /// of which the OSD is primary (the report is taken all the same): report all of them.
    pub fn on_report(&mut self, now: Timestamp, map: &ClusterMap, report: OsdReport) -> Result<(), MonError> {
        let runs = map.osds.get(&report.osd).is_some_and(|info| info.up && info.incarnation == report.incarnation);
        if !runs {
            return Err(MonError::Stale { reason: format!("{} is not up in this run: boot again", report.osd) });
        }
        if self.stats.report(now, report) {
            Ok(())
        } else {
            Err(MonError::Stale { reason: "report all placement groups".into() })
        }
    }

    /// Whether an OSD may be forgotten.
    ///
    /// # Errors
    /// [`MonError::Unsafe`] with the placement groups that may need it.
    pub fn may_remove(&self, now: Timestamp, map: &ClusterMap, osd: OsdId) -> Result<(), MonError> {
        removal::may_remove(map, &self.stats, now, osd)
    }

    /// A service renews its registration. Answers whether the map must change for it.
    pub fn on_service(&mut self, now: Timestamp, map: &ClusterMap, request: &MonCommand) -> bool {
        let MonCommand::ServiceRegister { name, kind, address, incarnation } = request else { return true };
        let same = map
            .services
            .get(name)
            .is_some_and(|known| known.kind == *kind && known.address == *address && known.incarnation == *incarnation);
        // One that the map does not have may be refused, and names are without number: it counts once a map has it.
        if map.services.contains_key(name) {
            self.services.insert(name.clone(), now);
        }
        !same
    }

    /// What should be done now. Call it several times a second.
    pub fn due(&mut self, now: Timestamp, scene: &Scene) -> Vec<Due> {
        let map = &*scene.map;
        self.failures.expire(now, map);
        let mut due = self.probes_due(now, map);
        due.extend(self.releases_due(now, scene));
        due.extend(self.out_due(now, map).map(|osd| Due::Propose(Change::MarkOut(osd))));
        due.extend(self.space_due(map).into_iter().map(Due::Propose));
        let grown = self.growth.due(now, scene, &self.stats);
        let moved = if grown.is_none() { self.balancer.due(now, scene, &self.stats) } else { None };
        due.extend(grown.or(moved).map(Due::Propose));
        let served = scrub::served(map, &self.stats, now);
        if !served.is_empty() {
            due.push(Due::Propose(Change::ScrubsServed(served)));
        }
        for (name, service) in &map.services {
            let renewed = self.services.get(name).copied().unwrap_or(self.since);
            if now.since(renewed) >= SERVICE_LEASE {
                let gone = Change::ServiceGone { name: name.clone(), incarnation: service.incarnation };
                due.push(Due::Propose(gone));
            }
        }
        let oldest_epoch = scene.oldest_epoch;
        if map.epoch.0 > oldest_epoch.0 + TRIM_SLACK
            && let Some(needed) = self.stats.oldest_needed(map, now)
            && needed.0 > oldest_epoch.0 + TRIM_SLACK
        {
            due.push(Due::Propose(Change::TrimMaps(needed)));
        }
        due
    }

    fn probes_due(&mut self, now: Timestamp, map: &ClusterMap) -> Vec<Due> {
        let mut due = Vec::new();
        for (osd, info) in map.osds.iter().filter(|(_, info)| info.up) {
            let quiet = now.since(self.heard(*osd, info.incarnation)) >= SILENCE_PROBE;
            let lately = self.probed_at.get(osd).is_some_and(|at| now.since(*at) < PROBE_EVERY);
            if quiet && !lately {
                self.probed_at.insert(*osd, now);
                due.push(Due::Probe { osd: *osd, incarnation: info.incarnation, address: info.address.clone() });
            }
        }
        due
    }

    /// One OSD that has been down for long enough to go out, if the limits allow it.
    fn out_due(&self, now: Timestamp, map: &ClusterMap) -> Option<OsdId> {
        let down = map.osds.iter().filter(|(_, info)| !info.up && info.in_cluster).map(|(osd, _)| *osd);
        let long = |osd: &OsdId| self.down_for(now, *osd).is_some_and(|time| time >= out::DOWN_OUT);
        let mut candidates = down.filter(long).peekable();
        candidates.peek()?;
        let limits = Limits::of(map, &self.stats, now);
        candidates.find(|osd| self.fate(now, &limits, *osd) == Some(Fate::Out))
    }

    /// What becomes of an OSD that is down and in.
    fn fate(&self, now: Timestamp, limits: &Limits<'_>, osd: OsdId) -> Option<Fate> {
        Some(limits.fate(osd, self.down_for(now, osd)?))
    }

    /// How long it has been down, as far as this leader knows.
    fn down_for(&self, now: Timestamp, osd: OsdId) -> Option<Duration> {
        self.down_since.get(&osd).map(|since| now.since(since.at))
    }

    /// Hold-offs end early where data is unavailable without the OSD: then even one that flaps is better than none.
    fn releases_due(&self, now: Timestamp, scene: &Scene) -> Vec<Due> {
        let held = |(osd, note): (&OsdId, &crate::OsdNote)| note.held(scene.at_unix_ms).map(|_| *osd);
        let held: Vec<OsdId> = scene.notes.iter().filter_map(held).collect();
        if held.is_empty() {
            return Vec::new();
        }
        let needed = self.needed(now, &scene.map, &held);
        needed.into_iter().map(|osd| Due::Propose(Change::Request(MonCommand::OsdRelease(osd)))).collect()
    }

    /// Which of some OSDs that are down would make a placement group available that is not.
    fn needed(&self, now: Timestamp, map: &ClusterMap, down: &[OsdId]) -> BTreeSet<OsdId> {
        let mut needed = BTreeSet::new();
        let mut all_up = None;
        for view in self.stats.views(map, now) {
            if let Some(report) = view.report {
                needed.extend(report.blocked_by.iter().filter(|osd| down.contains(*osd)));
            }
            if view.acting.len() < view.pool.min_size() as usize {
                let all_up = all_up.get_or_insert_with(|| {
                    let mut all_up = map.clone();
                    for osd in down {
                        all_up.osds.entry(*osd).and_modify(|info| info.up = true);
                    }
                    all_up
                });
                needed.extend(all_up.members(view.pg).up.iter().filter(|osd| down.contains(*osd)));
            }
        }
        needed
    }

    /// What the OSDs say of their room, where that differs from the map.
    fn space_due(&self, map: &ClusterMap) -> Vec<Change> {
        let mut levels = map.space.clone();
        levels.retain(|osd, _| map.osds.contains_key(osd));
        for (osd, info) in &map.osds {
            // What one that is down said last stands until it says otherwise.
            let Some(usage) = self.stats.usage(map, *osd).filter(|usage| info.up && usage.total_bytes > 0) else {
                continue;
            };
            match map.ratios.level(usage.used_bytes, usage.total_bytes, map.space_level(*osd)) {
                Some(level) => levels.insert(*osd, level),
                None => levels.remove(osd),
            };
        }
        let counts = |osd: &OsdId| map.osds.get(osd).is_some_and(|info| info.up && info.in_cluster);
        let fullest = levels.iter().filter(|(osd, _)| counts(osd)).map(|(_, level)| *level).max();
        let flags =
            ClusterFlags { full: fullest >= Some(SpaceLevel::Full), near_full: fullest >= Some(SpaceLevel::NearFull) };
        let mut changes = Vec::new();
        if levels != map.space {
            changes.push(Change::Space(levels));
        }
        // A flag ends when all are known to be below it; with nobody to ask, what was last known holds.
        let known = |osd: &&OsdId| self.stats.usage(map, **osd).is_some();
        let serving = || map.osds.keys().filter(|osd| counts(osd));
        let ends = map.flags.full && !flags.full || map.flags.near_full && !flags.near_full;
        let decided = serving().any(|osd| known(&osd)) && (!ends || serving().all(|osd| known(&osd)));
        if decided && flags != map.flags {
            changes.push(Change::Flags(flags));
        }
        changes
    }

    /// Answers a question that needs reports, or `None` when it is none.
    #[must_use]
    pub fn answer(&self, now: Timestamp, scene: &Scene, quorum: &Quorum, question: &MonCommand) -> Option<MonReply> {
        let map = &*scene.map;
        match question {
            MonCommand::Status => Some(MonReply::Status(Box::new(health::status(self, now, scene, quorum)))),
            MonCommand::OsdTree => Some(MonReply::OsdTree(reports::osd_tree(map))),
            MonCommand::OsdDf => Some(MonReply::OsdDf(reports::osd_df(map, &self.stats))),
            MonCommand::Df => Some(MonReply::Df(reports::df(map, &self.stats, now))),
            MonCommand::PgList => Some(MonReply::Pgs(reports::pg_list(map, &self.stats, now))),
            MonCommand::PgQuery(pg) => Some(match (Explainer { leader: self, now, scene }).query(*pg) {
                Ok(detail) => MonReply::PgDetail(Box::new(detail)),
                Err(error) => MonReply::Failed(error),
            }),
            MonCommand::Explain(subject) => Some(match (Explainer { leader: self, now, scene }).explain(subject) {
                Ok(explanation) => MonReply::Explanation(explanation),
                Err(error) => MonReply::Failed(error),
            }),
            MonCommand::BalancerStatus => Some(MonReply::Balancer(self.balancer.report(scene))),
            _ => None,
        }
    }
}
