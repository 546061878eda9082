//! CompleteMultipartUpload: one batch turns parts into an object. It may be repeated, and several may race.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use md5::{Digest as _, Md5};

use crate::backend::{Condition, Mutation, Purpose, TableId};
use crate::body;
use crate::checksum::{Algorithm, unbase64};
use crate::conditional::{WriteCondition, bare_etag};
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Gateway;
use crate::objects::{NewObject, Outcome, collect, commit, load_row};
use crate::ops::multipart::{Thaw, Upload, freeze, part_range, parts, thaw, upload_id, upload_key};
use crate::reply::{SlowReply, patient, quoted};
use crate::row::{ChecksumRow, DataRef, ObjectRow, PartRef, PartRow, Payload, UploadId, route, space};
use crate::server::Call;
use crate::xml::request::{CompletePart, parse_complete};
use crate::xml::response::XmlWriter;

/// Smallest part but the last.
pub(crate) const PART_BYTES_MIN: u64 = 5 << 20;
/// Largest object.
const OBJECT_BYTES_MAX: u64 = 5 << 40;
/// Largest document: 10,000 parts with checksums.
const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// How often completing is tried against others that freeze and thaw the upload.
const ATTEMPTS_MAX: usize = 16;

/// What the request states about the object beside its parts.
struct Stated {
    condition: WriteCondition,
    size: Option<u64>,
    checksum: Option<(Algorithm, Vec<u8>)>,
    kind: Option<String>,
}

pub(crate) async fn complete(call: &Arc<Call>, body: &mut Body) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let id = upload_id(call)?;
    let key = call.key()?.to_owned();
    let stated = stated(call)?;
    let (list, permit) = {
        // A checksum header of this request is the object's, not the document's.
        let reader = body::open(&call.auth, body, &call.headers, &call.gateway.runtime)?;
        let mut headers = call.headers.clone();
        for algorithm in Algorithm::ALL {
            headers.remove(algorithm.header());
        }
        headers.remove("x-amz-sdk-checksum-algorithm");
        let budget = &call.gateway.document_budget;
        let document = reader.read_document(budget, &call.auth, &headers, DOCUMENT_BYTES_MAX).await?;
        (parse_complete(document.bytes())?, document.into_permit())
    };
    let inner = call.clone();
    patient(call, async move {
        let _permit = permit; // for the list
        let row = run(&inner.gateway, bucket.table(), &key, id, &list, &stated).await?;
        let mut document = XmlWriter::fragment();
        document.root("CompleteMultipartUploadResult");
        let host = inner.header("host").unwrap_or("localhost");
        document.text(
            "Location",
            &format!("http://{host}/{}/{}", bucket.name, crate::sigv4::canonical::encode(key.as_bytes(), true)),
        );
        document.text("Bucket", &bucket.name);
        document.text("Key", &key);
        document.text("ETag", &quoted(&row.etag));
        if let Some(checksum) = &row.checksum
            && let Some(algorithm) = checksum.known()
        {
            document.text(algorithm.element(), &checksum.shown());
            document.text("ChecksumType", checksum.kind());
        }
        document.close("CompleteMultipartUploadResult");
        Ok(SlowReply { document, headers: http::HeaderMap::new() })
    })
    .await
}

fn stated(call: &Call) -> S3Result<Stated> {
    let invalid = |name: &str| S3Error::new(Code::InvalidRequest, format!("Value for {name} header is invalid."));
    let size = call
        .header("x-amz-mp-object-size")
        .map(|text| text.trim().parse().map_err(|_| invalid("x-amz-mp-object-size")));
    let mut checksum = None;
    for algorithm in Algorithm::ALL {
        if let Some(text) = call.header(algorithm.header()) {
            let value = text.split_once('-').map_or(text, |(value, _)| value);
            checksum = Some((algorithm, algorithm.decode(value).ok_or_else(|| invalid(algorithm.header()))?));
        }
    }
    Ok(Stated {
        condition: WriteCondition::of(&call.headers)?,
        size: size.transpose()?,
        checksum,
        kind: call.header("x-amz-checksum-type").map(str::to_ascii_uppercase),
    })
}

async fn run(
    gateway: &Gateway,
    table: TableId,
    key: &str,
    id: UploadId,
    list: &[CompletePart],
    stated: &Stated,
) -> S3Result<ObjectRow> {
    // Of an attempt that perhaps completed it: `NoSuchUpload` would say that somebody else ended it.
    let mut perhaps: Option<S3Error> = None;
    for _ in 0..ATTEMPTS_MAX {
        let upload = match freeze(gateway, table, key, id, Purpose::Store).await {
            Err(error) if error.code == Code::NoSuchUpload => {
                return completed_before(gateway, table, key, id, perhaps.unwrap_or(error)).await;
            }
            other => other?,
        };
        perhaps = None; // the upload is still there
        match attempt(gateway, table, key, &upload, list, stated).await {
            Ok(Some(row)) => return Ok(row),
            Ok(None) => {}
            Err(error) => {
                // Also when the outcome is unknown: thawing demands the row as it was.
                match thaw(gateway, table, key, &upload).await {
                    Thaw::Done => return Err(error),
                    // It may be completed, and then what was judged was what was left of the parts: to be asked again.
                    Thaw::Unknown => return Err(Code::SlowDown.into()),
                    Thaw::Changed => {}
                }
                // Somebody else completed it, or this one did: what was judged may have been what was left of the parts.
                perhaps = Some(error).filter(|error| error.code == Code::SlowDown);
            }
        }
    }
    Err(Code::SlowDown.into())
}

/// The answer to a repeated request: that of the first, as long as its object is there; otherwise `error`.
async fn completed_before(
    gateway: &Gateway,
    table: TableId,
    key: &str,
    id: UploadId,
    error: S3Error,
) -> S3Result<ObjectRow> {
    match load_row(gateway, table, key).await? {
        Some((row, _)) if row.upload == Some(id) => Ok(row),
        _ => Err(error),
    }
}

/// One try; `None` if somebody else changed the upload meanwhile.
async fn attempt(
    gateway: &Gateway,
    table: TableId,
    key: &str,
    upload: &Upload,
    list: &[CompletePart],
    stated: &Stated,
) -> S3Result<Option<ObjectRow>> {
    let route = route(key);
    let (there, _) = parts(gateway, table, key, upload.id, 0, 10_000).await?;
    let algorithm = upload.algorithm()?;
    let chosen = choose(list, &there, upload, algorithm, gateway.config.sizes.part_bytes_min)?;
    let size: u64 = chosen.iter().map(|(_, part)| part.data.size()).sum();
    if size > OBJECT_BYTES_MAX {
        return Err(Code::EntityTooLarge.into());
    }
    if let Some(stated) = stated.size
        && stated != size
    {
        let message = "The provided 'x-amz-mp-object-size' header does not match what was computed.";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let checksum = object_checksum(&chosen, upload, algorithm)?;
    if let Some((stated, value)) = &stated.checksum
        && (*stated != algorithm || *value != checksum.value)
    {
        let message =
            format!("The {} you specified did not match the calculated checksum.", stated.name().to_ascii_lowercase());
        return Err(S3Error::new(Code::BadDigest, message));
    }
    if let Some(kind) = &stated.kind
        && kind != checksum.kind()
    {
        let message = format!(
            "The upload was created using the {} checksum mode. The complete request must use the same checksum mode.",
            checksum.kind()
        );
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let mut md5s = Md5::new();
    for (_, part) in &chosen {
        md5s.update(part.md5);
    }
    let row = ObjectRow {
        version: gateway.runtime.unique_id(),
        size,
        etag: format!("{}-{}", hex::encode(md5s.finalize()), chosen.len()),
        modified_ms: gateway.clock.now_ms(),
        data: DataRef::Parts(u32::try_from(chosen.len()).unwrap_or(u32::MAX)),
        described: upload.row.described.clone(),
        checksum: Some(checksum),
        upload: Some(upload.id),
    };
    let refs = chosen
        .iter()
        .map(|(number, part)| PartRef {
            number: *number,
            data: part.data.clone(),
            checksum: Some(part.checksum.clone()),
        })
        .collect();
    let unused = there
        .iter()
        .filter(|(number, _)| chosen.binary_search_by_key(number, |(chosen, _)| *chosen).is_err()) // both are in order
        .filter_map(|(_, part)| part.data.blob())
        .collect();
    let (start, end) = part_range(&route, upload.id);
    let mut also = vec![
        Mutation::Delete(upload_key(&route, upload.id)),
        Mutation::DeleteRange { space: space::PARTS, start, end },
    ];
    also.extend(collect(gateway, &route, unused));
    let guards = vec![Condition::Equals(upload_key(&route, upload.id), upload.value.clone())];
    let new = NewObject { row, payload: Payload::Parts(refs), guards, also };
    match commit(gateway, table, key, &new, &stated.condition).await? {
        Outcome::Done => Ok(Some(new.row)),
        Outcome::GuardFailed => Ok(None),
    }
}

/// Finds the parts that the request lists.
fn choose<'a>(
    list: &[CompletePart],
    there: &'a [(u16, PartRow)],
    upload: &Upload,
    algorithm: Algorithm,
    part_bytes_min: u64,
) -> S3Result<Vec<(u16, &'a PartRow)>> {
    let mut chosen: Vec<(u16, &PartRow)> = Vec::with_capacity(list.len());
    for wanted in list {
        let missing = || {
            S3Error::from(Code::InvalidPart)
                .detail("UploadId", upload.id.to_string())
                .detail("PartNumber", wanted.number.to_string())
                .detail("ETag", bare_etag(&wanted.etag))
        };
        let at = there.binary_search_by_key(&wanted.number, |(number, _)| *number).map_err(|_| missing())?;
        let (_, part) = there.get(at).ok_or_else(missing)?;
        if bare_etag(&wanted.etag) != hex::encode(part.md5) {
            return Err(missing());
        }
        for (element, text) in &wanted.checksums {
            if *element == algorithm.element() && unbase64(text).as_deref() != Some(part.checksum.as_slice()) {
                return Err(missing());
            }
        }
        chosen.push((wanted.number, part));
    }
    let all_but_last = chosen.get(..chosen.len().saturating_sub(1)).unwrap_or_default();
    if let Some((number, part)) = all_but_last.iter().find(|(_, part)| part.data.size() < part_bytes_min) {
        return Err(S3Error::from(Code::EntityTooSmall)
            .detail("ProposedSize", part.data.size().to_string())
            .detail("MinSizeAllowed", part_bytes_min.to_string())
            .detail("PartNumber", number.to_string())
            .detail("ETag", hex::encode(part.md5)));
    }
    Ok(chosen)
}

fn object_checksum(chosen: &[(u16, &PartRow)], upload: &Upload, algorithm: Algorithm) -> S3Result<ChecksumRow> {
    let broken = || S3Error::from(Code::InternalError);
    let value = if upload.row.checksum_composite {
        algorithm.of(&chosen.iter().flat_map(|(_, part)| part.checksum.iter().copied()).collect::<Vec<u8>>())
    } else {
        let mut whole: Option<Vec<u8>> = None;
        for (_, part) in chosen {
            whole = Some(match whole {
                None => part.checksum.clone(),
                Some(before) => algorithm.combine(&before, &part.checksum, part.data.size()).ok_or_else(broken)?,
            });
        }
        whole.ok_or_else(broken)?
    };
    Ok(ChecksumRow {
        algorithm: algorithm.code(),
        value,
        composite_parts: upload.row.checksum_composite.then(|| u32::try_from(chosen.len()).unwrap_or(u32::MAX)),
    })
}
