//! Objects of which nobody who is asked can tell the version.

use std::time::Duration;

use holdfast_map::ScrubKind;
use holdfast_pg::memory::MemoryObject;
use holdfast_pg::{Input, Limits, ObjectKey};
use holdfast_types::{Incarnation, LogVersion};
use holdfast_wire::peer::{PeerBody, PeerMessage, PushWhat};
use holdfast_wire::{ClientOutcome, ObjectOp, OpError};

use crate::group::{Group, content, is_unreadable, name, osd, short_log, shows};

fn mend(group: &mut Group, id: usize, object: &str) {
    let key = ObjectKey::of(&name(object));
    group.nodes[id].store.objects.get_mut(&key).unwrap().unreadable = false;
}

/// Whether the disk says that an object is missing there.
fn lacks(group: &Group, id: usize, object: &str) -> bool {
    let row = [b"m", ObjectKey::of(&name(object)).as_bytes()].concat();
    group.nodes[id].store.meta.contains_key(&row)
}

fn remove() -> Vec<ObjectOp> {
    vec![ObjectOp::AssertExists, ObjectOp::Remove]
}

fn fill_in_the_place_of_2(group: &mut Group) {
    group.members.up = vec![osd(0), osd(1), osd(3)];
    fill(group, 3);
}

fn fill(group: &mut Group, target: usize) {
    group.publish();
    group.pass(Duration::from_secs(25));
    let filled = (0..10).all(|other| group.is_whole(target, &format!("other-{other}")));
    assert!(filled && !group.report().state.backfilling && !group.holds_slots());
}

#[test]
fn a_backfill_goes_past_objects_of_unknown_version_and_leaves_them_missing() {
    for (batch, removed) in [(256, false), (1, false), (256, true)] {
        let mut group = Group::of(4, 3, Limits { backfill_batch: batch, ..short_log() });
        for object in ["a", "b", "z"] {
            group.write_before_the_log(object);
        }
        for object in ["a", "b"] {
            (0..3).for_each(|id| group.spoil(id, object));
        }
        fill_in_the_place_of_2(&mut group);
        assert!(group.is_whole(3, "z"));
        if batch == 1 {
            group.have_lead(&[0, 1, 3]);
            group.pass(Duration::from_secs(5));
        }
        let report = group.report();
        assert_eq!((report.objects_unfound, report.state.clean), (2, false), "S1");
        for object in ["a", "b"] {
            assert!(lacks(&group, 0, object) && lacks(&group, 3, object) && group.is_gone(3, object));
            if removed {
                assert!(matches!(group.operate(object, remove()), ClientOutcome::Done { .. }));
            } else {
                assert!(is_unreadable(&group.read(object)));
                // One that is no member any more can tell it still: it has left off following the log just now.
                mend(&mut group, 2, object);
            }
        }
        group.run_until_clean();
        for object in ["a", "b"] {
            for id in [0, 1, 3] {
                assert!(if removed { group.is_gone(id, object) } else { group.is_whole(id, object) });
                assert!(!lacks(&group, id, object));
            }
        }
    }
}

#[test]
fn an_object_of_unknown_version_stays_missing_over_a_restart() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.spoil(id, "old"));
    assert!(is_unreadable(&group.read("old")));
    group.kill(0);
    group.have_lead(&[1, 2]);
    group.start(0);
    group.have_lead(&[0, 1, 2]);
    group.pass(Duration::from_secs(20));
    let report = group.report();
    assert_eq!((report.objects_unfound, report.state.clean), (1, false));
    assert_eq!(report.unfound, ["old"], "a person can look what it is part of");
    assert_eq!(report.blocked_by, [], "all were asked");
    mend(&mut group, 0, "old");
    group.run_until_clean();
    assert!(group.is_whole(0, "old") && !lacks(&group, 0, "old"));
    assert!(shows(&group.read("old"), "old"));
}

#[test]
fn a_former_target_that_leads_finds_an_object_of_unknown_version_when_a_holder_returns() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.kill(2);
    group.have_lead(&[0, 1]);
    (0..2).for_each(|id| group.spoil(id, "old"));
    fill_in_the_place_of_2(&mut group);
    group.kill(0);
    group.have_lead(&[3, 1]);
    let tid = group.ask("old", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
    assert_eq!((group.primary(), group.answer(tid)), (3, None), "one that is down may have it");
    group.start(2);
    group.have_lead(&[3, 1, 2]);
    group.run_until_clean();
    assert!(group.answer(tid).is_some_and(|outcome| shows(&outcome, "old")));
    assert!((1..4).all(|id| group.is_whole(id, "old") && !lacks(&group, id, "old")));
}

#[test]
fn an_older_copy_on_the_target_is_not_taken_for_an_object_of_unknown_version() {
    let mut group = Group::of(4, 3, short_log());
    group.have_lead(&[0, 1, 3]);
    group.run_until_clean();
    group.operate("old", vec![ObjectOp::WriteFull { data: content("older") }]);
    group.kill(3);
    group.have_lead(&[0, 1, 2]);
    group.run_until_clean();
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.spoil(id, "old"));
    group.start(3);
    fill_in_the_place_of_2(&mut group);
    assert!(lacks(&group, 3, "old") && !group.is_gone(3, "old"), "the older one is there still");
    group.have_lead(&[3, 1, 0]);
    group.pass(Duration::from_secs(60));
    assert!(is_unreadable(&group.read("old")), "U3");
    assert_eq!(group.report().objects_unfound, 1);
    // The one that could not read it as primary reads it after all: it is asked, though it lacks it.
    mend(&mut group, 0, "old");
    group.run_until_clean();
    assert!(shows(&group.read("old"), "old"));
    assert!(group.is_whole(3, "old") && group.is_whole(0, "old") && !lacks(&group, 0, "old"));
}

#[test]
fn a_removal_of_an_object_of_unknown_version_that_is_taken_back_brings_it_back() {
    for leads in [[0, 1, 2], [2, 1, 0]] {
        let mut group = Group::of(4, 3, short_log());
        group.write_before_the_log("old");
        (0..3).for_each(|id| group.spoil(id, "old"));
        assert!(is_unreadable(&group.read("old")));
        (1..3).for_each(|id| mend(&mut group, id, "old"));
        // Two of three carry the removal out, and nobody is told so.
        group.send(7, 100, "old", remove());
        group.pause_on = Some(|body| matches!(body, PeerBody::RepOp(_)));
        group.run();
        assert!(group.paused);
        group.inputs.retain(|(to, _)| *to != 2);
        group.run();
        assert!(group.is_gone(0, "old") && group.is_gone(1, "old") && group.is_whole(2, "old"));
        assert_eq!(group.answer(100), None);
        (0..2).for_each(|id| group.kill(id));
        group.have_lead(&[2, 3]);
        group.pass(Duration::from_secs(20));
        group.write("new");
        (0..2).for_each(|id| group.start(id));
        group.have_lead(&leads);
        group.run_until_clean();
        for id in 0..3 {
            assert!(group.is_whole(id, "old") && group.is_whole(id, "new"), "on {id}");
            assert!(!lacks(&group, id, "old"));
        }
        assert!(shows(&group.read("old"), "old"));
        assert_eq!(group.report().objects, 12);
    }
}

#[test]
fn a_target_is_told_when_an_object_of_unknown_version_turns_out_to_be_none() {
    let mut group = Group::of(5, 4, short_log());
    group.write_before_the_log("old");
    let key = ObjectKey::of(&name("ghost"));
    for id in [0, 1, 3] {
        let object = MemoryObject { unreadable: true, ..MemoryObject::default() };
        group.nodes[id].store.objects.insert(key.clone(), object);
    }
    group.members.up = vec![osd(0), osd(1), osd(3), osd(4)];
    fill(&mut group, 4);
    assert!(lacks(&group, 0, "ghost") && lacks(&group, 4, "ghost"));
    for id in [1, 3] {
        group.nodes[id].store.objects.remove(&key);
    }
    group.run_until_clean();
    assert!((0..5).all(|id| !lacks(&group, id, "ghost") && group.is_gone(id, "ghost")));
    group.write("ghost");
    assert!(shows(&group.read("ghost"), "ghost"));
}

#[test]
fn what_a_stray_that_does_not_answer_may_have_is_waited_for_and_not_asked_of_it_all_the_time() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.spoil(id, "old"));
    fill_in_the_place_of_2(&mut group);
    group.have_lead(&[0, 1, 3]);
    group.silent.insert(2);
    group.pass(Duration::from_secs(45));
    group.sent.clear();
    let tid = group.ask("old", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
    group.pass(Duration::from_secs(600));
    assert_eq!(group.answer(tid), None, "nobody knows that it cannot be read");
    assert!(group.report().blocked_by.contains(&osd(2)), "{:?}", group.report());
    let to_stray =
        |(_, to, message): &&(usize, usize, PeerMessage)| *to == 2 && matches!(message.body, PeerBody::Pull(_));
    let pulls = group.sent.iter().filter(to_stray).count();
    assert!((1..=150).contains(&pulls), "{pulls} questions in ten minutes");
    mend(&mut group, 2, "old");
    group.silent.clear();
    group.run_until_clean();
    assert!(group.answer(tid).is_some_and(|outcome| shows(&outcome, "old")));
    assert!(group.is_whole(0, "old") && group.is_whole(3, "old"));
}

#[test]
fn who_asks_for_what_could_not_be_found_waits_for_one_that_answers_again() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.spoil(id, "old"));
    fill_in_the_place_of_2(&mut group);
    group.have_lead(&[0, 1, 3]);
    group.silent.insert(2);
    group.pass(Duration::from_secs(45));
    mend(&mut group, 2, "old");
    group.silent.clear();
    // Whenever it is asked, no answer says that the object is lost.
    for _ in 0..90 {
        let outcome = group.ask("old", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
        group.pass(Duration::from_secs(1));
        assert!(group.answer(outcome).is_none_or(|outcome| shows(&outcome, "old")));
    }
    assert!(shows(&group.read("old"), "old"));
}

#[test]
fn what_is_asked_of_another_stray_when_a_silent_one_is_heard_again_is_asked_of_that_once_more() {
    let mut group = Group::of(5, 3, short_log());
    group.write_before_the_log("old");
    (0..3).for_each(|id| group.spoil(id, "old"));
    fill_in_the_place_of_2(&mut group);
    group.members.up = vec![osd(0), osd(3), osd(4)];
    fill(&mut group, 4);
    group.sent.clear();
    group.have_lead(&[0, 3, 4]);
    group.pass(Duration::from_secs(1));
    let is_notice = |(from, to, message): &&(usize, usize, PeerMessage)| {
        (*from, *to) == (1, 0) && matches!(message.body, PeerBody::Notice(_))
    };
    let (_, _, message) = group.sent.iter().rev().find(is_notice).unwrap().clone();
    // 1 and 2 have left off, and neither answers.
    group.silent.extend([1, 2]);
    group.pass(Duration::from_secs(120));
    let tid = group.ask("old", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
    mend(&mut group, 1, "old");
    group.sent.clear();
    let asks = |group: &Group, of: usize| {
        let is_pull =
            |(_, to, message): &(usize, usize, PeerMessage)| *to == of && matches!(message.body, PeerBody::Pull(_));
        group.sent.iter().any(is_pull)
    };
    for _ in 0..150 {
        if !asks(&group, 2) {
            group.pass(Duration::from_secs(1));
        }
    }
    assert!(asks(&group, 2), "{} {} {:?}", asks(&group, 1), asks(&group, 2), group.report());
    // 1 is heard while 2 is asked, which says that it cannot tell, then.
    group.silent.remove(&1);
    group.inputs.push_back((0, Input::Peer { from: osd(1), incarnation: Incarnation(1), message }));
    group.run();
    group.silent.clear();
    group.pass(Duration::from_secs(90));
    assert!(group.answer(tid).is_some_and(|outcome| shows(&outcome, "old")));
}

#[test]
fn a_removal_of_what_nobody_can_read_does_not_wait_behind_who_reads_it() {
    // Whether 2 is just being asked once more, or not.
    for wait in (2..70).step_by(3) {
        let mut group = Group::of(4, 3, short_log());
        group.write_before_the_log("old");
        (0..3).for_each(|id| group.spoil(id, "old"));
        fill_in_the_place_of_2(&mut group);
        group.have_lead(&[0, 1, 3]);
        group.silent.insert(2);
        group.pass(Duration::from_secs(45));
        for reader in 0..3 {
            group.send(20 + reader, 2_000 + reader, "old", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
        }
        group.pass(Duration::from_secs(wait));
        let mut readers = 2_000..2_003;
        assert!(readers.clone().all(|tid| group.answer(tid).is_none()), "{wait} s: 2 may have it");
        group.send(30, 3_000, "old", remove());
        group.pass(Duration::from_secs(8));
        assert!(matches!(group.answer(3_000), Some(ClientOutcome::Done { .. })), "{wait} s");
        let not_found = Some(ClientOutcome::Failed { index: 0, error: OpError::NotFound });
        assert!(readers.all(|tid| group.answer(tid) == not_found), "{wait} s");
    }
}

#[test]
fn a_member_that_knows_the_version_of_what_the_primary_says_is_none_has_it_peer_again() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.rot(2, "old", true);
    group.nodes[2].store.tight = true;
    group.scrub(ScrubKind::Deep);
    assert!(lacks(&group, 2, "old"));
    let is_push =
        |(_, to, message): &&(usize, usize, PeerMessage)| *to == 2 && matches!(message.body, PeerBody::Push(_));
    let (_, _, mut message) = group.sent.iter().rev().find(is_push).unwrap().clone();
    let PeerBody::Push(push) = &mut message.body else { unreachable!() };
    push.transfer += 1_000;
    push.what = PushWhat::Remove(name("old"));
    group.inputs.push_back((2, Input::Peer { from: osd(0), incarnation: Incarnation(1), message }));
    group.sent.clear();
    group.run();
    let lost_track = |(from, _, message): &(usize, usize, PeerMessage)| {
        *from == 2 && matches!(message.body, PeerBody::NotActivated { .. })
    };
    assert!(group.sent.iter().any(lost_track) && lacks(&group, 2, "old"));
    group.nodes[2].store.tight = false;
    group.run_until_clean();
    assert!(group.is_whole(2, "old"));
}

#[test]
fn what_another_member_lacks_tells_the_version_of_an_object_that_nobody_else_can_name() {
    let mut group = Group::of(4, 3, short_log());
    group.write("old");
    group.kill(2);
    group.have_lead(&[0, 1]);
    group.write_before_the_log("new");
    (0..2).for_each(|id| group.spoil(id, "old"));
    fill_in_the_place_of_2(&mut group);
    assert!(lacks(&group, 3, "old"));
    // 1 can tell the version now, and give nothing: 0 and 1 lack the object in that.
    mend(&mut group, 1, "old");
    group.rot(1, "old", true);
    group.pass(Duration::from_secs(60));
    assert!(lacks(&group, 1, "old"));
    group.kill(0);
    group.have_lead(&[3, 1]);
    group.pass(Duration::from_secs(60));
    assert!(!group.is_whole(3, "old"));
    // Its log ends before what is forgotten of it elsewhere: it is not asked what the newest version is. What it has is that.
    group.start(2);
    group.have_lead(&[3, 1]);
    group.pass(Duration::from_secs(60));
    assert!(group.is_whole(3, "old") && group.is_whole(1, "old"));
    assert!(shows(&group.read("old"), "old"));
}

#[test]
fn a_stray_that_does_not_answer_does_not_keep_other_objects_from_being_recovered() {
    let olds: Vec<String> = (0..10).map(|old| format!("old-{old}")).collect();
    let mut group = Group::of(4, 3, Limits { transfers_max: 1, ..short_log() });
    for old in &olds {
        group.write(old);
    }
    group.write_before_the_log("named");
    for old in &olds {
        (0..3).for_each(|id| group.spoil(id, old));
    }
    fill_in_the_place_of_2(&mut group);
    assert_eq!(group.report().objects_unfound, 10);
    group.kill(3);
    group.have_lead(&[0, 1]);
    group.write("late");
    group.start(3);
    // 2 holds a copy still, and has said so; what is asked of it gets no answer.
    group.pause_on = Some(|body| matches!(body, PeerBody::Pull(_)));
    group.have_lead(&[3, 1, 0]);
    assert!(group.paused);
    group.silent.insert(2);
    group.pass(Duration::from_secs(150));
    assert!(group.is_whole(3, "late"));
}

#[test]
fn a_version_that_a_stray_tells_is_judged_by_what_was_forgotten_when_it_was_asked() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    // 2 leads for a moment, and nobody hears of what it adds.
    group.have_lead(&[2, 0, 1]);
    group.silent.insert(2);
    group.ask("old", vec![ObjectOp::Append { data: content("never acknowledged") }]);
    group.run();
    group.kill(2);
    group.members.up = vec![osd(0), osd(1)];
    group.have_lead(&[0, 1]);
    (0..2).for_each(|id| group.spoil(id, "old"));
    group.start(2);
    group.publish();
    group.pass(Duration::from_secs(1)); // it has said that it has a copy
    group.silent.insert(2);
    group.send(7, 1_000, "old", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
    group.run();
    let asked = |(_, to, message): &(usize, usize, PeerMessage)| *to == 2 && matches!(message.body, PeerBody::Pull(_));
    assert!(group.sent.iter().any(asked));
    for number in 1_001..=1_020 {
        group.send(8, number, &format!("later-{number}"), vec![ObjectOp::WriteFull { data: content("later") }]);
        group.run();
    }
    group.silent.remove(&2);
    group.pass(Duration::from_secs(10));
    let taken = |(_, _, message): &(usize, usize, PeerMessage)| matches!(&message.body, PeerBody::Pull(pull) if pull.object == name("old") && pull.version > LogVersion::ZERO);
    assert!(!group.sent.iter().any(taken), "what was never acknowledged is taken for the newest");
    assert!(is_unreadable(&group.read("old")));
    assert_eq!(group.report().objects_unfound, 1);
}

#[test]
fn what_nobody_who_is_asked_has_is_not_removed_while_one_that_is_down_may_have_it() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.kill(2);
    group.members.up = vec![osd(0), osd(1)];
    group.have_lead(&[0, 1]);
    group.nodes[1].store.objects.remove(&ObjectKey::of(&name("old")));
    group.spoil(0, "old");
    let tid = group.ask("old", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
    group.pass(Duration::from_secs(20));
    assert!(!group.is_gone(0, "old"));
    assert!(!matches!(group.answer(tid), Some(ClientOutcome::Failed { error: OpError::NotFound, .. })));
    group.start(2);
    group.publish();
    group.pass(Duration::from_secs(60));
    assert!(group.is_whole(0, "old"));
    assert!(shows(&group.read("old"), "old"));
}

#[test]
fn what_one_cannot_read_and_two_do_not_have_is_none_whoever_leads() {
    for leads in [[0, 1, 2], [1, 2, 0]] {
        let mut group = Group::of(3, 3, short_log());
        group.write_before_the_log("ghost");
        (0..3).for_each(|id| group.spoil(id, "ghost"));
        assert!(is_unreadable(&group.read("ghost")));
        assert!(lacks(&group, 0, "ghost"));
        let key = ObjectKey::of(&name("ghost"));
        let row = [b"m", key.as_bytes()].concat();
        [1, 2].iter().for_each(|id| group.kill(*id));
        group.have_lead(&[0]);
        for id in [1, 2] {
            group.nodes[id].store.objects.remove(&key);
            group.nodes[id].store.meta.remove(&row);
            group.start(id);
        }
        group.have_lead(&leads);
        group.run_until_clean();
        assert!((0..3).all(|id| group.is_gone(id, "ghost") && !lacks(&group, id, "ghost")), "{leads:?}");
        assert!(!is_unreadable(&group.read("ghost")));
    }
}

#[test]
fn a_copy_that_cannot_be_read_is_not_removed_because_one_other_has_none() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.kill(2);
    group.have_lead(&[0, 1]);
    for later in 0..10 {
        group.write(&format!("later-{later}"));
    }
    // What 2 has been told ends before what is forgotten of the log: it is not asked, though it has the object whole.
    group.nodes[1].store.objects.remove(&ObjectKey::of(&name("old")));
    group.spoil(0, "old");
    group.start(2);
    fill_in_the_place_of_2(&mut group);
    assert!(!group.is_gone(0, "old") && !group.is_gone(2, "old"));
    assert_eq!((group.report().objects_unfound, group.report().state.clean), (1, false));
    assert!(is_unreadable(&group.read("old")));
    mend(&mut group, 0, "old");
    group.pass(Duration::from_secs(60));
    assert!(group.is_whole(0, "old") && group.is_whole(3, "old"));
    assert!(shows(&group.read("old"), "old"));
}

#[test]
fn a_version_that_a_peer_is_known_to_lack_is_newer_than_what_a_disk_that_dropped_a_write_shows() {
    let mut group = Group::of(3, 3, short_log());
    let key = ObjectKey::of(&name("old"));
    group.operate("old", vec![ObjectOp::WriteFull { data: content("older") }]);
    let older = group.nodes[0].store.objects[&key].clone();
    group.kill(2);
    group.have_lead(&[0, 1]);
    group.write("old");
    group.nodes[2].store.tight = true;
    group.start(2);
    group.have_lead(&[0, 1, 2]);
    for other in 0..10 {
        group.operate(
            &format!("gone-{other}"),
            vec![ObjectOp::SetAttr { name: b"a".to_vec(), value: content("a").0.into() }],
        );
    }
    assert!(lacks(&group, 2, "old"));
    group.nodes[0].store.objects.insert(key, older);
    group.nodes[2].store.tight = false;
    group.pass(Duration::from_secs(120));
    assert!((0..3).all(|id| group.is_whole(id, "old")), "whole on 1, and there only");
}
