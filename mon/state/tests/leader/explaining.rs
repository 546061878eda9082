//! `explain` and `pg query`: the cause, who blocks, the next command.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_map::SpaceLevel;
use holdfast_mon_state::Change;
use holdfast_types::{OsdId, PgId, PoolId};
use holdfast_wire::mon::{Explanation, MonCommand, MonError, MonReply, PgDetail, PgState, PgTempWish, Subject};
use holdfast_wire::scrub::PgScrub;

use crate::world::{World, run_of};

const PG: PgId = PgId { pool: PoolId(1), seed: 3 };

fn explain(world: &World, subject: Subject) -> Explanation {
    match world.ask(&MonCommand::Explain(subject)) {
        MonReply::Explanation(explanation) => explanation,
        reply => panic!("{reply:?}"),
    }
}

fn query(world: &World) -> PgDetail {
    match world.ask(&MonCommand::PgQuery(PG)) {
        MonReply::PgDetail(detail) => *detail,
        reply => panic!("{reply:?}"),
    }
}

fn codes(explanation: &Explanation) -> Vec<&str> {
    explanation.causes.iter().map(|cause| cause.code.as_str()).collect()
}

fn kill(world: &mut World, osd: u32, dead: bool) {
    world.change(Change::MarkDown { osd: OsdId(osd), incarnation: run_of(osd), dead });
}

#[test]
fn what_is_well_is_said_to_be_and_what_is_not_known_is_not() {
    let mut world = World::new(&[0, 1, 2]);
    let explanation = explain(&world, Subject::Pg(PG));
    assert_eq!(codes(&explanation), ["NOT_REPORTED"]);
    assert!(!explanation.ok && explanation.causes[0].blocked_by.len() == 1);
    world.report_all();
    let explanation = explain(&world, Subject::Pg(PG));
    assert!(explanation.ok && explanation.causes.is_empty(), "{explanation:?}");
    assert!(explain(&world, Subject::Osd(OsdId(0))).ok);
    world.wait(Duration::from_secs(60));
    assert!(!explain(&world, Subject::Pg(PG)).ok);
    let osd = explain(&world, Subject::Osd(OsdId(0)));
    assert_eq!(codes(&osd), ["SILENT"]);
    assert!(osd.causes[0].cause.contains("nothing for 1 min"), "{osd:?}");
}

#[test]
fn each_state_that_is_not_clean_has_its_cause_its_blocker_and_a_next_step() {
    type Change = fn(&mut PgState);
    // what the primary says, who else blocks, the code
    let table: [(Change, &[u32], &str); 6] = [
        (|state| *state = PgState { peering: true, ..PgState::default() }, &[], "PEERING"),
        (|state| *state = PgState { down: true, ..PgState::default() }, &[3], "WAITS_FOR_PAST_MEMBERS"),
        (|state| *state = PgState { incomplete: true, ..PgState::default() }, &[], "NO_COMPLETE_COPY"),
        (|state| (state.clean, state.recovering) = (false, true), &[], "COPYING"),
        (|state| (state.clean, state.backfilling) = (false, true), &[], "COPYING"),
        (|state| (state.clean, state.degraded) = (false, true), &[], "WAITS_ITS_TURN"),
    ];
    for (change, blockers, code) in table {
        let mut world = World::new(&[0, 1, 2]);
        for osd in 0..3 {
            let _ = world.report(osd, |report| {
                change(&mut report.state);
                report.blocked_by = blockers.iter().copied().map(OsdId).collect();
                report.copies_missing = u64::from(!report.state.clean);
            });
        }
        let explanation = explain(&world, Subject::Pg(PG));
        assert!(codes(&explanation).contains(&code), "{code}: {explanation:?}");
        assert!(!explanation.ok);
        assert!(explanation.causes.iter().all(|cause| !cause.cause.is_empty() && !cause.next.is_empty()));
        for blocker in blockers {
            assert!(explanation.causes[0].blocked_by.contains(&OsdId(*blocker).to_string()), "{explanation:?}");
        }
    }
}

#[test]
fn who_is_waited_for_because_nobody_else_can_give_an_object_is_not_called_given_up() {
    let mut world = World::new(&[0, 1, 2]);
    for osd in 0..3 {
        let _ = world.report(osd, |report| {
            report.state = PgState { down: true, ..PgState::default() };
            report.blocked_by = vec![OsdId(3)];
            report.unfound = vec!["an-object".to_owned()];
        });
    }
    let explanation = explain(&world, Subject::Pg(PG));
    let cause = explanation.causes.iter().find(|cause| cause.code == "WAITS_FOR_READABLE_COPY").unwrap();
    assert!(cause.cause.contains("an-object") && cause.cause.contains("minute"), "{cause:?}");
    assert_eq!(cause.blocked_by, ["osd.3"]);
    assert!(!cause.next.contains("osd lost"), "{cause:?}");
}

#[test]
fn a_missing_member_is_named_with_the_reason_and_what_becomes_of_its_data() {
    let mut world = World::new(&[0, 1, 2, 3, 4, 5]);
    let victim = world.map().members(PG).up[1].0;
    kill(&mut world, victim, true);
    world.report_all();
    let name = OsdId(victim).to_string();
    let explanation = explain(&world, Subject::Pg(PG));
    let cause = &explanation.causes[0];
    assert_eq!((cause.code.as_str(), &cause.blocked_by), ("MEMBER_DOWN", &vec![name.clone()]));
    assert!(cause.cause.contains("its port refuses connections since 2023-11-14T22:13:20Z"), "{cause:?}");
    assert!(cause.cause.contains("its data goes to others in 10 min"), "{cause:?}");
    assert!(cause.next.contains(&format!("on h{victim}")), "{cause:?}");
    // Too few to serve comes before all else.
    let other = world.map().members(PG).up[0].0;
    kill(&mut world, other, false);
    let explanation = explain(&world, Subject::Pg(PG));
    assert_eq!(explanation.causes[0].code, "TOO_FEW_UP");
    assert!(explanation.causes[0].cause.contains("fell silent"), "{explanation:?}");
    assert_eq!(explanation.causes[0].blocked_by.len(), 2);
    let osd = explain(&world, Subject::Osd(OsdId(victim)));
    assert_eq!(codes(&osd), ["DOWN"]);
    assert!(osd.causes[0].cause.contains("its data goes to others in 10 min"), "{osd:?}");
}

#[test]
fn an_osd_that_is_out_says_by_whose_hand() {
    let mut world = World::new(&[0, 1, 2, 3, 4]);
    world.report_all();
    world.change(Change::Request(MonCommand::OsdOut(OsdId(1))));
    let osd = explain(&world, Subject::Osd(OsdId(1)));
    assert_eq!(osd.state, "up, out");
    assert!(osd.causes.iter().any(|cause| cause.cause.contains("an operator marked it out")), "{osd:?}");
    kill(&mut world, 2, true);
    world.change(Change::MarkOut(OsdId(2)));
    let osd = explain(&world, Subject::Osd(OsdId(2)));
    assert!(osd.causes.iter().any(|cause| cause.cause.contains("comes back in when it boots")), "{osd:?}");
    world.change(Change::Request(MonCommand::OsdReweight { osd: OsdId(0), weight: 0 }));
    assert!(codes(&explain(&world, Subject::Osd(OsdId(0)))).contains(&"NO_WEIGHT"));
}

#[test]
fn an_object_is_explained_by_its_placement_group_and_what_is_not_there_is_not_found() {
    let mut world = World::new(&[0, 1, 2]);
    world.report_all();
    let object = |pool: &str| Subject::Object { pool: pool.into(), name: b"a/b".to_vec() };
    let explanation = explain(&world, object("data"));
    assert_eq!(explanation.subject, "object a/b of pool data");
    assert!(explanation.facts[0].starts_with("it lies in pg 1."), "{explanation:?}");
    let missing = [
        Subject::Osd(OsdId(9)),
        Subject::Pg(PgId { pool: PoolId(1), seed: 9_999 }),
        Subject::Pg(PgId { pool: PoolId(7), seed: 0 }),
        object("none"),
    ];
    for subject in missing {
        let reply = world.ask(&MonCommand::Explain(subject));
        assert!(matches!(reply, MonReply::Failed(MonError::NotFound { .. })), "{reply:?}");
    }
}

#[test]
fn a_query_tells_how_long_a_state_has_lasted() {
    let mut world = World::new(&[0, 1, 2]);
    assert_eq!(query(&world).reported_by, None);
    world.report_all();
    world.wait(Duration::from_secs(7));
    world.report_all();
    let detail = query(&world);
    assert_eq!(detail.reported_by, world.map().members(PG).primary());
    assert_eq!((detail.report_age_ms, detail.state_for_ms), (Some(0), Some(7_000)));
    assert_eq!((detail.size, detail.min_size, detail.placed.len()), (3, 2, 3));
    for osd in 0..3 {
        let _ = world.report(osd, |report| report.state.clean = false);
    }
    assert_eq!(query(&world).state_for_ms, Some(0));
}

#[test]
fn copies_that_differ_are_not_as_they_should_be() {
    let mut world = World::new(&[0, 1, 2]);
    world.report_each(|report| {
        let examples = vec!["object of 3: two copies differ".to_owned()];
        report.scrub = Some(PgScrub { objects_inconsistent: 1, examples, ..PgScrub::default() });
    });
    let why = explain(&world, Subject::Pg(PG));
    assert_eq!((why.ok, codes(&why)), (false, vec!["INCONSISTENT"]));
    assert!(why.causes[0].cause.contains("object of 3") && why.causes[0].next.contains("pg repair 1.3"), "{why:?}");
}

#[test]
fn a_member_that_hangs_is_named_although_no_state_tells_of_it() {
    let mut world = World::new(&[0, 1, 2]);
    world.report_all();
    world.silent(0, 1);
    let why = explain(&world, Subject::Pg(PG));
    assert_eq!((why.ok, codes(&why)), (false, vec!["MEMBER_SILENT"]));
    assert_eq!(why.causes[0].blocked_by, ["osd.1"]);
    assert!(world.codes().contains(&"OSD_SILENT".to_owned()));
}

#[test]
fn members_beyond_those_that_placement_finds_are_well_where_they_are() {
    let mut world = World::new(&[0, 1, 2, 3]);
    world.change(Change::MarkDown { osd: OsdId(3), incarnation: run_of(3), dead: true });
    let (pg, members) = world.map().members_of_all().into_iter().find(|(_, members)| members.up.len() == 2).unwrap();
    let mut acting = members.up.clone();
    acting.extend((0..3).map(OsdId).find(|osd| !members.up.contains(osd)));
    let leader = acting[0];
    let wishes = vec![PgTempWish { pg, acting, seen: None }];
    world.change(Change::Request(MonCommand::PgTemp { osd: leader, incarnation: run_of(leader.0), wishes }));
    world.report_all();
    let why = explain(&world, Subject::Pg(pg));
    assert!(why.ok && why.causes.is_empty(), "{why:?}");
    assert!(world.states().contains(&"active+clean+remapped".to_owned()), "{:?}", world.states());
    world.report_each(|report| report.state.clean = false);
    assert!(!explain(&world, Subject::Pg(pg)).ok);
    let check = world.status().checks.into_iter().find(|check| check.code == "PG_NOT_CLEAN").unwrap();
    assert!(check.impact.contains("not known"), "nothing moves that it could be waiting for: {check:?}");
}

#[test]
fn members_that_are_being_filled_are_named_when_too_few_copies_are_complete() {
    let mut world = World::new(&[0, 1, 2]);
    let up = world.map().members(PG).up.clone();
    let wishes = vec![PgTempWish { pg: PG, acting: vec![up[0]], seen: None }];
    world.change(Change::Request(MonCommand::PgTemp { osd: up[0], incarnation: run_of(up[0].0), wishes }));
    world.report_all();
    let why = explain(&world, Subject::Pg(PG));
    assert_eq!(codes(&why)[0], "TOO_FEW_COMPLETE", "{why:?}");
    assert_eq!(why.causes[0].blocked_by, [up[1].to_string(), up[2].to_string()]);
    assert!(why.causes[0].next.starts_with("wait"), "{why:?}");
    // One of them is too full to be filled: the other is enough, until it is down.
    world.change(Change::Space(BTreeMap::from([(up[2], SpaceLevel::BackfillFull)])));
    world.report_all();
    assert!(explain(&world, Subject::Pg(PG)).causes[0].next.starts_with("wait"));
    kill(&mut world, up[1].0, false);
    let why = explain(&world, Subject::Pg(PG));
    assert_eq!(codes(&why)[..2], ["TOO_FEW_COMPLETE", "MEMBER_DOWN"], "{why:?}");
    assert_eq!(
        (&why.causes[0].blocked_by, &why.causes[1].blocked_by),
        (&vec![up[2].to_string()], &vec![up[1].to_string()])
    );
    assert!(why.causes[0].cause.contains("too full") && why.causes[0].next.starts_with("delete data"), "{why:?}");
}

#[test]
fn objects_that_nobody_can_give_are_named_and_so_is_who_may_have_them_or_how_to_give_them_up() {
    let mut world = World::new(&[0, 1, 2, 3, 4, 5]);
    let mut others = (0..6).filter(|osd| !world.map().members(PG).up.contains(&OsdId(*osd)));
    let (holder, unconcerned) = (others.next().expect("one more"), others.next().expect("another one"));
    let explained = |world: &mut World, absent: &[OsdId]| {
        world.report_each(|report| {
            (report.state.clean, report.copies_missing, report.objects_unfound) = (false, 21, 7);
            (report.unfound, report.blocked_by) = (vec!["photo".to_owned(), "song".to_owned()], absent.to_vec());
        });
        explain(world, Subject::Pg(PG))
    };
    kill(&mut world, unconcerned, false);
    let why = explained(&mut world, &[]);
    assert_eq!(codes(&why), ["OBJECTS_UNFOUND"], "it is nobody's turn: {why:?}");
    assert!(why.causes[0].cause.ends_with(": photo, song and 5 more"), "{why:?}");
    assert!(why.causes[0].next.contains("deleting") && why.causes[0].blocked_by.is_empty(), "{why:?}");

    let why = explained(&mut world, &[OsdId(holder)]);
    assert!(why.causes[0].next.starts_with("wait") && !why.causes[0].next.contains("deleting"), "it is up: {why:?}");
    kill(&mut world, holder, false);
    let why = explained(&mut world, &[OsdId(holder)]);
    assert_eq!(why.causes[0].blocked_by, [OsdId(holder).to_string()]);
    assert!(why.causes[0].next.starts_with(&format!("start `holdfast osd` for osd.{holder}")), "{why:?}");
}

/// What a primary can say: how far it is, with each combination of what its copies lack. Copies that differ have a test of
/// their own.
fn all_states() -> impl Iterator<Item = PgState> {
    let fresh = PgState::default();
    let phases = [
        fresh,
        PgState { peering: true, ..fresh },
        PgState { peering: true, down: true, ..fresh },
        PgState { down: true, ..fresh },
        PgState { incomplete: true, ..fresh },
        PgState { active: true, peering: true, ..fresh },
        PgState { active: true, ..fresh },
        PgState { active: true, clean: true, ..fresh },
    ];
    phases.into_iter().flat_map(|phase| {
        (0u32..1 << 5).map(move |bits| {
            let has = |bit: u32| bits >> bit & 1 == 1;
            let (degraded, undersized, recovering) = (has(0), has(1), has(2));
            PgState { degraded, undersized, recovering, backfilling: has(3), remapped: has(4), ..phase }
        })
    })
}

/// Where [`PG`] can stand, with what each does to a world of six OSDs.
fn standings() -> Vec<(&'static str, World)> {
    let wish = |world: &mut World, acting: Vec<OsdId>| {
        let leader = acting[0];
        let wishes = vec![PgTempWish { pg: PG, acting, seen: None }];
        world.change(Change::Request(MonCommand::PgTemp { osd: leader, incarnation: run_of(leader.0), wishes }));
    };
    let world = || World::new(&[0, 1, 2, 3, 4, 5]);
    let up = world().map().members(PG).up.clone();
    let another = (0..6).map(OsdId).find(|osd| !up.contains(osd)).expect("six OSDs, three copies");
    let mut standings = vec![("all are there", world())];
    for gone in 1..=3 {
        let mut world = world();
        for osd in &up[..gone] {
            kill(&mut world, osd.0, gone == 1);
        }
        standings.push((["a member is down", "two are down", "all are down"][gone - 1], world));
    }
    for (name, acting, is_down) in [
        ("one is being filled", vec![up[0], up[1]], false),
        ("two are being filled", vec![up[0]], false),
        ("one is being filled, and down", vec![up[0], up[1]], true),
        ("another one serves", vec![another, up[0], up[1]], false),
        ("another one serves, and a member is down", vec![another, up[0]], true),
    ] {
        let mut world = world();
        wish(&mut world, acting);
        if is_down {
            kill(&mut world, up[2].0, false);
        }
        standings.push((name, world));
    }
    let mut few = World::new(&[0, 1]);
    few.report_all();
    standings.push(("there are places for two", few));
    standings
}

#[test]
fn no_state_that_is_not_clean_goes_without_a_cause_a_party_and_a_next_step() {
    // Codes of causes that nobody can be named for.
    const NOBODY: [&str; 4] = ["NO_COMPLETE_COPY", "COPYING", "TOO_FEW_PLACES", "OBJECTS_UNFOUND"];
    let mut states = BTreeSet::new();
    let mut check = |standing: &str, world: &World| {
        let why = explain(world, Subject::Pg(PG));
        let is_clean = why.state.split('+').any(|part| part == "clean") && why.state.starts_with("active");
        assert!(is_clean || !why.ok, "{standing}: {why:?}");
        assert_eq!(why.causes.is_empty(), why.ok, "{standing}: {why:?}");
        for cause in &why.causes {
            assert!(!cause.cause.is_empty() && !cause.next.is_empty(), "{standing}: {why:?}");
            assert!(!cause.blocked_by.is_empty() || NOBODY.contains(&&*cause.code), "{standing}: {why:?}");
        }
        states.insert(why.state);
    };
    for (standing, mut world) in standings() {
        check(standing, &world);
        let members = world.map().members(PG);
        let primary = members.primary().map_or(0, |osd| osd.0);
        for state in all_states() {
            for (missing, unfound, blockers) in [(0, 0, vec![]), (5, 0, vec![OsdId(4)]), (9, 2, vec![])] {
                let _ = world.report_of(primary, &[(PG, members.clone())], |report| {
                    (report.state, report.copies_missing, report.objects_unfound) = (state, missing, unfound);
                    report.blocked_by.clone_from(&blockers);
                });
                check(standing, &world);
            }
        }
        // The last report is too old to count.
        world.wait(Duration::from_secs(60));
        check(standing, &world);
    }
    for seen in ["unknown", "unknown+undersized+degraded+remapped", "active+undersized+degraded+recovering", "peering"]
    {
        let seen = seen.split('+').collect::<BTreeSet<_>>();
        assert!(states.iter().any(|state| state.split('+').collect::<BTreeSet<_>>() == seen), "{seen:?}: {states:?}");
    }
}
