//! Holds the status to the facts while things are broken, and asks for the explanation of every state that is not as it
//! should be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_devcluster::Role;
use holdfast_net::mon_session::MonSession;
use holdfast_types::{OsdId, PgId};
use holdfast_wire::mon::{Explanation, MonCommand, MonReply, StatusReport, Subject};
use parking_lot::Mutex;

use crate::field::{Away, OSDS, says_clean};

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Monitors that do not answer within this are asked again; while a majority is away none does.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);
/// From now on the status must show what has happened: the grace, an election, and a machine that is busy with the test.
pub const NOTICE_LIMIT: Duration = Duration::from_secs(30);
/// Each state is explained this often while one fault lasts: its first look and later ones may differ.
const ASKED_MAX: u32 = 4;

/// What was asked and found.
#[derive(Debug, Default)]
pub struct Record {
    /// What the status or an explanation had wrong.
    pub findings: Vec<String>,
    /// Statuses that were compared with the facts.
    pub looks: u64,
    /// By kind and state: how often explained, and the last explanation.
    pub explained: BTreeMap<String, (u64, String)>,
}

/// Looks until it is told to stop.
#[derive(Clone)]
pub struct Watch {
    session: MonSession,
    away: Away,
    stop: Arc<AtomicBool>,
    /// How often each state was explained during the present fault.
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
    /// What came of it.
    pub record: Arc<Mutex<Record>>,
}

impl Watch {
    /// A watch that asks by this session.
    #[must_use]
    pub fn new(session: MonSession, away: Away) -> Watch {
        Watch { session, away, stop: Arc::default(), asked: Arc::default(), record: Arc::default() }
    }

    /// Ends the watch.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Another fault begins: what was explained before is to be explained again.
    pub fn next_fault(&self) {
        self.asked.lock().clear();
    }

    /// Looks on and on.
    pub async fn run(self) {
        while !self.stop.load(Ordering::Relaxed) {
            let asked_at = Instant::now();
            if let Ok(MonReply::Status(report)) = self.session.execute_within(MonCommand::Status, ANSWER_LIMIT).await {
                self.compare(asked_at, &report);
                self.explain(&report).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What was so long before the status was asked for must be in it, if it was so until after the answer.
    fn compare(&self, asked_at: Instant, report: &StatusReport) {
        let long_away = |role: Role| -> Vec<String> {
            let away = self.away.lock();
            let long = away.iter().filter(|(_, since)| asked_at.saturating_duration_since(**since) > NOTICE_LIMIT);
            long.filter(|(daemon, _)| daemon.role == role).map(|(daemon, _)| daemon.to_string()).collect()
        };
        let (osds, mons) = (long_away(Role::Osd), long_away(Role::Mon));
        let mut record = self.record.lock();
        record.looks += 1;
        if !osds.is_empty() {
            if says_clean(report) {
                record.findings.push(format!("{osds:?} are away and the status says clean: {report:?}"));
            }
            if u64::from(report.osds_up) + osds.len() as u64 > OSDS {
                record.findings.push(format!("{osds:?} are away and {} OSDs are said to be up", report.osds_up));
            }
        }
        if (!osds.is_empty() || !mons.is_empty()) && report.checks.is_empty() {
            record.findings.push(format!("{osds:?} and {mons:?} are away and no check says so"));
        }
        if report.mons_in_quorum.len() + mons.len() > usize::try_from(report.mons).unwrap_or(usize::MAX) {
            record.findings.push(format!("{mons:?} are away, and in the quorum: {:?}", report.mons_in_quorum));
        }
        for check in report
            .checks
            .iter()
            .filter(|check| [&check.code, &check.summary, &check.impact, &check.fix].iter().any(|text| text.is_empty()))
        {
            record.findings.push(format!("a check without cause, impact or fix: {check:?}"));
        }
    }

    fn may_ask(&self, what: &str) -> bool {
        let mut asked = self.asked.lock();
        let count = asked.entry(what.to_owned()).or_default();
        *count += 1;
        *count <= ASKED_MAX
    }

    async fn explain(&self, report: &StatusReport) {
        if report.pg_states.keys().any(|state| state != "active+clean")
            && let Ok(MonReply::Pgs(pgs)) = self.session.execute_within(MonCommand::PgList, ANSWER_LIMIT).await
        {
            let mut one_of_each: BTreeMap<String, PgId> = BTreeMap::new();
            for row in pgs.into_iter().filter(|row| row.state != "active+clean") {
                one_of_each.entry(row.state).or_insert(row.pg);
            }
            for (state, pg) in one_of_each {
                if self.may_ask(&format!("pg {state}")) {
                    self.ask("pg", Subject::Pg(pg)).await;
                }
            }
        }
        if u64::from(report.osds_up) < OSDS
            && let Ok(MonReply::OsdDf(rows)) = self.session.execute_within(MonCommand::OsdDf, ANSWER_LIMIT).await
        {
            let down: BTreeSet<OsdId> = rows.iter().filter(|row| !row.up).map(|row| row.osd).collect();
            for osd in down {
                if self.may_ask(&format!("{osd} down")) {
                    self.ask("osd", Subject::Osd(osd)).await;
                }
            }
        }
    }

    async fn ask(&self, kind: &str, subject: Subject) {
        let asked = format!("{subject:?}");
        let Ok(reply) = self.session.execute_within(MonCommand::Explain(subject), ANSWER_LIMIT).await else { return };
        let mut record = self.record.lock();
        match reply {
            // It has become well since the list was made.
            MonReply::Explanation(explanation) if explanation.ok => {}
            MonReply::Explanation(explanation) => {
                record.findings.extend(poor(&explanation));
                let codes: Vec<&str> = explanation.causes.iter().map(|cause| cause.code.as_str()).collect();
                let shown = explanation.causes.first().map_or_else(String::new, |cause| {
                    format!("{} [{}] next: {}", cause.cause, cause.blocked_by.join(", "), cause.next)
                });
                let entry = record.explained.entry(format!("{kind} {}: {}", explanation.state, codes.join("+")));
                let entry = entry.or_default();
                *entry = (entry.0 + 1, shown);
            }
            other => record.findings.push(format!("{asked} is explained with {other:?}")),
        }
    }
}

/// What an explanation of something that is not as it should be lacks.
fn poor(explanation: &Explanation) -> Option<String> {
    let lacks = |what: &str| Some(format!("the explanation of {} ({}) {what}", explanation.subject, explanation.state));
    if explanation.causes.is_empty() {
        return lacks("names no cause");
    }
    if let Some(cause) = explanation.causes.iter().find(|cause| cause.cause.is_empty() || cause.next.is_empty()) {
        return lacks(&format!("has a cause without words or without a next step: {cause:?}"));
    }
    let party = |text: &str| ["osd.", "mon.", "host"].iter().any(|name| text.contains(name));
    let named = explanation.causes.iter().any(|cause| !cause.blocked_by.is_empty() || party(&cause.cause))
        || party(&explanation.subject)
        || explanation.facts.iter().any(|fact| party(fact));
    if named { None } else { lacks("names nobody") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::mon::Cause;

    fn explanation(causes: Vec<Cause>) -> Explanation {
        let (subject, state) = ("pg 1.3".to_owned(), "active+degraded".to_owned());
        Explanation { subject, state, ok: false, facts: Vec::new(), causes }
    }

    #[test]
    fn an_explanation_that_helps_nobody_is_found() {
        let cause = |cause: &str, blocked_by: &[&str], next: &str| Cause {
            code: "X".to_owned(),
            cause: cause.to_owned(),
            blocked_by: blocked_by.iter().map(|name| (*name).to_owned()).collect(),
            next: next.to_owned(),
        };
        assert_eq!(poor(&explanation(vec![cause("a copy is missing", &["osd.3"], "start it")])), None);
        assert_eq!(poor(&explanation(vec![cause("osd.3 ended", &[], "start it")])), None);
        assert!(poor(&explanation(Vec::new())).is_some());
        assert!(poor(&explanation(vec![cause("a copy is missing", &["osd.3"], "")])).is_some());
        assert!(poor(&explanation(vec![cause("a copy is missing", &[], "wait")])).is_some());
    }
}
