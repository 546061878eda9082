//! Ops against fake OSDs and a fake monitor over the real network.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use cluster::*;
use futures::{StreamExt, TryStreamExt};
use holdfast_client::*;
use holdfast_types::Epoch;
use holdfast_wire::mon::{MonCommand, MonError, MonReply};
use holdfast_wire::{ObjectOp, RefusedReason};

#[tokio::test]
async fn what_is_written_is_read_back_through_whichever_osd_serves_it() {
    let cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    for number in 0..40u8 {
        let object = name(&format!("object-{number}"));
        pool.write_full(&object, vec![number; 5000]).await.unwrap();
        assert_eq!(pool.read(&object, 10, 100).await.unwrap(), vec![number; 100]);
        assert_eq!(pool.stat(&object).await.unwrap().size, 5000);
        pool.remove(&object).await.unwrap();
        assert_eq!(pool.stat(&object).await, Err(OperateError::NotFound { index: 0 }));
    }
}

#[tokio::test]
async fn a_wrong_primary_leads_to_the_next_map_and_the_same_request_elsewhere() {
    let mut cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    let object = name("o");
    let first = cluster.acting(&object)[0];
    let newer = Epoch(cluster.mon.map().epoch.0 + 1);
    cluster.osds[first].react([Reaction::Refuse(RefusedReason::WrongPrimary, newer)]);
    let writing = tokio::spawn(async move { pool.write_full(&name("o"), "value").await });
    let refused = cluster.osds[first].request().await;
    assert!(!writing.is_finished());
    assert_eq!(cluster.mark_down(first), newer);
    let second = cluster.acting(&object)[0];
    let executed = cluster.osds[second].request().await;
    assert_eq!(executed.id, refused.id);
    assert_eq!((refused.epoch.0 + 1, executed.epoch), (newer.0, newer));
    within(writing).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_lost_half_way_leads_to_exactly_the_same_request_and_one_execution() {
    let mut cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    let primary = cluster.acting(&name("o"))[0];
    cluster.osds[primary].react([Reaction::Hangup, Reaction::Hangup, Reaction::Execute]);
    within(pool.write_full(&name("o"), "value")).await.unwrap();
    let mut requests = Vec::new();
    for _ in 0..3 {
        requests.push(cluster.osds[primary].request().await);
    }
    assert!(requests.windows(2).all(|pair| pair[0] == pair[1]), "{requests:?}");
    assert_eq!(cluster.shared.executed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_map_that_moves_the_target_moves_an_unanswered_op() {
    let mut cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    let first = cluster.acting(&name("o"))[0];
    cluster.osds[first].react([Reaction::Ignore]);
    let writing = tokio::spawn(async move { pool.write_full(&name("o"), "value").await });
    let unanswered = cluster.osds[first].request().await;
    cluster.mark_down(first);
    let second = cluster.acting(&name("o"))[0];
    let moved = cluster.osds[second].request().await;
    assert_eq!(moved.id, unanswered.id);
    within(writing).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_dead_osd_costs_an_op_nothing_but_time() {
    let mut cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    let first = cluster.acting(&name("o"))[0];
    cluster.osds[first].stop().await;
    let writing = tokio::spawn(async move { pool.write_full(&name("o"), "value").await });
    cluster.mark_down(first);
    within(writing).await.unwrap().unwrap();
    let second = cluster.acting(&name("o"))[0];
    assert_eq!(cluster.osds[second].request().await.ops.len(), 1);
}

#[tokio::test]
async fn an_op_ends_at_its_deadline_and_the_watermark_passes_it() {
    let mut cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    let primary = cluster.acting(&name("o"))[0];
    pool.write_full(&name("o"), "connected from here on").await.unwrap();
    cluster.osds[primary].request().await;
    cluster.osds[primary].react([Reaction::Ignore]);
    let options = OpOptions { timeout: Some(Duration::from_millis(200)), ..OpOptions::default() };
    let outcome = within(pool.operate_with(&name("o"), vec![ObjectOp::Stat], options)).await;
    assert!(
        matches!(outcome, Err(OperateError::Timeout { last_cause: Cause::NoAnswer, .. })),
        "expected a timeout, got {outcome:?}"
    );
    let timed_out = cluster.osds[primary].request().await;
    assert_eq!(timed_out.lowest_outstanding_tid, timed_out.id.tid);
    pool.write_full(&name("o"), "value").await.unwrap();
    let next = cluster.osds[primary].request().await;
    assert_eq!(next.lowest_outstanding_tid, next.id.tid, "the op that ended is not outstanding any more");
}

#[tokio::test]
async fn more_ops_than_the_budget_wait_for_their_turn() {
    let cluster = Cluster::start().await;
    let config = ClientConfig { ops_in_flight_max: 2, ..cluster.config() };
    let pool = Client::connect(config).await.unwrap().pool(POOL).await.unwrap();
    for osd in &cluster.osds {
        osd.react([Reaction::Ignore, Reaction::Ignore]);
    }
    let silent = || {
        let (pool, object) = (pool.clone(), name("o"));
        tokio::spawn(async move { pool.operate(&object, vec![ObjectOp::Stat]).await })
    };
    let unanswered = [silent(), silent()];
    let mut cluster = cluster;
    let primary = cluster.acting(&name("o"))[0];
    for _ in 0..2 {
        cluster.osds[primary].request().await;
    }
    let options = OpOptions { timeout: Some(Duration::from_millis(50)), ..OpOptions::default() };
    let third = pool.operate_with(&name("o"), vec![ObjectOp::Stat], options).await;
    assert!(matches!(third, Err(OperateError::Timeout { last_cause: Cause::NotSent, .. })), "{third:?}");
    // Giving up gives the place back.
    unanswered.iter().for_each(tokio::task::JoinHandle::abort);
    within(pool.write_full(&name("o"), "value")).await.unwrap();
}

#[tokio::test]
async fn a_placement_group_that_does_not_answer_leaves_the_budget_to_the_others() {
    let mut cluster = Cluster::start().await;
    let config = ClientConfig { bytes_in_flight_max: 64 << 20, ..cluster.config() };
    let pool = Client::connect(config).await.unwrap().pool(POOL).await.unwrap();
    let stuck = cluster.acting(&name("o"))[0];
    // The stuck group's primary hears four stripes and answers none; many more want to follow.
    cluster.osds[stuck].react((0..4).map(|_| Reaction::Ignore));
    let stripe = Bytes::from(vec![7; 4 << 20]);
    let writes: Vec<_> = (0..24)
        .map(|_| {
            let (pool, stripe) = (pool.clone(), stripe.clone());
            tokio::spawn(async move { pool.write_full(&name("o"), stripe).await })
        })
        .collect();
    for _ in 0..4 {
        cluster.osds[stuck].request().await;
    }
    let other = (0..1000).map(|number| name(&format!("other-{number}")));
    let other = other.into_iter().find(|object| cluster.acting(object)[0] != stuck).unwrap();
    let at_once = OpOptions { timeout: Some(Duration::from_secs(10)), ..OpOptions::default() };
    let write = vec![ObjectOp::WriteFull { data: holdfast_wire::Blob(stripe) }];
    within(pool.operate_with(&other, write, at_once)).await.unwrap();
    assert!(writes.iter().all(|write| !write.is_finished()));
    writes.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_request_larger_than_a_message_is_refused_at_once() {
    let cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    let outcome = within(pool.write_full(&name("o"), vec![0; 34 << 20])).await;
    assert!(matches!(outcome, Err(OperateError::TooLarge { .. })), "{outcome:?}");
}

#[tokio::test]
async fn increments_that_do_not_fit_are_replaced_by_the_full_map() {
    let mut cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    cluster.mon.diverge.store(true, Ordering::Relaxed);
    let first = cluster.acting(&name("o"))[0];
    cluster.osds[first].react([Reaction::Ignore]);
    let writing = tokio::spawn(async move { pool.write_full(&name("o"), "value").await });
    cluster.osds[first].request().await;
    cluster.mark_down(first);
    within(writing).await.unwrap().unwrap();
    assert!(cluster.mon.full_maps_asked.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn a_wanted_map_is_asked_for_when_the_subscription_does_not_bring_it() {
    let mut cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    cluster.mon.silent.store(true, Ordering::Relaxed);
    let first = cluster.acting(&name("o"))[0];
    let newer = cluster.mark_down(first);
    cluster.osds[first].react([Reaction::Refuse(RefusedReason::WrongPrimary, newer)]);
    within(pool.write_full(&name("o"), "value")).await.unwrap();
    assert_eq!(cluster.osds[first].request().await.ops.len(), 1);
}

#[tokio::test]
async fn commands_find_the_leader_and_show_their_effect_at_once() {
    let cluster = Cluster::start().await;
    let (follower, follower_address) = FakeMon::start(cluster.mon.maps()).await;
    *follower.leader.lock().unwrap() = Some(cluster.mon_address.clone());
    let mut config = cluster.config();
    config.monitors = vec![follower_address, cluster.mon_address.clone()];
    let client = within(Client::connect(config)).await.unwrap();
    let create = MonCommand::PoolCreate {
        name: "new".into(),
        size: None,
        min_size: None,
        application: String::new(),
        failure_domain: None,
        share_percent: None,
    };
    let reply = within(client.mon_command(create)).await.unwrap();
    assert!(matches!(reply, MonReply::Pool { .. }));
    let pool = client.pool("new").await.unwrap();
    within(pool.write_full(&name("o"), "value")).await.unwrap();

    let missing = within(client.pool("none")).await;
    assert!(matches!(missing, Err(ClientError::PoolNotFound { .. })));
    let refused = within(client.mon_command(MonCommand::Status)).await;
    assert!(matches!(refused, Err(ClientError::Mon(MonError::Invalid { .. }))));
}

#[tokio::test]
async fn a_striped_blob_comes_back_whole_in_part_and_not_at_all() {
    let cluster = Cluster::start().await;
    let striper = Striper::new(cluster.pool().await, OpOptions::default());
    let data: Vec<u8> = (0..STRIPE_BYTES as usize * 2 + 12_345).map(|at| (at / 1000 % 251) as u8).collect();
    let blob = BlobName::new("b/1").unwrap();
    let mut writer = striper.write(blob.clone());
    for chunk in data.chunks(100_000) {
        writer.push(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap(), data.len() as u64);
    assert_eq!(cluster.shared.objects.lock().unwrap().len(), 3);
    let read = |from: usize, to: usize| {
        let pieces = striper.read(&blob, from as u64..to as u64).boxed();
        async move { pieces.map_ok(|piece| piece.to_vec()).try_concat().await }
    };
    assert!(within(read(0, data.len())).await.unwrap() == data);
    let (from, to) = (STRIPE_BYTES as usize - 7, STRIPE_BYTES as usize * 2 + 5);
    assert!(within(read(from, to)).await.unwrap() == data[from..to]);
    assert_eq!(within(read(data.len(), data.len() + 1)).await, Err(OperateError::Unreadable { index: 0 }));

    let other = BlobName::new("b/2").unwrap();
    striper.write_all(other.clone(), data.clone().into()).await.unwrap();
    let copy = striper.read(&other, 0..data.len() as u64).boxed();
    assert!(copy.map_ok(|piece| piece.to_vec()).try_concat().await.unwrap() == data);

    let mut given_up = striper.write(BlobName::new("b/3").unwrap());
    given_up.push(Bytes::from(data.clone())).await.unwrap();
    given_up.abort().await.unwrap();
    for blob in [&blob, &other] {
        striper.remove(blob, data.len() as u64).await.unwrap();
        striper.remove(blob, data.len() as u64).await.unwrap();
    }
    assert!(cluster.shared.objects.lock().unwrap().is_empty());
    assert_eq!(striper.write(BlobName::new("b/4").unwrap()).finish().await, Ok(0));
}

#[tokio::test]
async fn a_client_that_is_shut_down_says_so() {
    let cluster = Cluster::start().await;
    let pool = cluster.pool().await;
    pool.write_full(&name("o"), "value").await.unwrap();
    within(pool.client().shutdown()).await;
    assert_eq!(pool.stat(&name("o")).await, Err(OperateError::ShutDown));
}
