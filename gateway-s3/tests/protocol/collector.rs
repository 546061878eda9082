//! Space is given back, and only when nothing refers to it.

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
