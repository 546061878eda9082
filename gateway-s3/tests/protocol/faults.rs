//! What the storage may do to the gateway, and what must not come of it.

use std::sync::atomic::Ordering::SeqCst;

use holdfast_gateway_s3::clock::Clock as _;
use holdfast_gateway_s3::gc::round;

use crate::support::{World, pattern};

const AGE_MS: u64 = 600_000;

#[tokio::test]
async fn a_full_cluster_can_be_emptied() {
    let world = World::with_bucket().await;
    let data = pattern(50_000);
    for key in ["a", "b"] {
        world.put(&format!("/bkt/{key}"), &data).await.ok();
    }
    world.put("/bkt/small", &data[..100]).await.ok();
    let id = world.call("POST", "/bkt/u?uploads", &[], b"").await.ok().element("UploadId");
    world.put(&format!("/bkt/u?partNumber=1&uploadId={id}"), &data).await.ok();
    world.memory.full.store(true, SeqCst);
    world.put("/bkt/new", &data[..100]).await.is(507, "InsufficientStorage");
    world.put("/bkt/new", &data).await.is(507, "InsufficientStorage");
    world.delete("/bkt/a").await.ok();
    world.delete("/bkt/small").await.ok();
    world.delete(&format!("/bkt/u?uploadId={id}")).await.ok();
    world.clock.advance_ms(AGE_MS);
    round(&world.gateway).await.unwrap();
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (1, 0));
}

/// Replacing frees what was there, but later and perhaps less than it takes: who overwrites all the time would fill the
/// cluster to the brim.
#[tokio::test]
async fn a_full_cluster_lets_nothing_be_replaced() {
    let world = World::with_bucket().await;
    let large = pattern(50_000);
    let keys = [("large", &large[..]), ("small", &large[..100])];
    for (key, data) in keys {
        world.put(&format!("/bkt/{key}"), data).await.ok();
    }
    let id = world.call("POST", "/bkt/large?uploads", &[], b"").await.ok().element("UploadId");
    let part = format!("/bkt/large?partNumber=1&uploadId={id}");
    let etag = world.put(&part, &large).await.ok().header("etag").to_owned();
    world.memory.full.store(true, SeqCst);
    for (key, data) in keys {
        for other in [&large[1..], &large[1..50]] {
            world.put(&format!("/bkt/{key}"), other).await.is(507, "InsufficientStorage");
        }
        assert_eq!(world.get(&format!("/bkt/{key}")).await.ok().body, data);
    }
    world.put(&part, &large[..100]).await.is(507, "InsufficientStorage");
    let document = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    let complete = format!("/bkt/large?uploadId={id}");
    world.call("POST", &complete, &[], document.as_bytes()).await.is(507, "InsufficientStorage");
    world.memory.full.store(false, SeqCst);
    world.call("POST", &complete, &[], document.as_bytes()).await.ok();
}

#[tokio::test]
async fn an_upload_that_was_cut_off_is_collected_on_a_full_cluster_too() {
    let world = World::with_bucket().await;
    let data = pattern(50_000);
    world.memory.lose_answers.store(true, SeqCst);
    world.put("/bkt/k", &data).await; // its intent is all that there is for sure
    world.memory.lose_answers.store(false, SeqCst);
    assert_eq!(world.memory.rows(b'g'), 1);
    world.memory.full.store(true, SeqCst);
    world.clock.advance_ms(AGE_MS);
    round(&world.gateway).await.unwrap();
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (0, 0));
}

/// A placement group that serves nothing for a while must not cost a bucket.
#[tokio::test]
async fn a_bucket_whose_table_is_not_to_be_found_is_kept() {
    let world = World::with_bucket().await;
    world.put("/bkt/k", b"data").await.ok();
    let hidden = world.memory.hide_buckets();
    world.clock.advance_ms(AGE_MS);
    assert!(round(&world.gateway).await.is_err(), "it is told");
    world.get("/bkt/k").await.is(503, "SlowDown");
    world.put("/bkt", &[]).await.is(503, "SlowDown");
    world.delete("/bkt").await.is(503, "SlowDown");
    world.memory.show_buckets(hidden);
    assert_eq!(world.get("/bkt/k").await.ok().text(), "data");
    assert_eq!(world.memory.rows(b'b'), 1);
}

#[tokio::test]
async fn garbage_of_a_deleted_bucket_that_is_not_to_be_found_is_collected_when_it_is() {
    let world = World::with_bucket().await;
    world.put("/bkt/k", &pattern(50_000)).await.ok();
    world.delete("/bkt/k").await.ok();
    world.delete("/bkt").await.ok();
    world.clock.advance_ms(AGE_MS);
    let hidden = world.memory.hide_buckets();
    assert!(round(&world.gateway).await.is_err(), "it is told");
    assert_eq!((world.memory.stripes(), world.memory.rows(b'x')), (1, 1), "the note stays");
    world.memory.show_buckets(hidden);
    world.memory.full.store(true, SeqCst);
    round(&world.gateway).await.unwrap();
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g'), world.memory.rows(b'x')), (0, 0, 0));
    assert_eq!(world.memory.tables(), 1, "the table is purged");
}

#[tokio::test]
async fn one_bad_row_keeps_no_other_garbage_from_being_collected() {
    let world = World::with_bucket().await;
    let data = pattern(50_000);
    world.put("/bkt/bad", &data).await.ok();
    world.delete("/bkt/bad").await.ok();
    world.memory.damage(b'g');
    for bucket in ["/bkt", "/other"] {
        world.put(bucket, &[]).await.ok();
        world.put(&format!("{bucket}/k"), &data).await.ok();
        world.delete(&format!("{bucket}/k")).await.ok();
    }
    world.clock.advance_ms(AGE_MS);
    assert!(round(&world.gateway).await.is_err(), "it is told");
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (1, 1), "only the bad one is left");
}

/// A client that is told "perhaps" tries again, and would lose against itself.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_out() {
    let world = World::with_bucket().await;
    let condition = [("if-none-match", "*")];
    world.memory.lose_answers.store(true, SeqCst);
    world.call("PUT", "/bkt/k", &condition, b"mine").await.ok();
    world.memory.lose_answers.store(false, SeqCst);
    world.call("PUT", "/bkt/k", &condition, b"theirs").await.is(412, "PreconditionFailed");
    assert_eq!(world.get("/bkt/k").await.ok().text(), "mine");
}

#[tokio::test]
async fn a_copy_of_rotten_bytes_is_refused() {
    let world = World::with_bucket().await;
    world.put("/bkt/k", &pattern(50_000)).await.ok();
    let copy = [("x-amz-copy-source", "/bkt/k")];
    world.call("PUT", "/bkt/good", &copy, b"").await.ok();
    world.memory.rot();
    world.call("PUT", "/bkt/bad", &copy, b"").await.is(500, "InternalError");
    world.get("/bkt/bad").await.is(404, "NoSuchKey");
}

/// A terabyte that is deleted to make room must not stand there for days.
#[tokio::test]
async fn no_garbage_is_kept_for_more_than_some_hours_nor_for_a_minute_while_room_is_short() {
    for (is_short, kept_ms) in [(false, 24 * AGE_MS), (true, 60_000)] {
        let world = World::with_bucket().await;
        let huge = holdfast_gateway_s3::row::BlobRef {
            id: holdfast_gateway_s3::backend::BlobId([7; 16]),
            bytes: 1 << 40,
            stripe_bytes: 4 << 20,
        };
        world.memory.add_garbage("k", vec![huge], world.clock.now_ms());
        world.memory.full.store(is_short, SeqCst);
        for (passed_ms, rows) in [(kept_ms - 1, 1), (1, 0)] {
            world.clock.advance_ms(passed_ms);
            round(&world.gateway).await.unwrap();
            assert_eq!(world.memory.rows(b'g'), rows, "room is short: {is_short}");
        }
    }
}

/// A download may take as long as its size allows, after its object was deleted.
#[tokio::test]
async fn garbage_is_kept_the_longer_the_more_it_is() {
    let world = World::with_bucket().await;
    let large = holdfast_gateway_s3::row::BlobRef {
        id: holdfast_gateway_s3::backend::BlobId([7; 16]),
        bytes: 3 << 30,
        stripe_bytes: 4 << 20,
    };
    world.memory.add_garbage("k", vec![large], world.clock.now_ms());
    for rows in [1, 1, 1, 0] {
        world.clock.advance_ms(AGE_MS);
        round(&world.gateway).await.unwrap();
        assert_eq!(world.memory.rows(b'g'), rows);
    }
}
