//! The log of a placement group, and the memory of executed requests that outlives it.
//!
//! Entries are in version order without gaps in their chain: `(tail, head]`. Entries at or before the tail are kept a
//! while as **dups**: only their request id and results count (exactly-once). On disk both are the same
//! rows (`docs/formats/pg.md`), so trimming an entry to a dup costs no write.
//!
//! When a dup is dropped, its result is gone, but not that it was executed: unless its session has declared it answered
//! (it is below the session's **watermark**), its number goes into the session's own memory, which has a row on disk, goes
//! along with a log that is copied as a whole, and is dropped with the session only. So of a request with session `S` and
//! number `t` is said
//!
//! | of `S` is kept | answer |
//! |---|---|
//! | an entry or dup with `t` | [`Answered::As`]: what was answered then |
//! | `t < watermark`, or `t` executed, or `t < floor` | [`Answered::Forgotten`]: it is refused, never executed again |
//! | else | [`Answered::Unknown`]: it has never been executed |
//!
//! All of it is bounded: dups by count and bytes; numbers per session, the lowest giving way to the **floor** (which then
//! also refuses what was not executed: the client is told that it does not know); sessions by count, the one that has
//! written last longest ago going first. That one is the only way left to run a request twice: it takes more client runs
//! than [`crate::Limits::sessions_max`] that write to one placement group between two sendings of one request.
//!
//! Invariants: LG1 versions grow strictly; LG2 `tail` is before the first entry and `head` is the last; LG3 the request
//! index names exactly the entries and dups that are kept, less those below their session's watermark; LG4 a request that
//! was executed is never `Unknown` while its session is remembered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_types::{ClientId, Incarnation, LogVersion, ObjectName, RequestId};
use holdfast_wire::peer::{LogEntry, SessionMemory};

use crate::api::Limits;
use crate::mutants::{Mutant, on};

/// What the log knows of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answered<'a> {
    /// Nothing: it may be executed.
    Unknown,
    /// It was executed as this entry.
    As(&'a LogEntry),
    /// It was, or may have been, executed, and its answer is not kept: it must not be executed again.
    Forgotten,
}

/// A client run.
pub(crate) type SessionId = (ClientId, Incarnation);

/// A client run's requests.
#[derive(Debug, Clone, Default)]
struct Session {
    /// Requests below are answered and never resent.
    watermark: u64,
    /// Entries and dups by request number.
    versions: BTreeMap<u64, LogVersion>,
    /// Requests from the watermark on that were executed and whose dups are dropped.
    executed: BTreeSet<u64>,
    /// Requests below may have been executed: what `executed` had no room for.
    floor: u64,
    /// Its newest entry.
    last: LogVersion,
    /// Whether there is a row of it on disk.
    stored: bool,
}

impl Session {
    fn is_blank(&self) -> bool {
        self.versions.is_empty() && self.executed.is_empty() && self.floor == 0 && !self.stored
    }

    fn memory(&self, (client, incarnation): SessionId) -> SessionMemory {
        let executed = self.executed.iter().copied().collect();
        let (watermark, floor, last) = (self.watermark, self.floor, self.last);
        SessionMemory { client, incarnation, watermark, floor, executed, last }
    }
}

/// What trimming does to the rows on disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Trimmed {
    /// Log rows to delete: after the first version, up to and with the second.
    pub rows: Option<(LogVersion, LogVersion)>,
    /// Sessions whose rows are to be written.
    pub remembered: Vec<SessionMemory>,
    /// Sessions whose rows are to be deleted.
    pub dropped: Vec<SessionId>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    /// No row at or before this version is on disk any more.
    forgotten: LogVersion,
    tail: LogVersion,
    head: LogVersion,
    entries: VecDeque<LogEntry>,
    dups: VecDeque<LogEntry>,
    /// Approximate size of `entries`.
    bytes: usize,
    /// Approximate size of `dups`.
    dups_bytes: usize,
    sessions: BTreeMap<SessionId, Session>,
    /// The newest entry about any object whose name has this hash.
    newest: BTreeMap<u64, LogVersion>,
}

/// FNV-1a.
fn hash_of(object: &ObjectName) -> u64 {
    let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    object.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, add)
}

/// What an entry costs in memory and in a message, nearly.
pub(crate) fn entry_bytes(entry: &LogEntry) -> usize {
    64 + entry.object.as_bytes().len() + entry.results.body.len() + entry.results.payload.len()
}

/// Whether these entries, from a peer, can be appended to a log that ends in `after`: each is later than the one before.
pub(crate) fn follow_on(after: LogVersion, entries: &[LogEntry]) -> bool {
    let versions = entries.iter().map(|entry| entry.version);
    std::iter::once(after).chain(versions.clone()).zip(versions).all(|(before, version)| before < version)
}

impl Log {
    /// A log from its parts: `dups` before `tail`, `entries` after it, both oldest first, and what is remembered of
    /// sessions beside them.
    pub fn from_parts(
        tail: LogVersion,
        sessions: Vec<SessionMemory>,
        dups: Vec<LogEntry>,
        entries: Vec<LogEntry>,
    ) -> Log {
        let mut log = Log { tail, head: tail, ..Log::default() };
        for memory in sessions {
            let SessionMemory { client, incarnation, watermark, floor, executed, last } = memory;
            let executed = executed.into_iter().collect();
            let session = Session { watermark, floor, executed, last, stored: true, ..Session::default() };
            log.sessions.insert((client, incarnation), session);
        }
        for dup in dups {
            log.index(&dup);
            log.dups_bytes += entry_bytes(&dup);
            log.dups.push_back(dup);
        }
        for entry in entries {
            log.append(entry);
        }
        log
    }

    pub fn head(&self) -> LogVersion {
        self.head
    }

    pub fn tail(&self) -> LogVersion {
        self.tail
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &LogEntry> {
        self.entries.iter()
    }

    pub fn dups(&self) -> impl Iterator<Item = &LogEntry> {
        self.dups.iter()
    }

    /// What is remembered of sessions beside entries and dups.
    pub fn sessions(&self) -> Vec<SessionMemory> {
        self.sessions.iter().filter(|(_, session)| session.stored).map(|(id, session)| session.memory(*id)).collect()
    }

    /// Index of the first entry after `version`.
    fn position_after(&self, version: LogVersion) -> usize {
        self.entries.partition_point(|entry| entry.version <= version)
    }

    /// Entries after `version`, oldest first.
    pub fn after(&self, version: LogVersion) -> impl Iterator<Item = &LogEntry> {
        self.entries.range(self.position_after(version)..)
    }

    /// The entry of that version.
    pub fn entry(&self, version: LogVersion) -> Option<&LogEntry> {
        let at = self.entries.partition_point(|entry| entry.version < version);
        self.entries.get(at).filter(|entry| entry.version == version)
    }

    /// Whether a log that ends in `version` can be continued from this one.
    pub fn joins(&self, version: LogVersion) -> bool {
        version == self.tail || self.entry(version).is_some()
    }

    /// The newest version of this log (its tail included) that is not after `version`.
    pub fn floor(&self, version: LogVersion) -> LogVersion {
        match self.position_after(version).checked_sub(1).and_then(|at| self.entries.get(at)) {
            Some(entry) => entry.version,
            None => self.tail,
        }
    }

    /// The newest entry about an object.
    pub fn newest_of(&self, object: &ObjectName) -> Option<&LogEntry> {
        let newest = self.entry(*self.newest.get(&hash_of(object))?)?;
        if newest.object == *object {
            return Some(newest);
        }
        // Another object with the same hash was changed since.
        self.entries.iter().rev().find(|entry| entry.object == *object)
    }

    fn index(&mut self, entry: &LogEntry) {
        let session = self.sessions.entry((entry.request.client, entry.request.incarnation)).or_default();
        session.versions.insert(entry.request.tid, entry.version);
        session.last = session.last.max(entry.version);
        if entry.lowest_outstanding_tid > session.watermark {
            session.watermark = entry.lowest_outstanding_tid;
            // The newest request always stays: it is what carries the watermark through a restart.
            let newest = session.versions.keys().next_back().copied().unwrap_or(0);
            session.versions = session.versions.split_off(&session.watermark.min(newest));
            session.executed = session.executed.split_off(&session.watermark);
        }
    }

    /// Drops a divergent entry: its request counts as not executed.
    fn unindex(&mut self, request: RequestId, version: LogVersion) {
        let id = (request.client, request.incarnation);
        if let Some(session) = self.sessions.get_mut(&id) {
            if session.versions.get(&request.tid) == Some(&version) {
                session.versions.remove(&request.tid);
            }
            if session.is_blank() {
                self.sessions.remove(&id);
            }
        }
    }

    /// Drops a dup's answer, but not that its request was executed. Gives the session, if its row must be written.
    fn forget_answer(&mut self, dup: &LogEntry, executed_max: usize) -> Option<SessionId> {
        let id = (dup.request.client, dup.request.incarnation);
        let session = self.sessions.get_mut(&id)?;
        if session.versions.get(&dup.request.tid) != Some(&dup.version) {
            return None; // below the watermark, which a later entry carries
        }
        session.versions.remove(&dup.request.tid);
        session.executed.insert(dup.request.tid);
        while session.executed.len() > executed_max {
            let Some(lowest) = session.executed.pop_first() else { break };
            session.floor = session.floor.max(lowest.saturating_add(1));
        }
        session.stored = true;
        Some(id)
    }

    /// Drops the sessions beyond `sessions_max` of which no entry or dup is left, those first that have written last
    /// longest ago. Gives those that have rows.
    fn drop_sessions(&mut self, sessions_max: usize) -> Vec<SessionId> {
        let excess = self.sessions.len().saturating_sub(sessions_max);
        if excess == 0 {
            return Vec::new();
        }
        let idle = self.sessions.iter().filter(|(_, session)| session.versions.is_empty());
        let mut idle: Vec<(LogVersion, SessionId)> = idle.map(|(id, session)| (session.last, *id)).collect();
        idle.sort_unstable();
        idle.truncate(excess);
        let dropped = idle.into_iter().filter(|(_, id)| self.sessions.remove(id).is_some_and(|session| session.stored));
        dropped.map(|(_, id)| id).collect()
    }

    /// Adds an entry at the head.
    pub fn append(&mut self, entry: LogEntry) {
        assert!(entry.version > self.head, "LG1: {} does not follow {}", entry.version, self.head);
        self.index(&entry);
        self.head = entry.version;
        self.newest.insert(hash_of(&entry.object), entry.version);
        self.bytes += entry_bytes(&entry);
        self.entries.push_back(entry);
    }

    /// Drops the entries after `version`, and gives them, oldest first.
    pub fn rewind_to(&mut self, version: LogVersion) -> Vec<LogEntry> {
        let at = self.position_after(version);
        let dropped: Vec<LogEntry> = self.entries.drain(at..).collect();
        for entry in &dropped {
            self.bytes -= entry_bytes(entry);
            self.unindex(entry.request, entry.version);
        }
        let changed: BTreeSet<u64> = dropped.iter().map(|entry| hash_of(&entry.object)).collect();
        if !changed.is_empty() {
            self.newest.retain(|hash, _| !changed.contains(hash));
            let left = self.entries.iter().map(|entry| (hash_of(&entry.object), entry.version));
            self.newest.extend(left.filter(|(hash, _)| changed.contains(hash)));
        }
        self.head = self.entries.back().map_or(self.tail, |entry| entry.version);
        dropped
    }

    /// Makes the entries up to `version` dups, and drops the oldest dups beyond the limits. Gives what that does to the
    /// rows on disk.
    pub fn trim_to(&mut self, version: LogVersion, limits: &Limits) -> Trimmed {
        while let Some(entry) = self.entries.front().filter(|entry| entry.version <= version) {
            let bytes = entry_bytes(entry);
            self.bytes -= bytes;
            self.dups_bytes += bytes;
            self.tail = entry.version;
            let hash = hash_of(&entry.object);
            if self.newest.get(&hash) == Some(&entry.version) {
                self.newest.remove(&hash);
            }
            self.dups.extend(self.entries.pop_front());
        }
        if let Some(first) = self.entries.front().filter(|_| on(Mutant::TailTooFar)) {
            self.tail = first.version;
        }
        let (mut dropped, mut changed) = (None, BTreeSet::new());
        // The rows of all sessions that this changes are one transaction. Somewhat more than one trimming usually adds, so
        // that what is left over this time goes with the next ones.
        let sessions_max = limits.log_trim_batch + limits.log_trim_batch / 8 + 1;
        let dups_max = limits.dups_max * if on(Mutant::DupsUntrimmed) { 2 } else { 1 };
        while (self.dups.len() > dups_max || self.dups_bytes > limits.dups_bytes_max) && changed.len() < sessions_max {
            let Some(dup) = self.dups.pop_front() else { break };
            self.dups_bytes -= entry_bytes(&dup);
            changed.extend(self.forget_answer(&dup, limits.executed_max));
            dropped = Some(dup.version);
        }
        let Some(to) = dropped else { return Trimmed::default() };
        let dropped = self.drop_sessions(limits.sessions_max);
        let remembered = changed.iter().filter_map(|id| Some(self.sessions.get(id)?.memory(*id))).collect();
        Trimmed { rows: Some((std::mem::replace(&mut self.forgotten, to), to)), remembered, dropped }
    }

    /// What is known of a request.
    pub fn answered(&self, request: RequestId) -> Answered<'_> {
        let Some(session) = self.sessions.get(&(request.client, request.incarnation)) else {
            return Answered::Unknown;
        };
        if let Some(version) = session.versions.get(&request.tid) {
            let dup = || {
                let at = self.dups.partition_point(|dup| dup.version < *version);
                self.dups.get(at).filter(|dup| dup.version == *version)
            };
            return self.entry(*version).or_else(dup).map_or(Answered::Forgotten, Answered::As);
        }
        let executed = request.tid < session.watermark.max(session.floor) || session.executed.contains(&request.tid);
        if executed { Answered::Forgotten } else { Answered::Unknown }
    }

    /// Version of the entry at which trimming leaves `keep` entries and at most `keep_bytes` bytes; `None` when
    /// there is nothing to trim.
    pub fn trim_candidate(&self, keep: usize, keep_bytes: usize) -> Option<LogVersion> {
        let mut excess = self.entries.len().saturating_sub(keep);
        if self.bytes > keep_bytes {
            let mut bytes = self.bytes;
            let by_bytes = self.entries.iter().take_while(|entry| {
                let over = bytes > keep_bytes;
                bytes -= entry_bytes(entry).min(bytes);
                over
            });
            excess = excess.max(by_bytes.count());
        }
        excess.checked_sub(1).and_then(|last| self.entries.get(last)).map(|entry| entry.version)
    }

    /// Checks LG2 (cheap).
    pub fn check(&self) {
        if let (Some(first), Some(last)) = (self.entries.front(), self.entries.back()) {
            assert!(
                first.version > self.tail,
                "LG2: first entry {} at or before the tail {}",
                first.version,
                self.tail
            );
            assert_eq!(last.version, self.head, "LG2: the head is the last entry");
        } else {
            assert_eq!(self.head, self.tail, "LG2: an empty log ends where it begins");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use holdfast_types::{Epoch, ObjectName};
    use holdfast_wire::peer::{EntryKind, StoredResults};

    use super::*;

    fn limits() -> Limits {
        Limits { dups_max: 2, sessions_max: 2, executed_max: 3, ..Limits::default() }
    }

    fn at(counter: u64) -> LogVersion {
        LogVersion { epoch: Epoch(1), counter }
    }

    #[test]
    fn the_newest_entry_of_an_object_is_found_after_appending_trimming_and_rewinding() {
        let mut log = Log::default();
        for counter in 1..=60 {
            let object = ObjectName::new(format!("o-{}", counter * 7 % 11)).unwrap();
            log.append(LogEntry { object, ..entry(counter, RequestId::default(), 0) });
            match counter {
                20 | 45 => drop(log.trim_to(at(counter - 12), &limits())),
                30 | 50 => drop(log.rewind_to(at(counter - 9))),
                _ => {}
            }
            if counter == 30 || counter == 50 {
                break_off(&mut log, counter);
            }
            for number in 0..11 {
                let object = ObjectName::new(format!("o-{number}")).unwrap();
                let walked = log.entries().rev().find(|entry| entry.object == object);
                assert_eq!(log.newest_of(&object), walked, "{object:?} after {counter}");
            }
        }
    }

    /// Fills up again what was taken back, with other objects.
    fn break_off(log: &mut Log, upto: u64) {
        for counter in log.head().counter + 1..=upto {
            let object = ObjectName::new(format!("o-{}", counter * 3 % 11)).unwrap();
            log.append(LogEntry { object, ..entry(counter, RequestId::default(), 0) });
        }
    }

    #[test]
    fn entries_of_a_peer_that_are_not_in_order_are_told_apart_before_they_are_appended() {
        let entries = |counters: &[u64]| {
            counters.iter().map(|counter| entry(*counter, RequestId::default(), 0)).collect::<Vec<_>>()
        };
        assert!(follow_on(at(3), &entries(&[])) && follow_on(at(3), &entries(&[4, 5, 9])));
        for wrong in [&[3, 4][..], &[2], &[4, 4], &[4, 6, 5]] {
            assert!(!follow_on(at(3), &entries(wrong)), "{wrong:?}");
        }
    }

    fn request(client: u64, tid: u64) -> RequestId {
        RequestId { client: ClientId(client), incarnation: Incarnation(1), tid }
    }

    fn entry(counter: u64, request: RequestId, lowest_outstanding_tid: u64) -> LogEntry {
        LogEntry {
            version: at(counter),
            prior_version: LogVersion::ZERO,
            object: ObjectName::new("object").unwrap(),
            kind: EntryKind::Modify,
            request,
            lowest_outstanding_tid,
            results: StoredResults::default(),
            objects_delta: 0,
            bytes_delta: 0,
        }
    }

    /// One request of client 1, then `others` of client 2, everything trimmed.
    fn flooded(others: u64, rows: &mut BTreeMap<SessionId, SessionMemory>) -> Log {
        let mut log = Log::default();
        log.append(entry(1, request(1, 7), 7));
        for counter in 2..2 + others {
            log.append(entry(counter, request(2, counter), counter));
            store(rows, log.trim_to(at(counter), &limits()));
        }
        log
    }

    fn store(rows: &mut BTreeMap<SessionId, SessionMemory>, trimmed: Trimmed) {
        for id in trimmed.dropped {
            rows.remove(&id);
        }
        rows.extend(trimmed.remembered.into_iter().map(|memory| ((memory.client, memory.incarnation), memory)));
    }

    #[test]
    fn a_request_whose_dup_was_pushed_out_is_never_executed_again() {
        let mut rows = BTreeMap::new();
        let log = flooded(50, &mut rows);
        assert_eq!(log.answered(request(1, 7)), Answered::Forgotten);
        assert_eq!(log.answered(request(1, 8)), Answered::Unknown, "what was not executed may be");
        assert_eq!(log.answered(request(1, 6)), Answered::Forgotten);
    }

    #[test]
    fn what_was_executed_is_known_after_a_restart_and_in_a_copied_log() {
        let mut rows = BTreeMap::new();
        let log = flooded(50, &mut rows);
        let copies = |sessions| {
            Log::from_parts(log.tail(), sessions, log.dups().cloned().collect(), log.entries().cloned().collect())
        };
        for copy in [copies(rows.into_values().collect()), copies(log.sessions())] {
            for (client, tid) in [(1, 6), (1, 7), (1, 8), (2, 3), (2, 51), (2, 52)] {
                assert_eq!(copy.answered(request(client, tid)), log.answered(request(client, tid)), "{client} {tid}");
            }
        }
    }

    #[test]
    fn a_request_that_waits_while_others_of_its_session_are_forgotten_is_still_executed() {
        let mut log = Log::default();
        for (counter, tid) in [(1, 11), (2, 12), (3, 13), (4, 14), (5, 15)] {
            log.append(entry(counter, request(1, tid), 10));
        }
        log.trim_to(at(5), &limits());
        assert_eq!(log.answered(request(1, 11)), Answered::Forgotten);
        assert_eq!(log.answered(request(1, 10)), Answered::Unknown);
    }

    #[test]
    fn the_memory_of_a_session_is_bounded_and_errs_on_the_side_of_refusing() {
        let mut log = Log::default();
        for counter in 1..=20 {
            log.append(entry(counter, request(1, 100 + counter), 10));
        }
        log.trim_to(at(20), &limits());
        assert_eq!(log.sessions()[0].executed.len(), 3);
        assert_eq!(log.answered(request(1, 101)), Answered::Forgotten);
        assert_eq!(log.answered(request(1, 50)), Answered::Forgotten);
        assert!(matches!(log.answered(request(1, 120)), Answered::As(_)));
        assert_eq!(log.answered(request(1, 121)), Answered::Unknown);
    }

    #[test]
    fn the_session_that_wrote_last_longest_ago_is_dropped_first_with_its_row() {
        let (mut log, mut rows) = (Log::default(), BTreeMap::new());
        for counter in 1..=8 {
            log.append(entry(counter, request(10 - counter, 5), 5));
            store(&mut rows, log.trim_to(at(counter), &limits()));
        }
        assert_eq!(log.sessions.len(), 2, "only those with dups are left");
        assert_eq!(log.answered(request(9, 5)), Answered::Unknown);
        assert!(matches!(log.answered(request(2, 5)), Answered::As(_)));
        assert!(rows.len() <= 2);
    }

    #[test]
    fn the_watermark_survives_the_dup_that_carried_it() {
        let mut rows = BTreeMap::new();
        let mut log = Log::default();
        log.append(entry(1, request(1, 30), 20));
        for counter in 2..10 {
            log.append(entry(counter, request(2, counter), counter));
        }
        store(&mut rows, log.trim_to(at(9), &limits()));
        assert_eq!(rows[&(ClientId(1), Incarnation(1))].watermark, 20);
        assert_eq!(log.answered(request(1, 19)), Answered::Forgotten);
    }

    #[test]
    fn however_many_sessions_wrote_one_trimming_writes_few_of_their_rows() {
        let limits = Limits { log_trim_batch: 8, sessions_max: 1_000, ..limits() };
        let mut log = Log::default();
        for counter in 1..=500 {
            log.append(entry(counter, request(counter, 5), 5));
        }
        let mut rows = BTreeMap::new();
        for counter in 501..2_000 {
            let trimmed = log.trim_to(at(counter - 1), &limits);
            assert!(trimmed.remembered.len() <= 10);
            store(&mut rows, trimmed);
            log.append(entry(counter, request(1, 10 + counter), 10));
        }
        assert!(log.dups.len() <= limits.dups_max + 1, "{} dups", log.dups.len());
        let all_known = (2..=500).all(|client| rows[&(ClientId(client), Incarnation(1))].executed == [5]);
        assert!(all_known);
    }

    #[test]
    fn dups_are_bounded_by_bytes_too() {
        let mut log = Log::default();
        for counter in 1..=10 {
            let mut large = entry(counter, request(1, counter), counter);
            large.results.payload = vec![0; 1_000];
            log.append(large);
        }
        log.trim_to(at(10), &Limits { dups_max: 100, dups_bytes_max: 3_500, ..Limits::default() });
        assert_eq!(log.dups().count(), 3);
    }
}
