//! Slots: nobody holds one without making progress.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_map::{ScrubKind, ScrubWish};
use holdfast_pg::{Input, Limits};
use holdfast_wire::peer::{PeerBody, Push, PushWhat};
use holdfast_wire::{ClientOutcome, ObjectOp};

use crate::group::{Group, PG, is_unreadable, osd, short_log};

#[test]
fn an_unfound_object_keeps_no_slots() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.rot(id, "old", true));
    assert!(is_unreadable(&group.read("old")));
    group.pass(Duration::from_secs(2));
    let held = (0..600).filter(|_| {
        group.pass(Duration::from_millis(500));
        group.holds_slots()
    });
    assert!(held.count() < 30, "of five minutes");
    assert_eq!(group.report().objects_unfound, 1);
    group.rot(1, "old", false);
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "old")));
}

#[test]
fn a_backfill_goes_past_what_nobody_has_and_leaves_it_missing() {
    for deleted in [false, true] {
        let mut group = Group::of(4, 3, short_log());
        group.write_before_the_log("a");
        group.write_before_the_log("z");
        (0..3).for_each(|id| group.rot(id, "a", true));
        assert!(is_unreadable(&group.read("a")));
        group.members.up = vec![osd(0), osd(1), osd(3)];
        group.publish();
        group.pass(Duration::from_secs(20));
        assert!(group.is_whole(3, "z") && group.is_whole(3, "other-3"), "what comes after it is copied");
        assert!(group.is_gone(3, "a") && !group.is_clean());
        assert!(!group.holds_slots());
        if deleted {
            group.operate("a", vec![ObjectOp::AssertExists, ObjectOp::Remove]);
        } else {
            group.rot(2, "a", false);
        }
        group.run_until_clean();
        assert!(if deleted { group.is_gone(3, "a") } else { group.is_whole(3, "a") });
    }
}

#[test]
fn one_object_that_nobody_has_stops_no_backfill_however_small_its_batches() {
    let mut group = Group::of(4, 3, Limits { backfill_batch: 1, ..short_log() });
    for object in ["a", "k", "z"] {
        group.write_before_the_log(object);
    }
    (0..3).for_each(|id| group.rot(id, "a", true));
    assert!(is_unreadable(&group.read("a")));
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.pass(Duration::from_secs(120));
    let filled = ["k", "z", "other-0", "other-9"];
    assert!(filled.iter().all(|object| group.is_whole(3, object)), "it is filled but for that one");
    assert!(!group.is_clean() && !group.holds_slots());
    group.rot(2, "a", false);
    group.run_until_clean();
    assert!(group.is_whole(3, "a"));
}

#[test]
fn a_backfill_that_cannot_compare_gives_its_slots_back() {
    let mut group = Group::of(2, 1, short_log());
    group.write_before_the_log("old");
    group.nodes[0].store.unlisted = true;
    group.members.up = vec![osd(1)];
    group.publish();
    let held = (0..1_200).filter(|_| {
        group.pass(Duration::from_millis(500));
        group.holds_slots()
    });
    assert!(held.count() < 800, "of ten minutes");
    group.nodes[0].store.unlisted = false;
    group.run_until_clean();
    assert!(group.is_whole(1, "old"));
}

#[test]
fn a_scrub_finds_out_that_a_member_has_lost_track() {
    let mut group = Group::of(3, 3, Limits::default());
    group.write("o");
    // The third misses a map, and what it says of that is lost. Nobody writes.
    group.map.epoch = group.map.epoch.next();
    let (map, members) = (std::sync::Arc::new(group.map.clone()), group.members.clone());
    for id in [0, 1] {
        group.inputs.push_back((id, Input::Map { map: map.clone(), members: members.clone() }));
    }
    group.silent.insert(2);
    group.publish();
    group.run();
    group.silent.clear();
    let epoch = group.map.epoch.next();
    group.map.scrub_wishes.insert(PG, ScrubWish { kind: ScrubKind::Deep, epoch });
    group.publish();
    group.pass(Duration::from_secs(60));
    assert_eq!(group.report().scrub.map(|scrub| scrub.served), Some(epoch));
    assert!(group.is_clean() && group.slots.is_empty());
}

/// How many of six objects that OSD 1 lacks are on their way there, a while after it has fallen silent at the first;
/// with clients that ask for another object each 50 ms.
fn objects_on_their_way(clients: bool) -> (usize, Group) {
    let mut group = Group::of(3, 3, Limits { transfers_max: 3, ..Limits::default() });
    group.write("p");
    group.map.osds.get_mut(&osd(1)).unwrap().up = false;
    group.have_lead(&[0, 2]);
    for object in 0..6 {
        group.write(&format!("o-{object}"));
    }
    group.pass(Duration::from_secs(1));
    group.sent.clear();
    group.map.osds.get_mut(&osd(1)).unwrap().up = true;
    group.pause_on = Some(|body| matches!(body, PeerBody::Push(_)));
    let mut tid = 1_000;
    let mut pass = |group: &mut Group| {
        if clients {
            tid += 1;
            group.send(9, tid, "p", vec![ObjectOp::Read { offset: 0, length: 10 }]);
        }
        group.pass(Duration::from_millis(50));
    };
    pass(&mut group);
    group.have_lead(&[0, 1, 2]);
    (0..100).for_each(|_| {
        if group.pause_on.is_some() {
            pass(&mut group)
        }
    });
    assert!(group.paused || group.pause_on.is_none(), "something is sent");
    group.silent.insert(1);
    (0..20).for_each(|_| pass(&mut group));
    let object = |body: &PeerBody| match body {
        PeerBody::Push(Push { what: PushWhat::Piece(piece), .. }) => Some(piece.object.to_string()),
        _ => None,
    };
    let pushed: BTreeSet<_> = group.sent.iter().filter_map(|(_, _, message)| object(&message.body)).collect();
    (pushed.len(), group)
}

#[test]
fn while_clients_are_at_work_one_object_at_a_time_is_on_its_way() {
    let (calm, _) = objects_on_their_way(false);
    let (busy, mut group) = objects_on_their_way(true);
    assert_eq!((calm, busy), (3, 1));
    // It goes on while they are.
    group.silent.clear();
    for tid in 5_000..5_400 {
        group.send(9, tid, "p", vec![ObjectOp::Read { offset: 0, length: 10 }]);
        group.pass(Duration::from_millis(50));
    }
    assert!(group.is_clean(), "{:?}", group.report());
}

#[test]
fn no_more_objects_are_on_their_way_than_transfers_are_allowed() {
    let mut group = Group::of(3, 3, Limits { transfers_max: 2, ..Limits::default() });
    group.map.osds.get_mut(&osd(1)).unwrap().up = false;
    group.have_lead(&[0, 2]);
    for object in 0..6 {
        group.write(&format!("o-{object}"));
    }
    group.sent.clear();
    group.map.osds.get_mut(&osd(1)).unwrap().up = true;
    group.pause_on = Some(|body| matches!(body, PeerBody::Push(_)));
    group.have_lead(&[0, 1, 2]);
    if group.pause_on.is_some() {
        group.pass(Duration::from_secs(5));
    }
    // From the first push on nothing is heard of the one that is sent to.
    group.silent.insert(1);
    group.pass(Duration::from_secs(5));
    let pushed = |group: &Group| -> BTreeSet<String> {
        let object = |body: &PeerBody| match body {
            PeerBody::Push(Push { what: PushWhat::Piece(piece), .. }) => Some(piece.object.to_string()),
            _ => None,
        };
        group.sent.iter().filter_map(|(_, _, message)| object(&message.body)).collect()
    };
    assert_eq!(pushed(&group).len(), 2, "{:?}", pushed(&group));
    group.silent.clear();
    group.run_until_clean();
    assert_eq!(pushed(&group).len(), 6);
}

#[test]
fn what_clients_wait_for_is_on_its_way_in_bounded_numbers() {
    let mut group = Group::of(3, 3, Limits { transfers_max: 2, ..Limits::default() });
    group.map.osds.get_mut(&osd(1)).unwrap().up = false;
    group.have_lead(&[0, 2]);
    let objects: Vec<String> = (0..40).map(|object| format!("o-{object}")).collect();
    objects.iter().for_each(|object| group.write(object));
    group.sent.clear();
    group.map.osds.get_mut(&osd(1)).unwrap().up = true;
    group.pause_on = Some(|body| matches!(body, PeerBody::Push(_)));
    group.have_lead(&[0, 1, 2]);
    if group.pause_on.is_some() {
        group.pass(Duration::from_secs(5));
    }
    group.silent.insert(1);
    for (client, object) in (10..).zip(&objects) {
        group.send(client, 1_000 + client, object, vec![ObjectOp::Remove]);
    }
    group.pass(Duration::from_secs(5));
    let object = |body: &PeerBody| match body {
        PeerBody::Push(Push { what: PushWhat::Piece(piece), .. }) => Some(piece.object.to_string()),
        _ => None,
    };
    let pushed: BTreeSet<_> = group.sent.iter().filter_map(|(_, _, message)| object(&message.body)).collect();
    assert!((3..=18).contains(&pushed.len()), "{}", pushed.len());
    group.silent.clear();
    group.run_until_clean();
    let mut answers = (10..50).map(|client| group.answer(1_000 + client));
    assert!(answers.all(|answer| matches!(answer, Some(ClientOutcome::Done { .. }))));
}

#[test]
fn what_nobody_can_give_holds_nothing_else_up_while_clients_are_at_work() {
    let mut group = Group::of(4, 3, Limits { transfers_max: 3, ..Limits::default() });
    let lost: Vec<String> = (0..8).map(|number| format!("lost-{number}")).collect();
    lost.iter().for_each(|object| group.write(object));
    group.write("p");
    // One that is no member any more has copies, too, and does not answer.
    group.have_lead(&[0, 1, 3]);
    group.run_until_clean();
    for object in &lost {
        [0, 1, 3].into_iter().for_each(|id| group.rot(id, object, true));
        assert!(is_unreadable(&group.read(object)));
    }
    group.have_lead(&[0, 1, 2]);
    group.pass(Duration::from_secs(60));
    assert!(group.is_whole(2, "p"), "filled but for what is lost");
    group.map.osds.get_mut(&osd(1)).unwrap().up = false;
    group.have_lead(&[0, 2]);
    let written: Vec<String> = (0..6).map(|number| format!("o-{number}")).collect();
    written.iter().for_each(|object| group.write(object));
    group.map.osds.get_mut(&osd(1)).unwrap().up = true;
    group.pause_on = Some(|body| matches!(body, PeerBody::Pull(_)));
    group.have_lead(&[0, 1, 2]);
    assert!(group.paused);
    group.silent.insert(3);
    for tid in 5_000..7_400 {
        group.send(9, tid, "p", vec![ObjectOp::Read { offset: 0, length: 10 }]);
        group.pass(Duration::from_millis(50));
    }
    assert!(written.iter().all(|object| group.is_whole(1, object)), "{:?}", group.report());
    assert_eq!(group.report().objects_unfound, 8);
    lost.iter().for_each(|object| group.rot(3, object, false));
    group.silent.clear();
    group.run_until_clean();
}
