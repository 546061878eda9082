//! What an explanation must have: a cause, who stands in the way, the next step. Only the fields made for each count; what
//! the facts mention in passing does not.

use holdfast_types::{OsdId, PgId};
use holdfast_wire::mon::{Cause, Explanation, PgDetail, Subject};

use crate::field::OSDS;

/// Causes that need name no OSD, and words of which the state must have one then: copies that are under way wait for nobody,
/// of objects without a good copy the monitors do not know who had it, and a full cluster is full for a moment longer than
/// any of its OSDs.
const NOBODY: [(&str, &[&str]); 5] = [
    ("CLUSTER_FULL", &[]),
    ("COPYING", &["recovering", "backfilling"]),
    ("NO_COMPLETE_COPY", &["incomplete"]),
    ("OBJECTS_UNFOUND", &[]),
    ("INCONSISTENT", &[]),
];
/// Causes that say that an OSD does not run.
const NOT_RUNNING: [&str; 2] = ["DOWN", "FLAPPING"];
/// How the first fact of an object's explanation begins.
const LIES_IN: &str = "it lies in pg ";

/// Whether the placement group lacks a copy for want of this OSD, or counts on it, as the monitors' map has it.
#[must_use]
pub fn needs(detail: &PgDetail, osd: OsdId) -> bool {
    let acting = &detail.row.acting;
    acting.contains(&osd) || detail.placed.contains(&osd) && acting.len() < detail.size as usize
}

/// Where an object lies, by its explanation.
#[must_use]
pub fn place_of_object(explanation: &Explanation) -> Option<PgId> {
    let place = explanation.facts.first()?.strip_prefix(LIES_IN)?;
    place.split(';').next()?.parse().ok()
}

/// What the explanation lacks; of what is well nothing is asked. `struck` are OSDs that are away and needed for it, so that
/// nothing can be well and each is to be named.
#[must_use]
pub fn lacks(subject: &Subject, explanation: &Explanation, struck: &[OsdId]) -> Vec<String> {
    let mut lacks = Vec::new();
    let mut lack = |what: String| {
        lacks.push(format!("the explanation of {subject:?} ({}) {what}: {explanation:?}", explanation.state));
    };
    if !is_about(subject, &explanation.subject) {
        lack(format!("speaks of {}", explanation.subject));
    }
    if explanation.ok {
        if !explanation.causes.is_empty() {
            lack("says that all is well, and why it is not".to_owned());
        }
        if !struck.is_empty() {
            lack(format!("says that all is well without {struck:?}"));
        }
        return lacks;
    }
    if explanation.causes.is_empty() {
        lack("names no cause".to_owned());
    }
    for cause in &explanation.causes {
        if cause.code.is_empty() || cause.cause.is_empty() || cause.next.is_empty() {
            lack(format!("has a cause without words or without a next step, {}", cause.code));
        }
        if let Some(nobody) = cause.blocked_by.iter().find(|name| !is_osd(name)) {
            lack(format!("blames {nobody}, which is no OSD"));
        }
        if !matches!(subject, Subject::Osd(_)) && cause.blocked_by.is_empty() && !may_name_nobody(cause, explanation) {
            lack(format!("names nobody for {}", cause.code));
        }
    }
    let is_named = |osd: &OsdId| match subject {
        Subject::Osd(_) => {
            let says = explanation.causes.iter().any(|cause| NOT_RUNNING.contains(&cause.code.as_str()));
            explanation.subject == osd.to_string() && explanation.state.starts_with("down") && says
        }
        Subject::Pg(_) | Subject::Object { .. } => {
            explanation.causes.iter().any(|cause| cause.blocked_by.contains(&osd.to_string()))
        }
    };
    for osd in struck.iter().filter(|osd| !is_named(osd)) {
        lack(format!("does not name {osd}, which is away"));
    }
    lacks
}

fn is_about(subject: &Subject, said: &str) -> bool {
    match subject {
        Subject::Pg(pg) => said == format!("pg {pg}"),
        Subject::Osd(osd) => said == osd.to_string(),
        Subject::Object { pool, name } => said == format!("object {} of pool {pool}", name.escape_ascii()),
    }
}

fn is_osd(name: &str) -> bool {
    name.strip_prefix("osd.").and_then(|id| id.parse::<u64>().ok()).is_some_and(|id| id < OSDS)
}

fn may_name_nobody(cause: &Cause, explanation: &Explanation) -> bool {
    let states: Vec<&str> = explanation.state.split('+').collect();
    let fits = |words: &[&str]| words.is_empty() || words.iter().any(|word| states.contains(word));
    NOBODY.iter().any(|(code, words)| *code == cause.code && fits(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{LogVersion, PoolId};
    use holdfast_wire::mon::PgRow;

    const PG: PgId = PgId { pool: PoolId(1), seed: 3 };
    const AWAY: OsdId = OsdId(3);

    fn cause(code: &str, cause: &str, blocked_by: &[&str], next: &str) -> Cause {
        let blocked_by = blocked_by.iter().map(|name| (*name).to_owned()).collect();
        Cause { code: code.to_owned(), cause: cause.to_owned(), blocked_by, next: next.to_owned() }
    }

    /// Of a placement group; its facts name OSDs, as they always do.
    fn explanation(causes: Vec<Cause>) -> Explanation {
        Explanation {
            subject: "pg 1.3".to_owned(),
            state: "active+undersized+degraded".to_owned(),
            ok: false,
            facts: vec!["placement wants it on osd.1, osd.2, osd.3; 2 of these are up".to_owned()],
            causes,
        }
    }

    fn member_down(blocked_by: &[&str]) -> Cause {
        cause("MEMBER_DOWN", "a copy is missing: osd.3 ended", blocked_by, "start it")
    }

    fn well() -> Explanation {
        Explanation { ok: true, state: "active+clean".to_owned(), ..explanation(Vec::new()) }
    }

    #[test]
    fn an_explanation_that_helps_nobody_is_found() {
        let lacks = |explanation: &Explanation| lacks(&Subject::Pg(PG), explanation, &[]);
        assert_eq!(lacks(&explanation(vec![member_down(&["osd.3"])])), Vec::<String>::new());
        assert_eq!(lacks(&well()), Vec::<String>::new());
        assert!(!lacks(&explanation(Vec::new())).is_empty(), "no cause");
        assert!(!lacks(&explanation(vec![cause("X", "a copy is missing", &["osd.3"], "")])).is_empty(), "no next step");
        assert!(!lacks(&explanation(vec![cause("X", "", &["osd.3"], "wait")])).is_empty(), "no words");
        assert!(!lacks(&explanation(vec![member_down(&[])])).is_empty(), "named in words and facts only");
        assert!(!lacks(&explanation(vec![member_down(&["the host"])])).is_empty(), "no OSD is blamed");
        assert!(!lacks(&explanation(vec![member_down(&["osd.7"])])).is_empty(), "there is no such OSD");
        let of_another = Explanation { subject: "pg 1.4".to_owned(), ..explanation(vec![member_down(&["osd.3"])]) };
        assert!(!lacks(&of_another).is_empty(), "of something else");
        let torn = Explanation { causes: vec![member_down(&["osd.3"])], ..well() };
        assert!(!lacks(&torn).is_empty(), "well and not well");
    }

    #[test]
    fn copies_under_way_need_name_nobody_only_when_they_are() {
        let copying = |state: &str| {
            let causes = vec![cause("COPYING", "7 copies are being made", &[], "wait")];
            Explanation { state: state.to_owned(), ..explanation(causes) }
        };
        let lacks = |state: &str| lacks(&Subject::Pg(PG), &copying(state), &[]);
        assert_eq!(lacks("active+degraded+recovering"), Vec::<String>::new());
        assert!(!lacks("active+degraded").is_empty());
    }

    #[test]
    fn who_is_away_and_needed_must_be_named_not_somebody_else() {
        let of_pg = |explanation: &Explanation| lacks(&Subject::Pg(PG), explanation, &[AWAY]);
        assert_eq!(of_pg(&explanation(vec![member_down(&["osd.3"])])), Vec::<String>::new());
        let other = cause("NOT_REPORTED", "its primary has not reported it", &["osd.1"], "wait");
        assert_eq!(of_pg(&explanation(vec![other.clone(), member_down(&["osd.3"])])), Vec::<String>::new());
        assert!(!of_pg(&explanation(vec![other])).is_empty(), "only somebody else");
        assert!(!of_pg(&well()).is_empty(), "all is well");
    }

    #[test]
    fn an_object_is_explained_by_its_placement_group_and_who_is_away_there() {
        let subject = Subject::Object { pool: "data".to_owned(), name: b"a key".to_vec() };
        let mut explanation = explanation(vec![member_down(&["osd.3"])]);
        explanation.facts.insert(0, "it lies in pg 1.3; what follows is said of all objects there".to_owned());
        explanation.subject = "object a key of pool data".to_owned();
        assert_eq!(place_of_object(&explanation), Some(PG));
        assert_eq!(lacks(&subject, &explanation, &[AWAY]), Vec::<String>::new());
        explanation.causes = vec![member_down(&["osd.1"])];
        assert!(!lacks(&subject, &explanation, &[AWAY]).is_empty(), "somebody else is blamed");
        explanation.facts.remove(0);
        assert_eq!(place_of_object(&explanation), None);
    }

    #[test]
    fn an_osd_that_is_away_must_be_said_to_be_down() {
        let of_osd = |state: &str, ok: bool, code: &str| {
            let causes = if ok { Vec::new() } else { vec![cause(code, "it ended", &[], "start it")] };
            let explanation =
                Explanation { subject: "osd.3".to_owned(), state: state.to_owned(), ok, ..explanation(causes) };
            lacks(&Subject::Osd(AWAY), &explanation, &[AWAY])
        };
        assert_eq!(of_osd("down, in", false, "DOWN"), Vec::<String>::new());
        assert_eq!(of_osd("down, in", false, "FLAPPING"), Vec::<String>::new());
        assert!(!of_osd("up, in", true, "").is_empty());
        assert!(!of_osd("up, in", false, "SILENT").is_empty());
        assert!(!of_osd("down, in", false, "FULL").is_empty());
    }

    #[test]
    fn an_osd_is_needed_where_it_serves_or_where_a_copy_is_missing_without_it() {
        let detail = |placed: &[u32], acting: &[u32]| PgDetail {
            row: PgRow {
                pg: PG,
                state: "active".to_owned(),
                up: Vec::new(),
                acting: acting.iter().copied().map(OsdId).collect(),
                objects: 1,
                bytes: 1,
                copies_missing: 0,
                objects_unfound: 0,
                last_update: LogVersion::ZERO,
                blocked_by: Vec::new(),
                scrub: None,
            },
            pool: "data".to_owned(),
            size: 3,
            min_size: 2,
            placed: placed.iter().copied().map(OsdId).collect(),
            exchanged: Vec::new(),
            temporary: None,
            reported_by: None,
            report_age_ms: None,
            state_for_ms: None,
            epoch: None,
            interval_start: None,
            last_epoch_clean: None,
            explanation: explanation(Vec::new()),
        };
        assert!(needs(&detail(&[1, 2, 3], &[1, 2]), AWAY));
        assert!(needs(&detail(&[1, 2, 4], &[1, 2, 3]), AWAY), "it is said to serve");
        assert!(!needs(&detail(&[1, 2, 4], &[1, 2]), AWAY), "placed elsewhere");
        assert!(!needs(&detail(&[1, 2, 3], &[1, 2, 4]), AWAY), "another stands in its place");
    }
}
