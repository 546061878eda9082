//! Scrubs that people ask for, and what status makes of scrubs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_mon_state::leader::{Due, Leader, Quorum};
use holdfast_mon_state::{Change, Command, Op, State};
use holdfast_types::{ClusterId, DiskUuid, Epoch, Incarnation, LogVersion, MonId, OsdId, PgId, PoolId, Timestamp};
use holdfast_wire::mon::{
    LocationStep, MonCommand, MonError, MonReply, OsdReport, PgReport, PgState, Severity, StatusReport, StoreUsage,
};
use holdfast_wire::scrub::{PgScrub, ScrubKind, ScrubTarget};

const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000_000);

fn apply(state: &mut State, change: Change) -> MonReply {
    let command = Command { at_unix_ms: 1, ops: vec![Op { id: None, change }], seen: None };
    state.apply(1, &command).replies.remove(0)
}

fn cluster() -> State {
    let mut state = State::new(ClusterId([1; 16]));
    for id in 0..4u8 {
        let disk = DiskUuid([id + 1; 16]);
        let register = MonCommand::OsdRegister {
            disk,
            location: vec![LocationStep { kind: "host".into(), name: format!("h{id}") }],
            class: None,
            capacity_bytes: 1 << 40,
            wanted: None,
            blank: None,
        };
        apply(&mut state, Change::Request(register));
        let (osd, address) = (OsdId(u32::from(id)), format!("127.0.0.1:{}", 7000 + u32::from(id)));
        let boot = MonCommand::OsdBoot { osd, disk, incarnation: Incarnation(1), address, can_split: Some(true) };
        apply(&mut state, Change::Request(boot));
    }
    let pool = MonCommand::PoolCreate {
        name: "data".into(),
        size: Some(3),
        min_size: Some(2),
        application: "test".into(),
        failure_domain: Some("osd".into()),
        share_percent: None,
    };
    assert!(matches!(apply(&mut state, Change::Request(pool)), MonReply::Pool { .. }));
    state
}

fn pg(seed: u32) -> PgId {
    PgId { pool: PoolId(1), seed }
}

fn wish(state: &mut State, target: ScrubTarget, kind: ScrubKind) -> MonReply {
    apply(state, Change::Request(MonCommand::Scrub { target, kind }))
}

fn report_all(state: &State, leader: &mut Leader, scrub: impl Fn(PgId) -> PgScrub) {
    let map = state.map();
    for osd in map.osds.keys() {
        let mine = map.members_of_all().into_iter().filter(|(_, members)| members.primary() == Some(*osd));
        let report = |(pg, members): (PgId, holdfast_map::PgMembers)| PgReport {
            pg,
            epoch: map.epoch,
            interval_start: map.epoch,
            state: PgState { active: true, clean: true, ..PgState::default() },
            up: members.up,
            acting: members.acting,
            objects: 10,
            bytes: 1_000,
            copies_missing: 0,
            objects_unfound: 0,
            last_update: LogVersion::ZERO,
            last_epoch_clean: map.epoch,
            blocked_by: Vec::new(),
            scrub: Some(scrub(pg)),
            unfound: Vec::new(),
        };
        let report = OsdReport {
            osd: *osd,
            incarnation: Incarnation(1),
            epoch: map.epoch,
            usage: StoreUsage { total_bytes: 1_000, used_bytes: 100, live_bytes: 90 },
            pgs: mine.map(report).collect(),
            checksum_errors: 0,
            repaired: 0,
            copies_lost: None,
        };
        leader.on_report(NOW, map, report).unwrap();
    }
}

fn served(state: &State, leader: &mut Leader) -> Vec<(PgId, Epoch)> {
    let due = leader.due(NOW, &state.scene(1));
    let served = due.into_iter().find_map(|due| match due {
        Due::Propose(Change::ScrubsServed(served)) => Some(served),
        _ => None,
    });
    served.unwrap_or_default()
}

fn status(state: &State, leader: &Leader) -> StatusReport {
    let quorum = Quorum { leader: MonId(0), answering: BTreeSet::from([MonId(0)]) };
    match leader.answer(NOW, &state.scene(1), &quorum, &MonCommand::Status) {
        Some(MonReply::Status(status)) => *status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wish_that_is_asked_for_again_changes_nothing_and_a_deeper_one_takes_its_place() {
    let mut state = cluster();
    let target = ScrubTarget::Pg(pg(3));
    assert!(matches!(wish(&mut state, target, ScrubKind::Deep), MonReply::Done { .. }));
    let epoch = state.map().epoch;
    assert_eq!(state.map().scrub_wishes[&pg(3)].epoch, epoch, "it is named by the map that brings it");
    for kind in [ScrubKind::Deep, ScrubKind::Shallow] {
        assert_eq!(wish(&mut state, target, kind), MonReply::Done { epoch });
    }
    assert_eq!(wish(&mut state, target, ScrubKind::Repair), MonReply::Done { epoch: epoch.next() });
    assert_eq!(state.map().scrub_wishes[&pg(3)].kind, ScrubKind::Repair);
    let none = wish(&mut state, ScrubTarget::Pg(pg(9_999)), ScrubKind::Deep);
    assert!(matches!(none, MonReply::Failed(MonError::NotFound { .. })), "{none:?}");
    let none = wish(&mut state, ScrubTarget::Osd(OsdId(77)), ScrubKind::Deep);
    assert!(matches!(none, MonReply::Failed(MonError::NotFound { .. })), "{none:?}");
}

#[test]
fn a_wish_ends_when_it_was_fulfilled_and_not_by_an_earlier_scrub() {
    let mut state = cluster();
    wish(&mut state, ScrubTarget::Osd(OsdId(2)), ScrubKind::Shallow);
    let wished: Vec<PgId> = state.map().scrub_wishes.keys().copied().collect();
    let kept = state.map().members_of_all().into_iter().filter(|(_, members)| members.acting.contains(&OsdId(2)));
    assert_eq!(wished, kept.map(|(pg, _)| pg).collect::<Vec<PgId>>(), "all that have a copy there");
    // A new leader, and a snapshot in between: nothing is forgotten.
    let mut state = State::decode(&state.encode()).unwrap();
    let mut leader = Leader::new(NOW, state.map());
    assert_eq!(served(&state, &mut leader), []);
    let epoch = state.map().epoch;
    report_all(&state, &mut leader, |_| PgScrub { served: Epoch(epoch.0 - 1), ..PgScrub::default() });
    assert_eq!(served(&state, &mut leader), [], "that was an earlier one");
    report_all(&state, &mut leader, |_| PgScrub { served: epoch, ..PgScrub::default() });
    let done = served(&state, &mut leader);
    assert_eq!(done.len(), wished.len());
    wish(&mut state, ScrubTarget::Pg(wished[0]), ScrubKind::Deep);
    apply(&mut state, Change::ScrubsServed(done));
    let left: Vec<PgId> = state.map().scrub_wishes.keys().copied().collect();
    assert_eq!(left, [wished[0]], "the later wish stays");
    let delete = MonCommand::PoolDelete { name: "data".into(), confirm: "data".into() };
    apply(&mut state, Change::Request(delete));
    assert!(state.map().scrub_wishes.is_empty());
}

#[test]
fn health_names_what_is_inconsistent_and_what_is_overdue() {
    let state = cluster();
    let mut leader = Leader::new(NOW, state.map());
    let day = Duration::from_secs(24 * 60 * 60).as_secs();
    let pgs = u64::try_from(state.map().pgs().count()).unwrap();
    report_all(&state, &mut leader, |_| PgScrub { objects_verified: 10, ..PgScrub::default() });
    let report = status(&state, &leader);
    assert_eq!((report.health, report.checks.len()), (Severity::Ok, 0), "{report:#?}");
    assert_eq!(report.scrub.unwrap().objects_verified, 10 * pgs);
    report_all(&state, &mut leader, |at| PgScrub {
        objects_inconsistent: if at == pg(1) { 2 } else { 0 },
        examples: if at == pg(1) { vec!["object-7: osd.2 cannot be read".into()] } else { Vec::new() },
        copies_repaired: 1,
        scrub_age_s: if at == pg(2) { 2 * day } else { day },
        deep_scrub_age_s: if at == pg(4) { 11 * day } else { 7 * day },
        ..PgScrub::default()
    });
    let report = status(&state, &leader);
    let codes: Vec<(&str, Severity)> =
        report.checks.iter().map(|check| (check.code.as_str(), check.severity)).collect();
    assert_eq!(
        codes,
        [
            ("OSD_SCRUB_ERRORS", Severity::Error),
            ("PG_DAMAGED", Severity::Error),
            ("PG_NOT_DEEP_SCRUBBED", Severity::Warning),
            ("PG_NOT_SCRUBBED", Severity::Warning),
        ]
    );
    assert_eq!(report.checks[0].detail, ["pg 1.1: object-7: osd.2 cannot be read"]);
    assert_eq!(report.checks[0].summary, "2 objects with copies that differ or cannot be read");
    assert!(report.checks[1].detail[0].starts_with("pg 1.1 is active+clean"), "{:?}", report.checks[1].detail);
    assert_eq!(report.checks[2].detail, ["pg 1.4 was not for 264 hours"]);
    assert_eq!(report.checks[3].detail, ["pg 1.2 was not for 48 hours"]);
    assert_eq!(report.scrub.unwrap().copies_repaired, pgs);
}
