//! One placement group alone, told by hand what others would say: promises that need no cluster to be shown. What needs
//! one is in `crates/sim`.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;

use holdfast_map::{ClusterMap, OsdInfo, PgMembers, Pool, PoolKind};
use holdfast_types::{
    ClientId, ClusterId, DiskUuid, Epoch, Incarnation, LogVersion, ObjectName, OsdId, PgId, PoolId, RequestId,
    Timestamp,
};
use holdfast_wire::peer::{
    Activate, ActivateAck, BackfillCursor, BackfillProgress, EntryKind, LogEntry, MissingItem, ObjectPiece, PeerBody,
    PeerMessage, PgInfo, PiecePosition, Pull, Push, PushAck, PushWhat, RepOp, SessionMemory, StoredResults,
};
use holdfast_wire::{Blob, ClientOutcome, ClientReply, ClientRequest, Effect, ObjectOp, RefusedReason, Row};

use crate::api::{Input, Limits, Output, ReplyTo, StoreOp, TxnId, VERSION_ATTR};
use crate::memory::MemoryCollection;
use crate::pg::Pg;

const POOL: PoolId = PoolId(1);
const PG: PgId = PgId { pool: POOL, seed: 0 };
/// What a store takes in one transaction, in bytes kept in its index.
const TX_BYTES_MAX: usize = 8 << 20;

/// The placement group of one OSD, its disk, and what it said.
struct Alone {
    pg: Pg,
    map: ClusterMap,
    members: PgMembers,
    store: MemoryCollection,
    undurable: VecDeque<(TxnId, Vec<StoreOp>)>,
    sent: Vec<(OsdId, PeerMessage)>,
    replies: Vec<(ReplyTo, ClientReply)>,
    gone: bool,
    now: Timestamp,
    /// What requests are about.
    object: &'static str,
}

impl Alone {
    /// OSD 1 among `osds` members; the first is the primary.
    fn member(osds: &[u32], size: u32, limits: Limits) -> Alone {
        let mut map = ClusterMap::empty(ClusterId([7; 16]));
        map.epoch = Epoch(1);
        for id in osds {
            let info = OsdInfo {
                disk: DiskUuid([*id as u8; 16]),
                incarnation: Incarnation(1),
                address: format!("osd-{id}:0"),
                up: true,
                in_cluster: true,
                reweight: 0x1_0000,
                up_from: Epoch(1),
                up_thru: Epoch(1),
                down_at: Epoch(0),
                dead_epoch: Epoch(0),
                formatted_at: Epoch(1),
            };
            map.osds.insert(OsdId(*id), info);
        }
        let kind = PoolKind::Replicated { size, min_size: size.min(2) };
        let (name, application) = ("pool".to_owned(), "test".to_owned());
        map.pools.insert(POOL, Pool { name, kind, pg_num: 1, rule: 0, created: Epoch(1), application });
        map.next_pool = PoolId(2);
        let all: Vec<OsdId> = osds.iter().map(|id| OsdId(*id)).collect();
        let members = PgMembers { up: all.clone(), acting: all };
        let first = Arc::new(map.clone());
        let pg = Pg::create_with(PG, OsdId(1), Incarnation(1), first, members.clone(), limits);
        let mut alone = Alone {
            pg,
            map,
            members,
            store: MemoryCollection::default(),
            undurable: VecDeque::new(),
            sent: Vec::new(),
            replies: Vec::new(),
            gone: false,
            now: Timestamp::ZERO,
            object: "object",
        };
        alone.step(Input::Tick);
        alone.sync();
        alone
    }

    fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut outputs = Vec::new();
            self.pg.step(self.now, input, &self.store, &mut outputs);
            for output in outputs {
                match output {
                    Output::Submit { txn, ops } => {
                        self.store.apply(&ops);
                        self.undurable.push_back((txn, ops));
                    }
                    Output::Send { to, message } => self.sent.push((to, Arc::unwrap_or_clone(message))),
                    Output::Reply { reply_to, reply, .. } => self.replies.push((reply_to, reply)),
                    Output::Wake { at } if at <= self.now => inputs.push_back(Input::Tick),
                    Output::Gone => self.gone = true,
                    _ => {}
                }
            }
        }
    }

    /// All that was submitted becomes durable.
    fn sync(&mut self) {
        while let Some((txn, _)) = self.undurable.back() {
            let txn = *txn;
            self.undurable.clear();
            self.step(Input::Durable(txn));
        }
    }

    fn next_map(&mut self, epochs: u64, change: impl FnOnce(&mut ClusterMap)) {
        self.map.epoch = Epoch(self.map.epoch.0 + epochs);
        change(&mut self.map);
        let (map, members) = (Arc::new(self.map.clone()), self.members.clone());
        self.step(Input::Map { map, members });
        self.sync();
    }

    fn hear(&mut self, from: u32, activation: u64, body: PeerBody) {
        let epoch = self.map.epoch;
        let message = PeerMessage { pg: PG, epoch, interval_start: epoch, body, activation: Some(activation) };
        self.step(Input::Peer { from: OsdId(from), incarnation: Incarnation(1), message });
    }

    fn ask(&mut self, reply_to: u64, tid: u64, ops: Vec<ObjectOp>) {
        let id = RequestId { client: ClientId(9), incarnation: Incarnation(1), tid };
        let (epoch, object) = (self.map.epoch, name(self.object));
        let request = ClientRequest { id, epoch, pg: PG, object, ops, lowest_outstanding_tid: 1, frees_space: None };
        self.step(Input::Client { reply_to: ReplyTo(reply_to), request });
    }

    fn take_replies(&mut self) -> Vec<(u64, ClientOutcome)> {
        self.replies.drain(..).map(|(to, reply)| (to.0, reply.outcome)).collect()
    }
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn append() -> Vec<ObjectOp> {
    vec![ObjectOp::Append { data: bytes::Bytes::from_static(b"x").into() }]
}

pub(crate) fn entry(counter: u64, object: &str, payload: usize) -> LogEntry {
    LogEntry {
        version: LogVersion { epoch: Epoch(1), counter },
        prior_version: LogVersion::ZERO,
        object: name(object),
        kind: EntryKind::Modify,
        request: RequestId { client: ClientId(9), incarnation: Incarnation(1), tid: counter },
        lowest_outstanding_tid: 0,
        results: StoredResults { count: 1, body: vec![1], payload: vec![0; payload] },
        objects_delta: 1,
        bytes_delta: 0,
    }
}

fn activate(alone: &Alone, since: Option<LogVersion>, tail: u64, entries: Vec<LogEntry>) -> Activate {
    let tail = if tail == 0 { LogVersion::ZERO } else { LogVersion { epoch: Epoch(1), counter: tail } };
    let head = entries.last().map_or(tail, |entry| entry.version);
    let info = PgInfo { last_update: head, log_tail: tail, ..PgInfo::empty() };
    let history = alone.pg.history.clone();
    let last_epoch_started = Some(alone.map.epoch);
    Activate { since, entries, info, history, last_epoch_started, dups: Vec::new(), sessions: None }
}

fn rep_op(counter: u64) -> PeerBody {
    let version = |counter| LogVersion { epoch: Epoch(1), counter };
    PeerBody::RepOp(RepOp {
        previous: version(counter - 1),
        entry: entry(counter, "object", 0),
        effects: None,
        committed_to: LogVersion::ZERO,
        trim_to: LogVersion::ZERO,
    })
}

#[test]
fn a_resend_takes_the_place_of_a_request_whose_answer_is_held() {
    let mut alone = Alone::member(&[1], 1, Limits::default());
    alone.ask(1, 1, append());
    alone.ask(2, 2, vec![ObjectOp::AssertAbsent, ObjectOp::Remove]); // fails; held until the append is durable
    alone.ask(3, 2, vec![ObjectOp::AssertAbsent, ObjectOp::Remove]);
    alone.ask(4, 1, append());
    let busy = ClientOutcome::Refused(RefusedReason::Busy);
    assert_eq!(alone.take_replies(), [(2, busy.clone()), (1, busy)], "each sending is answered");
    alone.sync();
    let replies = alone.take_replies();
    assert!(
        matches!(replies.as_slice(), [(4, ClientOutcome::Done { .. }), (3, ClientOutcome::Failed { .. })]),
        "{replies:?}"
    );
}

#[test]
fn a_request_is_refused_when_its_answer_is_forgotten_and_never_executed_again() {
    let limits =
        Limits { log_entries_min: 1, log_entries_max: 10, log_trim_batch: 1, dups_max: 1, ..Limits::default() };
    let mut alone = Alone::member(&[1], 1, limits);
    for tid in 1..=20 {
        alone.ask(tid, tid, append());
        alone.sync();
    }
    alone.take_replies();
    alone.ask(30, 2, append());
    assert_eq!(alone.take_replies(), [(30, ClientOutcome::Refused(RefusedReason::Forgotten))]);
    let loaded = Pg::load_with(
        PG,
        OsdId(1),
        Incarnation(2),
        Arc::new(alone.map.clone()),
        alone.members.clone(),
        limits,
        &alone.store,
    );
    let request = RequestId { client: ClientId(9), incarnation: Incarnation(1), tid: 2 };
    assert_eq!(loaded.unwrap().holding.log.answered(request), crate::log::Answered::Forgotten);
}

#[test]
fn everything_that_waits_is_answered_when_the_pool_goes() {
    let mut alone = Alone::member(&[1], 1, Limits::default());
    alone.ask(1, 1, append());
    alone.map.epoch = Epoch(5);
    alone.ask(2, 2, append()); // for a map that has not come
    alone.map.epoch = Epoch(1);
    assert!(alone.take_replies().is_empty());
    alone.next_map(1, |map| map.pools.clear());
    alone.sync();
    let answered: Vec<u64> = alone.take_replies().into_iter().map(|(to, _)| to).collect();
    assert_eq!(answered, [1, 2]);
    assert!(alone.gone);
}

#[test]
fn a_member_takes_the_log_of_a_newer_activation_although_its_interval_goes_on() {
    let mut alone = Alone::member(&[0, 1, 2], 3, Limits::default());
    let first = activate(&alone, Some(LogVersion::ZERO), 0, vec![entry(1, "a", 0)]);
    alone.hear(0, 1, PeerBody::Activate(first));
    alone.sync();
    let second = activate(&alone, Some(LogVersion::ZERO), 0, vec![entry(1, "a", 0), entry(2, "b", 0)]);
    alone.hear(0, 2, PeerBody::Activate(second));
    alone.sync();
    let (_, last) = alone.sent.last().unwrap();
    let PeerBody::ActivateAck(ack) = &last.body else { panic!("{last:?}") };
    assert_eq!((last.activation, ack.info.last_update.counter), (Some(2), 2));
    // What was under way in the first activation does not count in the second.
    alone.sent.clear();
    alone.hear(0, 1, rep_op(3));
    alone.sync();
    assert_eq!(alone.pg.holding.log.head().counter, 2);
    assert!(alone.sent.is_empty());
}

#[test]
fn a_member_that_missed_maps_says_so_instead_of_dropping_writes() {
    let mut alone = Alone::member(&[0, 1, 2], 3, Limits::default());
    let first = activate(&alone, Some(LogVersion::ZERO), 0, vec![entry(1, "a", 0)]);
    alone.hear(0, 1, PeerBody::Activate(first));
    alone.sync();
    alone.sent.clear();
    alone.next_map(2, |_| {});
    let told = |alone: &mut Alone| -> Vec<PeerBody> { alone.sent.drain(..).map(|(_, message)| message.body).collect() };
    assert_eq!(told(&mut alone), [PeerBody::NotActivated { activation: 1 }], "at once");
    alone.hear(0, 1, rep_op(2));
    assert_eq!(told(&mut alone), [PeerBody::NotActivated { activation: 1 }], "and to each write");
}

#[test]
fn no_transaction_of_an_activation_is_too_large_and_each_leaves_a_copy_that_loads() {
    for whole in [true, false] {
        let mut alone = Alone::member(&[0, 1, 2], 3, Limits::default());
        let entries = (11..3_000).map(|counter| entry(counter, &format!("{counter:0>500}"), 4_096)).collect();
        let since = (!whole).then_some(LogVersion::ZERO);
        let mut told = activate(&alone, since, if whole { 10 } else { 0 }, entries);
        if whole {
            told.dups = (1..=10).map(|counter| entry(counter, "dup", 4_096)).collect();
            let executed: Vec<u64> = (1 << 40..(1 << 40) + 1_024).collect(); // as many as an earlier build kept
            let session =
                |client| SessionMemory { client: ClientId(client), executed: executed.clone(), ..Default::default() };
            told.sessions = Some((100..1_124).map(session).collect());
        }
        let mut disk = alone.store.clone();
        alone.hear(0, 1, PeerBody::Activate(told));
        let submitted: Vec<Vec<StoreOp>> = alone.undurable.iter().map(|(_, ops)| ops.clone()).collect();
        assert!(submitted.len() > 10);
        for ops in submitted {
            let bytes =
                |op: &StoreOp| if let StoreOp::PutMeta { key, value } = op { key.len() + value.len() } else { 0 };
            assert!(ops.iter().map(bytes).sum::<usize>() < TX_BYTES_MAX / 2);
            disk.apply(&ops);
            let (map, members) = (Arc::new(alone.map.clone()), alone.members.clone());
            let loaded = Pg::load_with(PG, OsdId(1), Incarnation(2), map, members, Limits::default(), &disk).unwrap();
            let complete = loaded.holding.last_backfill == BackfillCursor::Complete;
            assert_eq!(complete, !whole, "a copy that is being replaced never counts as complete");
        }
        alone.sync();
        assert_eq!(alone.pg.holding.log.head().counter, 2_999);
        assert_eq!(alone.store, disk);
    }
}

#[test]
fn a_log_that_filled_up_before_it_could_commit_takes_writes_again() {
    let limits = Limits { log_entries_min: 2, log_entries_max: 4, log_trim_batch: 1, ..Limits::default() };
    let mut alone = Alone::member(&[1], 1, limits);
    let refused = ClientOutcome::Refused(RefusedReason::Busy);
    for tid in 1..=20 {
        alone.ask(tid, tid, append()); // nothing becomes durable
    }
    assert!(alone.take_replies().iter().any(|(_, outcome)| *outcome == refused));
    alone.sync();
    alone.take_replies();
    alone.ask(30, 30, append());
    alone.sync();
    assert!(matches!(alone.take_replies().as_slice(), [(30, ClientOutcome::Done { .. })]));
}

#[test]
fn the_log_is_trimmed_past_an_object_that_stays_missing() {
    let limits = Limits { log_entries_min: 2, log_entries_max: 2, log_trim_batch: 1, ..Limits::default() };
    let mut alone = Alone::member(&[1], 1, limits);
    alone.ask(1, 1, append());
    alone.sync();
    let key = crate::ObjectKey::of(&name("object"));
    alone.store.objects.get_mut(&key).unwrap().rotten = true;
    alone.ask(100, 100, vec![ObjectOp::Read { offset: 0, length: 1 }]);
    alone.sync();
    assert!(alone.pg.holding.missing.contains(&key));
    alone.object = "other";
    for tid in 2..50 {
        alone.ask(tid, tid, append());
        alone.sync();
    }
    assert!(alone.pg.holding.log.len() < 10, "{} entries", alone.pg.holding.log.len());
    let replies = alone.take_replies();
    let done = |(to, outcome): &(u64, ClientOutcome)| *to == 100 || matches!(outcome, ClientOutcome::Done { .. });
    assert!(replies.len() >= 49 && replies.iter().all(done), "{replies:?}");
}

#[test]
fn a_missing_object_is_removed_although_there_is_no_room_to_fetch_it() {
    let mut alone = Alone::member(&[1], 1, Limits::default());
    alone.ask(1, 1, append());
    alone.sync();
    alone.take_replies();
    let key = crate::ObjectKey::of(&name("object"));
    let need = alone.pg.holding.log.head();
    alone.pg.active().unwrap().clean = false;
    alone.pg.holding.missing.insert(key.clone(), crate::missing::Lack { need, have: LogVersion::ZERO });
    alone.store.full = true;
    alone.ask(2, 2, vec![ObjectOp::Remove]);
    alone.sync();
    assert!(matches!(alone.take_replies().as_slice(), [(2, ClientOutcome::Done { .. })]));
    assert!(!alone.store.objects.contains_key(&key));
    let entry = alone.pg.holding.log.entries().next_back().unwrap();
    assert_eq!((entry.kind, entry.prior_version), (EntryKind::Delete, need));
    alone.ask(3, 2, vec![ObjectOp::Remove]);
    assert!(matches!(alone.take_replies().as_slice(), [(3, ClientOutcome::Done { .. })]), "exactly once");
}

#[test]
fn a_placement_group_whose_only_worry_is_an_unfound_object_is_idle() {
    let mut alone = Alone::member(&[1], 1, Limits::default());
    alone.ask(1, 1, append());
    alone.sync();
    let key = crate::ObjectKey::of(&name("object"));
    alone.store.objects.get_mut(&key).unwrap().rotten = true;
    for reply_to in [2, 3] {
        alone.ask(reply_to, reply_to, vec![ObjectOp::Read { offset: 0, length: 1 }]);
        alone.sync();
    }
    let unreadable = |(_, outcome): &(u64, ClientOutcome)| matches!(outcome, ClientOutcome::Failed { .. });
    assert_eq!(alone.take_replies().iter().filter(|reply| unreadable(reply)).count(), 2);
    assert!(!alone.pg.active().unwrap().recovery.is_busy());
    assert_eq!(alone.pg.lacks_only().map(|lacked| lacked.into_keys().collect()), Some(vec![key]));
}

#[test]
fn what_comes_before_its_map_is_kept_up_to_a_bound_of_bytes() {
    let mut alone = Alone::member(&[0, 1, 2], 3, Limits::default());
    let epoch = alone.map.epoch.next();
    for counter in 1..100 {
        let PeerBody::RepOp(op) = rep_op(counter) else { unreachable!("it makes writes") };
        let data = Blob::from(bytes::Bytes::from(vec![7; 1 << 20]));
        let body = PeerBody::RepOp(RepOp { effects: Some(vec![Effect::Write { offset: 0, data }]), ..op });
        for body in [body, PeerBody::QueryInfo] {
            let message = PeerMessage { pg: PG, epoch, interval_start: epoch, body, activation: Some(1) };
            alone.step(Input::Peer { from: OsdId(0), incarnation: Incarnation(1), message });
        }
    }
    let kept = alone.pg.early.iter().filter(|(.., message)| matches!(message.body, PeerBody::RepOp(_))).count();
    assert!((1..=4).contains(&kept), "{kept} MiB");
    assert_eq!(alone.pg.early.len() - kept, 99, "what brings no bytes is kept");
}

#[test]
fn a_copy_that_is_told_a_log_while_too_few_serve_counts_as_one_that_has_it() {
    let mut alone = Alone::member(&[0, 1, 2], 3, Limits::default());
    let mut told = activate(&alone, Some(LogVersion::ZERO), 0, vec![entry(1, "o", 0)]);
    told.last_epoch_started = None;
    told.info.last_epoch_started = Epoch(1);
    alone.hear(0, 1, PeerBody::Activate(told));
    alone.sync();
    assert_eq!(alone.pg.holding.last_epoch_started, Epoch(1));
}

#[test]
fn a_member_tells_what_it_misses_in_messages_of_bounded_size() {
    let mut alone = Alone::member(&[0, 1, 2], 3, Limits { piece_bytes: 1_000, ..Limits::default() });
    let entries = (1..200).map(|counter| entry(counter, &format!("{counter:0>100}"), 0)).collect();
    let told = activate(&alone, Some(LogVersion::ZERO), 0, entries);
    alone.hear(0, 1, PeerBody::Activate(told));
    alone.sync();
    let mut acks = Vec::new();
    for (_, message) in alone.sent.drain(..) {
        if let PeerBody::ActivateAck(ack) = message.body {
            acks.push(ack);
        }
    }
    assert!(acks.len() > 10 && acks.iter().all(|ack| ack.missing.len() < 10), "{} messages", acks.len());
    // Out of order, twice, and after a part of what it missed before.
    let mut partial = crate::peering::PartialMissing::default();
    let stale = ActivateAck { missing_count: Some(198), ..acks[3].clone() };
    assert!(partial.take(stale).is_none());
    let last = acks.remove(0);
    for ack in acks.iter().rev().chain(&acks) {
        assert!(partial.take(ack.clone()).is_none());
    }
    assert_eq!(partial.take(last), Some(alone.pg.holding.missing.clone()));
}

/// A piece of "object" in a version of epoch 1.
fn push(transfer: u64, counter: u64, from: u64, next: Option<u64>) -> PeerBody {
    let position = |bytes| PiecePosition { bytes, row: None };
    let version = LogVersion { epoch: Epoch(1), counter };
    let attr = Row { key: VERSION_ATTR.to_vec(), value: crate::exec::version_value(version).into() };
    let piece = ObjectPiece {
        object: name("object"),
        version,
        position: position(from),
        next: next.map(position),
        size: 2,
        data: bytes::Bytes::from_static(b"x").into(),
        rows: Vec::new(),
        attrs: if next.is_none() { vec![attr] } else { Vec::new() },
    };
    PeerBody::Push(Push { transfer, backfill: false, what: PushWhat::Piece(piece) })
}

impl Alone {
    /// A replica of a log of one entry, whose object it misses.
    fn missing_one() -> Alone {
        let mut alone = Alone::member(&[0, 1, 2], 3, Limits::default());
        let told = activate(&alone, Some(LogVersion::ZERO), 0, vec![entry(1, "object", 0)]);
        alone.hear(0, 1, PeerBody::Activate(told));
        alone.sync();
        alone.sent.clear();
        alone
    }

    fn pushed(&mut self, body: PeerBody) -> Vec<PushAck> {
        self.hear(0, 1, body);
        self.sync();
        let acks = self.sent.drain(..).filter_map(|(_, message)| match message.body {
            PeerBody::PushAck(ack) => Some(ack),
            _ => None,
        });
        acks.collect()
    }
}

#[test]
fn a_late_piece_of_an_ended_transfer_does_not_disturb_the_next_one() {
    let mut alone = Alone::missing_one();
    assert_eq!(alone.pushed(push(5, 1, 0, Some(1))).len(), 1);
    assert_eq!(alone.pushed(push(7, 1, 0, Some(1))).len(), 1);
    assert_eq!(alone.pushed(push(5, 1, 0, Some(1))), [], "it would begin the object anew");
    let last = PushAck { transfer: 7, next: None, no_room: None };
    assert_eq!(alone.pushed(push(7, 1, 1, None)), [last]);
    let key = crate::ObjectKey::of(&name("object"));
    assert_eq!(alone.store.objects[&key].data, b"xx");
    assert!(alone.pg.holding.missing.is_empty());
}

#[test]
fn a_newer_version_than_the_one_that_is_missed_is_taken() {
    let mut alone = Alone::missing_one();
    alone.hear(0, 1, rep_op(2)); // its log only
    assert_eq!(alone.pushed(push(5, 3, 0, Some(1))), [], "R4");
    assert_eq!(alone.pushed(push(5, 2, 0, Some(1))).len(), 1);
    assert_eq!(alone.pushed(push(5, 2, 1, None)).len(), 1);
    assert!(alone.pg.holding.missing.is_empty());
}

#[test]
fn a_piece_without_room_is_refused_and_not_taken() {
    let mut alone = Alone::missing_one();
    alone.store.full = true;
    let start = Some(PiecePosition::default());
    let refused = PushAck { transfer: 5, next: start, no_room: Some(true) };
    assert_eq!(alone.pushed(push(5, 1, 0, Some(1))), [refused]);
    alone.store.spare = 10;
    assert!(alone.pushed(push(6, 1, 0, Some(1)))[0].no_room.is_none());
}

/// A copy that is filled from the beginning; its log ends at `head`.
fn being_filled(head: u64) -> Alone {
    let mut alone = Alone::member(&[0, 1, 2], 3, Limits::default());
    let entries: Vec<LogEntry> = (1..=head).map(|counter| entry(counter, "elsewhere", 0)).collect();
    alone.pg.holding.begin_filling();
    let told = activate(&alone, Some(LogVersion::ZERO), 0, entries);
    alone.hear(0, 1, PeerBody::Activate(told));
    alone.sync();
    assert_eq!(alone.pg.holding.last_backfill, BackfillCursor::START);
    alone
}

/// The effects of a write that makes `object` at this version.
fn made(counter: u64, object: &str) -> PeerBody {
    let PeerBody::RepOp(op) = rep_op(counter) else { unreachable!("it makes writes") };
    let version = op.entry.version;
    let value = crate::exec::version_value(version).into();
    let effects = vec![
        Effect::Write { offset: 0, data: Blob::from(bytes::Bytes::from_static(b"new")) },
        Effect::SetAttr { name: VERSION_ATTR.to_vec(), value },
    ];
    PeerBody::RepOp(RepOp { entry: LogEntry { object: name(object), ..op.entry }, effects: Some(effects), ..op })
}

#[test]
fn what_overtook_the_word_that_nobody_has_an_object_is_not_missing() {
    let mut alone = being_filled(1);
    alone.hear(0, 1, made(2, "k"));
    alone.sync();
    let need = LogVersion { epoch: Epoch(1), counter: 1 };
    let lacking = vec![MissingItem { object: name("k"), need, have: LogVersion::ZERO }];
    let cursor = BackfillCursor::Complete;
    let progress = BackfillProgress { cursor, transfer_floor: 0, lacking: Some(lacking) };
    alone.hear(0, 1, PeerBody::BackfillProgress(progress));
    alone.sync();
    assert!(alone.pg.holding.last_backfill.is_complete());
    assert_eq!(alone.pg.lacked(), std::collections::BTreeMap::new());
    assert!(alone.store.objects.contains_key(&crate::ObjectKey::of(&name("k"))));
}

#[test]
fn what_nobody_has_is_missing_though_the_log_here_tells_of_a_newer_write_that_was_not_carried_out() {
    for stored in [None, Some(1)] {
        let mut alone = being_filled(2); // of entry 2 the log tells alone
        let key = crate::ObjectKey::of(&name("elsewhere"));
        if let Some(counter) = stored {
            let PeerBody::RepOp(op) = made(counter, "elsewhere") else { unreachable!("it makes writes") };
            for effect in op.effects.unwrap() {
                alone.store.apply(&[StoreOp::Object { key: key.clone(), effect }]);
            }
        }
        let item = MissingItem { object: name("elsewhere"), need: crate::missing::UNNAMED, have: LogVersion::ZERO };
        let cursor = BackfillCursor::Complete;
        let progress = BackfillProgress { cursor, transfer_floor: 0, lacking: Some(vec![item]) };
        alone.hear(0, 1, PeerBody::BackfillProgress(progress));
        alone.sync();
        let lacked = alone.pg.holding.missing.get(&key).expect("it is not here in that version");
        assert_eq!(lacked.need, LogVersion { epoch: Epoch(1), counter: 2 });
    }
}

#[test]
fn nothing_is_left_of_what_the_log_says_was_deleted_when_nobody_has_it() {
    let mut alone = being_filled(1);
    let (key, PeerBody::RepOp(op)) = (crate::ObjectKey::of(&name("k")), made(2, "k")) else { unreachable!() };
    // Of the delete the log tells alone; the object is still here.
    alone.store.apply(&[StoreOp::Object { key: key.clone(), effect: op.effects.clone().unwrap().remove(0) }]);
    let entry = LogEntry { kind: EntryKind::Delete, ..op.entry.clone() };
    alone.hear(0, 1, PeerBody::RepOp(RepOp { entry, effects: None, ..op }));
    alone.sync();
    assert!(alone.store.objects.contains_key(&key) && alone.pg.holding.log.head().counter == 2);
    let item = MissingItem { object: name("k"), need: crate::missing::UNNAMED, have: LogVersion::ZERO };
    let cursor = BackfillCursor::Complete;
    alone.hear(
        0,
        1,
        PeerBody::BackfillProgress(BackfillProgress { cursor, transfer_floor: 0, lacking: Some(vec![item]) }),
    );
    alone.sync();
    assert!(!alone.store.objects.contains_key(&key) && !alone.pg.holding.missing.contains(&key));
}

#[test]
fn an_older_version_than_the_one_that_is_missing_is_not_taken_for_it() {
    let mut alone = being_filled(2);
    let key = crate::ObjectKey::of(&name("elsewhere"));
    let item = MissingItem { object: name("elsewhere"), need: crate::missing::UNNAMED, have: LogVersion::ZERO };
    let cursor = BackfillCursor::Complete;
    let progress = BackfillProgress { cursor, transfer_floor: 0, lacking: Some(vec![item]) };
    alone.hear(0, 1, PeerBody::BackfillProgress(progress));
    alone.sync();
    let version = LogVersion { epoch: Epoch(1), counter: 1 };
    let piece = ObjectPiece {
        object: name("elsewhere"),
        version,
        position: PiecePosition::default(),
        next: None,
        size: 1,
        data: Blob::from(bytes::Bytes::from_static(b"1")),
        rows: Vec::new(),
        attrs: vec![Row { key: VERSION_ATTR.to_vec(), value: crate::exec::version_value(version).into() }],
    };
    let acks = alone.pushed(PeerBody::Push(Push { transfer: 1, backfill: false, what: PushWhat::Piece(piece) }));
    assert!(acks.is_empty(), "it is not here");
    assert!(!alone.store.objects.contains_key(&key) && alone.pg.holding.missing.contains(&key));
}

#[test]
fn a_copy_that_is_told_a_whole_log_keeps_nothing_that_a_divergent_write_made() {
    let mut alone = being_filled(1);
    let (k, kept) = (crate::ObjectKey::of(&name("k")), crate::ObjectKey::of(&name("kept")));
    alone.hear(0, 1, made(2, "kept"));
    alone.hear(0, 1, made(3, "k"));
    alone.sync();
    assert!(alone.store.objects.contains_key(&k));
    let entries = vec![entry(1, "elsewhere", 0), entry(2, "kept", 0)];
    alone.hear(0, 2, PeerBody::Activate(activate(&alone, None, 0, entries)));
    alone.sync();
    assert_eq!(alone.pg.holding.log.head().counter, 2);
    assert!(!alone.store.objects.contains_key(&k), "version 3 may be given again");
    assert!(alone.store.objects.contains_key(&kept));
}

#[test]
fn a_copy_being_filled_keeps_nothing_that_a_divergent_write_made_beyond_its_cursor() {
    let mut alone = being_filled(1);
    let (k, old) = (crate::ObjectKey::of(&name("k")), crate::ObjectKey::of(&name("old")));
    alone.hear(0, 1, made(2, "k"));
    // Of this one the log tells alone; what is here is older, and perhaps nowhere else.
    let PeerBody::RepOp(op) = made(3, "old") else { unreachable!("it makes writes") };
    alone.store.apply(&[StoreOp::Object { key: old.clone(), effect: op.effects.clone().unwrap().remove(0) }]);
    alone.hear(0, 1, PeerBody::RepOp(RepOp { effects: None, ..op }));
    alone.sync();
    assert!(alone.store.objects.contains_key(&k) && alone.pg.holding.log.head().counter == 3);
    let told = activate(&alone, Some(LogVersion { epoch: Epoch(1), counter: 1 }), 0, Vec::new());
    alone.hear(
        0,
        2,
        PeerBody::Activate(Activate {
            info: PgInfo { last_update: entry(1, "k", 0).version, ..told.info.clone() },
            ..told
        }),
    );
    alone.sync();
    assert_eq!(alone.pg.holding.log.head().counter, 1);
    assert!(!alone.store.objects.contains_key(&k), "version 2 may be given again");
    assert!(alone.store.objects.contains_key(&old));
}

#[test]
fn a_copy_lacks_nothing_that_its_log_does_not_tell_of_because_it_was_asked_for_it() {
    let mut alone = Alone::missing_one();
    let key = crate::ObjectKey::of(&name("older"));
    alone.store.apply(&[StoreOp::Object { key: key.clone(), effect: Effect::Touch }]);
    alone.store.objects.get_mut(&key).unwrap().unreadable = true;
    for (counter, lacks) in [(2, false), (1, true)] {
        let version = LogVersion { epoch: Epoch(1), counter };
        alone.hear(0, 1, PeerBody::Pull(Pull { object: name("older"), version, position: PiecePosition::default() }));
        alone.sync();
        assert_eq!(alone.pg.holding.missing.contains(&key), lacks, "{version:?}");
    }
}
