//! A fence holds when [`Client::fence`] returns: the fenced client changes nothing from then on.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_client::{Client, ClientConfig, ClientError, ClientIdentity, OperateError, Pool};
use holdfast_types::{ClientId, Incarnation, OsdId};
use holdfast_wire::mon::{MonCommand, MonReply};

use crate::common::{CLUSTER, Cluster, PATIENCE, all_clean, create_pool, name, unique, wait_status};

const OBJECTS: u32 = 24;
const OLD: ClientIdentity = ClientIdentity { client: ClientId(77), incarnation: Incarnation(5) };

async fn client_as(cluster: &Cluster, identity: ClientIdentity) -> Client {
    let config = ClientConfig::new(CLUSTER, vec![cluster.mon_address.clone()]);
    Client::connect(ClientConfig { identity, op_timeout: PATIENCE, ..config }).await.expect("the monitors answer")
}

/// Writes one object again and again until that is refused. Says how the refusal reads and how many writes were done.
async fn write_until_refused(pool: Pool, object: u32) -> (OperateError, u64) {
    for round in 0..u64::MAX {
        if let Err(error) = pool.write_full(&name(object), unique(round, 3_000)).await {
            return (error, round);
        }
    }
    unreachable!("nobody lives that long")
}

async fn read_all(pool: &Pool) -> BTreeMap<u32, Option<Bytes>> {
    let read = (0..OBJECTS).map(|object| async move {
        match pool.read(&name(object), 0, 1 << 20).await {
            Ok(bytes) => (object, Some(bytes)),
            Err(OperateError::NotFound { .. }) => (object, None),
            Err(error) => panic!("{object}: {error}"),
        }
    });
    join_all(read).await.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_fenced_client_has_in_flight_is_over_when_the_fence_holds() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create_pool(&client).await;
    let pool = client.pool("p").await.expect("the pool is there");
    wait_status(&client, "clean", all_clean).await;

    let old = client_as(&cluster, OLD).await;
    let old_pool = old.pool("p").await.expect("the pool is there");
    let writers: Vec<_> =
        (0..OBJECTS).map(|object| tokio::spawn(write_until_refused(old_pool.clone(), object))).collect();
    // Until each object has been written more than once.
    let first_write = unique(0, 3_000);
    while read_all(&pool).await.values().any(|value| value.as_ref().is_none_or(|value| *value == first_write)) {}

    let epoch = client.fence(OLD.client, OLD.incarnation, PATIENCE).await.expect("it holds");
    let first = read_all(&pool).await;
    assert!(old.blocklist().len() <= 1 && client.blocklist().iter().any(|entry| entry.client == OLD.client));
    let mut done = 0;
    for writer in writers {
        let (error, rounds) = writer.await.expect("it ends");
        assert_eq!(error, OperateError::Fenced, "after {rounds} writes");
        done += rounds;
    }
    assert!(done > u64::from(OBJECTS), "{done} writes before the fence");
    assert_eq!(read_all(&pool).await, first, "somebody wrote after the fence held");
    // One who comes with an earlier run, or again with the same, gets nothing done either, though it never saw the fence.
    for run in [1, OLD.incarnation.0] {
        let again = client_as(&cluster, ClientIdentity { client: OLD.client, incarnation: Incarnation(run) }).await;
        let again_pool = again.pool("p").await.expect("the pool is there");
        let refused = again_pool.write_full(&name(0), unique(1, 10)).await.expect_err("fenced");
        assert_eq!(refused, OperateError::Fenced);
        again.shutdown().await;
    }
    // Its next run may work, and so may others.
    let next = client_as(&cluster, ClientIdentity { client: OLD.client, incarnation: Incarnation(6) }).await;
    let next_pool = next.pool("p").await.expect("the pool is there");
    next_pool.write_full(&name(0), unique(2, 10)).await.expect("not fenced");

    // Fencing again is the same fence; lifting it twice is an error.
    assert_eq!(
        client.fence(OLD.client, OLD.incarnation, PATIENCE).await.expect("it holds").max(epoch),
        client_epoch(&client).await
    );
    let lift = || MonCommand::BlocklistRemove { client: OLD.client, incarnation: OLD.incarnation };
    assert!(matches!(old.mon_command(lift()).await, Ok(MonReply::Done { .. })));
    client.mon_command(lift()).await.expect_err("there is no such fence any more");
    old_pool.write_full(&name(0), unique(3, 10)).await.expect("not fenced any more");

    for client in [old, next, client] {
        client.shutdown().await;
    }
    cluster.stop().await;
}

async fn client_epoch(client: &Client) -> holdfast_types::Epoch {
    crate::common::map(client).await.epoch
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_does_not_wait_for_an_osd_that_is_marked_down() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create_pool(&client).await;
    wait_status(&client, "clean", all_clean).await;
    cluster.stop_osd(2).await;
    client.fence(OLD.client, OLD.incarnation, Duration::from_secs(60)).await.expect("it holds");
    client.shutdown().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_does_not_hold_while_nobody_speaks_for_a_placement_group() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let command = MonCommand::PoolCreate {
        name: "one".to_owned(),
        size: Some(1),
        min_size: Some(1),
        application: "test".to_owned(),
        failure_domain: None,
        share_percent: None,
    };
    client.mon_command(command).await.expect("a pool");
    wait_status(&client, "clean", all_clean).await;
    // For all that the others know it may only be out of sight, and go on serving with whom it is cut off.
    cluster.stop_osd(2).await;
    let early = client.fence(OLD.client, OLD.incarnation, Duration::from_secs(3)).await.expect_err("not yet");
    assert!(matches!(&early, ClientError::NotFencedYet { waiting, .. } if waiting.contains(&OsdId(2))), "{early}");
    cluster.start_osd(2).await;
    client.fence(OLD.client, OLD.incarnation, PATIENCE).await.expect("it holds");
    client.shutdown().await;
    cluster.stop().await;
}
