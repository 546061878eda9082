//! Monitors as daemons and clients see them: over gRPC on loopback, on real disks.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_map::{ClusterMap, Increment};
use holdfast_mon::{Handle, Listen, MonConfig, run};
use holdfast_net::mon_session::MonSession;
use holdfast_types::{ClientId, ClusterId, DiskUuid, Epoch, Incarnation, LogVersion, MonId, OsdId};
use holdfast_wire::mon::{
    Explanation, FailureKind, LocationStep, MonCommand, MonError, MonReply, OsdReport, PgReport, PgState, Severity,
    StatusReport, StoreUsage, Subject,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const CLUSTER: ClusterId = ClusterId([9; 16]);
const PATIENCE: Duration = Duration::from_secs(60);

struct Quorum {
    disks: tempfile::TempDir,
    members: BTreeMap<MonId, String>,
    mons: BTreeMap<MonId, Handle>,
}

async fn start(id: MonId, members: &BTreeMap<MonId, String>, listen: Listen, disks: &Path) -> Handle {
    let (data, members) = (disks.join(id.to_string()), members.clone());
    let config = MonConfig { id, cluster: CLUSTER, data, listen, members, bootstrap: true };
    run(config, CancellationToken::new()).await.unwrap()
}

impl Quorum {
    async fn start(count: u64) -> Quorum {
        let sockets: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let members: BTreeMap<MonId, String> =
            (0..).map(MonId).zip(sockets.iter().map(|socket| socket.local_addr().unwrap().to_string())).collect();
        let mut quorum = Quorum { disks: tempfile::tempdir().unwrap(), members, mons: BTreeMap::new() };
        for (id, socket) in (0..).map(MonId).zip(sockets) {
            let mon = start(id, &quorum.members, Listen::Bound(socket), quorum.disks.path()).await;
            quorum.mons.insert(id, mon);
        }
        for mon in quorum.mons.values() {
            timeout(PATIENCE, mon.ready()).await.unwrap();
        }
        quorum
    }

    async fn restart(&mut self, id: MonId) {
        let address = self.members[&id].parse().unwrap();
        let mon = start(id, &self.members, Listen::Address(address), self.disks.path()).await;
        self.mons.insert(id, mon);
    }

    fn leader(&self) -> MonId {
        let leads = |(id, mon): (&MonId, &Handle)| mon.leadership().borrow().is_self.then_some(*id);
        self.mons.iter().find_map(leads).expect("a leader")
    }

    fn session(&self, client: u64) -> MonSession {
        let addresses: Vec<String> = self.members.values().cloned().collect();
        MonSession::new(CLUSTER, &addresses, ClientId(client), Incarnation(1)).unwrap()
    }
}

async fn ask(session: &MonSession, command: MonCommand) -> Result<MonReply, MonError> {
    match session.execute(command).await.unwrap() {
        MonReply::Failed(error) => Err(error),
        reply => Ok(reply),
    }
}

async fn status(session: &MonSession) -> StatusReport {
    match ask(session, MonCommand::Status).await.unwrap() {
        MonReply::Status(status) => *status,
        reply => panic!("{reply:?}"),
    }
}

async fn explain(session: &MonSession, subject: Subject) -> Explanation {
    match ask(session, MonCommand::Explain(subject)).await.unwrap() {
        MonReply::Explanation(explanation) => explanation,
        reply => panic!("{reply:?}"),
    }
}

/// An OSD as far as monitors can tell: a socket that listens.
struct FakeOsd {
    osd: OsdId,
    incarnation: Incarnation,
    socket: TcpListener,
}

async fn boot_osd(session: &MonSession, id: u8) -> FakeOsd {
    let disk = DiskUuid([id + 1; 16]);
    let location = vec![LocationStep { kind: "host".into(), name: "this".into() }];
    let register =
        MonCommand::OsdRegister { disk, location, class: None, capacity_bytes: 1 << 30, wanted: None, blank: None };
    let MonReply::OsdId(osd) = ask(session, register).await.unwrap() else { panic!() };
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let incarnation = Incarnation(1_000 + u64::from(id));
    let address = socket.local_addr().unwrap().to_string();
    ask(session, MonCommand::OsdBoot { osd, disk, incarnation, address, can_split: Some(true) }).await.unwrap();
    FakeOsd { osd, incarnation, socket }
}

async fn create_pool(session: &MonSession, name: &str) -> MonReply {
    let command = MonCommand::PoolCreate {
        name: name.into(),
        size: None,
        min_size: None,
        application: "test".into(),
        failure_domain: None,
        share_percent: None,
    };
    ask(session, command).await.unwrap()
}

/// Reports every placement group of which the OSD is primary as `active+clean`.
fn clean_report(map: &ClusterMap, osd: &FakeOsd) -> OsdReport {
    let pgs = map.members_of_all().into_iter().filter(|(_, members)| members.primary() == Some(osd.osd));
    let report = |(pg, members): (_, holdfast_map::PgMembers)| PgReport {
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
        scrub: None,
        unfound: Vec::new(),
    };
    OsdReport {
        osd: osd.osd,
        incarnation: osd.incarnation,
        epoch: map.epoch,
        usage: StoreUsage { total_bytes: 1 << 30, used_bytes: 1 << 20, live_bytes: 1 << 20 },
        pgs: pgs.map(report).collect(),
        checksum_errors: 0,
        repaired: 0,
        copies_lost: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_monitor_serves_within_a_tenth_of_a_second_and_keeps_all() {
    let begun = Instant::now();
    let mut quorum = Quorum::start(1).await;
    println!("ready after {:?}", begun.elapsed());
    let session = quorum.session(1);
    let key = |name: &str| MonCommand::KeyNew { name: name.into(), access_key: None, secret_key: None };
    let MonReply::Key(alice) = ask(&session, key("alice")).await.unwrap() else { panic!() };
    assert_eq!(alice.access_key.len(), 20);
    assert_eq!(alice.secret_key.as_ref().unwrap().0.len(), 40);
    ask(&session, MonCommand::ConfigSet { name: "a".into(), value: Some("1".into()) }).await.unwrap();
    quorum.mons.remove(&MonId(0)).unwrap().shutdown().await;
    let begun = Instant::now();
    quorum.restart(MonId(0)).await;
    timeout(PATIENCE, quorum.mons[&MonId(0)].ready()).await.unwrap();
    println!("ready after a restart: {:?}", begun.elapsed());
    let lookup = MonCommand::KeyLookup { access_key: alice.access_key.clone() };
    assert_eq!(ask(&session, lookup).await.unwrap(), MonReply::Key(alice));
    let unknown = MonCommand::KeyLookup { access_key: "nobody".into() };
    assert!(matches!(ask(&session, unknown).await, Err(MonError::NotFound { .. })));
    let MonReply::Config(config) = ask(&session, MonCommand::ConfigDump).await.unwrap() else { panic!() };
    assert_eq!(config["a"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_osd_is_down_at_once_and_status_never_calls_it_clean() {
    let quorum = Quorum::start(1).await;
    let session = quorum.session(1);
    let mut osds = Vec::new();
    for id in 0..3 {
        osds.push(boot_osd(&session, id).await);
    }
    create_pool(&session, "data").await;
    assert!(status(&session).await.pg_states.keys().all(|state| state == "unknown"), "nobody has reported");
    let mut maps = quorum.mons[&MonId(0)].maps();
    let map = maps.borrow().clone();
    for osd in &osds {
        ask(&session, MonCommand::Report(clean_report(&map, osd))).await.unwrap();
    }
    let healthy = status(&session).await;
    assert_eq!(healthy.health, Severity::Ok, "{healthy:?}");
    assert_eq!(healthy.pg_states.keys().collect::<Vec<_>>(), ["active+clean"]);
    let dead = osds.remove(0);
    drop(dead.socket);
    let failure = MonCommand::OsdFailure {
        reporter: osds[0].osd,
        target: dead.osd,
        incarnation: dead.incarnation,
        kind: FailureKind::Refused,
    };
    let begun = Instant::now();
    ask(&session, failure).await.unwrap();
    let down = timeout(PATIENCE, maps.wait_for(|map| !map.is_up(dead.osd))).await.unwrap().unwrap().clone();
    println!("down {:?} after the report", begun.elapsed());
    assert!(down.osds[&dead.osd].dead_epoch > Epoch::ZERO);
    let degraded = status(&session).await;
    assert!(degraded.health >= Severity::Warning);
    assert!(degraded.pg_states.keys().all(|state| !state.contains("clean")), "{:?}", degraded.pg_states);
    let codes: Vec<&str> = degraded.checks.iter().map(|check| check.code.as_str()).collect();
    assert!(codes.contains(&"OSD_DOWN") && codes.contains(&"PG_DEGRADED"), "{codes:?}");
    let why = explain(&session, Subject::Osd(dead.osd)).await;
    assert!(!why.ok && why.causes[0].cause.contains("its port refuses connections"), "{why:?}");
    let pg = map.pgs().next().unwrap();
    let why = explain(&session, Subject::Pg(pg)).await;
    let missing = why.causes.iter().find(|cause| cause.code == "MEMBER_DOWN").unwrap();
    assert_eq!(missing.blocked_by, [dead.osd.to_string()]);
    let MonReply::PgDetail(detail) = ask(&session, MonCommand::PgQuery(pg)).await.unwrap() else { panic!() };
    assert_eq!(detail.explanation, why);
    // A report about the interval before must not count either.
    let _ = ask(&session, MonCommand::Report(clean_report(&map, &osds[0]))).await;
    assert!(status(&session).await.pg_states.keys().all(|state| !state.contains("clean")));
}

#[tokio::test(flavor = "multi_thread")]
async fn osds_that_nobody_reports_are_found_by_the_monitor_and_not_known_to_be_dead() {
    let quorum = Quorum::start(1).await;
    let session = quorum.session(1);
    let (first, second) = (boot_osd(&session, 0).await, boot_osd(&session, 1).await);
    drop((first.socket, second.socket));
    let mut maps = quorum.mons[&MonId(0)].maps();
    let one_down = maps.wait_for(|map| map.osds.values().any(|info| !info.up));
    let map = timeout(PATIENCE, one_down).await.unwrap().unwrap().clone();
    assert!(map.osds.values().all(|info| info.dead_epoch == Epoch::ZERO), "nobody but the monitor was refused");
    // The other one would be the last: that is more likely the network, and it is told.
    let told = async { while !status(&session).await.checks.iter().any(|check| check.code == "OSD_SILENT") {} };
    timeout(PATIENCE, told).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_leader_costs_seconds_and_no_answered_change() {
    let mut quorum = Quorum::start(3).await;
    let session = quorum.session(1);
    let set = |n: u32| MonCommand::ConfigSet { name: format!("o{n}"), value: Some(n.to_string()) };
    for n in 0..5 {
        ask(&session, set(n)).await.unwrap();
    }
    let dead = quorum.leader();
    quorum.mons.remove(&dead).unwrap().kill().await;
    let begun = Instant::now();
    ask(&session, set(5)).await.unwrap();
    println!("first change after the leader's death: {:?}", begun.elapsed());
    // Two seconds where a processor is free; no timeout of a session was waited for on any machine.
    assert!(begun.elapsed() < Duration::from_secs(15));
    let now = status(&session).await;
    assert_eq!(now.mons, 3);
    let codes: Vec<&str> = now.checks.iter().map(|check| check.code.as_str()).collect();
    assert!(codes.contains(&"MON_DOWN") || now.mons_in_quorum.len() == 3, "{now:?}");
    quorum.restart(dead).await;
    let ids: Vec<MonId> = quorum.members.keys().copied().collect();
    for id in &ids {
        quorum.mons.remove(id).unwrap().kill().await;
    }
    for id in &ids {
        quorum.restart(*id).await;
    }
    let MonReply::Config(config) = ask(&session, MonCommand::ConfigDump).await.unwrap() else { panic!() };
    assert_eq!(config.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_of_the_leader_hands_over() {
    let mut quorum = Quorum::start(3).await;
    let session = quorum.session(1);
    create_pool(&session, "one").await;
    let leader = quorum.leader();
    quorum.mons.remove(&leader).unwrap().shutdown().await;
    let begun = Instant::now();
    create_pool(&session, "two").await;
    println!("first change after a planned stop: {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_answered_as_done() {
    let mut quorum = Quorum::start(3).await;
    let session = quorum.session(1);
    create_pool(&session, "one").await;
    let leader = quorum.leader();
    let others: Vec<MonId> = quorum.members.keys().copied().filter(|id| *id != leader).collect();
    for id in &others {
        quorum.mons.remove(id).unwrap().kill().await;
    }
    let set = MonCommand::ConfigSet { name: "a".into(), value: Some("1".into()) };
    assert!(session.execute_within(set, Duration::from_secs(2)).await.is_err());
    assert!(
        session.execute_within(MonCommand::Status, Duration::from_secs(2)).await.is_err(),
        "status would be a guess"
    );
    quorum.restart(others[0]).await;
    create_pool(&session, "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_sees_every_map_in_order_over_a_change_of_leaders() {
    let mut quorum = Quorum::start(3).await;
    let session = quorum.session(1);
    create_pool(&session, "p0").await;
    let held = std::sync::Arc::new(parking_lot::Mutex::new(None::<ClusterMap>));
    let (updates, mut received) = mpsc::channel(4);
    let follower = tokio::spawn({
        let (session, held) = (session.clone(), std::sync::Arc::clone(&held));
        async move {
            session.follow(move || held.lock().as_ref().map_or(Epoch::ZERO, |map| map.epoch), updates).await;
        }
    });
    let until = |map: &ClusterMap, name: &str| map.pool_by_name(name).is_some();
    let mut follow_until = async |name: &str| {
        let reached = async {
            loop {
                let update = received.recv().await.unwrap();
                let mut held = held.lock();
                if let Some(full) = update.full {
                    *held = Some(ClusterMap::decode_full(&full).unwrap());
                }
                for encoded in update.increments {
                    let increment = Increment::decode(&encoded).unwrap();
                    // A new subscription may repeat what is on its way already.
                    if increment.epoch > held.as_ref().unwrap().epoch {
                        *held = Some(held.as_ref().unwrap().apply(&increment).unwrap());
                    }
                }
                if held.as_ref().is_some_and(|map| until(map, name)) {
                    return;
                }
            }
        };
        timeout(PATIENCE, reached).await.unwrap();
    };
    follow_until("p0").await;
    for n in 1..10 {
        create_pool(&session, &format!("p{n}")).await;
    }
    follow_until("p9").await;
    let leader = quorum.leader();
    quorum.mons.remove(&leader).unwrap().kill().await;
    create_pool(&session, "p10").await;
    follow_until("p10").await;
    drop(received);
    timeout(PATIENCE, follower).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_closes_its_connection_and_nothing_else() {
    let quorum = Quorum::start(1).await;
    let session = quorum.session(1);
    let address = quorum.members[&MonId(0)].clone();
    for garbage in
        [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff"]
    {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let mut rest = Vec::new();
        let closed = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "the connection stays open");
    }
    let mut truncated = TcpStream::connect(&address).await.unwrap();
    truncated.write_all(b"PRI * HT").await.unwrap();
    truncated.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, truncated.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    // A good preface and settings, then frames cut short, or longer than any may be.
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let headers = b"\0\0\x20\x01\x04\0\0\0\x01\x82\x86\x84\x41";
    let too_long = b"\xff\xff\xff\x00\0\0\0\0\x01";
    let cuts = (1..headers.len()).map(|length| headers[..length].to_vec());
    for bytes in cuts.chain([too_long.to_vec()]) {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(hello).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "the connection stays open after {bytes:?}");
    }
    create_pool(&session, "data").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_has_stopped_without_a_word_costs_a_hurried_caller_no_answer() {
    // Three times as long as the first attempt at a monitor, and less than the longest one.
    const HURRY: Duration = Duration::from_millis(2900);
    let quorum = Quorum::start(1).await;
    // The kernel takes connections for it, as for a process that is stopped; nobody reads them.
    let stopped = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [stopped.local_addr().unwrap().to_string()].into_iter().chain(quorum.members.values().cloned());
    let addresses: Vec<String> = addresses.collect();
    let session = MonSession::new(CLUSTER, &addresses, ClientId(1), Incarnation(1)).unwrap();
    let answer = session.execute_within(MonCommand::Status, HURRY).await;
    assert!(matches!(answer, Ok(MonReply::Status(_))), "{answer:?}");
    // From now on the one that answers is asked first.
    let answer = session.execute_within(MonCommand::Status, HURRY / 3).await;
    assert!(matches!(answer, Ok(MonReply::Status(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_another_cluster_is_refused() {
    let quorum = Quorum::start(1).await;
    let addresses: Vec<String> = quorum.members.values().cloned().collect();
    let stranger = MonSession::new(ClusterId([1; 16]), &addresses, ClientId(1), Incarnation(1)).unwrap();
    let refused = stranger.execute(MonCommand::KeyList).await.unwrap_err();
    assert!(refused.to_string().contains("serves cluster"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_no_follower_could_take_is_refused() {
    let quorum = Quorum::start(3).await;
    let session = quorum.session(1);
    let large = |bytes: usize| MonCommand::ServiceRegister {
        name: "n".repeat(bytes),
        kind: "s3".into(),
        address: "127.0.0.1:1".into(),
        incarnation: Incarnation(1),
    };
    let refused = ask(&session, large(300 << 10)).await;
    assert!(matches!(&refused, Err(MonError::Invalid { reason }) if reason.contains("bytes; ")), "{refused:?}");
    ask(&session, large(100)).await.unwrap();
}
