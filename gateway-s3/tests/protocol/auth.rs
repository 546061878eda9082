//! Signatures: the published examples of the S3 guide, and each way to be refused.

use http::HeaderMap;

use crate::support::{HOST, NOW_MS, World, headers, pattern};
use holdfast_gateway_s3::sigv4::canonical::sha256_hex;

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn guide(authorization: &str, pairs: &[(&str, &str)]) -> HeaderMap {
    let mut all = headers(pairs);
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,{authorization}");
    all.insert("authorization", authorization.parse().unwrap());
    all
}

/// "Examples: Signature Calculations in AWS Signature Version 4" of the S3 API reference. The bucket `examplebucket` does
/// not exist, so a good signature is answered with NoSuchBucket and a bad one with SignatureDoesNotMatch.
#[tokio::test]
async fn the_examples_of_the_guide_verify() {
    let world = World::new().await;
    let host = ("host", "examplebucket.s3.amazonaws.com");
    let date = ("x-amz-date", "20130524T000000Z");

    let get = guide(
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        &[host, date, ("range", "bytes=0-9"), ("x-amz-content-sha256", EMPTY)],
    );
    world.raw("GET", "/test.txt", get.clone(), "").await.is(404, "NoSuchBucket");
    world.raw("GET", "/test2.txt", get.clone(), "").await.is(403, "SignatureDoesNotMatch");
    let mut other_range = get;
    other_range.insert("range", "bytes=0-8".parse().unwrap());
    world.raw("GET", "/test.txt", other_range, "").await.is(403, "SignatureDoesNotMatch");

    let put = guide(
        "SignedHeaders=date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class,Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        &[
            host,
            date,
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ],
    );
    world.raw("PUT", "/test%24file.text", put, "Welcome to Amazon S3.").await.is(404, "NoSuchBucket");

    let lifecycle = guide(
        "SignedHeaders=host;x-amz-content-sha256;x-amz-date,Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        &[host, date, ("x-amz-content-sha256", EMPTY)],
    );
    world.raw("GET", "/?lifecycle", lifecycle, "").await.is(404, "NoSuchBucket");

    let list = guide(
        "SignedHeaders=host;x-amz-content-sha256;x-amz-date,Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        &[host, date, ("x-amz-content-sha256", EMPTY)],
    );
    world.raw("GET", "/?max-keys=2&prefix=J", list, "").await.is(404, "NoSuchBucket");

    let presigned = "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
    world.raw("GET", presigned, headers(&[host]), "").await.is(404, "NoSuchBucket");
    world.raw("PUT", presigned, headers(&[host]), "").await.is(403, "SignatureDoesNotMatch");
}

/// The chunked upload of the guide, whole: seed signature, three chunks.
#[tokio::test]
async fn the_chunked_example_of_the_guide_is_stored_and_a_changed_one_is_not() {
    let world = World::new().await;
    world.put("/examplebucket", b"").await.ok();
    let head = guide(
        "SignedHeaders=content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class,Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        &[
            ("host", "s3.amazonaws.com"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("content-length", "66824"),
        ],
    );
    // The signature is right; the storage class of the example is one that this gateway does not offer.
    world.raw("PUT", "/examplebucket/chunkObject.txt", head, vec![]).await.is(400, "InvalidStorageClass");

    let data = pattern(66_560);
    for (change, code) in [(None, ""), (Some(500), "SignatureDoesNotMatch"), (Some(66_600), "SignatureDoesNotMatch")] {
        let (head, mut body) = signed_chunks(&world, "/examplebucket/k", &data, None);
        if let Some(at) = change {
            body[at] ^= 1;
        }
        let reply = world.raw("PUT", "/examplebucket/k", head, body).await;
        if change.is_some() {
            reply.is(403, code);
            world.get("/examplebucket/k").await.is(404, "NoSuchKey");
        } else {
            reply.ok();
            let stored = world.get("/examplebucket/k").await.ok();
            assert_eq!(stored.body, data);
            assert_eq!(stored.header("content-encoding"), "", "aws-chunked is not what the object is");
            world.delete("/examplebucket/k").await.ok();
        }
    }
}

/// Frames data in signed chunks, with a signed trailer if one is given.
pub fn signed_chunks(world: &World, target: &str, data: &[u8], trailer: Option<(&str, &str)>) -> (HeaderMap, Vec<u8>) {
    let literal = match trailer {
        None => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        Some(_) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    };
    let mut pairs = vec![("host", HOST.to_owned()), ("content-encoding", "aws-chunked".to_owned())];
    pairs.push(("x-amz-decoded-content-length", data.len().to_string()));
    if let Some((name, _)) = trailer {
        pairs.push(("x-amz-trailer", name.to_owned()));
    }
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let signer = world.signer();
    let head = signer.sign_literal("PUT", target, headers(&pairs), literal);
    let mut previous = head.signature;
    let mut body = Vec::new();
    let chunks = data.chunks(40_000).chain([&[][..]]);
    for chunk in chunks {
        let to_sign = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{previous}\n{EMPTY}\n{}",
            head.date,
            head.scope,
            sha256_hex(chunk)
        );
        previous = signer.key().sign(to_sign.as_bytes());
        body.extend(format!("{:x};chunk-signature={previous}\r\n", chunk.len()).as_bytes());
        body.extend(chunk);
        if !chunk.is_empty() {
            body.extend(b"\r\n");
        }
    }
    if let Some((name, value)) = trailer {
        let text = format!("{name}:{value}\n");
        let to_sign = format!(
            "AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{previous}\n{}",
            head.date,
            head.scope,
            sha256_hex(text.as_bytes())
        );
        body.extend(
            format!("{name}:{value}\r\nx-amz-trailer-signature:{}\r\n", signer.key().sign(to_sign.as_bytes()))
                .as_bytes(),
        );
    }
    body.extend(b"\r\n");
    (head.headers, body)
}

#[tokio::test]
async fn each_wrong_signature_has_its_own_code() {
    let world = World::with_bucket().await;
    let target = "/bkt/k";
    let sign = |signer: holdfast_gateway_s3::testing::signer::Signer| {
        signer.sign("GET", target, headers(&[("host", HOST)]), b"").headers
    };
    let now = world.signer();

    world.raw("GET", target, headers(&[("host", HOST)]), "").await.is(403, "AccessDenied");

    let mut unknown = now.clone();
    unknown.access_key = "NOBODY".into();
    world.raw("GET", target, sign(unknown), "").await.is(403, "InvalidAccessKeyId");

    let mut wrong = now.clone();
    wrong.secret = "wrong".into();
    let reply = world.raw("GET", target, sign(wrong), "").await.is(403, "SignatureDoesNotMatch");
    assert!(reply.element("CanonicalRequest").starts_with("GET\n/bkt/k\n"));

    for skew in [-16 * 60_000i64, 16 * 60_000] {
        let mut skewed = now.clone();
        skewed.now_ms = skewed.now_ms.saturating_add_signed(skew);
        world.raw("GET", target, sign(skewed), "").await.is(403, "RequestTimeTooSkewed");
    }
    let mut late = now.clone();
    late.now_ms -= 14 * 60_000;
    // 14 minutes before midnight is another day: the scope's date follows the request's.
    world.raw("GET", target, sign(late), "").await.is(404, "NoSuchKey");

    let mut elsewhere = now.clone();
    elsewhere.region = "eu-west-1".into();
    let reply = world.raw("GET", target, sign(elsewhere), "").await.is(400, "AuthorizationHeaderMalformed");
    assert_eq!(reply.element("Region"), "us-east-1");

    let mut added = sign(now.clone());
    added.insert("x-amz-meta-added", "1".parse().unwrap());
    let reply = world.raw("GET", target, added, "").await.is(403, "AccessDenied");
    assert_eq!(reply.element("HeadersNotSigned"), "x-amz-meta-added");

    let mut no_hash = sign(now.clone());
    no_hash.remove("x-amz-content-sha256");
    world.raw("GET", target, no_hash, "").await.is(400, "InvalidRequest");
    let mut no_date = sign(now.clone());
    no_date.remove("x-amz-date");
    world.raw("GET", target, no_date, "").await.is(403, "AccessDenied");

    for (authorization, status, code) in [
        ("AWS AKIAIOSFODNN7EXAMPLE:frJIUN8DYpKDtOLCwo//yllqDzg=", 400, "InvalidRequest"),
        ("Basic abc", 400, "InvalidArgument"),
        ("AWS4-HMAC-SHA256", 400, "AuthorizationHeaderMalformed"),
        ("AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=y", 400, "AuthorizationHeaderMalformed"),
        (
            "AWS4-HMAC-SHA256 Credential=a/20130524/us-east-1/s3/aws4_request, Signature=y",
            400,
            "AuthorizationHeaderMalformed",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/20130524/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=y",
            400,
            "AuthorizationHeaderMalformed",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/20130525/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=y",
            400,
            "AuthorizationHeaderMalformed",
        ),
    ] {
        let mut head = sign(now.clone());
        head.insert("authorization", authorization.parse().unwrap());
        world.raw("GET", target, head, "").await.is(status, code);
    }
    let literal = now.sign_literal("GET", target, headers(&[("host", HOST)]), "not-a-hash").headers;
    world.raw("GET", target, literal, "").await.is(400, "InvalidArgument");
}

#[tokio::test]
async fn presigned_urls_work_until_they_expire() {
    let world = World::with_bucket().await;
    world.put("/bkt/a%20b%2Bc", b"data").await.ok();
    let host = || headers(&[("host", HOST)]);
    let signer = world.signer();
    let url = signer.presign("GET", "/bkt/a%20b%2Bc?response-content-type=text%2Fplain", HOST, 3600);
    let reply = world.raw("GET", &url, host(), "").await.ok();
    assert_eq!((reply.text().as_str(), reply.header("content-type")), ("data", "text/plain"));
    world.raw("GET", &url.replace("plain", "html"), host(), "").await.is(403, "SignatureDoesNotMatch");

    let mut put = host();
    put.insert("content-length", "3".parse().unwrap());
    let put_url = signer.presign("PUT", "/bkt/new", HOST, 60);
    world.raw("PUT", &put_url, put, "new").await.ok();
    assert_eq!(world.get("/bkt/new").await.text(), "new");

    for (expires, code) in [(604_801, "AuthorizationQueryParametersError"), (-1, "AuthorizationQueryParametersError")] {
        world.raw("GET", &signer.presign("GET", "/bkt/new", HOST, expires), host(), "").await.is(400, code);
    }
    world.raw("GET", &signer.presign("GET", "/bkt/new", HOST, 604_800), host(), "").await.ok();
    let missing = url.replace("X-Amz-Expires=3600&", "");
    world.raw("GET", &missing, host(), "").await.is(400, "AuthorizationQueryParametersError");
    let mut future = signer.clone();
    future.now_ms += 20 * 60_000;
    world.raw("GET", &future.presign("GET", "/bkt/new", HOST, 60), host(), "").await.is(403, "AccessDenied");
    world.clock.advance_ms(3_601_000);
    world.raw("GET", &url, host(), "").await.is(403, "AccessDenied");
    assert_eq!(NOW_MS % 1000, 0);
}

#[tokio::test]
async fn headers_that_a_signer_moved_into_the_query_are_obeyed() {
    let world = World::with_bucket().await;
    let put = async |query: &str, extra: &[(&str, &str)]| {
        let url = world.signer().presign("PUT", &format!("/bkt/k?{query}"), HOST, 60);
        let mut head = headers(&[("host", HOST), ("content-length", "4")]);
        head.extend(headers(extra));
        world.raw("PUT", &url, head, "data").await
    };
    // Checksums are of a body that the signer did not know: S3 ignores them there.
    let query = "x-amz-meta-color=sky%20blue&X-Amz-Meta-Size=4&x-amz-storage-class=STANDARD\
                 &x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-sdk-checksum-algorithm=CRC32&x-id=PutObject";
    put(query, &[]).await.ok();
    let there = world.get("/bkt/k").await.ok();
    assert_eq!((there.header("x-amz-meta-color"), there.header("x-amz-meta-size")), ("sky blue", "4"));
    assert_eq!(there.text(), "data");

    put("x-amz-server-side-encryption=AES256", &[]).await.is(501, "NotImplemented");
    put("x-amz-acl=public-read", &[]).await.is(400, "AccessControlListNotSupported");
    put("x-amz-expected-bucket-owner=someone", &[]).await.is(403, "AccessDenied");
    put("x-amz-meta-a=1&x-amz-meta-a=2", &[]).await.is(400, "InvalidArgument");
    put("x-amz-meta-a=1%0a2", &[]).await.is(400, "InvalidArgument");
    // Not in the query of a request that signs by its headers.
    world.put("/bkt/plain?x-amz-meta-color=blue", b"data").await.ok();
    assert_eq!(world.get("/bkt/plain").await.ok().header("x-amz-meta-color"), "");
}

/// Trap 8: the path is signed and routed as it stands in the request line.
#[tokio::test]
async fn odd_paths_are_signed_and_stored_as_they_are() {
    let world = World::with_bucket().await;
    let keys = [
        ("/bkt/a//bkt", "a//bkt"),
        ("/bkt//lead", "/lead"),
        ("/bkt/x/../y", "x/../y"),
        ("/bkt/./z", "./z"),
        ("/bkt/slash%2Finside", "slash/inside"),
        ("/bkt/plus+sign", "plus+sign"),
        ("/bkt/plus%2Bsign2", "plus+sign2"),
        ("/bkt/space%20here", "space here"),
        ("/bkt/percent%2525", "percent%25"),
        ("/bkt/trail/", "trail/"),
        ("/bkt/%E1%88%B4", "\u{1234}"),
        ("/bkt/paren(s)!*'", "paren(s)!*'"),
    ];
    for (path, key) in keys {
        world.put(path, key.as_bytes()).await.ok();
    }
    for (path, key) in keys {
        assert_eq!(world.get(path).await.ok().text(), key);
    }
    let listed = world.get("/bkt?list-type=2").await.ok().elements("Key");
    let mut wanted: Vec<String> = keys.iter().map(|(_, key)| (*key).to_owned()).collect();
    wanted.sort();
    assert_eq!(listed.iter().map(|key| key.replace("&apos;", "'")).collect::<Vec<_>>(), wanted);
}

#[tokio::test]
async fn a_bucket_is_found_by_virtual_host_too() {
    let world = World::with_bucket().await;
    world.put("/bkt/k", b"1").await.ok();
    for host in ["bkt.s3.example.com", "bkt.s3.example.com:8080", "BKT.S3.EXAMPLE.COM"] {
        assert_eq!(world.call("GET", "/k", &[("host", host)], b"").await.ok().text(), "1");
    }
    assert_eq!(world.call("GET", "/bkt/k", &[("host", "s3.example.com")], b"").await.ok().text(), "1");
    assert_eq!(world.call("GET", "/", &[("host", "bkt.s3.example.com")], b"").await.ok().element("Name"), "bkt");
}
