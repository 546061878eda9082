//! What a primary lets in: one placement group with one copy, driven by hand.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use holdfast_map::{ClusterMap, OsdInfo, PgMembers, Pool, PoolKind};
use holdfast_pg::memory::MemoryCollection;
use holdfast_pg::{Input, Limits, Outbox, Output, Pg, ReplyTo};
use holdfast_types::{
    ClientId, ClusterId, DiskUuid, Epoch, Incarnation, ObjectName, OsdId, PgId, PoolId, RequestId, Timestamp,
};
use holdfast_wire::{Blob, ClientOutcome, ClientRequest, ObjectOp, OpError, RefusedReason, Row};

const ME: OsdId = OsdId(0);
const PG: PgId = PgId { pool: PoolId(1), seed: 0 };

struct Primary {
    pg: Pg,
    store: MemoryCollection,
    map: ClusterMap,
    tid: u64,
    answers: Vec<(ReplyTo, ClientOutcome)>,
}

fn members() -> PgMembers {
    PgMembers { up: vec![ME], acting: vec![ME] }
}

impl Primary {
    fn new() -> Primary {
        let mut map = ClusterMap::empty(ClusterId([7; 16]));
        map.epoch = Epoch(1);
        let info = OsdInfo {
            disk: DiskUuid([1; 16]),
            incarnation: Incarnation(1),
            address: String::new(),
            up: true,
            in_cluster: true,
            reweight: 0x1_0000,
            up_from: Epoch(1),
            up_thru: Epoch(0),
            down_at: Epoch(0),
            dead_epoch: Epoch(0),
            formatted_at: Epoch(0),
        };
        map.osds.insert(ME, info);
        let pool = Pool {
            name: "p".to_owned(),
            kind: PoolKind::Replicated { size: 1, min_size: 1 },
            pg_num: 1,
            rule: 0,
            created: Epoch(1),
            application: "test".to_owned(),
        };
        map.pools.insert(PG.pool, pool);
        let limits = Limits { effects_bytes_max: 1 << 20, ..Limits::default() };
        let pg = Pg::create_with(PG, ME, Incarnation(1), Arc::new(map.clone()), members(), limits);
        let mut this = Primary { pg, store: MemoryCollection::default(), map, tid: 0, answers: Vec::new() };
        this.step(Input::Tick);
        this.next_map(|map| map.osds.get_mut(&ME).unwrap().up_thru = Epoch(1));
        assert!(this.pg.report().state.active, "{:?}", this.pg.report());
        this
    }

    fn next_map(&mut self, change: impl FnOnce(&mut ClusterMap)) {
        self.map.epoch = self.map.epoch.next();
        change(&mut self.map);
        self.step(Input::Map { map: Arc::new(self.map.clone()), members: members() });
    }

    /// One input, and all that follows from it: transactions become durable at once.
    fn step(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut outbox = Outbox::new();
            self.pg.step(Timestamp::from_nanos(1), input, &self.store, &mut outbox);
            let mut durable = None;
            for output in outbox {
                match output {
                    Output::Submit { txn, ops } => {
                        self.store.apply(&ops);
                        durable = Some(txn);
                    }
                    Output::Reply { reply_to, reply, .. } => self.answers.push((reply_to, reply.outcome)),
                    Output::Wake { at } if at <= Timestamp::from_nanos(1) => inputs.push(Input::Tick),
                    _ => {}
                }
            }
            inputs.extend(durable.map(Input::Durable));
        }
    }

    fn request(&mut self, ops: Vec<ObjectOp>) -> ClientRequest {
        self.tid += 1;
        ClientRequest {
            id: RequestId { client: ClientId(1), incarnation: Incarnation(1), tid: self.tid },
            epoch: self.map.epoch,
            pg: PG,
            object: ObjectName::new("o").unwrap(),
            ops,
            lowest_outstanding_tid: 1,
            frees_space: None,
        }
    }

    fn send(&mut self, request: ClientRequest) -> ClientOutcome {
        self.step(Input::Client { reply_to: ReplyTo(request.id.tid), request });
        self.answers.pop().expect("answered").1
    }

    fn operate(&mut self, ops: Vec<ObjectOp>) -> ClientOutcome {
        let request = self.request(ops);
        self.send(request)
    }
}

fn write(bytes: usize) -> ObjectOp {
    ObjectOp::WriteFull { data: Blob(Bytes::from(vec![1; bytes])) }
}

fn put(key: &str, bytes: usize) -> ObjectOp {
    ObjectOp::PutRows { rows: vec![Row { key: key.into(), value: Blob(Bytes::from(vec![1; bytes])) }] }
}

fn is_refused(outcome: &ClientOutcome) -> bool {
    *outcome == ClientOutcome::Refused(RefusedReason::Full)
}

#[test]
fn what_was_done_before_is_confirmed_however_full_it_is_since() {
    let mut primary = Primary::new();
    let request = primary.request(vec![write(100)]);
    let done = primary.send(request.clone());
    assert!(matches!(done, ClientOutcome::Done { .. }), "{done:?}");
    primary.store.full = true;
    assert_eq!(primary.send(request), done, "a resend of it");
    assert!(is_refused(&primary.operate(vec![write(100)])), "another one");
}

#[test]
fn without_room_anywhere_only_what_frees_space_is_let_in() {
    let mut primary = Primary::new();
    primary.operate(vec![write(10), put("a", 10), put("b", 10)]);
    for by_flag in [false, true] {
        if by_flag {
            primary.store.full = false;
            primary.next_map(|map| map.flags.full = true);
        } else {
            primary.store.full = true;
        }
        let refused = [
            vec![write(1)],
            vec![put("c", 10)],
            vec![ObjectOp::AddRow { key: b"n".to_vec(), delta: 1 }],
            vec![ObjectOp::DeleteRows { keys: vec![b"a".to_vec().into()] }, write(1)],
            vec![ObjectOp::DeleteRows { keys: vec![b"a".to_vec().into()] }, put("b", 20)], // replaces what it deletes
        ];
        for ops in refused {
            let outcome = primary.operate(ops.clone());
            assert!(is_refused(&outcome), "{ops:?}: {outcome:?}");
        }
        let batch = vec![
            ObjectOp::DeleteRows { keys: vec![b"a".to_vec().into()] },
            put("garbage", 300 << 10),
            ObjectOp::AddRow { key: b"weight".to_vec(), delta: -1 },
        ];
        let mut declared = |ops| {
            let mut request = primary.request(ops);
            request.frees_space = Some(true);
            primary.send(request)
        };
        let deleted = declared(batch);
        assert!(matches!(deleted, ClientOutcome::Done { .. }), "{deleted:?}");
        let attribute = |value: usize| {
            let name = b"state".to_vec();
            let value = Blob(Bytes::from(vec![1; value]));
            vec![ObjectOp::RemoveAttr { name: name.clone() }, ObjectOp::SetAttr { name, value }]
        };
        let marked = declared(attribute(100));
        assert!(matches!(marked, ClientOutcome::Done { .. }), "what is to go is marked first: {marked:?}");
        assert!(is_refused(&declared(attribute(2 << 20))), "with much");
        let delete = || ObjectOp::DeleteRows { keys: vec![b"a".to_vec().into()] };
        for free_nothing in [vec![put("garbage", 10)], vec![write(10)], vec![delete(), write(10)]] {
            assert!(is_refused(&declared(free_nothing)), "whatever is said");
        }
        let deleted = primary.operate(vec![delete()]);
        assert!(matches!(deleted, ClientOutcome::Done { .. }), "nobody must say what only deletes: {deleted:?}");
        assert!(matches!(primary.operate(vec![ObjectOp::Stat]), ClientOutcome::Done { .. }), "reads go on");
    }
    assert!(matches!(primary.operate(vec![ObjectOp::Remove]), ClientOutcome::Done { .. }));
}

#[test]
fn what_a_store_could_not_take_in_one_transaction_is_refused_before_it_is_logged() {
    let mut primary = Primary::new();
    let head = |primary: &Primary| primary.pg.report().last_update;
    let before = head(&primary);
    let many_rows = (0..9).map(|n| put(&format!("row{n}"), 1 << 20)).collect();
    let name = vec![b'n'; 300];
    let bad = [
        vec![write((1 << 20) + 1)],
        many_rows,
        vec![ObjectOp::SetAttr { name, value: Blob::default() }],
        vec![ObjectOp::Stat; 10_000],
    ];
    for ops in bad {
        let outcome = primary.operate(ops);
        assert!(matches!(outcome, ClientOutcome::Failed { error: OpError::Invalid { .. }, .. }), "{outcome:?}");
    }
    assert_eq!(head(&primary), before, "nothing was logged");
    let attr = |n: u8| ObjectOp::SetAttr { name: vec![b'a', n], value: Blob(Bytes::from(vec![1; 60 << 10])) };
    let outcomes: Vec<ClientOutcome> = (1..30).map(|n| primary.operate(vec![attr(n)])).collect();
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, ClientOutcome::Failed { .. })).count();
    assert_eq!(refused, 12, "17 of them are a mebibyte");
}

#[test]
fn a_request_cannot_ask_for_more_than_an_answer_can_carry() {
    let mut primary = Primary::new();
    primary.operate(vec![write(1_000_000)]);
    let read = ObjectOp::Read { offset: 0, length: 1 << 20 };
    assert!(matches!(primary.operate(vec![read.clone(); 16]), ClientOutcome::Done { .. }));
    let outcome = primary.operate(vec![read; 8000]);
    assert!(matches!(outcome, ClientOutcome::Failed { error: OpError::Invalid { .. }, .. }));
}

#[test]
fn a_resend_that_takes_the_place_of_a_waiting_request_gives_that_one_back() {
    let mut primary = Primary::new();
    // Not active: requests wait.
    primary.next_map(|map| {
        let info = map.osds.get_mut(&ME).unwrap();
        info.up_from = map.epoch;
        map.pools.get_mut(&PG.pool).unwrap().kind = PoolKind::Replicated { size: 2, min_size: 2 };
    });
    let request = primary.request(vec![write(1)]);
    for reply_to in [1, 2, 3] {
        primary.step(Input::Client { reply_to: ReplyTo(reply_to), request: request.clone() });
    }
    let busy = |reply_to| (ReplyTo(reply_to), ClientOutcome::Refused(RefusedReason::Busy));
    assert_eq!(primary.answers, [busy(1), busy(2)], "the shell gives back what it holds for them");
}
