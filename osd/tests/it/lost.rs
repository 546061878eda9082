//! Copies that cannot be trusted: given up, never believed, filled anew.

use std::time::Duration;

use crate::common::*;
use bytes::Bytes;
use holdfast_client::{Client, OpOptions, Pool};
use holdfast_osd::OsdError;
use holdfast_store::{CollectionId, Engine, FileDevice, RocksIndex, Store, StoreConfig, Transaction, TxOp};
use holdfast_types::ObjectName;
use holdfast_wire::{Blob, ObjectOp, OpResult, Row};

/// The daemon's own collection.
const OWN: CollectionId = CollectionId { pool: 0, seed: 0 };

fn bytes_of(index: u32) -> Bytes {
    unique(u64::from(index) + 1, 20_000)
}

async fn write(pool: &Pool, objects: std::ops::Range<u32>) {
    for index in objects {
        pool.write_full(&name(index), bytes_of(index)).await.expect("written");
    }
}

async fn check(pool: &Pool, objects: std::ops::Range<u32>) {
    for index in objects {
        let read = pool.read(&name(index), 0, 1 << 20).await.expect("read");
        assert!(read == bytes_of(index), "object {index}");
    }
}

async fn filled_cluster() -> (Cluster, Client, Pool) {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create_pool(&client).await;
    let pool = client.pool("p").await.expect("the pool is there");
    write(&pool, 0..40).await;
    wait_status(&client, "clean", all_clean).await;
    (cluster, client, pool)
}

/// The store of an OSD that does not run.
fn open(cluster: &Cluster, osd: u32) -> Store {
    let directory = cluster.dir.path().join(format!("osd-{osd}"));
    Store::open(&StoreConfig { memory_target: 16 << 20, ..StoreConfig::in_directory(&directory) }).expect("it opens")
}

fn copies(engine: &Engine<FileDevice, RocksIndex>) -> Vec<CollectionId> {
    engine.collections().into_iter().filter(|collection| *collection != OWN).collect()
}

/// Writes nonsense over the info rows of some copies of an OSD that does not run; gives how many.
fn spoil_rows(cluster: &Cluster, osd: u32, most: usize) -> usize {
    let store = open(cluster, osd);
    let spoilt: Vec<_> = copies(store.engine()).into_iter().take(most).collect();
    for c in &spoilt {
        let value = Bytes::from_static(b"nonsense");
        let ops = vec![TxOp::PutMeta { c: *c, key: b"i".to_vec(), value }];
        store.submit_and_wait(Transaction { ops }).expect("submitted");
    }
    store.close().expect("closed");
    spoilt.len()
}

async fn check_alone(cluster: &mut Cluster, pool: &Pool, osd: u32, objects: std::ops::Range<u32>) {
    let map = map(pool.client()).await;
    cluster.stop_osd(osd).await;
    for index in objects {
        let there = cluster.on_disk(osd, pool, &map, &name(index)).expect("it can be read");
        assert!(there == bytes_of(index), "object {index} is right on osd.{osd}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_rows_are_unreadable_is_given_up_alone_and_filled_anew() {
    let (mut cluster, client, pool) = filled_cluster().await;
    cluster.stop_osd(1).await;
    let spoilt = spoil_rows(&cluster, 1, 2);
    assert_eq!(spoilt, 2);
    cluster.start_osd(1).await;
    let line = "osd.1: 2 copies of placement groups since its start".to_owned();
    wait_status(&client, "told", |status| check_lines(status, "OSD_COPIES_LOST") == [line.clone()]).await;
    check(&pool, 0..40).await;
    wait_status(&client, "clean again", all_clean).await;
    check_alone(&mut cluster, &pool, 1, 0..40).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_copy_does_not_speak_for_the_writes_that_it_acknowledged() {
    let (mut cluster, client, pool) = filled_cluster().await;
    cluster.stop_osd(2).await;
    write(&pool, 20..60).await; // osd.0 and osd.1 have them, osd.2 does not
    cluster.stop_osd(0).await;
    cluster.stop_osd(1).await;
    spoil_rows(&cluster, 0, usize::MAX);
    cluster.start_osd(0).await;
    cluster.start_osd(2).await;
    // An old copy and a lost one: whatever they agree on, it is not what was acknowledged.
    let down = |pgs: &std::collections::BTreeMap<String, u32>| pgs.keys().all(|state| !state.starts_with("active"));
    wait_status(&client, "down", |status| {
        status.pgs > 0 && down(&status.pg_states) && status.pg_states.keys().any(|state| state.contains("down"))
    })
    .await;
    let options = OpOptions { timeout: Some(Duration::from_secs(3)), ..OpOptions::default() };
    let read = vec![ObjectOp::Read { offset: 0, length: 1 << 20 }];
    let answer = pool.operate_with(&name(59), read, options).await;
    assert!(matches!(answer, Err(holdfast_client::OperateError::Timeout { .. })), "{answer:?}");
    cluster.start_osd(1).await;
    check(&pool, 0..60).await;
    wait_status(&client, "clean again", all_clean).await;
    check_alone(&mut cluster, &pool, 0, 0..60).await;
    cluster.stop().await;
}

/// Makes the log of an OSD that does not run bad in the middle: records that the index does not have yet, and a flipped
/// bit in one of the first, with later ones durable.
fn spoil_log(cluster: &Cluster, osd: u32) {
    let directory = cluster.dir.path().join(format!("osd-{osd}"));
    let (index, kept) = (directory.join("index"), directory.join("index.kept"));
    std::fs::create_dir(&kept).expect("made");
    for entry in std::fs::read_dir(&index).expect("listed") {
        let entry = entry.expect("listed");
        std::fs::copy(entry.path(), kept.join(entry.file_name())).expect("copied");
    }
    let marker = unique(4711, 200);
    let store = open(cluster, osd);
    for number in 0..20u8 {
        let value = if number == 5 { marker.clone() } else { Bytes::from(vec![number; 200]) };
        let ops = vec![TxOp::PutMeta { c: OWN, key: vec![b'x', number], value }];
        store.submit_and_wait(Transaction { ops }).expect("submitted");
    }
    drop(store); // not closed: as a crash leaves it
    std::fs::remove_dir_all(&index).expect("removed");
    std::fs::rename(&kept, &index).expect("renamed");
    cluster.flip_bit(osd, &marker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_log_is_bad_in_the_middle_begins_anew_under_its_id() {
    let (mut cluster, client, pool) = filled_cluster().await;
    cluster.stop_osd(1).await;
    spoil_log(&cluster, 1);
    cluster.start_osd(1).await;
    wait_status(&client, "told", |status| check_lines(status, "OSD_COPIES_LOST").len() == 1).await;
    check(&pool, 0..40).await;
    write(&pool, 40..50).await;
    wait_status(&client, "clean again", all_clean).await;
    assert!(cluster.dir.path().join("osd-1/block.lost").exists(), "the old device file is kept aside");
    // It is a disk like any other again, over restarts too, and does not forget what it was.
    cluster.stop_osd(1).await;
    write(&pool, 50..55).await;
    cluster.start_osd(1).await;
    wait_status(&client, "clean again", all_clean).await;
    let lost = std::fs::read_to_string(cluster.dir.path().join("osd-1/lost")).expect("remembered");
    assert!(lost.starts_with("life=1\npending=false\nbefore="), "{lost}");
    check_alone(&mut cluster, &pool, 1, 0..55).await;
    cluster.stop().await;
}

fn group() -> ObjectName {
    ObjectName::new("group").expect("valid")
}

async fn put(pool: &Pool, keys: std::ops::Range<u32>) {
    let row = |key: u32| Row { key: key.to_be_bytes().to_vec(), value: Blob(unique(u64::from(key) + 1_000_000, 4000)) };
    pool.operate(&group(), vec![ObjectOp::PutRows { rows: keys.map(row).collect() }]).await.expect("rows are put");
}

async fn check_rows(pool: &Pool, keys: std::ops::Range<u32>) {
    let get = ObjectOp::GetRows { keys: keys.clone().map(|key| key.to_be_bytes().to_vec().into()).collect() };
    let done = pool.operate(&group(), vec![get]).await.expect("read");
    let wanted = keys.map(|key| Some(Blob(unique(u64::from(key) + 1_000_000, 4000)))).collect();
    assert!(done.results == [OpResult::RowValues(wanted)], "the rows are right");
}

/// Flips a bit of a row in each file of the index that has it; gives in how many.
fn spoil_index(cluster: &Cluster, osd: u32, row: &[u8]) -> usize {
    let index = cluster.dir.path().join(format!("osd-{osd}/index"));
    let tables = std::fs::read_dir(index).expect("listed").map(|entry| entry.expect("listed").path());
    let mut spoilt = 0;
    for path in tables.filter(|path| path.extension().is_some_and(|extension| extension == "sst")) {
        let mut table = std::fs::read(&path).expect("read");
        if let Some(at) = table.windows(row.len()).position(|window| window == row) {
            table[at + row.len() / 2] ^= 0x10;
            std::fs::write(&path, table).expect("written");
            spoilt += 1;
        }
    }
    spoilt
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_a_compaction_finds_damaged_ends_the_daemon_once_and_is_filled_anew() {
    let (mut cluster, client, pool) = filled_cluster().await;
    put(&pool, 0..200).await;
    cluster.stop_osd(1).await;
    assert!(spoil_index(&cluster, 1, &unique(1_000_100, 4000)) > 0, "the row is in the index");
    // Nothing reads it: it opens, comes up and serves, until there are files enough for a compaction.
    let mut rows = 200;
    let (mut ended, mut starts) = (None, 0);
    while ended.is_none() {
        starts += 1;
        assert!(starts < 20, "no compaction");
        let osd = cluster.launch(1).await;
        if osd.wait_up().await {
            put(&pool, rows..rows + 20).await;
            rows += 20;
        }
        osd.stop();
        ended = osd.join().await.err();
    }
    assert!(matches!(ended, Some(OsdError::StoreFailed { .. })), "{ended:?}");
    let directory = cluster.dir.path().join("osd-1");
    assert!(directory.join("index-damaged").exists() && !directory.join("quarantined").exists());
    put(&pool, rows..rows + 20).await;

    cluster.start_osd(1).await;
    wait_status(&client, "told", |status| check_lines(status, "OSD_COPIES_LOST").len() == 1).await;
    check(&pool, 0..40).await;
    wait_status(&client, "clean again", all_clean).await;
    assert!(!directory.join("index-damaged").exists() && directory.join("index.lost").exists());
    cluster.stop_osd(0).await;
    check_rows(&pool, 0..rows + 20).await;
    cluster.start_osd(0).await;
    wait_status(&client, "clean again", all_clean).await;
    check_alone(&mut cluster, &pool, 1, 0..40).await;
    cluster.stop().await;
}
