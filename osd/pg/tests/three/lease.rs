//! Who was replaced without knowing it shows nobody what is old.

use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_pg::{Granted, Input, LEASE_GRANTED};
use holdfast_types::{Incarnation, OsdId, Timestamp};
use holdfast_wire::{ClientOutcome, ObjectOp};

use crate::world::{A, B, C, PG, World};

/// Longer than two [`World::settle`] take in a [`quick`] world.
const LONG: Duration = LEASE_GRANTED;

/// One in which everything settles in two seconds.
fn quick() -> World {
    let mut world = World::new();
    world.round = Duration::from_millis(100);
    world
}

fn grant_to_a(world: &mut World, grantors: &[OsdId]) {
    let until = world.now + LONG;
    for osd in grantors {
        let granted = Granted { to: A, incarnation: Incarnation(1), until };
        world.nodes.get_mut(osd).unwrap().disk.granted.push(granted);
    }
}

fn is_active(world: &World, osd: OsdId) -> bool {
    world.nodes[&osd].pg.as_ref().unwrap().report().state.active
}

/// A falls silent: it does not run as far as the others can tell, but nobody knows that its process has ended.
fn silence_a(world: &mut World) {
    world.stop(A);
    assert!(!is_active(world, B), "its lease has not ended");
    world.now = world.now + LONG;
    world.settle();
    assert!(is_active(world, B), "it has");
}

#[test]
fn a_read_waits_for_the_leases_of_all_members() {
    let mut world = World::new();
    world.write(b"value");
    world.nodes.get_mut(&A).unwrap().disk.leases.insert(C, Timestamp::ZERO);
    assert_eq!(world.read(), None);
    world.nodes.get_mut(&A).unwrap().disk.leases.clear();
    assert_eq!(world.read().as_deref(), Some(&b"value"[..]));
}

/// It may have been replaced: what it writes would be taken back, and with it goes what may be the last whole copy.
#[test]
fn a_primary_without_the_leases_of_all_members_writes_nothing_even_at_home() {
    let mut world = World::new();
    world.write(b"value");
    for ops in [vec![ObjectOp::Append { data: bytes::Bytes::from_static(b"!").into() }], vec![ObjectOp::Remove]] {
        world.nodes.get_mut(&A).unwrap().disk.leases.insert(C, Timestamp::ZERO);
        let before = world.nodes[&A].disk.clone();
        let outcome = world.ask(ops);
        assert!(!matches!(outcome, Some(ClientOutcome::Done { .. })), "{outcome:?}");
        assert!(world.nodes[&A].disk == before, "nothing was written");
    }
    world.nodes.get_mut(&A).unwrap().disk.leases.clear();
    world.write(b"newer");
    assert_eq!(world.read().as_deref(), Some(&b"newer"[..]));
}

#[test]
fn a_failure_that_was_found_without_a_lease_is_not_remembered() {
    let mut world = World::new();
    world.write(b"value");
    let create =
        || vec![ObjectOp::AssertAbsent, ObjectOp::WriteFull { data: bytes::Bytes::from_static(b"newer").into() }];
    // For all that A can know, it was replaced, and the object has been removed since.
    world.nodes.get_mut(&A).unwrap().disk.leases.insert(C, Timestamp::ZERO);
    for _ in 0..2 {
        let outcome = world.ask_of(A, 2, 7, create());
        assert!(!matches!(outcome, Some(ClientOutcome::Failed { .. } | ClientOutcome::Done { .. })), "{outcome:?}");
    }
    let mark = |map: &mut ClusterMap, up: bool| {
        let epoch = map.epoch;
        let info = map.osds.get_mut(&A).unwrap();
        (info.up, info.up_from) = (up, if up { epoch } else { info.up_from });
    };
    world.publish(|map| mark(map, false));
    let outcome = world.ask_of(B, 3, 1, vec![ObjectOp::Remove]);
    assert!(matches!(outcome, Some(ClientOutcome::Done { .. })), "{outcome:?}");
    world.publish(|map| mark(map, true));
    world.nodes.get_mut(&A).unwrap().disk.leases.clear();
    let outcome = world.ask_of(A, 2, 7, create());
    assert!(matches!(outcome, Some(ClientOutcome::Done { .. })), "{outcome:?}");
}

#[test]
fn a_failure_that_is_remembered_is_told_again_only_under_the_leases_of_all_members() {
    let mut world = World::new();
    world.write(b"value");
    let create =
        || vec![ObjectOp::AssertAbsent, ObjectOp::WriteFull { data: bytes::Bytes::from_static(b"newer").into() }];
    for _ in 0..2 {
        let outcome = world.ask_of(A, 2, 7, create());
        assert!(matches!(outcome, Some(ClientOutcome::Failed { .. })), "{outcome:?}");
    }
    // Whoever may have replaced A may have executed a later sending, after a removal.
    world.nodes.get_mut(&A).unwrap().disk.leases.insert(C, Timestamp::ZERO);
    let outcome = world.ask_of(A, 2, 7, create());
    assert!(!matches!(outcome, Some(ClientOutcome::Failed { .. } | ClientOutcome::Done { .. })), "{outcome:?}");
}

#[test]
fn the_lease_of_a_silent_primary_is_waited_for() {
    let mut world = quick();
    world.write(b"value");
    grant_to_a(&mut world, &[B, C]);
    silence_a(&mut world);
    world.write(b"newer");
}

#[test]
fn what_any_member_has_granted_is_waited_for() {
    let mut world = quick();
    world.write(b"value");
    grant_to_a(&mut world, &[C]);
    silence_a(&mut world);
}

#[test]
fn what_was_granted_to_a_primary_two_intervals_ago_is_waited_for() {
    let mut world = quick();
    world.write(b"value");
    grant_to_a(&mut world, &[C]);
    world.nodes.get_mut(&A).unwrap().running = false;
    let mark = |map: &mut ClusterMap, osd: OsdId, up: bool| {
        let epoch = map.epoch;
        let info = map.osds.get_mut(&osd).unwrap();
        info.up = up;
        if up { info.up_from = epoch } else { info.down_at = epoch }
    };
    world.publish(|map| mark(map, A, false));
    world.stop(B);
    world.nodes.get_mut(&B).unwrap().disk.granted.clear();
    world.restart(B, 21);
    assert!(!is_active(&world, B), "C still knows of it");
}

#[test]
fn a_primary_whose_process_has_ended_is_not_waited_for() {
    let mut world = quick();
    world.write(b"value");
    grant_to_a(&mut world, &[B, C]);
    world.nodes.get_mut(&A).unwrap().running = false;
    world.publish(|map| {
        let epoch = map.epoch;
        let info = map.osds.get_mut(&A).unwrap();
        (info.up, info.down_at, info.dead_epoch) = (false, epoch, epoch);
    });
    world.settle();
    assert!(is_active(&world, B));
}

#[test]
fn a_former_primary_that_follows_is_not_waited_for() {
    let mut world = quick();
    world.write(b"value");
    grant_to_a(&mut world, &[B, C]);
    world.publish(|map| drop(map.pg_temp.insert(PG, vec![B, A, C])));
    for osd in [A, B, C] {
        world.step(osd, Input::Tick);
    }
    world.settle();
    assert!(is_active(&world, B) || is_active(&world, A), "it went on at once");
}

#[test]
fn who_has_just_started_may_have_granted_what_it_does_not_know() {
    let mut world = quick();
    world.write(b"value");
    world.stop(C);
    world.restart(C, 31);
    world.nodes.get_mut(&C).unwrap().disk.forgotten_until = world.now + LONG;
    silence_a(&mut world);
}

#[test]
fn who_led_before_the_last_activation_is_of_no_concern() {
    let mut world = quick();
    world.write(b"value");
    world.stop(A); // and nobody says whether its process has ended
    assert!(is_active(&world, B));
    world.write(b"newer");
    world.stop(C);
    world.nodes.get_mut(&C).unwrap().disk.forgotten_until = world.now + LONG;
    world.restart(C, 31);
    assert!(is_active(&world, B), "it has waited for all leases of A when it went active");
}

#[test]
fn what_a_member_says_of_leases_is_bounded() {
    let mut world = quick();
    world.write(b"value");
    let until = world.now + Duration::from_secs(1_000_000);
    let granted = Granted { to: A, incarnation: Incarnation(1), until };
    world.nodes.get_mut(&C).unwrap().disk.granted.push(granted);
    world.nodes.get_mut(&C).unwrap().disk.forgotten_until = until;
    silence_a(&mut world);
}
