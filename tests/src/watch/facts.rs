//! What was done to whom, and from when on the status must show it.
//!
//! | away is | shown within | why |
//! |---|---|---|
//! | an OSD that ended | `OSD_ENDED_LIMIT` | a peer's connection and the leader's own are refused: a second or two |
//! | an OSD that stands still | `OSD_SILENT_LIMIT` | the grace of 5 s, the heartbeat after it, and two reporters |
//! | a monitor | `MON_LIMIT` | the leader counts it as down after 2 s without an answer |
//! | any of these, and the leader was away or another one leads since | `ELECTION_MORE` longer | an election, and all reports anew |
//! | a majority of the monitors | no answer at all after `NO_MAJORITY_LIMIT` | the leader asks a majority before it answers |
//!
//! The rest of each limit is for a machine with two cores that runs five hosts and the load beside them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_devcluster::{DaemonName, Role};
use holdfast_types::MonId;
use holdfast_wire::mon::{HealthCheck, Severity, StatusReport};
use parking_lot::Mutex;

use crate::field::{MONS, OSDS, says_clean};

/// See the module document.
const OSD_ENDED_LIMIT: Duration = Duration::from_secs(6);
/// See the module document.
const OSD_SILENT_LIMIT: Duration = Duration::from_secs(12);
/// See the module document.
const MON_LIMIT: Duration = Duration::from_secs(6);
/// See the module document.
const ELECTION_MORE: Duration = Duration::from_secs(6);
/// See the module document.
const NO_MAJORITY_LIMIT: Duration = Duration::from_secs(3);

/// How a daemon does not do what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Its process has ended: connections to it are refused.
    Ended,
    /// Its process stands still: nothing comes of it, and no connection is refused.
    Silent,
}

/// One daemon that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absence {
    /// Since when.
    pub since: Instant,
    /// How.
    pub how: Loss,
}

/// Who is away because of what was done to it.
pub type Away = Arc<Mutex<BTreeMap<DaemonName, Absence>>>;

/// What comparisons are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An OSD's process has ended.
    OsdEnded,
    /// An OSD's process stands still.
    OsdSilent,
    /// A monitor's process has ended.
    MonEnded,
    /// A monitor's process stands still.
    MonSilent,
    /// One of these, and the leader was away, too, or changed.
    LeaderAway,
    /// Nobody may answer.
    NoMajority,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] =
        [Kind::OsdEnded, Kind::OsdSilent, Kind::MonEnded, Kind::MonSilent, Kind::LeaderAway, Kind::NoMajority];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::OsdEnded => "an OSD has ended",
            Kind::OsdSilent => "an OSD stands still",
            Kind::MonEnded => "a monitor has ended",
            Kind::MonSilent => "a monitor stands still",
            Kind::LeaderAway => "the leader was away, too",
            Kind::NoMajority => "most monitors are away",
        }
    }
}

/// A daemon that the status must show away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Who.
    pub daemon: DaemonName,
    /// Since when and how.
    pub absence: Absence,
    /// Whether the leader was away since then, too, or changed.
    pub leader_away: bool,
}

impl Due {
    /// What the comparison counts as.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        let kind = match (self.daemon.role, self.absence.how) {
            (Role::Mon, Loss::Ended) => Kind::MonEnded,
            (Role::Mon, Loss::Silent) => Kind::MonSilent,
            (_, Loss::Ended) => Kind::OsdEnded,
            (_, Loss::Silent) => Kind::OsdSilent,
        };
        [kind].into_iter().chain(self.leader_away.then_some(Kind::LeaderAway)).collect()
    }
}

/// Who leads the monitors, as far as answers tell, and when last something was amiss with that.
#[derive(Debug, Clone, Copy, Default)]
pub struct Leading {
    leader: Option<MonId>,
    unsettled: Option<Instant>,
}

impl Leading {
    /// Notes who is away now.
    pub fn look(&mut self, now: Instant, away: &BTreeMap<DaemonName, Absence>) {
        let is_away = self.leader.is_some_and(|leader| away.contains_key(&DaemonName::mon(leader.0)));
        if is_away || majority_away_since(away).is_some() {
            self.unsettled = Some(now);
        }
    }

    /// Notes who has answered.
    pub fn answered(&mut self, now: Instant, leader: MonId) {
        // The first answer shows who leads, not that another did.
        if self.leader.replace(leader).is_some_and(|before| before != leader) {
            self.unsettled = Some(now);
        }
    }

    /// Who has been away so long before `asked_at` that an answer must show it.
    #[must_use]
    pub fn due(&self, asked_at: Instant, away: &BTreeMap<DaemonName, Absence>) -> Vec<Due> {
        let due = away.iter().filter_map(|(daemon, absence)| {
            let leader_away = self.unsettled.is_some_and(|at| at >= absence.since);
            let limit = match (daemon.role, absence.how) {
                (Role::S3, _) => return None,
                (Role::Mon, _) => MON_LIMIT,
                (Role::Osd, Loss::Ended) => OSD_ENDED_LIMIT,
                (Role::Osd, Loss::Silent) => OSD_SILENT_LIMIT,
            };
            let limit = limit + if leader_away { ELECTION_MORE } else { Duration::ZERO };
            let is_due = asked_at.saturating_duration_since(absence.since) > limit;
            is_due.then_some(Due { daemon: *daemon, absence: *absence, leader_away })
        });
        due.collect()
    }
}

/// Since when a majority of the monitors is away; `None`: it is not.
#[must_use]
pub fn majority_away_since(away: &BTreeMap<DaemonName, Absence>) -> Option<Instant> {
    let mons = away.iter().filter(|(daemon, _)| daemon.role == Role::Mon);
    let mut since: Vec<Instant> = mons.map(|(_, absence)| absence.since).collect();
    since.sort_unstable();
    let majority = usize::try_from(MONS).unwrap_or(usize::MAX) / 2 + 1;
    since.get(majority - 1).copied()
}

/// Whether a question asked then can be answered by nobody.
#[must_use]
pub fn is_unanswerable(asked_at: Instant, majority_away_since: Option<Instant>) -> bool {
    majority_away_since.is_some_and(|since| asked_at.saturating_duration_since(since) > NO_MAJORITY_LIMIT)
}

/// What a status has wrong, when all of `due` were away from long before it was asked for until after the answer.
#[must_use]
pub fn lies(report: &StatusReport, due: &[Due]) -> Vec<String> {
    let mut lies = Vec::new();
    for check in report
        .checks
        .iter()
        .filter(|check| [&check.code, &check.summary, &check.impact, &check.fix].iter().any(|text| text.is_empty()))
    {
        lies.push(format!("a check without cause, impact or fix: {check:?}"));
    }
    if due.is_empty() {
        return lies;
    }
    let of = |role: Role| due.iter().map(|due| due.daemon).filter(move |daemon| daemon.role == role);
    let names: Vec<String> = due.iter().map(|due| due.daemon.to_string()).collect();
    let away = format!("{} away", names.join(", "));
    if report.health == Severity::Ok || report.checks.is_empty() {
        lies.push(format!("{away}, and the status is {:?} with {} checks", report.health, report.checks.len()));
    }
    let osds = of(Role::Osd).count() as u64;
    if osds > 0 && says_clean(report) {
        lies.push(format!("{away}, and the status says clean: {report:?}"));
    }
    if u64::from(report.osds_up) + osds > OSDS {
        lies.push(format!("{away}, and {} OSDs are said to be up", report.osds_up));
    }
    for osd in of(Role::Osd).filter(|osd| !names_it(&report.checks, "OSD_DOWN", *osd)) {
        lies.push(format!("{osd} away, and OSD_DOWN does not name it: {:?}", report.checks));
    }
    for mon in of(Role::Mon) {
        if report.mons_in_quorum.contains(&MonId(mon.id)) {
            lies.push(format!("{mon} away, and in the quorum: {:?}", report.mons_in_quorum));
        }
        if !names_it(&report.checks, "MON_DOWN", mon) {
            lies.push(format!("{mon} away, and MON_DOWN does not name it: {:?}", report.checks));
        }
    }
    lies
}

/// Whether a line of the check's detail is about the daemon.
fn names_it(checks: &[HealthCheck], code: &str, daemon: DaemonName) -> bool {
    let name = daemon.to_string();
    let mut lines = checks.iter().filter(|check| check.code == code).flat_map(|check| &check.detail);
    lines.any(|line| line.split(' ').next() == Some(name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::Epoch;
    use holdfast_wire::mon::StoreUsage;

    const OSD: DaemonName = DaemonName::osd(3);
    const MON: DaemonName = DaemonName::mon(1);

    fn check(code: &str, detail: &str) -> HealthCheck {
        let text = || "words".to_owned();
        HealthCheck {
            code: code.to_owned(),
            severity: Severity::Warning,
            summary: text(),
            detail: vec![detail.to_owned()],
            impact: text(),
            fix: text(),
        }
    }

    /// A status that is true while [`OSD`] and [`MON`] are away.
    fn truth() -> StatusReport {
        StatusReport {
            cluster: String::new(),
            epoch: Epoch(9),
            health: Severity::Warning,
            checks: vec![
                check("MON_DOWN", "mon.1 at 127.0.0.1:1 does not answer the leader"),
                check("OSD_DOWN", "osd.3 on host3 (127.0.0.1:7) is down; nothing is decided yet"),
            ],
            mons: 3,
            mons_in_quorum: vec![MonId(0), MonId(2)],
            leader: MonId(0),
            osds: 5,
            osds_up: 4,
            osds_in: 5,
            services: Vec::new(),
            pools: 1,
            pgs: 8,
            pg_states: [("active+clean".to_owned(), 4), ("active+undersized+degraded".to_owned(), 4)].into(),
            objects: 10,
            copies_missing: 5,
            objects_unfound: 0,
            usage: StoreUsage::default(),
            scrub: None,
        }
    }

    fn absent(daemon: DaemonName, how: Loss, since: Instant) -> (DaemonName, Absence) {
        (daemon, Absence { since, how })
    }

    fn due() -> Vec<Due> {
        let since = Instant::now();
        let due = |daemon| Due { daemon, absence: Absence { since, how: Loss::Ended }, leader_away: false };
        vec![due(OSD), due(MON)]
    }

    #[test]
    fn a_status_that_hides_who_is_away_is_found() {
        assert_eq!(lies(&truth(), &due()), Vec::<String>::new());
        type Lie = fn(&mut StatusReport);
        let told: [(&str, Lie); 8] = [
            ("all is well", |report| report.health = Severity::Ok),
            ("nothing to say", |report| report.checks.clear()),
            ("clean", |report| {
                (report.pg_states, report.copies_missing) = ([("active+clean".to_owned(), 8)].into(), 0);
            }),
            ("all OSDs up", |report| report.osds_up = 5),
            ("another OSD down", |report| report.checks[1] = check("OSD_DOWN", "osd.2 on host2 is down; osd.3 is up")),
            ("no OSD down", |report| drop(report.checks.pop())),
            ("in the quorum", |report| report.mons_in_quorum.push(MonId(1))),
            ("another monitor down", |report| report.checks[0] = check("MON_DOWN", "mon.2 at 127.0.0.1:1")),
        ];
        for (name, lie) in told {
            let mut report = truth();
            lie(&mut report);
            assert!(!lies(&report, &due()).is_empty(), "{name}");
            assert!(lies(&report, &[]).is_empty(), "{name}: nobody was struck");
        }
        let mut report = truth();
        report.checks[0].fix.clear();
        assert!(!lies(&report, &[]).is_empty(), "a check without a fix is found at any time");
    }

    #[test]
    fn each_loss_is_due_after_its_own_limit_and_later_when_the_leader_is_away() {
        let struck = Instant::now();
        let asked = |after: Duration| struck + after + Duration::from_millis(1);
        let table = [
            (OSD, Loss::Ended, OSD_ENDED_LIMIT, Kind::OsdEnded),
            (OSD, Loss::Silent, OSD_SILENT_LIMIT, Kind::OsdSilent),
            (MON, Loss::Ended, MON_LIMIT, Kind::MonEnded),
            (MON, Loss::Silent, MON_LIMIT, Kind::MonSilent),
        ];
        for (daemon, how, limit, kind) in table {
            let away = BTreeMap::from([absent(daemon, how, struck)]);
            let mut leading = Leading::default();
            leading.answered(struck + Duration::from_millis(1), MonId(0));
            assert_eq!(leading.due(struck + limit, &away), Vec::new());
            let due = leading.due(asked(limit), &away);
            assert_eq!(due.iter().flat_map(Due::kinds).collect::<Vec<_>>(), [kind], "{daemon} {how:?}");
            leading.answered(struck + Duration::from_secs(1), MonId(2));
            assert_eq!(leading.due(asked(limit), &away), Vec::new(), "another leader has to be told first");
            let due = leading.due(asked(limit + ELECTION_MORE), &away);
            assert_eq!(due.iter().flat_map(Due::kinds).collect::<Vec<_>>(), [kind, Kind::LeaderAway]);
        }
        let gateway = BTreeMap::from([absent(DaemonName::s3(), Loss::Ended, struck)]);
        assert_eq!(Leading::default().due(asked(Duration::from_secs(99)), &gateway), Vec::new());
    }

    #[test]
    fn a_leader_that_is_away_makes_it_later_before_another_has_answered() {
        let struck = Instant::now();
        let away = BTreeMap::from([absent(OSD, Loss::Silent, struck), absent(MON, Loss::Silent, struck)]);
        for (leader, later) in [(MonId(1), true), (MonId(0), false)] {
            let mut leading = Leading::default();
            leading.answered(struck - Duration::from_secs(9), leader);
            leading.look(struck + Duration::from_secs(1), &away);
            let after = struck + OSD_SILENT_LIMIT + Duration::from_millis(1);
            let osds = leading.due(after, &away).into_iter().filter(|due| due.daemon == OSD).count();
            assert_eq!(osds == 0, later, "{leader} led");
        }
    }

    #[test]
    fn without_a_majority_nothing_can_be_answered_from_soon_after_the_second_monitor_went() {
        let struck = Instant::now();
        let second = struck + Duration::from_secs(5);
        let mut away = BTreeMap::from([absent(MON, Loss::Ended, struck), absent(OSD, Loss::Ended, struck)]);
        assert_eq!(majority_away_since(&away), None);
        away.extend([absent(DaemonName::mon(0), Loss::Ended, second)]);
        assert_eq!(majority_away_since(&away), Some(second));
        assert!(!is_unanswerable(second + NO_MAJORITY_LIMIT, Some(second)));
        assert!(is_unanswerable(second + NO_MAJORITY_LIMIT + Duration::from_millis(1), Some(second)));
        assert!(!is_unanswerable(second + Duration::from_secs(99), None));
    }
}
