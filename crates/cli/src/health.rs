//! `status` and `health`: what the monitors counted, printed as they counted it.

use std::fmt::Write as _;

use holdfast_wire::mon::{HealthCheck, MonCommand, MonReply, Severity, StatusReport};
use serde_json::json;

use crate::args::Common;
use crate::failure::Failure;
use crate::monitors::{ask, unexpected};
use crate::output::print;
use crate::units::{ByteSize, percent};

fn report(common: &Common, what: &str) -> Result<StatusReport, Failure> {
    match ask(common, what, MonCommand::Status)? {
        MonReply::Status(report) => Ok(*report),
        _ => Err(unexpected(what)),
    }
}

/// `holdfast status`.
pub fn status(common: &Common) -> Result<(), Failure> {
    let report = report(common, "tell the status")?;
    print(common.output, &report, || status_text(&report))
}

/// `holdfast health [detail]`.
pub fn health(common: &Common, detail: bool) -> Result<(), Failure> {
    let report = report(common, "tell the health")?;
    let value = json!({ "health": report.health, "checks": report.checks });
    print(common.output, &value, || {
        let mut text = format!("{}\n", severity(report.health));
        for check in &report.checks {
            check_text(&mut text, check, detail);
        }
        text
    })
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "OK",
        Severity::Warning => "WARNING",
        Severity::Error => "ERROR",
    }
}

fn check_text(text: &mut String, check: &HealthCheck, detail: bool) {
    let _ = writeln!(text, "{} {}: {}", severity(check.severity), check.code, check.summary);
    if detail {
        for line in &check.detail {
            let _ = writeln!(text, "    {line}");
        }
        let _ = writeln!(text, "  means: {}\n  do:    {}", check.impact, check.fix);
    }
}

fn status_text(report: &StatusReport) -> String {
    let names = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let mut text = format!("cluster   {}\nhealth    {}\n", report.cluster, severity(report.health));
    for check in &report.checks {
        let _ = writeln!(text, "          {} {}: {}", severity(check.severity), check.code, check.summary);
    }
    let quorum = names(report.mons_in_quorum.iter().map(ToString::to_string).collect());
    let _ = writeln!(text, "monitors  {}: in quorum {quorum}; {} leads", report.mons, report.leader);
    let _ = writeln!(text, "osds      {}: {} up, {} in", report.osds, report.osds_up, report.osds_in);
    let _ = writeln!(text, "services  {}", names(report.services.clone()));
    let _ = writeln!(text, "map       {}", report.epoch);
    let states = names(report.pg_states.iter().map(|(state, count)| format!("{count} {state}")).collect());
    let _ = writeln!(text, "data      {} pools, {} placement groups: {states}", report.pools, report.pgs);
    let used = percent(report.usage.used_bytes, report.usage.total_bytes);
    let _ = writeln!(
        text,
        "          {} objects; {} of {} used ({used})",
        report.objects,
        ByteSize(report.usage.used_bytes),
        ByteSize(report.usage.total_bytes)
    );
    if report.copies_missing > 0 || report.objects_unfound > 0 {
        let _ = writeln!(
            text,
            "          {} copies missing, {} objects unfound",
            report.copies_missing, report.objects_unfound
        );
    }
    if let Some(scrub) = &report.scrub {
        let running = match scrub.pgs_scrubbing {
            0 => String::new(),
            count => format!("; {count} placement groups are being scrubbed"),
        };
        let _ = writeln!(
            text,
            "scrub     {} objects verified, {} inconsistent, {} copies repaired{running}",
            scrub.objects_verified, scrub.objects_inconsistent, scrub.copies_repaired
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_copies_are_said_and_so_is_what_to_do() {
        let check = HealthCheck {
            code: "REDUNDANCY_REDUCED".to_owned(),
            severity: Severity::Warning,
            summary: "4 copies missing".to_owned(),
            detail: vec!["pg 1.3: 4 copies".to_owned()],
            impact: "a second failure can make data unavailable".to_owned(),
            fix: "wait, or holdfast osd tree".to_owned(),
        };
        let report = StatusReport {
            cluster: "c".to_owned(),
            epoch: holdfast_types::Epoch(7),
            health: Severity::Warning,
            checks: vec![check.clone()],
            mons: 3,
            mons_in_quorum: Vec::new(),
            leader: holdfast_types::MonId(1),
            osds: 3,
            osds_up: 2,
            osds_in: 3,
            services: Vec::new(),
            pools: 2,
            pgs: 32,
            pg_states: [("active+undersized+degraded".to_owned(), 32)].into(),
            objects: 9,
            copies_missing: 4,
            objects_unfound: 0,
            usage: holdfast_wire::mon::StoreUsage { total_bytes: 4 << 30, used_bytes: 1 << 30, live_bytes: 1 << 30 },
            scrub: None,
        };
        let text = status_text(&report);
        assert!(text.contains("WARNING REDUNDANCY_REDUCED: 4 copies missing"), "{text}");
        assert!(text.contains("4 copies missing, 0 objects unfound") && text.contains("(25.00 %)"), "{text}");
        let mut detail = String::new();
        check_text(&mut detail, &check, true);
        assert!(detail.contains("pg 1.3: 4 copies") && detail.contains("do:    wait"), "{detail}");
    }
}
