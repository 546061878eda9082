//! CopyObject and UploadPartCopy: the bytes are read and written again; no blob belongs to two objects. A copy ends when its
//! client leaves: one that waited for its turn could otherwise replace, much later, what was written in the meantime.

use std::sync::Arc;

use axum::response::Response;
use tokio::sync::SemaphorePermit;

use crate::blob::{Download, receive};
use crate::checksum::{Algorithm, Claim, Expectations};
use crate::clock::iso_date;
use crate::conditional::{ReadConditions, Verdict, WriteCondition};
use crate::described;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::{Bucket, Gateway};
use crate::objects::{Loaded, load};
use crate::ops::delete::check_version;
use crate::ops::multipart::{keep_part, open_upload, part_number, upload_id};
use crate::ops::object::{Received, check_size, publish, segments};
use crate::range::{ByteRange, resolve_copy};
use crate::reply::{SlowReply, patient_while_awaited, quoted};
use crate::request::{Query, check_key_length, refuse_unsupported_headers};
use crate::row::{ChecksumRow, ObjectRow, route};
use crate::server::Call;
use crate::sigv4::canonical::decode;
use crate::xml::response::XmlWriter;

struct CopySource {
    bucket: String,
    key: String,
    version: Option<String>,
}

/// Reads `/bucket/key?versionId=…`, URL-encoded, with or without the first slash.
fn parse_source(text: &str) -> S3Result<CopySource> {
    let wrong = || {
        let message = "Copy Source must mention the source bucket and key: sourcebucket/sourcekey";
        S3Error::argument("x-amz-copy-source", text, message)
    };
    let (path, version) = match text.rsplit_once("?versionId=") {
        Some((path, version)) => (path, Some(version)),
        None => (text, None),
    };
    let path = String::from_utf8(decode(path, false)).map_err(|_| wrong())?;
    let (bucket, key) = path.strip_prefix('/').unwrap_or(&path).split_once('/').ok_or_else(wrong)?;
    if bucket.is_empty() || key.is_empty() {
        return Err(wrong());
    }
    check_key_length(key)?;
    let version = version.map(|version| Query::parse(&format!("v={version}"))).transpose()?;
    let version = version.and_then(|query| query.get("v").map(str::to_owned));
    Ok(CopySource { bucket: bucket.to_owned(), key: key.to_owned(), version })
}

/// Loads the source and holds the `x-amz-copy-source-if-*` conditions against it.
async fn open_source(call: &Call) -> S3Result<(CopySource, Arc<Bucket>, Loaded)> {
    let source = parse_source(call.header("x-amz-copy-source").unwrap_or_default())?;
    check_version(source.version.as_deref())?;
    let bucket = match call.gateway.bucket(&source.bucket).await {
        Err(error) if error.code == Code::NoSuchBucket => {
            return Err(error.detail("BucketName", source.bucket.clone()));
        }
        other => other?,
    };
    if call.header("x-amz-source-expected-bucket-owner").is_some_and(|owner| owner != bucket.row.owner) {
        return Err(Code::AccessDenied.into());
    }
    let loaded = match load(&call.gateway, bucket.table(), &source.key).await {
        Err(error) if error.table_gone => {
            call.gateway.forget_bucket(&source.bucket);
            return Err(match call.gateway.bucket_fresh(&source.bucket).await? {
                None => S3Error::from(Code::NoSuchBucket).detail("BucketName", source.bucket.clone()),
                Some(_) => Code::SlowDown.into(),
            });
        }
        other => other?,
    };
    let object = loaded.ok_or_else(|| S3Error::from(Code::NoSuchKey).detail("Key", source.key.clone()))?;
    let now_ms = call.gateway.clock.now_ms();
    match ReadConditions::of_copy_source(&call.headers).evaluate(&object.row.etag, object.row.modified_ms, now_ms)? {
        Verdict::Proceed => Ok((source, bucket, object)),
        // There is no 304 for a copy.
        Verdict::NotModified => Err(Code::PreconditionFailed.into()),
    }
}

fn result(name: &str, modified_ms: u64, etag: &str, checksum: Option<&ChecksumRow>) -> SlowReply {
    let mut document = XmlWriter::fragment();
    document.root(name);
    document.text("LastModified", &iso_date(modified_ms));
    document.text("ETag", &quoted(etag));
    if let Some(checksum) = checksum
        && let Some(algorithm) = checksum.known()
    {
        document.text(algorithm.element(), &checksum.shown());
        if name == "CopyObjectResult" {
            document.text("ChecksumType", checksum.kind());
        }
    }
    document.close(name);
    SlowReply { document, headers: http::HeaderMap::new() }
}

/// What is known of the bytes of a stored object: a copy must have the same.
fn known_of(row: &ObjectRow) -> Expectations {
    let mut md5 = [0; 16];
    let md5 = hex::decode_to_slice(&row.etag, &mut md5).is_ok().then_some(md5); // not of one made of parts
    let claim = row
        .checksum
        .as_ref()
        .filter(|checksum| checksum.composite_parts.is_none())
        .and_then(|checksum| Some(Claim { algorithm: checksum.known()?, value: Some(checksum.value.clone()) }));
    Expectations { md5, claim, ..Expectations::default() }
}

/// Waits until few enough blobs are being copied. What makes no blob does not wait behind those that do.
async fn slot(gateway: &Gateway, bytes: u64, inline_max: u64) -> S3Result<Option<SemaphorePermit<'_>>> {
    if bytes <= inline_max {
        return Ok(None);
    }
    Ok(Some(gateway.copies.acquire().await.map_err(|_| Code::ServiceUnavailable)?))
}

pub(crate) async fn object(call: &Arc<Call>) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let key = call.key()?.to_owned();
    refuse_unsupported_headers(&call.headers)?;
    let condition = WriteCondition::of(&call.headers)?;
    let replace = match call.header("x-amz-metadata-directive") {
        None | Some("COPY") => false,
        Some("REPLACE") => true,
        Some(other) => return Err(S3Error::argument("x-amz-metadata-directive", other, "Unknown metadata directive.")),
    };
    match call.header("x-amz-tagging-directive") {
        None | Some("COPY" | "REPLACE") => {}
        Some(other) => return Err(S3Error::argument("x-amz-tagging-directive", other, "Unknown tagging directive.")),
    }
    let asked = match call.header("x-amz-checksum-algorithm") {
        None => None,
        Some(name) => Some(Algorithm::parse(name).ok_or_else(|| {
            S3Error::new(Code::InvalidRequest, "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]")
        })?),
    };
    let (source, _source_bucket, mut object) = open_source(call).await?;
    if source.bucket == bucket.name && source.key == key && !replace && asked.is_none() {
        let message = "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let size = object.row.size;
    check_size(size).map_err(|_| {
        let message = format!(
            "The specified copy source is larger than the maximum allowable size for a copy source: {}",
            5u64 << 30
        );
        S3Error::new(Code::InvalidRequest, message)
    })?;
    let described = if replace { described::read(&call.headers)? } else { object.row.described.clone() };
    let kept = object.row.checksum.as_ref().and_then(ChecksumRow::known);
    let algorithm = asked.or(kept).unwrap_or(Algorithm::Crc64Nvme);
    let inner = call.clone();
    patient_while_awaited(call, async move {
        let gateway = &inner.gateway;
        let _slot = slot(gateway, size, gateway.config.sizes.inline_bytes_max).await?;
        let expected = Expectations { store: Some(algorithm), ..known_of(&object.row) };
        let mut download = Download::new(gateway, segments(&mut object, ByteRange { start: 0, length: size })?);
        let length = (size, gateway.config.sizes.inline_bytes_max);
        let received = receive(gateway, bucket.table(), &route(&key), &mut download, length, &expected).await;
        let (stored, digests) = received.map_err(|error| match error.code {
            Code::BadDigest => {
                tracing::error!(key = source.key, %error, "the source of a copy is not what was stored");
                Code::InternalError.into()
            }
            _ => error,
        })?;
        let received = Received { stored, digests, described, algorithm, condition: &condition };
        let row = publish(gateway, &bucket, &key, received).await?;
        Ok(result("CopyObjectResult", row.modified_ms, &row.etag, row.checksum.as_ref()))
    })
    .await
}

pub(crate) async fn part(call: &Arc<Call>) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let (id, number) = (upload_id(call)?, part_number(call)?);
    let key = call.key()?.to_owned();
    refuse_unsupported_headers(&call.headers)?;
    let upload = open_upload(&call.gateway, bucket.table(), &key, id).await?;
    let (_, _source_bucket, mut object) = open_source(call).await?;
    let range = match call.header("x-amz-copy-source-range") {
        Some(header) => resolve_copy(header, object.row.size)?,
        None => ByteRange { start: 0, length: object.row.size },
    };
    check_size(range.length)?;
    let inner = call.clone();
    patient_while_awaited(call, async move {
        let gateway = &inner.gateway;
        let _slot = slot(gateway, range.length, gateway.config.sizes.part_inline_bytes_max).await?;
        let algorithm = upload.algorithm()?;
        let expected = Expectations { store: Some(algorithm), ..Expectations::default() };
        let mut download = Download::new(gateway, segments(&mut object, range)?);
        let length = (range.length, gateway.config.sizes.part_inline_bytes_max);
        let received = receive(gateway, bucket.table(), &route(&key), &mut download, length, &expected).await?;
        let row = keep_part(gateway, bucket.table(), &key, &upload, number, received).await?;
        let checksum = upload.row.checksum_asked.then(|| ChecksumRow {
            algorithm: algorithm.code(),
            value: row.checksum.clone(),
            composite_parts: None,
        });
        Ok(result("CopyPartResult", row.modified_ms, &hex::encode(row.md5), checksum.as_ref()))
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sources_are_read_in_every_form() {
        let read = |text| parse_source(text).map(|s| (s.bucket, s.key, s.version)).map_err(|error| error.code);
        let is = |b: &str, k: &str, v: Option<&str>| Ok((b.to_owned(), k.to_owned(), v.map(str::to_owned)));
        assert_eq!(read("/b/a/c"), is("b", "a/c", None));
        assert_eq!(read("b/a%20%2B+?versionId=null"), is("b", "a ++", Some("null")));
        assert_eq!(read("b%2Fk%3FversionId%3Dx"), is("b", "k?versionId=x", None));
        assert_eq!(read("/b//k"), is("b", "/k", None));
        for wrong in ["", "b", "/b/", "//k"] {
            assert_eq!(read(wrong), Err(Code::InvalidArgument), "{wrong}");
        }
    }
}
