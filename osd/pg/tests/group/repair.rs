//! Copies that cannot be read any more.

use std::time::Duration;

use bytes::Bytes;
use holdfast_map::ScrubKind;
use holdfast_pg::{Input, Limits, ObjectKey};
use holdfast_types::{Epoch, Incarnation};
use holdfast_wire::peer::{Notice, PeerBody, PeerMessage, Push, PushWhat};
use holdfast_wire::{Blob, ClientOutcome, Effect, ObjectOp};

use crate::group::{Group, PG, content, is_unreadable, name, osd, short_log, shows};

#[test]
fn an_unreadable_object_that_the_log_has_forgotten_is_fetched_from_a_peer() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    let outcome = group.read("old");
    assert!(shows(&outcome, "old"), "{outcome:?}");
    group.run_until_clean();
    assert!(group.is_whole(0, "old"));
    assert_eq!((group.damaged, group.repaired), (1, 1));
}

#[test]
fn a_write_to_an_unreadable_object_that_the_log_has_forgotten_is_done_on_the_copy_of_a_peer() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    let outcome = group.operate("old", vec![ObjectOp::AssertExists, ObjectOp::Append { data: Blob::default() }]);
    assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "old")));
}

#[test]
fn a_peer_that_cannot_tell_the_version_is_mended_too() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    group.spoil(1, "old");
    let outcome = group.read("old");
    assert!(shows(&outcome, "old"), "{outcome:?}");
    group.run_until_clean();
    assert!(group.is_whole(0, "old"));
    // The replica says what it lacks when it is asked for it.
    group.spoil(0, "old");
    assert!(shows(&group.read("old"), "old"));
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "old")));
}

#[test]
fn the_question_for_a_version_survives_lost_answers() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    group.silent.extend([1, 2]);
    let tid = group.ask("old", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
    assert_eq!(group.answer(tid), None);
    assert!(!group.is_clean(), "U1");
    group.silent.clear();
    group.run_until_clean();
    assert!(group.answer(tid).is_some_and(|outcome| shows(&outcome, "old")));
}

#[test]
fn an_object_that_nobody_can_tell_of_is_unfound_and_stops_nothing_else() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.spoil(id, "old"));
    assert!(is_unreadable(&group.read("old")));
    assert!(is_unreadable(&group.read("old")));
    let report = group.report();
    assert_eq!((report.objects_unfound, report.state.clean), (1, false));
    group.write("new");
    // A copy becomes readable again: it is found without a client.
    let key = ObjectKey::of(&name("old"));
    group.nodes[2].store.objects.get_mut(&key).unwrap().unreadable = false;
    group.run_until_clean();
    assert!(group.is_whole(0, "old"));
}

#[test]
fn what_all_peers_say_does_not_exist_is_no_object() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    let key = ObjectKey::of(&name("ghost"));
    let object = holdfast_pg::memory::MemoryObject { unreadable: true, ..Default::default() };
    group.nodes[0].store.objects.insert(key, object);
    let outcome = group.operate("ghost", vec![ObjectOp::AssertAbsent, ObjectOp::WriteFull { data: content("ghost") }]);
    assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "ghost")));
}

#[test]
fn a_write_to_an_object_that_a_replica_cannot_read_leaves_it_missing_there_until_it_is_sent() {
    for effects in 1..4 {
        let mut group = Group::of(3, 3, short_log());
        group.write_before_the_log("old");
        group.spoil(2, "old");
        for _ in 0..effects {
            let outcome = group.operate("old", vec![ObjectOp::Append { data: Blob::default() }, ObjectOp::Stat]);
            assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
        }
        let set = ObjectOp::SetAttr { name: b"a".to_vec(), value: Bytes::from_static(b"b").into() };
        assert!(matches!(group.operate("old", vec![set]), ClientOutcome::Done { .. }));
        group.run_until_clean();
        assert!((0..3).all(|id| group.is_whole(id, "old")));
    }
}

#[test]
fn a_backfill_goes_on_when_it_meets_an_unreadable_object_that_the_log_has_forgotten() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.run_until_clean();
    assert!(group.members.acting.contains(&osd(3)));
    assert!(group.is_whole(0, "old") && group.is_whole(3, "old"));
}

#[test]
fn a_backfill_does_not_spin_on_an_object_that_nobody_can_read() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.spoil(id, "old"));
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.pass(Duration::from_secs(20));
    group.sent.clear();
    group.pass(Duration::from_secs(600));
    assert!(!group.is_clean(), "{:?}", group.report());
    let pulls = group.sent.iter().filter(|(_, _, message)| matches!(message.body, PeerBody::Pull(_))).count();
    assert!(pulls < 100, "{pulls} questions in ten minutes");
    assert!(group.is_gone(3, "old"));
}

#[test]
fn an_object_that_nobody_can_read_can_be_removed() {
    for whole in [false, true] {
        let mut group = Group::of(3, 3, short_log());
        group.write_before_the_log("old");
        for id in 0..3 {
            let key = ObjectKey::of(&name("old"));
            let object = group.nodes[id].store.objects.get_mut(&key).unwrap();
            (object.rotten, object.unreadable) = (true, whole);
        }
        assert!(is_unreadable(&group.read("old")));
        let conditional = vec![ObjectOp::CompareExtent { offset: 0, data: Blob::default() }, ObjectOp::Remove];
        assert!(is_unreadable(&group.operate("old", conditional)), "its condition cannot be judged");
        let outcome = group.operate("old", vec![ObjectOp::AssertExists, ObjectOp::Remove]);
        assert!(matches!(outcome, ClientOutcome::Done { .. }), "{outcome:?}");
        group.run_until_clean();
        assert_eq!(group.report().objects_unfound, 0);
        for id in 0..3 {
            assert!(group.is_gone(id, "old"));
            assert!(!group.nodes[id].store.meta.keys().any(|key| key.starts_with(b"m")), "no lack is left");
        }
        group.write("old");
        assert!(shows(&group.read("old"), "old"));
    }
}

#[test]
fn a_target_that_is_full_is_not_sent_the_same_piece_every_second() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(2, "old");
    group.nodes[2].store.full = true;
    let set = ObjectOp::SetAttr { name: b"a".to_vec(), value: Bytes::from_static(b"b").into() };
    assert!(matches!(group.operate("old", vec![set]), ClientOutcome::Done { .. }));
    group.sent.clear();
    group.pass(Duration::from_secs(600));
    let pieces = group.sent.iter().filter(|(_, _, message)| matches!(message.body, PeerBody::Push(_))).count();
    assert!(pieces < 30, "{pieces} pieces in ten minutes");
    assert!(!group.is_clean());
    group.nodes[2].store.full = false;
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "old")));
}

#[test]
fn a_primary_that_cannot_list_its_objects_has_another_fill_the_new_member() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.nodes[0].store.unlisted = true;
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.run_until_clean();
    assert!(group.is_whole(3, "old"));
    assert_eq!((group.primary(), group.damaged), (0, 1), "it leads again when all are filled");
    group.write("old");
}

#[test]
fn a_target_that_cannot_list_its_objects_is_filled_from_the_beginning() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.nodes[3].store.unlisted = true;
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.run_until_clean();
    assert!(group.is_whole(3, "old"));
    assert_eq!((group.damaged, group.repaired), (1, 1));
}

#[test]
fn a_primary_that_cannot_list_its_objects_serves_while_nobody_can_let_another_lead() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.nodes[0].store.unlisted = true;
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.members.acting = vec![osd(0), osd(1), osd(2)];
    group.monitors_away = true;
    group.publish();
    group.pass(Duration::from_secs(10));
    assert!(group.nodes[0].pg.as_ref().unwrap().report().state.active);
    assert!(shows(&group.read("old"), "old"));
    group.monitors_away = false;
    group.run_until_clean();
    assert!(group.is_whole(3, "old"));
}

#[test]
fn an_object_that_backfill_had_just_sent_and_that_is_unreadable_then_is_compared_again() {
    let mut group = Group::of(4, 3, short_log());
    for object in ["a", "b"] {
        group.write_before_the_log(object);
    }
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.pause_on = Some(|body| matches!(body, PeerBody::BackfillDigest(_)));
    group.run();
    // The batch stays open: one object of it is being written, and a member does not answer.
    group.silent.insert(1);
    let write = |object: &str| vec![ObjectOp::WriteFull { data: content(object) }];
    group.send(2, 1, "b", write("b"));
    let (last, digest) = (group.inputs.pop_back().unwrap(), group.inputs.pop_back().unwrap());
    group.inputs.extend([last, digest]);
    group.run();
    assert!(group.is_whole(3, "a") && group.is_gone(3, "b"), "filled, and not");
    group.spoil(3, "a");
    group.send(3, 2, "a", vec![ObjectOp::Append { data: Blob::default() }, ObjectOp::Truncate { size: 5 }]);
    group.run();
    let lost_track = |(from, _, message): &(usize, usize, PeerMessage)| {
        *from == 3 && matches!(message.body, PeerBody::NotActivated { .. })
    };
    assert!(group.sent.iter().any(lost_track));
    assert!(!group.nodes[3].store.meta.keys().any(|key| key.starts_with(b"m")), "MG3");
    group.silent.clear();
    group.run_until_clean();
    assert!(group.is_whole(3, "b") && !group.is_gone(3, "a"));
}

#[test]
fn a_source_of_the_log_that_has_no_copy_any_more_is_not_waited_for() {
    let mut group = Group::of(3, 3, short_log());
    group.write("o");
    group.map.osds.get_mut(&osd(0)).unwrap().up = false;
    group.have_lead(&[1, 2]);
    group.write("o");
    group.silent.extend([1, 2]);
    group.map.osds.get_mut(&osd(0)).unwrap().up = true;
    group.have_lead(&[0, 1, 2]);
    group.silent.clear();
    group.pause_on = Some(|body| matches!(body, PeerBody::QueryLog { .. }));
    group.pass(Duration::from_secs(3));
    let asked = |group: &Group, to: usize| {
        let is_question = |(from, at, message): &&(usize, usize, PeerMessage)| {
            (*from, *at) == (0, to) && matches!(message.body, PeerBody::QueryLog { .. })
        };
        group.sent.iter().filter(is_question).count()
    };
    let (source, other) = if asked(&group, 1) > 0 { (1, 2) } else { (2, 1) };
    assert_eq!((asked(&group, source), asked(&group, other)), (1, 0));
    group.inputs.clear();
    group.silent.insert(source);
    let notice = Notice::default();
    let (epoch, body) = (group.map.epoch, PeerBody::Notice(notice));
    let message = PeerMessage { pg: PG, epoch, interval_start: epoch, body, activation: None };
    group.inputs.push_back((0, Input::Peer { from: osd(source), incarnation: Incarnation(1), message }));
    group.pass(Duration::from_secs(3));
    assert_eq!(group.members.acting, [osd(0), osd(other)], "the choice is made without it");
    group.silent.clear();
    group.run_until_clean();
}

#[test]
fn a_peer_that_speaks_of_a_map_far_ahead_is_not_believed() {
    let mut group = Group::of(3, 3, short_log());
    for (epoch, wanted) in [(Epoch(u64::MAX), 0), (Epoch(group.map.epoch.0 + 2), 1)] {
        let interval_start = epoch;
        let message = PeerMessage { pg: PG, epoch, interval_start, body: PeerBody::QueryInfo, activation: None };
        group.inputs.push_back((0, Input::Peer { from: osd(1), incarnation: Incarnation(1), message }));
        group.run();
        assert_eq!(group.maps_wanted.len(), wanted);
    }
}

#[test]
fn what_scrubs_found_is_known_to_a_new_disk_that_leads() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    for id in 0..3 {
        let key = ObjectKey::of(&name("old"));
        group.nodes[id].store.objects.get_mut(&key).unwrap().data[0] = id as u8;
    }
    group.scrub(ScrubKind::Deep);
    let found = group.report();
    assert!(found.state.inconsistent);
    group.members.up = vec![osd(3), osd(1), osd(2)];
    group.publish();
    group.run_until_clean();
    group.inputs.push_back((3, Input::WallClock { unix_ms: 1_700_000_000_000 }));
    group.pass(Duration::from_secs(30));
    assert_eq!(group.primary(), 3);
    let known = group.report();
    assert!(known.state.inconsistent);
    assert_eq!(known.scrub.unwrap().served, found.scrub.unwrap().served);
}

#[test]
fn an_object_that_the_log_tells_of_and_nobody_has_is_found_by_a_scrub() {
    let mut group = Group::of(3, 3, Limits::default());
    for object in ["a", "b", "c"] {
        group.write(object);
    }
    for node in &mut group.nodes {
        node.store.objects.remove(&ObjectKey::of(&name("b")));
    }
    group.scrub(ScrubKind::Shallow);
    let report = group.report();
    assert!(report.state.inconsistent, "{report:?}");
    assert_eq!(report.objects, 3, "nor is it forgotten in the count");
}

#[test]
fn a_member_that_is_told_to_change_what_it_lacks_has_the_primary_peer_again() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    let is_write =
        |(_, to, message): &&(usize, usize, PeerMessage)| *to == 2 && matches!(message.body, PeerBody::RepOp(_));
    let (_, _, mut message) = group.sent.iter().rev().find(is_write).unwrap().clone();
    group.rot(2, "old", true);
    group.nodes[2].store.tight = true;
    group.scrub(ScrubKind::Deep);
    assert!(!group.is_clean(), "it lacks the object");
    // A primary that does not know: no way to get there is known.
    let PeerBody::RepOp(op) = &mut message.body else { unreachable!() };
    op.previous = op.entry.version;
    op.entry.version.counter += 1;
    op.entry.object = name("old");
    op.effects = Some(vec![Effect::Truncate { size: 1 }]);
    message.epoch = group.map.epoch;
    group.inputs.push_back((2, Input::Peer { from: osd(0), incarnation: Incarnation(1), message }));
    group.sent.clear();
    group.run();
    let lost_track = |(from, _, message): &(usize, usize, PeerMessage)| {
        *from == 2 && matches!(message.body, PeerBody::NotActivated { .. })
    };
    assert!(group.sent.iter().any(lost_track));
}

#[test]
fn what_was_fetched_is_sent_to_nobody_before_it_is_durable() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.pause_on = Some(|body| matches!(body, PeerBody::BackfillDigest(_)));
    group.run();
    // One copy is left: another member lacks it, too, and a third one is being filled.
    group.rot(0, "old", true);
    group.rot(1, "old", true);
    group.unsynced.insert(0);
    group.pass(Duration::from_secs(5));
    assert!(group.is_whole(0, "old"), "it is there, until the power fails");
    let of_it = |body: &PeerBody| matches!(body, PeerBody::Push(Push { what: PushWhat::Piece(piece), .. }) if piece.object == name("old"));
    assert!(!group.sent.iter().any(|(_, _, message)| of_it(&message.body)), "B3, V5");
    group.sync();
    group.run_until_clean();
    assert!([0, 1, 3].iter().all(|id| group.is_whole(*id, "old")));
}
