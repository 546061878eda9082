//! When an OSD that is down loses its data to others, and when it may not.
//!
//! It goes out after [`DOWN_OUT`], one OSD at a time, and never when that would
//!
//! - leave fewer than [`IN_MIN_PERCENT`] of all OSDs in: that many do not fail by themselves;
//! - take out the last of a rack (or a row, a room, …) of which nothing is up: that is a lost switch, not lost disks;
//! - leave a pool fewer failure domains with an OSD that serves than it keeps copies: the copies would have nowhere to go;
//! - fill the OSDs that stay beyond the level at which they take no copies any more: all of them on average, or those of
//!   its own failure domain. A pool of as many copies as there are domains keeps all that a domain holds in that domain,
//!   and one full OSD stops the writes of the whole cluster, which without it would go on with a copy less. Of `n` domains
//!   and `c` copies the domain keeps one part in `n - c + 1`: the others can take what it cannot.
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
    #[error(
        "pool {pool} keeps {size} copies apart by {level}: the OSDs that stay in {level} {name} would be {percent} % full"
    )]
    DomainTooFull { pool: String, size: u32, level: String, name: String, percent: u64 },
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
    /// By failure domain, where an OSD can hold data.
    domains: BTreeMap<ItemId, Domain>,
    /// The pool with the most copies.
    pool: String,
    size: u32,
}

/// The OSDs of one failure domain that are in.
#[derive(Debug, Clone, Copy, Default)]
struct Domain {
    /// How many are up.
    up: usize,
    /// Bytes on those that are up, and their room.
    used: u128,
    total: u128,
    /// Bytes on those that are down: they are copied to others when these go out.
    lost: u128,
    /// CRUSH weights of those that are up, and of all that the domain has, out ones too: what goes out does not make it lighter.
    up_weight: u128,
    weight: u128,
}

impl Domain {
    /// How much of what is lost comes to those that are up, when so many other domains may take it, too: a choice that falls
    /// on an OSD that is out is made again among all domains.
    fn gain(&self, others: usize) -> u128 {
        let all = self.up_weight + others as u128 * self.weight;
        (self.lost * self.up_weight).checked_div(all).unwrap_or(self.lost)
    }
}

/// Bytes of the placement groups that belong on OSDs that are down and have not reported to this leader: the host that
/// led before may have died with them. One of which nothing is known counts as the average of its pool.
fn placed_on(map: &ClusterMap, stats: &Stats, now: Timestamp, osds: &BTreeSet<OsdId>) -> BTreeMap<OsdId, u128> {
    let views = stats.views(map, now);
    let mut known = BTreeMap::<PoolId, (u64, u64)>::new();
    for (pool, report) in views.iter().filter_map(|view| Some((view.pg.pool, view.last?))) {
        let (bytes, groups) = known.entry(pool).or_default();
        (*bytes, *groups) = (bytes.saturating_add(report.bytes), *groups + 1);
    }
    let average = |pool| known.get(&pool).and_then(|(bytes, groups)| bytes.checked_div(*groups)).unwrap_or(0);
    let mut placed = BTreeMap::<OsdId, u128>::new();
    for view in &views {
        let bytes = view.last.map_or_else(|| average(view.pg.pool), |report| report.bytes);
        for osd in map.placed(view.pg).into_iter().filter(|osd| osds.contains(osd)) {
            *placed.entry(osd).or_default() += u128::from(bytes);
        }
    }
    placed
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
        // What an OSD that goes out held is copied from the others: all that is used now must then fit without it.
        let (mut used, mut total) = (BTreeMap::<OsdId, u128>::new(), BTreeMap::<OsdId, u128>::new());
        let mut unheard = BTreeSet::new();
        for (osd, info) in map.osds.iter().filter(|(_, info)| info.in_cluster) {
            let Some(usage) = stats.usage(map, *osd) else {
                unheard.extend((!info.up).then_some(*osd));
                continue;
            };
            used.insert(*osd, u128::from(usage.used_bytes));
            if info.up {
                total.insert(*osd, u128::from(usage.total_bytes));
            }
        }
        let total_of_all: u128 = total.values().sum();
        if total_of_all > 0 && !unheard.is_empty() {
            used.extend(placed_on(map, stats, now, &unheard));
        }
        let rule_limit = |(rule, pool): (u32, &Pool)| {
            let shape = RuleShape::of(&map.crush, RuleId(rule))?;
            let mut domains = BTreeMap::<ItemId, Domain>::new();
            for (osd, weight) in shape.candidates().filter(|(osd, _)| usable(osd)) {
                let domain = domains.entry(shape.domain(osd)?).or_default();
                let bytes = used.get(&osd).copied().unwrap_or(0);
                if map.is_up(osd) {
                    domain.up += 1;
                    domain.up_weight += u128::from(weight);
                    domain.used += bytes;
                    domain.total += total.get(&osd).copied().unwrap_or(0);
                } else {
                    domain.lost += bytes;
                }
            }
            for (osd, weight) in shape.candidates() {
                if let Some(domain) = domains.get_mut(&shape.domain(osd)?) {
                    domain.weight += u128::from(weight);
                }
            }
            Some(RuleLimit { shape, domains, pool: pool.name.clone(), size: pool.size() })
        };
        Limits {
            map,
            inside: map.osds.values().filter(|info| info.in_cluster).count(),
            rules: largest.into_iter().filter_map(rule_limit).collect(),
            permille: (used.values().sum::<u128>() * 1_000).checked_div(total_of_all),
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
        self.whole_domain(osd)
            .or_else(|| self.too_few_domains(osd))
            .or_else(|| self.too_full())
            .or_else(|| self.domain_too_full(osd))
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

    /// The rules that can place data on the OSD, and its domain by each.
    fn domains_of(&self, osd: OsdId) -> impl Iterator<Item = (&RuleLimit, &Domain)> {
        let counts = self.map.osds.get(&osd).is_some_and(|info| info.reweight > 0);
        self.rules
            .iter()
            .filter(move |_| counts)
            .filter_map(move |rule| Some((rule, rule.domains.get(&rule.shape.domain(osd)?)?)))
    }

    fn too_few_domains(&self, osd: OsdId) -> Option<StaysIn> {
        // Those that are in but down take nothing of it: with none that is up the domain is as good as gone.
        let mut none_up = self.domains_of(osd).filter(|(_, domain)| domain.up == 0);
        none_up.find_map(|(rule, _)| {
            let left = rule.domains.len().saturating_sub(1);
            (left < rule.size as usize).then(|| StaysIn::TooFewDomains {
                pool: rule.pool.clone(),
                size: rule.size,
                level: rule.shape.level_name(&self.map.crush).to_owned(),
                left,
            })
        })
    }

    fn domain_too_full(&self, osd: OsdId) -> Option<StaysIn> {
        self.domains_of(osd).find_map(|(rule, domain)| {
            let others = rule.domains.len().saturating_sub(rule.size as usize);
            let permille = ((domain.used + domain.gain(others)) * 1_000).checked_div(domain.total)?;
            (permille >= u128::from(self.map.ratios.backfill_full)).then(|| StaysIn::DomainTooFull {
                pool: rule.pool.clone(),
                size: rule.size,
                level: rule.shape.level_name(&self.map.crush).to_owned(),
                name: self.map.crush.failure_domain_of(osd, rule.shape.level_name(&self.map.crush)).unwrap_or_default(),
                percent: u64::try_from(permille / 10).unwrap_or(u64::MAX),
            })
        })
    }

    fn too_full(&self) -> Option<StaysIn> {
        let permille = self.permille.filter(|permille| *permille >= u128::from(self.map.ratios.backfill_full))?;
        Some(StaysIn::TooFull { percent: u64::try_from(permille / 10).unwrap_or(u64::MAX) })
    }
}
