//! The balancer: what it makes keeps the rule, ends, and is even.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use holdfast_crush::{RuleId, RuleKind, SimpleRule};
use holdfast_map::{
    BalanceLimits, BalancePlan, ClusterMap, OsdInfo, Pool, PoolKind, RuleShape, SpaceLevel, UpmapItem, balance,
    split_from,
};
use holdfast_types::{ClusterId, DiskUuid, Epoch, Incarnation, OsdId, PgId, PoolId};
use proptest::prelude::*;

const LIMITS: BalanceLimits = BalanceLimits { moves: 8, moves_per_osd: 2 };

fn empty() -> ClusterMap {
    ClusterMap::empty(ClusterId([1; 16]))
}

fn add_osd(map: &mut ClusterMap, id: u32, weight: u32, host: u32, rack: u32) {
    let (host, rack) = (format!("h{host}"), format!("r{rack}"));
    let place = [("host", host.as_str()), ("rack", rack.as_str()), ("root", "default")];
    map.crush.insert_device(OsdId(id), weight, None, &place).unwrap();
    let info = OsdInfo {
        disk: DiskUuid([u8::try_from(id).unwrap(); 16]),
        incarnation: Incarnation(1),
        address: format!("osd-{id}"),
        up: true,
        in_cluster: true,
        reweight: 0x1_0000,
        up_from: Epoch(1),
        up_thru: Epoch(1),
        down_at: Epoch(0),
        dead_epoch: Epoch(0),
        formatted_at: Epoch(1),
    };
    map.osds.insert(OsdId(id), info);
}

fn add_pool(map: &mut ClusterMap, size: u32, pg_num: u32, domain: &str) -> PoolId {
    let id = map.next_pool;
    let name = format!("{domain}-{id}");
    let rule =
        SimpleRule { name: &name, kind: RuleKind::Replicated, root: "default", failure_domain: domain, class: None };
    let rule = map.crush.add_rule(rule).unwrap().0;
    let pool = Pool {
        name: name.clone(),
        kind: PoolKind::Replicated { size, min_size: size / 2 + 1 },
        pg_num,
        rule,
        created: Epoch(1),
        application: String::new(),
    };
    map.pools.insert(id, pool);
    map.next_pool = PoolId(id.0 + 1);
    id
}

fn apply(map: &mut ClusterMap, plan: &BalancePlan) {
    for (pg, items) in &plan.upmap {
        if items.is_empty() {
            map.upmap.remove(pg);
        } else {
            map.upmap.insert(*pg, items.clone());
        }
    }
}

fn members(map: &ClusterMap) -> BTreeMap<PgId, Vec<OsdId>> {
    map.members_of_all().into_iter().map(|(pg, members)| (pg, members.up)).collect()
}

/// What must hold of every placement group before and after a plan.
fn check_step(before: &ClusterMap, after: &ClusterMap, limits: BalanceLimits) {
    let (old, new) = (members(before), members(after));
    let mut moves = 0;
    let mut gained = BTreeMap::<OsdId, usize>::new();
    for (pg, now) in &new {
        let shape = RuleShape::of(&after.crush, RuleId(after.pools[&pg.pool].rule)).unwrap();
        assert!(shape.is_kept_by(now), "{pg} is on {now:?}");
        assert_eq!(now.len(), old[pg].len(), "{pg} lost a copy");
        let others: Vec<_> = now.iter().zip(&old[pg]).filter(|(now, then)| now != then).collect();
        assert!(others.len() <= 1, "{pg}: {:?} → {now:?} exchanges more than one at once", old[pg]);
        moves += others.len();
        for (to, _) in others {
            *gained.entry(*to).or_default() += 1;
        }
    }
    assert!(moves <= limits.moves, "{moves} moves");
    assert!(gained.values().all(|gained| *gained <= limits.moves_per_osd), "{gained:?}");
    let mut pruned = after.clone();
    pruned.prune_upmap();
    assert_eq!(pruned.upmap, after.upmap, "nothing in it is without effect");
}

/// Plans and applies until nothing is left to do.
fn converge(map: &mut ClusterMap, bytes: &BTreeMap<PgId, u64>) -> BalancePlan {
    for _ in 0..400 {
        let plan = balance(map, bytes, LIMITS);
        if plan.moves == 0 {
            assert!(plan.upmap.is_empty(), "a plan of no moves changes nothing");
            return plan;
        }
        let before = map.clone();
        apply(map, &plan);
        check_step(&before, map, LIMITS);
        let kept = balance(map, bytes, BalanceLimits { moves: 0, moves_per_osd: 0 });
        assert!((kept.deviation_before - plan.deviation_after).abs() < 1e-6, "the plan says what it makes");
    }
    panic!("it does not end");
}

fn copies_per_osd(map: &ClusterMap) -> BTreeMap<OsdId, usize> {
    let mut copies = BTreeMap::new();
    for osd in members(map).into_values().flatten() {
        *copies.entry(osd).or_default() += 1;
    }
    copies
}

#[test]
fn growing_from_three_to_twelve_osds_stays_within_ten_per_cent() {
    let mut map = empty();
    for id in 0..3 {
        add_osd(&mut map, id, 0x1_0000, id, id);
    }
    add_pool(&mut map, 3, 64, "host");
    assert_eq!(balance(&map, &BTreeMap::new(), LIMITS).moves, 0, "three copies on three OSDs are even");
    for id in 3..12 {
        add_osd(&mut map, id, 0x1_0000, id, id);
        map.prune_upmap();
        converge(&mut map, &BTreeMap::new());
        let copies = copies_per_osd(&map);
        let part = 192.0 / f64::from(id + 1);
        let worst = copies.values().map(|n| (*n as f64 / part - 1.0).abs()).fold(0.0, f64::max);
        assert!(worst <= 0.1, "{} OSDs: {copies:?}", id + 1);
    }
    // And back: the upmaps of OSDs that are out go with them.
    for id in 6..12 {
        map.osds.get_mut(&OsdId(id)).unwrap().in_cluster = false;
    }
    map.prune_upmap();
    assert!(map.upmap.values().flatten().all(|item| item.to.0 < 6));
    converge(&mut map, &BTreeMap::new());
}

#[test]
fn placement_groups_of_different_sizes_are_even_in_bytes() {
    let mut map = empty();
    for id in 0..12 {
        add_osd(&mut map, id, 0x1_0000, id, id);
    }
    let (data, small) = (add_pool(&mut map, 3, 128, "host"), add_pool(&mut map, 3, 32, "host"));
    let mut bytes = BTreeMap::new();
    for pg in map.pgs() {
        let odd = u64::from(pg.seed.wrapping_mul(2_654_435_761) >> 16) % 100;
        bytes.insert(pg, if pg.pool == data { (50 + odd) << 20 } else { 1 << 10 });
    }
    converge(&mut map, &bytes);
    let mut held = BTreeMap::<OsdId, (u64, usize)>::new();
    for (pg, members) in members(&map) {
        for osd in members {
            let entry = held.entry(osd).or_default();
            entry.0 += bytes[&pg];
            entry.1 += usize::from(pg.pool == small);
        }
    }
    let mean = held.values().map(|(bytes, _)| bytes).sum::<u64>() / 12;
    for (osd, (bytes, small)) in held {
        let off = (bytes as f64 / mean as f64 - 1.0).abs();
        assert!(off <= 0.05, "{osd} is {off:.3} off in bytes");
        assert!((5..=11).contains(&small), "{osd} has {small} of 8 placement groups of the small pool");
    }
}

#[test]
fn a_full_or_absent_osd_is_given_nothing() {
    let mut map = empty();
    for id in 0..8 {
        add_osd(&mut map, id, 0x1_0000, id, id);
    }
    add_pool(&mut map, 3, 64, "host");
    map.space.insert(OsdId(1), SpaceLevel::BackfillFull);
    map.osds.get_mut(&OsdId(2)).unwrap().up = false;
    map.osds.get_mut(&OsdId(3)).unwrap().in_cluster = false;
    let plan = balance(&map, &BTreeMap::new(), BalanceLimits { moves: 64, moves_per_osd: 64 });
    assert!(plan.moves > 0);
    assert!(plan.upmap.values().flatten().all(|item| !(1..=3).contains(&item.to.0)), "{:?}", plan.upmap);
}

#[test]
fn an_exchange_ends_when_it_would_break_the_rule() {
    let mut map = empty();
    for id in 0..4 {
        add_osd(&mut map, id, 0x1_0000, id, 0);
    }
    let pool = add_pool(&mut map, 3, 8, "host");
    let pg = PgId { pool, seed: 0 };
    let chosen = map.members(pg).up;
    let spare = (0..4).map(OsdId).find(|osd| !chosen.contains(osd)).unwrap();
    map.upmap.insert(pg, vec![UpmapItem { from: chosen[1], to: spare }]);
    assert_eq!(map.members(pg).up, [chosen[0], spare, chosen[2]], "in the same place");
    let kept = map.clone();
    map.prune_upmap();
    assert_eq!(map, kept);
    // The spare is moved to the host of another member.
    let host = format!("h{}", chosen[0].0);
    let place = [("host", host.as_str()), ("rack", "r0"), ("root", "default")];
    map.crush.insert_device(spare, 0x1_0000, None, &place).unwrap();
    map.prune_upmap();
    let members = map.members(pg).up;
    assert!(RuleShape::of(&map.crush, RuleId(map.pools[&pool].rule)).unwrap().is_kept_by(&members), "{members:?}");
    // An OSD that is out stands for nobody.
    let mut map = kept;
    map.osds.get_mut(&spare).unwrap().in_cluster = false;
    assert_eq!(map.members(pg).up, chosen);
}

#[test]
fn a_split_moves_no_copy_and_its_spread_moves_few_at_a_time() {
    let mut map = empty();
    for id in 0..12 {
        add_osd(&mut map, id, 0x1_0000, id, id);
    }
    let pool = add_pool(&mut map, 3, 32, "host");
    converge(&mut map, &BTreeMap::new());
    assert!(!map.upmap.is_empty(), "some members were exchanged");
    let before = members(&map);
    assert!(map.split_pool(pool, 128));
    map.prune_upmap();
    for (pg, now) in members(&map) {
        assert_eq!(now, before[&split_from(pg, 32)], "{pg}");
    }
    assert!(!map.split_pool(pool, 256), "the first one is not spread yet");
    assert!(!map.spread_pool(pool, 32) && !map.split_pool(pool, 64), "it only grows");
    let mut last = members(&map);
    for placed in (36..=128).step_by(4) {
        assert!(map.spread_pool(pool, placed));
        map.prune_upmap();
        let now = members(&map);
        let moved = now.iter().filter(|(pg, osds)| last[pg] != **osds).count();
        // Those that are placed anew, and the later ones that follow them.
        assert!(moved <= 4 * 4, "{moved} placement groups moved at {placed}");
        last = now;
    }
    assert!(map.placed_as.is_empty() && map.placed_num(pool) == 128);
    let mut fresh = map.clone();
    fresh.upmap.clear();
    let mut other = empty();
    for id in 0..12 {
        add_osd(&mut other, id, 0x1_0000, id, id);
    }
    add_pool(&mut other, 3, 128, "host");
    assert_eq!(members(&fresh), members(&other), "in the end it lies as if it had been made so");
    converge(&mut map, &BTreeMap::new());
    assert!(copies_per_osd(&map).values().all(|copies| (30..=34).contains(copies)));
}

/// OSDs (weight in quarters, host), pools (size, pg_num exponent, by host).
fn any_cluster() -> impl Strategy<Value = ClusterMap> {
    let osds = prop::collection::vec((1u32..=8, 0u32..8), 3..20);
    let pools = prop::collection::vec((1u32..=3, 3u32..=6, any::<bool>()), 1..4);
    let outs = prop::collection::vec(0u32..20, 0..3);
    (osds, pools, outs).prop_map(|(osds, pools, outs)| {
        let mut map = empty();
        for (id, (weight, host)) in (0..).zip(osds) {
            add_osd(&mut map, id, weight * 0x4000, host, host / 3);
        }
        for (size, exponent, by_host) in pools {
            add_pool(&mut map, size, 1 << exponent, if by_host { "host" } else { "osd" });
        }
        for out in outs {
            map.osds.entry(OsdId(out)).and_modify(|info| info.in_cluster = false);
        }
        map
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_cluster_is_balanced_within_its_rules_and_comes_to_rest(map in any_cluster(), seed in any::<u64>()) {
        let mut map = map;
        let size = |pg: PgId| seed.wrapping_mul(u64::from(pg.seed) + 7).wrapping_add(pg.pool.0) % 1_000;
        let bytes: BTreeMap<PgId, u64> = map.pgs().map(|pg| (pg, size(pg))).collect();
        let first = balance(&map, &bytes, LIMITS);
        let last = converge(&mut map, &bytes);
        prop_assert_eq!(&last, &balance(&map, &bytes, LIMITS), "the same again");
        prop_assert!(first.moves > 0 || map.upmap.is_empty());
        // Whatever happens to the hierarchy afterwards: what is left keeps the rule, and pruning twice changes nothing.
        let moved = OsdId(u32::try_from(seed % map.osds.len() as u64).unwrap());
        map.crush.insert_device(moved, 0x8000, None, &[("host", "h0"), ("rack", "r0"), ("root", "default")]).unwrap();
        map.prune_upmap();
        for (pg, members) in members(&map) {
            let shape = RuleShape::of(&map.crush, RuleId(map.pools[&pg.pool].rule)).unwrap();
            prop_assert!(shape.is_kept_by(&members), "{} is on {:?}", pg, members);
        }
        let pruned = map.clone();
        map.prune_upmap();
        prop_assert_eq!(map.upmap, pruned.upmap);
    }
}
