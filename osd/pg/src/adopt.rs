//! Taking over another log, in transactions of bounded size: a log with its names and results can be larger than what a
//! store takes at once.
//!
//! Invariant: A1 whatever part of it a crash leaves, the copy can be loaded, and is one that an earlier activation could
//! have left: its log is a prefix of the authoritative one, and the info row says where it ends.

use std::collections::BTreeSet;

use holdfast_types::{LogVersion, ObjectName};
use holdfast_wire::Effect;
use holdfast_wire::peer::{BackfillCursor, LogEntry, SessionMemory};

use crate::api::StoreOp;
use crate::exec;
use crate::key::ObjectKey;
use crate::log::{Log, entry_bytes};
use crate::merge;
use crate::missing::Missing;
use crate::pg::{Pg, Step};
use crate::{rows, split};

/// Log entries in one transaction, in bytes: with the rows of the objects that become missing by them about twice that,
/// far below what a store takes.
const PART_BYTES: usize = 1 << 20;

/// Where `entries` can be cut so that no part is much larger than [`PART_BYTES`]: the length of the next part.
fn part(entries: &[&LogEntry]) -> usize {
    let mut bytes = 0;
    let fits = entries.iter().take_while(|entry| {
        let before = bytes;
        bytes += entry_bytes(entry);
        before < PART_BYTES
    });
    fits.count()
}

impl Pg {
    /// Makes what the own log has after `since` into `auth`; both logs share `since`. What does not follow from that (who
    /// activated, counts) is left to the caller, whose transaction comes after these.
    pub(crate) fn adopt_log(&mut self, since: LogVersion, auth: &[&LogEntry], step: &mut Step<'_>) {
        let here = split::has(&self.map, self.id);
        let own: Vec<&LogEntry> = self.holding.log.after(since).collect();
        let shared = own.iter().zip(auth).take_while(|(own, auth)| own.version == auth.version).count();
        let (known, mut rest) = auth.split_at(shared);
        if own.len() > shared {
            let mut merged =
                merge::merge(since, &own, known, &self.holding.missing, &self.holding.last_backfill, &here);
            let cursor = &self.holding.last_backfill;
            merged.remove.extend(undone_beyond(cursor, &own[shared..], &here, step));
            self.submit_merge(merged, step);
        }
        while !rest.is_empty() {
            let (next, later) = rest.split_at(part(rest).max(1));
            let head = self.holding.log.head();
            let merged = merge::merge(head, &[], next, &self.holding.missing, &self.holding.last_backfill, &here);
            self.submit_merge(merged, step);
            rest = later;
        }
    }

    fn submit_merge(&mut self, merged: merge::Merge, step: &mut Step<'_>) {
        let mut ops = Vec::new();
        self.holding.take_merge(merged, &mut ops);
        ops.push(rows::put_info(&self.holding.info()));
        self.submit(ops, None, step);
    }

    /// Replaces the log; everything is to be filled anew, beyond the cursor.
    pub(crate) fn replace_log(
        &mut self,
        tail: LogVersion,
        sessions: Vec<SessionMemory>,
        dups: Vec<LogEntry>,
        entries: Vec<LogEntry>,
        step: &mut Step<'_>,
    ) {
        let mut ops: Vec<StoreOp> = rows::delete_log_and_missing().collect();
        let here = split::has(&self.map, self.id);
        let shared: BTreeSet<LogVersion> = entries.iter().map(|entry| entry.version).collect();
        let own = self.holding.log.after(tail.max(self.holding.log.tail()));
        let divergent: Vec<&LogEntry> = own.filter(|entry| !shared.contains(&entry.version)).collect();
        let undone = undone_beyond(&BackfillCursor::START, &divergent, &here, step).into_iter();
        ops.extend(undone.map(|key| StoreOp::Object { key, effect: Effect::Remove }));
        let session_rows: Vec<StoreOp> = sessions.iter().map(rows::put_session).collect();
        self.holding.missing = Missing::default();
        self.holding.begin_filling();
        let old_rows: Vec<LogEntry> = dups.clone();
        self.holding.log = Log::from_parts(tail, sessions, dups, Vec::new());
        ops.push(rows::put_info(&self.holding.info()));
        self.submit(ops, None, step);
        self.submit_rows(session_rows, step);
        for entries in parts(&old_rows) {
            self.submit(entries.iter().map(|entry| rows::put_log(entry)).collect(), None, step);
        }
        for part in parts(&entries) {
            let mut ops: Vec<StoreOp> = part.iter().map(|entry| rows::put_log(entry)).collect();
            for entry in part {
                self.holding.log.append(entry.clone());
            }
            ops.push(rows::put_info(&self.holding.info()));
            self.submit(ops, None, step);
        }
    }
}

impl Pg {
    /// Puts rows that nothing yet depends on, in as many transactions as it takes.
    fn submit_rows(&mut self, rows: Vec<StoreOp>, step: &mut Step<'_>) {
        let (mut ops, mut bytes) = (Vec::new(), 0);
        for row in rows {
            bytes += if let StoreOp::PutMeta { key, value } = &row { key.len() + value.len() } else { 0 };
            ops.push(row);
            if bytes >= PART_BYTES {
                self.submit(std::mem::take(&mut ops), None, step);
                bytes = 0;
            }
        }
        if !ops.is_empty() {
            self.submit(ops, None, step);
        }
    }
}

/// Objects beyond the backfill cursor that have what a divergent entry did: they were sent before the cursor moved, and
/// written since. The entry's version may be given again to something else (`peering`, P7), and a copy of that version would
/// pass for it. What has an older version is not touched: nobody else may have that any more.
fn undone_beyond(
    cursor: &BackfillCursor,
    divergent: &[&LogEntry],
    here: &impl Fn(&ObjectName) -> bool,
    step: &Step<'_>,
) -> Vec<ObjectKey> {
    // (What was just split off is another's: the store no longer takes changes of it from here.)
    let own = divergent.iter().filter(|entry| here(&entry.object));
    let own = own.map(|entry| (ObjectKey::of(&entry.object), entry.version));
    let beyond = own.filter(|(key, _)| !cursor.covers(key.as_bytes()));
    let done = beyond.filter(|(key, version)| exec::stored_version(step.store, key).is_ok_and(|held| held == *version));
    done.map(|(key, _)| key).collect()
}

/// Cuts a log into parts for one transaction each.
fn parts(entries: &[LogEntry]) -> Vec<Vec<&LogEntry>> {
    let all: Vec<&LogEntry> = entries.iter().collect();
    let (mut rest, mut parts) = (all.as_slice(), Vec::new());
    while !rest.is_empty() {
        let (next, later) = rest.split_at(part(rest).max(1));
        parts.push(next.to_vec());
        rest = later;
    }
    parts
}
