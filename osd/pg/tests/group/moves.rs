//! Copies that move to other OSDs.

use std::collections::VecDeque;
use std::time::Duration;

use holdfast_map::PoolKind;
use holdfast_pg::{Input, Limits};
use holdfast_types::Incarnation;
use holdfast_wire::ObjectOp;
use holdfast_wire::peer::{PeerBody, PeerMessage, PushWhat};

use crate::group::{Group, PG, content, is_unreadable, name, osd, short_log, shows};

/// A placement group whose log goes back to its beginning: a new copy can be made whole by the log alone.
fn filled(all: usize, members: usize) -> Group {
    let mut group = Group::of(all, members, Limits::default());
    for object in 0..150 {
        group.write(&format!("o-{object}"));
    }
    group
}

#[test]
fn all_copies_serve_until_a_new_one_is_whole() {
    for lead in [false, true] {
        let mut group = filled(4, 3);
        group.members.up = if lead { vec![osd(3), osd(0), osd(1)] } else { vec![osd(0), osd(1), osd(3)] };
        group.members.acting = group.members.up.clone();
        group.publish();
        // The new copy has taken the log, and nothing yet of what that tells of.
        group.pause_on = Some(|body| matches!(body, PeerBody::ReservationGrant));
        group.run();
        assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
        assert!(shows(&group.read("o-7"), "o-7"));
        group.run_until_clean();
        assert_eq!(group.members.acting, group.members.up);
        assert!((0..150).all(|object| group.is_whole(3, &format!("o-{object}"))));
    }
}

#[test]
fn one_that_was_away_for_long_leads_again_when_it_has_caught_up() {
    let mut group = filled(3, 3);
    group.map.osds.get_mut(&osd(0)).unwrap().up = false;
    group.have_lead(&[1, 2]);
    group.silent.insert(0);
    for object in 0..120 {
        group.write(&format!("o-{object}"));
    }
    group.silent.clear();
    group.map.osds.get_mut(&osd(0)).unwrap().up = true;
    group.pause_on = Some(|body| matches!(body, PeerBody::ReservationGrant));
    group.have_lead(&[0, 1, 2]);
    assert_ne!(group.members.acting[0], osd(0), "others have what is asked for");
    group.run_until_clean();
    assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
}

#[test]
fn one_that_lacks_much_leads_all_the_same_when_no_map_lets_another_lead() {
    let mut group = filled(3, 3);
    group.map.osds.get_mut(&osd(0)).unwrap().up = false;
    group.have_lead(&[1, 2]);
    group.silent.insert(0);
    for object in 0..120 {
        group.write(&format!("o-{object}"));
    }
    group.silent.clear();
    group.monitors_away = true;
    group.map.osds.get_mut(&osd(0)).unwrap().up = true;
    group.have_lead(&[0, 1, 2]);
    group.pass(Duration::from_secs(5));
    assert!(!group.report().state.active, "another would serve at once");
    group.pass(Duration::from_secs(10));
    assert!(shows(&group.read("o-7"), "o-7"));
    group.run_until_clean();
    assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
}

#[test]
fn an_osd_that_is_out_keeps_its_copy_until_somebody_takes_its_place() {
    let mut group = filled(4, 3);
    group.members.up = vec![osd(0), osd(1)];
    group.members.acting = group.members.up.clone();
    group.publish();
    group.pass(Duration::from_secs(10));
    assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
    let epoch = group.map.epoch;
    group.pass(Duration::from_secs(60));
    assert_eq!(group.map.epoch, epoch, "it comes to rest");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.run_until_clean();
    assert!(group.is_whole(3, "o-7"));
}

#[test]
fn fewer_copies_than_before_end_a_move() {
    let mut group = filled(4, 3);
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.members.acting = group.members.up.clone();
    group.publish();
    group.pause_on = Some(|body| matches!(body, PeerBody::ReservationGrant));
    group.run();
    assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
    group.map.pools.get_mut(&PG.pool).unwrap().kind = PoolKind::Replicated { size: 2, min_size: 1 };
    group.members.up = vec![osd(0), osd(1)];
    group.publish();
    group.run_until_clean();
    assert_eq!(group.members.acting, [osd(0), osd(1)]);
    group.pass(Duration::from_secs(10));
    assert!(group.nodes[2].pg.is_none() && group.nodes[3].pg.is_none(), "nothing is left of the others");
}

/// Has the primary alone delete the object: nobody else hears of that.
fn carry_out_alone(group: &mut Group, object: &str) {
    group.monitors_away = true;
    group.send(2, 1, object, vec![ObjectOp::Remove]);
    group.pause_on = Some(|body| matches!(body, PeerBody::RepOp(_)));
    group.run();
    assert!(group.paused && group.is_gone(0, object));
    nobody_hears_of_writes(group);
}

fn nobody_hears_of_writes(group: &mut Group) {
    let is_write =
        |input: &Input| matches!(input, Input::Peer { message, .. } if matches!(message.body, PeerBody::RepOp(_)));
    group.inputs.retain(|(_, input)| !is_write(input));
}

/// The primary alone has carried it out, and the listing of a batch leaves the object out; then the primary dies.
#[test]
fn a_copy_that_was_filled_beside_a_deletion_that_came_to_nothing_has_the_object() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("k");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.pause_on = Some(|body| matches!(body, PeerBody::BackfillScan(_)));
    group.pass(Duration::from_secs(20));
    assert!(group.paused, "a copy has come that is filled from the beginning");
    carry_out_alone(&mut group, "k");
    group.run();
    assert!(group.is_whole(3, "other-3"), "what comes before and after it has been sent");

    group.kill(0);
    group.monitors_away = false;
    group.have_lead(&[3, 1, 2]);
    assert!(shows(&group.read("k"), "k"));
    group.run_until_clean();
    assert!((1..4).all(|id| group.is_whole(id, "k")));
}

/// The same, while the copy is told that nobody can give the object.
#[test]
fn a_copy_that_is_told_again_what_it_lacks_lacks_it_also_when_a_deletion_of_it_came_to_nothing() {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("k");
    (0..3).for_each(|id| group.rot(id, "k", true));
    assert!(is_unreadable(&group.read("k")));
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    let told = |body: &PeerBody| matches!(body, PeerBody::BackfillProgress(_));
    group.pause_on = Some(told);
    group.pass(Duration::from_secs(20));
    assert!(group.paused);
    let is_told = |input: &Input| matches!(input, Input::Peer { message, .. } if matches!(message.body, PeerBody::BackfillProgress(_)));
    group.inputs.retain(|(_, input)| !is_told(input));
    carry_out_alone(&mut group, "k");
    group.pause_on = Some(told);
    group.pass(Duration::from_secs(5));
    assert!(group.paused, "what was not answered is said again");
    let said = group.sent.iter().filter_map(|(_, to, message)| match &message.body {
        PeerBody::BackfillProgress(progress) if *to == 3 => progress.lacking.clone(),
        _ => None,
    });
    let lacked: Vec<bool> = said.map(|lacking| lacking.iter().any(|item| item.object == name("k"))).collect();
    assert_eq!(lacked, [true, true]);

    nobody_hears_of_writes(&mut group);
    group.run();
    group.kill(0);
    group.rot(2, "k", false);
    group.monitors_away = false;
    group.have_lead(&[3, 1, 2]);
    assert!(shows(&group.read("k"), "k"));
}

/// All four have `k`: osd.2 has just been filled, to take the place of osd.3.
fn moved_from_3_to_2() -> Group {
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("k");
    group.have_lead(&[3, 0, 1]);
    group.run_until_clean();
    group.pause_on = Some(|body| matches!(body, PeerBody::BackfillProgress(progress) if progress.cursor.is_complete()));
    group.members.up = vec![osd(0), osd(1), osd(2)];
    group.publish();
    group.pass(Duration::from_secs(20));
    assert!(group.paused, "all four have it");
    group
}

/// A deletion of what is missing needs nobody who has it; until it is committed it may come to nothing.
#[test]
fn the_only_copy_of_what_is_missing_is_kept_until_its_deletion_is_committed() {
    let mut group = moved_from_3_to_2();
    group.kill(3);
    (0..3).for_each(|id| group.rot(id, "k", true));
    group.members.acting = vec![osd(0), osd(1), osd(2)];
    group.publish();
    let tid = group.ask("k", vec![ObjectOp::Read { offset: 0, length: 1 << 20 }]);
    group.pass(Duration::from_secs(60));
    assert!(!group.is_clean() && group.answer(tid).is_none(), "osd.3 is waited for");
    carry_out_alone(&mut group, "k");
    group.run();
    assert!(!group.is_clean(), "the others still lack it");
    group.start(3);
    group.publish();
    group.run();

    group.kill(0);
    group.monitors_away = false;
    group.have_lead(&[1, 2]);
    assert!(shows(&group.read("k"), "k"));
}

/// The same, of what one member lacks that has no room for it.
#[test]
fn the_copy_that_could_make_a_member_whole_is_kept_until_the_deletion_of_what_that_lacks_is_committed() {
    let mut group = moved_from_3_to_2();
    group.spoil(1, "k");
    group.nodes[1].store.full = true;
    group.nodes[0].store.full_peers.insert(osd(1));
    group.operate("k", vec![ObjectOp::RemoveAttr { name: b"none".to_vec() }]);
    group.pass(Duration::from_secs(60));
    assert!(group.members.acting == [osd(0), osd(1), osd(2)] && !group.is_clean(), "osd.1 lacks it");

    carry_out_alone(&mut group, "k");
    group.run();
    assert!(!group.is_clean() && group.is_whole(3, "k"));
    group.monitors_away = false;
    group.pass(Duration::from_secs(10));
    assert!(group.is_clean() && group.nodes[3].pg.is_none(), "it is said again, and committed");
}

fn take(group: &mut Group, which: impl Fn(&PeerBody) -> bool) -> Vec<(usize, Input)> {
    let is_it =
        |(to, input): &(usize, Input)| *to == 3 && matches!(input, Input::Peer { message, .. } if which(&message.body));
    let (taken, left) = std::mem::take(&mut group.inputs).into_iter().partition(is_it);
    group.inputs = left;
    taken.into_iter().collect()
}

/// What a copy that was left out of a batch is to carry out of that comes after its listing, and of the deletion it
/// hears the word alone.
#[test]
fn a_copy_that_lists_before_it_hears_of_old_writes_keeps_nothing_that_was_deleted() {
    let is_write = |body: &PeerBody| matches!(body, PeerBody::RepOp(_));
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("k");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.pause_on = Some(|body| matches!(body, PeerBody::Push(push) if push.backfill));
    group.pass(Duration::from_secs(20));
    assert!(group.paused, "a batch is being sent");
    let mut late = Vec::new();
    for (tid, op) in [(1, ObjectOp::WriteFull { data: content("new") }), (2, ObjectOp::Remove)] {
        group.send(2, tid, "new", vec![op]);
        group.pause_on = Some(|body| matches!(body, PeerBody::RepOp(_)));
        group.run();
        assert!(group.paused);
        late.extend(take(&mut group, is_write));
        // It has no slot any more.
        let (_, _, said) = group.sent.iter().rev().find(|(from, _, _)| *from == 3).unwrap();
        let message = PeerMessage { body: PeerBody::ReservationReject, ..said.clone() };
        group.inputs.push_back((0, Input::Peer { from: osd(3), incarnation: Incarnation(1), message }));
    }
    let effects = |(_, input): &(usize, Input)| matches!(input, Input::Peer { message, .. } if matches!(&message.body, PeerBody::RepOp(op) if op.effects.is_some()));
    assert_eq!(late.iter().map(effects).collect::<Vec<_>>(), [true, false]);

    let mut scan = Vec::new();
    while scan.is_empty() {
        group.pause_on = Some(|body| matches!(body, PeerBody::RepOp(_) | PeerBody::BackfillScan(_)));
        group.pass(Duration::from_secs(30));
        assert!(group.paused, "it is compared again");
        take(&mut group, is_write);
        scan = take(&mut group, |body| matches!(body, PeerBody::BackfillScan(_)));
    }
    group.inputs.extend(scan);
    group.pause_on = Some(|body| matches!(body, PeerBody::BackfillDigest(_)));
    group.run();
    assert!(group.paused);
    let (listing, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut group.inputs).into_iter().partition(|(_, input): &(usize, Input)| {
        matches!(input, Input::Peer { message, .. } if matches!(message.body, PeerBody::BackfillDigest(_)))
    });
    group.inputs = others;
    group.inputs.extend(late);
    group.run();
    assert!(!group.is_gone(3, "new") && group.answer(2).is_some(), "the deletion is committed");
    group.inputs.extend(listing);
    group.run_until_clean();
    assert!(group.is_gone(3, "new") && group.is_whole(3, "k"));
}

/// A removal, above all: what it is about may have been created since.
#[test]
fn what_was_sent_of_a_batch_that_was_put_off_changes_nothing_any_more() {
    let is_push = |body: &PeerBody| matches!(body, PeerBody::Push(_));
    let removes = |(_, input): &(usize, Input)| matches!(input, Input::Peer { message, .. } if matches!(&message.body, PeerBody::Push(push) if matches!(push.what, PushWhat::Remove(_))));
    let mut group = Group::of(4, 3, short_log());
    group.write_before_the_log("k");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.pause_on = Some(|body| matches!(body, PeerBody::BackfillScan(_)));
    group.pass(Duration::from_secs(20));
    assert!(group.paused);
    let scan = take(&mut group, |body| matches!(body, PeerBody::BackfillScan(_)));
    group.send(2, 1, "k", vec![ObjectOp::Remove]);
    group.run();
    assert!(group.answer(1).is_some(), "the deletion is committed, after the listing was asked for");
    group.inputs.extend(scan);
    let mut late = Vec::new();
    while late.is_empty() {
        group.pause_on = Some(is_push);
        group.run();
        assert!(group.paused, "a batch is being sent");
        let (removals, others) = take(&mut group, is_push).into_iter().partition(removes);
        late = removals;
        group.inputs.extend(if late.is_empty() { others } else { Vec::new() });
    }

    // It has no slot any more, and gets one again.
    let (_, _, said) = group.sent.iter().rev().find(|(from, _, _)| *from == 3).unwrap();
    let message = PeerMessage { body: PeerBody::ReservationReject, ..said.clone() };
    group.inputs.push_back((0, Input::Peer { from: osd(3), incarnation: Incarnation(1), message }));
    group.run();
    group.pause_on = Some(is_push);
    group.pass(Duration::from_secs(30));
    assert!(group.paused, "it was compared again");
    take(&mut group, is_push);
    group.send(2, 2, "k", vec![ObjectOp::WriteFull { data: content("k") }]);
    group.run();
    assert!(group.is_whole(3, "k"), "its writes are carried out there");
    group.inputs.extend(late);
    group.run_until_clean();
    assert!([0, 1, 3].iter().all(|id| group.is_whole(*id, "k")));
}
