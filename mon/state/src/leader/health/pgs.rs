//! Placement groups: served, complete, counted.

use holdfast_wire::mon::{HealthCheck, Severity};

use super::super::stats::PgView;
use super::{check, plural};

pub(super) fn checks(views: &[PgView<'_>]) -> Vec<HealthCheck> {
    let line = |view: &PgView<'_>| {
        let acting: Vec<String> = view.acting.iter().map(|osd| osd.0.to_string()).collect();
        let mut line = format!("pg {} is {}, acting [{}]", view.pg, view.describe(), acting.join(","));
        if let Some(report) = view.report
            && !report.blocked_by.is_empty()
        {
            let blocked: Vec<String> = report.blocked_by.iter().map(ToString::to_string).collect();
            line.push_str(&format!(", waits for {}", blocked.join(", ")));
        }
        line
    };
    let select = |wanted: &dyn Fn(&PgView<'_>) -> bool| -> Vec<String> {
        views.iter().filter(|view| wanted(view)).map(line).collect()
    };
    let short = |view: &PgView<'_>| (view.acting.len() as u64) < u64::from(view.pool.min_size());
    let serves_not = |view: &PgView<'_>| short(view) || view.report.is_some() && !view.state.active;
    let unavailable = select(&serves_not);
    let unknown = select(&|view| view.report.is_none() && !short(view));
    let degraded = select(&|view| !serves_not(view) && view.state.degraded);
    let unsettled =
        |view: &PgView<'_>| view.report.is_some() && view.state.active && !view.state.clean && !view.state.degraded;
    let not_clean = select(&unsettled);
    let uncounted = views.iter().filter(|view| unsettled(view) && !moves(view)).count();
    let unfound = select(&|view| view.report.is_some_and(|report| report.objects_unfound > 0));
    let total = views.len();
    let mut checks = Vec::new();
    if !unavailable.is_empty() {
        checks.push(check(
            "PG_UNAVAILABLE",
            Severity::Error,
            format!(
                "{} of {total} serve neither reads nor writes",
                plural(unavailable.len(), "placement group", "placement groups")
            ),
            unavailable,
            "requests for their objects wait",
            "bring back the OSDs that they wait for (`holdfast pg ls`, `holdfast osd tree`); peering ends by itself",
        ));
    }
    if !unknown.is_empty() {
        checks.push(check(
            "PG_UNKNOWN",
            Severity::Warning,
            format!(
                "{} of {total} have not been reported by their present primary",
                plural(unknown.len(), "placement group", "placement groups")
            ),
            unknown,
            "whether their objects are available and complete is not known",
            "wait some seconds; if it stays, look at their primaries with `holdfast pg ls`",
        ));
    }
    if !degraded.is_empty() {
        let lacking = views.iter().filter(|view| !serves_not(view) && view.state.degraded);
        let copies: u64 = lacking.map(PgView::copies_missing).sum();
        checks.push(check(
            "PG_DEGRADED",
            Severity::Warning,
            format!(
                "{} of {total} lack copies; {copies} copies of objects missing",
                plural(degraded.len(), "placement group", "placement groups")
            ),
            degraded,
            "those that serve miss nothing, but survive fewer further failures",
            "bring back the OSDs that are down; recovery then goes on by itself",
        ));
    }
    if !not_clean.is_empty() {
        checks.push(check(
            "PG_NOT_CLEAN",
            Severity::Warning,
            format!(
                "{} of {total} move data or have not counted their copies",
                plural(not_clean.len(), "placement group", "placement groups")
            ),
            not_clean,
            &not_clean_impact(uncounted),
            "wait; it ends by itself",
        ));
    }
    if !unfound.is_empty() {
        checks.push(check(
            "OBJECT_UNFOUND",
            Severity::Error,
            format!(
                "{} have objects whose newest version no live OSD has",
                plural(unfound.len(), "placement group", "placement groups")
            ),
            unfound,
            "reads and writes of these objects wait while an OSD that may have them is down or was not heard, and fail otherwise",
            "bring back the OSDs that were up last, and do not remove them; `holdfast explain pg` names objects and OSDs",
        ));
    }
    checks
}

/// Whether it is known why it is not clean: its data are on the way to where placement wants them.
fn moves(view: &PgView<'_>) -> bool {
    view.moves() || view.state.backfilling || view.state.recovering
}

/// No primary of these reports a copy missing, but one that has not said "clean" may still find one.
fn not_clean_impact(uncounted: usize) -> String {
    if uncounted == 0 {
        return "none: those that serve report no copy missing, and go on serving until the move is done".to_owned();
    }
    format!(
        "no copy is reported missing, but {} not counted: whether all copies exist is not known of {}",
        plural(uncounted, "placement group has", "placement groups have"),
        if uncounted == 1 { "it" } else { "them" }
    )
}
