//! Multipart uploads: create, upload part, list parts, abort. Completing is in `complete`.
//!
//! Upload and parts are rows of the key's route. While `frozen` is set in the upload row, no part can be added, so what a
//! completer or aborter has read of the parts stays true until its batch. A part demands the row of an open upload, whatever
//! it has seen. One that has waited for long opens the upload itself, since who froze it may be dead; who is not begins anew.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;

use crate::backend::{BackendError, BatchError, Condition, Mutation, Purpose, RowKey, ScanLimit, ScanRange, TableId};
use crate::blob::{Stored, abandon, receive};
use crate::body;
use crate::checksum::{Algorithm, Digests, base64};
use crate::clock::iso_date;
use crate::described;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Gateway;
use crate::objects::{collect, load_row};
use crate::ops::bucket::owner;
use crate::ops::object::check_size;
use crate::reply::{empty, quoted, set, xml};
use crate::request::refuse_unsupported_headers;
use crate::row::{
    PartData, PartRow, Row as _, UploadId, UploadRow, after_prefix, part_key, route, row_key, space, split_route,
};
use crate::sabotage::{Sabotage, breaks};
use crate::server::Call;
use crate::xml::response::XmlWriter;

/// How often a change of an upload is tried against concurrent ones.
const ATTEMPTS_MAX: usize = 16;
/// How long a part waits for an upload that is frozen before it opens it: longer than a completion takes as a rule.
const FROZEN_PAUSES_MS: [u64; 6] = [20, 40, 80, 160, 320, 640];
/// Rows of one page of parts.
const PAGE_ROWS: usize = 1000;

/// An upload as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    /// Its id.
    pub id: UploadId,
    /// Its row.
    pub row: UploadRow,
    /// The row's bytes.
    pub value: Bytes,
}

impl Upload {
    /// The row's bytes when the upload is open: those that a part demands.
    fn open_value(&self) -> Bytes {
        if self.row.frozen.is_none() { self.value.clone() } else { self.open_row().to_bytes() }
    }

    fn open_row(&self) -> UploadRow {
        UploadRow { frozen: None, ..self.row.clone() }
    }

    /// The checksum algorithm of its parts.
    pub fn algorithm(&self) -> S3Result<Algorithm> {
        Algorithm::from_code(self.row.checksum_algorithm).ok_or_else(|| Code::InternalError.into())
    }
}

/// The `uploadId` of a request.
pub(crate) fn upload_id(call: &Call) -> S3Result<UploadId> {
    let text = call.query.get("uploadId").unwrap_or_default();
    UploadId::parse(text).ok_or_else(|| S3Error::from(Code::NoSuchUpload).detail("UploadId", text))
}

/// The `partNumber` of a request.
pub(crate) fn part_number(call: &Call) -> S3Result<u16> {
    let text = call.query.get("partNumber").unwrap_or_default();
    text.parse::<u16>().ok().filter(|number| (1..=10_000).contains(number)).ok_or_else(|| {
        S3Error::argument("partNumber", text, "Part number must be an integer between 1 and 10000, inclusive")
    })
}

pub(crate) fn upload_key(route: &[u8], id: UploadId) -> RowKey {
    row_key(space::UPLOADS, route, &id.0)
}

/// Loads an upload.
///
/// # Errors
/// [`Code::NoSuchUpload`].
pub(crate) async fn open_upload(gateway: &Gateway, table: TableId, key: &str, id: UploadId) -> S3Result<Upload> {
    let route = route(key);
    let rows = gateway.backend.tables.get(table, &route, vec![upload_key(&route, id)]).await?;
    let value = rows.into_iter().next().flatten();
    let value = value.ok_or_else(|| S3Error::from(Code::NoSuchUpload).detail("UploadId", id.to_string()))?;
    Ok(Upload { id, row: UploadRow::from_bytes(&value)?, value })
}

pub(crate) async fn create(call: &Arc<Call>) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let key = call.key()?;
    refuse_unsupported_headers(&call.headers)?;
    let described = described::read(&call.headers)?;
    let invalid = |message: String| S3Error::new(Code::InvalidRequest, message);
    let asked = match call.header("x-amz-checksum-algorithm") {
        None => None,
        Some(name) => Some(Algorithm::parse(name).ok_or_else(|| {
            invalid("Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]".to_owned())
        })?),
    };
    let algorithm = asked.unwrap_or(Algorithm::Crc64Nvme);
    let type_header = call.header("x-amz-checksum-type").map(str::to_ascii_uppercase);
    let composite = match type_header.as_deref() {
        None => algorithm != Algorithm::Crc64Nvme,
        Some(_) if asked.is_none() => {
            return Err(invalid(
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.".to_owned(),
            ));
        }
        Some("COMPOSITE") if algorithm == Algorithm::Crc64Nvme => {
            return Err(invalid(
                "The COMPOSITE checksum type cannot be used with the crc64nvme checksum algorithm.".to_owned(),
            ));
        }
        Some("FULL_OBJECT") if !algorithm.combines() => {
            let name = algorithm.name().to_ascii_lowercase();
            return Err(invalid(format!(
                "The FULL_OBJECT checksum type cannot be used with the {name} checksum algorithm."
            )));
        }
        Some("COMPOSITE") => true,
        Some("FULL_OBJECT") => false,
        Some(_) => return Err(invalid("Value for x-amz-checksum-type header is invalid.".to_owned())),
    };
    let gateway = &call.gateway;
    let now_ms = gateway.clock.now_ms();
    let id = UploadId::new(now_ms, gateway.runtime.unique_id());
    let principal = call.auth.principal();
    let row = UploadRow {
        initiated_ms: now_ms,
        described,
        checksum_algorithm: algorithm.code(),
        checksum_composite: composite,
        checksum_asked: asked.is_some(),
        frozen: None,
        owner: principal.owner.clone(),
        owner_name: principal.name.clone(),
    };
    let route = route(key);
    let row_key = upload_key(&route, id);
    let value = row.to_bytes();
    let put = vec![Mutation::Put(row_key.clone(), value.clone())];
    match gateway
        .backend
        .tables
        .batch(bucket.table(), &route, vec![Condition::Absent(row_key)], put, Purpose::Store)
        .await
    {
        Err(error) if !error.shows(&value) => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    let mut document = XmlWriter::document();
    document.root("InitiateMultipartUploadResult");
    document.text("Bucket", &bucket.name);
    document.text("Key", key);
    document.text("UploadId", &id.to_string());
    document.close("InitiateMultipartUploadResult");
    let mut response = xml(document);
    if asked.is_some() {
        set(response.headers_mut(), "x-amz-checksum-algorithm", algorithm.name());
        set(response.headers_mut(), "x-amz-checksum-type", if composite { "COMPOSITE" } else { "FULL_OBJECT" });
    }
    Ok(response)
}

pub(crate) async fn upload_part(call: &Arc<Call>, body: &mut Body) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let (id, number, key) = (upload_id(call)?, part_number(call)?, call.key()?);
    refuse_unsupported_headers(&call.headers)?;
    let mut expected = body::expectations(&call.auth, &call.headers)?;
    let mut reader = body::open(&call.auth, body, &call.headers, &call.gateway.runtime)?;
    let length = reader.length()?;
    check_size(length)?;
    let gateway = &call.gateway;
    let upload = open_upload(gateway, bucket.table(), key, id).await?;
    let algorithm = upload.algorithm()?;
    if let Some(claim) = &expected.claim
        && upload.row.checksum_asked
        && claim.algorithm != algorithm
    {
        let message = format!(
            "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
            algorithm.name().to_ascii_lowercase(),
            claim.algorithm.name().to_ascii_lowercase()
        );
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    expected.store = Some(algorithm);
    let claimed = expected.claim.as_ref().map(|claim| claim.algorithm);
    let length = (length, gateway.config.sizes.part_inline_bytes_max);
    let (stored, digests) = receive(gateway, bucket.table(), &route(key), &mut reader, length, &expected).await?;
    let shown = claimed.or(upload.row.checksum_asked.then_some(algorithm));
    let shown = shown.and_then(|shown| Some((shown, base64(digests.checksum(shown)?))));
    let row = keep_part(gateway, bucket.table(), key, &upload, number, (stored, digests)).await?;
    let mut response = empty(StatusCode::OK);
    set(response.headers_mut(), "etag", &quoted(&hex::encode(row.md5)));
    if let Some((algorithm, value)) = shown {
        set(response.headers_mut(), algorithm.header(), &value);
    }
    Ok(response)
}

/// Makes a received part one of the upload's, replacing what had its number.
pub(crate) async fn keep_part(
    gateway: &Gateway,
    table: TableId,
    key: &str,
    upload: &Upload,
    number: u16,
    (stored, digests): (Stored, Digests),
) -> S3Result<PartRow> {
    let route = route(key);
    let algorithm = upload.algorithm()?;
    let row = PartRow {
        md5: digests.md5,
        data: match &stored {
            Stored::Inline(data) => PartData::Inline(data.clone()),
            Stored::Blob(blob, _) => PartData::Blob(*blob),
        },
        checksum: digests.checksum(algorithm).unwrap_or_default().to_vec(),
        modified_ms: gateway.clock.now_ms(),
    };
    let part = part_key(&route, upload.id, number);
    let value = row.to_bytes();
    let mut current: Option<Bytes> = None;
    let mut open_value = upload.open_value();
    let mut pauses = FROZEN_PAUSES_MS.iter();
    let mut opened = false;
    for _ in 0..ATTEMPTS_MAX {
        let seen = match &current {
            None => Condition::Absent(part.clone()),
            Some(value) => Condition::Equals(part.clone(), value.clone()),
        };
        let open = Condition::Equals(upload_key(&route, upload.id), open_value.clone());
        let mut conditions = vec![open, seen];
        conditions.extend(stored.intent().map(|intent| intent.condition()));
        let mut mutations = vec![Mutation::Put(part.clone(), value.clone())];
        mutations.extend(stored.intent().map(|intent| intent.removal()));
        if let Some(old) = current.as_deref().map(PartRow::from_bytes).transpose()? {
            mutations.extend(collect(gateway, &route, old.data.blob().into_iter().collect()));
        }
        match gateway.backend.tables.batch(table, &route, conditions, mutations, Purpose::Store).await {
            Ok(()) => return Ok(row),
            Err(BatchError::ConditionFailed { index: 0, current: None }) => {
                abandon(gateway, table, &route, &stored).await;
                return Err(S3Error::from(Code::NoSuchUpload).detail("UploadId", upload.id.to_string()));
            }
            Err(BatchError::ConditionFailed { index: 0, current: Some(now) }) => {
                let now = Upload { id: upload.id, row: UploadRow::from_bytes(&now)?, value: now };
                // Frozen by a completion or an abortion: either the upload is soon gone, or it is opened again.
                if now.row.frozen.is_some() {
                    match pauses.next() {
                        Some(pause) => gateway.runtime.sleep(Duration::from_millis(*pause)).await,
                        None if opened => break,
                        None => {
                            opened = true;
                            thaw(gateway, table, key, &now).await;
                        }
                    }
                }
                open_value = now.open_value();
            }
            // The batch was executed, its answer lost, and the batch repeated.
            Err(error @ BatchError::ConditionFailed { index: 1, .. }) if error.shows(&value) => return Ok(row),
            Err(BatchError::ConditionFailed { index: 1, current: now }) => current = now,
            Err(BatchError::ConditionFailed { .. }) => {
                abandon(gateway, table, &route, &stored).await;
                return Err(Code::RequestTimeout.into());
            }
            Err(BatchError::Backend(error)) => {
                if matches!(error, BackendError::Full) {
                    abandon(gateway, table, &route, &stored).await;
                }
                return Err(error.into());
            }
        }
    }
    abandon(gateway, table, &route, &stored).await;
    Err(Code::SlowDown.into())
}

/// Freezes an upload, so that its parts stay as they are until the upload's row changes.
pub(crate) async fn freeze(
    gateway: &Gateway,
    table: TableId,
    key: &str,
    id: UploadId,
    purpose: Purpose,
) -> S3Result<Upload> {
    let route = route(key);
    for _ in 0..ATTEMPTS_MAX {
        let upload = open_upload(gateway, table, key, id).await?;
        if upload.row.frozen.is_some() || breaks(Sabotage::FreezeForgotten) {
            return Ok(upload);
        }
        let row = UploadRow { frozen: Some(gateway.runtime.unique_id()), ..upload.row.clone() };
        match replace_row(gateway, table, &route, &upload, &row, purpose).await {
            Ok(value) => return Ok(Upload { id, row, value }),
            Err(BatchError::ConditionFailed { .. }) => {}
            Err(BatchError::Backend(error)) => return Err(error.into()),
        }
    }
    Err(Code::SlowDown.into())
}

/// What came of opening a frozen upload again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thaw {
    /// It was as it had been frozen: nobody else has completed it, and what was read of its parts was true.
    Done,
    /// It is not as it was: what was read of its parts since may not have been what they were when it was frozen.
    Changed,
    /// Nobody knows.
    Unknown,
}

/// Opens a frozen upload again, if it is still as it was frozen.
pub(crate) async fn thaw(gateway: &Gateway, table: TableId, key: &str, upload: &Upload) -> Thaw {
    match replace_row(gateway, table, &route(key), upload, &upload.open_row(), Purpose::FreeSpace).await {
        Ok(_) => Thaw::Done,
        Err(BatchError::ConditionFailed { .. }) => Thaw::Changed,
        Err(BatchError::Backend(error)) => {
            tracing::warn!(%error, upload = %upload.id, "an upload may stay frozen until it is completed or aborted");
            Thaw::Unknown
        }
    }
}

async fn replace_row(
    gateway: &Gateway,
    table: TableId,
    route: &[u8],
    upload: &Upload,
    row: &UploadRow,
    purpose: Purpose,
) -> Result<Bytes, BatchError> {
    let (key, value) = (upload_key(route, upload.id), row.to_bytes());
    let seen = vec![Condition::Equals(key.clone(), upload.value.clone())];
    // Deleted and put: an upload must be frozen to be aborted, and what is to free space must delete something.
    let changes = vec![Mutation::Delete(key.clone()), Mutation::Put(key, value.clone())];
    match gateway.backend.tables.batch(table, route, seen, changes, purpose).await {
        Err(error) if !error.shows(&value) => Err(error),
        Ok(()) | Err(_) => Ok(value),
    }
}

/// The keys of all rows of an upload's parts: first, and first after.
pub(crate) fn part_range(route: &[u8], id: UploadId) -> (Vec<u8>, Vec<u8>) {
    let start = row_key(space::PARTS, route, &id.0).key;
    let end = after_prefix(&start).unwrap_or_else(|| start.clone());
    (start, end)
}

/// Reads all parts of an upload with numbers after `marker`, at most `max`, in order; and whether there are more.
pub(crate) async fn parts(
    gateway: &Gateway,
    table: TableId,
    key: &str,
    id: UploadId,
    marker: u16,
    max: usize,
) -> S3Result<(Vec<(u16, PartRow)>, bool)> {
    let route = route(key);
    let (first, end) = part_range(&route, id);
    let mut range = ScanRange { space: space::PARTS, start: first, end: Some(end) };
    if marker > 0 {
        range.start = part_key(&route, id, marker.saturating_add(1)).key;
    }
    let mut found = Vec::new();
    loop {
        let limit = ScanLimit { rows: (max - found.len() + 1).min(PAGE_ROWS), bytes: 1 << 20 };
        let page = gateway.backend.tables.scan(table, range.clone(), limit).await?;
        for (row, value) in page.rows {
            if found.len() == max {
                return Ok((found, true));
            }
            let number = split_route(&row).and_then(|(_, suffix)| <[u8; 2]>::try_from(suffix.get(16..)?).ok());
            let number = u16::from_be_bytes(number.ok_or(Code::InternalError)?);
            found.push((number, PartRow::from_bytes(&value)?));
        }
        match page.next {
            Some(start) => range.start = start,
            None => return Ok((found, false)),
        }
    }
}

pub(crate) async fn list_parts(call: &Arc<Call>) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let (id, key) = (upload_id(call)?, call.key()?);
    let max = usize::try_from(call.query.number("max-parts")?.unwrap_or(1000).min(1000)).unwrap_or(1000);
    let marker = call.query.number("part-number-marker")?.unwrap_or(0);
    let upload = open_upload(&call.gateway, bucket.table(), key, id).await?;
    let marker = u16::try_from(marker).unwrap_or(u16::MAX);
    let (parts, truncated) =
        if max == 0 { (Vec::new(), false) } else { parts(&call.gateway, bucket.table(), key, id, marker, max).await? };
    let algorithm = upload.algorithm()?;
    let mut document = XmlWriter::document();
    document.root("ListPartsResult");
    document.text("Bucket", &bucket.name);
    document.text("Key", key);
    document.text("UploadId", &id.to_string());
    document.number("PartNumberMarker", u64::from(marker));
    document.number("NextPartNumberMarker", parts.last().map_or(0, |(number, _)| u64::from(*number)));
    document.number("MaxParts", max as u64);
    document.boolean("IsTruncated", truncated);
    if upload.row.checksum_asked {
        document.text("ChecksumAlgorithm", algorithm.name());
        document.text("ChecksumType", if upload.row.checksum_composite { "COMPOSITE" } else { "FULL_OBJECT" });
    }
    for (number, part) in &parts {
        document.open("Part");
        document.number("PartNumber", u64::from(*number));
        document.text("LastModified", &iso_date(part.modified_ms));
        document.text("ETag", &quoted(&hex::encode(part.md5)));
        document.number("Size", part.data.size());
        if upload.row.checksum_asked {
            document.text(algorithm.element(), &base64(&part.checksum));
        }
        document.close("Part");
    }
    document.open("Initiator");
    document.text("ID", &upload.row.owner);
    document.text("DisplayName", &upload.row.owner_name);
    document.close("Initiator");
    owner(&mut document, &bucket.row.owner, &bucket.row.owner_name);
    document.text("StorageClass", "STANDARD");
    document.close("ListPartsResult");
    Ok(xml(document))
}

/// Removes an upload and hands its parts to the collector.
///
/// # Errors
/// [`Code::NoSuchUpload`].
pub(crate) async fn discard_upload(gateway: &Gateway, table: TableId, key: &str, id: UploadId) -> S3Result<()> {
    let route = route(key);
    for attempt in 0..ATTEMPTS_MAX {
        let upload = match freeze(gateway, table, key, id, Purpose::FreeSpace).await {
            // It was there, and went: by this attempt's batch if the storage executed it twice, or by somebody else's; or
            // it was completed, and is not discarded.
            Err(error) if attempt > 0 && error.code == Code::NoSuchUpload => {
                return match load_row(gateway, table, key).await? {
                    Some((row, _)) if row.upload == Some(id) => Err(error),
                    _ => Ok(()),
                };
            }
            other => other?,
        };
        let (parts, _) = parts(gateway, table, key, id, 0, 10_000).await?;
        let blobs = parts.iter().filter_map(|(_, part)| part.data.blob()).collect();
        let (start, end) = part_range(&route, id);
        let mut mutations =
            vec![Mutation::Delete(upload_key(&route, id)), Mutation::DeleteRange { space: space::PARTS, start, end }];
        mutations.extend(collect(gateway, &route, blobs));
        let seen = vec![Condition::Equals(upload_key(&route, id), upload.value)];
        match gateway.backend.tables.batch(table, &route, seen, mutations, Purpose::FreeSpace).await {
            Ok(()) => return Ok(()),
            Err(BatchError::ConditionFailed { .. }) => {}
            Err(BatchError::Backend(error)) => return Err(error.into()),
        }
    }
    Err(Code::SlowDown.into())
}

pub(crate) async fn abort(call: &Arc<Call>) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    discard_upload(&call.gateway, bucket.table(), call.key()?, upload_id(call)?).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
