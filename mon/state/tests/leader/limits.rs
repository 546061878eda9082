//! What the leader holds back, and why, in words that health tells.

use std::time::Duration;

use holdfast_map::SpaceLevel;
use holdfast_mon_state::Change;
use holdfast_mon_state::leader::{GRACE, Verdict};
use holdfast_types::{Incarnation, OsdId};
use holdfast_wire::mon::{FailureKind, HealthCheck, LocationStep, MonCommand, OsdReport, Severity, StoreUsage};

use crate::world::{World, run_of};

fn check(world: &World, code: &str) -> HealthCheck {
    let checks = world.status().checks;
    checks.iter().find(|check| check.code == code).cloned().unwrap_or_else(|| panic!("no {code} in {checks:?}"))
}

fn dead(osd: u32) -> Change {
    Change::MarkDown { osd: OsdId(osd), incarnation: run_of(osd), dead: true }
}

/// Goes silent and boots again until its boots are refused.
fn flap(world: &mut World, osd: u32) {
    for run in 0..6 {
        let incarnation = world.map().osds[&OsdId(osd)].incarnation;
        world.change(Change::MarkDown { osd: OsdId(osd), incarnation, dead: false });
        world.wait(Duration::from_secs(10));
        if run < 5 {
            boot(world, osd, incarnation.0 + 1);
        }
    }
}

fn boot(world: &mut World, osd: u32, incarnation: u64) {
    let info = world.map().osds[&OsdId(osd)].clone();
    let incarnation = Incarnation(incarnation);
    let (osd, disk, address) = (OsdId(osd), info.disk, info.address);
    let boot = MonCommand::OsdBoot { osd, disk, incarnation, address, can_split: Some(true) };
    world.change(Change::Request(boot));
}

fn use_of(world: &mut World, osd: u32, used_bytes: u64) {
    let map = world.map();
    let report = OsdReport {
        osd: OsdId(osd),
        incarnation: map.osds[&OsdId(osd)].incarnation,
        epoch: map.epoch,
        usage: StoreUsage { total_bytes: 1_000, used_bytes, live_bytes: used_bytes },
        pgs: Vec::new(),
        checksum_errors: 0,
        repaired: 0,
        copies_lost: None,
    };
    let _ = world.leader.on_report(world.now, &map, report);
}

fn settle(world: &mut World) {
    for change in world.proposals() {
        world.change(change);
    }
}

#[test]
fn a_flapping_osd_is_told_of_with_its_reason_and_its_end() {
    let mut world = World::new(&[0, 1, 2, 3]);
    flap(&mut world, 3);
    let flapping = check(&world, "OSD_FLAPPING");
    assert!(flapping.detail[0].contains("osd.3 on h3 went silent more than 5 times within 10 minutes"), "{flapping:?}");
    assert!(flapping.detail[0].contains("until 2023-11-14T22:15:10Z, for 50 s more"), "{flapping:?}");
    assert!(flapping.detail[0].contains("hold-off 1 in a row; the next lasts 2 min"), "{flapping:?}");
    assert!(!world.proposals().iter().any(|change| matches!(change, Change::Request(MonCommand::OsdRelease(_)))));
    world.change(Change::Request(MonCommand::OsdRelease(OsdId(3))));
    assert!(!world.codes().contains(&"OSD_FLAPPING".to_owned()));
    boot(&mut world, 3, 500);
    assert!(world.map().is_up(OsdId(3)));
}

#[test]
fn no_hold_off_keeps_data_unavailable() {
    let mut world = World::new(&[0, 1, 2]);
    flap(&mut world, 2);
    assert!(world.codes().contains(&"OSD_FLAPPING".to_owned()));
    world.change(dead(1));
    let release = Change::Request(MonCommand::OsdRelease(OsdId(2)));
    assert!(world.proposals().contains(&release), "one copy is left of every placement group");
    world.change(release.clone());
    assert!(!world.proposals().contains(&release), "and that is all");
    // The same for a placement group that waits for what only it has.
    let mut world = World::new(&[0, 1, 2, 3]);
    flap(&mut world, 3);
    world.report_all();
    assert!(!world.proposals().contains(&Change::Request(MonCommand::OsdRelease(OsdId(3)))));
    world.report(0, |report| report.blocked_by = vec![OsdId(3)]).unwrap();
    assert!(world.proposals().contains(&Change::Request(MonCommand::OsdRelease(OsdId(3)))));
}

#[test]
fn what_health_says_of_a_down_osd_is_what_becomes_of_it() {
    // hosts, those that are down, what the first of them is told, whether it goes out
    type Row<'a> = (&'a [u32], &'a [u32], &'a str, bool);
    let table: [Row<'_>; 3] = [
        (&[0, 1, 2, 3, 4], &[0], "its data goes to others now", true),
        (&[0, 1, 2], &[0], "only 2 of 3 OSDs would be in, and at least 75 % must be", false),
        (&[0, 1, 2, 3, 4, 5, 6, 7], &[0, 1, 2, 3], "its data goes to others now", true),
    ];
    for (hosts, down, said, goes_out) in table {
        let mut world = World::new(hosts);
        for osd in down {
            world.change(dead(*osd));
        }
        world.wait(Duration::from_secs(300));
        let detail = check(&world, "OSD_DOWN").detail[0].clone();
        assert!(detail.contains("its data goes to others in 5 min"), "{detail}");
        world.wait(Duration::from_secs(300));
        let detail = check(&world, "OSD_DOWN").detail[0].clone();
        assert!(detail.contains(said), "{hosts:?}: {detail}");
        assert_eq!(world.proposals().contains(&Change::MarkOut(OsdId(down[0]))), goes_out, "{hosts:?}");
    }
}

#[test]
fn a_pool_keeps_as_many_failure_domains_as_copies() {
    // Four hosts of one OSD each and a pool of three copies apart by host: one may go, a second may not.
    let mut world = World::new(&[0, 1, 2, 3, 3, 3, 3, 3]);
    apart_by_host(&mut world);
    world.change(dead(0));
    world.change(dead(1));
    world.wait(Duration::from_secs(600));
    assert!(world.proposals().contains(&Change::MarkOut(OsdId(0))));
    world.change(Change::MarkOut(OsdId(0)));
    assert!(!world.proposals().iter().any(|change| matches!(change, Change::MarkOut(_))));
    let detail = check(&world, "OSD_DOWN").detail;
    assert!(detail[0].contains("pool apart keeps 3 copies apart by host, and only 2 would be left"), "{detail:?}");
    // One of many on a host may go: the host stays.
    world.change(dead(3));
    world.wait(Duration::from_secs(600));
    assert!(world.proposals().contains(&Change::MarkOut(OsdId(3))));
}

#[test]
fn a_rack_never_goes_out_as_a_whole() {
    let mut world = World::new(&[]);
    for id in 0..12u8 {
        let location = [("host", id / 2), ("rack", id / 4)];
        let location = location.map(|(kind, n)| LocationStep { kind: kind.into(), name: format!("{kind}-{n}") });
        world.add(u32::from(id), location.to_vec());
    }
    for osd in 0..4 {
        world.change(dead(osd));
    }
    world.wait(Duration::from_secs(600));
    assert!(!world.proposals().iter().any(|change| matches!(change, Change::MarkOut(_))));
    let detail = check(&world, "OSD_DOWN").detail;
    assert!(detail[0].contains("nothing in rack rack-0 is up"), "{detail:?}");
    boot(&mut world, 3, 900);
    assert!(world.proposals().contains(&Change::MarkOut(OsdId(0))), "with one of it up, its disks are lost disks");
}

#[test]
fn data_is_not_moved_to_osds_that_it_would_fill() {
    let mut world = World::new(&[0, 1, 2, 3, 4]);
    for (osd, used) in [(0, 720), (1, 720), (2, 720), (3, 720), (4, 730)] {
        use_of(&mut world, osd, used);
    }
    world.change(dead(0));
    world.wait(Duration::from_secs(600));
    let detail = check(&world, "OSD_DOWN").detail;
    assert!(detail[0].contains("the OSDs that stay would be 90 % full"), "{detail:?}");
    assert!(!world.proposals().contains(&Change::MarkOut(OsdId(0))));
    use_of(&mut world, 4, 700);
    assert!(world.proposals().contains(&Change::MarkOut(OsdId(0))));
}

/// A pool of three copies apart by host.
fn apart_by_host(world: &mut World) {
    world.change(Change::Request(MonCommand::PoolCreate {
        name: "apart".into(),
        size: Some(3),
        min_size: Some(2),
        application: "test".into(),
        failure_domain: Some("host".into()),
        share_percent: None,
    }));
}

#[test]
fn the_last_osd_of_a_failure_domain_is_not_given_what_would_fill_it() {
    // hosts, how full each OSD is per mille, what health says of osd.0 on h0, whether it goes out
    type Row<'a> = (&'a [u32], u64, &'a str, bool);
    let table: [Row<'_>; 5] = [
        // Three hosts for three copies: what osd.0 held can go to osd.1 only.
        (&[0, 0, 1, 1, 2, 2], 600, "the OSDs that stay in host h0 would be 120 % full", false),
        (&[0, 0, 1, 1, 2, 2], 440, "its data goes to others now", true),
        // The fourth host takes two thirds of it: it is as heavy as both OSDs of h0.
        (&[0, 0, 1, 1, 2, 2, 3, 3], 680, "the OSDs that stay in host h0 would be 90 % full", false),
        (&[0, 0, 1, 1, 2, 2, 3, 3], 670, "its data goes to others now", true),
        // Four on a host: three take what one held.
        (&[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], 600, "its data goes to others now", true),
    ];
    for (hosts, used, said, goes_out) in table {
        let mut world = World::new(hosts);
        apart_by_host(&mut world);
        (0..).zip(hosts).for_each(|(osd, _)| use_of(&mut world, osd, used));
        world.change(dead(0));
        world.wait(Duration::from_secs(600));
        let detail = check(&world, "OSD_DOWN").detail;
        assert!(detail[0].contains(said), "{hosts:?}, {used}: {detail:?}");
        assert_eq!(world.proposals().contains(&Change::MarkOut(OsdId(0))), goes_out, "{hosts:?}, {used}");
    }
}

#[test]
fn what_a_leader_never_heard_of_a_dead_osd_counts_in_its_failure_domain_too() {
    for (known, goes_out) in [(false, true), (true, false)] {
        let mut world = World::new(&[0, 0, 1, 1, 2, 2]);
        world.change(Change::Request(MonCommand::PoolDelete { name: "data".into(), confirm: "data".into() }));
        apart_by_host(&mut world);
        let placed = world.map().pgs().filter(|pg| world.map().placed(*pg).contains(&OsdId(0))).count() as u64;
        world.change(dead(0));
        world.elect();
        // All that belongs on it is about as much as its disk takes: on average the others have room for it.
        world.report_each(|report| report.bytes = if known { 1_000 / placed } else { 0 });
        (1..6).for_each(|osd| use_of(&mut world, osd, 300));
        world.wait(Duration::from_secs(600));
        assert_eq!(world.proposals().contains(&Change::MarkOut(OsdId(0))), goes_out, "{placed} groups, {known}");
    }
}

#[test]
fn a_host_of_which_no_osd_is_up_keeps_its_data_when_no_other_host_is_left_for_it() {
    let mut world = World::new(&[0, 0, 1, 1, 1, 2, 2, 2]);
    apart_by_host(&mut world);
    world.change(dead(0));
    world.change(dead(1));
    world.wait(Duration::from_secs(600));
    // Else the one of them that boots first would get what both held.
    let out = world.proposals().into_iter().find(|change| matches!(change, Change::MarkOut(_)));
    assert_eq!(out, None);
    let detail = check(&world, "OSD_DOWN").detail;
    assert!(detail[0].contains("pool apart keeps 3 copies apart by host, and only 2 would be left"), "{detail:?}");
}

#[test]
fn silence_that_is_not_acted_on_is_told() {
    let mut world = World::new(&[0; 3]);
    world.change(dead(0));
    world.change(dead(1));
    assert_eq!(world.codes().iter().filter(|code| *code == "OSD_SILENT").count(), 0);
    let mut world = World::new(&[0; 5]);
    for osd in 0..3 {
        world.change(Change::MarkDown { osd: OsdId(osd), incarnation: run_of(osd), dead: true });
    }
    let silent = FailureKind::Silent { for_ms: u64::try_from(GRACE.as_millis()).unwrap() };
    assert_eq!(world.fails(4, 3, silent), Verdict::Wait, "one of five would be left");
    assert_eq!(check(&world, "OSD_SILENT").severity, Severity::Error);
    world.leader.on_alive(OsdId(4), OsdId(3));
    assert!(!world.codes().contains(&"OSD_SILENT".to_owned()));
}

#[test]
fn each_osd_has_its_level_and_one_that_is_full_stops_writes() {
    let mut world = World::new(&[0, 1, 2, 3]);
    for (osd, used) in [(0, 860), (1, 910), (2, 971), (3, 10)] {
        use_of(&mut world, osd, used);
    }
    settle(&mut world);
    let map = world.map();
    let levels: Vec<_> = (0..4).map(|osd| map.space_level(OsdId(osd))).collect();
    let expected = [Some(SpaceLevel::NearFull), Some(SpaceLevel::BackfillFull), Some(SpaceLevel::Failsafe), None];
    assert_eq!(levels, expected);
    assert!(map.flags.full && map.flags.near_full);
    assert!(map.takes_no_backfill(OsdId(1)) && map.takes_no_backfill(OsdId(2)) && !map.takes_no_backfill(OsdId(0)));
    for (code, osd) in [("OSD_NEAR_FULL", "osd.0"), ("OSD_BACKFILL_FULL", "osd.1"), ("OSD_FULL", "osd.2")] {
        assert!(check(&world, code).detail[0].starts_with(osd), "{code}");
    }
    // What was deleted makes room, with no other step.
    use_of(&mut world, 2, 500);
    settle(&mut world);
    assert!(!world.map().flags.full && world.map().flags.near_full);
    assert_eq!(world.map().space_level(OsdId(2)), None);
    assert!(world.proposals().is_empty(), "and then nothing changes any more");
}

#[test]
fn levels_follow_the_ratios_of_the_map_and_outlast_a_change_of_leaders() {
    let mut world = World::new(&[0, 1]);
    let ratios = |near_full, full| MonCommand::FullRatios { near_full, backfill_full: None, full, failsafe: None };
    world.change(Change::Request(ratios(Some(500), None)));
    use_of(&mut world, 0, 960);
    use_of(&mut world, 1, 510);
    settle(&mut world);
    assert_eq!(world.map().space_level(OsdId(1)), Some(SpaceLevel::NearFull));
    assert!(world.map().flags.full);
    // A new leader that has heard of the emptier one only does not let writes in again.
    world.elect();
    use_of(&mut world, 1, 510);
    settle(&mut world);
    assert!(world.map().flags.full);
    assert!(world.try_change(Change::Request(ratios(None, Some(850)))).is_err(), "below backfill full");
}

#[test]
fn a_leader_that_never_heard_how_full_a_dead_osd_was_counts_what_belongs_on_it() {
    for (bytes, goes_out) in [(0, true), (40, false)] {
        let mut world = World::new(&[0, 1, 2, 3, 4]);
        // It died together with the monitor that led.
        world.change(dead(0));
        world.elect();
        world.report_each(|report| report.bytes = bytes);
        (1..5).for_each(|osd| use_of(&mut world, osd, 700));
        world.wait(Duration::from_secs(600));
        let placed = world.map().pgs().filter(|pg| world.map().placed(*pg).contains(&OsdId(0))).count();
        assert!(placed * 40 >= 800, "{placed} placement groups: the others would be 90 % full");
        assert_eq!(world.proposals().contains(&Change::MarkOut(OsdId(0))), goes_out, "{bytes} bytes each");
    }
}

#[test]
fn a_higher_ratio_lets_writes_in_again_at_once() {
    let mut world = World::new(&[0, 1]);
    use_of(&mut world, 0, 955);
    use_of(&mut world, 1, 100);
    settle(&mut world);
    assert!(world.map().flags.full);
    let ratios = MonCommand::FullRatios { near_full: None, backfill_full: None, full: Some(965), failsafe: None };
    world.change(Change::Request(ratios));
    assert!(world.map().flags.full, "until it has been judged anew");
    settle(&mut world);
    assert!(!world.map().flags.full);
    assert_eq!(world.map().space_level(OsdId(0)), Some(SpaceLevel::BackfillFull));
}

#[test]
fn a_leader_that_has_not_heard_of_all_lets_no_writes_in() {
    let mut world = World::new(&[0, 1]);
    use_of(&mut world, 0, 955);
    use_of(&mut world, 1, 100);
    settle(&mut world);
    let ratios = MonCommand::FullRatios { near_full: None, backfill_full: None, full: Some(952), failsafe: None };
    world.change(Change::Request(ratios));
    world.elect();
    use_of(&mut world, 1, 100);
    settle(&mut world);
    assert!(world.map().flags.full, "the full one has not said anything to this leader");
    use_of(&mut world, 0, 100);
    settle(&mut world);
    assert!(!world.map().flags.full);
}

#[test]
fn an_osd_that_an_operator_marks_in_while_it_is_down_stays_in_for_the_whole_time() {
    let mut world = World::new(&[0, 1, 2, 3, 4]);
    world.report_all();
    world.change(dead(0));
    world.wait(Duration::from_secs(600));
    assert!(world.proposals().contains(&Change::MarkOut(OsdId(0))));
    world.change(Change::MarkOut(OsdId(0)));
    world.change(Change::Request(MonCommand::OsdIn(OsdId(0))));
    world.wait(Duration::from_secs(599));
    assert!(!world.proposals().contains(&Change::MarkOut(OsdId(0))), "the clock began anew");
    world.wait(Duration::from_secs(1));
    assert!(world.proposals().contains(&Change::MarkOut(OsdId(0))));
}

#[test]
fn pools_that_could_survive_more_are_told_of() {
    let pool = |name: &str, size, min_size, domain: &str| {
        Change::Request(MonCommand::PoolCreate {
            name: name.into(),
            size: Some(size),
            min_size: Some(min_size),
            application: "test".into(),
            failure_domain: Some(domain.into()),
            share_percent: None,
        })
    };
    // Two disks on each of three hosts.
    let mut world = World::new(&[0, 0, 1, 1, 2, 2]);
    let weak = check(&world, "POOL_WEAK_DOMAIN");
    assert!(weak.detail[0].contains("pool data keeps 3 copies on any disks; there are 3 hosts"), "{weak:?}");
    assert!(!world.codes().contains(&"POOL_NO_REDUNDANCY".to_owned()));
    world.change(pool("one", 1, 1, "host"));
    world.change(pool("few", 3, 1, "host"));
    let alone = check(&world, "POOL_NO_REDUNDANCY");
    assert_eq!(alone.detail, ["pool one keeps one copy", "pool few keeps 3 copies, and serves with 1"]);
    for (name, domain) in [("one", None), ("few", None), ("data", Some("host".to_owned()))] {
        let (size, min_size) = (Some(3), Some(2));
        world.change(Change::Request(MonCommand::PoolSet {
            name: name.into(),
            size,
            min_size,
            failure_domain: domain,
        }));
    }
    let codes = world.codes();
    assert!(!codes.iter().any(|code| code.starts_with("POOL_")), "{codes:?}");
    // With one disk there is nothing to choose.
    let mut world = World::new(&[0]);
    world.change(pool("one", 1, 1, "osd"));
    assert!(!world.codes().iter().any(|code| code.starts_with("POOL_")));
}
