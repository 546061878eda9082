//! The placement group's own rows in its collection (`docs/formats/pg.md`): info, history, log, missing set,
//! memory of sessions.
//!
//! A value is one version byte, one byte for the oldest version that can read it, then CBOR. The info row is small and
//! rewritten with every write; history changes with intervals only.

use bytes::Bytes;
use holdfast_types::{Epoch, LogVersion};
use holdfast_wire::peer::{LogEntry, PgHistory, PgInfo, SessionMemory};
use holdfast_wire::scrub::ScrubRecord;
use minicbor::{Decode, Encode};

use crate::api::{LoadError, LocalObjects, StoreOp};
use crate::intervals::Interval;
use crate::key::ObjectKey;
use crate::log::{Log, SessionId, Trimmed};
use crate::missing::{Lack, Missing};
use crate::split::Bound;

/// What this build writes, and the oldest build that can read it.
const VERSION: [u8; 2] = [1, 1];
const INFO: &[u8] = b"i";
const HISTORY: &[u8] = b"h";
const LOG: u8 = b'l';
const MISSING: u8 = b'm';
const SESSION: u8 = b's';
const SCRUB: &[u8] = b"c";
/// Rows read from the store at a time while loading.
const PAGE_ROWS: usize = 1_000;

/// The history row: what changes when an interval begins or ends.
#[derive(Debug, Clone, Encode, Decode)]
#[cbor(map)]
pub(crate) struct HistoryRow {
    /// The map that was applied last.
    #[n(0)]
    pub epoch: Epoch,
    /// The present interval.
    #[n(1)]
    pub interval: Interval,
    /// What came before.
    #[n(2)]
    pub history: PgHistory,
}

fn value<T: Encode<()>>(row: &T) -> Bytes {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(&VERSION);
    minicbor::encode(row, &mut out).expect("encoding to memory cannot fail");
    out.into()
}

fn parse<T: for<'b> Decode<'b, ()>>(row: &'static str, bytes: &[u8]) -> Result<T, LoadError> {
    let malformed = |detail: String| LoadError::Malformed { row, detail };
    match bytes {
        [_, compatible, body @ ..] if *compatible <= VERSION[0] => {
            minicbor::decode(body).map_err(|error| malformed(error.to_string()))
        }
        [_, compatible, ..] => Err(malformed(format!("it needs a reader of version {compatible}"))),
        _ => Err(malformed("it is too short".to_owned())),
    }
}

pub(crate) fn put_info(info: &PgInfo) -> StoreOp {
    StoreOp::PutMeta { key: Bytes::from_static(INFO), value: value(info) }
}

pub(crate) fn put_history(row: &HistoryRow) -> StoreOp {
    StoreOp::PutMeta { key: Bytes::from_static(HISTORY), value: value(row) }
}

/// What scrubs have found. A row of its own, not a part of the info row: that is written with every write.
pub(crate) fn put_scrub(record: &ScrubRecord) -> StoreOp {
    StoreOp::PutMeta { key: Bytes::from_static(SCRUB), value: value(record) }
}

/// What scrubs have found, if anything is stored. One that cannot be read is as good as none: scrubs find it again.
pub(crate) fn load_scrub(store: &dyn LocalObjects) -> Option<ScrubRecord> {
    let stored = store.meta_get(SCRUB).map_err(LoadError::from);
    match stored.and_then(|bytes| bytes.map(|bytes| parse("scrub", &bytes)).transpose()) {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(%error, "the row of scrubs is not usable and begins anew");
            None
        }
    }
}

fn log_key(version: LogVersion) -> [u8; 17] {
    let mut key = [LOG; 17];
    key[1..9].copy_from_slice(&version.epoch.0.to_be_bytes());
    key[9..].copy_from_slice(&version.counter.to_be_bytes());
    key
}

/// The key right after a version's.
fn log_key_after(version: LogVersion) -> [u8; 17] {
    log_key(LogVersion { epoch: version.epoch, counter: version.counter.saturating_add(1) })
}

pub(crate) fn put_log(entry: &LogEntry) -> StoreOp {
    StoreOp::PutMeta { key: Bytes::copy_from_slice(&log_key(entry.version)), value: value(entry) }
}

/// The entry of a row, if it is one of the log.
pub(crate) fn parse_log(key: &[u8], value: &[u8]) -> Option<LogEntry> {
    key.starts_with(&[LOG]).then(|| parse("log", value).ok()).flatten()
}

/// Deletes all log rows after `version`.
pub(crate) fn delete_log_after(version: LogVersion) -> StoreOp {
    StoreOp::DeleteMetaRange {
        start: Bytes::copy_from_slice(&log_key_after(version)),
        end: Bytes::copy_from_slice(&[LOG + 1]),
    }
}

/// Deletes the log rows after `before`, up to and with `version`. It begins where the last deletion ended: a store
/// walks over what was deleted and not yet compacted.
fn delete_log_between(before: LogVersion, version: LogVersion) -> StoreOp {
    StoreOp::DeleteMetaRange {
        start: Bytes::copy_from_slice(&log_key_after(before)),
        end: Bytes::copy_from_slice(&log_key_after(version)),
    }
}

/// Deletes the log, the missing set and what is remembered of sessions.
pub(crate) fn delete_log_and_missing() -> impl Iterator<Item = StoreOp> {
    [LOG, MISSING, SESSION].into_iter().map(|prefix| StoreOp::DeleteMetaRange {
        start: Bytes::copy_from_slice(&[prefix]),
        end: Bytes::copy_from_slice(&[prefix + 1]),
    })
}

fn session_key((client, incarnation): SessionId) -> Bytes {
    let mut key = [SESSION; 17];
    key[1..9].copy_from_slice(&client.0.to_be_bytes());
    key[9..].copy_from_slice(&incarnation.0.to_be_bytes());
    Bytes::copy_from_slice(&key)
}

pub(crate) fn put_session(memory: &SessionMemory) -> StoreOp {
    StoreOp::PutMeta { key: session_key((memory.client, memory.incarnation)), value: value(memory) }
}

/// What trimming the log does.
pub(crate) fn trim(trimmed: &Trimmed, ops: &mut Vec<StoreOp>) {
    ops.extend(trimmed.rows.map(|(before, to)| delete_log_between(before, to)));
    ops.extend(trimmed.remembered.iter().map(put_session));
    ops.extend(trimmed.dropped.iter().map(|id| StoreOp::DeleteMeta { key: session_key(*id) }));
}

fn missing_key(key: &ObjectKey) -> Bytes {
    let mut out = Vec::with_capacity(1 + key.as_bytes().len());
    out.push(MISSING);
    out.extend_from_slice(key.as_bytes());
    out.into()
}

pub(crate) fn put_missing(key: &ObjectKey, lack: Lack) -> StoreOp {
    StoreOp::PutMeta { key: missing_key(key), value: value(&(lack.need, lack.have)) }
}

pub(crate) fn delete_missing(key: &ObjectKey) -> StoreOp {
    StoreOp::DeleteMeta { key: missing_key(key) }
}

fn missing_bound(at: Bound) -> Bytes {
    Bytes::from([&[MISSING][..], &at].concat())
}

/// Deletes the rows of missing objects with keys before `at`.
pub(crate) fn delete_missing_before(at: Bound) -> StoreOp {
    StoreOp::DeleteMetaRange { start: Bytes::from_static(&[MISSING]), end: missing_bound(at) }
}

/// Deletes the rows of missing objects with keys from `at` on.
pub(crate) fn delete_missing_from(at: Bound) -> StoreOp {
    StoreOp::DeleteMetaRange { start: missing_bound(at), end: Bytes::from_static(&[MISSING + 1]) }
}

/// Turns the rows of one missing set into those of another.
pub(crate) fn change_missing(old: &Missing, new: &Missing, ops: &mut Vec<StoreOp>) {
    ops.extend(old.iter().filter(|(key, _)| !new.contains(key)).map(|(key, _)| delete_missing(key)));
    ops.extend(
        new.iter().filter(|(key, lack)| old.get(key) != Some(**lack)).map(|(key, lack)| put_missing(key, *lack)),
    );
}

/// All that is stored of a copy apart from its objects.
#[derive(Debug)]
pub(crate) struct Stored {
    pub info: PgInfo,
    pub row: HistoryRow,
    pub log: Log,
    pub missing: Missing,
}

/// The history row, if the collection has one.
pub(crate) fn load_history(store: &dyn LocalObjects) -> Result<Option<HistoryRow>, LoadError> {
    store.meta_get(HISTORY)?.map(|bytes| parse("history", &bytes)).transpose()
}

/// Reads a copy's rows. What does not fit together is refused: such a copy is not to be trusted.
pub(crate) fn load(store: &dyn LocalObjects) -> Result<Stored, LoadError> {
    let info = store.meta_get(INFO)?.ok_or(LoadError::Absent { row: "info" })?;
    let info: PgInfo = parse("info", &info)?;
    let row = load_history(store)?.ok_or(LoadError::Absent { row: "history" })?;
    let (mut dups, mut entries): (Vec<LogEntry>, Vec<LogEntry>) = (Vec::new(), Vec::new());
    let mut last = LogVersion::ZERO;
    each_row(store, LOG, |_, bytes| {
        let entry: LogEntry = parse("log", bytes)?;
        if entry.version <= last {
            return Err(LoadError::Malformed { row: "log", detail: format!("{} follows {last}", entry.version) });
        }
        last = entry.version;
        if entry.version <= info.log_tail {
            dups.push(entry)
        } else {
            entries.push(entry)
        }
        Ok(())
    })?;
    let mut sessions: Vec<SessionMemory> = Vec::new();
    each_row(store, SESSION, |_, bytes| {
        sessions.push(parse("session", bytes)?);
        Ok(())
    })?;
    let log = Log::from_parts(info.log_tail, sessions, dups, entries);
    if log.head() != info.last_update {
        let detail = format!("the log ends at {}, the info row says {}", log.head(), info.last_update);
        return Err(LoadError::Malformed { row: "log", detail });
    }
    let mut missing = Missing::default();
    each_row(store, MISSING, |key, bytes| {
        let (need, have): (LogVersion, LogVersion) = parse("missing", bytes)?;
        let key = ObjectKey::from_bytes(key)
            .ok_or_else(|| LoadError::Malformed { row: "missing", detail: "its key is not an object's".to_owned() })?;
        missing.insert(key, Lack { need, have });
        Ok(())
    })?;
    Ok(Stored { info, row, log, missing })
}

/// Calls `take` with the rest of the key, and the value, of each row whose key begins with `prefix`.
fn each_row(
    store: &dyn LocalObjects,
    prefix: u8,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let (mut start, end) = (vec![prefix], [prefix + 1]);
    loop {
        let page = store.meta_scan(&start, &end, PAGE_ROWS)?;
        for (key, bytes) in &page {
            take(key.get(1..).unwrap_or_default(), bytes)?;
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE_ROWS => {
                start = key.to_vec();
                start.push(0);
            }
            _ => return Ok(()),
        }
    }
}
