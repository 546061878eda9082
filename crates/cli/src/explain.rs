//! `explain`, `pg query` and `balancer`: why something is as it is, and what to do.

use std::fmt::Write as _;

use holdfast_types::{OsdId, PgId};
use holdfast_wire::mon::{Explanation, MonCommand, MonError, MonReply, PgDetail, Subject};

use crate::args::{BalancerVerb, Common, ExplainWhat};
use crate::failure::Failure;
use crate::monitors::{ask, ask_raw, unexpected};
use crate::output::print;
use crate::units::ByteSize;

/// The option that the monitors' balancer obeys.
const BALANCER_OPTION: &str = "balancer";

/// `holdfast explain …`
pub fn explain(common: &Common, what: ExplainWhat) -> Result<(), Failure> {
    let (text, subject) = match what {
        ExplainWhat::Pg { pg } => (format!("explain pg {pg}"), Subject::Pg(pg)),
        ExplainWhat::Osd { osd } => (format!("explain {osd}"), Subject::Osd(osd)),
        ExplainWhat::Object { pool, name } => {
            let subject = Subject::Object { pool, name: name.clone().into_bytes() };
            (format!("explain object {name}"), subject)
        }
    };
    let MonReply::Explanation(explanation) = ask(common, &text, MonCommand::Explain(subject))? else {
        return Err(unexpected(&text));
    };
    print(common.output, &explanation, || explanation_text(&explanation))
}

/// `holdfast pg query PGID`
pub fn pg_query(common: &Common, pg: PgId) -> Result<(), Failure> {
    let what = format!("ask about pg {pg}");
    let MonReply::PgDetail(detail) = ask(common, &what, MonCommand::PgQuery(pg))? else {
        return Err(unexpected(&what));
    };
    print(common.output, &detail, || detail_text(&detail))
}

/// `holdfast balancer …`
pub fn balancer(common: &Common, verb: BalancerVerb) -> Result<(), Failure> {
    let set = |value: Option<&str>| MonCommand::ConfigSet {
        name: BALANCER_OPTION.to_owned(),
        value: value.map(str::to_owned),
    };
    match verb {
        BalancerVerb::Status => {}
        BalancerVerb::Off => drop(ask(common, "stop the balancer", set(Some("off")))?),
        BalancerVerb::On => match ask_raw(common, "let the balancer work", set(None))? {
            // It was never stopped.
            MonReply::Failed(MonError::NotFound { .. }) | MonReply::Done { .. } => {}
            MonReply::Failed(error) => return Err(Failure::refused("let the balancer work", &error)),
            _ => return Err(unexpected("let the balancer work")),
        },
    }
    let what = "ask the balancer";
    let MonReply::Balancer(report) = ask(common, what, MonCommand::BalancerStatus)? else {
        return Err(unexpected(what));
    };
    print(common.output, &report, || {
        let mut text = format!("balancer   {}\n", report.state);
        if let Some(permille) = report.deviation_permille {
            let _ = writeln!(text, "deviation  {}.{} % at the OSD that is off most", permille / 10, permille % 10);
        }
        let _ = writeln!(text, "exchanged  members of {} placement groups", report.exchanged);
        text
    })
}

fn explanation_text(explanation: &Explanation) -> String {
    let mut text = format!("{} is {}\n", explanation.subject, explanation.state);
    for fact in &explanation.facts {
        let _ = writeln!(text, "  {fact}");
    }
    if explanation.ok {
        text.push_str("all is as it should be\n");
    }
    for cause in &explanation.causes {
        let _ = writeln!(text, "{}: {}", cause.code, cause.cause);
        if !cause.blocked_by.is_empty() {
            let _ = writeln!(text, "  blocked by: {}", cause.blocked_by.join(", "));
        }
        let _ = writeln!(text, "  next: {}", cause.next);
    }
    text
}

fn detail_text(detail: &PgDetail) -> String {
    let set = |osds: &[OsdId]| {
        let ids: Vec<String> = osds.iter().map(|osd| osd.0.to_string()).collect();
        format!("[{}]", ids.join(","))
    };
    let row = &detail.row;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<18}{value}");
    };
    line("pg", row.pg.to_string());
    line("state", row.state.clone());
    if let Some(for_ms) = detail.state_for_ms {
        line("for at least", format!("{} s", for_ms / 1_000));
    }
    line("pool", format!("{}: {} copies, serves with {}", detail.pool, detail.size, detail.min_size));
    line("placed", set(&detail.placed));
    line("up", set(&row.up));
    line("acting", set(&row.acting));
    if !detail.exchanged.is_empty() {
        let exchanges = detail.exchanged.iter().map(|(from, to)| format!("{to} in the place of {from}"));
        line("exchanged", exchanges.collect::<Vec<_>>().join(", "));
    }
    if let Some(temporary) = &detail.temporary {
        line("temporary", set(temporary));
    }
    match (detail.reported_by, detail.report_age_ms) {
        (Some(osd), Some(age)) => line("reported by", format!("{osd}, {age} ms ago")),
        _ => line("reported by", "nobody in the present interval".to_owned()),
    }
    let epochs =
        [("map", detail.epoch), ("interval since", detail.interval_start), ("last clean", detail.last_epoch_clean)];
    for (name, epoch) in epochs {
        if let Some(epoch) = epoch {
            line(name, epoch.to_string());
        }
    }
    line("objects", format!("{}, {}", row.objects, ByteSize(row.bytes)));
    line("copies missing", row.copies_missing.to_string());
    line("objects unfound", row.objects_unfound.to_string());
    line("last update", row.last_update.to_string());
    text.push('\n');
    text.push_str(&explanation_text(&detail.explanation));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::mon::Cause;

    #[test]
    fn an_explanation_names_the_cause_who_blocks_and_what_to_do() {
        let cause = Cause {
            code: "MEMBER_DOWN".to_owned(),
            cause: "a copy is missing: osd.3 ended".to_owned(),
            blocked_by: vec!["osd.3".to_owned()],
            next: "start it".to_owned(),
        };
        let explanation = Explanation {
            subject: "pg 1.3".to_owned(),
            state: "active+undersized+degraded".to_owned(),
            ok: false,
            facts: vec!["it is served by osd.1, osd.2".to_owned()],
            causes: vec![cause],
        };
        assert_eq!(
            explanation_text(&explanation),
            "pg 1.3 is active+undersized+degraded\n  it is served by osd.1, osd.2\nMEMBER_DOWN: a copy is missing: \
             osd.3 ended\n  blocked by: osd.3\n  next: start it\n"
        );
    }
}
