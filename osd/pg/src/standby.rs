//! Which log to take when one copy alone has the last entries and cannot give what they made of their objects.
//!
//! A primary that logged and carried out a write which nobody else heard of has the longest log later, and the only copy of
//! the object in its newest version. If that copy cannot be read (a bad sector elsewhere in the object), taking that log
//! would leave an object that is on no disk, although the write was never acknowledged and the others have all that was.
//!
//! | the longest log | another candidate that misses nothing | the log that is taken |
//! |---|---|---|
//! | ends where that of another candidate does which misses nothing | – | the longest |
//! | has entries of its own, all their objects can be read | ends before | the longest |
//! | has entries of its own, an object of theirs is missing or unreadable there | ends before | the longest of the others that miss nothing, if the same holds for it |
//! | any | there is none (left), and nobody is down who could be one | the longest |
//! | its objects can be read beyond what any other complete copy tells of (where an object is missing: has, for it may have been filled from this one), and the last activation had adopted | none (left); one who is down could be | the longest |
//! | an object of theirs is missing or unreadable | the same | none for a minute, while that one is waited for; then the longest |
//!
//! Why another log may be taken (the whole proof is in `docs/adr/0009-…`): every candidate (a complete copy with `info_les ≥ M`)
//! has taken part in the last activation under which anything was acknowledged, so it has all that was (W1). What only some
//! candidates have was acknowledged to nobody; it is **divergent**, and the merge takes it back as it always does. Why the
//! other one must miss nothing: a delete does not wait for a copy that has no room (V3), so one that lacked an object when
//! it was deleted does not have the version that takes the delete's place.
//!
//! Why one who is down is waited for: the activation raises M, and who was not there is no candidate any more.
//!
//! Nothing of this is kept but the minute: a primary that peers again finds the same, or what was taken back is gone from
//! its log.
//! Whether an object can be read decides only which of several right logs is taken; an answer that is wrong, late or left
//! out (by a member that does not know the question) loses nothing that was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_types::{LogVersion, ObjectName, OsdId};
use holdfast_wire::peer::{EntryKind, MissingItem, PastInterval, PgInfo, PiecePosition};

use crate::key::ObjectKey;
use crate::pg::{Pg, Step};
use crate::{intervals, split, transfer};

/// Bytes that are read at most to find out whether what only one log tells of can be given: writes that were under way at
/// one moment. What is beyond is taken to be readable. It is read in one step, by a disk that may be retrying bad sectors, while
/// heartbeats wait.
const READ_BYTES_MAX: u64 = 8 << 20;
/// What an object costs of that beside its bytes.
const OBJECT_COST: u64 = 64 << 10;

/// Whose log to take, and where the log of another candidate ends that could take its place: what is after that, the
/// source must be able to give. `stand_ins` are the candidates that may take the place of another.
pub(crate) fn source<'a, R: Ord>(
    longest: (OsdId, &'a PgInfo),
    ungiving: &BTreeSet<OsdId>,
    stand_ins: impl Iterator<Item = (OsdId, &'a PgInfo)> + Clone,
    rank: impl Fn(&OsdId, &PgInfo) -> R,
) -> (OsdId, Option<LogVersion>) {
    let misses_nothing = |(_, info): &(OsdId, &PgInfo)| info.last_complete == info.last_update;
    let whole = stand_ins.filter(misses_nothing);
    let chosen = match ungiving.contains(&longest.0) {
        false => Some(longest),
        true => whole.clone().max_by_key(|(osd, info)| rank(osd, info)),
    };
    let Some((osd, info)) = chosen else { return (longest.0, None) };
    let next = whole.filter(|(other, _)| *other != osd).map(|(_, info)| info.last_update).max();
    (osd, next.filter(|end| *end < info.last_update))
}

impl Pg {
    /// Who is down and may have a log that could take the place of the longest: members of the intervals that count, on the
    /// disk that they had then. Nobody where there are too few members for writes: such an activation rules nobody out.
    pub(crate) fn absent_stand_ins(&self) -> BTreeSet<OsdId> {
        if !self.interval.has_enough_acting() {
            return BTreeSet::new();
        }
        let members = |past: &PastInterval| past.acting.iter().map(|osd| (*osd, past.first)).collect::<Vec<_>>();
        let members = intervals::needed(&self.history).flat_map(members);
        let absent = members.filter(|(osd, first)| !self.map.is_up(*osd) && self.map.has_disk_of(*osd, *first));
        absent.map(|(osd, _)| osd).collect()
    }

    /// The first object found that this copy cannot give in the version that its own log says, of those that its log tells
    /// of after `after`. What this step changes the store does not show: it is taken to be readable.
    pub(crate) fn first_ungivable(&mut self, after: LogVersion, step: &mut Step<'_>) -> Option<MissingItem> {
        let here = split::has(&self.map, self.id);
        let mut newest: BTreeMap<&ObjectName, (EntryKind, LogVersion)> = BTreeMap::new();
        for entry in self.holding.log.after(after).filter(|entry| here(&entry.object)) {
            newest.insert(&entry.object, (entry.kind, entry.version));
        }
        let modified = newest.into_iter().filter(|(_, (kind, _))| *kind == EntryKind::Modify);
        let modified: Vec<(ObjectKey, LogVersion)> =
            modified.map(|(object, (_, version))| (ObjectKey::of(object), version)).collect();
        // What is known to be missing costs nothing to find.
        let missing = modified.iter().find_map(|(key, _)| Some((key, self.holding.missing.get(key)?)));
        if let Some((key, lack)) = missing {
            return Some(MissingItem { object: key.name(), need: lack.need, have: lack.have });
        }
        let mut budget = READ_BYTES_MAX;
        for (key, version) in modified {
            if budget == 0 {
                break;
            }
            if !step.touched.contains(&key) && !self.can_give(&key, version, &mut budget, step) {
                return Some(MissingItem { object: key.name(), need: version, have: LogVersion::ZERO });
            }
        }
        None
    }

    /// Whether an object can be read here from its beginning to its end, in this version.
    fn can_give(&mut self, key: &ObjectKey, version: LogVersion, budget: &mut u64, step: &mut Step<'_>) -> bool {
        let mut position = PiecePosition::default();
        *budget = budget.saturating_sub(OBJECT_COST);
        loop {
            match transfer::read_piece(step.store, key, version, &position, self.limits.piece_bytes) {
                Ok(Some(piece)) => {
                    let rows = piece.rows.iter().map(|row| row.key.len() + row.value.len()).sum::<usize>();
                    *budget = budget.saturating_sub((piece.data.len() + rows) as u64);
                    match piece.next {
                        Some(next) if *budget > 0 => position = next,
                        _ => return true,
                    }
                }
                Ok(None) => return false,
                Err(error) => {
                    self.note_damage(key, &error, step);
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use holdfast_types::Epoch;
    use holdfast_wire::peer::BackfillCursor;

    use super::*;

    fn at(counter: u64) -> LogVersion {
        LogVersion { epoch: Epoch(3), counter }
    }

    fn copy(head: u64, complete: u64) -> PgInfo {
        PgInfo {
            last_update: at(head),
            last_complete: at(complete),
            log_tail: at(1),
            last_backfill: BackfillCursor::Complete,
            last_epoch_started: Epoch(3),
            objects: 0,
            bytes: 0,
            lost: None,
            guessed: None,
            replaces_bytes: None,
        }
    }

    /// Copies by their OSD's number; the first one has the longest log.
    fn judged(copies: &[PgInfo], ungiving: &[u32]) -> (u32, Option<u64>) {
        let ungiving: BTreeSet<OsdId> = ungiving.iter().copied().map(OsdId).collect();
        let all = copies.iter().zip(0..).map(|(info, osd)| (OsdId(osd), info));
        let stand_ins = all.filter(|(osd, _)| !ungiving.contains(osd));
        let rank = |osd: &OsdId, info: &PgInfo| (info.last_update, Reverse(*osd));
        let (osd, after) = source((OsdId(0), &copies[0]), &ungiving, stand_ins, rank);
        (osd.0, after.map(|after| after.counter))
    }

    #[test]
    fn what_another_whole_copy_has_too_need_not_be_read() {
        assert_eq!(judged(&[copy(9, 9), copy(9, 9), copy(7, 7)], &[]), (0, None));
    }

    #[test]
    fn what_only_one_log_tells_of_must_be_read_from_where_the_next_whole_copy_ends() {
        assert_eq!(judged(&[copy(9, 9), copy(8, 8), copy(7, 7)], &[]), (0, Some(8)));
        assert_eq!(judged(&[copy(9, 9), copy(9, 8), copy(7, 7)], &[]), (0, Some(7)), "the second one misses something");
    }

    #[test]
    fn a_log_that_cannot_be_given_gives_way_to_the_next_one_that_can() {
        let copies = [copy(9, 9), copy(8, 8), copy(7, 7)];
        assert_eq!(judged(&copies, &[0]), (1, Some(7)));
        assert_eq!(judged(&copies, &[0, 1]), (2, None));
    }

    #[test]
    fn a_copy_that_misses_something_never_takes_the_place_of_another() {
        assert_eq!(judged(&[copy(9, 9), copy(8, 5)], &[]), (0, None), "nothing to go back to: nothing is read");
        assert_eq!(judged(&[copy(9, 9), copy(8, 5)], &[0]), (0, None));
        assert_eq!(judged(&[copy(9, 9), copy(8, 5), copy(7, 7)], &[0]), (2, None));
    }

    #[test]
    fn when_none_can_give_what_it_tells_of_the_longest_log_stays() {
        assert_eq!(judged(&[copy(9, 9), copy(8, 8)], &[0, 1]), (0, None));
    }
}
