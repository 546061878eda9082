//! What OSDs say of themselves and of their placement groups, and which of it can be believed now.
//!
//! A report of a placement group counts only if it comes from the present primary, of its present run, made with a map
//! that has all members' boots, and speaks of the present interval: same up set, same acting set,
//! begun no earlier than the map that made them so. What does not count is unknown, never clean.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_map::{ClusterMap, PgMembers, Pool};
use holdfast_types::{Epoch, Incarnation, OsdId, PgId, Timestamp};
use holdfast_wire::mon::{OsdReport, PgReport, PgState, StoreUsage};

use crate::sabotage::{Sabotage, breaks};

/// An OSD that has reported nothing for this long says nothing about its placement groups any more. Several times the
/// reporting interval; a dead OSD is noticed much earlier.
pub const REPORT_STALE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
struct OsdStat {
    incarnation: Incarnation,
    at: Timestamp,
    usage: StoreUsage,
    checksum_errors: u64,
    repaired: u64,
    copies_lost: u64,
}

#[derive(Debug, Clone)]
struct PgStat {
    from: OsdId,
    incarnation: Incarnation,
    report: PgReport,
    /// Since when it has been saying this state.
    state_since: Timestamp,
}

/// Where the report of a placement group comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) osd: OsdId,
    /// When the OSD last reported anything: what it did not mention was unchanged.
    pub(crate) at: Timestamp,
    pub(crate) state_since: Timestamp,
}

/// The present interval of a placement group, and since when at the earliest.
#[derive(Debug, Clone)]
struct Interval {
    members: PgMembers,
    /// Runs of the up set, then of the acting set.
    runs: Vec<Incarnation>,
    /// `size`, `min_size`, `pg_num`.
    shape: (u32, u32, u32),
    not_before: Epoch,
    /// The last boot of a member.
    booted: Epoch,
}

impl Interval {
    fn of(map: &ClusterMap, pg: PgId, members: PgMembers) -> Interval {
        let infos = || members.up.iter().chain(&members.acting).filter_map(|osd| map.osds.get(osd));
        let runs = infos().map(|info| info.incarnation).collect();
        let booted = infos().map(|info| info.up_from).max().unwrap_or(Epoch::ZERO);
        let pool = map.pools.get(&pg.pool);
        let shape = pool.map_or((0, 0, 0), |pool| (pool.size(), pool.min_size(), pool.pg_num));
        let not_before = pool.map_or(Epoch::ZERO, |pool| pool.created);
        Interval { members, runs, shape, not_before, booted }
    }

    fn continues(&self, before: &Interval) -> bool {
        self.members == before.members && self.runs == before.runs && self.shape == before.shape
    }
}

/// All reports of this leadership.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stats {
    osds: BTreeMap<OsdId, OsdStat>,
    pgs: BTreeMap<PgId, PgStat>,
    intervals: BTreeMap<PgId, Interval>,
}

/// One placement group as it is known now.
#[derive(Debug, Clone)]
pub(crate) struct PgView<'a> {
    pub(crate) pg: PgId,
    pub(crate) pool: &'a Pool,
    pub(crate) up: &'a [OsdId],
    pub(crate) acting: &'a [OsdId],
    /// The report, if it counts.
    pub(crate) report: Option<&'a PgReport>,
    /// The newest report, whether it counts or not.
    pub(crate) last: Option<&'a PgReport>,
    /// What holds for certain: of the report, made worse by what the map says.
    pub(crate) state: PgState,
}

impl PgView<'_> {
    /// Words for people: `active+clean`, `unknown`, `unknown+undersized+degraded`, …
    pub(crate) fn describe(&self) -> String {
        match self.report {
            Some(_) => self.state.describe(),
            None if self.state == PgState::default() => "unknown".to_owned(),
            None => format!("unknown+{}", self.state.describe()),
        }
    }

    /// Whether its data are to go to other OSDs. Members beyond what placement finds room for are where they shall be: nothing
    /// moves before a map places them.
    pub(crate) fn moves(&self) -> bool {
        let wanted = self.acting.len().min(self.pool.size() as usize);
        self.up != self.acting && self.up.len() >= wanted
    }

    /// Copies that should exist and do not, as far as it is known.
    pub(crate) fn copies_missing(&self) -> u64 {
        let objects = self.last.map_or(0, |report| report.objects);
        let members_missing = u64::from(self.pool.size()).saturating_sub(self.acting.len() as u64);
        let by_map = objects.saturating_mul(members_missing);
        self.report.map_or(by_map, |report| report.copies_missing.max(by_map))
    }
}

impl Stats {
    /// Takes note of a map: whose reports count from now on. `seen` is the epoch of the map noted before.
    pub(super) fn observe(&mut self, seen: Epoch, map: &ClusterMap) {
        let mut intervals = BTreeMap::new();
        for (pg, members) in map.members_of_all() {
            let mut interval = Interval::of(map, pg, members);
            if let Some(before) = self.intervals.get(&pg) {
                // With no map missed, a new interval begins at this one; else at the first that was missed or later.
                let since = if interval.continues(before) { before.not_before } else { seen.next() };
                interval.not_before = interval.not_before.max(since);
            }
            intervals.insert(pg, interval);
        }
        self.pgs.retain(|pg, _| intervals.contains_key(pg));
        self.osds.retain(|osd, _| map.osds.contains_key(osd));
        self.intervals = intervals;
    }

    /// Takes a report of a running OSD. Answers whether it is now known what all its placement groups do; if not, it
    /// should report all of them.
    pub(super) fn report(&mut self, now: Timestamp, report: OsdReport) -> bool {
        let stat = OsdStat {
            incarnation: report.incarnation,
            at: now,
            usage: report.usage,
            checksum_errors: report.checksum_errors,
            repaired: report.repaired,
            copies_lost: report.copies_lost.unwrap_or(0),
        };
        self.osds.insert(report.osd, stat);
        for pg in report.pgs {
            let known = self.intervals.contains_key(&pg.pg);
            let newer = self.pgs.get(&pg.pg).is_none_or(|stat| {
                let same_run = stat.from == report.osd && stat.incarnation == report.incarnation;
                pg.epoch >= stat.report.epoch || same_run
            });
            if known && newer {
                let before = self.pgs.get(&pg.pg).filter(|before| {
                    before.from == report.osd
                        && before.incarnation == report.incarnation
                        && before.report.interval_start == pg.interval_start
                        && before.report.state == pg.state
                });
                let state_since = before.map_or(now, |before| before.state_since);
                let stat = PgStat { from: report.osd, incarnation: report.incarnation, report: pg, state_since };
                self.pgs.insert(stat.report.pg, stat);
            }
        }
        self.intervals.iter().filter(|(_, interval)| interval.members.primary() == Some(report.osd)).all(|(pg, _)| {
            self.pgs.get(pg).is_some_and(|stat| stat.from == report.osd && stat.incarnation == report.incarnation)
        })
    }

    /// When the OSD's present run last reported.
    pub(super) fn last_report(&self, osd: OsdId, incarnation: Incarnation) -> Option<Timestamp> {
        self.osds.get(&osd).filter(|stat| stat.incarnation == incarnation).map(|stat| stat.at)
    }

    /// The space of the OSD, as its present run last reported it.
    pub(crate) fn usage(&self, map: &ClusterMap, osd: OsdId) -> Option<StoreUsage> {
        let incarnation = map.osds.get(&osd)?.incarnation;
        self.osds.get(&osd).filter(|stat| stat.incarnation == incarnation).map(|stat| stat.usage)
    }

    /// Blocks with a wrong checksum that were found, and repaired, since the OSD's boot.
    pub(crate) fn damage(&self, osd: OsdId) -> (u64, u64) {
        self.osds.get(&osd).map_or((0, 0), |stat| (stat.checksum_errors, stat.repaired))
    }

    /// Copies of placement groups that the OSD has given up since its boot.
    pub(crate) fn copies_lost(&self, osd: OsdId) -> u64 {
        self.osds.get(&osd).map_or(0, |stat| stat.copies_lost)
    }

    /// All placement groups as they are known at `now`. `map` is the one last observed.
    pub(crate) fn views<'a>(&'a self, map: &'a ClusterMap, now: Timestamp) -> Vec<PgView<'a>> {
        self.intervals.iter().filter_map(|(pg, interval)| self.view_of(map, now, *pg, interval)).collect()
    }

    /// One of them.
    pub(crate) fn view<'a>(&'a self, map: &'a ClusterMap, now: Timestamp, pg: PgId) -> Option<PgView<'a>> {
        self.view_of(map, now, pg, self.intervals.get(&pg)?)
    }

    /// Where the newest report of a placement group comes from.
    pub(crate) fn source(&self, pg: PgId) -> Option<Source> {
        let stat = self.pgs.get(&pg)?;
        let at = self.last_report(stat.from, stat.incarnation)?;
        Some(Source { osd: stat.from, at, state_since: stat.state_since })
    }

    fn view_of<'a>(
        &'a self,
        map: &'a ClusterMap,
        now: Timestamp,
        pg: PgId,
        interval: &'a Interval,
    ) -> Option<PgView<'a>> {
        let pool = map.pools.get(&pg.pool)?;
        let last = self.pgs.get(&pg);
        let report = last.filter(|stat| self.counts(map, now, stat, interval)).map(|stat| &stat.report);
        let members = &interval.members;
        let mut state = report.map_or(PgState::default(), |report| report.state);
        if members.acting.len() < pool.size() as usize {
            state.undersized = true;
            state.degraded = true;
        }
        if report.is_some_and(|report| report.copies_missing > 0) {
            state.degraded = true;
        }
        if members.up != members.acting {
            state.remapped = true;
        }
        let (up, acting) = (&*members.up, &*members.acting);
        let mut view = PgView { pg, pool, up, acting, report, last: last.map(|stat| &stat.report), state };
        if state.degraded || state.undersized || view.moves() || !state.active {
            view.state.clean = false;
        }
        Some(view)
    }

    fn counts(&self, map: &ClusterMap, now: Timestamp, stat: &PgStat, interval: &Interval) -> bool {
        if breaks(Sabotage::OldReportsCount) {
            return true;
        }
        let runs = map.osds.get(&stat.from).is_some_and(|info| info.up && info.incarnation == stat.incarnation);
        let fresh = self.last_report(stat.from, stat.incarnation).is_some_and(|at| now.since(at) < REPORT_STALE);
        runs && fresh
            && interval.members.primary() == Some(stat.from)
            && stat.report.acting == interval.members.acting
            && stat.report.up == interval.members.up
            && stat.report.interval_start >= interval.not_before
            && stat.report.epoch >= interval.booted
    }

    /// The oldest map that some placement group still needs, if that is known of all.
    pub(super) fn oldest_needed(&self, map: &ClusterMap, now: Timestamp) -> Option<Epoch> {
        let views = self.views(map, now);
        let needed: Option<Vec<Epoch>> =
            views.iter().map(|view| view.report.map(|report| report.last_epoch_clean)).collect();
        needed?.into_iter().min()
    }
}
