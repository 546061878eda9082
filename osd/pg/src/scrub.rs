//! Scrub: the primary of a clean placement group has all copies of its objects compared, without being asked by a reader,
//! and what is wrong repaired through normal recovery.
//!
//! A **pass** goes over all objects in key order, a **chunk** of a few at a time (`primary`; what members do is in `member`
//! and `scan`, what is right in `compare`, when it is time in `schedule`). A shallow pass compares versions, sizes,
//! attributes and rows; a deep one reads all bytes, too. A pass of the primary:
//!
//! | stage | waits for | then |
//! |---|---|---|
//! | none | a wish in the map, or the calendar | `Wait` |
//! | `Wait` | the placement group is clean | `Reserve` |
//! | `Reserve` | the own scrub slot, then that of each member, by id | `Choose` |
//! | `Choose` | clean (what was repaired is whole); the pause is over | the next objects → `Settle`; none are left → the end |
//! | `Settle` | no write to the chunk is on its way | all members are asked → `Scan` |
//! | `Scan` | what each member has, this one included | compared: bad copies → `Mark`, none → `Choose` |
//! | `Mark` | each member whose copies are bad has them in its missing set, durably | they are missing here, too → `Choose` |
//!
//! | in | a write to the chunk | not clean any more | new interval or activation, member gone |
//! |---|---|---|---|
//! | `Settle`, `Scan` | goes on; the chunk begins anew, half as large | the chunk begins anew | the pass ends |
//! | the same, after four times in a row | waits until the chunk is compared, two seconds at most; then it goes on, and the chunk is tried again later, five times | the same | the pass ends |
//! | `Mark` | waits, as long as a write would take | (it is not: that is what follows) | the pass ends; what is marked stays missing |
//!
//! A pass that ended early leaves no stamp and begins again at the first object. What was found stays recorded until a later
//! chunk finds the object whole.
//!
//! Invariants (`docs/invariants.md`): N3, N9, N10 in `compare`; N4 what is compared was neither written nor recovered between
//! the first question and the last answer; N5 a copy found bad is durably missing where it lies before anything takes its place
//! (a crash in between leaves it missing, not trusted), and whoever asks for it is served from a good one; N6 a write waits
//! for a comparison at most [`HOLD_MAX`]; N7 a stamp is set only when each object was compared on all members.

mod compare;
mod findings;
mod member;
mod primary;
mod scan;
mod schedule;
#[cfg(test)]
mod tests;

use std::time::Duration;

use holdfast_types::{LogVersion, ObjectName, Timestamp};
use holdfast_wire::scrub::{Inconsistency, PgScrub, ScrubRecord};

use crate::api::{Outbox, Output, ScrubLimits, Slot};
use crate::key::ObjectKey;
use crate::pg::{Pg, Step};
use crate::rows;
use member::Member;
use primary::Pass;

/// A question that is not answered is asked again after this long.
const RESEND: Duration = Duration::from_secs(1);
/// A write waits this long for a chunk that it must not disturb again.
pub(crate) const HOLD_MAX: Duration = Duration::from_secs(2);
/// Inconsistent objects that are kept by name.
const NAMED_MAX: usize = 64;
/// Inconsistent objects that the monitors are told by name.
const EXAMPLES_MAX: usize = 5;

/// All that a copy of a placement group has to do with scrubs.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// What is known; stored.
    pub record: ScrubRecord,
    /// The time of day, and when it was told.
    wall: Option<(u64, Timestamp)>,
    /// The last question that was asked as the primary.
    number: u64,
    pass: Option<Box<Pass>>,
    member: Member,
    /// A pass that could not go on is not begun anew before this.
    retry_at: Option<Timestamp>,
}

impl Scrub {
    pub fn stored(record: Option<ScrubRecord>) -> Scrub {
        Scrub { record: record.unwrap_or_default(), ..Scrub::default() }
    }

    /// Takes out what is known of some objects, of a copy that is being split into so many `parts`.
    pub fn split_off(&mut self, parts: usize, goes: impl Fn(&ObjectName) -> bool) -> ScrubRecord {
        let record = &mut self.record;
        let all = std::mem::take(&mut record.inconsistent);
        let (inconsistent, kept) = all.into_iter().partition(|found| goes(&found.object));
        record.inconsistent = kept;
        let share = |count: &mut u64| {
            let share = *count / (parts as u64).max(1);
            *count -= share;
            share
        };
        let verified = share(&mut record.verified);
        // Where those are that are not named is not known: all parts have some until the next scrub says better.
        ScrubRecord { verified, repaired: 0, inconsistent, ..record.clone() }
    }

    /// Forgets what is under way: a new interval or activation begins.
    pub fn reset(&mut self, out: &mut Outbox) {
        if self.pass.take().is_some_and(|pass| pass.asked_or_holds_slot()) {
            out.push(Output::Release(Slot::ScrubOutgoing));
        }
        if std::mem::take(&mut self.member).holds_slot() {
            out.push(Output::Release(Slot::ScrubIncoming));
        }
        self.retry_at = None;
    }

    /// The time of day, if it was ever told.
    fn wall_ms(&self, now: Timestamp) -> Option<u64> {
        let (told_ms, at) = self.wall?;
        let since = u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
        Some(told_ms.saturating_add(since))
    }

    /// How much a record tells: the later scrub goes before the earlier one, and anything before what a new disk knows. A
    /// stamp that lies far ahead was made by a clock that was wrong.
    fn rank(&self, record: &ScrubRecord, now: Timestamp) -> (u64, bool) {
        let latest = self.wall_ms(now).map_or(u64::MAX, |now_ms| now_ms.saturating_add(schedule::AHEAD_MAX_MS));
        let stamps = [record.scrubbed_ms, record.deep_scrubbed_ms];
        let newest = stamps.into_iter().filter(|stamp| *stamp <= latest).max().unwrap_or(0);
        let is_blank = ScrubRecord { born_ms: 0, ..record.clone() } == ScrubRecord::default();
        (newest, !is_blank)
    }

    /// What the monitors are told; nothing before the time is known.
    pub fn report(&self) -> Option<PgScrub> {
        let record = &self.record;
        let now_ms = self.wall.map(|(ms, _)| ms);
        if now_ms.is_none() && *record == ScrubRecord::default() && self.pass.is_none() {
            return None;
        }
        let age = |last_ms| now_ms.map_or(0, |now_ms| schedule::age_s(record, last_ms, now_ms));
        Some(PgScrub {
            scrubbed_ms: record.scrubbed_ms,
            deep_scrubbed_ms: record.deep_scrubbed_ms,
            scrub_age_s: age(record.scrubbed_ms),
            deep_scrub_age_s: age(record.deep_scrubbed_ms),
            objects_verified: record.verified,
            objects_inconsistent: record.inconsistent_count(),
            copies_repaired: record.repaired,
            running: self.pass.as_ref().filter(|pass| pass.is_running()).map(|pass| pass.kind),
            served: record.served,
            examples: record.inconsistent.iter().take(EXAMPLES_MAX).map(describe).collect(),
        })
    }
}

fn describe(found: &Inconsistency) -> String {
    let copy = |copy: &holdfast_wire::scrub::BadCopy| format!("{} {}", copy.osd, copy.fault.describe());
    let copies: Vec<String> = found.copies.iter().map(copy).collect();
    format!("{}: {}", found.object.as_bytes().escape_ascii(), copies.join(", "))
}

/// How fast a member reads: slower while the placement group is being written to.
#[derive(Debug, Default)]
struct Pace {
    next: Timestamp,
    head: LogVersion,
}

impl Pace {
    /// Notes that a piece was read, and gives when the next one may be.
    fn pause(&mut self, now: Timestamp, head: LogVersion, limits: &ScrubLimits, urgent: bool) -> Duration {
        let busy = std::mem::replace(&mut self.head, head) != head;
        let pause = match (urgent, busy) {
            (true, _) => Duration::ZERO,
            (false, true) => limits.pause_busy,
            (false, false) => limits.pause,
        };
        self.next = now + pause;
        pause
    }
}

impl Pg {
    /// The time of day.
    pub(crate) fn wall_clock(&mut self, unix_ms: u64, step: &Step<'_>) {
        self.scrub.wall = Some((unix_ms, step.now)).filter(|_| unix_ms > 0);
    }

    /// Stores what is known of scrubs, here and, best effort, on the other members: one that leads later goes on from it.
    fn keep_scrub_record(&mut self, step: &mut Step<'_>) {
        let op = rows::put_scrub(&self.scrub.record);
        self.submit(vec![op], None, step);
        self.share_scrub_record(step);
        step.report = true;
    }

    /// Whether a write to the object must wait for the present chunk.
    pub(crate) fn scrub_holds(&mut self, key: &ObjectKey, step: &mut Step<'_>) -> bool {
        let held = self.scrub.pass.as_mut().is_some_and(|pass| pass.holds(key, step.now));
        if held {
            self.tick_within(HOLD_MAX, step);
        }
        held
    }

    /// A write to the object goes out now: the chunk that it belongs to begins anew.
    pub(crate) fn scrub_saw_write(&mut self, key: &ObjectKey, now: Timestamp) {
        if let Some(pass) = &mut self.scrub.pass {
            pass.saw_write(key, now);
        }
    }
}
