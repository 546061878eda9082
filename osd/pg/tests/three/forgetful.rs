//! Acknowledged writes against OSDs and monitors that have forgotten: a blank disk, and a map without the pool.

use holdfast_types::PoolId;
use holdfast_wire::peer::PeerBody;

use crate::world::{A, B, C, Node, World, info};

#[test]
fn a_blank_disk_under_a_reused_id_has_no_say_about_writes_that_it_never_had() {
    let mut world = World::new();
    world.write(b"old");
    world.stop(A);
    world.write(b"acknowledged by B and C");
    world.stop(C);
    world.stop(B);
    // C's disk is gone; another one gets its id.
    world.publish(|map| {
        let mut blank = info(30, map.epoch);
        (blank.up, blank.formatted_at) = (false, map.epoch);
        map.osds.insert(C, blank);
    });
    world.nodes.insert(C, Node::default());
    world.restart(C, 31);
    world.restart(A, 11);
    let report = world.nodes[&A].pg.as_ref().unwrap().report();
    assert!(report.state.down && report.blocked_by.contains(&B), "served without B: {report:?}");
    assert_eq!(world.read(), None, "an answer now could only be wrong");
    world.restart(B, 21);
    assert_eq!(world.read().as_deref(), Some(&b"acknowledged by B and C"[..]));
}

#[test]
fn a_disk_that_is_the_same_speaks_for_its_writes_at_once() {
    let mut world = World::new();
    world.stop(A);
    world.write(b"acknowledged by B and C");
    world.stop(C);
    world.stop(B);
    world.restart(C, 31);
    world.restart(A, 11);
    assert_eq!(world.read().as_deref(), Some(&b"acknowledged by B and C"[..]), "C holds it all");
}

/// A primary that its members do not hear, or that does not hear them, loses its copy; none of them knows what came
/// before the map in which they began.
fn a_primary_is_lost_before_it_is_active(loses: fn(&PeerBody) -> bool) -> World {
    let mut world = World::without_copies();
    world.loses = loses;
    world.publish(|_| ());
    world.settle();
    world.stop(A);
    world.loses = |_| false;
    world.restart_without_copy(A, 11);
    world
}

#[test]
fn copies_that_took_part_in_an_activation_speak_for_the_past_that_nobody_knows() {
    let deaf = |body: &PeerBody| matches!(body, PeerBody::ActivateAck(_));
    let mut world = a_primary_is_lost_before_it_is_active(deaf);
    let report = world.nodes[&A].pg.as_ref().unwrap().report();
    assert!(report.state.active, "B and C have the log of all that A had heard of: {report:?}");
    world.write(b"value");
    assert_eq!(world.read().as_deref(), Some(&b"value"[..]));
}

#[test]
fn copies_that_took_part_in_no_activation_speak_for_no_past() {
    let mute = |body: &PeerBody| matches!(body, PeerBody::Activate(_));
    let world = a_primary_is_lost_before_it_is_active(mute);
    let report = world.nodes[&A].pg.as_ref().unwrap().report();
    assert!(report.state.incomplete, "what the lost copy knew is not known: {report:?}");
}

#[test]
fn copies_that_took_part_in_an_activation_before_what_is_known_speak_for_no_past() {
    let mut world = World::new();
    world.write(b"value");
    for osd in [A, B, C] {
        world.stop(osd);
    }
    world.publish(|_| ());
    world.restart_without_maps(B, 21);
    world.restart_without_maps(C, 31);
    world.restart_without_copy(A, 11);
    let report = world.nodes[&A].pg.as_ref().unwrap().report();
    assert!(report.state.incomplete, "A may have served meanwhile: {report:?}");
}

#[test]
fn a_copy_is_removed_only_when_the_map_says_that_its_pool_was_deleted() {
    let mut world = World::new();
    world.write(b"precious");
    // Monitors that have lost everything and count on: no pool, none ever created.
    world.publish(|map| {
        map.pools.clear();
        map.next_pool = PoolId(1);
    });
    world.settle();
    for osd in [A, B, C] {
        assert!(world.nodes[&osd].pg.is_some(), "{osd} dropped its placement group");
        assert_eq!(world.nodes[&osd].disk.objects.len(), 1, "{osd} dropped its copy");
    }
    // A deletion, in contrast, is one.
    world.publish(|map| map.next_pool = PoolId(2));
    world.settle();
    for osd in [A, B, C] {
        assert!(world.nodes[&osd].pg.is_none() && !world.nodes[&osd].disk.exists, "{osd} keeps a deleted pool");
    }
}
