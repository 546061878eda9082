//! ListObjects, ListObjectsV2, ListObjectVersions, ListMultipartUploads.

use std::sync::Arc;

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use crate::clock::iso_date;
use crate::error::{S3Error, S3Result};
use crate::gateway::Bucket;
use crate::listing::{Ask, Item, Listing, Start, common_prefix, list};
use crate::ops::bucket::owner;
use crate::reply::{quoted, xml_held};
use crate::row::{ObjectRow, Row as _, UploadId, UploadRow, route, row_key, space};
use crate::server::Call;
use crate::sigv4::canonical::encode;
use crate::xml::response::{XmlWriter, representable};

/// Most entries of one page.
const MAX_KEYS: u64 = 1000;

/// The parameters that all listings share.
struct Common<'a> {
    prefix: &'a str,
    delimiter: &'a str,
    encode: bool,
    max: usize,
}

impl<'a> Common<'a> {
    fn of(call: &'a Call, max_name: &'static str) -> S3Result<Common<'a>> {
        let encode = match call.query.get("encoding-type") {
            None | Some("") => false,
            Some("url") => true,
            Some(other) => {
                return Err(S3Error::argument("encoding-type", other, "Invalid Encoding Method specified in Request"));
            }
        };
        let max = call.query.number(max_name)?.unwrap_or(MAX_KEYS).min(MAX_KEYS);
        Ok(Common {
            prefix: call.query.get("prefix").unwrap_or_default(),
            delimiter: call.query.get("delimiter").unwrap_or_default(),
            encode,
            max: usize::try_from(max).unwrap_or(1000),
        })
    }

    fn shown(&self, text: &str) -> String {
        if self.encode { encode(text.as_bytes(), true) } else { text.to_owned() }
    }

    /// `Prefix` of ListObjects (v1) is not decoded by botocore though it is documented as encoded, so it is encoded only
    /// where XML cannot hold it.
    fn prefix_v1(&self) -> String {
        if self.encode && !representable(self.prefix) { self.shown(self.prefix) } else { self.prefix.to_owned() }
    }

    fn tail<T>(&self, document: &mut XmlWriter, listing: &Listing<T>) {
        for item in &listing.items {
            if let Item::Prefix(prefix) = item {
                document.open("CommonPrefixes");
                document.text("Prefix", &self.shown(prefix));
                document.close("CommonPrefixes");
            }
        }
        if self.encode {
            document.text("EncodingType", "url");
        }
    }

    async fn objects(&self, call: &Call, bucket: &Bucket, start: Start) -> S3Result<Listing<Shown>> {
        let ask = Ask { space: space::OBJECTS, prefix: self.prefix, delimiter: self.delimiter, start, max: self.max };
        list(&call.gateway, bucket.table(), ask, Shown::of).await
    }

    /// After a key as clients name it: a marker that is a common prefix itself stands for all keys under it.
    fn after(&self, marker: &str) -> Start {
        if marker.is_empty() {
            Start::First
        } else if common_prefix(marker, self.prefix, self.delimiter).as_deref() == Some(marker) {
            Start::AfterPrefix(marker.to_owned())
        } else {
            Start::AfterKey(marker.to_owned())
        }
    }
}

fn last_name<T>(listing: &Listing<T>) -> Option<&str> {
    match listing.items.last()? {
        Item::Row { key, .. } => Some(key),
        Item::Prefix(prefix) => Some(prefix),
    }
}

/// What a listing shows of an object.
struct Shown {
    modified_ms: u64,
    etag: String,
    checksum: Option<(&'static str, &'static str)>,
    size: u64,
}

impl Shown {
    fn of(value: &Bytes) -> S3Result<Shown> {
        let row = ObjectRow::from_bytes(value)?;
        let checksum = row.checksum.as_ref().and_then(|sum| Some((sum.known()?.name(), sum.kind())));
        Ok(Shown { modified_ms: row.modified_ms, etag: row.etag, checksum, size: row.size })
    }
}

fn object(document: &mut XmlWriter, key: &str, row: &Shown) {
    document.text("Key", key);
    document.text("LastModified", &iso_date(row.modified_ms));
    document.text("ETag", &quoted(&row.etag));
    if let Some((algorithm, kind)) = row.checksum {
        document.text("ChecksumAlgorithm", algorithm);
        document.text("ChecksumType", kind);
    }
    document.number("Size", row.size);
    document.text("StorageClass", "STANDARD");
}

fn contents(document: &mut XmlWriter, common: &Common<'_>, bucket: &Bucket, listing: &Listing<Shown>, owners: bool) {
    for item in &listing.items {
        if let Item::Row { key, kept, .. } = item {
            document.open("Contents");
            object(document, &common.shown(key), kept);
            if owners {
                owner(document, &bucket.row.owner, &bucket.row.owner_name);
            }
            document.close("Contents");
        }
    }
}

pub(crate) async fn objects_v1(call: &Arc<Call>) -> S3Result<Response> {
    let common = Common::of(call, "max-keys")?;
    let bucket = call.bucket().await?;
    let marker = call.query.get("marker").unwrap_or_default();
    let listing = common.objects(call, &bucket, common.after(marker)).await?;
    let mut document = XmlWriter::document();
    document.root("ListBucketResult");
    document.text("Name", &bucket.name);
    document.text("Prefix", &common.prefix_v1());
    document.text("Marker", &common.shown(marker));
    document.number("MaxKeys", common.max as u64);
    if !common.delimiter.is_empty() {
        document.text("Delimiter", &common.shown(common.delimiter));
    }
    document.boolean("IsTruncated", listing.truncated);
    if listing.truncated
        && !common.delimiter.is_empty()
        && let Some(last) = last_name(&listing)
    {
        document.text("NextMarker", &common.shown(last));
    }
    contents(&mut document, &common, &bucket, &listing, true);
    common.tail(&mut document, &listing);
    document.close("ListBucketResult");
    Ok(xml_held(document, Some(listing.permit)))
}

fn token_of<T>(item: &Item<T>) -> String {
    let (kind, name) = match item {
        Item::Row { key, .. } => (b'k', key),
        Item::Prefix(prefix) => (b'p', prefix),
    };
    let mut token = vec![kind];
    token.extend_from_slice(name.as_bytes());
    BASE64.encode(token)
}

fn start_of_token(token: &str) -> Option<Start> {
    let token = BASE64.decode(token).ok()?;
    let (kind, name) = token.split_first()?;
    let name = String::from_utf8(name.to_vec()).ok()?;
    match kind {
        b'k' => Some(Start::AfterKey(name)),
        b'p' => Some(Start::AfterPrefix(name)),
        _ => None,
    }
}

pub(crate) async fn objects_v2(call: &Arc<Call>) -> S3Result<Response> {
    let common = Common::of(call, "max-keys")?;
    let start_after = call.query.get("start-after").unwrap_or_default();
    let token = call.query.get("continuation-token");
    let start = match token.filter(|token| !token.is_empty()) {
        // Base64 may hold `+`, which arrives as a space from clients that do not encode it.
        Some(token) => start_of_token(&token.replace(' ', "+")).ok_or_else(|| {
            S3Error::argument("continuation-token", token, "The continuation token provided is incorrect")
        })?,
        None if start_after.is_empty() => Start::First,
        None => Start::AfterKey(start_after.to_owned()),
    };
    let owners = call.query.get("fetch-owner") == Some("true");
    let bucket = call.bucket().await?;
    let listing = common.objects(call, &bucket, start).await?;
    let mut document = XmlWriter::document();
    document.root("ListBucketResult");
    document.text("Name", &bucket.name);
    document.text("Prefix", &common.shown(common.prefix));
    if !start_after.is_empty() {
        document.text("StartAfter", &common.shown(start_after));
    }
    if let Some(token) = token {
        document.text("ContinuationToken", token);
    }
    if listing.truncated
        && let Some(last) = listing.items.last()
    {
        document.text("NextContinuationToken", &token_of(last));
    }
    document.number("KeyCount", listing.items.len() as u64);
    document.number("MaxKeys", common.max as u64);
    if !common.delimiter.is_empty() {
        document.text("Delimiter", &common.shown(common.delimiter));
    }
    document.boolean("IsTruncated", listing.truncated);
    contents(&mut document, &common, &bucket, &listing, owners);
    common.tail(&mut document, &listing);
    document.close("ListBucketResult");
    Ok(xml_held(document, Some(listing.permit)))
}

/// A bucket without versioning: every object is the `null` version and the latest.
pub(crate) async fn versions(call: &Arc<Call>) -> S3Result<Response> {
    let common = Common::of(call, "max-keys")?;
    let bucket = call.bucket().await?;
    let marker = call.query.get("key-marker").unwrap_or_default();
    let version_marker = call.query.get("version-id-marker").unwrap_or_default();
    if marker.is_empty() && !version_marker.is_empty() {
        let message = "A version-id marker cannot be specified without a key marker.";
        return Err(S3Error::argument("version-id-marker", version_marker, message));
    }
    let listing = common.objects(call, &bucket, common.after(marker)).await?;
    let mut document = XmlWriter::document();
    document.root("ListVersionsResult");
    document.text("Name", &bucket.name);
    document.text("Prefix", &common.shown(common.prefix));
    document.text("KeyMarker", &common.shown(marker));
    document.text("VersionIdMarker", version_marker);
    if listing.truncated
        && let Some(last) = last_name(&listing)
    {
        document.text("NextKeyMarker", &common.shown(last));
        if matches!(listing.items.last(), Some(Item::Row { .. })) {
            document.text("NextVersionIdMarker", "null");
        }
    }
    document.number("MaxKeys", common.max as u64);
    if !common.delimiter.is_empty() {
        document.text("Delimiter", &common.shown(common.delimiter));
    }
    document.boolean("IsTruncated", listing.truncated);
    for item in &listing.items {
        if let Item::Row { key, kept, .. } = item {
            document.open("Version");
            object(&mut document, &common.shown(key), kept);
            document.text("VersionId", "null");
            document.boolean("IsLatest", true);
            owner(&mut document, &bucket.row.owner, &bucket.row.owner_name);
            document.close("Version");
        }
    }
    common.tail(&mut document, &listing);
    document.close("ListVersionsResult");
    Ok(xml_held(document, Some(listing.permit)))
}

pub(crate) async fn uploads(call: &Arc<Call>) -> S3Result<Response> {
    let common = Common::of(call, "max-uploads")?;
    let bucket = call.bucket().await?;
    let key_marker = call.query.get("key-marker").unwrap_or_default();
    let id_marker = call.query.get("upload-id-marker").unwrap_or_default();
    // "If key-marker is not specified, the upload-id-marker parameter is ignored."
    let start = match UploadId::parse(id_marker) {
        Some(id) if !key_marker.is_empty() => Start::AfterRow(row_key(space::UPLOADS, &route(key_marker), &id.0).key),
        None if !key_marker.is_empty() && !id_marker.is_empty() => {
            return Err(S3Error::argument("upload-id-marker", id_marker, "Invalid uploadId marker"));
        }
        _ => common.after(key_marker),
    };
    let ask = Ask { space: space::UPLOADS, prefix: common.prefix, delimiter: common.delimiter, start, max: common.max };
    let keep = |value: &Bytes| {
        let row = UploadRow::from_bytes(value)?;
        Ok((row.owner, row.owner_name, row.initiated_ms))
    };
    let listing = list(&call.gateway, bucket.table(), ask, keep).await?;
    let mut document = XmlWriter::document();
    document.root("ListMultipartUploadsResult");
    document.text("Bucket", &bucket.name);
    document.text("KeyMarker", &common.shown(key_marker));
    document.text("UploadIdMarker", id_marker);
    if listing.truncated {
        match listing.items.last() {
            Some(Item::Row { key, suffix, .. }) => {
                document.text("NextKeyMarker", &common.shown(key));
                document.text("NextUploadIdMarker", &hex::encode(suffix));
            }
            Some(Item::Prefix(prefix)) => {
                document.text("NextKeyMarker", &common.shown(prefix));
                document.text("NextUploadIdMarker", "");
            }
            None => {}
        }
    }
    document.text("Prefix", &common.shown(common.prefix));
    if !common.delimiter.is_empty() {
        document.text("Delimiter", &common.shown(common.delimiter));
    }
    document.number("MaxUploads", common.max as u64);
    document.boolean("IsTruncated", listing.truncated);
    for item in &listing.items {
        if let Item::Row { key, suffix, kept: (initiator, initiator_name, initiated_ms) } = item {
            document.open("Upload");
            document.text("Key", &common.shown(key));
            document.text("UploadId", &hex::encode(suffix));
            document.open("Initiator");
            document.text("ID", initiator);
            document.text("DisplayName", initiator_name);
            document.close("Initiator");
            owner(&mut document, &bucket.row.owner, &bucket.row.owner_name);
            document.text("StorageClass", "STANDARD");
            document.text("Initiated", &iso_date(*initiated_ms));
            document.close("Upload");
        }
    }
    common.tail(&mut document, &listing);
    document.close("ListMultipartUploadsResult");
    Ok(xml_held(document, Some(listing.permit)))
}
