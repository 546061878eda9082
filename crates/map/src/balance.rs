//! Which members to exchange so that all OSDs are equally full: the upmap balancer.
//!
//! CRUSH spreads placement groups as dice would: with a hundred of them an OSD is off by ten per cent. The balancer
//! exchanges single members until no exchange helps. It is a pure function of the map and of the placement groups'
//! sizes, and takes only exchanges that
//!
//! - keep the rule ([`RuleShape::may_replace`]): the same part of the hierarchy, no shared failure domain;
//! - go to an OSD that is up, in, and takes copies;
//! - lower the *tension* by at least [`GAIN_MIN`]: so it ends, and on what it made it does nothing.
//!
//! The tension is the sum over all OSDs of `share * D²`, where `D` is how far what it holds is from its part by weight,
//! in average placement groups, and `share` is larger for smaller OSDs; plus, for each pool, the square of how far the
//! number of its placement groups is beyond [`COUNT_SLACK`] of its part, so that a busy pool is spread by number, too.
//! A placement group counts with its bytes and a little beside, so that empty ones are spread as well.
//!
//! At most one member of a placement group is exchanged at a time: all others keep their copies meanwhile.

use std::collections::BTreeMap;

use holdfast_crush::RuleId;
use holdfast_types::{OsdId, PgId, PoolId};

use crate::cluster::{ClusterMap, UpmapItem};
use crate::rule::RuleShape;

/// How far one exchange must lower the tension; in squares of average placement groups. Half of what moving one from an
/// OSD that has two too many gains: small gains are not worth the copying, and sizes change all the time.
const GAIN_MIN: f64 = 0.5;
/// How many placement groups of a pool an OSD may have more or less than its part at no cost.
const COUNT_SLACK: f64 = 1.5;
/// A placement group counts as if it held this part of the average beside its bytes.
const BASE_PART: f64 = 0.125;
/// Most exchanges that are weighed in one run: it must end soon on a cluster of any size.
const TRIES_MAX: usize = 4_000_000;

/// How much may be moved at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalanceLimits {
    /// Members exchanged in one plan.
    pub moves: usize,
    /// Of these, from one OSD, and to one OSD.
    pub moves_per_osd: usize,
}

/// What to change, and what it is good for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BalancePlan {
    /// New entries of [`ClusterMap::upmap`]; an empty one removes the entry.
    pub upmap: BTreeMap<PgId, Vec<UpmapItem>>,
    /// Members exchanged.
    pub moves: usize,
    /// The largest part by which an OSD holds more or less than it should, before: 0.1 is 10 %.
    pub deviation_before: f64,
    /// The same, after.
    pub deviation_after: f64,
}

struct Pool {
    shape: RuleShape,
    /// How many placement groups each OSD should have.
    target: Vec<f64>,
    count: Vec<f64>,
}

/// One placement group: what CRUSH chose, and who stands there by now.
struct Group {
    pg: PgId,
    pool: usize,
    chosen: Vec<OsdId>,
    members: Vec<OsdId>,
    size: f64,
    moved: bool,
}

struct Load {
    osd: OsdId,
    takes: bool,
    held: f64,
    target: f64,
    share: f64,
    groups: Vec<usize>,
    moves_from: usize,
    moves_to: usize,
}

impl Load {
    fn deviation(&self) -> f64 {
        self.held - self.target
    }

    /// How much the tension of this OSD rises when it holds so much more.
    fn rise(&self, more: f64) -> f64 {
        self.share * more * (2.0 * self.deviation() + more)
    }

    fn pull(&self) -> f64 {
        self.share * self.deviation()
    }
}

struct Balance {
    pools: Vec<Pool>,
    groups: Vec<Group>,
    loads: Vec<Load>,
    index: BTreeMap<OsdId, usize>,
}

/// Plans the next exchanges. `bytes` has the size of each placement group, as far as it is known.
#[must_use]
pub fn balance(map: &ClusterMap, bytes: &BTreeMap<PgId, u64>, limits: BalanceLimits) -> BalancePlan {
    let mut balance = Balance::of(map, bytes);
    let mut plan = BalancePlan { deviation_before: balance.deviation(), ..BalancePlan::default() };
    let mut tries = 0;
    while plan.moves < limits.moves {
        let Some((group, from, to)) = balance.best(limits, &mut tries) else { break };
        balance.exchange(group, from, to);
        plan.moves += 1;
    }
    plan.deviation_after = balance.deviation();
    for group in balance.groups.iter().filter(|group| group.moved) {
        let items = group.chosen.iter().zip(&group.members).filter(|(chosen, member)| chosen != member);
        plan.upmap.insert(group.pg, items.map(|(from, to)| UpmapItem { from: *from, to: *to }).collect());
    }
    plan
}

impl Balance {
    fn of(map: &ClusterMap, bytes: &BTreeMap<PgId, u64>) -> Balance {
        let mut balance = Balance { pools: Vec::new(), groups: Vec::new(), loads: Vec::new(), index: BTreeMap::new() };
        for (osd, info) in &map.osds {
            balance.index.insert(*osd, balance.loads.len());
            balance.loads.push(Load {
                osd: *osd,
                takes: info.up && info.in_cluster && info.reweight > 0 && !map.takes_no_backfill(*osd),
                held: 0.0,
                target: 0.0,
                share: 1.0,
                groups: Vec::new(),
                moves_from: 0,
                moves_to: 0,
            });
        }
        let known: Vec<u64> = map.pgs().filter_map(|pg| bytes.get(&pg)).copied().collect();
        #[expect(clippy::cast_precision_loss, reason = "averages need no more than 52 bits")]
        let average = (known.iter().map(|bytes| *bytes as f64).sum::<f64>() / known.len().max(1) as f64).max(1.0);
        let weights = map.placement_weights();
        for (id, info) in &map.pools {
            if let Some(shape) = RuleShape::of(&map.crush, RuleId(info.rule)) {
                balance.add_pool(map, *id, shape, &weights, |pg| {
                    #[expect(clippy::cast_precision_loss, reason = "as above")]
                    let part = bytes.get(&pg).map_or(1.0, |bytes| *bytes as f64 / average);
                    part + BASE_PART
                });
            }
        }
        let taking: Vec<f64> = balance.loads.iter().map(|load| load.target).filter(|target| *target > 0.0).collect();
        #[expect(clippy::cast_precision_loss, reason = "OSDs are few")]
        let mean = taking.iter().sum::<f64>() / taking.len().max(1) as f64;
        for load in balance.loads.iter_mut().filter(|load| load.target > 0.0) {
            load.share = (mean / load.target).clamp(0.25, 4.0);
        }
        balance
    }

    fn add_pool(
        &mut self,
        map: &ClusterMap,
        id: PoolId,
        shape: RuleShape,
        weights: &[u32],
        size_of: impl Fn(PgId) -> f64,
    ) {
        let Some(info) = map.pools.get(&id) else { return };
        let part = |osd: OsdId, weight: u32| -> f64 {
            let reweight = weights.get(osd.0 as usize).copied().unwrap_or(0);
            f64::from(weight) * f64::from(reweight) / 65_536.0
        };
        let total: f64 = shape.candidates().map(|(osd, weight)| part(osd, weight)).sum();
        if total <= 0.0 {
            return;
        }
        let pool = self.pools.len();
        let mut count = vec![0.0; self.loads.len()];
        let (mut copies, mut held) = (0.0, 0.0);
        for seed in 0..info.pg_num {
            let pg = PgId { pool: id, seed };
            let (chosen, members) = map.chosen_and_placed(pg, weights);
            let size = size_of(pg);
            for at in members.iter().filter_map(|osd| self.index.get(osd)).copied() {
                count[at] += 1.0;
                copies += 1.0;
                held += size;
                self.loads[at].held += size;
                self.loads[at].groups.push(self.groups.len());
            }
            self.groups.push(Group { pg, pool, chosen, members, size, moved: false });
        }
        let mut target = vec![0.0; self.loads.len()];
        for (osd, weight) in shape.candidates() {
            if let Some(at) = self.index.get(&osd).copied() {
                let part = part(osd, weight) / total;
                target[at] = copies * part;
                self.loads[at].target += held * part;
            }
        }
        self.pools.push(Pool { shape, target, count });
    }

    /// The exchange that lowers the tension most, of those from the OSD that holds most too much and may give something.
    fn best(&self, limits: BalanceLimits, tries: &mut usize) -> Option<(usize, usize, usize)> {
        let mut sources: Vec<usize> =
            (0..self.loads.len()).filter(|at| self.loads[*at].moves_from < limits.moves_per_osd).collect();
        sources.sort_by(|a, b| self.loads[*b].pull().total_cmp(&self.loads[*a].pull()).then(a.cmp(b)));
        let mut targets: Vec<usize> = (0..self.loads.len())
            .filter(|at| self.loads[*at].takes && self.loads[*at].moves_to < limits.moves_per_osd)
            .collect();
        targets.sort_by(|a, b| self.loads[*a].pull().total_cmp(&self.loads[*b].pull()).then(a.cmp(b)));
        let lowest = self.loads.get(*targets.first()?)?.pull();
        let counts_matter = self.pools.iter().any(|pool| {
            pool.count.iter().zip(&pool.target).any(|(count, target)| (count - target).abs() > COUNT_SLACK)
        });
        for from in sources {
            // No exchange of any size between two OSDs whose pulls differ by less than this gains enough.
            let least = (GAIN_MIN * self.loads[from].share).sqrt();
            if !counts_matter && self.loads[from].pull() - lowest < least {
                break;
            }
            let mut best: Option<(f64, usize, usize)> = None;
            for group in self.loads[from].groups.iter().copied().filter(|group| !self.groups[*group].moved) {
                for to in targets.iter().copied().filter(|to| *to != from) {
                    *tries += 1;
                    if *tries > TRIES_MAX {
                        return None;
                    }
                    let rise = self.rise(group, from, to);
                    let better = best.is_none_or(|(least, _, _)| rise < least);
                    if rise < -GAIN_MIN && better && self.is_allowed(group, from, to) {
                        best = Some((rise, group, to));
                    }
                }
            }
            if let Some((_, group, to)) = best {
                return Some((group, from, to));
            }
        }
        None
    }

    /// How much the tension would rise.
    fn rise(&self, group: usize, from: usize, to: usize) -> f64 {
        let group = &self.groups[group];
        let pool = &self.pools[group.pool];
        let beyond = |at: usize, more: f64| {
            let off = (pool.count[at] + more - pool.target[at]).abs() - COUNT_SLACK;
            if off > 0.0 { off * off } else { 0.0 }
        };
        let by_count = beyond(from, -1.0) - beyond(from, 0.0) + beyond(to, 1.0) - beyond(to, 0.0);
        self.loads[from].rise(-group.size) + self.loads[to].rise(group.size) + by_count
    }

    fn is_allowed(&self, group: usize, from: usize, to: usize) -> bool {
        let group = &self.groups[group];
        let (from, to) = (self.loads[from].osd, self.loads[to].osd);
        // An OSD that CRUSH chose for another place of the same placement group stays out of this one, so that each
        // entry is a set of exchanges that do not depend on each other.
        let place = group.members.iter().position(|member| *member == from);
        let elsewhere = group.chosen.iter().enumerate().any(|(at, chosen)| *chosen == to && Some(at) != place);
        !elsewhere && self.pools[group.pool].shape.may_replace(&group.members, from, to)
    }

    fn exchange(&mut self, group: usize, from: usize, to: usize) {
        let size = self.groups[group].size;
        let (old, new) = (self.loads[from].osd, self.loads[to].osd);
        let pool = self.groups[group].pool;
        for member in self.groups[group].members.iter_mut().filter(|member| **member == old) {
            *member = new;
        }
        self.groups[group].moved = true;
        self.pools[pool].count[from] -= 1.0;
        self.pools[pool].count[to] += 1.0;
        self.loads[from].held -= size;
        self.loads[from].moves_from += 1;
        self.loads[from].groups.retain(|held| *held != group);
        self.loads[to].held += size;
        self.loads[to].moves_to += 1;
        self.loads[to].groups.push(group);
    }

    fn deviation(&self) -> f64 {
        let part = |load: &Load| (load.target > 0.0).then(|| (load.deviation() / load.target).abs());
        self.loads.iter().filter_map(part).fold(0.0, f64::max)
    }
}
