//! The gateway on a real cluster: a monitor, three storage daemons and gateways in one process, over loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_gateway_s3::gc::round;
use holdfast_gateway_s3::{GatewayConfig, S3Config};
use support::{Cluster, S3, pattern};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

const SIZES: [usize; 6] = [0, 1, 16 * 1024, 16 * 1024 + 1, 5 << 20, (9 << 20) + 1];

async fn multipart(s3: &S3, target: &str, parts: &[Bytes]) {
    let begun = s3.call("POST", &format!("{target}?uploads"), &[], Bytes::new()).await.ok();
    let id = begun.element("UploadId");
    let mut document = "<CompleteMultipartUpload>".to_owned();
    for (index, part) in parts.iter().enumerate() {
        let number = index + 1;
        let put = s3.put(&format!("{target}?partNumber={number}&uploadId={id}"), part.clone()).await.ok();
        let etag = put.headers["etag"].to_str().unwrap().to_owned();
        document += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    document += "</CompleteMultipartUpload>";
    let done = s3.call("POST", &format!("{target}?uploadId={id}"), &[], document.into()).await.ok();
    assert!(!done.element("ETag").is_empty(), "{}", done.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_outlives_the_gateway_and_what_was_deleted_gives_its_space_back() {
    let cluster = Cluster::start().await;
    let s3 = cluster.gateway().await;
    s3.put("/bkt", "").await.ok();
    for size in SIZES {
        s3.put(&format!("/bkt/size-{size}"), pattern(size, size)).await.ok();
    }
    let parts = [pattern(5 << 20, 1), pattern((6 << 20) + 3, 2), pattern(77, 3)];
    multipart(&s3, "/bkt/parts", &parts).await;
    s3.stop().await;

    let s3 = cluster.gateway().await;
    for size in SIZES {
        let got = s3.get(&format!("/bkt/size-{size}")).await.ok();
        assert!(got.body == pattern(size, size), "size {size}");
    }
    assert!(s3.get("/bkt/parts").await.ok().body == parts.concat());
    let range = s3.call("GET", "/bkt/parts", &[("range", "bytes=5242870-5242889")], Bytes::new()).await.ok();
    assert_eq!(range.body, parts.concat()[5_242_870..5_242_890]);
    assert_eq!(s3.list("bkt", 3).await.len(), SIZES.len() + 1);

    // 16 KiB + 1: 1, 5 MiB: 2, 9 MiB + 1: 3, parts: 2 + 2 stripes; the last part is a row.
    let stripes = 1 + 2 + 3 + 4;
    cluster.wait_objects("s3-data", |count| count == stripes).await;
    s3.put(&format!("/bkt/size-{}", 5 << 20), pattern(16 * 1024 + 9, 0)).await.ok();
    for key in ["parts", "size-16385"] {
        s3.delete(&format!("/bkt/{key}")).await.ok();
        assert_eq!(s3.get(&format!("/bkt/{key}")).await.status, 404);
    }
    round(&s3.gateway).await.unwrap();
    cluster.wait_objects("s3-data", |count| count == stripes + 1).await;
    s3.stop().await;
    let config = GatewayConfig { gc_every: None, gc_min_age: Duration::ZERO, ..GatewayConfig::default() };
    let s3 = cluster.gateway_with(config).await;
    round(&s3.gateway).await.unwrap();
    cluster.wait_objects("s3-data", |count| count == 3 + 1).await;
    assert!(s3.get(&format!("/bkt/size-{}", (9 << 20) + 1)).await.ok().body == pattern((9 << 20) + 1, (9 << 20) + 1));

    // A bucket goes with all that it left, its groups included.
    let before = cluster.wait_objects("s3-index", |count| count > 0).await;
    assert_eq!(s3.delete("/bkt").await.status, 409);
    for key in s3.list("bkt", 1000).await {
        s3.delete(&format!("/bkt/{key}")).await.ok();
    }
    s3.delete("/bkt").await.ok();
    assert_eq!(s3.get("/bkt?list-type=2").await.status, 404);
    round(&s3.gateway).await.unwrap();
    cluster.wait_objects("s3-data", |count| count == 0).await;
    cluster.wait_objects("s3-index", |count| count < before).await;
    s3.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_upload_is_stored_in_pieces_and_others_pass() {
    let cluster = Cluster::start().await;
    let config = GatewayConfig { gc_every: None, receive_budget_bytes: 4 << 20, ..GatewayConfig::default() };
    let s3 = Arc::new(cluster.gateway_with(config).await);
    s3.put("/bkt", "").await.ok();
    let data = pattern((6 << 20) + 5, 7);
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let (first, rest) = (data.slice(..1_234_567), data.slice(1_234_567..));
    let body = futures::stream::iter([Ok::<Bytes, std::io::Error>(first)]).chain(futures::stream::once(async move {
        let _ = wait.await;
        Ok(rest)
    }));
    let stalled = tokio::spawn({
        let (s3, length) = (s3.clone(), data.len());
        async move { s3.put_stream("/bkt/stalled", length, axum::body::Body::from_stream(body)).await }
    });
    // There is memory for one stripe, and the stalled client has taken it or will have to wait.
    for number in 0..3 {
        s3.put(&format!("/bkt/{number}"), pattern(5 << 20, number)).await.ok();
    }
    go.send(()).unwrap();
    stalled.await.unwrap().ok();
    assert!(s3.get("/bkt/stalled").await.ok().body == data);
    for number in 0..3 {
        assert!(s3.get(&format!("/bkt/{number}")).await.ok().body == pattern(5 << 20, number));
    }
    cluster.wait_objects("s3-data", |count| count == 4 * 2).await;
    Arc::into_inner(s3).unwrap().stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_racing_writers_one_wins_and_counting_by_compare_and_swap_loses_nothing() {
    let cluster = Cluster::start().await;
    let first = Arc::new(cluster.gateway().await);
    let second = Arc::new(cluster.gateway().await);
    first.put("/bkt", "").await.ok();
    for round in 0..5 {
        let target = format!("/bkt/new-{round}");
        let races = (0..8).map(|writer: usize| {
            let (s3, target) = (if writer.is_multiple_of(2) { &first } else { &second }, &target);
            let body = pattern(if writer < 4 { 10 } else { 20_000 }, writer);
            async move { s3.call("PUT", target, &[("if-none-match", "*")], body).await.status.as_u16() }
        });
        let statuses = futures::future::join_all(races).await;
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| [200, 409, 412].contains(status)), "{statuses:?}");
        let winner = statuses.iter().position(|status| *status == 200).unwrap();
        let expected = pattern(if winner < 4 { 10 } else { 20_000 }, winner);
        assert!(second.get(&target).await.ok().body == expected);
    }

    first.put("/bkt/counter", "0").await.ok();
    let rounds = 5;
    let counters = (0..8).map(|writer: usize| {
        let s3 = Arc::clone(if writer.is_multiple_of(2) { &first } else { &second });
        tokio::spawn(async move {
            let mut done = 0;
            while done < rounds {
                let seen = s3.get("/bkt/counter").await.ok();
                let etag = seen.headers["etag"].to_str().unwrap().to_owned();
                let next = (seen.text().parse::<u32>().unwrap() + 1).to_string();
                let put = s3.call("PUT", "/bkt/counter", &[("if-match", &etag)], next.into()).await;
                match put.status.as_u16() {
                    200 => done += 1,
                    409 | 412 => {}
                    other => panic!("{other}: {}", put.text()),
                }
            }
        })
    });
    for counter in futures::future::join_all(counters).await {
        counter.unwrap();
    }
    assert_eq!(first.get("/bkt/counter").await.ok().text(), (8 * rounds).to_string());
    for s3 in [first, second] {
        Arc::into_inner(s3).unwrap().stop().await;
    }
    cluster.stop().await;
}

/// Lists a bucket again and again while `keys` objects are put into it.
async fn list_while_writing(keys: usize, listings_max: usize) {
    const WRITERS: usize = 64;
    const BATCH: usize = 500;
    let cluster = Cluster::start().await;
    let s3 = Arc::new(cluster.gateway().await);
    s3.put("/bkt", "").await.ok();
    // In an order that touches the whole key space all the time.
    let key = move |index: usize| format!("k/{:06}", (index * 7919) % keys);
    let (committed, mut progress) = watch::channel(0);
    let writing = {
        let s3 = s3.clone();
        tokio::spawn(async move {
            // Keys are committed in batches, so that "committed before" is easy to tell.
            for batch in 0..keys / BATCH {
                let puts = futures::stream::iter(batch * BATCH..(batch + 1) * BATCH).map(|index| {
                    let s3 = &s3;
                    async move { s3.put(&format!("/bkt/{}", key(index)), format!("value {index}")).await.ok() }
                });
                puts.buffer_unordered(WRITERS).for_each(|_| std::future::ready(())).await;
                committed.send_replace((batch + 1) * BATCH);
            }
        })
    };
    let began = Instant::now();
    let (mut listings, mut listed_keys, mut listing_time) = (1, 0, Duration::ZERO);
    loop {
        let due = listings * keys / listings_max;
        let before = *progress.wait_for(|committed| *committed >= due.min(keys)).await.unwrap();
        let listing_began = Instant::now();
        let listed = s3.list("bkt", 1000).await;
        listing_time += listing_began.elapsed();
        listed_keys += listed.len();
        assert!(listed.is_sorted_by(|a, b| a < b), "in order, and none twice");
        let listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
        for index in 0..before {
            assert!(listed.contains(key(index).as_str()), "{} was there before", key(index));
        }
        listings += 1;
        if before == keys {
            assert_eq!(listed.len(), keys);
            break;
        }
    }
    writing.await.unwrap();
    println!(
        "{keys} keys put in {:.1} s; {} listings of {listed_keys} keys in {:.1} s of that",
        began.elapsed().as_secs_f64(),
        listings - 1,
        listing_time.as_secs_f64()
    );
    let groups = cluster.wait_objects("s3-index", |count| count > 4).await;
    assert!(groups > 4, "the bucket's table was split");
    assert_eq!(s3.get(&format!("/bkt/{}", key(4711))).await.ok().text(), "value 4711");
    Arc::into_inner(s3).unwrap().stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_bucket_lists_in_order_and_completely_while_it_is_written() {
    list_while_writing(20_000, 8).await;
}

/// `cargo test --release -p holdfast-gateway-s3 --test on_cluster -- --ignored --nocapture of_200_000`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the full dose takes minutes"]
async fn a_bucket_of_200_000_keys_lists_in_order_and_completely_while_it_is_written() {
    list_while_writing(200_000, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_goes_on_without_monitors_and_they_know_the_gateway() {
    let mut cluster = Cluster::start().await;
    // No answer of the monitors counts as new: each request would ask them again.
    let s3 = cluster.start_gateway(S3Config { keys_fresh: Duration::ZERO, ..cluster.gateway_config() }).await;
    let address = s3.handle.address();
    s3.put("/bkt", "").await.ok();
    s3.put("/bkt/before", "1").await.ok();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !cluster.services().await.iter().any(|name| name.contains(&address.to_string())) {
        assert!(Instant::now() < deadline, "not registered: {:?}", cluster.services().await);
        tokio::task::yield_now().await;
    }
    cluster.stop_monitors().await;
    for index in 0..20 {
        let began = Instant::now();
        s3.put(&format!("/bkt/{index}"), pattern(20_000, index)).await.ok();
        assert!(s3.get(&format!("/bkt/{index}")).await.ok().body == pattern(20_000, index));
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
    assert_eq!(s3.list("bkt", 1000).await.len(), 21);
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /-/healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    s3.stop().await;
    cluster.stop().await;
}
