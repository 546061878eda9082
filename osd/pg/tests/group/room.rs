//! Copies on OSDs that have no room.

use std::time::Duration;

use holdfast_map::{ScrubKind, SpaceLevel};
use holdfast_pg::{Input, Limits, ObjectKey, Slot};
use holdfast_types::Incarnation;
use holdfast_wire::peer::{PeerBody, PeerMessage};
use holdfast_wire::{Blob, ClientOutcome, ObjectOp, OpResult, RefusedReason, Row};

use crate::group::{Group, content, name, osd, short_log};

fn rows(keys: &[&str]) -> ObjectOp {
    let row = |key: &&str| Row { key: key.as_bytes().to_vec(), value: Blob::default() };
    ObjectOp::PutRows { rows: keys.iter().map(row).collect() }
}

fn delete(key: &str) -> ObjectOp {
    ObjectOp::DeleteRows { keys: vec![key.as_bytes().to_vec().into()] }
}

fn is_done(outcome: &ClientOutcome) -> bool {
    matches!(outcome, ClientOutcome::Done { .. })
}

impl Group {
    /// An OSD is full, and everybody knows.
    fn fill(&mut self, id: usize) {
        self.nodes[id].store.full = true;
        for node in &mut self.nodes {
            node.store.full_peers.insert(osd(id));
        }
    }

    /// The monitors say how full an OSD is.
    fn set_level(&mut self, id: usize, level: Option<SpaceLevel>) {
        match level {
            Some(level) => self.map.space.insert(osd(id), level),
            None => self.map.space.remove(&osd(id)),
        };
        self.publish();
    }

    /// The last of three members is away while `meanwhile` happens, for longer than the log reaches.
    fn away_while(&mut self, meanwhile: impl FnOnce(&mut Group)) {
        self.map.osds.get_mut(&osd(2)).unwrap().up = false;
        (self.members.up, self.members.acting) = (vec![osd(0), osd(1)], vec![osd(0), osd(1)]);
        self.publish();
        self.pass(Duration::from_secs(3));
        meanwhile(self);
        self.map.osds.get_mut(&osd(2)).unwrap().up = true;
        (self.members.up, self.members.acting) = ((0..3).map(osd).collect(), (0..3).map(osd).collect());
    }

    fn keys_of_rows(&self, id: usize, object: &str) -> Vec<&[u8]> {
        let object = &self.nodes[id].store.objects[&ObjectKey::of(&name(object))];
        object.rows.keys().map(Vec::as_slice).collect()
    }

    /// An object of bytes that the third copy lacks, noticed by a write that is answered.
    fn lose_third_copy(&mut self, object: &str) {
        self.lose_copy(2, object);
    }

    fn lose_copy(&mut self, id: usize, object: &str) {
        self.spoil(id, object);
        let outcome = self.operate(object, vec![ObjectOp::RemoveAttr { name: b"none".to_vec() }]);
        assert!(is_done(&outcome), "{outcome:?}");
    }
}

#[test]
fn rows_can_be_deleted_although_a_full_member_lacks_them() {
    let mut group = Group::of(3, 3, short_log());
    group.operate("index", vec![rows(&["a", "b", "c", "d"])]);
    group.write_before_the_log("other");
    group.spoil(2, "index");
    group.fill(2);
    for key in ["a", "b", "c"] {
        let outcome = group.operate("index", vec![delete(key)]);
        assert!(is_done(&outcome), "{outcome:?}");
    }
    group.run_until_clean();
    assert!((0..3).all(|id| group.keys_of_rows(id, "index") == [b"d"]));
}

#[test]
fn a_full_primary_fetches_rows_that_it_lacks() {
    let mut group = Group::of(3, 3, short_log());
    group.operate("index", vec![rows(&["a", "b"])]);
    group.write_before_the_log("other");
    group.spoil(0, "index");
    group.fill(0);
    let outcome = group.operate("index", vec![ObjectOp::GetRows { keys: vec![b"a".to_vec().into()] }]);
    let there = [OpResult::RowValues(vec![Some(Blob::default())])];
    assert!(matches!(&outcome, ClientOutcome::Done { results, .. } if *results == there), "{outcome:?}");
    assert!(is_done(&group.operate("index", vec![delete("a")])));
    group.run_until_clean();
}

#[test]
fn a_primary_without_room_for_what_it_lacks_lets_one_lead_who_has_it() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    group.nodes[0].store.full = true;
    let outcome = group.operate("old", vec![ObjectOp::Stat]);
    assert_eq!(outcome, ClientOutcome::Refused(RefusedReason::WrongPrimary));
    assert!(is_done(&group.operate("old", vec![ObjectOp::Stat])), "read from a copy that is there");
    assert_ne!(group.members.acting[0], osd(0));
    group.nodes[0].store.full = false;
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "old")));
    assert_eq!(group.members.acting, group.members.up, "it leads again");
}

#[test]
fn recovery_may_use_the_spare_room_of_a_full_osd() {
    for id in [0, 2] {
        let mut group = Group::of(3, 3, short_log());
        group.write_before_the_log("old");
        group.spoil(id, "old");
        group.nodes[id].store.full = true;
        group.nodes[id].store.spare = 1 << 20;
        if id == 0 {
            assert!(is_done(&group.operate("old", vec![ObjectOp::Stat])));
        } else {
            group.lose_third_copy("old");
        }
        group.run_until_clean();
        assert!((0..3).all(|id| group.is_whole(id, "old")));
    }
}

#[test]
fn a_member_without_room_keeps_nobody_else_from_being_filled() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    // The second has no room for what it lacks, the fourth is new.
    group.spoil(1, "old");
    group.nodes[1].store.full = true;
    let outcome = group.operate("old", vec![ObjectOp::RemoveAttr { name: b"none".to_vec() }]);
    assert!(is_done(&outcome), "{outcome:?}");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.pass(Duration::from_secs(30));
    assert!(group.is_whole(3, "old") && group.is_whole(3, "other-3"));
    assert!(!group.is_clean());
    group.nodes[1].store.full = false;
    group.run_until_clean();
    assert!(group.is_whole(1, "old"));
}

#[test]
fn a_target_without_room_keeps_the_next_one_from_being_filled_no_longer_than_its_answer() {
    for all in [false, true] {
        let mut group = Group::of(5, 3, short_log());
        group.write_before_the_log("old");
        group.members.up = vec![osd(0), osd(3), osd(4)];
        // The first to be filled refuses the slot, or each piece.
        group.nodes[3].store.full = all;
        group.nodes[3].store.tight = true;
        group.publish();
        group.pass(Duration::from_secs(30));
        assert!(group.is_whole(4, "old") && group.is_whole(4, "other-3"), "{all}");
        assert!(!group.is_clean());
        (group.nodes[3].store.full, group.nodes[3].store.tight) = (false, false);
        group.run_until_clean();
        assert!(group.is_whole(3, "old"));
    }
}

#[test]
fn writes_do_not_wait_for_a_target_that_has_no_room_for_the_object() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.nodes[3].store.tight = true;
    group.publish();
    for _ in 0..20 {
        for object in ["old", "other-1", "other-9"] {
            group.write(object);
        }
    }
    group.nodes[3].store.tight = false;
    group.run_until_clean();
    assert!(group.is_whole(3, "old"));
}

#[test]
fn a_write_is_refused_while_a_member_has_no_room_for_the_object_that_it_lacks() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.nodes[2].store.tight = true;
    group.lose_third_copy("old");
    let append = vec![ObjectOp::Append { data: content("old") }];
    for _ in 0..5 {
        let outcome = group.operate("old", append.clone());
        assert_eq!(outcome, ClientOutcome::Refused(RefusedReason::Full));
    }
    group.write("new");
    assert!(is_done(&group.operate("old", vec![ObjectOp::Stat])), "reads go on");
    group.nodes[2].store.tight = false;
    group.run_until_clean();
    assert!(is_done(&group.operate("old", append)));
}

#[test]
fn many_objects_that_find_no_room_do_not_hide_one_that_needs_none() {
    let mut group = Group::of(3, 3, short_log());
    let large: Vec<String> = (0..20).map(|n| format!("large-{n}")).collect();
    large.iter().for_each(|object| group.write(object));
    group.operate("index", vec![rows(&["a"])]);
    group.write_before_the_log("old");
    group.nodes[2].store.tight = true;
    large.iter().for_each(|object| group.lose_third_copy(object));
    group.spoil(2, "index");
    group.operate("index", vec![rows(&["b"])]);
    group.pass(Duration::from_secs(120));
    assert_eq!(group.keys_of_rows(2, "index"), [b"a", b"b"]);
    assert!(!group.is_clean());
    group.nodes[2].store.tight = false;
    group.run_until_clean();
}

#[test]
fn a_primary_without_room_serves_all_else_while_nobody_can_let_another_lead() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.spoil(0, "old");
    group.nodes[0].store.full = true;
    group.monitors_away = true;
    let waiting = 99;
    group.send(2, waiting, "old", vec![ObjectOp::Stat]);
    for other in 0..10 {
        assert!(is_done(&group.operate(&format!("other-{other}"), vec![ObjectOp::Stat])));
    }
    assert_eq!(group.answer(waiting), None);
    group.monitors_away = false;
    group.pass(Duration::from_secs(5));
    assert_eq!(group.answer(waiting), Some(ClientOutcome::Refused(RefusedReason::WrongPrimary)));
    assert!(is_done(&group.operate("old", vec![ObjectOp::Stat])));
    group.nodes[0].store.full = false;
    group.run_until_clean();
    assert_eq!(group.members.acting, group.members.up);
}

#[test]
fn what_finds_no_room_at_the_primary_keeps_no_other_copy_from_being_made_whole() {
    let mut group = Group::of(3, 3, short_log());
    let large: Vec<String> = (0..8).map(|n| format!("large-{n}")).collect();
    large.iter().for_each(|object| group.write(object));
    group.write_before_the_log("old");
    group.nodes[1].store.tight = true;
    group.lose_copy(1, "old");
    group.map.osds.get_mut(&osd(2)).unwrap().up = false;
    group.have_lead(&[0, 1]);
    group.pass(Duration::from_secs(3));
    // As many as may be on their way at a time, and more: none of them finds room.
    group.nodes[0].store.full = true;
    for (client, object) in (10..).zip(&large) {
        group.spoil(0, object);
        group.send(client, 1_000 + client, object, vec![ObjectOp::Stat]);
    }
    group.pass(Duration::from_secs(30));
    assert!(!group.is_whole(1, "old"));
    assert!(!group.slots.contains(&(0, Slot::Outgoing)), "others may use it");
    group.nodes[1].store.tight = false;
    group.pass(Duration::from_secs(60));
    assert!(group.is_whole(1, "old"));
    assert_eq!(group.members.acting[0], osd(1), "it has all");
    group.nodes[0].store.full = false;
    group.map.osds.get_mut(&osd(2)).unwrap().up = true;
    group.members.up = (0..3).map(osd).collect();
    group.publish();
    group.run_until_clean();
}

#[test]
fn a_primary_without_room_asks_as_soon_as_somebody_else_has_all() {
    let mut group = Group::of(3, 3, short_log());
    group.write("large");
    group.write_before_the_log("old");
    group.nodes[1].store.tight = true;
    group.lose_copy(1, "old");
    group.spoil(0, "large");
    group.nodes[0].store.full = true;
    group.operate("large", vec![ObjectOp::Stat]);
    assert_eq!(group.members.acting[0], osd(2));
    // That one goes, and nobody has all.
    group.map.osds.get_mut(&osd(2)).unwrap().up = false;
    group.have_lead(&[0, 1]);
    group.pass(Duration::from_secs(10));
    assert_eq!(group.members.acting[0], osd(0));
    group.nodes[1].store.tight = false;
    group.pass(Duration::from_secs(60));
    assert_eq!(group.members.acting[0], osd(1));
}

#[test]
fn in_the_place_of_a_primary_without_room_leads_one_that_has_all_not_one_that_will_lack_much() {
    let mut group = Group::of(3, 3, Limits::default());
    group.write("old");
    group.map.osds.get_mut(&osd(1)).unwrap().up = false;
    group.silent.insert(1);
    group.have_lead(&[0, 2]);
    for object in 0..120 {
        group.write(&format!("o-{object}"));
    }
    group.spoil(0, "old");
    group.nodes[0].store.full = true;
    group.send(9, 1_000, "old", vec![ObjectOp::Stat]);
    group.pass(Duration::from_secs(3));
    assert_eq!(group.members.acting[0], osd(2));
    group.silent.clear();
    group.map.osds.get_mut(&osd(1)).unwrap().up = true;
    group.have_lead(&[0, 1, 2]);
    assert_eq!(group.members.acting[0], osd(2), "the second is not told yet what it lacks");
    group.nodes[0].store.full = false;
    group.run_until_clean();
}

#[test]
fn a_bad_copy_makes_room_for_what_replaces_it() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("o");
    group.rot(2, "o", true);
    group.nodes[2].store.full = true;
    group.scrub(ScrubKind::Deep);
    group.run_until_clean();
    assert!(group.is_whole(2, "o"));
}

#[test]
fn an_osd_that_is_too_full_for_further_copies_gets_none() {
    let mut group = Group::of(5, 3, short_log());
    group.write_before_the_log("old");
    group.members.up = vec![osd(0), osd(3), osd(4)];
    group.set_level(3, Some(SpaceLevel::BackfillFull));
    group.pass(Duration::from_secs(60));
    assert!(group.nodes[3].store.objects.is_empty());
    assert!(group.is_whole(4, "old") && group.is_whole(4, "other-3"), "the next one is filled");
    assert!(is_done(&group.operate("old", vec![ObjectOp::Stat])) && !group.is_clean());
    group.write("new");
    group.set_level(3, Some(SpaceLevel::NearFull));
    group.run_until_clean();
    assert!(group.is_whole(3, "old") && group.is_whole(3, "new"));
}

#[test]
fn an_osd_that_gets_too_full_while_a_copy_is_made_there_takes_no_more_of_it() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.nodes[3].store.tight = true; // the slot is granted, and nothing comes in yet
    group.publish();
    group.pass(Duration::from_secs(3));
    group.set_level(3, Some(SpaceLevel::BackfillFull));
    group.nodes[3].store.tight = false;
    group.pass(Duration::from_secs(60));
    assert!(group.nodes[3].store.objects.is_empty());
    group.set_level(3, None);
    group.run_until_clean();
}

#[test]
fn an_osd_that_comes_back_too_full_is_rid_of_what_was_deleted_meanwhile() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.away_while(|group| {
        for other in 1..10 {
            assert!(is_done(&group.operate(&format!("other-{other}"), vec![ObjectOp::Remove])));
        }
        group.write("a-new-one");
    });
    group.set_level(2, Some(SpaceLevel::BackfillFull));
    group.run_until_clean();
    assert!((1..10).all(|other| group.is_gone(2, &format!("other-{other}"))));
    assert!(group.is_whole(2, "old") && group.is_whole(2, "a-new-one"));
}

#[test]
fn an_osd_that_comes_back_without_a_byte_left_is_freed_by_its_backfill() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.away_while(|group| {
        for other in 1..10 {
            assert!(is_done(&group.operate(&format!("other-{other}"), vec![ObjectOp::Remove])));
        }
        for new in 0..6 {
            group.write(&format!("a-new-{new}"));
        }
    });
    let held = group.nodes[2].store.live_bytes();
    group.nodes[2].store.limit = Some(held);
    group.publish();
    group.run_until_clean();
    assert!((1..10).all(|other| group.is_gone(2, &format!("other-{other}"))));
    assert!((0..6).all(|new| group.is_whole(2, &format!("a-new-{new}"))) && group.is_whole(2, "old"));
}

/// A target took an object and had no room for the next; the object is deleted before the target is filled again, and then
/// its first listing, which lacks the object, comes a second time.
#[test]
fn a_late_listing_brings_nothing_back_that_was_deleted() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("old");
    group.write_before_the_log("one-for-which-there-is-no-room");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    let (fits, does_not) =
        (content("other-1").0.len() as u64 * 11, content("one-for-which-there-is-no-room").0.len() as u64);
    group.nodes[3].store.limit = Some(fits + content("old").0.len() as u64 + does_not / 2);
    group.publish();
    group.pass(Duration::from_secs(20));
    assert!(group.is_whole(3, "old") && !group.is_clean());
    let of_old = |(from, _, message): &&(usize, usize, PeerMessage)| match &message.body {
        PeerBody::BackfillDigest(digest) => *from == 3 && digest.after.is_empty() && digest.objects.is_empty(),
        _ => false,
    };
    let (_, _, late) = group.sent.iter().find(of_old).cloned().unwrap();
    assert!(is_done(&group.operate("old", vec![ObjectOp::Remove])));
    group.nodes[3].store.limit = None;
    group.pause_on = Some(|body| matches!(body, PeerBody::BackfillScan(_)));
    group.pass(Duration::from_secs(60));
    assert!(group.paused, "it is filled again");
    let message = PeerMessage { activation: group.sent.last().unwrap().2.activation, ..late };
    group.inputs.push_front((0, Input::Peer { from: osd(3), incarnation: Incarnation(1), message }));
    group.run_until_clean();
    assert!(group.is_gone(3, "old"), "it was deleted");
}

#[test]
fn an_osd_that_comes_back_too_full_is_not_filled_with_more_than_it_had() {
    let mut group = Group::of(3, 3, short_log());
    group.write_before_the_log("old");
    group.away_while(|group| group.write_before_the_log("new"));
    group.set_level(2, Some(SpaceLevel::BackfillFull));
    group.pass(Duration::from_secs(60));
    assert!(!group.is_clean() && group.is_gone(2, "new"));
    group.set_level(2, None);
    group.run_until_clean();
}

#[test]
fn beyond_the_failsafe_of_a_member_only_deletes_are_let_in() {
    for id in 0..3 {
        let mut group = Group::of(3, 3, short_log());
        group.write("old");
        group.set_level(id, Some(SpaceLevel::Failsafe));
        let write = vec![ObjectOp::WriteFull { data: content("new") }];
        assert_eq!(group.operate("new", write), ClientOutcome::Refused(RefusedReason::Full), "osd {id}");
        assert!(is_done(&group.operate("old", vec![ObjectOp::Remove])), "osd {id}");
        group.set_level(id, Some(SpaceLevel::Full));
        group.write("new");
    }
}

#[test]
fn one_full_target_does_not_keep_a_filled_one_from_making_enough_copies() {
    for unfound in [false, true] {
        let mut group = Group::of(5, 3, short_log());
        group.write_before_the_log("old");
        group.write_before_the_log("bad");
        if unfound {
            group.rot(0, "bad", true);
        }
        group.set_level(4, Some(SpaceLevel::BackfillFull));
        // Two disks are gone for good.
        group.kill(1);
        group.kill(2);
        group.have_lead(&[0, 3, 4]);
        group.pass(Duration::from_secs(60));
        assert!(group.nodes[4].store.objects.is_empty() && group.is_whole(3, "old"));
        assert_eq!(group.members.acting.len(), 2, "two are enough");
        group.write("new");
        assert!(is_done(&group.operate("old", vec![ObjectOp::Stat])));
        if unfound {
            assert!(is_done(&group.operate("bad", vec![ObjectOp::Remove])));
        }
        group.set_level(4, None);
        group.run_until_clean();
        assert!(group.is_whole(4, "old") && group.is_whole(4, "new"));
    }
}
