//! Copies that cannot be read any more.

use std::time::Duration;

use bytes::Bytes;
use holdfast_pg::ObjectKey;
use holdfast_wire::peer::PeerBody;
use holdfast_wire::{Blob, ClientOutcome, ObjectOp};

use crate::group::{Group, content, is_unreadable, name, osd, short_log, shows};

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
    assert!(!group.is_clean() && group.report().state.backfilling, "{:?}", group.report());
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
