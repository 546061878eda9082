//! Clients that are slow, or stop: the others must hardly notice.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_gateway_s3::GatewayConfig;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use crate::support::{HOST, World, config, headers, pattern};

async fn world(config: GatewayConfig) -> Arc<World> {
    let world = World::with(config).await;
    world.put("/bkt", &[]).await.ok();
    Arc::new(world)
}

fn head(world: &World, target: &str, length: usize) -> HeaderMap {
    let mut head = world.signer().sign_literal("PUT", target, headers(&[("host", HOST)]), "UNSIGNED-PAYLOAD").headers;
    head.insert("content-length", length.to_string().parse().unwrap());
    head
}

/// A body in pieces with a pause before each.
fn paused(pieces: Vec<(Duration, Bytes)>) -> Body {
    Body::from_stream(futures::stream::iter(pieces).then(|(pause, piece)| async move {
        tokio::time::sleep(pause).await;
        Ok::<Bytes, std::io::Error>(piece)
    }))
}

/// The data in pieces of so many bytes, every so many seconds.
fn dripping(data: &[u8], bytes: usize, every: Duration) -> Body {
    paused(data.chunks(bytes).map(|piece| (every, Bytes::copy_from_slice(piece))).collect())
}

#[tokio::test(start_paused = true)]
async fn stalled_uploads_give_their_memory_to_those_who_send() {
    let world = world(GatewayConfig { receive_budget_bytes: 16 << 20, ..config() }).await;
    let data = pattern(6_000_001);
    // Eight clients stop in the middle of a stripe, for longer than anybody waits for memory.
    let stalled: Vec<_> = (0..8)
        .map(|number| {
            let (world, target) = (world.clone(), format!("/bkt/stalled-{number}"));
            let pieces = [(0, 0..1_234_567), (50, 1_234_567..3_000_000), (50, 3_000_000..data.len())];
            let body = paused(
                pieces
                    .into_iter()
                    .map(|(pause, range)| (Duration::from_secs(pause), Bytes::copy_from_slice(&data[range])))
                    .collect(),
            );
            let head = head(&world, &target, data.len());
            tokio::spawn(async move { world.raw("PUT", &target, head, body).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    for number in 0..6 {
        world.put(&format!("/bkt/quick-{number}"), &data).await.ok();
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    for stalled in stalled {
        stalled.await.unwrap().ok();
    }
    for name in ["stalled-0", "stalled-7", "quick-5"] {
        assert!(world.get(&format!("/bkt/{name}")).await.ok().body == data, "{name}");
    }
    assert_eq!(world.memory.rows(b'g'), 0, "no intent is left");
}

#[tokio::test(start_paused = true)]
async fn many_slow_uploads_share_the_memory_and_all_succeed() {
    let world = world(GatewayConfig { receive_budget_bytes: 16 << 20, ..config() }).await;
    let data = pattern(5_000_000);
    // 24 clients of 250 kB/s: whole stripes of them would need 96 MiB, or turns of 16 s for four at a time.
    let uploads: Vec<_> = (0..24)
        .map(|number| {
            let (world, target) = (world.clone(), format!("/bkt/slow-{number}"));
            let (head, body) = (head(&world, &target, data.len()), dripping(&data, 50_000, Duration::from_millis(200)));
            tokio::spawn(async move { world.raw("PUT", &target, head, body).await })
        })
        .collect();
    for upload in uploads {
        upload.await.unwrap().ok();
    }
    for number in [0, 23] {
        assert!(world.get(&format!("/bkt/slow-{number}")).await.ok().body == data);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_is_given_up_and_a_slow_one_is_not() {
    let world = world(config()).await;
    let data = pattern(400_000);
    let drips = dripping(&data, 1000, Duration::from_secs(5));
    let started = Instant::now();
    world.raw("PUT", "/bkt/k", head(&world, "/bkt/k", data.len()), drips).await.is(400, "RequestTimeout");
    assert!(started.elapsed() < Duration::from_secs(70));
    let slow = dripping(&data, 20_000, Duration::from_secs(10));
    world.raw("PUT", "/bkt/k", head(&world, "/bkt/k", data.len()), slow).await.ok();
    assert!(world.get("/bkt/k").await.ok().body == data);
}

#[tokio::test(start_paused = true)]
async fn downloads_that_nobody_reads_leave_enough_for_the_others() {
    let world = world(GatewayConfig { send_budget_bytes: 4 << 20, ..config() }).await;
    let data = pattern(3_000_000);
    world.put("/bkt/k", &data).await.ok();
    let get = || {
        let head = world.signer().sign("GET", "/bkt/k", headers(&[("host", HOST)]), b"").headers;
        let mut request = http::Request::builder().method("GET").uri("/bkt/k").body(Body::empty()).unwrap();
        *request.headers_mut() = head;
        let gateway = world.gateway.clone();
        tokio::spawn(async move { holdfast_gateway_s3::server::handle(&gateway, request).await })
    };
    // All at once, so that second pieces could take what first pieces need.
    let unread: Vec<_> = (0..60).map(|_| get()).collect();
    let mut replies = Vec::new();
    for reply in unread {
        let reply = reply.await.unwrap();
        assert_eq!(reply.status(), 200);
        replies.push(reply);
    }
    assert!(world.get("/bkt/k").await.ok().body == data);
    // Nobody who reads at last was cut off.
    let last = replies.pop().unwrap().into_body().collect().await.unwrap().to_bytes();
    assert!(last == data);
}

fn delete_head(world: &World, document: &[u8]) -> HeaderMap {
    use base64::Engine as _;
    use md5::Digest as _;
    let md5 = base64::engine::general_purpose::STANDARD.encode(md5::Md5::digest(document));
    let all = headers(&[("host", HOST), ("content-md5", &md5)]);
    let mut head = world.signer().sign_literal("POST", "/bkt?delete", all, "UNSIGNED-PAYLOAD").headers;
    head.insert("content-length", document.len().to_string().parse().unwrap());
    head
}

#[tokio::test(start_paused = true)]
async fn request_documents_wait_for_memory_and_do_not_hold_it_for_long() {
    let world = world(GatewayConfig { document_budget_bytes: 300 << 10, ..config() }).await;
    let keys: String = (0..900).map(|n| format!("<Object><Key>{n}-{}</Key></Object>", "k".repeat(100))).collect();
    let document = format!("<Delete><Quiet>true</Quiet>{keys}</Delete>").into_bytes();
    let half = document.len() / 2;
    let send = |pauses: [u64; 2]| {
        let pieces = [&document[..half], &document[half..]].into_iter().zip(pauses);
        let pieces = pieces.map(|(piece, pause)| (Duration::from_secs(pause), Bytes::copy_from_slice(piece))).collect();
        let (world, head) = (world.clone(), delete_head(&world, &document));
        tokio::spawn(async move { world.raw("POST", "/bkt?delete", head, paused(pieces)).await })
    };
    let first = send([0, 8]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = send([0, 0]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!second.is_finished(), "there is memory for one");
    first.await.unwrap().ok();
    second.await.unwrap().ok();
    // One that does not arrive within seconds gives its memory back.
    let stalled = send([0, 40]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    send([0, 0]).await.unwrap().ok();
    assert!(started.elapsed() < Duration::from_secs(20));
    stalled.await.unwrap().is(400, "RequestTimeout");

    let huge = vec![b' '; (3 << 20) + 1];
    let head = delete_head(&world, &huge);
    world.raw("POST", "/bkt?delete", head, huge).await.is(400, "MaxMessageLengthExceeded");
}

#[tokio::test(start_paused = true)]
async fn listings_wait_for_memory_until_others_are_read() {
    let world = world(GatewayConfig { listing_budget_bytes: 3 << 20, ..config() }).await;
    world.put("/bkt/k", b"data").await.ok();
    let list = || {
        let head = world.signer().sign("GET", "/bkt", headers(&[("host", HOST)]), b"").headers;
        let mut request = http::Request::builder().method("GET").uri("/bkt").body(Body::empty()).unwrap();
        *request.headers_mut() = head;
        let gateway = world.gateway.clone();
        async move { holdfast_gateway_s3::server::handle(&gateway, request).await }
    };
    // A reply that is made takes its own length: many that nobody reads yet fit, but not any number.
    let mut unread = Vec::new();
    loop {
        let started = Instant::now();
        let reply = list().await;
        if reply.status() == 503 {
            assert_eq!(started.elapsed().as_secs(), 30);
            break;
        }
        assert_eq!(reply.status(), 200);
        unread.push(reply);
        assert!(unread.len() < 100);
    }
    assert!(unread.len() > 10);
    unread.clear();
    assert_eq!(list().await.status(), 200);
}
