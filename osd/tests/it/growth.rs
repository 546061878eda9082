//! The cluster gives a pool more placement groups by itself, under load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::Pool;
use holdfast_map::ClusterMap;
use holdfast_types::ObjectName;
use holdfast_wire::mon::{MonCommand, MonReply};

use crate::common::*;

const COUNTERS: u64 = 24;

fn counter(number: u64) -> ObjectName {
    ObjectName::new(format!("counter-{number}")).expect("valid")
}

/// Appends to counters until told to stop: each append that was acknowledged is one byte of its counter. Gives how many
/// there were of each.
async fn count_up(pool: Pool, worker: u64, stop: Arc<AtomicBool>, total: Arc<AtomicU64>) -> BTreeMap<u64, u64> {
    let mut counted = BTreeMap::new();
    let mut round = worker;
    while !stop.load(Ordering::Relaxed) {
        let number = round % COUNTERS;
        round += 7;
        pool.append(&counter(number), Bytes::from_static(b"+")).await.expect("appended");
        *counted.entry(number).or_default() += 1;
        total.fetch_add(1, Ordering::Relaxed);
    }
    counted
}

async fn wait_map(pool: &Pool, what: &str, wanted: impl Fn(&ClusterMap) -> bool) -> ClusterMap {
    let deadline = tokio::time::Instant::now() + PATIENCE * 2;
    loop {
        let map = map(pool.client()).await;
        if wanted(&map) {
            return map;
        }
        assert!(tokio::time::Instant::now() < deadline, "no {what} in time: {:?}", map.pools);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_grows_by_itself_and_every_write_counts_once() {
    let mut cluster = Cluster::start(4).await;
    let client = cluster.client().await;
    let set = MonCommand::ConfigSet { name: "pg_split_bytes_min".to_owned(), value: Some("1".to_owned()) };
    let reply = client.mon_command(set).await.expect("the monitors answer");
    assert!(!matches!(reply, MonReply::Failed(_)), "{reply:?}");
    let create = MonCommand::PoolCreate {
        name: "p".to_owned(),
        size: Some(3),
        min_size: Some(2),
        application: "test".to_owned(),
        failure_domain: None,
        share_percent: Some(5),
    };
    let reply = client.mon_command(create).await.expect("the monitors answer");
    assert!(matches!(reply, MonReply::Pool { .. }), "{reply:?}");
    let pool = client.pool("p").await.expect("the pool is there");
    let first = map(&client).await.pools[&pool.id()].pg_num;
    assert_eq!(first, 8, "a small share");
    for index in 0..80 {
        pool.write_full(&name(index), content(index)).await.expect("written");
    }

    let (stop, total) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let workers: Vec<_> =
        (0..6).map(|worker| tokio::spawn(count_up(pool.clone(), worker, stop.clone(), total.clone()))).collect();
    // Twice: what was split is split again.
    let grown = wait_map(&pool, "growth", |map| map.pools[&pool.id()].pg_num >= 4 * first).await;
    let before = total.load(Ordering::Relaxed);
    for index in 0..80 {
        let read = pool.read(&name(index), 0, 1 << 20).await.expect("read while it grows");
        assert_eq!(read, content(index), "object {index}");
    }
    wait_status(&client, "clean", all_clean).await;
    assert!(total.load(Ordering::Relaxed) > before, "writes go on");
    stop.store(true, Ordering::Relaxed);
    let mut counted: BTreeMap<u64, u64> = BTreeMap::new();
    for worker in workers {
        for (number, count) in worker.await.expect("it ends") {
            *counted.entry(number).or_default() += count;
        }
    }
    let set = MonCommand::ConfigSet { name: "pg_split".to_owned(), value: Some("off".to_owned()) };
    client.mon_command(set).await.expect("the monitors answer");
    wait_status(&client, "clean", all_clean).await;

    let check = async |pool: &Pool| {
        for (number, count) in &counted {
            let read = pool.read(&counter(*number), 0, 1 << 20).await.expect("read");
            assert_eq!(read.len() as u64, *count, "counter {number}: each append once");
        }
        for index in 0..80 {
            assert_eq!(pool.read(&name(index), 0, 1 << 20).await.expect("read"), content(index), "object {index}");
        }
    };
    check(&pool).await;
    // What is on the disks is what was served: all of it again after a restart, one OSD away.
    for id in 0..4 {
        cluster.stop_osd(id).await;
    }
    for id in 0..3 {
        cluster.start_osd(id).await;
    }
    check(&pool).await;
    cluster.start_osd(3).await;
    wait_status(&client, "clean after the restart", all_clean).await;
    assert!(map(&client).await.pools[&pool.id()].pg_num >= grown.pools[&pool.id()].pg_num);
    client.shutdown().await;
    cluster.stop().await;
}
