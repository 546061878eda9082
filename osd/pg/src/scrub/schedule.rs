//! When a placement group is to be scrubbed: a pure function of what is recorded, the time of day and its id.
//!
//! A first scrub falls anywhere in the first interval after the placement group was first told the time, a later one
//! between three quarters of the interval and the whole of it after the one before. Where exactly is the id's business: so
//! placement groups that were made together are not scrubbed together, and each is done before it is overdue.

use std::time::Duration;

use holdfast_map::ScrubKind;
use holdfast_types::PgId;
use holdfast_wire::scrub::ScrubRecord;

use crate::api::ScrubLimits;

/// A stamp that lies so far ahead was made by a clock that was wrong, and counts for nothing.
pub(super) const AHEAD_MAX_MS: u64 = 24 * 60 * 60 * 1_000;

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The part of `whole` that falls to this placement group, evenly spread over all ids.
fn share(whole: u64, pg: PgId, salt: u64) -> u64 {
    let mut mixed = (u64::from(pg.seed) << 32 ^ pg.pool.0 ^ salt.rotate_left(17)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    u64::try_from((u128::from(whole) * u128::from(mixed)) >> 64).unwrap_or(0)
}

/// When the next one is due, in Unix milliseconds. `last_ms` zero: there was none.
fn due_at(record: &ScrubRecord, last_ms: u64, interval: Duration, pg: PgId, salt: u64, now_ms: u64) -> u64 {
    let interval = millis(interval);
    if last_ms == 0 || last_ms > now_ms.saturating_add(AHEAD_MAX_MS) {
        return record.born_ms.min(now_ms).saturating_add(share(interval, pg, salt));
    }
    last_ms.saturating_add(interval).saturating_sub(share(interval / 4, pg, salt))
}

/// What is due now by the calendar, if anything. A deep scrub counts for a shallow one, too.
pub(crate) fn due(record: &ScrubRecord, pg: PgId, limits: &ScrubLimits, now_ms: u64) -> Option<ScrubKind> {
    let deep = due_at(record, record.deep_scrubbed_ms, limits.deep_interval, pg, 1, now_ms);
    if deep <= now_ms {
        return Some(ScrubKind::Deep);
    }
    let shallow = due_at(record, record.scrubbed_ms, limits.interval, pg, 2, now_ms);
    (shallow <= now_ms).then_some(ScrubKind::Shallow)
}

/// Seconds since a scrub, or since the placement group was first told the time.
pub(crate) fn age_s(record: &ScrubRecord, last_ms: u64, now_ms: u64) -> u64 {
    let since = if last_ms == 0 || last_ms > now_ms.saturating_add(AHEAD_MAX_MS) { record.born_ms } else { last_ms };
    if since == 0 {
        return 0; // it is not known yet how old it is
    }
    now_ms.saturating_sub(since) / 1_000
}

#[cfg(test)]
mod tests {
    use holdfast_types::PoolId;

    use super::*;

    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
    const NOW: u64 = 1_700_000_000_000;

    fn pgs() -> impl Iterator<Item = PgId> {
        (1..5).flat_map(|pool| (0..64).map(move |seed| PgId { pool: PoolId(pool), seed }))
    }

    fn record(born_ms: u64, scrubbed_ms: u64, deep_scrubbed_ms: u64) -> ScrubRecord {
        ScrubRecord { born_ms, scrubbed_ms, deep_scrubbed_ms, ..ScrubRecord::default() }
    }

    #[test]
    fn first_scrubs_spread_over_the_whole_interval() {
        let limits = ScrubLimits::default();
        let new = record(NOW, 0, 0);
        let due_after = |part: u64| pgs().filter(|pg| due(&new, *pg, &limits, NOW + part).is_some()).count();
        let all = pgs().count();
        let (quarter, half) = (due_after(DAY_MS / 4), due_after(DAY_MS / 2));
        assert!((all / 6..all / 2).contains(&quarter), "{quarter} of {all} after a quarter of a day");
        assert!((all / 3..all * 4 / 5).contains(&half), "{half} of {all} after half a day");
        assert_eq!(due_after(DAY_MS), all, "all within a day");
    }

    #[test]
    fn each_is_done_daily_and_deeply_every_week_and_not_all_at_once() {
        let limits = ScrubLimits::default();
        for pg in pgs() {
            let fresh = record(1, NOW, NOW);
            assert_eq!(due(&fresh, pg, &limits, NOW + DAY_MS * 3 / 4 - 1), None);
            assert_eq!(due(&fresh, pg, &limits, NOW + DAY_MS), Some(ScrubKind::Shallow));
            let shallow_only = record(1, NOW + 7 * DAY_MS, NOW);
            assert_eq!(due(&shallow_only, pg, &limits, NOW + 7 * DAY_MS), Some(ScrubKind::Deep));
        }
        let at = NOW + DAY_MS * 7 / 8;
        let due_now = pgs().filter(|pg| due(&record(1, NOW, NOW), *pg, &limits, at).is_some()).count();
        assert!(due_now > 64 && due_now < 192, "{due_now} of 256 in the middle of the last quarter");
    }

    #[test]
    fn a_stamp_from_a_wrong_clock_does_not_put_scrubs_off_for_ever() {
        let limits = ScrubLimits::default();
        let pg = PgId { pool: PoolId(1), seed: 0 };
        let future = record(NOW, NOW + 9_000 * DAY_MS, NOW + 9_000 * DAY_MS);
        assert!(due(&future, pg, &limits, NOW + 7 * DAY_MS).is_some());
        assert_eq!(age_s(&future, future.scrubbed_ms, NOW + DAY_MS), DAY_MS / 1_000);
        assert_eq!(age_s(&record(NOW, NOW, NOW), NOW, NOW - 5), 0, "nor is an age below nothing");
        assert_eq!(age_s(&record(0, 0, 0), 0, NOW), 0, "what was just made is not as old as the calendar");
    }
}
