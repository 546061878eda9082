//! Rot that nobody reads, on real disks: a deep scrub finds it and has it repaired, and people are told.

use crate::common::{self, Cluster, all_clean, check_lines, create_pool, keepers, map, name, unique, wait_status};
use holdfast_client::{Client, Pool};
use holdfast_types::{ObjectName, PgId};
use holdfast_wire::mon::{MonCommand, MonReply, PgRow, StatusReport};
use holdfast_wire::scrub::{ScrubKind, ScrubTarget};

const OBJECTS: u32 = 16;

fn bytes_of(index: u32) -> bytes::Bytes {
    unique(u64::from(index) + 1, 70_000)
}

async fn filled_cluster() -> (Cluster, Client, Pool) {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create_pool(&client).await;
    let pool = client.pool("p").await.expect("the pool is there");
    for index in 0..OBJECTS {
        pool.write_full(&name(index), bytes_of(index)).await.expect("written");
    }
    wait_status(&client, "clean", all_clean).await;
    (cluster, client, pool)
}

async fn pg_of(pool: &Pool, object: &ObjectName) -> PgId {
    map(pool.client()).await.pg_of(pool.id(), object).expect("the pool exists")
}

async fn scrub(client: &Client, target: ScrubTarget, kind: ScrubKind) {
    let reply = client.mon_command(MonCommand::Scrub { target, kind }).await.expect("the monitors answer");
    assert!(matches!(reply, MonReply::Done { .. }), "{reply:?}");
}

async fn row_of(client: &Client, pg: PgId) -> PgRow {
    match client.mon_command(MonCommand::PgList).await.expect("the monitors answer") {
        MonReply::Pgs(rows) => rows.into_iter().find(|row| row.pg == pg).expect("it exists"),
        other => panic!("no placement groups: {other:?}"),
    }
}

fn repaired(status: &StatusReport) -> u64 {
    status.scrub.as_ref().map_or(0, |scrub| scrub.copies_repaired)
}

/// Waits until all that was asked for is done: the wishes leave the map.
async fn wait_served(client: &Client) {
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    while !map(client).await.scrub_wishes.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "scrubs do not end: {:#?}", common::status(client).await);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Ends all OSDs and looks at the disks.
async fn check_disks(mut cluster: Cluster, pool: &Pool, index: u32) {
    let map = map(pool.client()).await;
    for id in cluster.osds.keys().copied().collect::<Vec<_>>() {
        cluster.stop_osd(id).await;
    }
    for osd in 0..3 {
        let there = cluster.on_disk(osd, pool, &map, &name(index)).expect("it can be read");
        assert!(there == bytes_of(index), "object {index} is right on osd.{osd}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_on_a_replica_is_found_and_repaired_without_a_reader() {
    let (mut cluster, client, pool) = filled_cluster().await;
    let (object, replica) = (name(5), keepers(&pool, &name(5)).await[1]);
    // What was written lately is still in memory; a restart reads the disk.
    cluster.stop_osd(replica).await;
    cluster.flip_bit(replica, &bytes_of(5));
    cluster.start_osd(replica).await;
    wait_status(&client, "clean", all_clean).await;
    let pg = pg_of(&pool, &object).await;

    scrub(&client, ScrubTarget::Pg(pg), ScrubKind::Shallow).await;
    wait_served(&client).await;
    let status = common::status(&client).await;
    assert_eq!(repaired(&status), 0, "without reading bytes nothing is seen: {status:#?}");

    scrub(&client, ScrubTarget::Pg(pg), ScrubKind::Deep).await;
    let line = format!("osd.{replica}: 1 damaged blocks, 1 repaired from a copy");
    let status = wait_status(&client, "repaired", |status| {
        check_lines(status, "OSD_CHECKSUM_ERRORS") == [line.clone()] && all_clean(status) && repaired(status) == 1
    })
    .await;
    wait_served(&client).await;
    assert_eq!(check_lines(&status, "PG_DAMAGED"), Vec::<String>::new());
    let row = row_of(&client, pg).await;
    let scrubbed = row.scrub.expect("it is known");
    assert!(scrubbed.deep_scrubbed_ms > 0 && scrubbed.objects_verified == row.objects, "{scrubbed:?}");
    check_disks(cluster, &pool, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_outlives_the_monitor_that_took_it_and_all_of_an_osd_is_scrubbed() {
    let (mut cluster, client, pool) = filled_cluster().await;
    let primary = keepers(&pool, &name(2)).await[0];
    // With an OSD down nothing can be scrubbed: the wishes must wait, over a restart of the only monitor.
    cluster.stop_osd(primary).await;
    cluster.flip_bit(primary, &bytes_of(2));
    scrub(&client, ScrubTarget::Osd(holdfast_types::OsdId((primary + 1) % 3)), ScrubKind::Deep).await;
    scrub(&client, ScrubTarget::Osd(holdfast_types::OsdId((primary + 1) % 3)), ScrubKind::Shallow).await;
    let wished = map(&client).await.scrub_wishes;
    assert!(!wished.is_empty() && wished.values().all(|wish| wish.kind == ScrubKind::Deep), "{wished:?}");
    if let Some(mon) = cluster.mon.take() {
        mon.shutdown().await;
    }
    let listener = std::net::TcpListener::bind(&cluster.mon_address).expect("its port is free again");
    cluster.mon = Some(common::start_mon(cluster.dir.path(), listener, &cluster.mon_address).await);
    assert_eq!(map(&client).await.scrub_wishes, wished);
    cluster.start_osd(primary).await;
    wait_served(&client).await;
    wait_status(&client, "repaired", |status| all_clean(status) && repaired(status) == 1).await;
    let status = common::status(&client).await;
    assert_eq!(status.scrub.expect("counted").objects_verified, u64::from(OBJECTS));
    check_disks(cluster, &pool, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_on_all_copies_is_reported_as_damage_and_touched_by_nobody() {
    let (mut cluster, client, pool) = filled_cluster().await;
    let ids: Vec<u32> = cluster.osds.keys().copied().collect();
    for id in ids.iter().copied() {
        cluster.stop_osd(id).await;
        cluster.flip_bit(id, &bytes_of(3));
    }
    for id in ids {
        cluster.start_osd(id).await;
    }
    wait_status(&client, "clean", all_clean).await;
    let pg = pg_of(&pool, &name(3)).await;
    scrub(&client, ScrubTarget::Pg(pg), ScrubKind::Repair).await;
    wait_served(&client).await;
    let damaged = |status: &StatusReport| check_lines(status, "OSD_SCRUB_ERRORS").len() == 1;
    let status = wait_status(&client, "damage", damaged).await;
    let line = &check_lines(&status, "OSD_SCRUB_ERRORS")[0];
    assert!(line.contains("object-3") && line.contains("cannot be read"), "{line}");
    assert!(check_lines(&status, "PG_DAMAGED")[0].contains("active+clean+inconsistent"), "{status:#?}");
    cluster.stop().await;
}
