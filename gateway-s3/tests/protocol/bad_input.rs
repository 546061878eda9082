//! What a client can do wrong, one by one: status and code as AWS answers.

use crate::support::{HOST, World, headers};

#[tokio::test]
async fn each_bad_request_gets_its_code() {
    let world = World::with_bucket().await;
    world.put("/bkt/k", b"0123456789").await.ok();
    world.put("/empty", b"").await.ok();
    let long_key = format!("/bkt/{}", "k".repeat(1025));
    let long_meta = "m".repeat(2100);
    let many = format!("<Delete>{}</Delete>", "<Object><Key>k</Key></Object>".repeat(1001));
    let many_md5 = {
        use base64::Engine as _;
        use md5::Digest as _;
        base64::engine::general_purpose::STANDARD.encode(md5::Md5::digest(many.as_bytes()))
    };
    type Case<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, &'a [u8], u16, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("PUT", "/AB", vec![], b"", 400, "InvalidBucketName"),
        ("PUT", "/ab", vec![], b"", 400, "InvalidBucketName"),
        ("PUT", "/a..b", vec![], b"", 400, "InvalidBucketName"),
        ("PUT", "/192.168.1.1", vec![], b"", 400, "InvalidBucketName"),
        ("PUT", "/newb", vec![], b"<broken", 400, "MalformedXML"),
        ("PUT", "/newb", vec![], b"<Other/>", 400, "MalformedXML"),
        (
            "PUT",
            "/newb",
            vec![],
            b"<CreateBucketConfiguration><LocationConstraint>mars-1</LocationConstraint></CreateBucketConfiguration>",
            400,
            "IllegalLocationConstraintException",
        ),
        ("PUT", &long_key, vec![], b"x", 400, "KeyTooLongError"),
        ("GET", "/bkt/%ff", vec![], b"", 400, "InvalidURI"),
        ("GET", "/none/k", vec![], b"", 404, "NoSuchBucket"),
        ("GET", "/bkt/none", vec![], b"", 404, "NoSuchKey"),
        ("PUT", "/none/k", vec![], b"x", 404, "NoSuchBucket"),
        ("DELETE", "/none/k", vec![], b"", 404, "NoSuchBucket"),
        ("GET", "/bkt/k", vec![("range", "bytes=10-")], b"", 416, "InvalidRange"),
        ("PUT", "/bkt/x", vec![("x-amz-meta-a", &long_meta)], b"x", 400, "MetadataTooLarge"),
        ("PUT", "/bkt/x", vec![("content-md5", "rubbish")], b"x", 400, "InvalidDigest"),
        ("PUT", "/bkt/x", vec![("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")], b"x", 400, "BadDigest"),
        ("PUT", "/bkt/x", vec![("x-amz-checksum-crc32", "AAAAAA==")], b"x", 400, "BadDigest"),
        ("PUT", "/bkt/x", vec![("x-amz-checksum-crc32", "AAAA")], b"x", 400, "InvalidRequest"),
        (
            "PUT",
            "/bkt/x",
            vec![("x-amz-checksum-crc32", "AAAAAA=="), ("x-amz-checksum-crc32c", "AAAAAA==")],
            b"x",
            400,
            "InvalidRequest",
        ),
        ("PUT", "/bkt/x", vec![("x-amz-sdk-checksum-algorithm", "CRC32")], b"x", 400, "InvalidRequest"),
        ("PUT", "/bkt/x", vec![("x-amz-sdk-checksum-algorithm", "CRC99")], b"x", 400, "InvalidRequest"),
        ("PUT", "/bkt/x", vec![("x-amz-trailer", "x-amz-checksum-crc32")], b"x", 400, "InvalidRequest"),
        ("PUT", "/bkt/x", vec![("x-amz-storage-class", "CHEAP")], b"x", 400, "InvalidStorageClass"),
        ("PUT", "/bkt/x", vec![("x-amz-server-side-encryption", "AES256")], b"x", 501, "NotImplemented"),
        (
            "PUT",
            "/bkt/x",
            vec![("x-amz-server-side-encryption-customer-algorithm", "AES256")],
            b"x",
            501,
            "NotImplemented",
        ),
        ("PUT", "/bkt/x", vec![("x-amz-tagging", "a=b")], b"x", 501, "NotImplemented"),
        ("PUT", "/bkt/x", vec![("x-amz-acl", "public-read")], b"x", 400, "AccessControlListNotSupported"),
        ("PUT", "/bkt/x", vec![("x-amz-acl", "nonsense")], b"x", 400, "InvalidArgument"),
        ("PUT", "/bkt/x", vec![("if-none-match", "\"a\"")], b"x", 501, "NotImplemented"),
        ("PUT", "/bkt/x", vec![("x-amz-expected-bucket-owner", "someone")], b"x", 403, "AccessDenied"),
        ("DELETE", "/empty", vec![("x-amz-expected-bucket-owner", "someone")], b"", 403, "AccessDenied"),
        ("POST", "/bkt?delete", vec![("content-md5", &many_md5)], many.as_bytes(), 400, "MalformedXML"),
        ("POST", "/bkt", vec![], b"", 501, "NotImplemented"),
        ("POST", "/bkt/k", vec![], b"", 405, "MethodNotAllowed"),
        ("PATCH", "/bkt/k", vec![], b"", 405, "MethodNotAllowed"),
        ("GET", "/bkt/k?torrent", vec![], b"", 501, "NotImplemented"),
        ("POST", "/bkt/k?select&select-type=2", vec![], b"", 501, "NotImplemented"),
        ("PUT", "/bkt/k?partNumber=1", vec![], b"", 400, "InvalidArgument"),
        ("GET", "/bkt/k?uploadId=nope", vec![], b"", 404, "NoSuchUpload"),
        ("POST", "/bkt/k?uploads", vec![("x-amz-checksum-algorithm", "MD5")], b"", 400, "InvalidRequest"),
        ("PUT", "/bkt/x", vec![("x-amz-copy-source", "/bkt/")], b"", 400, "InvalidArgument"),
    ];
    for (method, target, pairs, body, status, code) in cases {
        let reply = world.call(method, target, &pairs, body).await;
        assert_eq!(
            (reply.status.as_u16(), reply.element("Code").as_str()),
            (status, code),
            "{method} {target} {pairs:?}"
        );
    }
    assert_eq!(world.get("/bkt").await.ok().elements("Key"), ["k"], "nothing of it was stored");
}

#[tokio::test]
async fn lengths_are_demanded_and_checked() {
    let world = World::with_bucket().await;
    let head = |pairs: &[(&str, &str)], literal: &str| {
        let mut all = vec![("host", HOST)];
        all.extend(pairs.iter().filter(|(name, _)| *name != "content-length"));
        let mut head = world.signer().sign_literal("PUT", "/bkt/k", headers(&all), literal).headers;
        for (name, value) in pairs.iter().filter(|(name, _)| *name == "content-length") {
            head.insert(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        head
    };
    let hash = |body: &[u8]| holdfast_gateway_s3::sigv4::canonical::sha256_hex(body);
    world.raw("PUT", "/bkt/k", head(&[], &hash(b"abc")), "abc").await.is(411, "MissingContentLength");
    world
        .raw("PUT", "/bkt/k", head(&[], "STREAMING-UNSIGNED-PAYLOAD-TRAILER"), "0\r\n\r\n")
        .await
        .is(411, "MissingContentLength");
    for (length, status, code) in [
        ("4", 400, "IncompleteBody"),
        ("2", 400, "IncompleteBody"),
        ("x", 400, "InvalidArgument"),
        ("5368709121", 400, "EntityTooLarge"),
    ] {
        world.raw("PUT", "/bkt/k", head(&[("content-length", length)], &hash(b"abc")), "abc").await.is(status, code);
    }
    world
        .raw("PUT", "/bkt/k", head(&[("content-length", "3")], &hash(b"abd")), "abc")
        .await
        .is(400, "XAmzContentSHA256Mismatch");
    let lying = [("x-amz-decoded-content-length", "2")];
    world
        .raw("PUT", "/bkt/k", head(&lying, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"), "3\r\nabc\r\n0\r\n\r\n")
        .await
        .is(400, "IncompleteBody");
    let long = [("x-amz-decoded-content-length", "20000")];
    world
        .raw("PUT", "/bkt/k", head(&long, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"), "3\r\nabc\r\n0\r\n\r\n")
        .await
        .is(400, "IncompleteBody");
    world.get("/bkt/k").await.is(404, "NoSuchKey");
}

/// Trap 10: HEAD has no body, and says by its status alone what happened.
#[tokio::test]
async fn head_has_no_body_even_when_it_fails() {
    let world = World::with_bucket().await;
    for (target, status) in [("/bkt/none", 404), ("/none", 404), ("/none/k", 404)] {
        let reply = world.call("HEAD", target, &[], b"").await;
        assert_eq!((reply.status.as_u16(), reply.body.len()), (status, 0), "{target}");
        assert!(!reply.header("x-amz-request-id").is_empty());
    }
}
