//! Listings (trap 5) and buckets.

use std::sync::atomic::Ordering;

use crate::support::World;

async fn with_keys(keys: &[&str]) -> World {
    let world = World::with_bucket().await;
    for key in keys {
        let path = holdfast_gateway_s3::sigv4::canonical::encode(key.as_bytes(), true);
        world.put(&format!("/bkt/{path}"), b"x").await.ok();
    }
    world
}

#[tokio::test]
async fn keys_come_in_byte_order_and_prefixes_are_rolled_up() {
    let world =
        with_keys(&["foo/bar", "foo/baz/x", "boo/bar", "boo/baz/x", "cquux/thud", "cquux/bla", "asdf", "Z", "é"]).await;
    let all = world.get("/bkt").await.ok();
    assert_eq!(
        all.elements("Key"),
        ["Z", "asdf", "boo/bar", "boo/baz/x", "cquux/bla", "cquux/thud", "foo/bar", "foo/baz/x", "é"]
    );
    let rolled = world.get("/bkt?delimiter=%2F").await.ok();
    assert_eq!(rolled.elements("Key"), ["Z", "asdf", "é"]);
    assert_eq!(rolled.elements("Prefix")[1..], ["boo/", "cquux/", "foo/"]);
    let under = world.get("/bkt?list-type=2&delimiter=/&prefix=boo/").await.ok();
    assert_eq!(under.elements("Key"), ["boo/bar"]);
    assert_eq!(under.elements("Prefix"), ["boo/", "boo/baz/"]);
    assert_eq!(under.element("KeyCount"), "2");
    let long = world.get("/bkt?delimiter=uu").await.ok();
    assert_eq!(long.elements("Prefix")[1..], ["cquu"]);
    assert!(world.get("/bkt?prefix=none").await.ok().elements("Key").is_empty());
}

/// Pages of every size give the same listing, in both versions of the API.
#[tokio::test]
async fn paging_neither_repeats_nor_skips() {
    let world = with_keys(&["a/1", "a/2", "a/3", "b", "c/1", "c/2", "d", "d/", "e\u{1}", "e\u{0}x", "f"]).await;
    for delimiter in ["", "%2F"] {
        let whole = world.get(&format!("/bkt?delimiter={delimiter}&list-type=2")).await.ok();
        let names =
            |reply: &crate::support::Reply| [reply.elements("Key"), reply.elements("Prefix")[1..].to_vec()].concat();
        let mut expected = names(&whole);
        expected.sort();
        for size in 1..6 {
            let (mut v1, mut v2) = (Vec::new(), Vec::new());
            let mut token = String::new();
            loop {
                let token_part = if token.is_empty() {
                    String::new()
                } else {
                    format!("&continuation-token={}", token.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"))
                };
                let page = world
                    .get(&format!("/bkt?list-type=2&max-keys={size}&delimiter={delimiter}{token_part}"))
                    .await
                    .ok();
                assert!(names(&page).len() <= size && page.element("KeyCount") == names(&page).len().to_string());
                v2.extend(names(&page));
                token = page.element("NextContinuationToken");
                assert_eq!(page.element("IsTruncated") == "true", !token.is_empty());
                if token.is_empty() {
                    break;
                }
            }
            let mut marker = String::new();
            loop {
                let page = world
                    .get(&format!("/bkt?encoding-type=url&max-keys={size}&delimiter={delimiter}&marker={marker}"))
                    .await
                    .ok();
                v1.extend(names(&page));
                if page.element("IsTruncated") != "true" {
                    assert!(!page.text().contains("NextMarker"));
                    break;
                }
                assert_eq!(
                    page.text().contains("NextMarker"),
                    !delimiter.is_empty(),
                    "NextMarker only with a delimiter"
                );
                marker =
                    if delimiter.is_empty() { page.elements("Key").pop().unwrap() } else { page.element("NextMarker") };
            }
            v2.sort();
            assert_eq!(v2, expected, "v2, pages of {size}");
            assert_eq!(v1.len(), expected.len(), "v1, pages of {size}");
        }
    }
}

#[tokio::test]
async fn a_prefix_with_many_keys_costs_one_jump() {
    let world = World::with_bucket().await;
    for i in 0..3000 {
        world.put(&format!("/bkt/dir{}/{i:04}", i / 1500), b"").await.ok();
    }
    world.memory.rows_scanned.store(0, Ordering::SeqCst);
    let reply = world.get("/bkt?list-type=2&delimiter=/").await.ok();
    assert_eq!(reply.elements("Prefix")[1..], ["dir0/", "dir1/"]);
    assert!(world.memory.rows_scanned.load(Ordering::SeqCst) < 300);
}

#[tokio::test]
async fn encoding_is_done_only_when_asked_and_everywhere() {
    let world = with_keys(&["asdf+b", "foo+1/bar", "quux ab/thud", "ctl\u{1}\n", "per%cent"]).await;
    let plain = world.get("/bkt?list-type=2&delimiter=/").await.ok();
    assert_eq!(plain.elements("Key"), ["asdf+b", "ctl&#x1;\n", "per%cent"]);
    let encoded = world.get("/bkt?list-type=2&delimiter=/&encoding-type=url").await.ok();
    assert_eq!(encoded.elements("Key"), ["asdf%2Bb", "ctl%01%0A", "per%25cent"]);
    assert_eq!(encoded.elements("Prefix")[1..], ["foo%2B1/", "quux%20ab/"]);
    assert_eq!(encoded.element("EncodingType"), "url");
    let v1 = world.get("/bkt?encoding-type=url&marker=a%20b&delimiter=%20&max-keys=1").await.ok();
    assert_eq!(
        (v1.element("Marker"), v1.element("Delimiter"), v1.element("NextMarker")),
        ("a%20b".into(), "%20".into(), "asdf%2Bb".into())
    );
    world.get("/bkt?encoding-type=base64").await.is(400, "InvalidArgument");
}

#[tokio::test]
async fn limits_of_a_page_are_checked() {
    let world = with_keys(&["a", "b"]).await;
    let none = world.get("/bkt?max-keys=0").await.ok();
    assert_eq!((none.element("IsTruncated"), none.elements("Key").len()), ("false".into(), 0));
    assert_eq!(world.get("/bkt?max-keys=99999").await.ok().element("MaxKeys"), "1000");
    world.get("/bkt?max-keys=-1").await.is(400, "InvalidArgument");
    world.get("/bkt?max-keys=blah").await.is(400, "InvalidArgument");
    world.get("/bkt?list-type=2&continuation-token=%21").await.is(400, "InvalidArgument");
    let empty_token = world.get("/bkt?list-type=2&continuation-token=").await.ok();
    assert_eq!(empty_token.elements("Key").len(), 2);
    assert_eq!(world.get("/bkt?list-type=2&start-after=a").await.ok().elements("Key"), ["b"]);
    assert!(!world.get("/bkt?list-type=2").await.ok().text().contains("<Owner>"));
    assert!(world.get("/bkt?list-type=2&fetch-owner=true").await.ok().text().contains("<Owner>"));
    let versions = world.get("/bkt?versions").await.ok();
    assert_eq!(versions.elements("VersionId"), ["null", "null"]);
    world.get("/none?list-type=2").await.is(404, "NoSuchBucket");
}

#[tokio::test]
async fn buckets_are_made_listed_and_deleted_when_empty() {
    let world = World::new().await;
    world.call("HEAD", "/abc", &[], b"").await;
    world.get("/abc").await.is(404, "NoSuchBucket");
    for name in ["abc", "bcd", "cde"] {
        assert_eq!(world.put(&format!("/{name}"), b"").await.ok().header("location"), format!("/{name}"));
    }
    world.put("/abc", b"").await.ok();
    assert_eq!(world.get("/").await.ok().elements("Name"), ["abc", "bcd", "cde"]);
    let page = world.get("/?max-buckets=2").await.ok();
    assert_eq!(page.elements("Name"), ["abc", "bcd"]);
    let token = page.element("ContinuationToken");
    assert_eq!(world.get(&format!("/?continuation-token={token}")).await.ok().elements("Name"), ["cde"]);
    assert_eq!(world.get("/?prefix=b").await.ok().elements("Name"), ["bcd"]);
    assert_eq!(world.call("HEAD", "/abc", &[], b"").await.ok().header("x-amz-bucket-region"), "us-east-1");

    world.put("/abc/k", b"1").await.ok();
    world.delete("/abc").await.is(409, "BucketNotEmpty");
    world.delete("/abc/k").await.ok();
    world.call("POST", "/abc/u?uploads", &[], b"").await.ok();
    assert_eq!(world.delete("/abc").await.status, 204);
    world.delete("/abc").await.is(404, "NoSuchBucket");
    world.put("/abc/k", b"1").await.is(404, "NoSuchBucket");
    world.put("/abc", b"").await.ok();
    assert!(world.get("/abc").await.ok().elements("Key").is_empty());
}

#[tokio::test]
async fn what_is_not_configured_is_answered_as_aws_does() {
    let world = World::with_bucket().await;
    for (sub, code) in [
        ("policy", "NoSuchBucketPolicy"),
        ("cors", "NoSuchCORSConfiguration"),
        ("lifecycle", "NoSuchLifecycleConfiguration"),
        ("tagging", "NoSuchTagSet"),
        ("encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("object-lock", "ObjectLockConfigurationNotFoundError"),
        ("publicAccessBlock", "NoSuchPublicAccessBlockConfiguration"),
        ("website", "NoSuchWebsiteConfiguration"),
        ("replication", "ReplicationConfigurationNotFoundError"),
    ] {
        world.get(&format!("/bkt?{sub}")).await.is(404, code);
        world.call("PUT", &format!("/bkt?{sub}"), &[], b"<x/>").await.is(501, "NotImplemented");
    }
    assert!(world.get("/bkt?versioning").await.ok().text().contains("<VersioningConfiguration"));
    assert!(world.get("/bkt?location").await.ok().text().ends_with("></LocationConstraint>"));
    assert_eq!(world.get("/bkt?acl").await.ok().element("Permission"), "FULL_CONTROL");
    world.get("/bkt?inventory").await.is(501, "NotImplemented");
    world.get("/none?versioning").await.is(404, "NoSuchBucket");
}
