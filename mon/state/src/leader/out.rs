//! When an OSD that is down loses its data to others, and when it may not.
//!
//! It goes out after [`DOWN_OUT`], one OSD at a time, and never when that would
//!
//! - leave fewer than [`IN_MIN_PERCENT`] of all OSDs in: that many do not fail by themselves;
//! - take out the last of a rack (or a row, a room, …) of which nothing is up: that is a lost switch, not lost disks;
//! - leave a pool fewer failure domains than it keeps copies: the copies would have nowhere to go;
//! - fill the OSDs that stay beyond the level at which they take no copies any more.
//!
//! It comes back in when it boots (`osds::boot`), unless an operator took it out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_crush::{ItemId, RuleId};
use holdfast_map::{ClusterMap, Pool, RuleShape};
use holdfast_types::{OsdId, PoolId, Timestamp};

use super::stats::Stats;

/// An OSD that has been down for this long loses its data to others.
pub(super) const DOWN_OUT: Duration = Duration::from_secs(600);
/// Marking out stops when fewer than this part of all OSDs would be in.
const IN_MIN_PERCENT: usize = 75;
/// Buckets of this level, and of those above it but roots, are never marked out as a whole.
const NEVER_OUT_WHOLE: &str = "rack";
/// The level that holds everything.
const ROOT: &str = "root";

/// Why an OSD that has been down for long stays in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StaysIn {
    #[error("only {in_after} of {all} OSDs would be in, and at least {IN_MIN_PERCENT} % must be")]
    TooMany { in_after: usize, all: usize },
    #[error("nothing in {kind} {name} is up: that looks like a lost switch or a lost supply")]
    WholeDomain { kind: String, name: String },
    #[error("pool {pool} keeps {size} copies apart by {level}, and only {left} would be left")]
    TooFewDomains { pool: String, size: u32, level: String, left: usize },
    #[error("the OSDs that stay would be {percent} % full")]
    TooFull { percent: u64 },
}

/// What becomes of an OSD that is down and in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes out after so long, if it is still down and nothing forbids it then.
    OutIn(Duration),
    /// It should go out now.
    Out,
    /// It would go out, but for this.
    Stays(StaysIn),
}

/// How far the cluster is from each limit: worked out once, then asked for each OSD.
pub(super) struct Limits<'a> {
    map: &'a ClusterMap,
    inside: usize,
    rules: Vec<RuleLimit>,
    /// How full the OSDs that are up and in would be with all data, in thousandths; `None`: nobody has said.
    permille: Option<u128>,
}

/// What the pools of one rule need.
struct RuleLimit {
    shape: RuleShape,
    /// OSDs that can hold data, by failure domain.
    domains: BTreeMap<ItemId, usize>,
    /// The pool with the most copies.
    pool: String,
    size: u32,
}

/// Bytes of the placement groups that belong on OSDs that are down and have not reported to this leader: the host that
/// led before may have died with them. One of which nothing is known counts as the average of its pool.
fn placed_on(map: &ClusterMap, stats: &Stats, now: Timestamp, osds: &BTreeSet<OsdId>) -> u64 {
    let views = stats.views(map, now);
    let mut known = BTreeMap::<PoolId, (u64, u64)>::new();
    for (pool, report) in views.iter().filter_map(|view| Some((view.pg.pool, view.last?))) {
        let (bytes, groups) = known.entry(pool).or_default();
        (*bytes, *groups) = (bytes.saturating_add(report.bytes), *groups + 1);
    }
    let average = |pool| known.get(&pool).and_then(|(bytes, groups)| bytes.checked_div(*groups)).unwrap_or(0);
    let bytes = views.iter().map(|view| {
        let copies = map.placed(view.pg).iter().filter(|osd| osds.contains(*osd)).count() as u64;
        view.last.map_or_else(|| average(view.pg.pool), |report| report.bytes).saturating_mul(copies)
    });
    bytes.fold(0, u64::saturating_add)
}

impl<'a> Limits<'a> {
    pub(super) fn of(map: &'a ClusterMap, stats: &Stats, now: Timestamp) -> Limits<'a> {
        let mut largest = BTreeMap::<u32, &Pool>::new();
        for pool in map.pools.values() {
            let known = largest.entry(pool.rule).or_insert(pool);
            if pool.size() > known.size() {
                *known = pool;
            }
        }
        let usable = |osd: &OsdId| map.osds.get(osd).is_some_and(|info| info.in_cluster && info.reweight > 0);
        let rule_limit = |(rule, pool): (u32, &Pool)| {
            let shape = RuleShape::of(&map.crush, RuleId(rule))?;
            let mut domains = BTreeMap::new();
            for osd in shape.candidates().map(|(osd, _)| osd).filter(usable) {
                *domains.entry(shape.domain(osd)?).or_default() += 1;
            }
            Some(RuleLimit { shape, domains, pool: pool.name.clone(), size: pool.size() })
        };
        // What an OSD that goes out held is copied from the others: all that is used now must then fit without it.
        let (mut used, mut total) = (0u128, 0u128);
        let mut unheard = BTreeSet::new();
        for (osd, info) in map.osds.iter().filter(|(_, info)| info.in_cluster) {
            let Some(usage) = stats.usage(map, *osd) else {
                unheard.extend((!info.up).then_some(*osd));
                continue;
            };
            used += u128::from(usage.used_bytes);
            if info.up {
                total += u128::from(usage.total_bytes);
            }
        }
        if total > 0 && !unheard.is_empty() {
            used += u128::from(placed_on(map, stats, now, &unheard));
        }
        Limits {
            map,
            inside: map.osds.values().filter(|info| info.in_cluster).count(),
            rules: largest.into_iter().filter_map(rule_limit).collect(),
            permille: (used * 1_000).checked_div(total),
        }
    }

    /// What becomes of an OSD that is in, and has been down for so long.
    pub(super) fn fate(&self, osd: OsdId, down_for: Duration) -> Fate {
        match DOWN_OUT.checked_sub(down_for).filter(|left| !left.is_zero()) {
            Some(left) => Fate::OutIn(left),
            None => self.why_not(osd).map_or(Fate::Out, Fate::Stays),
        }
    }

    fn why_not(&self, osd: OsdId) -> Option<StaysIn> {
        let (in_after, all) = (self.inside.saturating_sub(1), self.map.osds.len());
        if in_after * 100 < all * IN_MIN_PERCENT {
            return Some(StaysIn::TooMany { in_after, all });
        }
        self.whole_domain(osd).or_else(|| self.too_few_domains(osd)).or_else(|| self.too_full())
    }

    fn whole_domain(&self, osd: OsdId) -> Option<StaysIn> {
        let (crush, types) = (&self.map.crush, self.map.crush.parts());
        let lowest = types.type_named(NEVER_OUT_WHOLE)?;
        let concerned = |kind: &str| kind != ROOT && types.type_named(kind).is_some_and(|level| level >= lowest);
        let all_down = |name: &str| {
            let inside = crush.devices_beneath(name);
            inside.len() > 1 && !inside.iter().any(|osd| self.map.is_up(*osd))
        };
        let location = crush.location_of(osd);
        let (kind, name) = location.into_iter().find(|(kind, name)| concerned(kind) && all_down(name))?;
        Some(StaysIn::WholeDomain { kind: kind.to_owned(), name: name.to_owned() })
    }

    fn too_few_domains(&self, osd: OsdId) -> Option<StaysIn> {
        self.rules.iter().find_map(|rule| {
            let counts = self.map.osds.get(&osd).is_some_and(|info| info.reweight > 0);
            let is_last = counts && rule.domains.get(&rule.shape.domain(osd)?) == Some(&1);
            let left = rule.domains.len().saturating_sub(1);
            (is_last && left < rule.size as usize).then(|| StaysIn::TooFewDomains {
                pool: rule.pool.clone(),
                size: rule.size,
                level: rule.shape.level_name(&self.map.crush).to_owned(),
                left,
            })
        })
    }

    fn too_full(&self) -> Option<StaysIn> {
        let permille = self.permille.filter(|permille| *permille >= u128::from(self.map.ratios.backfill_full))?;
        Some(StaysIn::TooFull { percent: u64::try_from(permille / 10).unwrap_or(u64::MAX) })
    }
}
