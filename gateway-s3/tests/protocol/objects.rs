//! Objects: PUT, GET, HEAD, conditions, ranges, metadata, checksums, copy, delete.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::auth::signed_chunks;
use crate::support::{HOST, World, headers, md5_hex, pattern};
use holdfast_gateway_s3::checksum::{Algorithm, base64};

#[tokio::test]
async fn objects_of_every_size_come_back_as_they_were() {
    let world = World::with_bucket().await;
    const STRIPE: usize = 4 << 20;
    for size in [0, 1, 4096, 16_384, 16_385, 65_537, STRIPE - 1, STRIPE, STRIPE + 1, 2 * STRIPE + 5] {
        let data = pattern(size);
        let put = world.put("/bkt/k", &data).await.ok();
        assert_eq!(put.header("etag"), format!("\"{}\"", md5_hex(&data)));
        let got = world.get("/bkt/k").await.ok();
        assert!(got.body == data, "{size}");
        assert_eq!(got.header("content-length"), size.to_string());
        let head = world.call("HEAD", "/bkt/k", &[], b"").await.ok();
        assert_eq!(head.header("content-length"), size.to_string());
        assert!(head.body.is_empty());
        for (first, last) in
            [(0, 0), (size / 2, size / 2 + 10), (size.saturating_sub(3), size + 9), (STRIPE - 2, STRIPE + 2)]
        {
            let range = format!("bytes={first}-{last}");
            let part = world.call("GET", "/bkt/k", &[("range", &range)], b"").await;
            if first < size {
                assert_eq!(part.status, 206);
                let end = (last + 1).min(size);
                assert!(part.body == data[first..end], "{size} {range}");
                assert_eq!(part.header("content-range"), format!("bytes {first}-{}/{size}", end - 1));
            } else {
                part.is(416, "InvalidRange");
            }
        }
    }
}

/// Trap 2: a whole-object checksum on a range would fail the client's validation.
#[tokio::test]
async fn checksums_are_verified_kept_and_shown_only_when_asked() {
    let world = World::with_bucket().await;
    let data = pattern(20_000);
    for algorithm in Algorithm::ALL {
        let value = base64(&algorithm.of(&data));
        let header = (algorithm.header(), value.as_str());
        let put = world
            .call("PUT", "/bkt/k", &[header, ("x-amz-sdk-checksum-algorithm", algorithm.name())], &data)
            .await
            .ok();
        assert_eq!(put.header(algorithm.header()), value);
        assert_eq!(put.header("x-amz-checksum-type"), "FULL_OBJECT");
        let mode = ("x-amz-checksum-mode", "ENABLED");
        for method in ["GET", "HEAD"] {
            let shown = world.call(method, "/bkt/k", &[mode], b"").await.ok();
            assert_eq!(shown.header(algorithm.header()), value);
            assert_eq!(shown.header("x-amz-checksum-type"), "FULL_OBJECT");
        }
        assert_eq!(world.get("/bkt/k").await.header(algorithm.header()), "");
        let range = world.call("GET", "/bkt/k", &[mode, ("range", "bytes=0-9")], b"").await.ok();
        assert_eq!(range.header(algorithm.header()), "");
        assert_eq!(range.header("x-amz-checksum-type"), "");

        let wrong = base64(&algorithm.of(b"other"));
        world.call("PUT", "/bkt/wrong", &[(algorithm.header(), &wrong)], &data).await.is(400, "BadDigest");
        world.get("/bkt/wrong").await.is(404, "NoSuchKey");
    }
    let put = world.put("/bkt/plain", &data).await.ok();
    assert_eq!(put.header("x-amz-checksum-crc64nvme"), base64(&Algorithm::Crc64Nvme.of(&data)));
    assert_eq!(world.memory.rows(b'g'), 4, "overwritten blobs only: refused ones are deleted at once");
}

/// Trap 1: a missing or wrong trailer must fail before the object shows.
#[tokio::test]
async fn trailers_are_verified_before_the_object_shows() {
    let world = World::with_bucket().await;
    let data = pattern(100_000);
    let crc = base64(&Algorithm::Crc32c.of(&data));
    let wrong = base64(&Algorithm::Crc32c.of(b"x"));
    let name = "x-amz-checksum-crc32c";
    let unsigned = |trailer: String, extra: &[(&str, &str)]| {
        let length = data.len().to_string();
        let mut pairs = vec![
            ("host", HOST),
            ("content-encoding", "gzip,aws-chunked"),
            ("x-amz-decoded-content-length", length.as_str()),
            ("x-amz-trailer", name),
        ];
        pairs.extend(extra);
        let head =
            world.signer().sign_literal("PUT", "/bkt/k", headers(&pairs), "STREAMING-UNSIGNED-PAYLOAD-TRAILER").headers;
        let mut body = Vec::new();
        for chunk in data.chunks(33_333) {
            body.extend(format!("{:X}\r\n", chunk.len()).as_bytes());
            body.extend(chunk);
            body.extend(b"\r\n");
        }
        body.extend(format!("0\r\n{trailer}\r\n").as_bytes());
        (head, body)
    };
    for (trailer, code) in [
        (format!("{name}:{wrong}\r\n"), "BadDigest"),
        (String::new(), "MalformedTrailerError"),
        (format!("x-amz-checksum-crc32:{crc}\r\n"), "MalformedTrailerError"),
        (format!("{name}:!!\r\n"), "MalformedTrailerError"),
    ] {
        let (head, body) = unsigned(trailer, &[]);
        world.raw("PUT", "/bkt/k", head, body).await.is(400, code);
        world.get("/bkt/k").await.is(404, "NoSuchKey");
    }
    let (head, body) = unsigned(format!("{name}:{crc}\r\n"), &[("x-amz-sdk-checksum-algorithm", "SHA1")]);
    world.raw("PUT", "/bkt/k", head, body).await.is(400, "InvalidRequest");
    let (head, mut body) = unsigned(format!("{name}:{crc}\r\n"), &[]);
    body.truncate(50_000);
    world.raw("PUT", "/bkt/k", head, body).await.is(400, "IncompleteBody");
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (0, 0), "nothing stays of refused uploads");

    let (head, body) = unsigned(format!("{name}:{crc}\r\n"), &[("x-amz-sdk-checksum-algorithm", "CRC32C")]);
    let put = world.raw("PUT", "/bkt/k", head, body).await.ok();
    assert_eq!(put.header(name), crc);
    let got = world.get("/bkt/k").await.ok();
    assert_eq!(got.header("content-encoding"), "gzip");
    assert!(got.body == data);

    let (head, body) = signed_chunks(&world, "/bkt/s", &data, Some((name, &crc)));
    world.raw("PUT", "/bkt/s", head, body).await.ok();
    assert!(world.get("/bkt/s").await.ok().body == data);
    let (head, mut body) = signed_chunks(&world, "/bkt/s2", &data, Some((name, &crc)));
    let at = body.len() - 10;
    body[at] ^= 1;
    world.raw("PUT", "/bkt/s2", head, body).await.is(403, "SignatureDoesNotMatch");
    let (head, body) = signed_chunks(&world, "/bkt/s3", &data, Some((name, &wrong)));
    world.raw("PUT", "/bkt/s3", head, body).await.is(400, "BadDigest");
}

#[tokio::test]
async fn metadata_and_standard_headers_come_back() {
    let world = World::with_bucket().await;
    let given = [
        ("content-type", "text/x-y; charset=utf-8"),
        ("cache-control", "no-cache"),
        ("content-disposition", "attachment; filename=\"x\""),
        ("content-language", "de"),
        ("expires", "Thu, 01 Dec 1994 16:00:00 GMT"),
        ("x-amz-meta-one", "1"),
        ("x-amz-meta-empty", ""),
        ("x-amz-meta-spaced", "a b"),
    ];
    world.call("PUT", "/bkt/k", &given, b"x").await.ok();
    let got = world.get("/bkt/k").await.ok();
    for (name, value) in given {
        assert_eq!(got.header(name), value, "{name}");
        assert!(got.headers.contains_key(name), "{name}");
    }
    assert_eq!(got.header("last-modified"), "Fri, 24 May 2013 00:00:00 GMT");
    assert_eq!(got.header("accept-ranges"), "bytes");
    let target = "/bkt/k?response-content-type=a%2Fb&response-cache-control=max-age%3D1&response-expires=x";
    let got = world.get(target).await.ok();
    assert_eq!(
        (got.header("content-type"), got.header("cache-control"), got.header("expires")),
        ("a/b", "max-age=1", "x")
    );
    assert_eq!(world.put("/bkt/plain", b"").await.ok().status, 200);
    assert_eq!(world.get("/bkt/plain").await.header("content-type"), "binary/octet-stream");
}

/// Trap 3 and 10: conditions of reads and writes.
#[tokio::test]
async fn conditions_hold() {
    let world = World::with_bucket().await;
    let etag = world.put("/bkt/k", b"1").await.ok().header("etag").to_owned();
    let bare = etag.trim_matches('"').to_owned();
    for (name, value, status) in [
        ("if-match", etag.as_str(), 200),
        ("if-match", bare.as_str(), 200),
        ("if-match", "\"x\"", 412),
        ("if-none-match", etag.as_str(), 304),
        ("if-none-match", "\"x\"", 200),
        ("if-modified-since", "Fri, 24 May 2013 00:00:00 GMT", 304),
        ("if-unmodified-since", "Thu, 23 May 2013 00:00:00 GMT", 412),
    ] {
        for method in ["GET", "HEAD"] {
            let reply = world.call(method, "/bkt/k", &[(name, value)], b"").await;
            assert_eq!(reply.status.as_u16(), status, "{method} {name}: {value}");
            assert!(method == "GET" || reply.body.is_empty());
            if status == 304 {
                assert_eq!(reply.header("etag"), etag);
                assert!(reply.body.is_empty());
            }
        }
    }
    world.call("PUT", "/bkt/k", &[("if-none-match", "*")], b"2").await.is(412, "PreconditionFailed");
    world.call("PUT", "/bkt/k", &[("if-match", "\"x\"")], b"2").await.is(412, "PreconditionFailed");
    world.call("PUT", "/bkt/none", &[("if-match", &etag)], b"2").await.is(404, "NoSuchKey");
    world.call("PUT", "/bkt/k", &[("if-match", &etag)], b"2").await.ok();
    world.call("PUT", "/bkt/k", &[("if-match", &etag)], b"3").await.is(412, "PreconditionFailed");
    world.call("PUT", "/bkt/new", &[("if-none-match", "*")], b"2").await.ok();
    world.call("DELETE", "/bkt/k", &[("if-match", &etag)], b"").await.is(412, "PreconditionFailed");
    assert_eq!(world.get("/bkt/k").await.text(), "2");
}

#[tokio::test]
async fn of_racing_conditional_writers_exactly_one_wins() {
    let world = Arc::new(World::with_bucket().await);
    for (round, size) in [(0, 10), (1, 20_000)] {
        let target = format!("/bkt/lock{round}");
        let tasks: Vec<_> = (0..8u8)
            .map(|i| {
                let (world, target) = (world.clone(), target.clone());
                tokio::spawn(async move {
                    world.call("PUT", &target, &[("if-none-match", "*")], &vec![i; size]).await.status
                })
            })
            .collect();
        let mut won = Vec::new();
        for (i, task) in tasks.into_iter().enumerate() {
            match task.await.unwrap().as_u16() {
                200 => won.push(i),
                status => assert_eq!(status, 412),
            }
        }
        assert_eq!(won.len(), 1);
        assert_eq!(world.get(&target).await.body, vec![won[0] as u8; size]);
    }
    assert_eq!(world.memory.stripes(), 1, "the losers' blobs are gone");
}

#[tokio::test]
async fn copies_are_objects_of_their_own() {
    let world = World::with_bucket().await;
    world.put("/other", b"").await.ok();
    let data = pattern(50_000);
    let etag = world.call("PUT", "/bkt/a%20b", &[("x-amz-meta-m", "1"), ("content-type", "t/u")], &data).await.ok();
    let etag = etag.header("etag").to_owned();
    let source = ("x-amz-copy-source", "/bkt/a%20b");
    let copy = world.call("PUT", "/other/c", &[source], b"").await.ok();
    assert_eq!(copy.element("ETag").replace("&quot;", "\""), etag);
    world.delete("/bkt/a%20b").await.ok();
    let got = world.get("/other/c").await.ok();
    assert!(got.body == data);
    assert_eq!((got.header("x-amz-meta-m"), got.header("content-type")), ("1", "t/u"));

    let own = ("x-amz-copy-source", "other/c");
    world.call("PUT", "/other/c", &[own], b"").await.is(400, "InvalidRequest");
    let replace = ("x-amz-metadata-directive", "REPLACE");
    world.call("PUT", "/other/c", &[own, replace, ("x-amz-meta-n", "2")], b"").await.ok();
    let got = world.get("/other/c").await.ok();
    assert!(got.body == data);
    assert_eq!((got.header("x-amz-meta-m"), got.header("x-amz-meta-n")), ("", "2"));

    let if_match = |value| ("x-amz-copy-source-if-match", value);
    world.call("PUT", "/bkt/d", &[own, if_match("\"x\"")], b"").await.is(412, "PreconditionFailed");
    world.call("PUT", "/bkt/d", &[own, if_match(&etag)], b"").await.ok();
    world
        .call("PUT", "/bkt/d", &[own, ("x-amz-copy-source-if-none-match", &etag)], b"")
        .await
        .is(412, "PreconditionFailed");
    world.call("PUT", "/bkt/d", &[("x-amz-copy-source", "/other/none")], b"").await.is(404, "NoSuchKey");
    world.call("PUT", "/bkt/d", &[("x-amz-copy-source", "/nowhere/c")], b"").await.is(404, "NoSuchBucket");
    world.call("PUT", "/bkt/d", &[("x-amz-copy-source", "bad")], b"").await.is(400, "InvalidArgument");
    world.call("PUT", "/bkt/d", &[own, ("x-amz-metadata-directive", "X")], b"").await.is(400, "InvalidArgument");
    world.call("PUT", "/bkt/d", &[own, ("if-none-match", "*")], b"").await.is(412, "PreconditionFailed");
}

#[tokio::test]
async fn deleting_is_idempotent_and_many_at_once_report_each() {
    let world = World::with_bucket().await;
    world.put("/bkt/k", b"1").await.ok();
    assert_eq!(world.delete("/bkt/k").await.status, 204);
    assert_eq!(world.delete("/bkt/k").await.status, 204);
    for key in ["a", "b%26", "c"] {
        world.put(&format!("/bkt/{key}"), &pattern(20_000)).await.ok();
    }
    let body = b"<Delete><Object><Key>a</Key></Object><Object><Key>b&amp;</Key></Object><Object><Key>none</Key></Object></Delete>";
    world.call("POST", "/bkt?delete", &[], body).await.is(400, "InvalidRequest");
    let crc = base64(&Algorithm::Crc32.of(body));
    let md5 = base64(&hex::decode(md5_hex(body)).unwrap());
    world.call("POST", "/bkt?delete", &[("content-md5", &md5.replace('=', "A"))], body).await.is(400, "InvalidDigest");
    let reply = world.call("POST", "/bkt?delete", &[("x-amz-checksum-crc32", &crc)], body).await.ok();
    assert_eq!(reply.elements("Key"), ["a", "b&amp;", "none"]);
    assert_eq!(world.get("/bkt").await.ok().elements("Key"), ["c"]);
    let quiet = b"<Delete><Quiet>true</Quiet><Object><Key>c</Key></Object><Object><Key>d</Key><VersionId>v</VersionId></Object></Delete>";
    let md5 = base64(&hex::decode(md5_hex(quiet)).unwrap());
    let reply = world.call("POST", "/bkt?delete", &[("content-md5", &md5)], quiet).await.ok();
    assert_eq!(reply.elements("Key").len(), 0);
    assert!(world.get("/bkt").await.ok().elements("Key").is_empty());
}

#[tokio::test]
async fn a_cluster_that_fails_is_told_as_such_and_nothing_is_lost() {
    let world = World::with_bucket().await;
    world.put("/bkt/k", b"1").await.ok();
    world.memory.unavailable.store(true, Ordering::SeqCst);
    for method in ["GET", "PUT", "DELETE"] {
        let reply = world.call(method, "/bkt/k", &[], b"").await.is(503, "SlowDown");
        assert_eq!(reply.header("retry-after"), "1");
    }
    world.memory.unavailable.store(false, Ordering::SeqCst);
    world.memory.full.store(true, Ordering::SeqCst);
    world.put("/bkt/k", b"2").await.is(507, "InsufficientStorage");
    world.put("/bkt/k", &pattern(100_000)).await.is(507, "InsufficientStorage");
    assert_eq!(world.get("/bkt/k").await.ok().text(), "1");
    world.delete("/bkt/k").await.ok();
}

#[tokio::test]
async fn object_stubs_answer_as_an_object_without_them_does() {
    let world = World::with_bucket().await;
    world.put("/bkt/k", b"abc").await.ok();
    assert_eq!(world.get("/bkt/k?acl").await.ok().element("Permission"), "FULL_CONTROL");
    assert!(world.get("/bkt/k?tagging").await.ok().text().contains("<TagSet></TagSet>"));
    world.get("/bkt/k?retention").await.is(400, "InvalidRequest");
    world.get("/bkt/none?acl").await.is(404, "NoSuchKey");
    let attributes = ("x-amz-object-attributes", "ETag,ObjectSize,Checksum,StorageClass");
    let reply = world.call("GET", "/bkt/k?attributes", &[attributes], b"").await.ok();
    assert_eq!((reply.element("ETag"), reply.element("ObjectSize")), (md5_hex(b"abc"), "3".to_owned()));
    world
        .call("GET", "/bkt/k?attributes", &[("x-amz-object-attributes", "Nope")], b"")
        .await
        .is(400, "InvalidArgument");
    world.get("/bkt/k?versionId=abc").await.is(404, "NoSuchVersion");
    world.get("/bkt/k?versionId=null").await.ok();
}
