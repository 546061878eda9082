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

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_map::{ClusterMap, RuleShape};
use holdfast_types::{OsdId, Timestamp};

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

/// What becomes of an OSD that has been down since `since`.
pub(super) fn fate(map: &ClusterMap, stats: &Stats, now: Timestamp, osd: OsdId, since: Timestamp) -> Fate {
    let down_for = now.since(since);
    match DOWN_OUT.checked_sub(down_for).filter(|left| !left.is_zero()) {
        Some(left) => Fate::OutIn(left),
        None => why_not(map, stats, osd).map_or(Fate::Out, Fate::Stays),
    }
}

fn why_not(map: &ClusterMap, stats: &Stats, osd: OsdId) -> Option<StaysIn> {
    let in_after = map.osds.values().filter(|info| info.in_cluster).count().saturating_sub(1);
    if in_after * 100 < map.osds.len() * IN_MIN_PERCENT {
        return Some(StaysIn::TooMany { in_after, all: map.osds.len() });
    }
    whole_domain(map, osd).or_else(|| too_few_domains(map, osd)).or_else(|| too_full(map, stats, osd))
}

fn whole_domain(map: &ClusterMap, osd: OsdId) -> Option<StaysIn> {
    let types = map.crush.parts();
    let lowest = types.type_named(NEVER_OUT_WHOLE)?;
    let concerned = |kind: &str| kind != ROOT && types.type_named(kind).is_some_and(|level| level >= lowest);
    let all_down = |name: &str| {
        let inside = map.crush.devices_beneath(name);
        inside.len() > 1 && !inside.iter().any(|osd| map.is_up(*osd))
    };
    let location = map.crush.location_of(osd);
    let (kind, name) = location.into_iter().find(|(kind, name)| concerned(kind) && all_down(name))?;
    Some(StaysIn::WholeDomain { kind: kind.to_owned(), name: name.to_owned() })
}

fn too_few_domains(map: &ClusterMap, osd: OsdId) -> Option<StaysIn> {
    map.pools.values().find_map(|pool| {
        let shape = RuleShape::of(&map.crush, holdfast_crush::RuleId(pool.rule))?;
        let usable = |other: &OsdId| map.osds.get(other).is_some_and(|info| info.in_cluster && info.reweight > 0);
        let domains = |without: Option<OsdId>| -> usize {
            let osds = shape.candidates().map(|(osd, _)| osd).filter(|osd| usable(osd) && Some(*osd) != without);
            osds.filter_map(|osd| shape.domain(osd)).collect::<BTreeSet<_>>().len()
        };
        let (before, left) = (domains(None), domains(Some(osd)));
        (left < before && left < pool.size() as usize).then(|| StaysIn::TooFewDomains {
            pool: pool.name.clone(),
            size: pool.size(),
            level: shape.level_name(&map.crush).to_owned(),
            left,
        })
    })
}

fn too_full(map: &ClusterMap, stats: &Stats, osd: OsdId) -> Option<StaysIn> {
    // What it held is copied from the others, so all that is used now must then fit without it.
    let (mut used, mut total) = (0u128, 0u128);
    for (other, info) in map.osds.iter().filter(|(_, info)| info.in_cluster) {
        let Some(usage) = stats.usage(map, *other) else { continue };
        used += u128::from(usage.used_bytes);
        if info.up && *other != osd {
            total += u128::from(usage.total_bytes);
        }
    }
    let permille = (used * 1_000).checked_div(total)?;
    let percent = u64::try_from(permille / 10).unwrap_or(u64::MAX);
    (permille >= u128::from(map.ratios.backfill_full)).then_some(StaysIn::TooFull { percent })
}
