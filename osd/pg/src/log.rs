//! The log of a placement group, and the memory of answered requests that outlives it.
//!
//! Entries are in version order without gaps in their chain: `(tail, head]`. Entries at or before the tail are kept a
//! while as **dups**: only their request id and results count (protocol.md §2.2, exactly-once). On disk both are the same
//! rows (`docs/formats/pg.md`), so trimming an entry to a dup costs no write.
//!
//! Invariants: L1 versions grow strictly; L2 `tail` is before the first entry and `head` is the last; L3 the request
//! index names exactly the entries and dups that are kept, less those below their session's watermark.

use std::collections::{BTreeMap, VecDeque};

use holdfast_types::{ClientId, Incarnation, LogVersion, RequestId};
use holdfast_wire::peer::LogEntry;

/// What the log knows of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answered<'a> {
    /// Nothing: it may be executed.
    Unknown,
    /// It was executed as this entry.
    As(&'a LogEntry),
    /// Its session has declared it answered: it must not be executed again.
    Forgotten,
}

/// A client run's requests.
#[derive(Debug, Clone, Default)]
struct Session {
    /// Requests below are answered and never resent.
    watermark: u64,
    /// Entries and dups by request number.
    versions: BTreeMap<u64, LogVersion>,
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
    sessions: BTreeMap<(ClientId, Incarnation), Session>,
}

/// What an entry costs in memory and in a message, nearly.
fn entry_bytes(entry: &LogEntry) -> usize {
    64 + entry.object.as_bytes().len() + entry.results.body.len() + entry.results.payload.len()
}

impl Log {
    /// A log from its parts: `dups` before `tail`, `entries` after it, both oldest first.
    pub fn from_parts(tail: LogVersion, dups: Vec<LogEntry>, entries: Vec<LogEntry>) -> Log {
        let mut log = Log { tail, head: tail, ..Log::default() };
        for dup in dups {
            log.index(&dup);
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

    /// The newest entry about an object; looks at all entries.
    pub fn newest_of(&self, object: &holdfast_types::ObjectName) -> Option<&LogEntry> {
        self.entries.iter().rev().find(|entry| entry.object == *object)
    }

    fn index(&mut self, entry: &LogEntry) {
        let session = self.sessions.entry((entry.request.client, entry.request.incarnation)).or_default();
        session.versions.insert(entry.request.tid, entry.version);
        if entry.lowest_outstanding_tid > session.watermark {
            session.watermark = entry.lowest_outstanding_tid;
            // The newest request always stays: it is what carries the watermark through a restart.
            let newest = session.versions.keys().next_back().copied().unwrap_or(0);
            session.versions = session.versions.split_off(&session.watermark.min(newest));
        }
    }

    fn unindex(&mut self, request: RequestId, version: LogVersion) {
        let id = (request.client, request.incarnation);
        if let Some(session) = self.sessions.get_mut(&id) {
            if session.versions.get(&request.tid) == Some(&version) {
                session.versions.remove(&request.tid);
            }
            if session.versions.is_empty() {
                self.sessions.remove(&id);
            }
        }
    }

    /// Adds an entry at the head.
    pub fn append(&mut self, entry: LogEntry) {
        assert!(entry.version > self.head, "L1: {} does not follow {}", entry.version, self.head);
        self.index(&entry);
        self.head = entry.version;
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
        self.head = self.entries.back().map_or(self.tail, |entry| entry.version);
        dropped
    }

    /// Makes the entries up to `version` dups, and drops the oldest dups beyond `dups_max`. Gives between which versions
    /// rows are to be deleted, if any: after the first, up to and with the second.
    pub fn trim_to(&mut self, version: LogVersion, dups_max: usize) -> Option<(LogVersion, LogVersion)> {
        while let Some(entry) = self.entries.front().filter(|entry| entry.version <= version) {
            self.bytes -= entry_bytes(entry);
            self.tail = entry.version;
            self.dups.extend(self.entries.pop_front());
        }
        let mut dropped = None;
        while self.dups.len() > dups_max {
            let Some(dup) = self.dups.pop_front() else { break };
            self.unindex(dup.request, dup.version);
            dropped = Some(dup.version);
        }
        dropped.map(|to| (std::mem::replace(&mut self.forgotten, to), to))
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
        if request.tid < session.watermark { Answered::Forgotten } else { Answered::Unknown }
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

    /// Checks L2 (cheap).
    pub fn check(&self) {
        if let (Some(first), Some(last)) = (self.entries.front(), self.entries.back()) {
            assert!(first.version > self.tail, "L2: first entry {} at or before the tail {}", first.version, self.tail);
            assert_eq!(last.version, self.head, "L2: the head is the last entry");
        } else {
            assert_eq!(self.head, self.tail, "L2: an empty log ends where it begins");
        }
    }
}
