//! Reports: whom they take down, and what they make of placement groups.

use std::time::Duration;

use holdfast_mon_state::leader::{Due, ProbeResult, REPORT_STALE, SERVICE_LEASE, Verdict};
use holdfast_mon_state::{Change, Command, Op};
use holdfast_types::{Epoch, Incarnation, OsdId};
use holdfast_wire::mon::{FailureKind, MonCommand, MonError, MonReply, OsdReport, PgState, Severity, StoreUsage};

use crate::world::{World, run_of};

fn is_down(verdict: &Verdict, osd: u32) -> bool {
    *verdict == Verdict::Propose(Change::MarkDown { osd: OsdId(osd), incarnation: run_of(osd), dead: false })
}

#[test]
fn silence_needs_two_failure_domains_or_all_there_are() {
    // hosts, target, reporters in order: the number of the report that suffices, if one does
    type Row<'a> = (&'a [u32], u32, &'a [u32], Option<usize>);
    let table: [Row<'_>; 6] = [
        (&[0, 1, 2, 3], 0, &[1, 2], Some(2)),
        (&[0, 1, 1, 1, 2], 0, &[1, 2, 3], None),
        (&[0, 1, 1, 1, 2], 0, &[1, 2, 3, 4], Some(4)),
        (&[0, 0, 0, 0], 0, &[1, 2], Some(2)),
        (&[0, 0, 0, 1, 2], 0, &[1, 2], None),
        (&[0, 1], 0, &[1], Some(1)),
    ];
    for (hosts, target, reporters, enough) in table {
        let mut world = World::new(hosts);
        let verdicts: Vec<Verdict> = reporters.iter().map(|reporter| world.silent(*reporter, target)).collect();
        let sufficed = verdicts.iter().position(|verdict| is_down(verdict, target)).map(|index| index + 1);
        assert_eq!(sufficed, enough, "hosts {hosts:?}, reporters {reporters:?}: {verdicts:?}");
    }
}

#[test]
fn reports_count_only_while_they_and_their_reporters_hold() {
    let mut world = World::new(&[0, 1, 2, 3]);
    assert_eq!(world.fails(1, 0, FailureKind::Silent { for_ms: 1 }), Verdict::Wait, "no silence yet");
    assert_eq!(world.silent(1, 0), Verdict::Probe);
    assert_eq!(world.silent(1, 0), Verdict::Probe, "one voice, twice");
    assert_eq!(world.silent(0, 0), Verdict::Stale, "of itself");
    world.leader.on_alive(OsdId(1), OsdId(0));
    assert_eq!(world.silent(2, 0), Verdict::Probe, "the first report was taken back");
    world.wait(Duration::from_secs(60));
    assert_eq!(world.silent(3, 0), Verdict::Probe, "the second is too old");
    world.change(Change::MarkDown { osd: OsdId(3), incarnation: run_of(3), dead: true });
    assert_eq!(world.silent(3, 0), Verdict::Stale, "a dead reporter");
    assert_eq!(world.silent(2, 0), Verdict::Probe);
    assert!(is_down(&world.silent(1, 0), 0));
    world.change(Change::MarkDown { osd: OsdId(0), incarnation: run_of(0), dead: false });
    assert_eq!(world.silent(1, 0), Verdict::Stale, "it is down already");
}

#[test]
fn a_refused_connection_is_confirmed_by_the_monitor_itself() {
    let mut world = World::new(&[0, 0, 0]);
    assert_eq!(world.fails(1, 0, FailureKind::Refused), Verdict::Probe);
    let map = world.map();
    let mut probe = |result| world.leader.on_probe(world.now, &map, OsdId(0), run_of(0), result);
    assert_eq!(probe(ProbeResult::Connected), None);
    assert_eq!(probe(ProbeResult::NoAnswer), None);
    let down = Change::MarkDown { osd: OsdId(0), incarnation: run_of(0), dead: true };
    assert_eq!(probe(ProbeResult::Refused), Some(down));
    let other_run = world.leader.on_probe(world.now, &map, OsdId(0), Incarnation(1), ProbeResult::Refused);
    assert_eq!(other_run, None);
}

#[test]
fn what_the_monitor_alone_sees_refused_is_never_known_to_be_dead() {
    let mut world = World::new(&[0, 1, 2, 3]);
    let look = |world: &mut World, osd: u32| {
        let map = world.map();
        world.leader.on_probe(world.now, &map, OsdId(osd), run_of(osd), ProbeResult::Refused)
    };
    let dead = Some(Change::MarkDown { osd: OsdId(0), incarnation: run_of(0), dead: true });
    // A firewall before the monitor rejects all: the OSDs tell it that they live.
    world.report_all();
    world.wait(Duration::from_secs(5));
    assert_eq!((0..4).filter_map(|osd| look(&mut world, osd)).count(), 0);
    // Nor when they cannot: then as many go as may go for silence.
    world.wait(Duration::from_secs(15));
    for osd in 0..4 {
        let seen = look(&mut world, osd);
        assert_eq!(seen, down(osd).filter(|_| osd < 2), "osd.{osd}");
        seen.into_iter().for_each(|change| world.change(change));
    }
    // A peer's word counts for some seconds, of this run, while the peer is up and does not take it back.
    let mut world = World::new(&[0, 1, 2, 3]);
    assert_eq!(look(&mut world, 0), None, "before any peer says so");
    assert_eq!(world.fails(1, 0, FailureKind::Refused), Verdict::Probe);
    assert_eq!(look(&mut world, 0), dead, "the peer's report makes the monitor look again");
    assert_eq!(look(&mut world, 1), None, "of another it says nothing");
    world.leader.on_alive(OsdId(1), OsdId(0));
    assert_eq!(look(&mut world, 0), None, "taken back");
    assert_eq!(world.fails(1, 0, FailureKind::Refused), Verdict::Probe);
    world.wait(Duration::from_secs(4));
    assert_eq!(look(&mut world, 0), dead);
    world.wait(Duration::from_secs(1));
    assert_eq!(look(&mut world, 0), None, "too long ago");
    assert_eq!(world.fails(1, 0, FailureKind::Refused), Verdict::Probe);
    world.change(Change::MarkDown { osd: OsdId(1), incarnation: run_of(1), dead: true });
    assert_eq!(look(&mut world, 0), None, "the peer has ended");
    assert_eq!(world.fails(2, 0, FailureKind::Refused), Verdict::Probe);
    world.change(down(0).unwrap());
    let info = world.map().osds[&OsdId(0)].clone();
    let (disk, address, incarnation) = (info.disk, info.address, Incarnation(5_000));
    world.change(Change::Request(MonCommand::OsdBoot { osd: OsdId(0), disk, incarnation, address, can_split: None }));
    let map = world.map();
    let next_run = world.leader.on_probe(world.now, &map, OsdId(0), incarnation, ProbeResult::Refused);
    assert_eq!(next_run, None, "that was the run before");
}

#[test]
fn an_osd_that_only_the_leader_does_not_hear_goes_down_in_a_minute() {
    for result in [ProbeResult::Connected, ProbeResult::NoAnswer] {
        for heard in [2, 1] {
            let mut world = World::new(&[0, 1, 2, 3]);
            for second in 0..70 {
                world.wait(Duration::from_secs(1));
                for osd in 1..=heard {
                    let _ = world.report(osd, |_| {});
                }
                let map = world.map();
                let seen = world.leader.on_probe(world.now, &map, OsdId(0), run_of(0), result);
                // With fewer than most others heard it is the leader that is cut off.
                let expected = down(0).filter(|_| second >= 59 && heard == 2);
                assert_eq!(seen, expected, "{result:?}, {heard} others heard, after {second} s");
            }
        }
    }
}

#[test]
fn a_lone_osd_that_refuses_connections_is_down() {
    let mut world = World::new(&[0]);
    let map = world.map();
    world.wait(Duration::from_secs(15));
    let seen = world.leader.on_probe(world.now, &map, OsdId(0), run_of(0), ProbeResult::Refused);
    assert_eq!(seen, down(0));
    world.change(seen.unwrap());
    assert!(!world.map().is_up(OsdId(0)));
}

#[test]
fn silence_takes_down_no_more_than_most_of_the_cluster() {
    let mut world = World::new(&[0; 5]);
    for target in 0..3 {
        assert_eq!(world.silent(3, target), Verdict::Probe);
        assert!(is_down(&world.silent(4, target), target));
        world.change(Change::MarkDown { osd: OsdId(target), incarnation: run_of(target), dead: false });
    }
    let last = world.silent(4, 3);
    assert!(!is_down(&last, 3), "{last:?}: one of five would be left");
}

/// Both ends report each other once a second for that long: who is to go.
fn link_is_cut(world: &mut World, one: u32, other: u32, seconds: u64) -> Option<Change> {
    for _ in 0..seconds {
        world.wait(Duration::from_secs(1));
        for (reporter, target) in [(one, other), (other, one)] {
            if let Verdict::Propose(change) = world.silent(reporter, target) {
                return Some(change);
            }
        }
    }
    None
}

fn down(osd: u32) -> Option<Change> {
    Some(Change::MarkDown { osd: OsdId(osd), incarnation: run_of(osd), dead: false })
}

#[test]
fn of_two_that_only_do_not_hear_each_other_one_goes() {
    // hosts, the ends of the link, who goes
    let table: [(&[u32], (u32, u32), u32); 4] = [
        (&[0, 1, 2, 3], (0, 1), 1),
        (&[0, 1, 2, 3], (1, 0), 1),
        (&[0, 1, 1, 2], (0, 2), 0),
        (&[0, 0, 0, 1, 2], (0, 1), 1),
    ];
    for (hosts, (one, other), goes) in table {
        let mut world = World::new(hosts);
        assert_eq!(link_is_cut(&mut world, one, other, 15), None, "it may pass, or others may find one of them silent");
        assert_eq!(link_is_cut(&mut world, one, other, 10), down(goes), "{hosts:?}: {one} and {other}");
    }
}

#[test]
fn who_calls_several_silent_takes_none_of_them_down_alone() {
    let mut world = World::new(&[0, 1, 2, 3]);
    for _ in 0..60 {
        world.wait(Duration::from_secs(1));
        for target in [1, 2] {
            assert_eq!(world.silent(0, target), Verdict::Probe);
        }
    }
    // The links to both are cut, not its own voice: each of them tells, and that is enough.
    assert_eq!(world.silent(1, 0), Verdict::Probe);
    assert!(is_down(&world.silent(2, 0), 0));
}

/// It cannot open connections any more, say, but answers on those that it has.
#[test]
fn an_osd_that_hears_none_of_those_on_its_own_host_takes_none_of_them_down_alone() {
    for hosts in [&[0; 12][..], &[0, 0, 0, 0, 1, 2]] {
        let mut world = World::new(hosts);
        let others = hosts.iter().filter(|host| **host == 0).count();
        for second in 0..60 {
            world.wait(Duration::from_secs(1));
            for target in 1..u32::try_from(others).unwrap() {
                assert_eq!(world.silent(0, target), Verdict::Probe, "{hosts:?}: osd.{target} after {second} s");
            }
        }
    }
}

#[test]
fn one_that_alone_complains_of_another_takes_nobody_down() {
    let mut world = World::new(&[0, 1, 2, 3]);
    for _ in 0..60 {
        world.wait(Duration::from_secs(1));
        let verdict = world.silent(0, 1);
        assert!(!matches!(verdict, Verdict::Propose(_)), "{verdict:?}");
    }
}

#[test]
fn a_silence_that_is_taken_back_in_between_does_not_add_up_to_that_of_a_link() {
    let mut world = World::new(&[0, 1, 2, 3]);
    for _ in 0..5 {
        assert_eq!(link_is_cut(&mut world, 0, 1, 15), None);
        world.leader.on_alive(OsdId(0), OsdId(1));
        world.leader.on_alive(OsdId(1), OsdId(0));
    }
}

#[test]
fn what_an_osd_said_before_it_booted_again_does_not_add_up_to_the_silence_of_a_link() {
    let mut world = World::new(&[0, 1, 2, 3]);
    assert_eq!(link_is_cut(&mut world, 0, 1, 25), down(1));
    world.change(down(1).unwrap());
    world.wait(Duration::from_secs(1));
    let info = world.map().osds[&OsdId(1)].clone();
    let (disk, address, incarnation) = (info.disk, info.address, Incarnation(5_000));
    let boot = MonCommand::OsdBoot { osd: OsdId(1), disk, incarnation, address, can_split: Some(true) };
    world.change(Change::Request(boot));
    for second in 0..15 {
        world.wait(Duration::from_secs(1));
        assert_eq!(world.silent(1, 0), Verdict::Probe, "after {second} s");
    }
}

#[test]
fn a_lone_osd_that_neither_reports_nor_answers_is_down() {
    let mut world = World::new(&[0]);
    let map = world.map();
    world.wait(Duration::from_secs(5));
    assert!(world.due().iter().any(|due| matches!(due, Due::Probe { osd: OsdId(0), .. })));
    assert!(!world.due().iter().any(|due| matches!(due, Due::Probe { .. })), "not again at once");
    assert_eq!(world.leader.on_probe(world.now, &map, OsdId(0), run_of(0), ProbeResult::NoAnswer), None);
    world.wait(Duration::from_secs(15));
    assert!(world.leader.on_probe(world.now, &map, OsdId(0), run_of(0), ProbeResult::NoAnswer).is_some());
}

#[test]
fn a_placement_group_is_clean_only_by_its_present_primary_in_its_present_interval() {
    let mut world = World::new(&[0, 1, 2, 3]);
    assert_eq!(world.states(), ["unknown"]);
    assert_eq!(world.status().health, Severity::Warning);
    world.report_all();
    assert_eq!(world.states(), ["active+clean"]);
    assert_eq!(world.status().health, Severity::Ok);
    // Silence of the primaries: what they said last no longer counts.
    let before = world.now;
    world.wait(REPORT_STALE);
    assert_eq!(world.states(), ["unknown"]);
    world.now = before;
    // Another primary, another interval.
    world.change(Change::MarkDown { osd: OsdId(0), incarnation: run_of(0), dead: true });
    let states = world.states();
    assert!(states.iter().any(|state| state.starts_with("unknown")), "{states:?}");
    assert!(world.codes().contains(&"PG_UNKNOWN".to_owned()));
    // A report that claims to be clean, with a member down, is not believed.
    for osd in 1..4 {
        let _ = world.report(osd, |_| {});
    }
    let map = world.map();
    let degraded = map.members_of_all().iter().filter(|(_, members)| members.acting.len() < 3).count();
    let states = world.status().pg_states;
    let counted: u32 = states.iter().filter(|(state, _)| state.contains("degraded")).map(|(_, n)| *n).sum();
    assert_eq!(counted as usize, degraded);
    assert!(!states.keys().any(|state| state.contains("degraded") && state.contains("clean")), "{states:?}");
    assert_eq!(world.status().copies_missing, 100 * degraded as u64);
}

#[test]
fn a_member_that_went_away_and_came_back_ends_the_interval() {
    let mut world = World::new(&[0, 1, 2]);
    world.report_all();
    assert_eq!(world.states(), ["active+clean"]);
    world.change(Change::Request(MonCommand::OsdOut(OsdId(2))));
    world.change(Change::Request(MonCommand::OsdIn(OsdId(2))));
    assert_eq!(world.states(), ["unknown"], "the same members, but a new interval");
    let epoch = world.map().epoch;
    for osd in 0..3 {
        let _ = world.report(osd, |report| report.interval_start = Epoch(epoch.0 - 2));
    }
    assert_eq!(world.states(), ["unknown"], "reports of the old interval");
    world.report_all();
    assert_eq!(world.states(), ["active+clean"]);
}

#[test]
fn copies_that_were_not_counted_are_not_said_to_exist() {
    let impact_of = |change: &dyn Fn(&mut PgState)| {
        let mut world = World::new(&[0, 1, 2]);
        world.report_each(|report| change(&mut report.state));
        let check = world.status().checks.into_iter().find(|check| check.code == "PG_NOT_CLEAN").unwrap();
        check.impact
    };
    let uncounted = impact_of(&|state| state.clean = false);
    assert!(uncounted.contains("not known") && !uncounted.starts_with("none"), "{uncounted}");
    let moving = impact_of(&|state| (state.clean, state.backfilling) = (false, true));
    assert!(moving.starts_with("none") && !moving.contains("all copies"), "{moving}");
}

#[test]
fn what_primaries_say_makes_it_worse_never_better() {
    let mut world = World::new(&[0, 1, 2]);
    for osd in 0..3 {
        let _ = world.report(osd, |report| report.copies_missing = 5);
    }
    let status = world.status();
    assert_eq!(status.pg_states.keys().collect::<Vec<_>>(), ["active+degraded"]);
    assert_eq!(status.copies_missing, 5 * u64::from(status.pgs));
    for osd in 0..3 {
        let _ = world.report(osd, |report| {
            report.state = PgState { peering: true, ..PgState::default() };
            report.objects_unfound = 1;
        });
    }
    assert_eq!(world.status().health, Severity::Error);
    assert_eq!(world.codes(), ["OBJECT_UNFOUND", "PG_UNAVAILABLE"]);
}

#[test]
fn too_few_members_is_unavailable_even_before_anyone_reports() {
    let mut world = World::new(&[0, 1, 2]);
    world.report_all();
    for osd in 0..2 {
        world.change(Change::MarkDown { osd: OsdId(osd), incarnation: run_of(osd), dead: true });
    }
    assert!(world.codes().contains(&"PG_UNAVAILABLE".to_owned()), "{:?}", world.codes());
    assert_eq!(world.status().health, Severity::Error);
}

#[test]
fn a_new_leader_asks_for_all_placement_groups() {
    let mut world = World::new(&[0, 1, 2]);
    let map = world.map();
    let nothing_new = OsdReport {
        osd: OsdId(0),
        incarnation: run_of(0),
        epoch: map.epoch,
        usage: StoreUsage::default(),
        pgs: Vec::new(),
        checksum_errors: 0,
        repaired: 0,
        copies_lost: None,
    };
    let answer = world.leader.on_report(world.now, &map, nothing_new.clone());
    assert!(matches!(answer, Err(MonError::Stale { .. })));
    world.report(0, |_| {}).unwrap();
    world.leader.on_report(world.now, &map, nothing_new).unwrap();
    let dead = OsdReport {
        osd: OsdId(0),
        incarnation: Incarnation(1),
        epoch: map.epoch,
        usage: StoreUsage::default(),
        pgs: Vec::new(),
        checksum_errors: 0,
        repaired: 0,
        copies_lost: None,
    };
    assert!(matches!(world.leader.on_report(world.now, &map, dead), Err(MonError::Stale { .. })));
}

#[test]
fn a_long_down_osd_goes_out_but_not_too_many_of_them() {
    let mut world = World::new(&[0, 1, 2, 3, 4, 5, 6, 7]);
    for osd in 0..4 {
        world.change(Change::MarkDown { osd: OsdId(osd), incarnation: run_of(osd), dead: true });
    }
    world.wait(Duration::from_secs(599));
    assert!(!world.proposals().iter().any(|change| matches!(change, Change::MarkOut(_))));
    world.wait(Duration::from_secs(1));
    for expected in 0..2 {
        assert!(world.proposals().contains(&Change::MarkOut(OsdId(expected))));
        world.change(Change::MarkOut(OsdId(expected)));
    }
    assert!(!world.proposals().iter().any(|change| matches!(change, Change::MarkOut(_))), "6 of 8 are left in");
}

#[test]
fn a_service_lives_as_long_as_it_renews() {
    let mut world = World::new(&[0]);
    let register = MonCommand::ServiceRegister {
        name: "s3.a".into(),
        kind: "s3".into(),
        address: "127.0.0.1:9000".into(),
        incarnation: Incarnation(5),
    };
    let map = world.map();
    assert!(world.leader.on_service(world.now, &map, &register), "new: the map must change");
    world.change(Change::Request(register.clone()));
    for _ in 0..3 {
        world.wait(SERVICE_LEASE / 2);
        let map = world.map();
        assert!(!world.leader.on_service(world.now, &map, &register), "renewed: nothing to commit");
        assert!(!world.proposals().iter().any(|change| matches!(change, Change::ServiceGone { .. })));
    }
    world.wait(SERVICE_LEASE);
    let gone = Change::ServiceGone { name: "s3.a".into(), incarnation: Incarnation(5) };
    assert!(world.proposals().contains(&gone));
    world.change(gone);
    assert!(world.map().services.is_empty());
}

#[test]
fn names_that_no_map_takes_are_not_remembered() {
    let mut world = World::new(&[0]);
    let empty = format!("{:?}", world.leader).len();
    let map = world.map();
    for n in 0..1_000 {
        let name = format!("{n:0>300}");
        let (kind, address, incarnation) = ("s3".into(), "127.0.0.1:9000".into(), Incarnation(5));
        let register = MonCommand::ServiceRegister { name, kind, address, incarnation };
        assert!(world.leader.on_service(world.now, &map, &register), "it is for the log to refuse it");
    }
    assert_eq!(format!("{:?}", world.leader).len(), empty);
}

#[test]
fn a_service_that_comes_long_after_the_leader_has_a_whole_lease() {
    let mut world = World::new(&[0]);
    world.wait(SERVICE_LEASE * 10);
    let (name, kind, address, incarnation) = ("s3.a".into(), "s3".into(), "127.0.0.1:9000".into(), Incarnation(5));
    let register = MonCommand::ServiceRegister { name, kind, address, incarnation };
    let map = world.map();
    assert!(world.leader.on_service(world.now, &map, &register));
    world.change(Change::Request(register));
    world.wait(SERVICE_LEASE - Duration::from_secs(1));
    assert!(!world.proposals().iter().any(|change| matches!(change, Change::ServiceGone { .. })));
    world.wait(Duration::from_secs(1));
    assert!(world.proposals().iter().any(|change| matches!(change, Change::ServiceGone { .. })));
}

#[test]
fn a_full_disk_sets_the_flag_and_room_clears_it_without_flicker() {
    let mut world = World::new(&[0]);
    // used per mille → full, near full, after a flag was set as given
    let table = [
        (849, false, false),
        (850, false, true),
        (835, false, true),
        (829, false, false),
        (950, true, true),
        (935, true, true),
        (929, false, true),
    ];
    for (used, full, near_full) in table {
        let map = world.map();
        let report = OsdReport {
            osd: OsdId(0),
            incarnation: run_of(0),
            epoch: map.epoch,
            usage: StoreUsage { total_bytes: 1_000, used_bytes: used, live_bytes: used },
            pgs: Vec::new(),
            checksum_errors: 0,
            repaired: 0,
            copies_lost: None,
        };
        let _ = world.leader.on_report(world.now, &map, report);
        for change in world.proposals() {
            world.change(change);
        }
        let flags = world.map().flags;
        assert_eq!((flags.full, flags.near_full), (full, near_full), "{used} of 1000 used");
    }
}

#[test]
fn one_domain_and_the_monitor_are_two_witnesses() {
    // Of three hosts two hang: the third can only say so itself. They still let others connect.
    let mut world = World::new(&[0, 1, 2]);
    world.report_all();
    world.wait(Duration::from_secs(10));
    let _ = world.report(2, |_| {});
    for target in 0..2 {
        assert_eq!(world.silent(2, target), Verdict::Probe, "two other hosts are up as far as the map says");
        let map = world.map();
        let seen = world.leader.on_probe(world.now, &map, OsdId(target), run_of(target), ProbeResult::Connected);
        assert_eq!(seen, None, "it was heard of lately");
    }
    world.wait(Duration::from_secs(5));
    for target in 0..2 {
        let map = world.map();
        let seen = world.leader.on_probe(world.now, &map, OsdId(target), run_of(target), ProbeResult::Connected);
        let down = Change::MarkDown { osd: OsdId(target), incarnation: run_of(target), dead: false };
        assert_eq!(seen, Some(down.clone()));
        world.change(down);
    }
    let map = world.map();
    let own = world.leader.on_probe(world.now, &map, OsdId(2), run_of(2), ProbeResult::Connected);
    assert_eq!(own, None, "nobody says that of the third");
}

#[test]
fn osds_that_all_end_with_their_hosts_are_marked_down_as_far_as_may_be_and_all_are_told_of() {
    let mut world = World::new(&[0, 1, 2]);
    world.report_all();
    world.wait(Duration::from_secs(15));
    for target in 0..3 {
        let map = world.map();
        let seen = world.leader.on_probe(world.now, &map, OsdId(target), run_of(target), ProbeResult::NoAnswer);
        assert_eq!(seen.is_some(), target < 2, "osd.{target}");
        seen.into_iter().for_each(|change| world.change(change));
    }
    assert!(world.codes().contains(&"OSD_SILENT".to_owned()), "{:?}", world.codes());
}

#[test]
fn reports_of_one_moment_take_down_no_more_than_most_of_the_cluster() {
    let mut world = World::new(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    // A split: two hosts with the monitors' majority report all others before any of them is marked down.
    let mut ops = Vec::new();
    for target in 2..10 {
        world.silent(0, target);
        let verdict = world.silent(1, target);
        assert!(is_down(&verdict, target));
        let Verdict::Propose(change) = verdict else { unreachable!() };
        ops.push(Op { id: None, change });
    }
    let outcome = world.state.apply(1, &Command { at_unix_ms: 1, ops, seen: None });
    let refused = |reply: &&MonReply| matches!(reply, MonReply::Failed(MonError::Unsafe { .. }));
    assert_eq!(outcome.replies.iter().filter(refused).count(), 1);
    assert_eq!(world.map().osds.values().filter(|info| info.up).count(), 3, "30 % stay");
}

#[test]
fn what_does_not_serve_is_not_said_to_be_served() {
    let mut world = World::new(&[0, 1, 2]);
    world.report_all();
    for osd in 0..2 {
        world.change(Change::MarkDown { osd: OsdId(osd), incarnation: run_of(osd), dead: true });
    }
    let _ = world.report(2, |report| report.state = PgState { peering: true, ..PgState::default() });
    assert!(world.codes().contains(&"PG_UNAVAILABLE".to_owned()));
    assert!(!world.codes().contains(&"PG_DEGRADED".to_owned()), "{:?}", world.codes());
}
