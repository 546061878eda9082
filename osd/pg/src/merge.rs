//! Where two logs part, and what that means for the objects: one pure function for the own log, a peer's, and a
//! replayed one.
//!
//! The authoritative log wins. An own entry that it does not have is **divergent**: it was never acknowledged. Its object
//! is brought back to the version before the first divergent entry — from another copy, through the missing set — or
//! removed when there was none. What was removed in a version that nobody could tell is missing in that: the version is asked
//! for again (`unnamed`). Entries that only the authoritative log has are **adopted**: their objects become missing,
//! their deletes are carried out. Entries about objects of other placement groups, left by a split, count as entries only.
//!
//! Invariants: MG1 the result depends on nothing but the arguments; MG2 a merge with an equal log changes nothing; MG3 an
//! object that `last_backfill` does not cover, or that is elsewhere, never enters the missing set.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_types::{LogVersion, ObjectName};
use holdfast_wire::peer::{BackfillCursor, EntryKind, LogEntry};

use crate::key::ObjectKey;
use crate::log::Log;
use crate::missing::{Lack, Missing, UNNAMED};
use crate::mutants::{Mutant, on};

/// The outcome of a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Merge {
    /// The last entry that both logs share.
    pub common: LogVersion,
    /// Entries to append after it.
    pub adopted: Vec<LogEntry>,
    /// The missing set afterwards.
    pub missing: Missing,
    /// Objects to remove from the copy.
    pub remove: BTreeSet<ObjectKey>,
    /// Change of the number of objects.
    pub objects_delta: i64,
    /// Change of the number of bytes.
    pub bytes_delta: i64,
}

/// Merges a copy with the authoritative log. `own` and `auth` are both sides' entries after `since`, which both logs share;
/// `here` tells which objects are of this placement group.
pub(crate) fn merge(
    since: LogVersion,
    own: &[&LogEntry],
    auth: &[&LogEntry],
    missing: &Missing,
    last_backfill: &BackfillCursor,
    here: &dyn Fn(&ObjectName) -> bool,
) -> Merge {
    let shared = own.iter().zip(auth).take_while(|(own, auth)| own.version == auth.version).count();
    let common = shared.checked_sub(1).map_or(since, |last| auth[last].version);
    let (divergent, adopted) = (&own[shared..], &auth[shared..]);
    let mut missing = missing.clone();
    let mut remove = BTreeSet::new();

    // Only the first divergent entry of an object tells where to go back to.
    let mut first_of: BTreeMap<ObjectKey, LogVersion> = BTreeMap::new();
    for entry in divergent.iter().filter(|entry| here(&entry.object) && !on(Mutant::DivergentKept)) {
        first_of.entry(ObjectKey::of(&entry.object)).or_insert(entry.prior_version);
    }
    for (key, prior) in first_of {
        if !last_backfill.covers(key.as_bytes()) {
            continue;
        }
        // An object that was already missing still has what it had; any other has divergent content now.
        // What was removed in a version that nobody could tell is not here, and its version is asked for (`unnamed`).
        let known = missing.get(&key).filter(|_| prior != UNNAMED);
        let have = known.map_or(LogVersion::ZERO, |lack| lack.have);
        if prior == LogVersion::ZERO {
            missing.remove(&key);
            remove.insert(key);
        } else if have == prior {
            missing.remove(&key);
        } else {
            missing.insert(key, Lack { need: prior, have });
        }
    }
    for entry in adopted.iter().filter(|entry| here(&entry.object)) {
        let key = ObjectKey::of(&entry.object);
        if !last_backfill.covers(key.as_bytes()) {
            continue;
        }
        match entry.kind {
            EntryKind::Modify if on(Mutant::AdoptedChangesForgotten) => {}
            EntryKind::Modify => {
                let removed = remove.contains(&key);
                let have = match missing.get(&key) {
                    Some(lack) => lack.have,
                    None if removed => LogVersion::ZERO,
                    None => entry.prior_version,
                };
                missing.insert(key, Lack { need: entry.version, have });
            }
            EntryKind::Delete if on(Mutant::AdoptedDeletesForgotten) => {}
            EntryKind::Delete => {
                missing.remove(&key);
                remove.insert(key);
            }
        }
    }
    let sum = |entries: &[&LogEntry]| {
        entries
            .iter()
            .filter(|entry| here(&entry.object))
            .fold((0, 0), |(objects, bytes), entry| (objects + entry.objects_delta, bytes + entry.bytes_delta))
    };
    let (undone, done) = (sum(divergent), sum(adopted));
    Merge {
        common,
        adopted: adopted.iter().map(|entry| (*entry).clone()).collect(),
        missing,
        remove,
        objects_delta: done.0 - undone.0,
        bytes_delta: done.1 - undone.1,
    }
}

/// The newest version that `own` shares with a log of the given tail and entries (oldest first); `None` when the two
/// have nothing in common and only backfill can join them.
pub(crate) fn common_version(own: &Log, tail: LogVersion, entries: &[LogEntry]) -> Option<LogVersion> {
    let shared = entries.iter().rev().find(|entry| own.joins(entry.version)).map(|entry| entry.version);
    shared.or_else(|| own.joins(tail).then_some(tail))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use holdfast_types::{Epoch, ObjectName, RequestId};
    use holdfast_wire::peer::StoredResults;

    use super::*;

    fn version(epoch: u64, counter: u64) -> LogVersion {
        LogVersion { epoch: Epoch(epoch), counter }
    }

    fn entry(at: (u64, u64), prior: (u64, u64), object: &str, kind: EntryKind) -> LogEntry {
        LogEntry {
            version: version(at.0, at.1),
            prior_version: version(prior.0, prior.1),
            object: ObjectName::new(object).unwrap(),
            kind,
            request: RequestId { tid: at.1, ..RequestId::default() },
            lowest_outstanding_tid: 0,
            results: StoredResults::default(),
            objects_delta: 0,
            bytes_delta: 1,
        }
    }

    fn key(object: &str) -> ObjectKey {
        ObjectKey::of(&ObjectName::new(object).unwrap())
    }

    fn run(own: &[LogEntry], auth: &[LogEntry], missing: &Missing) -> Merge {
        let own: Vec<&LogEntry> = own.iter().collect();
        let auth: Vec<&LogEntry> = auth.iter().collect();
        merge(LogVersion::ZERO, &own, &auth, missing, &BackfillCursor::Complete, &|_| true)
    }

    #[test]
    fn a_merge_with_an_equal_log_changes_nothing() {
        let log = [entry((1, 1), (0, 0), "a", EntryKind::Modify), entry((1, 2), (0, 0), "b", EntryKind::Modify)];
        let merged = run(&log, &log, &Missing::default());
        assert_eq!(merged.common, version(1, 2));
        assert!(merged.adopted.is_empty() && merged.missing.is_empty() && merged.remove.is_empty());
        assert_eq!((merged.objects_delta, merged.bytes_delta), (0, 0));
    }

    #[test]
    fn a_divergent_change_goes_back_to_the_version_before_it() {
        let shared = entry((1, 1), (0, 0), "a", EntryKind::Modify);
        let own = [
            shared.clone(),
            entry((2, 2), (1, 1), "a", EntryKind::Modify),
            entry((2, 3), (2, 2), "a", EntryKind::Delete),
            entry((2, 4), (0, 0), "new", EntryKind::Modify),
        ];
        let merged = run(&own, &[shared], &Missing::default());
        assert_eq!(merged.missing.get(&key("a")), Some(Lack { need: version(1, 1), have: LogVersion::ZERO }));
        assert_eq!(merged.remove, BTreeSet::from([key("new")]));
        assert_eq!(merged.bytes_delta, -3);
    }

    #[test]
    fn a_divergent_removal_of_what_nobody_could_name_leaves_it_missing() {
        let delete = |at| LogEntry { prior_version: UNNAMED, ..entry(at, (0, 0), "a", EntryKind::Delete) };
        let shared = entry((1, 1), (0, 0), "b", EntryKind::Modify);
        let own = [shared.clone(), delete((2, 2)), entry((2, 3), (0, 0), "a", EntryKind::Modify)];
        let merged = run(&own, std::slice::from_ref(&shared), &Missing::default());
        assert_eq!(merged.missing.get(&key("a")), Some(Lack { need: UNNAMED, have: LogVersion::ZERO }));
        assert!(merged.remove.is_empty());
        let mut unread = Missing::default();
        unread.insert(key("a"), Lack { need: UNNAMED, have: UNNAMED });
        let merged = run(&own, std::slice::from_ref(&shared), &unread);
        assert!(merged.missing.get(&key("a")).is_some_and(|lack| lack.is_unnamed() && !lack.is_unread()));
        let merged = run(&own, &[shared, entry((3, 2), (1, 1), "a", EntryKind::Modify)], &Missing::default());
        assert_eq!(merged.missing.get(&key("a")).unwrap().need, version(3, 2));
    }

    #[test]
    fn an_object_that_never_got_its_divergent_change_is_whole_again() {
        let shared = entry((1, 1), (0, 0), "a", EntryKind::Modify);
        let own = [shared.clone(), entry((2, 2), (1, 1), "a", EntryKind::Modify)];
        let mut missing = Missing::default();
        missing.insert(key("a"), Lack { need: version(2, 2), have: version(1, 1) });
        assert!(run(&own, &[shared], &missing).missing.is_empty());
    }

    #[test]
    fn adopted_changes_become_missing_and_adopted_deletes_are_carried_out() {
        let auth = [
            entry((1, 1), (0, 0), "a", EntryKind::Modify),
            entry((1, 2), (0, 9), "b", EntryKind::Delete),
            entry((1, 3), (0, 0), "b", EntryKind::Modify),
            entry((1, 4), (1, 1), "a", EntryKind::Delete),
        ];
        let merged = run(&[], &auth, &Missing::default());
        assert!(!merged.missing.contains(&key("a")));
        assert_eq!(merged.missing.get(&key("b")), Some(Lack { need: version(1, 3), have: LogVersion::ZERO }));
        assert_eq!(merged.remove, BTreeSet::from([key("b"), key("a")]));
    }

    #[test]
    fn a_divergent_entry_under_an_adopted_one_leaves_nothing_to_trust() {
        let own = [entry((2, 2), (1, 1), "a", EntryKind::Modify)];
        let auth = [entry((3, 2), (1, 1), "a", EntryKind::Modify)];
        let merged = run(&own, &auth, &Missing::default());
        assert_eq!(merged.missing.get(&key("a")), Some(Lack { need: version(3, 2), have: LogVersion::ZERO }));
    }

    #[test]
    fn entries_about_objects_elsewhere_are_entries_only() {
        let own = [entry((1, 1), (0, 0), "here", EntryKind::Modify), entry((1, 2), (0, 0), "there", EntryKind::Modify)];
        let auth =
            [entry((2, 1), (0, 0), "there", EntryKind::Modify), entry((2, 2), (0, 0), "here", EntryKind::Modify)];
        let (own, auth): (Vec<&LogEntry>, Vec<&LogEntry>) = (own.iter().collect(), auth.iter().collect());
        let here = |object: &ObjectName| object.as_bytes() == b"here";
        let merged = merge(LogVersion::ZERO, &own, &auth, &Missing::default(), &BackfillCursor::Complete, &here);
        assert_eq!(merged.adopted.len(), 2);
        assert_eq!(merged.missing.iter().count(), 1);
        assert!(merged.missing.contains(&key("here")) && merged.remove.len() == 1);
        assert_eq!(merged.bytes_delta, 0, "one undone and one done");
    }

    #[test]
    fn objects_beyond_the_backfill_cursor_are_left_to_backfill() {
        let auth = [entry((1, 1), (0, 0), "a", EntryKind::Modify)];
        let auth: Vec<&LogEntry> = auth.iter().collect();
        let merged = merge(LogVersion::ZERO, &[], &auth, &Missing::default(), &BackfillCursor::START, &|_| true);
        assert!(merged.missing.is_empty());
        assert_eq!(merged.adopted.len(), 1);
    }

    #[test]
    fn the_common_version_is_the_newest_shared_entry_or_a_tail() {
        let entries = [entry((1, 1), (0, 0), "a", EntryKind::Modify), entry((2, 2), (0, 0), "b", EntryKind::Modify)];
        let own = Log::from_parts(
            LogVersion::ZERO,
            Vec::new(),
            Vec::new(),
            vec![entries[0].clone(), entry((1, 2), (0, 0), "c", EntryKind::Modify)],
        );
        assert_eq!(common_version(&own, LogVersion::ZERO, &entries), Some(version(1, 1)));
        assert_eq!(common_version(&own, version(1, 2), &[]), Some(version(1, 2)));
        assert_eq!(common_version(&own, version(5, 5), &[]), None);
        let trimmed = Log::from_parts(version(1, 1), Vec::new(), Vec::new(), Vec::new());
        assert_eq!(common_version(&trimmed, LogVersion::ZERO, &entries), Some(version(1, 1)));
    }
}
