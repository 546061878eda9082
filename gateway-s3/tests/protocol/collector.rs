//! Space is given back, and only when nothing refers to it.

use std::sync::atomic::Ordering::SeqCst;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_gateway_s3::gc::round;
use http::HeaderMap;

use crate::support::{HOST, World, headers, pattern};

const AGE_MS: u64 = 600_000;

#[tokio::test]
async fn overwritten_deleted_and_aborted_data_is_collected_after_the_minimum_age() {
    let world = World::with_bucket().await;
    let data = pattern(100_000);
    world.put("/bkt/k", &data).await.ok();
    world.put("/bkt/k", &data).await.ok();
    world.put("/bkt/gone", &data).await.ok();
    world.delete("/bkt/gone").await.ok();
    let id = world.call("POST", "/bkt/u?uploads", &[], b"").await.ok().element("UploadId");
    world.put(&format!("/bkt/u?partNumber=1&uploadId={id}"), &data).await.ok();
    world.delete(&format!("/bkt/u?uploadId={id}")).await.ok();
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (4, 3));
    assert_eq!(round(&world.gateway).await.unwrap().rows, 0, "too young");
    world.clock.advance_ms(AGE_MS);
    let done = round(&world.gateway).await.unwrap();
    assert_eq!((done.rows, done.blobs), (3, 3));
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (1, 0));
    assert!(world.get("/bkt/k").await.ok().body == data);
}

/// A body that stops after its first half until the sender says more.
fn slow_body(data: Vec<u8>) -> (Body, tokio::sync::oneshot::Sender<()>) {
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let half = data.len() / 2;
    let (first, second) = (Bytes::from(data[..half].to_vec()), Bytes::from(data[half..].to_vec()));
    let stream = futures::stream::iter([Ok::<Bytes, std::io::Error>(first)]).chain(futures::stream::once(async move {
        let _ = wait.await;
        Ok(second)
    }));
    (Body::from_stream(stream), go)
}

fn put_head(world: &World, length: usize) -> HeaderMap {
    let mut head =
        world.signer().sign_literal("PUT", "/bkt/slow", headers(&[("host", HOST)]), "UNSIGNED-PAYLOAD").headers;
    head.insert("content-length", length.to_string().parse().unwrap());
    head
}

#[tokio::test]
async fn an_upload_that_outlives_its_intent_fails_instead_of_losing_its_data() {
    let world = World::with_bucket().await;
    let data = pattern(9 << 20);
    let (body, go) = slow_body(data.clone());
    let put = world.raw("PUT", "/bkt/slow", put_head(&world, data.len()), body);
    let collect = async {
        while world.memory.stripes() == 0 {
            tokio::task::yield_now().await;
        }
        world.clock.advance_ms(AGE_MS);
        // The collector takes the intent; the second half of the body then arrives.
        round(&world.gateway).await.unwrap();
        go.send(()).unwrap();
    };
    let (reply, ()) = tokio::join!(put, collect);
    assert!(!reply.status.is_success(), "the commit must notice");
    world.get("/bkt/slow").await.is(404, "NoSuchKey");
    world.clock.advance_ms(AGE_MS);
    round(&world.gateway).await.unwrap();
    assert_eq!(world.memory.stripes(), 0, "what was stored after the collector had been there");
}

#[tokio::test]
async fn what_is_stored_after_the_collector_took_its_intent_is_collected() {
    let world = World::with_bucket().await;
    let data = pattern(9 << 20);
    world.memory.hold_stripes.store(true, SeqCst);
    let (body, go) = slow_body(data.clone());
    let put = world.raw("PUT", "/bkt/slow", put_head(&world, data.len()), body);
    let collect = async {
        while world.memory.stripes_held.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        world.clock.advance_ms(AGE_MS);
        round(&world.gateway).await.unwrap();
        assert_eq!(world.memory.rows(b'g'), 0, "the intent is gone");
        world.memory.hold_stripes.store(false, SeqCst);
        world.memory.stripe.notify_waiters();
        go.send(()).unwrap();
    };
    let (reply, ()) = tokio::join!(put, collect);
    assert!(!reply.status.is_success(), "the commit must notice");
    assert!(world.memory.stripes() > 0, "stored when nothing named it");
    for _ in 0..2 {
        world.clock.advance_ms(AGE_MS);
        round(&world.gateway).await.unwrap();
    }
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (0, 0));
}

#[tokio::test]
async fn a_copy_ends_with_its_client() {
    let world = World::with_bucket().await;
    world.put("/bkt/from", &pattern(50_000)).await.ok();
    world.memory.hold_stripes.store(true, SeqCst);
    let copy = world.call("PUT", "/bkt/to", &[("x-amz-copy-source", "/bkt/from")], b"");
    let leave = async {
        while world.memory.stripes_held.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = copy => panic!("it waits for its stripe"),
        () = leave => {}
    }
    world.memory.hold_stripes.store(false, SeqCst);
    let later = pattern(60_000);
    world.put("/bkt/to", &later).await.ok();
    world.memory.stripe.notify_waiters();
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert!(world.get("/bkt/to").await.ok().body == later, "nobody waited for the copy any more");
    world.clock.advance_ms(AGE_MS);
    round(&world.gateway).await.unwrap();
    assert_eq!(world.memory.stripes(), 2, "nor is anything left of it");
}

#[tokio::test]
async fn a_slow_upload_keeps_its_intent_young() {
    let world = World::with_bucket().await;
    let data = pattern(13 << 20);
    let (body, go) = slow_body(data.clone());
    let put = world.raw("PUT", "/bkt/slow", put_head(&world, data.len()), body);
    let collect = async {
        while world.memory.stripes() == 0 {
            tokio::task::yield_now().await;
        }
        world.clock.advance_ms(AGE_MS - 1);
        go.send(()).unwrap();
        while world.memory.stripes() < 3 {
            tokio::task::yield_now().await;
        }
        world.clock.advance_ms(2);
        round(&world.gateway).await.unwrap();
    };
    let (reply, ()) = tokio::join!(put, collect);
    reply.ok();
    assert!(
        world
            .raw(
                "GET",
                "/bkt/slow",
                world.signer().sign("GET", "/bkt/slow", headers(&[("host", HOST)]), b"").headers,
                ""
            )
            .await
            .ok()
            .body
            == data
    );
}

/// Who deletes to make room waits for seconds, not for the age at which garbage is safe from slow readers.
#[tokio::test]
async fn while_room_is_short_what_was_deleted_is_collected_soon_and_what_is_being_written_is_not() {
    let world = World::with_bucket().await;
    for key in ["a", "b"] {
        world.put(&format!("/bkt/{key}"), &pattern(50_000)).await.ok();
    }
    let data = pattern(9 << 20);
    let (body, go) = slow_body(data.clone());
    let put = world.raw("PUT", "/bkt/slow", put_head(&world, data.len()), body);
    let left = || (world.memory.stripes(), world.memory.rows(b'g'));
    let collect = async {
        while world.memory.stripes() < 3 {
            tokio::task::yield_now().await;
        }
        world.delete("/bkt/a").await.ok();
        world.clock.advance_ms(30_000);
        round(&world.gateway).await.unwrap();
        assert_eq!(left(), (3, 2), "there is room, so readers have time");
        world.memory.full.store(true, SeqCst);
        world.delete("/bkt/b").await.ok();
        world.clock.advance_ms(5_000);
        round(&world.gateway).await.unwrap();
        assert_eq!(left(), (2, 2), "readers of what was deleted just now have some time still");
        world.clock.advance_ms(10_000);
        round(&world.gateway).await.unwrap();
        assert_eq!(left(), (1, 1), "what is being written is left");
        world.memory.full.store(false, SeqCst);
        go.send(()).unwrap();
    };
    let (reply, ()) = tokio::join!(put, collect);
    reply.ok();
}

#[tokio::test]
async fn a_client_that_leaves_leaves_no_orphan() {
    let world = World::with_bucket().await;
    let data = pattern(9 << 20);
    let (body, go) = slow_body(data.clone());
    let put = world.raw("PUT", "/bkt/slow", put_head(&world, data.len()), body);
    let leave = async {
        while world.memory.stripes() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = put => panic!("it waits for its body"),
        () = leave => {}
    }
    drop(go);
    assert_eq!(world.memory.rows(b'g'), 1, "the intent stays");
    world.clock.advance_ms(AGE_MS);
    round(&world.gateway).await.unwrap();
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (0, 0));
}

#[tokio::test]
async fn a_deleted_buckets_garbage_outlives_it_and_is_collected() {
    let world = World::with_bucket().await;
    let data = pattern(50_000);
    world.put("/bkt/k", &data).await.ok();
    world.delete("/bkt/k").await.ok();
    let id = world.call("POST", "/bkt/u?uploads", &[], b"").await.ok().element("UploadId");
    world.put(&format!("/bkt/u?partNumber=1&uploadId={id}"), &data).await.ok();
    world.delete("/bkt").await.ok();
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (2, 1), "the upload's part is still its part");
    // The name is free at once, and its next life has nothing to do with that garbage.
    world.put("/bkt", &[]).await.ok();
    world.put("/bkt/k", &data).await.ok();
    assert_eq!(round(&world.gateway).await.unwrap().rows, 0, "too young");
    world.clock.advance_ms(AGE_MS);
    round(&world.gateway).await.unwrap();
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g'), world.memory.rows(b'x')), (1, 0, 0));
    assert_eq!(world.memory.tables(), 2, "the table is purged");
    assert!(world.get("/bkt/k").await.ok().body == data);
}

/// What a key may hold.
const KINDS: [&str; 4] = ["nothing", "row", "blob", "parts"];

async fn make(world: &World, kind: &str, seed: usize) -> Option<Vec<u8>> {
    let data = match kind {
        "row" => pattern(100 + seed),
        _ => pattern(50_000 + seed),
    };
    match kind {
        "nothing" => {
            world.delete("/bkt/k").await.ok();
            return None;
        }
        "parts" => {
            let id = world.call("POST", "/bkt/k?uploads", &[], b"").await.ok().element("UploadId");
            let part = world.put(&format!("/bkt/k?partNumber=1&uploadId={id}"), &data).await.ok();
            let document = format!(
                "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
                part.header("etag")
            );
            world.call("POST", &format!("/bkt/k?uploadId={id}"), &[], document.as_bytes()).await.ok();
        }
        _ => {
            world.put("/bkt/k", &data).await.ok();
        }
    }
    Some(data)
}

async fn is_there(world: &World, kind: &str, data: Option<&[u8]>) {
    world.clock.advance_ms(AGE_MS);
    round(&world.gateway).await.unwrap();
    let count = |space| world.memory.rows(space);
    let (row, external) = (usize::from(kind == "row"), usize::from(kind == "blob" || kind == "parts"));
    assert_eq!((count(b'o'), count(b'd'), count(b'e')), (row + external, row, external), "{kind}");
    assert_eq!((count(b'u'), count(b'p'), count(b'g')), (0, 0, 0), "{kind}");
    assert_eq!(world.memory.stripes(), external, "{kind}");
    match data {
        Some(data) => assert!(world.get("/bkt/k").await.ok().body == data, "{kind}"),
        None => drop(world.get("/bkt/k").await.is(404, "NoSuchKey")),
    }
}

#[tokio::test]
async fn whatever_replaces_whatever_leaves_its_own_rows_and_blobs_only() {
    let world = World::with_bucket().await;
    for (at, before) in KINDS.into_iter().enumerate() {
        for after in KINDS {
            make(&world, before, at).await;
            let data = make(&world, after, at + 7).await;
            is_there(&world, after, data.as_deref()).await;
        }
    }
}

#[tokio::test]
async fn small_objects_are_replaced_and_deleted_in_one_op() {
    let world = World::with_bucket().await;
    let ops = || {
        use std::sync::atomic::Ordering::SeqCst;
        (world.memory.batches.load(SeqCst), world.memory.gets.load(SeqCst))
    };
    make(&world, "row", 0).await;
    for kind in ["row", "row", "nothing", "nothing", "row"] {
        let before = ops();
        make(&world, kind, 1).await;
        assert_eq!(ops(), (before.0 + 1, before.1), "{kind}");
    }
}

/// A storage that forgot a request may execute it again when it is resent.
#[tokio::test]
async fn a_batch_that_is_executed_twice_loses_nothing() {
    use std::sync::atomic::Ordering::SeqCst;
    let world = World::new().await;
    world.memory.repeat_batches.store(true, SeqCst);
    world.put("/bkt", &[]).await.ok();
    for (at, before) in KINDS.into_iter().enumerate() {
        for after in KINDS {
            make(&world, before, at).await;
            let data = make(&world, after, at + 7).await;
            is_there(&world, after, data.as_deref()).await;
        }
    }
    for size in [100, 50_000] {
        make(&world, "nothing", 0).await;
        let (first, second) = (pattern(size), pattern(size + 1));
        let new = world.call("PUT", "/bkt/k", &[("if-none-match", "*")], &first).await.ok();
        let etag = new.header("etag").to_owned();
        world.call("PUT", "/bkt/k", &[("if-match", &etag)], &second).await.ok();
        world.call("PUT", "/bkt/k", &[("if-match", &etag)], &first).await.is(412, "PreconditionFailed");
        is_there(&world, if size == 100 { "row" } else { "blob" }, Some(&second)).await;
    }
}

/// The same, with the part being used up before its second execution.
#[tokio::test]
async fn a_part_that_is_put_again_after_its_upload_was_completed_keeps_its_data() {
    use std::sync::atomic::Ordering::SeqCst;
    let world = std::sync::Arc::new(World::with_bucket().await);
    let data = pattern(50_000);
    let id = world.call("POST", "/bkt/k?uploads", &[], b"").await.ok().element("UploadId");
    world.memory.repeat_batches.store(true, SeqCst);
    world.memory.hold_repeats.store(true, SeqCst);
    let put = {
        let (world, data, target) = (world.clone(), data.clone(), format!("/bkt/k?partNumber=1&uploadId={id}"));
        tokio::spawn(async move { world.put(&target, &data).await })
    };
    while world.memory.rows(b'g') == 0 {
        tokio::task::yield_now().await;
    }
    world.memory.repeat.notify_one(); // the intent
    while world.memory.rows(b'p') == 0 {
        tokio::task::yield_now().await;
    }
    world.memory.repeat_batches.store(false, SeqCst);
    let document = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
        crate::support::md5_hex(&data)
    );
    world.call("POST", &format!("/bkt/k?uploadId={id}"), &[], document.as_bytes()).await.ok();
    world.memory.repeat.notify_one();
    assert!(!put.await.unwrap().status.is_success(), "it cannot know");
    is_there(&world, "parts", Some(&data)).await;
}

#[tokio::test]
async fn a_bucket_that_is_not_deleted_after_all_keeps_its_uploads() {
    let world = std::sync::Arc::new(World::with_bucket().await);
    let data = pattern(50_000);
    let id = world.call("POST", "/bkt/u?uploads", &[], b"").await.ok().element("UploadId");
    let part = world.put(&format!("/bkt/u?partNumber=1&uploadId={id}"), &data).await.ok();
    world.memory.hold_drops.store(true, std::sync::atomic::Ordering::SeqCst);
    let deleting = tokio::spawn({
        let world = world.clone();
        async move { world.delete("/bkt").await }
    });
    while world.memory.drops_held.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // It was empty when the deletion looked, and is not when it decides.
    world.put("/bkt/k", &data).await.ok();
    world.memory.release.notify_one();
    deleting.await.unwrap().is(409, "BucketNotEmpty");
    let list = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
        part.header("etag").replace('"', "&quot;")
    );
    world.call("POST", &format!("/bkt/u?uploadId={id}"), &[], list.as_bytes()).await.ok();
    assert!(world.get("/bkt/u").await.ok().body == data);
}
