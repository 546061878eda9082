//! The balancer as the leader drives it.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_map::{RuleShape, SpaceLevel, UpmapItem};
use holdfast_mon_state::Change;
use holdfast_types::{Incarnation, OsdId, PgId, PoolId};
use holdfast_wire::mon::{BalancerReport, LocationStep, MonCommand, MonError, MonReply, Subject};

use crate::world::World;

fn upmaps(world: &mut World) -> Vec<BTreeMap<PgId, Vec<UpmapItem>>> {
    let upmap = |change| match change {
        Change::Upmap(upmap) => Some(upmap),
        _ => None,
    };
    world.proposals().into_iter().filter_map(upmap).collect()
}

fn report(world: &World) -> BalancerReport {
    match world.ask(&MonCommand::BalancerStatus) {
        MonReply::Balancer(report) => report,
        reply => panic!("{reply:?}"),
    }
}

fn check_rules(world: &World) {
    let map = world.map();
    for (pg, members) in map.members_of_all() {
        let shape = RuleShape::of(&map.crush, holdfast_crush::RuleId(map.pools[&pg.pool].rule)).unwrap();
        assert!(shape.is_kept_by(&members.up), "{pg} is on {:?}", members.up);
        assert_eq!(members.up.len(), 3, "{pg}");
    }
}

/// What is due of pools that grow.
fn growth_steps(world: &mut World) -> Vec<Change> {
    let of_growth = |change: &Change| matches!(change, Change::Split { .. } | Change::Spread { .. });
    world.proposals().into_iter().filter(of_growth).collect()
}

/// All placement groups hold much and have been clean for long.
fn all_clean(world: &mut World) {
    for _ in 0..2 {
        world.report_each(|report| report.bytes = 64 << 20);
        world.wait(Duration::from_secs(11));
    }
    world.report_each(|report| report.bytes = 64 << 20);
}

fn boot(world: &mut World, osd: u32, run: u64, can_split: Option<bool>) {
    let info = world.map().osds[&OsdId(osd)].clone();
    let (osd, disk, address, incarnation) = (OsdId(osd), info.disk, info.address, Incarnation(run));
    world.change(Change::Request(MonCommand::OsdBoot { osd, disk, incarnation, address, can_split }));
}

#[test]
fn no_pool_is_split_before_every_osd_has_said_at_its_newest_boot_that_it_can() {
    let mut world = World::new(&[0, 1, 2]);
    for id in 3..12u32 {
        world.add(id, vec![LocationStep { kind: "host".into(), name: format!("h{id}") }]);
    }
    let split = |judged_at| Change::Split { pool: PoolId(1), pg_num: 128, judged_at: Some(judged_at) };
    let before = world.map().epoch;
    all_clean(&mut world);
    assert!(world.codes().iter().all(|code| code != "POOL_NOT_SPLIT"));
    // One went back to an earlier build, and is down and out by now.
    boot(&mut world, 7, 5_000, None);
    for change in
        [MonCommand::OsdStopping { osd: OsdId(7), incarnation: Incarnation(5_000) }, MonCommand::OsdOut(OsdId(7))]
    {
        world.change(Change::Request(change));
    }
    for leaders in 0..2 {
        all_clean(&mut world);
        assert!(growth_steps(&mut world).is_empty(), "{leaders}");
        let status = world.status();
        let check = status.checks.iter().find(|check| check.code == "POOL_NOT_SPLIT").expect("it is said why");
        assert!(check.detail[0].contains("osd.7") && check.detail[0].contains("64"), "{check:?}");
        let pg = PgId { pool: PoolId(1), seed: 0 };
        let MonReply::Explanation(explained) = world.ask(&MonCommand::Explain(Subject::Pg(pg))) else { panic!() };
        assert!(explained.facts.iter().any(|fact| fact.contains("is not split: osd.7")), "{explained:?}");
        world.change(split(before));
        assert_eq!(world.map().pools[&PoolId(1)].pg_num, 64, "nor by a leader that has not heard of it yet");
        world.elect();
    }
    boot(&mut world, 7, 5_001, Some(true));
    world.change(Change::Request(MonCommand::OsdStopping { osd: OsdId(7), incarnation: Incarnation(5_001) }));
    all_clean(&mut world);
    let now = world.map().epoch;
    assert_eq!(growth_steps(&mut world), [split(now)], "down, it splits its copies when it is back");
}

#[test]
fn an_osd_that_has_never_booted_holds_no_split_back() {
    let mut world = World::new(&[0, 1, 2]);
    for id in 3..12u32 {
        world.add(id, vec![LocationStep { kind: "host".into(), name: format!("h{id}") }]);
    }
    let (disk, location) =
        (holdfast_types::DiskUuid([99; 16]), vec![LocationStep { kind: "host".into(), name: "new".into() }]);
    let register =
        MonCommand::OsdRegister { disk, location, class: None, capacity_bytes: 1 << 40, wanted: None, blank: None };
    world.change(Change::Request(register));
    all_clean(&mut world);
    assert!(world.codes().iter().all(|code| code != "POOL_NOT_SPLIT"));
    assert_eq!(growth_steps(&mut world).len(), 1);
}

#[test]
fn a_split_waits_for_room_and_options_are_what_they_seem() {
    let mut world = World::new(&[0, 1, 2]);
    for id in 3..12u32 {
        world.add(id, vec![LocationStep { kind: "host".into(), name: format!("h{id}") }]);
    }
    let full = |level| Change::Space(BTreeMap::from([(OsdId(3), level)]));
    let is_asked = |world: &mut World| {
        all_clean(world);
        !growth_steps(world).is_empty()
    };
    world.change(full(SpaceLevel::NearFull));
    assert!(!is_asked(&mut world));
    assert!(world.codes().contains(&"POOL_NOT_SPLIT".to_owned()));
    world.change(Change::Space(BTreeMap::new()));
    assert!(is_asked(&mut world));
    for (name, value) in [("pg_split", "no"), ("pg_split", "0"), ("pg_split_bytes_min", "1G")] {
        let set = MonCommand::ConfigSet { name: name.into(), value: Some(value.into()) };
        let refused = world.try_change(Change::Request(set));
        assert!(matches!(refused, Err(MonError::Invalid { .. })), "{name} {value}: {refused:?}");
    }
    world.change(Change::Split { pool: PoolId(1), pg_num: 128, judged_at: None });
    world.change(full(SpaceLevel::BackfillFull));
    assert!(!is_asked(&mut world), "what cannot be filled is not moved");
    world.change(full(SpaceLevel::NearFull));
    assert!(is_asked(&mut world), "what was begun is ended");
}

/// Lets the balancer work until it rests, as if each move were done at once. Answers how many rounds it took.
fn settle(world: &mut World) -> usize {
    world.wait(Duration::from_secs(60));
    for round in 0..200 {
        world.report_all();
        world.wait(Duration::from_secs(1));
        world.report_all();
        let plans = upmaps(world);
        assert!(plans.len() <= 1);
        let Some(plan) = plans.into_iter().next() else {
            if report(world).state.starts_with("rests") {
                return round;
            }
            continue;
        };
        let moves: usize = plan.len();
        assert!((1..=16).contains(&moves), "{moves} placement groups at once");
        world.change(Change::Upmap(plan));
        check_rules(world);
        world.wait(Duration::from_secs(1));
        assert!(upmaps(world).is_empty(), "not before what moves is clean");
    }
    panic!("it does not come to rest");
}

#[test]
fn osds_that_are_added_one_by_one_come_to_hold_their_part() {
    let mut world = World::new(&[0, 1, 2]);
    assert_eq!(settle(&mut world), 0, "three copies on three OSDs are even");
    for id in 3..12u32 {
        world.add(id, vec![LocationStep { kind: "host".into(), name: format!("h{id}") }]);
        settle(&mut world);
        let mut copies = BTreeMap::<OsdId, u32>::new();
        for osd in world.map().members_of_all().into_iter().flat_map(|(_, members)| members.up) {
            *copies.entry(osd).or_default() += 1;
        }
        let all: u32 = copies.values().sum();
        let part = f64::from(all) / f64::from(id + 1);
        let worst = copies.values().map(|n| (f64::from(*n) / part - 1.0).abs()).fold(0.0, f64::max);
        assert!(worst <= 0.1, "{} OSDs: {copies:?}", id + 1);
    }
    assert!(report(&world).deviation_permille.unwrap() <= 100);
    assert!(report(&world).exchanged > 0);
}

#[test]
fn nothing_moves_while_something_is_not_clean_or_the_operator_says_so() {
    let mut world = World::new(&[0, 1, 2, 3, 4, 5, 6]);
    assert!(upmaps(&mut world).is_empty(), "nobody has reported");
    assert!(report(&world).state.starts_with("waits until 128 placement groups"), "{:?}", report(&world));
    world.report_all();
    world.wait(Duration::from_secs(1));
    let first = world.map().pgs().next().unwrap();
    let primary = world.map().members(first).primary().unwrap();
    world.report_all();
    let _ = world.report(primary.0, |report| report.state.clean = report.pg != first);
    assert!(upmaps(&mut world).is_empty(), "{first} is not clean");
    let set = |value: Option<&str>| {
        Change::Request(MonCommand::ConfigSet { name: "balancer".into(), value: value.map(str::to_owned) })
    };
    world.report_all();
    world.wait(Duration::from_secs(1));
    assert!(upmaps(&mut world).is_empty() && report(&world).state.contains("clean for 10 s"), "{:?}", report(&world));
    world.change(set(Some("off")));
    world.wait(Duration::from_secs(10));
    assert!(upmaps(&mut world).is_empty());
    assert!(!report(&world).enabled);
    world.change(set(None));
    assert_eq!(upmaps(&mut world).len(), 1);
}

#[test]
fn a_plan_that_a_change_has_overtaken_breaks_no_rule() {
    let mut world = World::new(&[0, 1, 2, 3, 4, 5, 6]);
    world.change(Change::Upmap(BTreeMap::from([
        (PgId { pool: PoolId(9), seed: 0 }, vec![UpmapItem { from: OsdId(0), to: OsdId(1) }]),
        (PgId { pool: PoolId(1), seed: 0 }, vec![UpmapItem { from: OsdId(0), to: OsdId(99) }]),
    ])));
    assert!(world.map().upmap.is_empty(), "no such pool, no such OSD");
    assert!(upmaps(&mut world).is_empty(), "nobody has reported");
    world.report_all();
    world.wait(Duration::from_secs(10));
    let plan = upmaps(&mut world).remove(0);
    let to = plan.values().flatten().next().unwrap().to;
    world.change(Change::Request(MonCommand::OsdOut(to)));
    world.change(Change::Upmap(plan));
    assert!(world.map().upmap.values().flatten().all(|item| item.to != to));
    check_rules(&world);
    world.change(Change::Request(MonCommand::PoolDelete { name: "data".into(), confirm: "data".into() }));
    assert!(world.map().upmap.is_empty());
}

#[test]
fn a_pool_that_has_outgrown_its_placement_groups_is_split_and_spread_step_by_step() {
    let mut world = World::new(&[0, 1, 2]);
    let pool = PoolId(1);
    assert_eq!(world.map().pools[&pool].pg_num, 64);
    for id in 3..12u32 {
        world.add(id, vec![LocationStep { kind: "host".into(), name: format!("h{id}") }]);
    }
    let steps = |world: &mut World| -> Vec<Change> {
        let of_growth = |change: &Change| matches!(change, Change::Split { .. } | Change::Spread { .. });
        world.proposals().into_iter().filter(of_growth).collect()
    };
    let all_clean = |world: &mut World| {
        for _ in 0..2 {
            world.report_each(|report| report.bytes = 64 << 20);
            world.wait(Duration::from_secs(11));
        }
        world.report_each(|report| report.bytes = 64 << 20);
    };
    let set = |value: Option<&str>| {
        Change::Request(MonCommand::ConfigSet { name: "pg_split".into(), value: value.map(str::to_owned) })
    };
    world.change(set(Some("off")));
    all_clean(&mut world);
    assert!(steps(&mut world).is_empty(), "switched off");
    world.change(set(None));
    let mut splits = 0;
    for _ in 0..100 {
        all_clean(&mut world);
        let due = steps(&mut world);
        assert!(due.len() <= 1, "one step at a time: {due:?}");
        let Some(change) = due.into_iter().next() else { break };
        splits += usize::from(matches!(change, Change::Split { .. }));
        let before = world.map();
        world.change(change);
        check_rules(&world);
        let moved = world.map().members_of_all().into_iter().filter(|(pg, members)| {
            let parent = holdfast_map::split_from(*pg, before.pools[&pool].pg_num);
            members.up != before.members(parent).up
        });
        assert!(moved.count() <= 32, "few move at once");
        world.wait(Duration::from_secs(1));
        assert!(steps(&mut world).is_empty(), "not before what was split is clean");
    }
    assert_eq!((world.map().pools[&pool].pg_num, splits), (512, 3), "about a hundred copies on each OSD");
    assert!(world.map().placed_as.is_empty());
}
