//! Full devices: writes are refused, reads and deletes go on, no daemon ends, and room is made by deleting.

use std::time::Duration;

use crate::common::*;
use bytes::Bytes;
use holdfast_client::{Cause, Client, OpOptions, OperateError, Pool};
use holdfast_types::{Incarnation, ObjectName};
use holdfast_wire::{Blob, ObjectOp, Row};

const MIB: usize = 1 << 20;

fn row(key: &str, length: usize) -> Row {
    Row { key: key.into(), value: Blob(Bytes::from(vec![7; length])) }
}

fn put(key: &str, length: usize) -> ObjectOp {
    ObjectOp::PutRows { rows: vec![row(key, length)] }
}

async fn runs(client: &Client) -> Vec<Incarnation> {
    map(client).await.osds.values().map(|info| info.incarnation).collect()
}

/// Writes objects from several tasks until each was told that the cluster is full; gives those that are there.
async fn fill(pool: &Pool, writers: u32, bytes: usize) -> Vec<u32> {
    let write = |writer: u32| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut written = Vec::new();
            for index in (writer * 1000..).take(1000) {
                match pool.write_full(&name(index), unique(u64::from(index), bytes)).await {
                    Ok(_) => written.push(index),
                    Err(OperateError::Full) => return written,
                    Err(error) => panic!("object {index}: {error}"),
                }
            }
            panic!("it never gets full");
        })
    };
    let tasks: Vec<_> = (0..writers).map(write).collect();
    let mut written = Vec::new();
    for task in tasks {
        written.extend(task.await.expect("no panic"));
    }
    written
}

/// Writes until it works again: the cluster hears of the room within seconds.
async fn write_again(pool: &Pool, object: &ObjectName, bytes: usize) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match pool.write_full(object, unique(5, bytes)).await {
            Ok(_) => return,
            Err(OperateError::Full) => assert!(tokio::time::Instant::now() < deadline, "full for ever"),
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_refuses_writes_serves_reads_and_is_emptied_by_deletes() {
    let cluster = Cluster::start_with(&[96 << 20; 3]).await;
    let client = cluster.client().await;
    create_pool(&client).await;
    let pool = client.pool("p").await.expect("the pool is there");
    let group = ObjectName::new("group").expect("valid");
    let rows = (0..200).map(|n| row(&format!("key{n:03}"), 500)).collect();
    pool.operate(&group, vec![ObjectOp::PutRows { rows }]).await.expect("rows are put");
    let before = runs(&client).await;

    let written = fill(&pool, 4, MIB).await;
    assert!(written.len() > 30, "most of the device can be used: {}", written.len());
    wait_status(&client, "full", |status| !check_lines(status, "OSD_FULL").is_empty()).await;
    for index in &written {
        let read = pool.read(&name(*index), 0, 2 << 20).await.expect("reads go on");
        assert!(read == unique(u64::from(*index), MIB), "object {index}");
    }
    let refused = pool.operate(&group, vec![put("new", 100)]).await;
    assert_eq!(refused.map(|done| done.version), Err(OperateError::Full), "rows that only grow are refused");

    // What a deleting batch looks like: rows go, a note of what is to be collected comes, a counter moves. It is declared,
    // because what replaces a row looks no other.
    let collector = OpOptions { frees_space: true, ..OpOptions::default() };
    let replace = vec![ObjectOp::DeleteRows { keys: vec![b"key000".to_vec().into()] }, put("key001", 600)];
    let refused = pool.operate(&group, replace).await;
    assert_eq!(refused.map(|done| done.version), Err(OperateError::Full), "what replaces is refused");
    for n in 0..200 {
        let ops = vec![
            ObjectOp::DeleteRows { keys: vec![format!("key{n:03}").into_bytes().into()] },
            put(&format!("garbage{n:03}"), 4000),
            ObjectOp::AddRow { key: b"weight".to_vec(), delta: -1 },
        ];
        pool.operate_with(&group, ops, collector).await.expect("deletes go on");
    }
    let claimed = pool.operate_with(&group, vec![put("garbage000", 10)], collector).await;
    assert_eq!(claimed.map(|done| done.version), Err(OperateError::Full), "what deletes nothing frees nothing");
    let only_deletes = vec![ObjectOp::DeleteRows { keys: vec![b"garbage000".to_vec().into()] }];
    pool.operate(&group, only_deletes).await.expect("what only deletes goes on");
    let bytes = vec![ObjectOp::WriteFull { data: Blob(unique(1, MIB)) }];
    let claimed = pool.operate_with(&name(1_000_000), bytes, collector).await;
    assert_eq!(claimed.map(|done| done.version), Err(OperateError::Full), "bytes of objects free nothing");

    for index in &written {
        pool.remove(&name(*index)).await.expect("deletes go on");
    }
    write_again(&pool, &name(2_000_000), MIB).await;
    wait_status(&client, "clean", |status| all_clean(status) && check_lines(status, "OSD_FULL").is_empty()).await;
    assert_eq!(runs(&client).await, before, "no daemon ended or began again");
    client.shutdown().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_member_that_is_overrun_stays_up_and_comes_back_when_there_is_room() {
    let cluster = Cluster::start_with(&[256 << 20, 256 << 20, 64 << 20]).await;
    let client = cluster.client().await;
    create_pool(&client).await;
    let pool = client.pool("p").await.expect("the pool is there");
    let size = 3 * MIB;
    // All at once, and more than it can hold: each is let in before anybody can have heard that it is full.
    let write = |index: u32| {
        let pool = pool.clone();
        tokio::spawn(async move { (index, pool.write_full(&name(index), unique(u64::from(index), size)).await) })
    };
    let tasks: Vec<_> = (0..24).map(write).collect();
    let (mut written, mut unknown) = (Vec::new(), Vec::new());
    for task in tasks {
        match task.await.expect("no panic") {
            (index, Ok(_)) => written.push(index),
            (_, Err(OperateError::Full)) => {}
            // An earlier sending had no answer, and this one was refused: that one may yet be executed.
            (index, Err(OperateError::Timeout { last_cause: Cause::Full, .. })) => unknown.push(index),
            (index, Err(error)) => panic!("object {index}: {error}"),
        }
    }
    assert!(!written.is_empty());
    let refused = loop {
        match pool.write_full(&name(500), unique(500, size)).await {
            Ok(_) => pool.remove(&name(500)).await.expect("removed"),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, OperateError::Full);
    for index in &written {
        let read = pool.read(&name(*index), 0, 8 << 20).await.expect("what was acknowledged is there");
        assert!(read == unique(u64::from(*index), size), "object {index}");
    }
    for index in &written {
        pool.remove(&name(*index)).await.expect("deletes go on, of what the small member lacks, too");
    }
    for index in &unknown {
        let removed = pool.remove(&name(*index)).await;
        assert!(matches!(removed, Ok(_) | Err(OperateError::NotFound { .. })), "{removed:?}");
    }
    wait_status(&client, "clean", all_clean).await;
    write_again(&pool, &name(600), MIB).await;
    client.shutdown().await;
    cluster.stop().await;
}
