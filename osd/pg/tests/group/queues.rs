//! Requests that wait, and what is answered to one that is sent again.

use std::time::Duration;

use holdfast_pg::{Input, Limits, ReplyTo};
use holdfast_wire::{Blob, ClientOutcome, ObjectOp, OpError, RefusedReason};

use crate::group::{Group, name, osd, short_log};

fn append() -> Vec<ObjectOp> {
    vec![ObjectOp::AssertExists, ObjectOp::Append { data: Blob(vec![7].into()) }]
}

fn size(group: &mut Group, object: &str) -> u64 {
    match group.operate(object, vec![ObjectOp::Stat]) {
        ClientOutcome::Done { results, .. } => match results.as_slice() {
            [holdfast_wire::OpResult::Stat(stat)] => stat.size,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_another_primary_executed_since_counts_more_than_a_failure_remembered_here() {
    for unreadable in [false, true] {
        let mut group = Group::of(3, 3, Limits::default());
        group.send(9, 1, "o", append());
        group.run();
        let failed = group.answer(1).unwrap();
        assert!(matches!(failed, ClientOutcome::Failed { index: 0, error: OpError::NotFound }), "{failed:?}");
        group.have_lead(&[1, 0, 2]);
        group.tid = 100;
        group.write("o");
        group.send(9, 1, "o", append());
        group.run();
        let done = group.answer(1).unwrap();
        assert!(matches!(done, ClientOutcome::Done { .. }), "{done:?}");
        let before = size(&mut group, "o");
        group.have_lead(&[0, 1, 2]);
        if unreadable {
            (0..3).for_each(|id| group.spoil(id, "o"));
            group.operate("o", vec![ObjectOp::Stat]);
        }
        group.send(9, 1, "o", append());
        group.run();
        let again = group.answer(1).unwrap();
        if unreadable {
            assert_eq!(again, ClientOutcome::Refused(RefusedReason::Busy), "it is not said that it had no effect");
        } else {
            assert_eq!(again, done);
            assert_eq!(size(&mut group, "o"), before);
        }
    }
}

#[test]
fn a_late_copy_of_what_another_primary_has_answered_is_not_executed() {
    let mut group = Group::of(3, 3, Limits::default());
    let sent = group.map.epoch;
    group.have_lead(&[1, 0, 2]);
    group.send(9, 1, "o", append());
    group.run();
    let failed = group.answer(1).unwrap();
    assert!(matches!(failed, ClientOutcome::Failed { index: 0, error: OpError::NotFound }), "{failed:?}");
    group.tid = 100;
    group.write("o");
    let before = size(&mut group, "o");
    // Who answered is gone, and what was sent to another one before arrives.
    group.map.osds.get_mut(&osd(1)).unwrap().up = false;
    group.have_lead(&[0, 2]);
    group.pass(Duration::from_secs(3));
    group.send_of(sent, 9, 1, "o", append());
    group.pass(Duration::from_secs(3));
    assert_eq!(group.answer(1), Some(ClientOutcome::Refused(RefusedReason::WrongPrimary)));
    assert_eq!(size(&mut group, "o"), before);
}

#[test]
fn a_client_with_an_old_map_is_served_while_the_same_one_leads() {
    let mut group = Group::of(3, 3, Limits::default());
    let sent = group.map.epoch;
    group.map.osds.get_mut(&osd(2)).unwrap().up = false;
    group.have_lead(&[0, 1]);
    group.pass(Duration::from_secs(3));
    group.send_of(sent, 9, 1, "o", full_write(10));
    group.pass(Duration::from_secs(3));
    let done = group.answer(1);
    assert!(matches!(done, Some(ClientOutcome::Done { .. })), "{done:?}");
}

/// One that cannot serve: two of three are gone.
fn stopped(limits: Limits) -> Group {
    let mut group = Group::of(3, 3, limits);
    for id in [1, 2] {
        group.map.osds.get_mut(&osd(id)).unwrap().up = false;
    }
    group.have_lead(&[0]);
    group
}

fn full_write(bytes: usize) -> Vec<ObjectOp> {
    vec![ObjectOp::WriteFull { data: Blob(vec![1; bytes].into()) }]
}

#[test]
fn what_a_client_has_given_up_is_not_kept() {
    let mut group = stopped(Limits::default());
    for round in 1..=50 {
        group.send(1, round, &format!("o-{}", round % 3), full_write(1 << 20));
        group.run();
        for given_up in 1..round {
            assert!(group.answers.iter().any(|(to, _)| to.0 == given_up), "{given_up} is kept in round {round}");
        }
        assert!(!group.answers.iter().any(|(to, _)| to.0 == round));
    }
}

#[test]
fn waiting_requests_are_bounded_in_bytes() {
    let limits = Limits { client_bytes_max: 4 << 20, ..Limits::default() };
    let mut group = stopped(limits);
    for client in 1..=10 {
        group.send(client, client, "o", full_write(1 << 20));
    }
    group.run();
    assert_eq!(group.answers.len(), 7, "the fourth has a name, too");
    let busy = ClientOutcome::Refused(RefusedReason::Busy);
    assert!(group.answers.iter().all(|(_, outcome)| *outcome == busy));
    let mut group = stopped(limits);
    group.send(1, 1, "o", full_write(8 << 20));
    group.run();
    assert!(group.answers.is_empty(), "a single one is taken however large it is");
}

#[test]
fn what_waits_elsewhere_on_the_osd_lets_nothing_more_wait_and_all_else_be_served() {
    let mut group = stopped(Limits::default());
    group.nodes[0].store.client_bytes_waiting = Limits::default().client_bytes_waiting_max;
    group.send(1, 1, "o", full_write(10));
    group.run();
    assert_eq!(group.answer(1), Some(ClientOutcome::Refused(RefusedReason::Busy)));
    let mut group = Group::of(3, 3, Limits::default());
    group.nodes[0].store.client_bytes_waiting = Limits::default().client_bytes_waiting_max;
    group.write("o");
    assert_eq!(size(&mut group, "o"), 30);
}

#[test]
fn requests_of_clients_that_are_gone_are_not_executed() {
    let mut group = stopped(short_log());
    for client in 1..=4 {
        group.send(client, client, "o", full_write(10));
    }
    group.inputs.push_back((0, Input::ClientsGone(vec![ReplyTo(1), ReplyTo(2), ReplyTo(4)])));
    group.run();
    for id in [1, 2] {
        group.map.osds.get_mut(&osd(id)).unwrap().up = true;
    }
    group.have_lead(&[0, 1, 2]);
    group.pass(Duration::from_secs(5));
    assert_eq!(group.answers.iter().map(|(to, _)| to.0).collect::<Vec<_>>(), [3]);
    assert!(!group.is_gone(0, "o"), "{:?}", name("o"));
}

#[test]
fn what_waited_for_one_object_is_executed_as_it_came() {
    let mut group = stopped(Limits::default());
    let order = [3, 1, 4, 2];
    for client in order {
        let data = Blob(vec![u8::try_from(client).unwrap()].into());
        group.send(client, client, "o", vec![ObjectOp::Append { data }]);
    }
    group.run();
    assert!(group.answers.is_empty(), "all of them wait");
    for id in [1, 2] {
        group.map.osds.get_mut(&osd(id)).unwrap().up = true;
    }
    group.have_lead(&[0, 1, 2]);
    group.pass(Duration::from_secs(5));
    assert_eq!(group.answers.iter().map(|(to, _)| to.0).collect::<Vec<_>>(), order, "answered as they came");
    group.answers.clear();
    group.tid = 10;
    match group.read("o") {
        ClientOutcome::Done { results, .. } => match results.as_slice() {
            [holdfast_wire::OpResult::Data(data)] => assert_eq!(data.0[..], [3, 1, 4, 2]),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_waited_while_maps_were_skipped_is_not_executed_by_who_leads_again() {
    let mut group = Group::of(3, 3, Limits::default());
    group.map.osds.get_mut(&osd(2)).unwrap().up = false;
    group.silent.insert(1);
    group.have_lead(&[0, 1]);
    group.send(9, 1, "o", full_write(10));
    group.pass(Duration::from_secs(3));
    assert_eq!(group.answer(1), None, "it waits for the other member");
    // Who led meanwhile may have answered it.
    group.silent.clear();
    group.map.epoch = group.map.epoch.next();
    group.have_lead(&[0, 1]);
    group.pass(Duration::from_secs(10));
    assert_eq!(group.answer(1), Some(ClientOutcome::Refused(RefusedReason::WrongPrimary)));
    assert!(matches!(group.read("o"), ClientOutcome::Failed { error: OpError::NotFound, .. }));
}
