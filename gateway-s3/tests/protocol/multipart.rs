//! Multipart uploads (traps 3 and 4).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Reply, World, element, md5_hex, pattern};
use holdfast_gateway_s3::checksum::{Algorithm, base64};
use holdfast_gateway_s3::gc::round;
use http_body_util::BodyExt as _;

const MIB5: usize = 5 << 20;

async fn create(world: &World, headers: &[(&str, &str)]) -> String {
    world.call("POST", "/bkt/big?uploads", headers, b"").await.ok().element("UploadId")
}

async fn part(world: &World, id: &str, number: usize, data: &[u8]) -> String {
    let reply = world.put(&format!("/bkt/big?partNumber={number}&uploadId={id}"), data).await.ok();
    reply.header("etag").to_owned()
}

fn document(parts: &[(usize, &str)]) -> Vec<u8> {
    let parts: String = parts
        .iter()
        .map(|(number, etag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"))
        .collect();
    format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>").into_bytes()
}

async fn complete(world: &World, id: &str, parts: &[(usize, &str)]) -> Reply {
    world.call("POST", &format!("/bkt/big?uploadId={id}"), &[], &document(parts)).await
}

#[tokio::test]
async fn parts_become_one_object() {
    let world = World::with_bucket().await;
    let id = create(&world, &[("x-amz-meta-m", "1"), ("content-type", "t/u")]).await;
    let data = [pattern(MIB5), pattern(MIB5 + 7)[..].to_vec(), pattern(100)];
    let mut etags = Vec::new();
    for (at, number) in [(0, 1), (1, 3), (2, 10_000)] {
        etags.push((number, part(&world, &id, number, &data[at]).await));
    }
    part(&world, &id, 7, &pattern(MIB5)).await; // never listed
    part(&world, &id, 3, &pattern(9)).await; // replaced
    etags[1].1 = part(&world, &id, 3, &data[1]).await;
    world.get("/bkt/big").await.is(404, "NoSuchKey");

    let listed = world.get(&format!("/bkt/big?uploadId={id}&max-parts=3")).await.ok();
    assert_eq!(listed.elements("PartNumber"), ["1", "3", "7"]);
    assert_eq!((listed.element("IsTruncated"), listed.element("NextPartNumberMarker")), ("true".into(), "7".into()));
    let rest = world.get(&format!("/bkt/big?uploadId={id}&part-number-marker=7")).await.ok();
    assert_eq!(rest.elements("PartNumber"), ["10000"]);
    assert_eq!(world.get("/bkt?uploads").await.ok().elements("UploadId"), std::slice::from_ref(&id));

    let parts: Vec<(usize, &str)> = etags.iter().map(|(number, etag)| (*number, etag.as_str())).collect();
    let done = complete(&world, &id, &parts).await.ok();
    let md5s: Vec<u8> = data.iter().flat_map(|data| hex::decode(md5_hex(data)).unwrap()).collect();
    let etag = format!("\"{}-3\"", md5_hex(&md5s));
    assert_eq!(done.element("ETag").replace("&quot;", "\""), etag);

    let whole = data.concat();
    let got = world.get("/bkt/big").await.ok();
    assert!(got.body == whole);
    assert_eq!(
        (got.header("etag"), got.header("x-amz-meta-m"), got.header("content-type")),
        (etag.as_str(), "1", "t/u")
    );
    let crc = base64(&Algorithm::Crc64Nvme.of(&whole));
    let head = world.call("HEAD", "/bkt/big", &[("x-amz-checksum-mode", "ENABLED")], b"").await.ok();
    assert_eq!(
        (head.header("x-amz-checksum-crc64nvme"), head.header("x-amz-checksum-type")),
        (crc.as_str(), "FULL_OBJECT")
    );

    let (at, end) = (MIB5 - 10, 2 * MIB5 + 50);
    let range = world.call("GET", "/bkt/big", &[("range", &format!("bytes={at}-{end}"))], b"").await.ok();
    assert!(range.body == whole[at..=end]);
    let third = world.get("/bkt/big?partNumber=10000").await;
    assert_eq!((third.status.as_u16(), third.header("x-amz-mp-parts-count")), (206, "3"));
    assert!(third.body == data[2]);
    world.get("/bkt/big?partNumber=2").await.is(400, "InvalidPart");
    world.call("GET", "/bkt/big?partNumber=1", &[("range", "bytes=0-1")], b"").await.is(400, "InvalidRequest");
    let attributes = ("x-amz-object-attributes", "ObjectParts");
    assert_eq!(world.call("GET", "/bkt/big?attributes", &[attributes], b"").await.ok().element("PartsCount"), "3");

    // Repeated, it answers the same; aborted, it is gone.
    let again = complete(&world, &id, &parts).await.ok();
    assert_eq!(again.element("ETag"), done.element("ETag"));
    world.delete(&format!("/bkt/big?uploadId={id}")).await.is(404, "NoSuchUpload");
    assert!(world.get("/bkt?uploads").await.ok().elements("UploadId").is_empty());
    assert_eq!(world.memory.rows(b'p') + world.memory.rows(b'u'), 0);
    world.delete("/bkt/big").await.ok();
    complete(&world, &id, &parts).await.is(404, "NoSuchUpload");
}

#[tokio::test]
async fn a_wrong_list_of_parts_is_refused_and_the_upload_goes_on() {
    let world = World::with_bucket().await;
    let id = create(&world, &[]).await;
    let (small, big) = (pattern(1000), pattern(MIB5));
    let (one, two) = (part(&world, &id, 1, &small).await, part(&world, &id, 2, &big).await);
    let cases: [(&[(usize, &str)], &str); 6] = [
        (&[(2, &two), (1, &one)], "InvalidPartOrder"),
        (&[(1, &one), (2, &two)], "EntityTooSmall"),
        (&[(1, &two)], "InvalidPart"),
        (&[(1, &one), (3, &two)], "InvalidPart"),
        (&[], "MalformedXML"),
        (&[(0, &one)], "InvalidArgument"),
    ];
    for (parts, code) in cases {
        complete(&world, &id, parts).await.is(400, code);
    }
    world.call("POST", &format!("/bkt/big?uploadId={id}"), &[], b"<broken").await.is(400, "MalformedXML");
    let target = format!("/bkt/big?uploadId={id}");
    let list = document(&[(1, &one)]);
    world.call("POST", &target, &[("x-amz-mp-object-size", "7")], &list).await.is(400, "InvalidRequest");
    world.call("POST", &target, &[("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")], &list).await.is(400, "BadDigest");
    let one = part(&world, &id, 1, &big).await;
    complete(&world, &id, &[(1, one.trim_matches('"')), (2, &two)]).await.ok();
    assert_eq!(world.get("/bkt/big").await.ok().body.len(), 2 * MIB5);
    for number in ["0", "10001", "x", "-1", ""] {
        world.put(&format!("/bkt/big?partNumber={number}&uploadId={id}"), b"x").await.is(400, "InvalidArgument");
    }
    world.put(&format!("/bkt/big?partNumber=1&uploadId={id}"), b"x").await.is(404, "NoSuchUpload");
    world.put("/bkt/big?partNumber=1&uploadId=nonsense", b"x").await.is(404, "NoSuchUpload");
}

#[tokio::test]
async fn checksums_of_parts_make_that_of_the_object() {
    let world = World::with_bucket().await;
    let (a, b) = (pattern(MIB5), pattern(77));
    for algorithm in Algorithm::ALL {
        for kind in ["COMPOSITE", "FULL_OBJECT"] {
            let head = [("x-amz-checksum-algorithm", algorithm.name()), ("x-amz-checksum-type", kind)];
            let possible = if kind == "COMPOSITE" { algorithm != Algorithm::Crc64Nvme } else { algorithm.combines() };
            let created = world.call("POST", "/bkt/big?uploads", &head, b"").await;
            if !possible {
                created.is(400, "InvalidRequest");
                continue;
            }
            let id = created.ok().element("UploadId");
            let mut list = String::new();
            for (number, data) in [(1, &a), (2, &b)] {
                let value = base64(&algorithm.of(data));
                let target = format!("/bkt/big?partNumber={number}&uploadId={id}");
                let reply = world.call("PUT", &target, &[(algorithm.header(), &value)], data).await.ok();
                assert_eq!(reply.header(algorithm.header()), value);
                let element = algorithm.element();
                list += &format!(
                    "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag><{element}>{value}</{element}></Part>",
                    reply.header("etag")
                );
            }
            let other = Algorithm::ALL.into_iter().find(|other| *other != algorithm).unwrap();
            let target = format!("/bkt/big?partNumber=3&uploadId={id}");
            world
                .call("PUT", &target, &[(other.header(), &base64(&other.of(b"x")))], b"x")
                .await
                .is(400, "InvalidRequest");
            let expected = if kind == "COMPOSITE" {
                format!("{}-2", base64(&algorithm.of(&[algorithm.of(&a), algorithm.of(&b)].concat())))
            } else {
                base64(&algorithm.of(&[a.clone(), b.clone()].concat()))
            };
            let document = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
            let target = format!("/bkt/big?uploadId={id}");
            let wrong = document.replace(&base64(&algorithm.of(&b)), &base64(&algorithm.of(b"x")));
            world.call("POST", &target, &[], wrong.as_bytes()).await.is(400, "InvalidPart");
            let whole = [(algorithm.header(), expected.as_str()), ("x-amz-checksum-type", kind)];
            let done = world.call("POST", &target, &whole, document.as_bytes()).await.ok();
            assert_eq!(
                (done.element(algorithm.element()), done.element("ChecksumType")),
                (expected.clone(), kind.to_owned())
            );
            let got = world.call("HEAD", "/bkt/big", &[("x-amz-checksum-mode", "ENABLED")], b"").await.ok();
            assert_eq!((got.header(algorithm.header()), got.header("x-amz-checksum-type")), (expected.as_str(), kind));
        }
    }
}

#[tokio::test]
async fn parts_are_copied_from_objects() {
    let world = World::with_bucket().await;
    let data = pattern(MIB5 + 1000);
    world.put("/bkt/source", &data).await.ok();
    let id = create(&world, &[]).await;
    let source = ("x-amz-copy-source", "/bkt/source");
    let copy = async |number: usize, range: &str| {
        let target = format!("/bkt/big?partNumber={number}&uploadId={id}");
        world.call("PUT", &target, &[source, ("x-amz-copy-source-range", range)], b"").await
    };
    let one = copy(1, &format!("bytes=0-{}", MIB5 - 1)).await.ok().element("ETag");
    let two = copy(2, &format!("bytes={MIB5}-{}", data.len() - 1)).await.ok().element("ETag");
    copy(3, "bytes=0-99999999").await.is(400, "InvalidArgument");
    copy(3, "bytes=5-").await.is(400, "InvalidArgument");
    complete(&world, &id, &[(1, &one), (2, &two)]).await.ok();
    assert!(world.get("/bkt/big").await.ok().body == data);
}

#[tokio::test]
async fn completing_obeys_conditions_and_races_have_one_winner() {
    let world = Arc::new(World::with_bucket().await);
    world.put("/bkt/big", b"there").await.ok();
    let id = create(&world, &[]).await;
    let etag = part(&world, &id, 1, &pattern(100)).await;
    let target = format!("/bkt/big?uploadId={id}");
    let list = document(&[(1, &etag)]);
    world.call("POST", &target, &[("if-none-match", "*")], &list).await.is(412, "PreconditionFailed");
    world.call("POST", &target, &[("if-match", "\"x\"")], &list).await.is(412, "PreconditionFailed");
    let tasks: Vec<_> = (0..8)
        .map(|i| {
            let (world, id, etag) = (world.clone(), id.clone(), etag.clone());
            tokio::spawn(async move {
                if i % 4 == 3 {
                    // A late part either gets in before or is told that the upload is over or closing.
                    let status =
                        world.put(&format!("/bkt/big?partNumber=2&uploadId={id}"), &pattern(20_000)).await.status;
                    assert!([200, 404, 503].contains(&status.as_u16()), "{status}");
                } else {
                    complete(&world, &id, &[(1, &etag)]).await.ok();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(world.get("/bkt/big").await.ok().body, pattern(100));
    assert_eq!(world.memory.rows(b'p') + world.memory.rows(b'u'), 0, "no part is left behind");
}

/// A completion that has frozen its upload and read its parts; its commit is held.
async fn completion_before_its_commit(world: &Arc<World>, id: &str, etag: &str) -> tokio::task::JoinHandle<Reply> {
    let begun = world.memory.batches.load(Ordering::SeqCst);
    world.memory.hold_batches.store(true, Ordering::SeqCst);
    let (inner, id, etag) = (world.clone(), id.to_owned(), etag.to_owned());
    let completion = tokio::spawn(async move { complete(&inner, &id, &[(1, &etag)]).await });
    comes_to(&world.memory.batches, begun + 1).await;
    world.memory.release.notify_one();
    comes_to(&world.memory.batches, begun + 2).await;
    world.memory.hold_batches.store(false, Ordering::SeqCst);
    completion
}

async fn comes_to(count: &AtomicUsize, wanted: usize) {
    while count.load(Ordering::SeqCst) < wanted {
        tokio::task::yield_now().await;
    }
}

/// The answer to its commit is lost, and before it can look, something else takes the place of what it made. The client
/// must not hear that its upload was never completed.
#[tokio::test(start_paused = true)]
async fn a_completion_that_perhaps_happened_does_not_deny_its_upload() {
    let world = Arc::new(World::with_bucket().await);
    let id = create(&world, &[]).await;
    let etag = part(&world, &id, 1, &pattern(100)).await;
    let completion = completion_before_its_commit(&world, &id, &etag).await;
    let memory = &world.memory;
    let set = |to: bool| [&memory.hold_answers, &memory.lose_answers].map(|flag| flag.store(to, Ordering::SeqCst));
    set(true);
    memory.release.notify_one();
    comes_to(&memory.answers_held, 1).await;
    set(false);
    world.put("/bkt/big", b"other").await.ok();
    memory.answer.notify_one();
    assert_eq!(completion.await.unwrap().element("Code"), "SlowDown");
    complete(&world, &id, &[(1, &etag)]).await.is(404, "NoSuchUpload");
    assert_eq!(world.get("/bkt/big").await.ok().body, "other");
}

#[tokio::test(start_paused = true)]
async fn no_part_comes_between_a_completion_and_the_parts_that_it_has_read() {
    let world = Arc::new(World::with_bucket().await);
    let id = create(&world, &[]).await;
    let etag = part(&world, &id, 1, &pattern(20_000)).await;
    let completion = completion_before_its_commit(&world, &id, &etag).await;
    let begun = world.memory.batches.load(Ordering::SeqCst);
    let late = {
        let (world, target) = (world.clone(), format!("/bkt/big?partNumber=1&uploadId={id}"));
        tokio::spawn(async move { world.put(&target, &pattern(30_000)).await })
    };
    // Its intent, and three times itself.
    while world.memory.batches.load(Ordering::SeqCst) < begun + 4 && !late.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.memory.release.notify_one();
    assert!(completion.await.unwrap().ok().text().contains("CompleteMultipartUploadResult"));
    late.await.unwrap().is(404, "NoSuchUpload");
    assert!(world.get("/bkt/big").await.ok().body == pattern(20_000));
    world.clock.advance_ms(600_000);
    round(&world.gateway).await.unwrap();
    assert!(world.get("/bkt/big").await.ok().body == pattern(20_000));
    assert_eq!((world.memory.stripes(), world.memory.rows(b'g')), (1, 0), "nothing is left behind");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_died_while_it_completed_an_upload_does_not_close_it_to_parts() {
    let world = Arc::new(World::with_bucket().await);
    let id = create(&world, &[]).await;
    let etag = part(&world, &id, 1, &pattern(100)).await;
    let completion = completion_before_its_commit(&world, &id, &etag).await;
    let etag = part(&world, &id, 1, &pattern(200)).await;
    // It was only slow, and lists what is not there any more.
    world.memory.release.notify_one();
    assert_eq!(element(&completion.await.unwrap().text(), "Code").as_deref(), Some("InvalidPart"));
    complete(&world, &id, &[(1, &etag)]).await.ok();
    assert!(world.get("/bkt/big").await.ok().body == pattern(200));
}

/// Trap 4: a slow completion trickles white space and tells its error inside the 200.
/// The second looks at the parts when the first, which froze the upload for both, has just made them an object.
#[tokio::test]
async fn a_repeated_completion_answers_as_the_first_whenever_that_commits() {
    let world = Arc::new(World::with_bucket().await);
    let id = create(&world, &[]).await;
    let etag = part(&world, &id, 1, &pattern(100)).await;
    world.memory.hold_scans.store(true, Ordering::SeqCst);
    let mut completions = Vec::new();
    for held in 1..=2 {
        let (world, id, etag) = (world.clone(), id.clone(), etag.clone());
        let memory = world.memory.clone();
        completions.push(tokio::spawn(async move { complete(&world, &id, &[(1, &etag)]).await }));
        while memory.scans_held.load(Ordering::SeqCst) < held {
            tokio::task::yield_now().await;
        }
    }
    world.memory.release.notify_one();
    let (second, first) = (completions.pop().unwrap(), completions.pop().unwrap());
    let first = first.await.unwrap().ok();
    world.memory.hold_scans.store(false, Ordering::SeqCst);
    world.memory.release.notify_one();
    assert_eq!(second.await.unwrap().ok().element("ETag"), first.element("ETag"));
    assert!(world.get("/bkt/big").await.ok().body == pattern(100));
}

#[tokio::test(start_paused = true)]
async fn a_slow_completion_keeps_the_connection_alive() {
    let world = World::with_bucket().await;
    let id = create(&world, &[]).await;
    let etag = part(&world, &id, 1, &pattern(100)).await;
    for (etag, fails) in [("\"x\"", true), (etag.as_str(), false)] {
        world.memory.hold_batches.store(true, Ordering::SeqCst);
        let (target, document) = (format!("/bkt/big?uploadId={id}"), document(&[(1, etag)]));
        let headers = world.signed("POST", &target, &[], &document);
        let response = world.response("POST", &target, headers, document).await;
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut text = String::new();
        while let Some(frame) = body.frame().await {
            text += std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap();
            if text.ends_with("  ") {
                world.memory.hold_batches.store(false, Ordering::SeqCst);
                world.memory.release.notify_waiters();
            }
        }
        assert!(text.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n  "), "{text}");
        assert_eq!(element(&text, "Code"), fails.then(|| "InvalidPart".to_owned()));
        assert_eq!(text.contains("CompleteMultipartUploadResult"), !fails);
    }
    assert_eq!(world.get("/bkt/big").await.ok().body.len(), 100);
}

#[tokio::test]
async fn uploads_are_listed_by_key_and_age() {
    let world = World::with_bucket().await;
    let mut ids = Vec::new();
    for key in ["a", "a", "d/x", "d/y", "z"] {
        world.clock.advance_ms(5);
        ids.push(world.call("POST", &format!("/bkt/{key}?uploads"), &[], b"").await.ok().element("UploadId"));
    }
    let all = world.get("/bkt?uploads").await.ok();
    assert_eq!(all.elements("UploadId"), ids);
    assert_eq!(all.elements("Key"), ["a", "a", "d/x", "d/y", "z"]);
    let rolled = world.get("/bkt?uploads&delimiter=/").await.ok();
    assert_eq!(
        (rolled.elements("Key"), rolled.elements("Prefix")[1..].to_vec()),
        (vec!["a".into(), "a".into(), "z".into()], vec!["d/".to_owned()])
    );
    let first = world.get("/bkt?uploads&max-uploads=1").await.ok();
    assert_eq!((first.element("NextKeyMarker"), first.element("NextUploadIdMarker")), ("a".into(), ids[0].clone()));
    let next = world.get(&format!("/bkt?uploads&max-uploads=1&key-marker=a&upload-id-marker={}", ids[0])).await.ok();
    assert_eq!(next.elements("UploadId"), [ids[1].clone()]);
    assert_eq!(world.get("/bkt?uploads&key-marker=a").await.ok().elements("Key"), ["d/x", "d/y", "z"]);
    assert_eq!(world.get("/bkt?uploads&prefix=d/").await.ok().elements("Key"), ["d/x", "d/y"]);
}
