//! Clients: they make requests, send them again until they are answered, and remember all of it for the checkers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use holdfast_map::ClusterMap;
use holdfast_types::{ClientId, Epoch, Incarnation, LogVersion, ObjectName, RequestId, Timestamp};
use holdfast_wire::{Blob, ClientOutcome, ClientReply, ClientRequest, ObjectOp, OpResult, RefusedReason, Row};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::config::Config;
use crate::monitor::POOL;

/// The row that counters live in.
const COUNTER: &[u8] = b"count";
/// The attribute that must agree with the bytes.
const TAG: &[u8] = b"tag";
/// Rows that a register may have.
const NOTES: u64 = 3;

/// What a request does, in the checkers' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Replaces the register's value; with a version, only if that is its version.
    Write { if_version: Option<LogVersion> },
    /// Removes the register.
    Remove,
    /// Reads the register.
    Read,
    /// Adds one.
    Increment,
    /// Reads the counter.
    ReadCounter,
    /// Adds its own number at the end of the list.
    Append,
    /// Reads the list.
    ReadList,
}

impl Act {
    /// Whether it changes anything.
    pub fn changes(self) -> bool {
        !matches!(self, Act::Read | Act::ReadCounter | Act::ReadList)
    }
}

/// One request from its invocation to its answer.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub id: RequestId,
    pub object: ObjectName,
    pub act: Act,
    /// Unique over all clients.
    pub value: u64,
    pub invoked: Timestamp,
    pub answer: Option<(Timestamp, ClientOutcome)>,
}

/// What a client makes of "full".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// It cannot be: a broken promise.
    Never,
    /// There will be room soon: the same request is sent again.
    SendAgain,
    /// It is the answer, as for the client library.
    GiveUp,
}

/// A request without an answer.
#[derive(Debug)]
struct Outstanding {
    operation: usize,
    request: ClientRequest,
    sent: Timestamp,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub id: ClientId,
    pub epoch: Epoch,
    names: Arc<Names>,
    when_full: WhenFull,
    /// Whether it changes nothing under faults.
    reads_only: bool,
    /// Times that a full cluster refused a write.
    pub refused_full: u64,
    next_tid: u64,
    outstanding: BTreeMap<u64, Outstanding>,
    /// The newest version that this client has seen of each register.
    seen: BTreeMap<ObjectName, LogVersion>,
    /// Objects of removals that were refused in the end: they may have been executed before.
    removed_or_not: BTreeSet<ObjectName>,
}

/// The objects that clients work on.
#[derive(Debug)]
pub(crate) struct Names {
    registers: Vec<ObjectName>,
    counters: Vec<ObjectName>,
    lists: Vec<ObjectName>,
    /// What the sessions that fence each other write.
    pub volumes: Vec<ObjectName>,
}

impl Names {
    /// As many of each kind as the configuration says, all in the first few placement groups.
    pub fn new(config: &Config, map: &ClusterMap) -> Names {
        let used = |name: &ObjectName| map.pg_of(POOL, name).is_none_or(|pg| pg.seed < config.pgs_used);
        let some = |kind: &str| {
            let names = (0..10_000).filter_map(|number| ObjectName::new(format!("{kind}-{number}")).ok());
            names.filter(used).take(config.objects as usize).collect()
        };
        Names { registers: some("register"), counters: some("counter"), lists: some("list"), volumes: some("volume") }
    }
}

/// The bytes of a register: its value over and over.
fn register_bytes(value: u64, words: usize) -> Bytes {
    value.to_le_bytes().repeat(words).into()
}

/// The value that a read of a register shows.
pub(crate) fn register_value(results: &[OpResult]) -> Result<u64, String> {
    let [OpResult::Data(data), OpResult::Attr(Some(tag))] = results else {
        return Err(format!("a read answered {results:?}"));
    };
    let value = u64::from_le_bytes(tag.as_ref().try_into().map_err(|_| "the tag is not a number".to_owned())?);
    if data.is_empty() || data.as_ref().chunks(8).any(|word| word != value.to_le_bytes()) {
        return Err(format!("the register's bytes do not agree with its tag {value}: {data:?}"));
    }
    Ok(value)
}

/// The number in the only row that was asked for; 0 without a row.
pub(crate) fn counter_value(results: &[OpResult]) -> Result<i64, String> {
    match results {
        [OpResult::Counter(value)] => Ok(*value),
        [OpResult::RowValues(values)] => match values.first() {
            Some(Some(value)) => value.as_ref().try_into().map(i64::from_le_bytes).map_err(|error| error.to_string()),
            _ => Ok(0),
        },
        _ => Err(format!("a counter answered {results:?}")),
    }
}

/// The numbers in a list object.
pub(crate) fn list_values(results: &[OpResult]) -> Result<Vec<u64>, String> {
    let [OpResult::Data(data)] = results else { return Err(format!("a list answered {results:?}")) };
    if data.len() % 8 != 0 {
        return Err(format!("a list has {} bytes", data.len()));
    }
    let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or(0);
    Ok(data.as_ref().chunks(8).map(word).collect())
}

/// Requests that may have changed something in the same placement group after this one was made.
fn changes_after(history: &[Operation], since: Timestamp, in_group: impl Fn(&ObjectName) -> bool) -> usize {
    let executed = history.iter().filter(|other| match &other.answer {
        Some((_, ClientOutcome::Refused(_))) => false,
        Some((at, _)) => *at >= since,
        None => true,
    });
    executed.filter(|other| other.act.changes() && in_group(&other.object)).count()
}

/// What the pool of the clients promises: of how many changes each placement group keeps the results at least, and which
/// one an object is in.
pub(crate) struct Promised<'a> {
    pub dups_max: usize,
    pub map: &'a ClusterMap,
    /// Whether the pool is split: a placement group then remembers what was done in the one that it is of, too.
    pub splits: bool,
    /// Whether others than these clients change things in the pool: of what they do nothing is known here.
    pub is_shared: bool,
}

impl Promised<'_> {
    /// Whether the result of this request may be forgotten by now.
    fn may_be_forgotten(&self, history: &[Operation], operation: usize) -> bool {
        let Some(Operation { object, invoked, .. }) = history.get(operation) else { return false };
        let group = self.map.pg_of(POOL, object);
        let in_group = |other: &ObjectName| self.splits || self.map.pg_of(POOL, other) == group;
        // (It is among those itself.)
        self.is_shared || changes_after(history, *invoked, in_group) > self.dups_max
    }
}

impl Client {
    pub fn new(id: u64, names: Arc<Names>, when_full: WhenFull, reads_only: bool) -> Client {
        Client {
            id: ClientId(id),
            reads_only,
            epoch: Epoch(1),
            names,
            when_full,
            refused_full: 0,
            next_tid: 1,
            outstanding: BTreeMap::new(),
            seen: BTreeMap::new(),
            removed_or_not: BTreeSet::new(),
        }
    }

    /// The object of a request without an answer, and what is done to it.
    pub fn asked(&self, tid: u64, history: &[Operation]) -> Option<(ObjectName, Act)> {
        let operation = history.get(self.outstanding.get(&tid)?.operation)?;
        Some((operation.object.clone(), operation.act))
    }

    /// The objects of requests that were not answered yet.
    pub fn waited_for(&self, history: &[Operation]) -> Vec<ObjectName> {
        self.outstanding.keys().filter_map(|tid| self.asked(*tid, history)).map(|(object, _)| object).collect()
    }

    /// Whether it does not know if a removal of this object was executed: it waits for the answer, or got none that says so.
    pub fn may_have_removed(&self, object: &ObjectName, history: &[Operation]) -> bool {
        let asked = self.outstanding.values().filter_map(|outstanding| history.get(outstanding.operation));
        let waits = asked.into_iter().any(|operation| operation.act == Act::Remove && operation.object == *object);
        waits || self.removed_or_not.contains(object)
    }

    /// Whether it changes nothing under faults.
    pub fn reads_only(&self) -> bool {
        self.reads_only
    }

    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Starts a random request.
    pub fn start(&mut self, config: &Config, now: Timestamp, rng: &mut SmallRng, history: &mut Vec<Operation>) -> u64 {
        let names = Arc::clone(&self.names);
        let number = rng.random_range(0..config.objects) as usize;
        let name = |kind: &[ObjectName]| kind[number].clone();
        let choice = if self.reads_only { rng.random_range(48..66) } else { rng.random_range(0..100) };
        let (object, act) = match choice {
            65 if self.reads_only => (name(&names.counters), Act::ReadCounter),
            48..82 if config.removes => (name(&names.registers), Act::Remove),
            0..30 => (name(&names.registers), Act::Write { if_version: None }),
            30..38 => {
                let object = name(&names.registers);
                let if_version = self.seen.get(&object).copied().or(Some(LogVersion::ZERO));
                (object, Act::Write { if_version })
            }
            38..48 => (name(&names.registers), Act::Remove),
            48..65 => (name(&names.registers), Act::Read),
            65..77 => (name(&names.counters), Act::Increment),
            77..82 => (name(&names.counters), Act::ReadCounter),
            82..94 => (name(&names.lists), Act::Append),
            _ => (name(&names.lists), Act::ReadList),
        };
        self.start_with(object, act, rng.random_range(1..config.words_max), now, history)
    }

    /// Starts the removal of every register; gives the request numbers.
    pub fn remove_all(&mut self, now: Timestamp, history: &mut Vec<Operation>) -> Vec<u64> {
        let names = Arc::clone(&self.names);
        names.registers.iter().map(|name| self.start_with(name.clone(), Act::Remove, 0, now, history)).collect()
    }

    /// Starts a small write of every register; gives the request numbers.
    pub fn write_all(&mut self, now: Timestamp, history: &mut Vec<Operation>) -> Vec<u64> {
        let names = Arc::clone(&self.names);
        let write = Act::Write { if_version: None };
        names.registers.iter().map(|name| self.start_with(name.clone(), write, 4, now, history)).collect()
    }

    /// Starts a read of every object; gives the request numbers.
    pub fn read_all(&mut self, now: Timestamp, history: &mut Vec<Operation>) -> Vec<u64> {
        let names = Arc::clone(&self.names);
        let kinds = [(&names.registers, Act::Read), (&names.counters, Act::ReadCounter), (&names.lists, Act::ReadList)];
        let mut tids = Vec::new();
        for (objects, act) in kinds {
            for object in objects {
                tids.push(self.start_with(object.clone(), act, 0, now, history));
            }
        }
        tids
    }

    fn start_with(
        &mut self,
        object: ObjectName,
        act: Act,
        words: usize,
        now: Timestamp,
        history: &mut Vec<Operation>,
    ) -> u64 {
        let value = history.len() as u64 + 1;
        let number = Bytes::copy_from_slice(&value.to_le_bytes());
        let whole = |offset| ObjectOp::Read { offset, length: 1 << 20 };
        let ops = match act {
            Act::Write { if_version } => {
                let assert = if_version.map(ObjectOp::AssertVersion);
                // Rows that no read shows: only the comparison of copies sees what is wrong with them.
                let note = |value: u64| format!("note-{}", value % NOTES).into_bytes();
                let write = [
                    ObjectOp::WriteFull { data: register_bytes(value, words.max(1)).into() },
                    ObjectOp::PutRows { rows: vec![Row { key: note(value), value: number.clone().into() }] },
                    ObjectOp::DeleteRows { keys: vec![note(value + 1).into()] },
                    ObjectOp::SetAttr { name: TAG.to_vec(), value: number.into() },
                ];
                assert.into_iter().chain(write).collect()
            }
            Act::Remove => vec![ObjectOp::Remove],
            Act::Read => vec![whole(0), ObjectOp::GetAttr { name: TAG.to_vec() }],
            Act::Increment => vec![ObjectOp::AddRow { key: COUNTER.to_vec(), delta: 1 }],
            Act::ReadCounter => vec![ObjectOp::GetRows { keys: vec![COUNTER.to_vec().into()] }],
            Act::Append => vec![ObjectOp::Append { data: Blob(number) }],
            Act::ReadList => vec![whole(0)],
        };
        let tid = self.next_tid;
        self.next_tid += 1;
        let id = RequestId { client: self.id, incarnation: Incarnation(1), tid };
        let lowest = self.outstanding.keys().next().copied().unwrap_or(tid);
        let request = ClientRequest {
            id,
            epoch: self.epoch,
            pg: holdfast_types::PgId { pool: POOL, seed: 0 },
            object: object.clone(),
            ops,
            lowest_outstanding_tid: lowest,
            frees_space: None,
        };
        self.outstanding.insert(tid, Outstanding { operation: history.len(), request, sent: now });
        history.push(Operation { id, object, act, value, invoked: now, answer: None });
        tid
    }

    /// The request as it is to be sent now.
    pub fn request(&mut self, tid: u64, now: Timestamp) -> Option<ClientRequest> {
        let outstanding = self.outstanding.get_mut(&tid)?;
        outstanding.sent = now;
        outstanding.request.epoch = self.epoch;
        Some(outstanding.request.clone())
    }

    /// Requests that have not been answered for too long.
    pub fn late(&self, now: Timestamp, patience: std::time::Duration) -> Vec<u64> {
        let late = self.outstanding.iter().filter(|(_, outstanding)| now.since(outstanding.sent) >= patience);
        late.map(|(tid, _)| *tid).collect()
    }

    /// Takes an answer. An error is a violation.
    pub fn answered(
        &mut self,
        reply: ClientReply,
        now: Timestamp,
        promised: &Promised<'_>,
        history: &mut [Operation],
    ) -> Result<(), String> {
        let Some(asked) = self.outstanding.get(&reply.id.tid) else { return Ok(()) };
        let changes = history.get(asked.operation).is_some_and(|operation| operation.act.changes());
        let removes = history.get(asked.operation).is_some_and(|operation| operation.act == Act::Remove);
        match reply.outcome {
            // It was sent again since, under a newer map: another primary may execute that, and knows nothing of this answer
            // (C4). As the client library does, it goes by the answer to the later sending.
            ClientOutcome::Failed { .. } if changes && reply.epoch < asked.request.epoch => return Ok(()),
            ClientOutcome::Refused(RefusedReason::WrongPrimary | RefusedReason::Busy) => {
                self.epoch = self.epoch.max(reply.epoch);
                return Ok(());
            }
            // A removal is never refused as full.
            ClientOutcome::Refused(RefusedReason::Full) if self.when_full != WhenFull::Never && changes && !removes => {
                self.refused_full += 1;
                if self.when_full == WhenFull::SendAgain {
                    self.epoch = self.epoch.max(reply.epoch);
                    return Ok(());
                }
            }
            // It was executed, and waited (for a copy of its object) until more changes than are remembered came after it.
            ClientOutcome::Refused(RefusedReason::Forgotten)
                if changes && promised.may_be_forgotten(history, asked.operation) => {}
            ClientOutcome::Refused(reason) => return Err(format!("request {} was refused: {reason}", reply.id)),
            ClientOutcome::Done { .. } | ClientOutcome::Failed { .. } => {}
        }
        let Some(outstanding) = self.outstanding.remove(&reply.id.tid) else { return Ok(()) };
        let Some(operation) = history.get_mut(outstanding.operation) else { return Ok(()) };
        if let (ClientOutcome::Done { version, .. }, Act::Read | Act::Write { .. }) = (&reply.outcome, operation.act) {
            self.seen.insert(operation.object.clone(), *version);
        }
        if operation.act == Act::Remove && matches!(reply.outcome, ClientOutcome::Refused(_)) {
            self.removed_or_not.insert(operation.object.clone());
        }
        operation.answer = Some((now, reply.outcome));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::ClusterId;
    use holdfast_wire::OpError;

    use super::*;

    fn forgotten(changes_after: usize, reads_after: usize) -> Result<(), String> {
        let config = Config::storm();
        let names = Names {
            registers: vec![ObjectName::new("register").expect("a name")],
            counters: Vec::new(),
            lists: Vec::new(),
            volumes: Vec::new(),
        };
        let mut client = Client::new(1, Arc::new(names), WhenFull::Never, false);
        let (mut history, now) = (Vec::new(), Timestamp::ZERO);
        let object = client.names.registers[0].clone();
        let tid = client.start_with(object.clone(), Act::Remove, 0, now, &mut history);
        for act in std::iter::repeat_n(Act::Remove, changes_after).chain(std::iter::repeat_n(Act::Read, reads_after)) {
            client.start_with(object.clone(), act, 0, now, &mut history);
        }
        let id = RequestId { client: client.id, incarnation: Incarnation(1), tid };
        let outcome = ClientOutcome::Refused(RefusedReason::Forgotten);
        let map = ClusterMap::empty(ClusterId([1; 16]));
        let (dups_max, splits, is_shared) = (config.limits.dups_max, false, false);
        let promised = Promised { dups_max, map: &map, splits, is_shared };
        let answered = client.answered(ClientReply { id, epoch: Epoch(1), outcome }, now, &promised, &mut history);
        assert_eq!(answered.is_ok(), history[0].answer.is_some());
        answered
    }

    #[test]
    fn a_request_may_be_forgotten_only_behind_more_changes_than_are_remembered() {
        let dups_max = Config::storm().limits.dups_max;
        forgotten(dups_max, 0).expect("enough changes came after it");
        assert!(forgotten(dups_max - 1, dups_max).is_err());
    }

    #[test]
    fn a_failure_told_by_an_earlier_primary_is_dropped_when_the_request_was_sent_again_under_a_newer_map() {
        let config = Config::storm();
        let object = ObjectName::new("register").expect("a name");
        let registers = vec![object.clone()];
        let names = Names { registers, counters: Vec::new(), lists: Vec::new(), volumes: Vec::new() };
        let mut client = Client::new(1, Arc::new(names), WhenFull::Never, false);
        let (mut history, now) = (Vec::new(), Timestamp::ZERO);
        let tid = client.start_with(object, Act::Remove, 0, now, &mut history);
        client.epoch = Epoch(5);
        client.request(tid, now).expect("it is outstanding");
        let map = ClusterMap::empty(ClusterId([1; 16]));
        let promised = Promised { dups_max: config.limits.dups_max, map: &map, splits: false, is_shared: false };
        let id = RequestId { client: client.id, incarnation: Incarnation(1), tid };
        for (epoch, is_taken) in [(Epoch(4), false), (Epoch(5), true)] {
            let outcome = ClientOutcome::Failed { index: 0, error: OpError::NotFound };
            client.answered(ClientReply { id, epoch, outcome }, now, &promised, &mut history).expect("right");
            assert_eq!(history[0].answer.is_some(), is_taken);
        }
    }
}
