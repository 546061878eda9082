//! Writes that only one copy has, and that cannot be read there any more (P7).

use std::time::Duration;

use holdfast_map::{PgMembers, PoolKind};
use holdfast_pg::{Input, Limits, ObjectKey};
use holdfast_types::{Epoch, Incarnation};
use holdfast_wire::peer::{LogReply, PeerBody, PeerMessage};
use holdfast_wire::{Blob, ClientOutcome, ObjectOp, OpError, OpResult, RefusedReason};

use crate::group::{Group, PG, content, name, osd, short_log, shows};

fn append(text: &str) -> Vec<ObjectOp> {
    vec![ObjectOp::Append { data: Blob::from(bytes::Bytes::from(text.to_owned())) }]
}

fn bytes_of(group: &Group, id: usize, object: &str) -> Option<String> {
    let object = group.nodes[id].store.objects.get(&ObjectKey::of(&name(object)))?;
    Some(String::from_utf8(object.data.clone()).unwrap())
}

/// Three copies of `o`; OSD 0 alone has the last append to it, and a bad sector in it.
fn alone_with_an_append() -> Group {
    let mut group = Group::of(3, 3, Limits::default());
    group.write("o");
    group.write("p");
    group.silent.insert(0);
    group.send(7, 100, "o", append("more"));
    group.run();
    group.rot(0, "o", true);
    group.silent.clear();
    group
}

#[test]
fn an_append_that_nobody_else_has_to_an_object_that_cannot_be_read_there_is_taken_back_and_done_again() {
    let mut group = alone_with_an_append();
    group.have_lead(&[0, 2, 1]);
    group.run_until_clean();
    let expected = format!("{}more", "o".repeat(30));
    assert!(matches!(group.answer(100), Some(ClientOutcome::Done { .. })));
    assert!((0..3).all(|id| bytes_of(&group, id, "o").as_ref() == Some(&expected)), "once, everywhere");
    assert_eq!((group.report().objects_unfound, group.damaged, group.repaired), (0, 1, 1));
    assert_eq!(group.report().objects, 2);
}

/// The answer to a question of an earlier attempt at peering comes while the primary, in the same interval, waits for the
/// log that it goes back to.
#[test]
fn a_late_answer_takes_nothing_back_that_was_acknowledged_since() {
    let mut group = Group::of(3, 3, Limits::default());
    group.write("o");
    group.have_lead(&[1, 0, 2]);
    group.have_lead(&[0, 1, 2]);
    group.run_until_clean();
    let notice = group.sent.iter().rev().find_map(|(from, _, message)| match &message.body {
        PeerBody::Notice(notice) if *from == 1 => Some(notice.clone()),
        _ => None,
    });
    let notice = notice.unwrap();
    let (info, history) = (notice.info.unwrap(), notice.history.unwrap());
    group.write("p"); // acknowledged
    group.silent.insert(0);
    group.send(7, 100, "o", append("more"));
    group.run();
    group.rot(0, "o", true);
    group.silent.clear();
    // A member says that it has lost track.
    let to_a_member =
        |(from, to, message): &&(usize, usize, PeerMessage)| (*from, *to) == (0, 1) && message.activation.is_some();
    let (_, _, last) = group.sent.iter().rev().find(to_a_member).cloned().unwrap();
    let say = |group: &mut Group, body: PeerBody| {
        let message = PeerMessage { body, ..last.clone() };
        group.inputs.push_front((0, Input::Peer { from: osd(1), incarnation: Incarnation(1), message }));
    };
    say(&mut group, PeerBody::NotActivated { activation: last.activation.unwrap() });
    group.pause_on = Some(|body| matches!(body, PeerBody::QueryLog { .. }));
    group.run();
    assert!(group.paused, "it goes back to another log");
    let since = info.last_update;
    let late =
        LogReply { since, overlaps: true, entries: Vec::new(), missing: Vec::new(), dups: Vec::new(), info, history };
    say(&mut group, PeerBody::Log(late));
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "p")), "it was acknowledged");
}

#[test]
fn another_primary_does_not_take_a_log_whose_holder_cannot_give_what_it_tells_of() {
    let mut group = alone_with_an_append();
    group.have_lead(&[1, 0, 2]);
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "o")), "the version before");
    // The request was never executed as far as anybody knows now: it is executed once when it comes again.
    for tid in [100, 100] {
        group.send(7, tid, "o", append("more"));
        group.pass(Duration::from_secs(3));
        assert!(matches!(group.answer(100), Some(ClientOutcome::Done { .. } | ClientOutcome::Refused(_))));
    }
    group.run_until_clean();
    assert_eq!(bytes_of(&group, 0, "o"), Some(format!("{}more", "o".repeat(30))));
}

#[test]
fn what_can_be_read_is_not_taken_back() {
    for lead in [[0, 2, 1], [1, 0, 2]] {
        let mut group = alone_with_an_append();
        group.rot(0, "o", false);
        group.have_lead(&lead);
        group.run_until_clean();
        let expected = format!("{}more", "o".repeat(30));
        assert!((0..3).all(|id| bytes_of(&group, id, "o").as_ref() == Some(&expected)));
    }
}

#[test]
fn what_two_copies_have_is_not_taken_back_when_one_of_them_cannot_be_read() {
    let mut group = Group::of(3, 3, Limits::default());
    group.write("o");
    group.silent.insert(2);
    group.kill(2);
    group.send(7, 100, "o", append("more"));
    group.run();
    group.rot(0, "o", true);
    group.start(2);
    group.have_lead(&[0, 2, 1]);
    group.run_until_clean();
    assert!(matches!(group.answer(100), Some(ClientOutcome::Done { .. })));
    let expected = format!("{}more", "o".repeat(30));
    assert!((0..3).all(|id| bytes_of(&group, id, "o").as_ref() == Some(&expected)), "once");
}

#[test]
fn an_object_that_only_the_lost_write_made_is_absent_again() {
    let mut group = Group::of(3, 3, Limits::default());
    group.write("p");
    group.silent.insert(0);
    group.send(7, 100, "new", append("more"));
    group.run();
    group.spoil(0, "new");
    group.silent.clear();
    group.have_lead(&[1, 0, 2]);
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_gone(id, "new") && group.is_whole(id, "p")));
    assert_eq!(group.report().objects, 1);
}

#[test]
fn writes_of_several_intervals_that_nobody_else_has_are_taken_back_together() {
    let mut group = alone_with_an_append();
    group.silent.insert(0);
    group.send(8, 200, "o", append("and more"));
    group.send(9, 300, "p", append("of this"));
    group.run();
    group.silent.clear();
    group.have_lead(&[2, 1, 0]);
    group.run_until_clean();
    assert!((0..3).all(|id| group.is_whole(id, "o") && group.is_whole(id, "p")));
}

#[test]
fn who_dies_when_it_is_to_take_its_write_back_does_it_when_it_comes_again() {
    for lead in [[0, 2, 1], [1, 0, 2], [2, 1, 0]] {
        for step in 0..5 {
            let mut group = alone_with_an_append();
            group.pause_on = Some(
                [
                    |body: &PeerBody| matches!(body, PeerBody::QueryLog { .. }),
                    |body: &PeerBody| matches!(body, PeerBody::Log(_)),
                    |body: &PeerBody| matches!(body, PeerBody::Activate(_)),
                    |body: &PeerBody| matches!(body, PeerBody::ActivateAck(_)),
                    |body: &PeerBody| matches!(body, PeerBody::Pull(_) | PeerBody::Push(_)),
                ][step],
            );
            group.have_lead(&lead);
            for id in [0, lead[0]] {
                if group.nodes[id].pg.is_some() {
                    group.kill(id);
                }
            }
            for id in [0, lead[0]] {
                if group.nodes[id].pg.is_none() {
                    group.start(id);
                }
            }
            group.pause_on = None;
            group.have_lead(&[lead[2], lead[0], lead[1]]);
            group.run_until_clean();
            assert_eq!(group.report().objects_unfound, 0, "{lead:?} {step}");
            for id in 0..3 {
                let bytes = bytes_of(&group, id, "o").unwrap();
                assert_eq!(bytes, "o".repeat(30), "{lead:?} {step} {id}");
            }
        }
    }
}

#[test]
fn a_copy_that_lacks_what_was_deleted_does_not_take_the_place_of_the_log_that_tells_of_the_delete() {
    // OSD 1 misses `o`, whose delete reaches OSD 0 only: going back to OSD 1 would need an object that is nowhere.
    let mut group = Group::of(3, 3, Limits { piece_bytes: 16, ..Limits::default() });
    group.write("o");
    group.write("p");
    group.rot(1, "o", true);
    group.nodes[1].store.tight = true;
    group.scrub(holdfast_map::ScrubKind::Deep);
    assert!(!group.is_clean(), "it lacks the object");
    // It says so once more: a delete does not wait for a copy that has no room.
    assert_eq!(group.operate("o", append("more")), ClientOutcome::Refused(RefusedReason::Full));
    group.silent.insert(0);
    group.send(7, 100, "o", vec![ObjectOp::Remove]);
    group.send(8, 200, "p", append("more"));
    group.run();
    assert!(group.is_gone(0, "o"));
    group.rot(0, "p", true);
    group.silent.clear();
    group.nodes[1].store.tight = false;
    group.kill(2);
    group.have_lead(&[1, 0]);
    group.pass(Duration::from_secs(80)); // OSD 2 is waited for, for a minute
    assert!(group.is_gone(0, "o") && group.is_gone(1, "o"));
    group.rot(0, "p", false);
    group.start(2);
    group.have_lead(&[1, 0, 2]);
    group.run_until_clean();
    assert_eq!(bytes_of(&group, 1, "p"), Some(format!("{}more", "p".repeat(30))));
}

/// OSD 2 is behind. What 0 and 1 have acknowledged of `o` since is spoilt on OSD 0, and appended to on OSD 0 alone, and OSD 1
/// is down when 2 comes back.
fn alone_while_the_other_is_away() -> Group {
    let mut group = Group::of(3, 3, Limits::default());
    group.write("p");
    group.kill(2);
    group.have_lead(&[0, 1]);
    group.write("o");
    group.silent.insert(0);
    group.send(7, 100, "o", append("more"));
    group.run();
    group.rot(0, "o", true);
    group.silent.clear();
    group.kill(1);
    group.start(2);
    group
}

/// OSD 2 has been told the log by OSD 0 alone, which could not give it `o`: it lacks that, too.
#[test]
fn who_was_filled_from_a_copy_that_cannot_be_read_does_not_vouch_for_its_log() {
    for lead in [[0, 2], [2, 0]] {
        let mut group = Group::of(3, 3, short_log());
        group.kill(2);
        group.have_lead(&[0, 1]);
        group.write_before_the_log("p");
        group.write("o");
        group.silent.insert(0);
        group.send(7, 100, "o", append("more"));
        group.run();
        group.rot(0, "o", true);
        group.silent.clear();
        group.kill(1);
        group.start(2);
        group.members = PgMembers { up: vec![osd(0), osd(2)], acting: vec![osd(0)] };
        group.publish();
        group.pass(Duration::from_secs(25));
        assert!(group.is_whole(2, "p") && !group.is_whole(2, "o"));
        group.have_lead(&lead);
        group.pass(Duration::from_secs(10));
        assert!(group.report().state.down, "{:?}", group.report());
        assert_eq!(group.report().blocked_by, [osd(1)]);
        group.start(1);
        group.have_lead(&[0, 1, 2]);
        group.run_until_clean();
        assert_eq!(group.report().objects_unfound, 0);
    }
}

#[test]
fn who_may_have_the_version_before_one_that_cannot_be_read_is_waited_for() {
    for lead in [[0, 2], [2, 0]] {
        let mut group = alone_while_the_other_is_away();
        group.have_lead(&lead);
        group.pass(Duration::from_secs(10));
        assert!(group.report().state.down, "{:?}", group.report());
        assert_eq!(group.report().blocked_by, [osd(1)]);
        group.start(1);
        group.have_lead(&[0, 1, 2]);
        group.run_until_clean();
        assert_eq!(group.report().objects_unfound, 0);
        group.send(7, 100, "o", append("more"));
        group.run_until_clean();
        let expected = format!("{}more", "o".repeat(30));
        assert!((0..3).all(|id| bytes_of(&group, id, "o").as_ref() == Some(&expected)), "once, everywhere");
    }
}

#[test]
fn who_may_have_the_version_before_one_that_cannot_be_read_is_not_waited_for_without_end() {
    for lead in [[0, 2], [2, 0]] {
        let mut group = alone_while_the_other_is_away();
        group.have_lead(&lead);
        group.pass(Duration::from_secs(50));
        assert!(group.report().state.down, "{:?}", group.report());
        assert_eq!(group.report().unfound, ["o"], "it says for what it waits");
        group.pass(Duration::from_secs(30));
        assert!(group.report().state.active, "{:?}", group.report());
        assert_eq!(group.report().objects_unfound, 1);
        group.write("p");
    }
}

#[test]
fn who_came_back_is_waited_for_again_the_next_time() {
    let mut group = alone_while_the_other_is_away();
    group.have_lead(&[0, 2]);
    group.pass(Duration::from_secs(10));
    group.start(1);
    group.have_lead(&[1, 0, 2]);
    group.run_until_clean();
    group.pass(Duration::from_secs(100));
    // Once more, and OSD 0 has not led in between.
    group.rot(0, "o", false);
    group.kill(2);
    group.have_lead(&[1, 0]);
    group.write("p");
    group.kill(1);
    group.rot(0, "p", true);
    group.start(2);
    group.have_lead(&[0, 2]);
    group.pass(Duration::from_secs(10));
    assert!(group.report().state.down, "{:?}", group.report());
}

#[test]
fn who_is_waited_for_is_not_waited_for_anew_whenever_members_change() {
    let mut group = alone_while_the_other_is_away();
    for _ in 0..2 {
        group.have_lead(&[0, 2]);
        group.pass(Duration::from_secs(40));
        group.have_lead(&[0]);
    }
    group.have_lead(&[0, 2]);
    group.run();
    assert!(group.report().state.active, "{:?}", group.report());
}

/// OSD 0 lacks what an activation had it adopt: going back behind that is impossible, whoever comes.
#[test]
fn nobody_is_waited_for_when_what_is_missing_was_adopted_before() {
    let mut group = Group::of(3, 3, Limits::default());
    group.write("p");
    group.kill(2);
    group.have_lead(&[0, 1]);
    group.write("o");
    group.rot(0, "o", true);
    group.have_lead(&[1, 0]);
    group.have_lead(&[0, 1]);
    group.kill(1);
    group.start(2);
    group.have_lead(&[0, 2]);
    group.run();
    assert!(group.report().state.active, "{:?}", group.report());
}

#[test]
fn nobody_is_waited_for_when_all_can_be_read() {
    let mut group = alone_while_the_other_is_away();
    group.rot(0, "o", false);
    group.have_lead(&[0, 2]);
    group.run();
    assert!(group.report().state.active, "{:?}", group.report());
    group.pass(Duration::from_secs(10));
    assert_eq!(bytes_of(&group, 2, "o"), Some(format!("{}more", "o".repeat(30))));
}

/// One copy is enough here. OSDs 1 and 2 lack `o`; OSD 0 is asked to delete it and dies: they never heard of that, and get
/// `o` from it when it is back. That one of them has no room is no reason not to wait for the other.
#[test]
fn what_others_lack_is_not_deleted_before_they_have_it() {
    for one_is_full in [false, true] {
        let mut group = Group::of(3, 3, Limits { piece_bytes: 16, ..Limits::default() });
        group.map.pools.get_mut(&PG.pool).unwrap().kind = PoolKind::Replicated { size: 3, min_size: 1 };
        group.publish();
        group.run_until_clean();
        group.write("o");
        group.write("p");
        for id in [1, 2] {
            group.rot(id, "o", true);
            group.nodes[id].store.tight = true;
        }
        group.scrub(holdfast_map::ScrubKind::Deep);
        assert!(!group.is_clean(), "they lack the object");
        // What they have said of their room holds no more, but for what one says anew.
        group.pass(Duration::from_secs(6));
        group.nodes[2].store.tight = false;
        if one_is_full {
            assert_eq!(group.operate("o", append("more")), ClientOutcome::Refused(RefusedReason::Full));
        }
        group.silent.insert(0);
        group.send(7, 100, "o", vec![ObjectOp::Remove]);
        group.run();
        group.kill(0);
        group.nodes[1].store.tight = false;
        group.have_lead(&[1, 2]);
        group.pass(Duration::from_secs(20));
        group.start(0);
        group.have_lead(&[1, 2, 0]);
        group.run_until_clean();
        assert!(shows(&group.read("o"), "o"), "its deletion was never acknowledged");
        assert_eq!(group.report().objects_unfound, 0);
        group.send(7, 100, "o", vec![ObjectOp::Remove]);
        group.pass(Duration::from_secs(3));
        assert!(matches!(group.answer(100), Some(ClientOutcome::Done { .. })));
        assert!((0..3).all(|id| group.is_gone(id, "o")));
    }
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

const OBJECTS: usize = 4;

/// One client for each object, one request after the other, each sent until it is answered.
struct Client {
    tid: u64,
    /// What the request under way would make of the object.
    next: Option<(Vec<ObjectOp>, Option<String>)>,
    /// What was acknowledged last.
    is: Option<String>,
}

/// Chance against the promise: copies cannot be read here and there for a while, members die, are mute, come again and lead
/// in turn, objects are written and deleted. Whatever was acknowledged is there in the end, once, and nothing else.
fn chance(seed: u64, spoilt: &[usize]) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
    let limits = if seed.is_multiple_of(2) { Limits::default() } else { crate::group::short_log() };
    let mut group = Group::of(3, 3, limits);
    let object = |at: usize| format!("object-{at}");
    let mut clients: Vec<Client> =
        (0..OBJECTS).map(|at| Client { tid: (at as u64 + 1) * 10_000, next: None, is: None }).collect();
    let talk = |group: &mut Group, clients: &mut Vec<Client>, at: usize, dice: &mut Dice, new: bool| {
        let client = &mut clients[at];
        while let Some(outcome) = group.answer(client.tid) {
            match outcome {
                ClientOutcome::Done { .. } => {
                    if let Some((_, next)) = client.next.take() {
                        client.is = next;
                    }
                }
                ClientOutcome::Failed { error: OpError::Unreadable, .. } => client.next = None,
                ClientOutcome::Failed { error, .. } => panic!("{error:?}"),
                ClientOutcome::Refused(_) => {}
            }
        }
        if client.next.is_none() && new {
            client.tid += 1;
            let word = format!("{:x}.", client.tid);
            client.next = Some(match dice.roll(6) {
                0 if client.is.is_some() => (vec![ObjectOp::Remove], None),
                _ => (append(&word), Some(client.is.clone().unwrap_or_default() + &word)),
            });
        }
        if let Some((ops, _)) = &client.next {
            group.send(at as u64 + 10, client.tid, &object(at), ops.clone());
        }
    };
    for _ in 0..80 {
        match dice.roll(9) {
            0..=3 => talk(&mut group, &mut clients, dice.roll(OBJECTS), &mut dice, true),
            4 => drop(group.silent.insert(dice.roll(3))),
            5 => {
                let (id, at, rotten) = (spoilt[dice.roll(spoilt.len())], dice.roll(OBJECTS), dice.roll(3) > 0);
                if bytes_of(&group, id, &object(at)).is_some() {
                    group.rot(id, &object(at), rotten);
                }
            }
            6 if (0..3).all(|id| group.nodes[id].pg.is_some()) => {
                let id = dice.roll(3);
                group.kill(id);
                let first = dice.roll(2);
                group.have_lead(&[(id + 1 + first) % 3, (id + 2 - first) % 3]);
            }
            7 => {
                for id in 0..3 {
                    if group.nodes[id].pg.is_none() {
                        group.start(id);
                    }
                }
                group.silent.clear();
                let first = dice.roll(3);
                let second = 1 + dice.roll(2);
                group.have_lead(&[first, (first + second) % 3, (first + 3 - second) % 3]);
            }
            _ => group.pass(Duration::from_millis(dice.roll(3_000) as u64)),
        }
        // Inputs are heard some at a time: a change may come between any two.
        group.run();
    }
    for id in 0..3 {
        if group.nodes[id].pg.is_none() {
            group.start(id);
        }
        for at in 0..OBJECTS {
            if bytes_of(&group, id, &object(at)).is_some() && spoilt.len() > 1 {
                group.rot(id, &object(at), false);
            }
        }
    }
    group.silent.clear();
    group.have_lead(&[0, 1, 2]);
    for _ in 0..40 {
        group.pass(Duration::from_secs(5));
        (0..OBJECTS).for_each(|at| talk(&mut group, &mut clients, at, &mut dice, false));
    }
    group.run_until_clean();
    assert!(group.map.epoch > Epoch(3));
    for (at, client) in clients.iter().enumerate() {
        assert!(client.next.is_none(), "seed {seed}: not answered");
        let outcome = group.read(&object(at));
        let expected = client.is.clone().map(|text| vec![OpResult::Data(Blob::from(bytes::Bytes::from(text)))]);
        match (outcome, expected) {
            (ClientOutcome::Done { results, .. }, Some(expected)) => assert_eq!(results, expected, "seed {seed}"),
            (ClientOutcome::Failed { error: OpError::NotFound, .. }, None) => {}
            (outcome, expected) => panic!("seed {seed}, {}: {outcome:?} in place of {expected:?}", object(at)),
        }
    }
}

#[test]
fn whatever_cannot_be_read_for_a_while_nothing_acknowledged_is_taken_back() {
    (0..150).for_each(|seed| chance(seed, &[0, 1, 2]));
}

#[test]
fn the_group_that_these_tests_begin_with_is_whole() {
    let mut group = alone_with_an_append();
    assert!(group.is_whole(1, "o") && group.is_whole(2, "o") && !group.is_whole(0, "o"));
    group.rot(0, "o", false);
    assert!(!group.is_whole(0, "o"), "it has the append");
    assert!(shows(&group.read("p"), "p") && content("p").len() == 30);
}

#[test]
fn bad_sectors_on_one_disk_make_nothing_unreadable_for_good() {
    (0..100).for_each(|seed| chance(seed, &[usize::try_from(seed % 3).unwrap()]));
}
