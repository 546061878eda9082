//! Which copies of an object are wrong, and which is right: one pure function of what all acting members have of it.
//!
//! No member is believed for being the primary. In this order:
//!
//! | what is known | right is |
//! |---|---|
//! | the log's newest entry deletes the object | nothing: whatever is there is removed |
//! | the log's newest entry makes version `v` | a copy of version `v` |
//! | nothing: the log does not reach back so far | what is there, as it is |
//! | copies that cannot be read, or have no version | none of these, ever |
//! | the rest is all the same | that |
//! | the rest differs | what more than half of it agrees on, if nothing of it is of a newer version |
//! | else | not known: [`Verdict::Unclear`], nothing is touched |
//!
//! That an object does *not* exist has no checksum, and two disks may have lost it: without the log's word it counts only
//! when all that is left elsewhere was never whole. When a person has asked for repair, copies that verify are sent to who
//! has none: an object that should be gone can be deleted again, the last copy of one that should not cannot be had back.
//!
//! Invariants: N9 a copy that was verified, is of the version that the log names (or the newest, where it names none) and
//! stands against no other is never overwritten; N10 the result does not depend on which OSD is which; N3 no version that
//! verifies gives way to an older one, unless the log names the older.

use std::collections::BTreeMap;

use holdfast_types::{LogVersion, OsdId};
use holdfast_wire::scrub::{BadCopy, CopyFault, CopySummary, ScrubCopy};

use crate::mutants::{Mutant, on};

/// What the log says that there must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The log does not tell of the object any more.
    Unknown,
    /// This version.
    Version(LogVersion),
    /// No such object.
    Deleted,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All copies are right.
    Whole,
    /// The bad ones are to be replaced by this version, which the others have.
    Replace(LogVersion),
    /// The object does not exist: the bad ones are to be removed.
    Remove,
    /// It cannot be told.
    Unclear,
}

/// The outcome for one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub verdict: Verdict,
    /// Copies that are wrong, by OSD; with [`Verdict::Unclear`], those that may be.
    pub bad: Vec<BadCopy>,
}

/// What a member has, apart from what nobody can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Usable {
    Absent,
    Whole(CopySummary),
}

fn usable(copy: Option<&ScrubCopy>) -> Option<Usable> {
    match copy {
        None => Some(Usable::Absent),
        Some(ScrubCopy::Whole(summary)) => Some(Usable::Whole(*summary)),
        Some(ScrubCopy::Unreadable { .. } | ScrubCopy::HalfWritten) => None,
    }
}

/// Judges one object. `copies` has one entry for each acting member, `None` where there is nothing. `asked`: a person
/// wants it repaired.
pub(crate) fn judge(copies: &BTreeMap<OsdId, Option<ScrubCopy>>, expected: Expected, asked: bool) -> Judgement {
    let Some(right) = right_copy(copies, expected, asked) else {
        return Judgement { verdict: Verdict::Unclear, bad: doubtful(copies, expected) };
    };
    let bad = |(osd, copy): (&OsdId, &Option<ScrubCopy>)| {
        fault(copy.as_ref(), right).map(|fault| BadCopy { osd: *osd, fault })
    };
    let bad: Vec<BadCopy> = copies.iter().filter_map(bad).collect();
    let verdict = match right {
        _ if bad.is_empty() => Verdict::Whole,
        Usable::Whole(summary) => Verdict::Replace(summary.version),
        Usable::Absent => Verdict::Remove,
    };
    Judgement { verdict, bad }
}

fn right_copy(copies: &BTreeMap<OsdId, Option<ScrubCopy>>, expected: Expected, asked: bool) -> Option<Usable> {
    if expected == Expected::Deleted {
        return Some(Usable::Absent);
    }
    if on(Mutant::ScrubBelievesFirst) {
        return copies.values().next().map(|copy| usable(copy.as_ref()).unwrap_or(Usable::Absent));
    }
    let exists = copies.values().any(|copy| matches!(copy, Some(ScrubCopy::Whole(_))));
    let mut groups = BTreeMap::<Usable, usize>::new();
    for candidate in copies.values().filter_map(|copy| usable(copy.as_ref())) {
        let eligible = match (expected, candidate) {
            (Expected::Version(version), Usable::Whole(summary)) => summary.version == version,
            (Expected::Version(_), Usable::Absent) => false,
            (Expected::Unknown, Usable::Absent) => !(asked && exists),
            (Expected::Unknown | Expected::Deleted, _) => true,
        };
        if eligible {
            *groups.entry(candidate).or_default() += 1;
        }
    }
    let candidates: usize = groups.values().sum();
    let (winner, votes) = groups.iter().max_by_key(|(_, votes)| **votes)?;
    if votes * 2 <= candidates {
        return None;
    }
    match winner {
        Usable::Absent => {
            let never_whole = |copy: &Option<ScrubCopy>| matches!(copy, None | Some(ScrubCopy::HalfWritten));
            copies.values().all(never_whole).then_some(Usable::Absent)
        }
        Usable::Whole(summary) => {
            let newer = |copy: &Option<ScrubCopy>| known_version(copy.as_ref()) > summary.version;
            let outdated = expected == Expected::Unknown && copies.values().any(newer);
            (!outdated).then_some(*winner)
        }
    }
}

/// The version that a copy says it has; zero when it says none.
fn known_version(copy: Option<&ScrubCopy>) -> LogVersion {
    match copy {
        Some(ScrubCopy::Whole(summary)) => summary.version,
        Some(ScrubCopy::Unreadable { version }) => version.unwrap_or(LogVersion::ZERO),
        Some(ScrubCopy::HalfWritten) | None => LogVersion::ZERO,
    }
}

/// How a copy differs from the right one, if it does.
fn fault(copy: Option<&ScrubCopy>, right: Usable) -> Option<CopyFault> {
    let Usable::Whole(right) = right else {
        return copy.map(|_| CopyFault::Extra);
    };
    match copy {
        None => Some(CopyFault::Missing),
        Some(ScrubCopy::Unreadable { .. }) => Some(CopyFault::Unreadable),
        Some(ScrubCopy::HalfWritten) => Some(CopyFault::HalfWritten),
        Some(ScrubCopy::Whole(summary)) if summary.version != right.version => Some(CopyFault::Version),
        Some(ScrubCopy::Whole(summary)) if summary.size != right.size => Some(CopyFault::Size),
        Some(ScrubCopy::Whole(summary)) if summary.meta != right.meta => Some(CopyFault::Meta),
        Some(ScrubCopy::Whole(summary)) if summary.data != right.data => Some(CopyFault::Data),
        Some(ScrubCopy::Whole(_)) => None,
    }
}

/// What to tell a person when nobody can be said to be right: what is wrong by itself, else how each differs from the
/// newest that can be read.
fn doubtful(copies: &BTreeMap<OsdId, Option<ScrubCopy>>, expected: Expected) -> Vec<BadCopy> {
    let newest = copies.values().filter_map(|copy| usable(copy.as_ref())).max();
    let of = |copy: Option<&ScrubCopy>| match copy {
        Some(ScrubCopy::Unreadable { .. }) => Some(CopyFault::Unreadable),
        Some(ScrubCopy::HalfWritten) => Some(CopyFault::HalfWritten),
        None => Some(CopyFault::Missing),
        Some(ScrubCopy::Whole(summary)) => match expected {
            Expected::Version(version) if summary.version != version => Some(CopyFault::Version),
            _ => newest.and_then(|newest| fault(copy, newest)),
        },
    };
    copies.iter().filter_map(|(osd, copy)| of(copy.as_ref()).map(|fault| BadCopy { osd: *osd, fault })).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use holdfast_types::Epoch;
    use proptest::prelude::*;

    use super::*;

    fn at(counter: u64) -> LogVersion {
        LogVersion { epoch: Epoch(1), counter }
    }

    fn whole(counter: u64, data: u64) -> Option<ScrubCopy> {
        Some(ScrubCopy::Whole(CopySummary { version: at(counter), size: 10, meta: 1, data: Some(data) }))
    }

    fn rotten(counter: u64) -> Option<ScrubCopy> {
        Some(ScrubCopy::Unreadable { version: Some(at(counter)) })
    }

    const HALF: Option<ScrubCopy> = Some(ScrubCopy::HalfWritten);

    fn copies(list: &[Option<ScrubCopy>]) -> BTreeMap<OsdId, Option<ScrubCopy>> {
        (0..).map(OsdId).zip(list.iter().copied()).collect()
    }

    #[track_caller]
    fn check(list: &[Option<ScrubCopy>], expected: Expected, verdict: Verdict, bad: &[(u32, CopyFault)]) {
        let judged = judge(&copies(list), expected, false);
        let bad: Vec<BadCopy> = bad.iter().map(|(osd, fault)| BadCopy { osd: OsdId(*osd), fault: *fault }).collect();
        assert_eq!(judged, Judgement { verdict, bad });
    }

    #[test]
    fn equal_copies_are_whole() {
        check(&[whole(5, 1), whole(5, 1), whole(5, 1)], Expected::Unknown, Verdict::Whole, &[]);
        check(&[whole(5, 1), whole(5, 1), whole(5, 1)], Expected::Version(at(5)), Verdict::Whole, &[]);
        check(&[None, None, None], Expected::Unknown, Verdict::Whole, &[]);
    }

    #[test]
    fn one_copy_that_verifies_wins_over_any_number_that_do_not() {
        use CopyFault::{HalfWritten, Unreadable};
        let list = [rotten(5), whole(5, 1), rotten(5)];
        check(&list, Expected::Unknown, Verdict::Replace(at(5)), &[(0, Unreadable), (2, Unreadable)]);
        let list = [HALF, whole(5, 1)];
        check(&list, Expected::Unknown, Verdict::Replace(at(5)), &[(0, HalfWritten)]);
    }

    #[test]
    fn the_majority_of_what_verifies_wins_and_a_draw_is_left_alone() {
        use CopyFault::{Data, Missing, Unreadable};
        let list = [whole(5, 9), whole(5, 1), whole(5, 1)];
        check(&list, Expected::Unknown, Verdict::Replace(at(5)), &[(0, Data)]);
        let list = [whole(5, 1), None, whole(5, 1)];
        check(&list, Expected::Unknown, Verdict::Replace(at(5)), &[(1, Missing)]);
        // One of each, and the primary is not asked.
        check(&[whole(5, 2), whole(5, 1)], Expected::Unknown, Verdict::Unclear, &[(1, Data)]);
        let list = [whole(5, 2), whole(5, 1), rotten(5)];
        check(&list, Expected::Version(at(5)), Verdict::Unclear, &[(1, Data), (2, Unreadable)]);
        check(&[rotten(5), rotten(5)], Expected::Unknown, Verdict::Unclear, &[(0, Unreadable), (1, Unreadable)]);
    }

    #[test]
    fn the_log_decides_between_versions() {
        use CopyFault::{Missing, Version};
        let list = [whole(3, 1), whole(5, 2), whole(3, 1)];
        check(&list, Expected::Version(at(5)), Verdict::Replace(at(5)), &[(0, Version), (2, Version)]);
        check(&list, Expected::Unknown, Verdict::Unclear, &[(0, Version), (2, Version)]);
        let list = [whole(5, 1), None, None];
        check(&list, Expected::Version(at(5)), Verdict::Replace(at(5)), &[(1, Missing), (2, Missing)]);
        let list = [whole(3, 1), whole(3, 1)];
        check(&list, Expected::Version(at(5)), Verdict::Unclear, &[(0, Version), (1, Version)]);
    }

    #[test]
    fn an_older_majority_never_replaces_a_newer_copy_that_cannot_be_read_either() {
        use CopyFault::{Unreadable, Version};
        let _ = Version;
        check(&[whole(3, 1), whole(3, 1), rotten(5)], Expected::Unknown, Verdict::Unclear, &[(2, Unreadable)]);
    }

    #[test]
    fn what_is_removed_is_what_the_log_deleted_or_was_never_whole() {
        use CopyFault::{Extra, Missing};
        check(&[None, whole(5, 1), None], Expected::Deleted, Verdict::Remove, &[(1, Extra)]);
        check(&[None, HALF, None], Expected::Unknown, Verdict::Remove, &[(1, Extra)]);
        // Two disks may have lost it.
        check(&[None, whole(5, 1), None], Expected::Unknown, Verdict::Unclear, &[(0, Missing), (2, Missing)]);
        let asked = judge(&copies(&[None, whole(5, 1), None]), Expected::Unknown, true);
        assert_eq!(asked.verdict, Verdict::Replace(at(5)), "the only copy that verifies is not given up");
        let asked = judge(&copies(&[None, whole(5, 1), whole(4, 1)]), Expected::Unknown, true);
        assert_eq!(asked.verdict, Verdict::Unclear, "which one cannot be said");
        let asked = judge(&copies(&[None, rotten(5), None]), Expected::Unknown, true);
        assert_eq!(asked.verdict, Verdict::Unclear, "what it was cannot be seen");
    }

    fn any_copy() -> impl Strategy<Value = Option<ScrubCopy>> {
        prop_oneof![
            Just(None),
            Just(HALF),
            (1u64..4).prop_map(rotten),
            (1u64..4, 0u64..2).prop_map(|(version, data)| whole(version, data)),
            (1u64..4, 0u64..2).prop_map(|(version, data)| whole(version, data)),
        ]
    }

    fn any_expected() -> impl Strategy<Value = Expected> {
        prop_oneof![Just(Expected::Unknown), Just(Expected::Deleted), (1u64..4).prop_map(|v| Expected::Version(at(v)))]
    }

    proptest! {
        #[test]
        fn no_osd_is_believed_for_its_name(list in prop::collection::vec(any_copy(), 1..5), expected in any_expected(), asked: bool) {
            let turned: Vec<_> = list.iter().rev().copied().collect();
            let last = u32::try_from(list.len()).unwrap() - 1;
            let mut there = judge(&copies(&list), expected, asked);
            let mut back = judge(&copies(&turned), expected, asked);
            for bad in &mut back.bad {
                bad.osd = OsdId(last - bad.osd.0);
            }
            there.bad.sort_by_key(|bad| bad.osd);
            back.bad.sort_by_key(|bad| bad.osd);
            prop_assert_eq!(there, back);
        }

        #[test]
        fn a_repair_has_a_source_that_verifies_and_takes_nothing_newer_away(
            list in prop::collection::vec(any_copy(), 1..5), expected in any_expected(), asked: bool,
        ) {
            let copies = copies(&list);
            let judged = judge(&copies, expected, asked);
            let bad = |osd: &OsdId| judged.bad.iter().any(|copy| copy.osd == *osd);
            let good: Vec<_> = copies.iter().filter(|(osd, _)| !bad(osd)).map(|(_, copy)| *copy).collect();
            match judged.verdict {
                Verdict::Whole => prop_assert!(good.len() == list.len() && good.windows(2).all(|pair| pair[0] == pair[1])),
                Verdict::Replace(version) => {
                    prop_assert!(!good.is_empty() && good.windows(2).all(|pair| pair[0] == pair[1]));
                    let source = matches!(good[0], Some(ScrubCopy::Whole(summary)) if summary.version == version);
                    prop_assert!(source);
                    match expected {
                        Expected::Version(named) => prop_assert_eq!(named, version),
                        Expected::Unknown => {
                            prop_assert!(list.iter().all(|copy| known_version(copy.as_ref()) <= version));
                        }
                        Expected::Deleted => prop_assert!(false, "what is deleted is not sent"),
                    }
                }
                Verdict::Remove => {
                    let never_whole = list.iter().all(|copy| copy.is_none() || *copy == HALF);
                    prop_assert!(expected == Expected::Deleted || never_whole);
                }
                Verdict::Unclear => prop_assert!(!judged.bad.is_empty()),
            }
        }
    }
}
