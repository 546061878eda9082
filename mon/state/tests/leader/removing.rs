//! Forgetting an OSD, and giving up what only it has.

use holdfast_mon_state::Change;
use holdfast_types::{OsdId, PgId, PoolId};
use holdfast_wire::mon::{MonCommand, MonError, PgReport, PgState};

use crate::world::{World, run_of};

const PG: PgId = PgId { pool: PoolId(1), seed: 3 };

/// Four hosts; the OSD of the last is down and out.
fn without_the_last() -> World {
    let mut world = World::new(&[0, 1, 2, 3]);
    world.report_all();
    world.change(Change::MarkDown { osd: OsdId(3), incarnation: run_of(3), dead: true });
    world.change(Change::MarkOut(OsdId(3)));
    world
}

fn may_remove(world: &World) -> Result<(), MonError> {
    world.leader.may_remove(world.now, &world.map(), OsdId(3))
}

fn refusal(world: &World) -> String {
    match may_remove(world) {
        Err(MonError::Unsafe { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_osd_is_forgotten_only_when_nothing_may_be_on_its_disk_alone() {
    let mut world = without_the_last();
    assert!(refusal(&world).contains("has not been reported"), "nothing is known of the new intervals");
    world.report_all();
    assert_eq!(may_remove(&world), Ok(()));
    type Row<'a> = (&'a str, fn(&mut PgReport));
    let table: [Row<'_>; 5] = [
        ("it waits for that OSD", |report| {
            report.state = PgState { down: true, ..PgState::default() };
            report.blocked_by = vec![OsdId(3)];
        }),
        ("it does not serve", |report| report.state = PgState { peering: true, ..PgState::default() }),
        ("objects of it are unfound", |report| (report.state.clean, report.objects_unfound) = (false, 1)),
        ("copies of it are being made", |report| (report.state.clean, report.copies_missing) = (false, 1)),
        ("copies of it are being made", |report| (report.state.clean, report.state.backfilling) = (false, true)),
    ];
    for (said, change) in table {
        world.report_each(|report| {
            if report.pg == PG {
                change(report);
            }
        });
        let reason = refusal(&world);
        assert!(reason.contains(&format!("(pg 1.3: {said})")), "{reason}");
        assert!(reason.contains("`holdfast osd lost osd.3 --confirm osd.3`"), "{reason}");
    }
    world.elect();
    assert!(refusal(&world).contains("has not been reported"), "a new leader knows nothing yet");
}

#[test]
fn one_that_is_short_of_members_and_has_all_objects_needs_nothing_of_the_one_that_is_gone() {
    let mut world = World::new(&[0, 1, 2]);
    world.change(Change::MarkDown { osd: OsdId(2), incarnation: run_of(2), dead: true });
    world.change(Change::MarkOut(OsdId(2)));
    world.report_each(|report| (report.state.clean, report.copies_missing) = (false, report.objects));
    assert_eq!(world.leader.may_remove(world.now, &world.map(), OsdId(2)), Ok(()));
}

#[test]
fn a_disk_is_lost_only_by_its_name_and_while_nobody_serves_it() {
    let mut world = World::new(&[0, 1, 2, 3]);
    let lost = |confirm: &str| Change::Request(MonCommand::OsdLost { osd: OsdId(3), confirm: confirm.to_owned() });
    let refused = world.try_change(lost("osd.3"));
    assert!(matches!(refused, Err(MonError::Unsafe { .. })), "it is up: {refused:?}");
    world.change(Change::MarkDown { osd: OsdId(3), incarnation: run_of(3), dead: true });
    let refused = world.try_change(lost("osd.2"));
    assert!(matches!(refused, Err(MonError::Unsafe { .. })), "{refused:?}");
    assert!(world.map().osds.contains_key(&OsdId(3)));
    world.change(lost("osd.3"));
    assert!(!world.map().osds.contains_key(&OsdId(3)));
}
