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

/// Three copies that are active for the first time, of which nobody but the primary knows that it began so.
fn the_word_of_the_first_activation_is_lost() -> World {
    let mut world = World::without_copies();
    world.loses = |body| matches!(body, PeerBody::History(_));
    world.publish(|_| ());
    world.settle();
    world
}

#[test]
fn copies_that_took_part_in_an_activation_wait_for_nobody_of_the_past_that_nobody_knows() {
    let mut world = the_word_of_the_first_activation_is_lost();
    world.stop(A);
    let report = world.nodes[&B].pg.as_ref().unwrap().report();
    assert!(report.state.active, "A may be gone for good, and B and C have all that it had heard of: {report:?}");
    world.write(b"value");
    assert_eq!(world.read().as_deref(), Some(&b"value"[..]));
}

#[test]
fn copies_that_took_part_in_no_activation_wait_for_whom_the_past_may_have_seen() {
    let mut world = World::without_copies();
    world.loses = |body| matches!(body, PeerBody::Activate(_) | PeerBody::History(_));
    world.publish(|_| ());
    world.settle();
    world.stop(A);
    let report = world.nodes[&B].pg.as_ref().unwrap().report();
    assert!(report.state.down && report.blocked_by.contains(&A), "A may have what they do not: {report:?}");
}

#[test]
fn a_copy_that_lacks_something_waits_for_whom_the_past_that_nobody_knows_may_have_seen() {
    let mut world = World::new();
    world.stop(C);
    world.write(b"acknowledged by A and B");
    world.stop(B);
    world.stop(A);
    world.publish(|_| ());
    world.loses = |body| matches!(body, PeerBody::History(_) | PeerBody::Push(_));
    world.restart_without_maps(C, 31);
    world.restart_without_maps(B, 21);
    world.restart_without_maps(A, 11);
    let led = world.nodes[&A].pg.as_ref().unwrap().report();
    assert!(led.state.active, "all were heard: {led:?}");
    // Both at once: B would tell C what it knows.
    world.stop_all(&[A, B]);
    let report = world.nodes[&C].pg.as_ref().unwrap().report();
    assert!(report.state.down && report.blocked_by.contains(&B), "C cannot give what it lacks: {report:?}");
    world.loses = |_| false;
    world.restart(B, 22);
    assert_eq!(world.read().as_deref(), Some(&b"acknowledged by A and B"[..]));
}

#[test]
fn a_member_that_missed_the_word_of_an_activation_asks_for_it() {
    let mut world = World::new();
    world.stop(C);
    world.write(b"acknowledged by A and B");
    world.loses = |body| matches!(body, PeerBody::History(_));
    world.restart(C, 31);
    world.loses = |_| false;
    world.settle();
    world.loses = |body| {
        assert!(!matches!(body, PeerBody::Notice(_)), "it was told, and asks again");
        false
    };
    world.settle();
    world.loses = |_| false;
    world.stop_all(&[A, B]);
    let report = world.nodes[&C].pg.as_ref().unwrap().report();
    assert!(!report.state.down && report.blocked_by.is_empty(), "C was told all that A and B did: {report:?}");
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
