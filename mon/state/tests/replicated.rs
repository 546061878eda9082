//! The replicated half: what commands do to maps.
#![allow(clippy::unwrap_used, missing_docs)]

use holdfast_map::{ClusterMap, Increment, RuleShape, SpaceLevel, UpmapItem};
use holdfast_mon_state::{Change, Command, Op, State};
use holdfast_types::{ClientId, ClusterId, DiskUuid, Epoch, Incarnation, OsdId, PgId, PoolId, RequestId};
use holdfast_wire::mon::{LocationStep, MonCommand, MonError, MonReply, PgTempWish, Secret};
use proptest::prelude::*;

const CLUSTER: ClusterId = ClusterId([1; 16]);
const TIB: u64 = 1 << 40;

struct Cluster {
    state: State,
    index: u64,
    at_unix_ms: u64,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster { state: State::new(CLUSTER), index: 0, at_unix_ms: 1_000 }
    }

    /// `count` OSDs, `per_host` on each host, all up.
    fn with_osds(count: u32, per_host: u32) -> Cluster {
        let mut cluster = Cluster::new();
        for id in 0..count {
            cluster.register(id, id / per_host);
            cluster.boot(id, 100 + u64::from(id)).unwrap();
        }
        cluster
    }

    fn batch(&mut self, ops: Vec<Op>) -> Vec<MonReply> {
        self.index += 1;
        let command = Command { at_unix_ms: self.at_unix_ms, ops, seen: None };
        let command = Command::decode(&command.encode()).unwrap();
        self.state.apply(self.index, &command).replies
    }

    fn change(&mut self, change: Change) -> MonReply {
        self.batch(vec![Op { id: None, change }]).remove(0)
    }

    fn ask(&mut self, command: MonCommand) -> Result<MonReply, MonError> {
        match self.change(Change::Request(command)) {
            MonReply::Failed(error) => Err(error),
            reply => Ok(reply),
        }
    }

    fn register(&mut self, id: u32, host: u32) -> OsdId {
        let reply = self.ask(register(id, host, None)).unwrap();
        let MonReply::OsdId(osd) = reply else { panic!("{reply:?}") };
        osd
    }

    fn boot(&mut self, id: u32, incarnation: u64) -> Result<MonReply, MonError> {
        self.ask(boot(id, incarnation))
    }

    fn map(&self) -> &ClusterMap {
        self.state.map()
    }
}

fn disk(id: u32) -> DiskUuid {
    DiskUuid([u8::try_from(id).unwrap() + 1; 16])
}

fn register(id: u32, host: u32, wanted: Option<OsdId>) -> MonCommand {
    let location = vec![LocationStep { kind: "host".into(), name: format!("node-{host}") }];
    MonCommand::OsdRegister {
        disk: disk(id),
        location,
        class: Some("ssd".into()),
        capacity_bytes: TIB,
        wanted,
        blank: None,
    }
}

fn boot(id: u32, incarnation: u64) -> MonCommand {
    MonCommand::OsdBoot {
        osd: OsdId(id),
        disk: disk(id),
        incarnation: Incarnation(incarnation),
        address: format!("127.0.0.1:{}", 7000 + id),
        can_split: Some(true),
    }
}

fn pool(name: &str, size: Option<u32>) -> MonCommand {
    MonCommand::PoolCreate {
        name: name.into(),
        size,
        min_size: None,
        application: "test".into(),
        failure_domain: None,
        share_percent: None,
    }
}

#[test]
fn a_disk_gets_one_id_for_ever_and_a_new_disk_another() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.register(0, 0), OsdId(0));
    assert_eq!(cluster.register(1, 0), OsdId(1));
    let epoch = cluster.map().epoch;
    assert_eq!(cluster.register(0, 0), OsdId(0));
    assert_eq!(cluster.map().epoch, epoch, "registering again changes nothing");
    let reply = cluster.ask(register(7, 0, Some(OsdId(5)))).unwrap();
    assert_eq!(reply, MonReply::OsdId(OsdId(5)));
    let reply = cluster.ask(register(8, 0, Some(OsdId(5)))).unwrap();
    assert_eq!(reply, MonReply::OsdId(OsdId(2)), "a taken id is not given twice");
    let swapped = MonCommand::OsdBoot {
        osd: OsdId(0),
        disk: disk(9),
        incarnation: Incarnation(1),
        address: "127.0.0.1:1".into(),
        can_split: Some(true),
    };
    assert!(matches!(cluster.ask(swapped), Err(MonError::Invalid { .. })), "a swapped disk does not pass for it");
    let nowhere = MonCommand::OsdRegister {
        disk: disk(20),
        location: Vec::new(),
        class: None,
        capacity_bytes: TIB,
        wanted: None,
        blank: None,
    };
    assert!(matches!(cluster.ask(nowhere), Err(MonError::Invalid { .. })));
}

#[test]
fn an_osd_id_is_never_given_to_a_second_disk() {
    let mut cluster = Cluster::with_osds(3, 1);
    cluster.ask(MonCommand::OsdOut(OsdId(1))).unwrap();
    cluster.ask(MonCommand::OsdStopping { osd: OsdId(1), incarnation: Incarnation(101) }).unwrap();
    cluster.ask(MonCommand::OsdRemove(OsdId(1))).unwrap();
    assert_eq!(cluster.ask(register(8, 0, Some(OsdId(1)))).unwrap(), MonReply::OsdId(OsdId(3)), "not by its wish");
    assert_eq!(cluster.register(9, 0), OsdId(4), "nor by chance");
    assert_eq!(cluster.register(1, 1), OsdId(5), "nor to its former disk: it was given up");
    let epoch = cluster.map().epoch;
    assert_eq!(cluster.map().osds[&OsdId(5)].formatted_at, epoch, "the map tells since when the disk counts");
    let restored = State::decode(&cluster.state.encode()).unwrap();
    assert_eq!(restored.map().next_osd, OsdId(2));
    let slip = cluster.ask(register(10, 0, Some(OsdId(60_000)))).unwrap();
    assert_eq!(slip, MonReply::OsdId(OsdId(6)), "a slip does not use up the ids");
}

#[test]
fn a_boot_that_was_long_under_way_brings_no_dead_run_back() {
    let mut cluster = Cluster::with_osds(1, 1);
    cluster.change(Change::MarkDown { osd: OsdId(0), incarnation: Incarnation(100), dead: true });
    assert!(matches!(cluster.boot(0, 100), Err(MonError::Stale { .. })), "that run was marked down");
    cluster.boot(0, 101).unwrap();
    assert!(matches!(cluster.boot(0, 99), Err(MonError::Stale { .. })), "an older one");
    let info = &cluster.map().osds[&OsdId(0)];
    assert!(info.up && info.incarnation == Incarnation(101));
}

#[test]
fn a_hold_off_set_by_a_clock_that_was_ahead_does_not_last() {
    let mut cluster = Cluster::with_osds(1, 1);
    cluster.at_unix_ms = 86_400_000;
    for run in 100..106 {
        cluster.change(Change::MarkDown { osd: OsdId(0), incarnation: Incarnation(run), dead: false });
        let booted = cluster.boot(0, run + 1);
        assert_eq!(booted.is_err(), run == 105, "held off after the sixth silence: {booted:?}");
    }
    cluster.at_unix_ms = 1_000;
    cluster.boot(0, 107).expect("a leader with the right clock does not hold it off for a day");
}

#[test]
fn a_store_that_was_made_anew_is_not_the_disk_that_it_was() {
    let mut cluster = Cluster::new();
    let blank = |id: u32| match register(id, 0, None) {
        MonCommand::OsdRegister { disk, location, class, capacity_bytes, wanted, .. } => {
            MonCommand::OsdRegister { disk, location, class, capacity_bytes, wanted, blank: Some(true) }
        }
        other => other,
    };
    assert_eq!(cluster.ask(blank(0)).unwrap(), MonReply::OsdId(OsdId(0)));
    assert_eq!(cluster.ask(blank(0)).unwrap(), MonReply::OsdId(OsdId(0)), "a first start that was cut off goes on");
    cluster.boot(0, 1).unwrap();
    assert!(matches!(cluster.ask(blank(0)), Err(MonError::Exists { .. })), "what it held is gone: it has no vote");
    assert_eq!(cluster.ask(register(0, 0, None)).unwrap(), MonReply::OsdId(OsdId(0)), "with its store it is itself");
}

#[test]
fn every_boot_makes_a_new_interval_and_an_old_run_has_no_say() {
    let mut cluster = Cluster::with_osds(1, 1);
    let first = cluster.map().osds[&OsdId(0)].clone();
    assert!(first.up && first.in_cluster && first.up_from == cluster.map().epoch);
    let epoch = cluster.map().epoch;
    cluster.boot(0, 100).unwrap();
    assert_eq!(cluster.map().epoch, epoch, "the same boot again is none");
    cluster.boot(0, 101).unwrap();
    let second = cluster.map().osds[&OsdId(0)].clone();
    assert!(second.up_from > first.up_from && second.down_at > first.down_at);
    let old = MonCommand::UpThru { osd: OsdId(0), incarnation: Incarnation(100), at_least: epoch };
    assert!(matches!(cluster.ask(old), Err(MonError::Stale { .. })));
    let stopping = MonCommand::OsdStopping { osd: OsdId(0), incarnation: Incarnation(100) };
    assert!(matches!(cluster.ask(stopping), Err(MonError::Stale { .. })));
    let down = Change::MarkDown { osd: OsdId(0), incarnation: Incarnation(100), dead: true };
    assert!(matches!(cluster.change(down), MonReply::Failed(MonError::Stale { .. })));
    assert!(cluster.map().is_up(OsdId(0)));
}

#[test]
fn up_thru_rises_to_what_was_asked_and_never_beyond_the_newest_map() {
    let mut cluster = Cluster::with_osds(2, 1);
    let epoch = cluster.map().epoch;
    let ask = |at_least| MonCommand::UpThru { osd: OsdId(0), incarnation: Incarnation(100), at_least };
    assert!(matches!(cluster.ask(ask(epoch.next())), Err(MonError::Invalid { .. })));
    assert_eq!(cluster.ask(ask(epoch)).unwrap(), MonReply::Done { epoch: epoch.next() });
    assert_eq!(cluster.map().osds[&OsdId(0)].up_thru, epoch);
    cluster.ask(ask(Epoch(1))).unwrap();
    assert_eq!(cluster.map().osds[&OsdId(0)].up_thru, epoch, "it never falls");
    assert_eq!(cluster.map().epoch, epoch.next());
}

#[test]
fn one_batch_makes_one_map() {
    let mut cluster = Cluster::with_osds(3, 1);
    cluster.ask(pool("data", None)).unwrap();
    let before = cluster.map().epoch;
    let up_thru = |osd: u32| {
        let incarnation = Incarnation(100 + u64::from(osd));
        let command = MonCommand::UpThru { osd: OsdId(osd), incarnation, at_least: before };
        Op { id: None, change: Change::Request(command) }
    };
    let replies = cluster.batch((0..3).map(up_thru).collect());
    assert_eq!(cluster.map().epoch, before.next());
    assert!(replies.iter().all(|reply| *reply == MonReply::Done { epoch: before.next() }));
}

#[test]
fn a_resend_is_answered_alike_and_not_applied_again() {
    let mut cluster = Cluster::with_osds(3, 1);
    let id = RequestId { client: ClientId(7), incarnation: Incarnation(1), tid: 1 };
    let op = |command: MonCommand| Op { id: Some(id), change: Change::Request(command) };
    let first = cluster.batch(vec![op(pool("data", None))]);
    let delete = MonCommand::PoolDelete { name: "data".into(), confirm: "data".into() };
    cluster.ask(delete).unwrap();
    let epoch = cluster.map().epoch;
    let again = cluster.batch(vec![op(pool("data", None))]);
    assert_eq!(first, again);
    assert_eq!(cluster.map().epoch, epoch);
    assert!(cluster.map().pools.is_empty());
}

/// Simulator of the monitors, seed 47: a client had asked the leader again while an entry was being committed.
#[test]
fn a_request_and_its_resend_in_one_batch_are_one() {
    let mut cluster = Cluster::with_osds(3, 1);
    cluster.ask(pool("data", None)).unwrap();
    let id = RequestId { client: ClientId(7), incarnation: Incarnation(1), tid: 1 };
    let delete = MonCommand::PoolDelete { name: "data".into(), confirm: "data".into() };
    let op = Op { id: Some(id), change: Change::Request(delete) };
    let replies = cluster.batch(vec![op.clone(), op.clone()]);
    let done = MonReply::Done { epoch: cluster.map().epoch };
    assert_eq!(replies, [done.clone(), done.clone()]);
    assert_eq!(cluster.batch(vec![op]), [done]);
}

#[test]
fn a_request_of_an_earlier_run_behind_one_of_a_later_run_in_a_batch_is_late() {
    let mut cluster = Cluster::with_osds(3, 1);
    cluster.ask(pool("data", None)).unwrap();
    let op = |run, command| {
        let id = RequestId { client: ClientId(7), incarnation: Incarnation(run), tid: run };
        Op { id: Some(id), change: Change::Request(command) }
    };
    let delete = MonCommand::PoolDelete { name: "data".into(), confirm: "data".into() };
    let (later, earlier) = (op(2, pool("more", None)), op(1, delete));
    let replies = cluster.batch(vec![later.clone(), earlier.clone()]);
    assert!(matches!(replies[1], MonReply::Failed(MonError::Stale { .. })), "{replies:?}");
    assert_eq!(cluster.map().pools.len(), 2);
    assert_eq!(cluster.batch(vec![later])[0], replies[0], "and what the later run was answered is still known");
    assert!(matches!(cluster.batch(vec![earlier])[0], MonReply::Failed(MonError::Stale { .. })));
}

#[test]
fn a_pool_gets_what_the_cluster_can_give() {
    // OSDs, per host, size asked → size, min_size, failure domain
    let table = [
        ((1, 1), None, 1, 1, "host"),
        ((2, 2), None, 2, 2, "osd"),
        ((3, 3), None, 3, 2, "osd"),
        ((5, 1), None, 3, 2, "host"),
        ((4, 2), None, 3, 2, "osd"),
        ((4, 2), Some(2), 2, 2, "host"),
        ((3, 1), Some(5), 5, 3, "osd"),
    ];
    for ((osds, per_host), asked, size, min_size, domain) in table {
        let mut cluster = Cluster::with_osds(osds, per_host);
        cluster.ask(pool("data", asked)).unwrap();
        let Some(MonReply::Pools(pools)) = cluster.state.answer(&MonCommand::PoolList) else { panic!() };
        let got = (pools[0].size, pools[0].min_size, pools[0].failure_domain.as_str());
        assert_eq!(got, (size, min_size, domain), "{osds} OSDs, {per_host} on each host, size {asked:?}");
        for seed in 0..pools[0].pg_num {
            let members = cluster.map().members(PgId { pool: pools[0].id, seed });
            assert_eq!(members.acting.len(), size.min(osds) as usize, "all copies are placed");
        }
    }
}

#[test]
fn pool_names_are_unique_and_deleting_needs_the_name_twice() {
    let mut cluster = Cluster::with_osds(3, 1);
    let made = cluster.ask(pool("data", Some(3))).unwrap();
    let MonReply::Pool { id, .. } = made else { panic!() };
    let MonReply::Pool { id: again, .. } = cluster.ask(pool("data", Some(3))).unwrap() else { panic!() };
    assert_eq!(id, again);
    assert!(matches!(cluster.ask(pool("data", Some(2))), Err(MonError::Exists { .. })));
    assert!(matches!(cluster.ask(pool("a b", None)), Err(MonError::Invalid { .. })));
    assert!(matches!(cluster.ask(pool("zero", Some(0))), Err(MonError::Invalid { .. })));
    let delete = |confirm: &str| MonCommand::PoolDelete { name: "data".into(), confirm: confirm.into() };
    assert!(matches!(cluster.ask(delete("dat")), Err(MonError::Unsafe { .. })));
    cluster.ask(delete("data")).unwrap();
    assert!(matches!(cluster.ask(delete("data")), Err(MonError::NotFound { .. })));
    let MonReply::Pool { id: next, .. } = cluster.ask(pool("data", Some(3))).unwrap() else { panic!() };
    assert!(next > id, "pool ids are never used again");
}

#[test]
fn a_temporary_acting_set_lasts_until_placement_agrees_or_nobody_is_left() {
    let mut cluster = Cluster::with_osds(4, 1);
    cluster.ask(pool("data", Some(3))).unwrap();
    let pg = PgId { pool: PoolId(1), seed: 0 };
    let up = cluster.map().members(pg).up;
    let spare = (0..4).map(OsdId).find(|osd| !up.contains(osd)).unwrap();
    let wish = |osd: OsdId, acting: Vec<OsdId>, seen: Option<Vec<OsdId>>| MonCommand::PgTemp {
        osd,
        incarnation: Incarnation(100 + u64::from(osd.0)),
        wishes: vec![PgTempWish { pg, acting, seen }],
    };
    let twice = cluster.ask(wish(up[0], vec![up[0], up[0]], None));
    assert!(matches!(twice, Err(MonError::Invalid { .. })), "{twice:?}");
    cluster.ask(wish(up[1], vec![spare], None)).unwrap();
    assert!(cluster.map().pg_temp.is_empty(), "only the primary decides");
    cluster.ask(wish(up[0], vec![spare, up[0]], Some(up.clone()))).unwrap();
    assert_eq!(cluster.map().members(pg).acting, vec![spare, up[0]]);
    cluster.ask(wish(spare, vec![spare, up[1]], Some(up.clone()))).unwrap();
    assert_eq!(cluster.map().members(pg).acting, vec![spare, up[0]], "a wish of an interval that is over");
    let epoch = cluster.map().epoch;
    cluster.ask(wish(spare, up.clone(), Some(vec![spare, up[0]]))).unwrap();
    assert!(cluster.map().pg_temp.is_empty());
    assert_eq!(cluster.map().epoch, epoch.next());
    cluster.ask(wish(up[0], vec![spare], None)).unwrap();
    let incarnation = Incarnation(100 + u64::from(spare.0));
    cluster.change(Change::MarkDown { osd: spare, incarnation, dead: true });
    assert!(cluster.map().pg_temp.is_empty(), "nobody of it is left");
    let other = MonCommand::PgTemp {
        osd: up[0],
        incarnation: Incarnation(100 + u64::from(up[0].0)),
        wishes: vec![PgTempWish { pg: PgId { pool: PoolId(9), seed: 0 }, acting: vec![], seen: None }],
    };
    assert!(matches!(cluster.ask(other), Err(MonError::NotFound { .. })));
}

#[test]
fn an_operator_decides_over_out_and_a_long_down_osd_comes_back_in() {
    let mut cluster = Cluster::with_osds(4, 1);
    let down =
        |osd: u32| Change::MarkDown { osd: OsdId(osd), incarnation: Incarnation(100 + u64::from(osd)), dead: true };
    cluster.change(down(0));
    cluster.change(Change::MarkOut(OsdId(0)));
    assert!(!cluster.map().osds[&OsdId(0)].in_cluster);
    cluster.boot(0, 200).unwrap();
    assert!(cluster.map().osds[&OsdId(0)].in_cluster, "back by itself");
    cluster.ask(MonCommand::OsdOut(OsdId(1))).unwrap();
    cluster.change(down(1));
    cluster.boot(1, 201).unwrap();
    assert!(!cluster.map().osds[&OsdId(1)].in_cluster, "an operator's word holds");
    assert!(matches!(cluster.ask(MonCommand::OsdRemove(OsdId(1))), Err(MonError::Unsafe { .. })));
    cluster.ask(MonCommand::OsdDown(OsdId(1))).unwrap();
    cluster.ask(MonCommand::OsdRemove(OsdId(1))).unwrap();
    assert!(!cluster.map().osds.contains_key(&OsdId(1)));
    assert!(!cluster.map().crush.has_device(OsdId(1)));
    assert!(matches!(cluster.change(Change::MarkOut(OsdId(2))), MonReply::Failed(MonError::Stale { .. })));
}

#[test]
fn a_flapping_osd_is_held_off_and_a_crashing_one_is_not() {
    let mut cluster = Cluster::with_osds(2, 1);
    for run in 0..20 {
        let incarnation = Incarnation(if run == 0 { 100 } else { 200 + run });
        let reply = cluster.change(Change::MarkDown { osd: OsdId(0), incarnation, dead: true });
        assert!(matches!(reply, MonReply::Done { .. }), "{reply:?}");
        cluster.boot(0, 201 + run).unwrap();
    }
    for run in 0..6 {
        let incarnation = cluster.map().osds[&OsdId(1)].incarnation;
        cluster.change(Change::MarkDown { osd: OsdId(1), incarnation, dead: false });
        cluster.at_unix_ms += 10_000;
        let _ = cluster.boot(1, 300 + run);
    }
    assert!(matches!(cluster.boot(1, 400), Err(MonError::Unsafe { .. })));
    cluster.at_unix_ms += 60_000;
    cluster.boot(1, 400).unwrap();
}

#[test]
fn a_state_comes_back_from_its_bytes_with_all_its_maps() {
    let mut cluster = Cluster::with_osds(3, 1);
    cluster.ask(pool("data", None)).unwrap();
    let key = MonCommand::KeyNew {
        name: "alice".into(),
        access_key: Some("AKIAALICE".into()),
        secret_key: Some(Secret("secretsecret".into())),
    };
    cluster.ask(key).unwrap();
    cluster.ask(MonCommand::ConfigSet { name: "a".into(), value: Some("1".into()) }).unwrap();
    let restored = State::decode(&cluster.state.encode()).unwrap();
    assert_eq!(restored, cluster.state);
    for epoch in 1..=cluster.map().epoch.0 {
        assert_eq!(restored.map_at(Epoch(epoch)).unwrap().build().unwrap().epoch, Epoch(epoch));
    }
    let bytes = cluster.state.encode();
    for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        assert!(State::decode(&bytes[..cut]).is_err());
    }
}

#[test]
fn trimmed_maps_are_gone_and_a_late_holder_gets_a_full_one() {
    let mut cluster = Cluster::with_osds(5, 1);
    let newest = cluster.map().epoch;
    cluster.change(Change::TrimMaps(Epoch(4)));
    assert_eq!(cluster.state.oldest_epoch(), Epoch(4));
    assert!(cluster.state.map_at(Epoch(3)).is_none());
    assert!(cluster.state.map_at(Epoch(4)).is_some());
    assert!(cluster.state.maps_since(Epoch(3)).full.is_some());
    let update = cluster.state.maps_since(Epoch(4));
    assert_eq!((update.full, update.increments.len() as u64), (None, newest.0 - 4));
    cluster.change(Change::TrimMaps(Epoch(1_000)));
    assert_eq!(cluster.state.map_at(newest).unwrap().build().unwrap().epoch, newest, "the newest is always kept");
}

/// Random changes, most of them sensible.
fn any_change() -> impl Strategy<Value = Change> {
    let osd = 0..6u32;
    let run = 0..3u64;
    prop_oneof![
        (osd.clone(), 0..3u32).prop_map(|(id, host)| Change::Request(register(id, host, None))),
        (osd.clone(), run.clone()).prop_map(|(id, run)| Change::Request(boot(id, 100 + run))),
        (osd.clone(), run.clone(), any::<bool>()).prop_map(|(id, run, dead)| Change::MarkDown {
            osd: OsdId(id),
            incarnation: Incarnation(100 + run),
            dead
        }),
        osd.clone().prop_map(|id| Change::MarkOut(OsdId(id))),
        osd.clone().prop_map(|id| Change::Request(MonCommand::OsdOut(OsdId(id)))),
        osd.clone().prop_map(|id| Change::Request(MonCommand::OsdRemove(OsdId(id)))),
        (osd.clone(), 0..0x2_0000u32)
            .prop_map(|(id, weight)| Change::Request(MonCommand::OsdReweight { osd: OsdId(id), weight })),
        (0..3u8, prop::option::of(0..4u32)).prop_map(|(n, size)| Change::Request(pool(&format!("p{n}"), size))),
        (0..3u8)
            .prop_map(|n| Change::Request(MonCommand::PoolDelete { name: format!("p{n}"), confirm: format!("p{n}") })),
        (osd.clone(), run, 0..4u64, 0..8u32, prop::collection::vec(osd, 0..3)).prop_map(
            |(id, run, pool, seed, acting)| Change::Request(MonCommand::PgTemp {
                osd: OsdId(id),
                incarnation: Incarnation(100 + run),
                wishes: vec![PgTempWish {
                    pg: PgId { pool: PoolId(pool), seed },
                    acting: acting.into_iter().map(OsdId).collect(),
                    seen: None,
                }],
            })
        ),
        (0..3u64, 0..3u64).prop_map(|(client, incarnation)| Change::Request(MonCommand::BlocklistAdd {
            client: ClientId(client),
            incarnation: Incarnation(incarnation)
        })),
        (0..3u64, 0..3u64).prop_map(|(client, incarnation)| Change::Request(MonCommand::BlocklistRemove {
            client: ClientId(client),
            incarnation: Incarnation(incarnation)
        })),
        (0..40u64).prop_map(|epoch| Change::TrimMaps(Epoch(epoch))),
        prop::collection::btree_map((0..4u64, 0..16u32), prop::collection::vec((0..6u32, 0..6u32), 0..3), 0..8)
            .prop_map(|entries| {
                let entry = |((pool, seed), items): ((u64, u32), Vec<(u32, u32)>)| {
                    let item = |(from, to)| UpmapItem { from: OsdId(from), to: OsdId(to) };
                    (PgId { pool: PoolId(pool), seed }, items.into_iter().map(item).collect())
                };
                Change::Upmap(entries.into_iter().map(entry).collect())
            }),
        (0..6u32, 0..4usize).prop_map(|(osd, level)| Change::Space([(OsdId(osd), SpaceLevel::ALL[level])].into())),
        (0..4u64, 0..3u32, proptest::option::of(0..40u64)).prop_map(|(pool, n, epoch)| Change::Split {
            pool: PoolId(pool),
            pg_num: 8 << n,
            judged_at: epoch.map(Epoch),
        }),
        (0..4u64, 0..40u32).prop_map(|(pool, placed)| Change::Spread { pool: PoolId(pool), placed }),
        (0..6u32).prop_map(|osd| Change::Request(MonCommand::OsdRelease(OsdId(osd)))),
        prop::option::of(700..1_100u32).prop_map(|full| Change::Request(MonCommand::FullRatios {
            near_full: None,
            backfill_full: None,
            full,
            failsafe: full.map(|full| full + 10),
        })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn increments_lead_every_holder_to_the_same_map(
        batches in prop::collection::vec(prop::collection::vec(any_change(), 1..4), 1..40),
    ) {
        let mut cluster = Cluster::new();
        let mut twin = Cluster::new();
        let mut held = cluster.map().clone();
        for batch in batches {
            let ops: Vec<Op> = batch.into_iter().map(|change| Op { id: None, change }).collect();
            let replies = cluster.batch(ops.clone());
            prop_assert_eq!(replies.len(), ops.len());
            prop_assert_eq!(&replies, &twin.batch(ops), "not deterministic");
            let update = cluster.state.maps_since(held.epoch);
            if let Some(full) = &update.full {
                held = ClusterMap::decode_full(full).unwrap();
            }
            for encoded in &update.increments {
                // `apply` compares the checksums.
                held = held.apply(&Increment::decode(encoded).unwrap()).unwrap();
            }
            prop_assert_eq!(&held, cluster.map());
            for (pg, members) in held.members_of_all() {
                let rule = holdfast_crush::RuleId(held.pools[&pg.pool].rule);
                let shape = RuleShape::of(&held.crush, rule).unwrap();
                prop_assert!(shape.is_kept_by(&members.up), "{} is on {:?}", pg, members.up);
            }
        }
        prop_assert_eq!(&State::decode(&cluster.state.encode()).unwrap(), &cluster.state);
        prop_assert_eq!(cluster.state, twin.state);
    }
}

#[test]
fn a_resend_in_the_batch_of_its_first_attempt_changes_nothing_more() {
    let mut cluster = Cluster::with_osds(1, 1);
    let id = RequestId { client: ClientId(7), incarnation: Incarnation(1), tid: 1 };
    let key = |access: &str| {
        let (access_key, secret) = (Some(access.to_owned()), Some(Secret("secret-of-user".to_owned())));
        let change = Change::Request(MonCommand::KeyNew { name: "user".into(), access_key, secret_key: secret });
        Op { id: Some(id), change }
    };
    // Sent again, each attempt has another generated key.
    let command = Command { at_unix_ms: 1, ops: vec![key("first-key"), key("second-key")], seen: None };
    let replies = cluster.state.apply(1, &command).replies;
    assert!(matches!(&replies[0], MonReply::Key(key) if key.access_key == "first-key"), "{replies:?}");
    assert_eq!(replies[0], replies[1]);
}

#[test]
fn a_fence_of_a_later_run_takes_the_place_of_those_of_earlier_ones() {
    let mut cluster = Cluster::with_osds(1, 1);
    let fence = |run| MonCommand::BlocklistAdd { client: ClientId(7), incarnation: Incarnation(run) };
    for run in [3, 5, 4] {
        cluster.ask(fence(run)).unwrap();
    }
    cluster.ask(MonCommand::BlocklistAdd { client: ClientId(8), incarnation: Incarnation(1) }).unwrap();
    let map = cluster.map();
    assert_eq!(map.blocklist.len(), 2, "one for each client");
    assert!((0..=5).all(|run| map.is_blocklisted(ClientId(7), Incarnation(run))));
    assert!(!map.is_blocklisted(ClientId(7), Incarnation(6)));
}

#[test]
fn a_pool_that_was_made_early_can_be_made_safe() {
    let mut cluster = Cluster::with_osds(1, 1);
    cluster.ask(pool("data", None)).unwrap();
    for osd in 1..4 {
        cluster.register(osd, osd);
        cluster.boot(osd, 100).unwrap();
    }
    let set = |size, min_size, failure_domain: Option<&str>| {
        let failure_domain = failure_domain.map(str::to_owned);
        MonCommand::PoolSet { name: "data".into(), size, min_size, failure_domain }
    };
    let sizes = |cluster: &Cluster| {
        let map = cluster.map();
        let (_, pool) = map.pool_by_name("data").unwrap();
        (pool.size(), pool.min_size())
    };
    assert_eq!(sizes(&cluster), (1, 1));
    cluster.ask(set(Some(3), None, Some("host"))).unwrap();
    assert_eq!(sizes(&cluster), (3, 1), "what has one copy is served until it has more");
    let pg = PgId { pool: PoolId(1), seed: 0 };
    assert_eq!(cluster.map().members(pg).up.len(), 3);
    cluster.ask(set(None, Some(2), None)).unwrap();
    assert_eq!(sizes(&cluster), (3, 2));
    cluster.ask(set(Some(1), None, None)).unwrap();
    assert_eq!(sizes(&cluster), (1, 1), "the fewest are never more than all");
    assert!(matches!(cluster.ask(set(Some(2), Some(3), None)), Err(MonError::Invalid { .. })));
    assert!(matches!(cluster.ask(set(None, None, Some("shelf"))), Err(MonError::Invalid { .. })));
    let other = MonCommand::PoolSet { name: "other".into(), size: Some(2), min_size: None, failure_domain: None };
    assert!(matches!(cluster.ask(other), Err(MonError::NotFound { .. })));
}

/// Three OSDs and a pool, at a monitor whose build keeps what they say of splits, or drops it.
fn grown(can_split: Option<bool>) -> Cluster {
    let mut cluster = Cluster::new();
    for id in 0..3 {
        cluster.register(id, id);
        boot_again(&mut cluster, id, 100, can_split);
    }
    cluster.ask(pool("data", None)).unwrap();
    cluster
}

fn boot_again(cluster: &mut Cluster, id: u32, run: u64, says: Option<bool>) {
    let mut command = boot(id, run);
    if let MonCommand::OsdBoot { can_split, .. } = &mut command {
        *can_split = says;
    }
    cluster.ask(command).unwrap();
}

/// A monitor of an earlier build has applied the boots without what they say of splits, and may have written a snapshot.
#[test]
fn monitors_whose_notes_differ_make_the_same_map_of_a_split() {
    for judged in [true, false] {
        let (mut one, mut other) = (grown(Some(true)), grown(None));
        assert_eq!(one.map(), other.map());
        let before = one.map().pools[&PoolId(1)].pg_num;
        let judged_at = judged.then_some(one.map().epoch);
        let split = Change::Split { pool: PoolId(1), pg_num: 2 * before, judged_at };
        for cluster in [&mut one, &mut other] {
            cluster.change(split.clone());
            assert_eq!(cluster.map().pools[&PoolId(1)].pg_num, 2 * before);
        }
        assert_eq!(one.map(), other.map());
    }
}

#[test]
fn a_split_is_void_when_an_osd_has_booted_since_it_was_judged() {
    type Between = fn(&mut Cluster);
    let between: [(Between, bool); 4] = [
        (|cluster| boot_again(cluster, 1, 101, Some(true)), true),
        (|cluster| assert_eq!(cluster.register(7, 7), OsdId(3)), false),
        (|cluster| drop(cluster.ask(MonCommand::OsdDown(OsdId(1)))), false),
        (|cluster| drop(cluster.ask(pool("other", None))), false),
    ];
    for (number, (between, is_void)) in between.into_iter().enumerate() {
        let mut cluster = grown(Some(true));
        let before = cluster.map().pools[&PoolId(1)].pg_num;
        let judged_at = Some(cluster.map().epoch);
        between(&mut cluster);
        cluster.change(Change::Split { pool: PoolId(1), pg_num: 2 * before, judged_at });
        assert_eq!(cluster.map().pools[&PoolId(1)].pg_num == before, is_void, "{number}");
    }
    // In the same command, before it.
    let mut cluster = grown(Some(true));
    let before = cluster.map().pools[&PoolId(1)].pg_num;
    let split = Change::Split { pool: PoolId(1), pg_num: 2 * before, judged_at: Some(cluster.map().epoch) };
    let ops = [Change::Request(boot(1, 101)), split].map(|change| Op { id: None, change });
    cluster.batch(ops.into());
    assert_eq!(cluster.map().pools[&PoolId(1)].pg_num, before);
}

/// Splits as the builds before this one read and write them.
#[derive(Debug, PartialEq, minicbor::Encode, minicbor::Decode)]
enum EarlierChange {
    #[n(9)]
    Split {
        #[n(0)]
        pool: PoolId,
        #[n(1)]
        pg_num: u32,
    },
}

#[test]
fn builds_before_and_after_read_each_others_splits() {
    let now = Change::Split { pool: PoolId(3), pg_num: 64, judged_at: Some(Epoch(9)) };
    let earlier = EarlierChange::Split { pool: PoolId(3), pg_num: 64 };
    assert_eq!(minicbor::decode::<EarlierChange>(&minicbor::to_vec(&now).unwrap()).unwrap(), earlier);
    let read: Change = minicbor::decode(&minicbor::to_vec(&earlier).unwrap()).unwrap();
    assert_eq!(read, Change::Split { pool: PoolId(3), pg_num: 64, judged_at: None });
}

/// It skipped a change that the others made a map of.
#[test]
fn a_monitor_whose_newest_map_is_older_than_the_proposers_has_diverged() {
    let mut cluster = Cluster::with_osds(2, 1);
    let behind = cluster.state.clone();
    cluster.ask(pool("data", None)).unwrap();
    let command = Command { at_unix_ms: 1, ops: Vec::new(), seen: Some(cluster.state.mark()) };
    assert!(behind.check(&command).is_err());
    assert_eq!(cluster.state.check(&command), Ok(()));
    cluster.ask(pool("more", None)).unwrap();
    assert_eq!(cluster.state.check(&command), Ok(()), "made since, by commands that the proposer had not applied");
}
