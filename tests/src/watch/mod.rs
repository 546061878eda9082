//! Holds the status to the facts while things are broken, and asks for the explanation of every state that is not as it
//! should be.
//!
//! [`facts`] says what the status must show by when, [`explained`] what an explanation must have, [`states`] which states
//! were shown and never explained. A comparison in which nothing was due proves little, so those in which something was are
//! counted by kind, and faults last until one was made ([`Watch::judged`]).

pub mod explained;
pub mod facts;
pub mod states;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use holdfast_devcluster::{DaemonName, Role};
use holdfast_net::mon_session::MonSession;
use holdfast_types::{OsdId, PgId};
use holdfast_wire::mon::{Explanation, MonCommand, MonReply, PgDetail, PgRow, StatusReport, Subject};
use parking_lot::Mutex;

use crate::field::OSDS;
use explained::{lacks, needs, place_of_object};
use facts::{Absence, Away, Due, Kind, Leading, is_unanswerable, lies, majority_away_since};
use states::{States, is_clean};

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Monitors that do not answer within this are asked again.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);
/// The same while a majority of them is away: none may answer, and many questions are to go without.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);
/// Whatever happens, the status has shown it by then; what must be shown sooner is in [`facts`].
pub const NOTICE_LIMIT: Duration = Duration::from_secs(30);
/// Each state is explained this often while one fault lasts: its first look and later ones may differ.
const ASKED_MAX: u32 = 4;
/// Placement groups that are looked at for one that needs an OSD that is away, or for one that is still in a state that was
/// never explained.
const PGS_TRIED: usize = 8;
/// What was explained with a struck OSD in it, for the counts.
const SUBJECTS: [&str; 3] = ["pg", "object", "osd"];

/// What was asked and found.
#[derive(Debug, Default)]
pub struct Record {
    /// What the status or an explanation had wrong.
    pub findings: Vec<String>,
    /// Statuses that were compared with the facts.
    pub looks: u64,
    /// By kind: comparisons in which a loss was due to be shown.
    pub due: BTreeMap<Kind, u64>,
    /// By subject: explanations that had to name an OSD that was away.
    pub named: BTreeMap<&'static str, u64>,
    /// By kind and state: how often explained, and the last explanation.
    pub explained: BTreeMap<String, (u64, String)>,
    /// What the status called placement groups that were not clean.
    pub states: States,
}

impl Record {
    /// What was never held to anything; nothing of it may be missing after a run that dealt every fault.
    #[must_use]
    pub fn never_judged(&self) -> Vec<String> {
        let kinds = Kind::ALL.into_iter().filter(|kind| !self.due.contains_key(kind));
        let kinds = kinds.map(|kind| format!("no status was held to anything while {}", kind.name()));
        let subjects = SUBJECTS.into_iter().filter(|subject| !self.named.contains_key(subject));
        kinds
            .chain(subjects.map(|subject| format!("no explanation of a(n) {subject} had to name who was away")))
            .collect()
    }
}

/// Looks until it is told to stop.
#[derive(Clone)]
pub struct Watch {
    session: MonSession,
    away: Away,
    /// Objects that are there, to be explained.
    objects: Arc<Vec<Subject>>,
    stop: Arc<AtomicBool>,
    /// How often each state was explained during the present fault.
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
    leading: Arc<Mutex<Leading>>,
    /// Whose absence, which began then, was held against a status and, of an OSD, against explanations.
    judged: Arc<Mutex<BTreeMap<DaemonName, Instant>>>,
    /// What came of it.
    pub record: Arc<Mutex<Record>>,
}

impl Watch {
    /// A watch that asks by this session, also for these objects.
    #[must_use]
    pub fn new(session: MonSession, away: Away, objects: Vec<Subject>) -> Watch {
        Watch {
            session,
            away,
            objects: Arc::new(objects),
            stop: Arc::default(),
            asked: Arc::default(),
            leading: Arc::default(),
            judged: Arc::default(),
            record: Arc::default(),
        }
    }

    /// Ends the watch.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Another fault begins: what was explained before is to be explained again.
    pub fn next_fault(&self) {
        self.asked.lock().clear();
    }

    /// Waits until a status was asked for after this daemon's absence was due to be shown, and compared; for an OSD also
    /// until explanations were that must name it. So a fault that waits for it cannot be over before anything was judged.
    ///
    /// # Errors
    /// When the daemon is not away, or nothing was compared for long.
    pub async fn judged(&self, daemon: DaemonName) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let absence = self.absence_of(daemon).with_context(|| format!("{daemon} is not away"))?;
            if self.judged.lock().get(&daemon) == Some(&absence.since) {
                return Ok(());
            }
            ensure!(
                since.elapsed() < NOTICE_LIMIT,
                "{daemon} is away, and nothing was compared with that for {NOTICE_LIMIT:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Questions that were put to the monitors while nobody could answer them, so far.
    #[must_use]
    pub fn unanswerable(&self) -> u64 {
        self.record.lock().due.get(&Kind::NoMajority).copied().unwrap_or(0)
    }

    fn absence_of(&self, daemon: DaemonName) -> Option<Absence> {
        self.away.lock().get(&daemon).copied()
    }

    /// Looks on and on.
    pub async fn run(self) {
        while !self.stop.load(Ordering::Relaxed) {
            let asked_at = Instant::now();
            let no_majority = self.no_majority();
            let limit = if no_majority.is_some() { REFUSAL_LIMIT } else { ANSWER_LIMIT };
            self.leading.lock().look(asked_at, &self.away.lock());
            let answer = self.session.execute_within(MonCommand::Status, limit).await;
            if is_unanswerable(asked_at, no_majority) && no_majority == self.no_majority() {
                *self.record.lock().due.entry(Kind::NoMajority).or_default() += 1;
                if let Ok(MonReply::Status(_)) = answer {
                    let finding = format!("most monitors are away, and a status was answered: {answer:?}");
                    self.record.lock().findings.push(finding);
                }
            } else if let Ok(MonReply::Status(report)) = answer {
                let due = self.compare(asked_at, &report);
                self.explain(&report).await;
                for due in due {
                    self.judge(due).await;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn no_majority(&self) -> Option<Instant> {
        majority_away_since(&self.away.lock())
    }

    /// What was so long before the status was asked for must be in it, if it was so until after the answer.
    fn compare(&self, asked_at: Instant, report: &StatusReport) -> Vec<Due> {
        let due = {
            let mut leading = self.leading.lock();
            leading.answered(Instant::now(), report.leader);
            leading.due(asked_at, &self.away.lock())
        };
        let mut record = self.record.lock();
        record.looks += 1;
        for kind in due.iter().flat_map(Due::kinds) {
            *record.due.entry(kind).or_default() += 1;
        }
        record.findings.extend(lies(report, &due));
        record.states.look(report.pg_states.keys());
        due
    }

    /// An absence that was held against a status: of an OSD, explanations are held against it, too, once.
    async fn judge(&self, due: Due) {
        let (daemon, since) = (due.daemon, due.absence.since);
        if self.judged.lock().get(&daemon) == Some(&since) {
            return;
        }
        if daemon.role == Role::Osd {
            let Ok(osd) = u32::try_from(daemon.id).map(OsdId) else { return };
            let Some(Judged { findings, named }) = self.explain_struck(osd).await else { return };
            if self.absence_of(daemon) != Some(due.absence) {
                return; // it came back meanwhile: nothing can be said
            }
            let mut record = self.record.lock();
            record.findings.extend(findings);
            for subject in named {
                *record.named.entry(subject).or_default() += 1;
            }
        }
        self.judged.lock().insert(daemon, since);
    }

    /// Asks for what must name an OSD that is away: a placement group, an object, itself. `None`: not all was answered.
    async fn explain_struck(&self, osd: OsdId) -> Option<Judged> {
        let mut judged = Judged::default();
        let mut pgs = self.pgs().await?;
        // Those with the fewest members lack it, if any does.
        pgs.sort_by_key(|row| row.acting.len());
        pgs.truncate(PGS_TRIED);
        for row in &pgs {
            if self.explain_needy(row.pg, &Subject::Pg(row.pg), osd, &mut judged).await? {
                break;
            }
        }
        // Five OSDs, three copies: some placement group has lost one.
        if judged.named.is_empty() {
            judged.findings.push(format!("{osd} is away, and none of these is said to need it: {pgs:?}"));
        }
        for subject in self.objects.iter() {
            let explanation = self.explanation(subject).await?;
            let Some(pg) = place_of_object(&explanation) else {
                judged.findings.push(format!("an object's explanation does not say where it lies: {explanation:?}"));
                continue;
            };
            if self.explain_needy(pg, subject, osd, &mut judged).await? {
                break;
            }
        }
        let subject = Subject::Osd(osd);
        judged.note(&subject, &self.explanation(&subject).await?, osd);
        Some(judged)
    }

    /// Judges the explanation of a subject, if its placement group needs the OSD before and after it was given.
    async fn explain_needy(&self, pg: PgId, subject: &Subject, osd: OsdId, judged: &mut Judged) -> Option<bool> {
        let before = self.query(pg).await?;
        let explanation = self.explanation(subject).await?;
        let is_needy = needs(&before, osd) && needs(&self.query(pg).await?, osd);
        if is_needy {
            self.note_explained(&before.explanation);
            judged.findings.extend(lacks(&Subject::Pg(pg), &before.explanation, &[osd]));
            judged.note(subject, &explanation, osd);
        }
        Some(is_needy)
    }

    async fn ask(&self, command: MonCommand) -> Option<MonReply> {
        self.session.execute_within(command, ANSWER_LIMIT).await.ok()
    }

    async fn pgs(&self) -> Option<Vec<PgRow>> {
        match self.ask(MonCommand::PgList).await? {
            MonReply::Pgs(rows) => Some(rows),
            _ => None,
        }
    }

    async fn query(&self, pg: PgId) -> Option<PgDetail> {
        match self.ask(MonCommand::PgQuery(pg)).await? {
            MonReply::PgDetail(detail) => Some(*detail),
            _ => None,
        }
    }

    async fn explanation(&self, subject: &Subject) -> Option<Explanation> {
        match self.ask(MonCommand::Explain(subject.clone())).await? {
            MonReply::Explanation(explanation) => Some(explanation),
            other => {
                self.record.lock().findings.push(format!("{subject:?} is explained with {other:?}"));
                None
            }
        }
    }

    fn may_ask(&self, what: &str) -> bool {
        let mut asked = self.asked.lock();
        let count = asked.entry(what.to_owned()).or_default();
        *count += 1;
        *count <= ASKED_MAX
    }

    async fn explain(&self, report: &StatusReport) {
        if report.pg_states.keys().any(|state| !is_clean(state))
            && let Some(pgs) = self.pgs().await
        {
            let mut by_state: BTreeMap<String, Vec<PgId>> = BTreeMap::new();
            for row in pgs.into_iter().filter(|row| !is_clean(&row.state)) {
                by_state.entry(row.state).or_default().push(row.pg);
            }
            for (state, pgs) in by_state {
                self.explain_state(&state, &pgs).await;
            }
        }
        if u64::from(report.osds_up) < OSDS
            && let Some(MonReply::OsdDf(rows)) = self.ask(MonCommand::OsdDf).await
        {
            let down: BTreeSet<OsdId> = rows.iter().filter(|row| !row.up).map(|row| row.osd).collect();
            for osd in down {
                if self.may_ask(&format!("{osd} down")) {
                    self.explain_one("osd", Subject::Osd(osd)).await;
                }
            }
        }
    }

    /// Asks about one of the placement groups that are in this state. They leave it at any time: until it was explained
    /// once, several are asked about.
    async fn explain_state(&self, state: &str, pgs: &[PgId]) {
        let is_new = !self.record.lock().states.is_explained(state);
        let tries = if is_new { PGS_TRIED } else { usize::from(self.may_ask(&format!("pg {state}"))) };
        for pg in pgs.iter().take(tries) {
            let is_answered = self.explain_one("pg", Subject::Pg(*pg)).await;
            if !is_answered || self.record.lock().states.is_explained(state) {
                return;
            }
        }
    }

    /// A placement group was explained in the state that the explanation names, if there was anything to explain.
    fn note_explained(&self, explanation: &Explanation) {
        if !explanation.ok {
            self.record.lock().states.note_explained(&explanation.state);
        }
    }

    /// Whether there was an answer.
    async fn explain_one(&self, kind: &str, subject: Subject) -> bool {
        let Some(explanation) = self.explanation(&subject).await else { return false };
        if matches!(subject, Subject::Pg(_)) {
            self.note_explained(&explanation);
        }
        let mut record = self.record.lock();
        record.findings.extend(lacks(&subject, &explanation, &[]));
        // It may have become well since the list was made.
        if explanation.ok {
            return true;
        }
        let codes: Vec<&str> = explanation.causes.iter().map(|cause| cause.code.as_str()).collect();
        let shown = explanation.causes.first().map_or_else(String::new, |cause| {
            format!("{} [{}] next: {}", cause.cause, cause.blocked_by.join(", "), cause.next)
        });
        let entry = record.explained.entry(format!("{kind} {}: {}", explanation.state, codes.join("+")));
        let entry = entry.or_default();
        *entry = (entry.0 + 1, shown);
        true
    }
}

/// What explanations were held against one absence.
#[derive(Debug, Default)]
struct Judged {
    findings: Vec<String>,
    named: Vec<&'static str>,
}

impl Judged {
    fn note(&mut self, subject: &Subject, explanation: &Explanation, osd: OsdId) {
        self.findings.extend(lacks(subject, explanation, &[osd]));
        let [pg, object, itself] = SUBJECTS;
        self.named.push(match subject {
            Subject::Pg(_) => pg,
            Subject::Object { .. } => object,
            Subject::Osd(_) => itself,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_in_which_a_kind_of_loss_was_never_due_does_not_count_as_one_that_looked() {
        let mut record = Record { looks: 5000, ..Record::default() };
        assert_eq!(record.never_judged().len(), Kind::ALL.len() + SUBJECTS.len());
        record.due.extend(Kind::ALL.into_iter().map(|kind| (kind, 1)));
        record.named.extend(SUBJECTS.into_iter().map(|subject| (subject, 1)));
        assert_eq!(record.never_judged(), Vec::<String>::new());
        record.due.remove(&Kind::OsdSilent);
        assert_eq!(record.never_judged(), ["no status was held to anything while an OSD stands still"]);
    }
}
