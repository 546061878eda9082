//! What the leader makes of scrubs: wishes that are fulfilled, counts, health.

use holdfast_map::ClusterMap;
use holdfast_types::{Epoch, PgId, Timestamp};
use holdfast_wire::mon::{HealthCheck, Severity};
use holdfast_wire::scrub::{PgScrub, ScrubStatus};

use super::health::{check, plural};
use super::stats::{PgView, Stats};

/// A placement group that was not scrubbed for this long is overdue: the daily scrub, and half of that again.
const SCRUB_OVERDUE_S: u64 = 36 * 60 * 60;
/// The same for the weekly deep scrub.
const DEEP_SCRUB_OVERDUE_S: u64 = 252 * 60 * 60;
/// Wishes that are ended with one change.
const SERVED_MAX: usize = 1_024;

/// Wishes of the map that their primaries report as fulfilled.
pub(super) fn served(map: &ClusterMap, stats: &Stats, now: Timestamp) -> Vec<(PgId, Epoch)> {
    if map.scrub_wishes.is_empty() {
        return Vec::new();
    }
    let views = stats.views(map, now);
    let done = views.iter().filter_map(|view| {
        let wish = map.scrub_wishes.get(&view.pg)?;
        let served = view.last?.scrub.as_ref()?.served;
        (served >= wish.epoch).then_some((view.pg, wish.epoch))
    });
    done.take(SERVED_MAX).collect()
}

fn scrub_of<'a>(view: &PgView<'a>) -> Option<&'a PgScrub> {
    view.last.and_then(|report| report.scrub.as_ref())
}

/// All placement groups together.
pub(super) fn status(views: &[PgView<'_>]) -> ScrubStatus {
    let mut sum = ScrubStatus::default();
    for scrub in views.iter().filter_map(scrub_of) {
        sum.objects_verified = sum.objects_verified.saturating_add(scrub.objects_verified);
        sum.objects_inconsistent = sum.objects_inconsistent.saturating_add(scrub.objects_inconsistent);
        sum.copies_repaired = sum.copies_repaired.saturating_add(scrub.copies_repaired);
        sum.pgs_scrubbing += u32::from(scrub.running.is_some());
        sum.oldest_scrub_age_s = sum.oldest_scrub_age_s.max(scrub.scrub_age_s);
        sum.oldest_deep_scrub_age_s = sum.oldest_deep_scrub_age_s.max(scrub.deep_scrub_age_s);
    }
    sum
}

/// What is not as it should be.
pub(super) fn checks(views: &[PgView<'_>]) -> Vec<HealthCheck> {
    let mut checks = Vec::new();
    let groups = |count| plural(count, "placement group", "placement groups");
    let damaged: Vec<(&PgView<'_>, &PgScrub)> = views
        .iter()
        .filter_map(|view| scrub_of(view).map(|scrub| (view, scrub)))
        .filter(|(_, scrub)| scrub.objects_inconsistent > 0)
        .collect();
    if !damaged.is_empty() {
        let objects: u64 = damaged.iter().map(|(_, scrub)| scrub.objects_inconsistent).sum();
        let fix = "`holdfast health detail` names them; check the devices, then `holdfast pg repair PG` for what can be \
                   told to be wrong; what cannot is written anew or deleted";
        let named = damaged.iter().flat_map(|(view, scrub)| {
            scrub.examples.iter().map(|example| format!("pg {}: {example}", view.pg)).collect::<Vec<String>>()
        });
        checks.push(check(
            "OSD_SCRUB_ERRORS",
            Severity::Error,
            format!(
                "{} with copies that differ or cannot be read",
                plural(usize::try_from(objects).unwrap_or(usize::MAX), "object", "objects")
            ),
            named.collect(),
            "a copy of these objects is wrong, and it could not be told, or was not decided, which",
            fix,
        ));
        let line = |(view, scrub): &(&PgView<'_>, &PgScrub)| {
            format!("pg {} is {}: {} objects are inconsistent", view.pg, view.describe(), scrub.objects_inconsistent)
        };
        checks.push(check(
            "PG_DAMAGED",
            Severity::Error,
            format!("possible data damage: {} inconsistent", groups(damaged.len())),
            damaged.iter().map(line).collect(),
            "reads of these objects are answered by one copy; another one would answer otherwise, or not at all",
            fix,
        ));
    }
    let overdue = |limit: u64, age: fn(&PgScrub) -> u64| -> Vec<String> {
        let late = views.iter().filter_map(|view| scrub_of(view).map(|scrub| (view, age(scrub))));
        late.filter(|(_, age)| *age > limit)
            .map(|(view, age)| format!("pg {} was not for {} hours", view.pg, age / 3_600))
            .collect()
    };
    let impact = "copies that went bad since would not be known; they are found when they are read";
    let scrub = overdue(SCRUB_OVERDUE_S, |scrub| scrub.scrub_age_s);
    if !scrub.is_empty() {
        checks.push(check(
            "PG_NOT_SCRUBBED",
            Severity::Warning,
            format!("{} not scrubbed in time", groups(scrub.len())),
            scrub,
            impact,
            "scrubs need active+clean placement groups (`holdfast pg ls --unclean`); `holdfast pg scrub PG` has one now",
        ));
    }
    let deep = overdue(DEEP_SCRUB_OVERDUE_S, |scrub| scrub.deep_scrub_age_s);
    if !deep.is_empty() {
        checks.push(check(
            "PG_NOT_DEEP_SCRUBBED",
            Severity::Warning,
            format!("{} not deep-scrubbed in time", groups(deep.len())),
            deep,
            impact,
            "deep scrubs need active+clean placement groups (`holdfast pg ls --unclean`); `holdfast pg deep-scrub PG` has \
             one now",
        ));
    }
    checks
}
