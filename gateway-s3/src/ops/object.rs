//! PutObject, GetObject, HeadObject, and what else can be asked of one object.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode};

use crate::blob::{Download, Segment, Stored, abandon, receive};
use crate::body;
use crate::checksum::{Algorithm, Digests};
use crate::clock::http_date;
use crate::conditional::{ReadConditions, Verdict, WriteCondition, range_counts};
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::{Bucket, Gateway};
use crate::objects::{Loaded, NewObject, Outcome, commit, load, load_row};
use crate::ops::bucket::full_control;
use crate::ops::delete::check_version;
use crate::range::{ByteRange, resolve};
use crate::reply::{empty, quoted, set, stream, xml};
use crate::request::refuse_unsupported_headers;
use crate::row::{ChecksumRow, DataRef, Described, ObjectRow, PartData, Payload, UploadId, route};
use crate::sabotage::{Sabotage, breaks};
use crate::server::Call;
use crate::xml::response::XmlWriter;
use crate::{backend::Condition, backend::Mutation, described};

/// Largest object of one PUT, one part, or one copy.
pub(crate) const PUT_BYTES_MAX: u64 = 5 << 30;

/// # Errors
/// [`Code::EntityTooLarge`].
pub(crate) fn check_size(bytes: u64) -> S3Result<()> {
    if bytes <= PUT_BYTES_MAX {
        return Ok(());
    }
    Err(S3Error::from(Code::EntityTooLarge)
        .detail("ProposedSize", bytes.to_string())
        .detail("MaxSizeAllowed", PUT_BYTES_MAX.to_string()))
}

/// A whole object that was received, ready to be committed.
pub(crate) struct Received<'a> {
    pub stored: Stored,
    pub digests: Digests,
    pub described: Described,
    /// Which checksum to keep.
    pub algorithm: Algorithm,
    pub condition: &'a WriteCondition,
}

/// Makes a received object visible. Its blob is deleted if it certainly did not become so.
pub(crate) async fn publish(
    gateway: &Gateway,
    bucket: &Bucket,
    key: &str,
    received: Received<'_>,
) -> S3Result<ObjectRow> {
    let Received { stored, digests, described, algorithm, condition } = received;
    let checksum = digests.checksum(algorithm).map(|value| ChecksumRow {
        algorithm: algorithm.code(),
        value: value.to_vec(),
        composite_parts: None,
    });
    let row = ObjectRow {
        version: gateway.runtime.unique_id(),
        size: digests.bytes,
        etag: hex::encode(digests.md5),
        modified_ms: gateway.clock.now_ms(),
        data: match &stored {
            Stored::Inline(_) => DataRef::Inline,
            Stored::Blob(blob, _) => DataRef::Blob(*blob),
        },
        described,
        checksum,
        upload: None::<UploadId>,
    };
    let guards: Vec<Condition> = stored.intent().map(|intent| intent.condition()).into_iter().collect();
    let also: Vec<Mutation> = stored.intent().map(|intent| intent.removal()).into_iter().collect();
    let (payload, stored) = match stored {
        Stored::Inline(data) => (Payload::Inline(data), None),
        Stored::Blob(blob, intent) => (Payload::Blob(blob), Some(Stored::Blob(blob, intent))),
    };
    let new = NewObject { row, payload, guards, also };
    let abandon_blob = async || {
        if let Some(stored) = &stored {
            abandon(gateway, bucket.table(), &route(key), stored).await;
        }
    };
    match commit(gateway, bucket.table(), key, &new, condition).await {
        Ok(Outcome::Done) => Ok(new.row),
        // The collector took the intent: the upload was slower than garbage may get.
        Ok(Outcome::GuardFailed) => {
            abandon_blob().await;
            Err(Code::RequestTimeout.into())
        }
        Err(error) => {
            if breaks(Sabotage::UnknownIsFailed)
                && let Some(Stored::Blob(blob, _)) = &stored
            {
                let _ = gateway.backend.blobs.delete(blob.id, blob.stripes()).await;
            }
            // All others may mean that the commit happened: then only the collector may judge.
            if matches!(
                error.code,
                Code::PreconditionFailed
                    | Code::NoSuchKey
                    | Code::ConditionalRequestConflict
                    | Code::InsufficientStorage
            ) {
                abandon_blob().await;
            }
            Err(error)
        }
    }
}

/// Writes `ETag` and the checksum of what was just written.
pub(crate) fn written(headers: &mut HeaderMap, row: &ObjectRow) {
    set(headers, "etag", &quoted(&row.etag));
    checksum(headers, row.checksum.as_ref());
}

fn checksum(headers: &mut HeaderMap, checksum: Option<&ChecksumRow>) {
    if let Some(checksum) = checksum
        && let Some(algorithm) = checksum.known()
    {
        set(headers, algorithm.header(), &checksum.shown());
        set(headers, "x-amz-checksum-type", checksum.kind());
    }
}

pub(crate) async fn put(call: &Arc<Call>, body: &mut Body) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let key = call.key()?;
    refuse_unsupported_headers(&call.headers)?;
    let condition = WriteCondition::of(&call.headers)?;
    let described = described::read(&call.headers)?;
    let mut expected = body::expectations(&call.auth, &call.headers)?;
    let algorithm = expected.claim.as_ref().map_or(Algorithm::Crc64Nvme, |claim| claim.algorithm);
    expected.store = Some(algorithm);
    let mut reader = body::open(&call.auth, body, &call.headers, &call.gateway.runtime)?;
    let length = reader.length()?;
    check_size(length)?;
    let gateway = &call.gateway;
    if condition != WriteCondition::Any {
        // Checked again by the commit; this one saves the client from sending a body in vain.
        let there = load_row(gateway, bucket.table(), key).await?;
        condition.check(there.as_ref().map(|(row, _)| row.etag.as_str()))?;
    }
    let length = (length, gateway.config.sizes.inline_bytes_max);
    let (stored, digests) = receive(gateway, bucket.table(), &route(key), &mut reader, length, &expected).await?;
    let received = Received { stored, digests, described, algorithm, condition: &condition };
    let row = publish(gateway, &bucket, key, received).await?;
    let mut response = empty(StatusCode::OK);
    written(response.headers_mut(), &row);
    Ok(response)
}

/// What of an object is to be sent.
struct Selection {
    range: Option<ByteRange>,
    /// Answer 206 with Content-Range.
    partial: bool,
}

fn select(call: &Call, object: &Loaded) -> S3Result<Selection> {
    let size = object.row.size;
    let range = call.header("range").filter(|_| range_counts(&call.headers, &object.row.etag, object.row.modified_ms));
    let Some(number) = call.query.get("partNumber") else {
        let range = range.map(|range| resolve(range, size)).transpose()?.flatten();
        return Ok(Selection { range, partial: range.is_some() });
    };
    if range.is_some() {
        let message = "Cannot specify both Range header and partNumber query parameter";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let wrong =
        || S3Error::argument("partNumber", number, "Part number must be an integer between 1 and 10000, inclusive");
    let number: u16 = number.parse().ok().filter(|number| (1..=10_000).contains(number)).ok_or_else(wrong)?;
    let no_part = || S3Error::new(Code::InvalidPart, "The requested partnumber is not satisfiable");
    match object.parts() {
        None if number == 1 && size == 0 => Ok(Selection { range: None, partial: false }),
        None if number == 1 => Ok(Selection { range: Some(ByteRange { start: 0, length: size }), partial: true }),
        None => Err(no_part()),
        Some(parts) => {
            let mut start = 0;
            for part in parts {
                let length = part.data.size();
                if part.number == number && length == 0 {
                    return Ok(Selection { range: Some(ByteRange { start, length }), partial: false });
                }
                if part.number == number {
                    return Ok(Selection { range: Some(ByteRange { start, length }), partial: true });
                }
                start += length;
            }
            Err(no_part())
        }
    }
}

/// The segments of an object that lie in a range. Inline bytes are moved, not copied: `object` has none afterwards.
pub(crate) fn segments(object: &mut Loaded, range: ByteRange) -> S3Result<Vec<Segment>> {
    match (&object.row.data, &mut object.payload) {
        (DataRef::Blob(blob), _) => Ok(Segment::cut(PartData::Blob(*blob), range).into_iter().collect()),
        (DataRef::Inline, Some(Payload::Inline(data))) => {
            Ok(Segment::cut(PartData::Inline(std::mem::take(data)), range).into_iter().collect())
        }
        (DataRef::Parts(_), Some(Payload::Parts(parts))) => Ok(Segment::of_parts(parts, range)),
        (DataRef::Inline | DataRef::Parts(_), _) => Err(Code::InternalError.into()),
    }
}

pub(crate) async fn get(call: &Arc<Call>, with_body: bool) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    check_version(call.query.get("versionId"))?;
    let gateway = &call.gateway;
    let (table, key) = (bucket.table(), call.key()?);
    let found = if with_body || call.query.has("partNumber") {
        load(gateway, table, key).await?
    } else {
        load_row(gateway, table, key).await?.map(|(row, _)| Loaded { row, payload: None })
    };
    let mut object = found.ok_or(Code::NoSuchKey)?;
    let row = &object.row;
    let verdict =
        ReadConditions::of_read(&call.headers).evaluate(&row.etag, row.modified_ms, gateway.clock.now_ms())?;
    if verdict == Verdict::NotModified {
        let mut response = empty(StatusCode::NOT_MODIFIED);
        set(response.headers_mut(), "etag", &quoted(&row.etag));
        set(response.headers_mut(), "last-modified", &http_date(row.modified_ms));
        return Ok(response);
    }
    let selection = select(call, &object)?;
    let range = selection.range.unwrap_or(ByteRange { start: 0, length: row.size });
    let body = if with_body && range.length > 0 {
        stream(Download::new(gateway, segments(&mut object, range)?)).await?
    } else {
        Body::empty()
    };
    let row = &object.row;
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    described::write(&row.described, &call.query, headers);
    set(headers, "etag", &quoted(&row.etag));
    set(headers, "last-modified", &http_date(row.modified_ms));
    set(headers, "accept-ranges", "bytes");
    set(headers, "content-length", &range.length.to_string());
    if call.query.has("partNumber")
        && let Some(parts) = object.parts()
    {
        set(headers, "x-amz-mp-parts-count", &parts.len().to_string());
    }
    if selection.partial {
        let last = (range.start + range.length).saturating_sub(1);
        set(headers, "content-range", &format!("bytes {}-{last}/{}", range.start, row.size));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    } else if call.header("x-amz-checksum-mode").is_some_and(|mode| mode.eq_ignore_ascii_case("enabled")) {
        checksum(headers, row.checksum.as_ref());
    }
    Ok(response)
}

async fn existing(call: &Call) -> S3Result<(Arc<Bucket>, ObjectRow)> {
    let bucket = call.bucket().await?;
    check_version(call.query.get("versionId"))?;
    let (row, _) = load_row(&call.gateway, bucket.table(), call.key()?).await?.ok_or(Code::NoSuchKey)?;
    Ok((bucket, row))
}

pub(crate) async fn acl(call: &Arc<Call>) -> S3Result<Response> {
    let (bucket, _) = existing(call).await?;
    Ok(xml(full_control(&bucket.row)))
}

pub(crate) async fn tagging(call: &Arc<Call>) -> S3Result<Response> {
    existing(call).await?;
    let mut document = XmlWriter::document();
    document.root("Tagging");
    document.open("TagSet");
    document.close("TagSet");
    document.close("Tagging");
    Ok(xml(document))
}

pub(crate) async fn lock(call: &Arc<Call>) -> S3Result<Response> {
    existing(call).await?;
    Err(S3Error::new(Code::InvalidRequest, "Bucket is missing Object Lock Configuration"))
}

pub(crate) async fn attributes(call: &Arc<Call>) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    check_version(call.query.get("versionId"))?;
    let asked = call.header("x-amz-object-attributes").unwrap_or_default();
    let asked: Vec<&str> = asked.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let known = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];
    if asked.is_empty() || asked.iter().any(|name| !known.contains(name)) {
        return Err(S3Error::argument("x-amz-object-attributes", asked.join(","), "Invalid attribute name specified."));
    }
    let object = load(&call.gateway, bucket.table(), call.key()?).await?.ok_or(Code::NoSuchKey)?;
    let row = &object.row;
    let mut document = XmlWriter::document();
    document.root("GetObjectAttributesResponse");
    if asked.contains(&"ETag") {
        document.text("ETag", &row.etag);
    }
    let algorithm = row.checksum.as_ref().and_then(ChecksumRow::known);
    if asked.contains(&"Checksum")
        && let (Some(checksum), Some(algorithm)) = (&row.checksum, algorithm)
    {
        document.open("Checksum");
        document.text(algorithm.element(), &crate::checksum::base64(&checksum.value));
        document.text("ChecksumType", checksum.kind());
        document.close("Checksum");
    }
    if asked.contains(&"ObjectParts")
        && let Some(parts) = object.parts()
    {
        let number = |name| call.header(name).and_then(|text| text.trim().parse::<usize>().ok());
        let max = number("x-amz-max-parts").unwrap_or(1000).min(1000);
        let marker = number("x-amz-part-number-marker").unwrap_or(0);
        let after: Vec<_> = parts.iter().filter(|part| usize::from(part.number) > marker).collect();
        let page = after.get(..max.min(after.len())).unwrap_or_default();
        document.open("ObjectParts");
        document.number("PartsCount", parts.len() as u64);
        document.number("PartNumberMarker", marker as u64);
        document.number("NextPartNumberMarker", page.last().map_or(0, |part| u64::from(part.number)));
        document.number("MaxParts", max as u64);
        document.boolean("IsTruncated", page.len() < after.len());
        for part in page {
            document.open("Part");
            document.number("PartNumber", u64::from(part.number));
            document.number("Size", part.data.size());
            if let (Some(value), Some(algorithm)) = (&part.checksum, algorithm) {
                document.text(algorithm.element(), &crate::checksum::base64(value));
            }
            document.close("Part");
        }
        document.close("ObjectParts");
    }
    if asked.contains(&"StorageClass") {
        document.text("StorageClass", "STANDARD");
    }
    if asked.contains(&"ObjectSize") {
        document.number("ObjectSize", row.size);
    }
    document.close("GetObjectAttributesResponse");
    let mut response = xml(document);
    set(response.headers_mut(), "last-modified", &http_date(row.modified_ms));
    Ok(response)
}
