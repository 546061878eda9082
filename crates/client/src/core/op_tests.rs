use holdfast_map::{BlocklistEntry, ClusterMap, OsdInfo, Pool, PoolKind};
use holdfast_types::{ClientId, ClusterId, DiskUuid, Incarnation, OsdId};
use holdfast_wire::{OpError, decode};

use super::*;

const POOL: PoolId = PoolId(1);
const ID: RequestId = RequestId { client: ClientId(7), incarnation: Incarnation(1), tid: 1 };

/// Three OSDs on three hosts, one pool of three copies.
fn map() -> ClusterMap {
    let mut map = ClusterMap::empty(ClusterId([1; 16]));
    map.epoch = Epoch(10);
    for id in 0..3 {
        let osd = OsdId(id);
        let host = format!("n{id}");
        map.crush.insert_device(osd, 0x10000, None, &[("host", &host), ("root", "default")]).expect("a good location");
        let info = OsdInfo {
            disk: DiskUuid([id as u8; 16]),
            incarnation: Incarnation(1),
            address: format!("127.0.0.1:{}", 7000 + id),
            up: true,
            in_cluster: true,
            reweight: 0x10000,
            up_from: Epoch(1),
            up_thru: Epoch(1),
            down_at: Epoch::ZERO,
            dead_epoch: Epoch::ZERO,
            formatted_at: Epoch::ZERO,
        };
        map.osds.insert(osd, info);
    }
    let pool = Pool {
        name: "p".into(),
        kind: PoolKind::Replicated { size: 3, min_size: 2 },
        pg_num: 8,
        rule: 0,
        created: Epoch(1),
        application: String::new(),
    };
    map.pools.insert(POOL, pool);
    map.next_pool = PoolId(2);
    map
}

fn after(map: &ClusterMap, change: impl FnOnce(&mut ClusterMap)) -> MapView {
    let mut next = map.clone();
    next.epoch = next.epoch.next();
    change(&mut next);
    MapView::new(next)
}

fn at(millis: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_millis(millis)
}

fn op() -> Op {
    Op::new(ID, POOL, ObjectName::new("o").expect("valid"), vec![ObjectOp::Stat], at(0), at(30_000))
}

fn reply(epoch: u64, outcome: ClientOutcome) -> Input {
    Input::Reply(ClientReply { id: ID, epoch: Epoch(epoch), outcome })
}

fn sent(action: Action) -> Arc<Target> {
    match action {
        Action::Send(target) => target,
        other => panic!("expected a sending, got {other:?}"),
    }
}

fn waits(action: Action) -> (Timestamp, Option<Epoch>) {
    match action {
        Action::Wait { until, map } => (until, map),
        other => panic!("expected a wait, got {other:?}"),
    }
}

fn finished(action: Action) -> Result<Outcome, OperateError> {
    match action {
        Action::Finish(outcome) => outcome,
        other => panic!("expected the end, got {other:?}"),
    }
}

fn request(op: &mut Op) -> ClientRequest {
    let encoded = op.message(1);
    decode(16, &encoded.body, &encoded.payload.concat().into()).expect("our own request")
}

#[test]
fn an_op_goes_to_the_primary_and_ends_with_its_reply() {
    let (view, mut op) = (MapView::new(map()), op());
    let target = sent(op.step(at(0), &view, Input::Wake));
    let members = view.map().members(target.pg);
    assert_eq!(Some(target.primary().0), members.primary());
    let request = request(&mut op);
    assert_eq!((request.id, request.epoch, request.pg), (ID, Epoch(10), target.pg));
    assert!(matches!(op.step(at(1), &view, Input::Wake), Action::Await));
    let done = ClientOutcome::Done { version: LogVersion::MAX, results: vec![OpResult::Done] };
    let outcome = finished(op.step(at(2), &view, reply(10, done))).expect("done");
    assert_eq!(outcome.version, LogVersion::MAX);
}

#[test]
fn a_new_map_resends_the_same_id_only_when_it_moves_the_target() {
    let (view, mut op) = (MapView::new(map()), op());
    let first = sent(op.step(at(0), &view, Input::Wake));
    let elsewhere = after(view.map(), |map| map.services.clear());
    assert!(matches!(op.step(at(1), &elsewhere, Input::Wake), Action::Await));

    let down = after(elsewhere.map(), |map| map.osds.get_mut(&first.primary().0).expect("known").up = false);
    let second = sent(op.step(at(2), &down, Input::Wake));
    assert_ne!(second.primary().0, first.primary().0);
    let resent = request(&mut op);
    assert_eq!((resent.id, resent.epoch), (ID, Epoch(12)));

    // The primary stays and a replica restarts: a new interval, in which the primary may have dropped the op.
    let replica = second.acting[1].0;
    let restarted = after(down.map(), |map| map.osds.get_mut(&replica).expect("known").incarnation = Incarnation(2));
    let third = sent(op.step(at(3), &restarted, Input::Wake));
    assert_eq!(third.primary(), second.primary());
}

#[test]
fn the_wrong_primary_at_a_newer_epoch_is_left_when_that_map_is_there() {
    let (view, mut op) = (MapView::new(map()), op());
    let first = sent(op.step(at(0), &view, Input::Wake));
    let wrong = || ClientOutcome::Refused(RefusedReason::WrongPrimary);
    let (_, wanted) = waits(op.step(at(1), &view, reply(12, wrong())));
    assert_eq!(wanted, Some(Epoch(12)));
    let between = after(view.map(), |_| {});
    assert_eq!(waits(op.step(at(2), &between, Input::Wake)).1, Some(Epoch(12)), "still too old");
    let moved = after(between.map(), |map| map.osds.get_mut(&first.primary().0).expect("known").up = false);
    assert_ne!(sent(op.step(at(3), &moved, Input::Wake)).primary(), first.primary());
    // Wrong at our own epoch: the same map gives the same target, so it pauses.
    let (until, _) = waits(op.step(at(4), &moved, reply(12, wrong())));
    assert!(until > at(4) && until <= at(4) + PAUSE_MIN);
    sent(op.step(until, &moved, Input::Wake));
}

#[test]
fn what_was_refused_under_an_older_map_is_sent_again_at_once_and_only_once() {
    let (view, mut op) = (MapView::new(map()), op());
    let first = sent(op.step(at(0), &view, Input::Wake));
    let newer = after(view.map(), |_| {});
    assert!(matches!(op.step(at(1), &newer, Input::Wake), Action::Await), "its target is the same");
    let wrong = || ClientOutcome::Refused(RefusedReason::WrongPrimary);
    let again = sent(op.step(at(2), &newer, reply(11, wrong())));
    assert_eq!(again.primary(), first.primary());
    assert_eq!(op.request.epoch, Epoch(11));
    let (until, _) = waits(op.step(at(3), &newer, reply(11, wrong())));
    assert!(until > at(3), "under that map it was refused, too");
}

#[test]
fn pauses_grow_while_nothing_moves_and_vanish_when_it_does() {
    let (view, mut op) = (MapView::new(map()), op());
    let first = sent(op.step(at(0), &view, Input::Wake));
    let (mut now, mut pauses) = (at(0), Vec::new());
    for _ in 0..10 {
        let (until, _) = waits(op.step(now, &view, Input::Lost(Cause::Unreachable)));
        pauses.push(until.since(now));
        assert!(matches!(op.step(now, &view, Input::Wake), Action::Wait { .. }), "a wake-up does not shorten it");
        now = until;
        sent(op.step(now, &view, Input::Wake));
    }
    assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
    assert!(pauses[0] <= PAUSE_MIN && pauses[9] <= PAUSE_MAX && pauses[9] > PAUSE_MAX / 3, "{pauses:?}");
    // The connection is lost because the OSD is gone, and the map says so already.
    let moved = after(view.map(), |map| map.osds.get_mut(&first.primary().0).expect("known").up = false);
    let target = sent(op.step(now, &moved, Input::Lost(Cause::Disconnected)));
    assert_ne!(target.primary(), first.primary());
}

#[test]
fn without_a_primary_it_waits_for_maps_until_its_deadline() {
    let nobody = after(&map(), |map| map.osds.values_mut().for_each(|info| info.up = false));
    let mut op = op();
    let (until, wanted) = waits(op.step(at(0), &nobody, Input::Wake));
    assert_eq!(wanted, Some(Epoch(12)));
    assert_eq!(waits(op.step(until, &nobody, Input::Wake)).1, Some(Epoch(12)), "asked for again");
    let (until, _) = waits(op.step(at(29_900), &nobody, Input::Wake));
    assert_eq!(until, at(30_000), "never past the deadline");
    let error = finished(op.step(until, &nobody, Input::Wake)).expect_err("over");
    let after = Duration::from_secs(30);
    assert_eq!(error, OperateError::Timeout { after, last_cause: Cause::NoPrimary });
    assert!(!error.had_no_effect());
}

#[test]
fn an_unanswered_op_ends_at_its_deadline_with_its_cause() {
    let (view, mut op) = (MapView::new(map()), op());
    sent(op.step(at(0), &view, Input::Wake));
    let outcome = finished(op.step(at(30_000), &view, Input::Lost(Cause::NoAnswer)));
    assert!(matches!(outcome, Err(OperateError::Timeout { last_cause: Cause::NoAnswer, .. })));
}

#[test]
fn each_final_answer_becomes_its_error() {
    let view = MapView::new(map());
    let failed = |error| ClientOutcome::Failed { index: 3, error };
    let refused = ClientOutcome::Refused;
    let cases = [
        (failed(OpError::NotFound), OperateError::NotFound { index: 3 }),
        (failed(OpError::AssertFailed { current: None }), OperateError::AssertFailed { index: 3, current: None }),
        (refused(RefusedReason::Full), OperateError::Full),
        (refused(RefusedReason::Blocklisted), OperateError::Fenced),
        (refused(RefusedReason::Forgotten), OperateError::Forgotten),
        (refused(RefusedReason::PoolGone), OperateError::PoolGone),
    ];
    for (answer, error) in cases {
        let mut op = op();
        sent(op.step(at(0), &view, Input::Wake));
        assert_eq!(finished(op.step(at(1), &view, reply(10, answer))), Err(error));
    }
}

#[test]
fn a_full_cluster_says_nothing_of_an_earlier_sending() {
    let view = MapView::new(map());
    let mut op = op();
    sent(op.step(at(0), &view, Input::Wake));
    let Action::Wait { until, .. } = op.step(at(100), &view, Input::Lost(Cause::Disconnected)) else {
        panic!("a lost request is not sent again at once");
    };
    sent(op.step(until, &view, Input::Wake));
    let refused = finished(op.step(at(500), &view, reply(10, ClientOutcome::Refused(RefusedReason::Full))));
    let error = refused.expect_err("it was refused");
    assert_eq!(error, OperateError::Timeout { after: Duration::from_millis(500), last_cause: Cause::Full });
    assert!(!error.had_no_effect());
}

#[test]
fn a_full_cluster_says_that_nothing_was_done_when_each_earlier_sending_was_refused() {
    let view = MapView::new(map());
    let mut op = op();
    sent(op.step(at(0), &view, Input::Wake));
    let busy = reply(10, ClientOutcome::Refused(RefusedReason::Busy));
    let Action::Wait { until, .. } = op.step(at(100), &view, busy) else {
        panic!("a busy OSD is not asked again at once")
    };
    sent(op.step(until, &view, Input::Wake));
    let full = reply(10, ClientOutcome::Refused(RefusedReason::Full));
    assert_eq!(finished(op.step(at(500), &view, full)), Err(OperateError::Full));
}

#[test]
fn a_fenced_session_and_a_deleted_pool_end_the_op_wherever_it_is() {
    let view = MapView::new(map());
    let entry = BlocklistEntry { client: ID.client, incarnation: ID.incarnation };
    let fenced = after(view.map(), |map| {
        map.blocklist.insert(entry);
    });
    let gone = after(view.map(), |map| map.pools.clear());
    for (next, error) in [(fenced, OperateError::Fenced), (gone, OperateError::PoolGone)] {
        let mut flying = op();
        sent(flying.step(at(0), &view, Input::Wake));
        assert_eq!(finished(flying.step(at(1), &next, Input::Wake)), Err(error.clone()));
        assert_eq!(finished(op().step(at(1), &next, Input::Wake)), Err(error));
    }
}

#[test]
fn an_answer_that_makes_no_sense_is_asked_for_again() {
    let (view, mut op) = (MapView::new(map()), op());
    sent(op.step(at(0), &view, Input::Wake));
    let too_many = ClientOutcome::Done { version: LogVersion::ZERO, results: vec![OpResult::Done; 2] };
    let (until, _) = waits(op.step(at(1), &view, reply(10, too_many)));
    sent(op.step(until, &view, Input::Wake));
    let foreign = ClientReply {
        id: RequestId { tid: 9, ..ID },
        epoch: Epoch(10),
        outcome: ClientOutcome::Done { version: LogVersion::ZERO, results: vec![OpResult::Done] },
    };
    waits(op.step(until, &view, Input::Reply(foreign)));
}
