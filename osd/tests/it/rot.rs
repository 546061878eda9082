//! Bits that flip on a disk: found by the read that meets them, answered from another copy, written anew.

use crate::common::*;
use holdfast_client::{Client, OperateError, Pool};
use holdfast_types::ObjectName;

const OBJECTS: u32 = 24;

/// Larger than a checksum block, so that the flipped bit is in one of several.
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

async fn read(pool: &Pool, index: u32) -> Result<bytes::Bytes, OperateError> {
    pool.read(&name(index), 0, 1 << 20).await
}

/// Waits until the status says that each of these OSDs had one damaged copy, now whole again, and that all is clean.
async fn wait_repaired(client: &Client, osds: &[u32]) {
    let line = |osd: &u32| format!("osd.{osd}: 1 damaged blocks, 1 repaired from a copy");
    let mut wanted: Vec<String> = osds.iter().map(line).collect();
    wanted.sort();
    wait_status(client, "repaired", |status| {
        let mut lines = check_lines(status, "OSD_CHECKSUM_ERRORS");
        lines.sort();
        lines == wanted && all_clean(status)
    })
    .await;
}

/// Ends all OSDs and looks at the disks.
async fn check_disks(mut cluster: Cluster, pool: &Pool, objects: &[ObjectName], content: &[bytes::Bytes]) {
    let map = map(pool.client()).await;
    for id in cluster.osds.keys().copied().collect::<Vec<_>>() {
        cluster.stop_osd(id).await;
    }
    for osd in 0..3 {
        for (name, content) in objects.iter().zip(content) {
            let there = cluster.on_disk(osd, pool, &map, name).expect("it can be read");
            assert!(there == *content, "{name} is right on osd.{osd}");
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_of_a_running_primary_is_served_from_a_peer_and_repaired() {
    let (cluster, client, pool) = filled_cluster().await;
    let primary = keepers(&pool, &name(5)).await[0];
    cluster.flip_bit(primary, &bytes_of(5));
    assert!(read(&pool, 5).await.expect("read") == bytes_of(5), "the bytes are right");
    wait_repaired(&client, &[primary]).await;
    check_disks(cluster, &pool, &[name(5)], &[bytes_of(5)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flipped_while_the_osd_was_down_is_repaired_with_two_of_three_copies_at_hand() {
    let (mut cluster, client, pool) = filled_cluster().await;
    let keepers = keepers(&pool, &name(7)).await;
    cluster.stop_osd(keepers[1]).await;
    cluster.flip_bit(keepers[1], &bytes_of(7));
    cluster.start_osd(keepers[1]).await;
    wait_status(&client, "clean", all_clean).await;
    // The old replica leads when the primary is gone; then the only good copy left is the third one.
    cluster.stop_osd(keepers[0]).await;
    assert!(read(&pool, 7).await.expect("read") == bytes_of(7), "the bytes are right");
    let leads = self::keepers(&pool, &name(7)).await[0];
    cluster.start_osd(keepers[0]).await;
    wait_status(&client, "clean", all_clean).await;
    if leads == keepers[1] {
        wait_repaired(&client, &[keepers[1]]).await;
        check_disks(cluster, &pool, &[name(7)], &[bytes_of(7)]).await;
    } else {
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_replica_is_no_source_of_recovery_and_is_repaired_itself() {
    let (cluster, client, pool) = filled_cluster().await;
    let keepers = keepers(&pool, &name(3)).await;
    // Copies are asked for in the order of the OSDs' ids: the first one asked is rotten, too.
    let source = keepers[1].min(keepers[2]);
    cluster.flip_bit(keepers[0], &bytes_of(3));
    cluster.flip_bit(source, &bytes_of(3));
    assert!(read(&pool, 3).await.expect("read") == bytes_of(3), "the bytes are right");
    wait_repaired(&client, &[keepers[0], source]).await;
    check_disks(cluster, &pool, &[name(3)], &[bytes_of(3)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_rotten_everywhere_fails_alone_and_is_reported() {
    let (cluster, client, pool) = filled_cluster().await;
    for osd in 0..3 {
        cluster.flip_bit(osd, &bytes_of(2));
    }
    for _ in 0..2 {
        let answer = read(&pool, 2).await;
        assert!(matches!(answer, Err(OperateError::Unreadable { .. })), "{answer:?}");
    }
    let status = wait_status(&client, "unfound", |status| status.objects_unfound == 1).await;
    assert!(!all_clean(&status), "not clean: {status:#?}");
    for index in (0..OBJECTS).filter(|index| *index != 2) {
        assert!(read(&pool, index).await.expect("the others are read") == bytes_of(index));
    }
    pool.write_full(&name(100), bytes_of(100)).await.expect("writes go on");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_the_osd_that_is_down_with_the_only_good_copy() {
    let (mut cluster, client, pool) = filled_cluster().await;
    let keepers = keepers(&pool, &name(9)).await;
    cluster.stop_osd(keepers[2]).await;
    cluster.flip_bit(keepers[0], &bytes_of(9));
    cluster.flip_bit(keepers[1], &bytes_of(9));
    let reading = tokio::spawn({
        let pool = pool.clone();
        async move { read(&pool, 9).await }
    });
    wait_status(&client, "unfound", |status| status.objects_unfound == 1).await;
    assert!(!reading.is_finished(), "the copy that is down may be good");
    cluster.start_osd(keepers[2]).await;
    assert!(reading.await.expect("no panic").expect("read") == bytes_of(9), "the bytes are right");
    wait_repaired(&client, &[keepers[0], keepers[1]]).await;
    check_disks(cluster, &pool, &[name(9)], &[bytes_of(9)]).await;
}
