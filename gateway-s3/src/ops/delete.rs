//! DeleteObject and DeleteObjects.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt as _;
use http::StatusCode;

use crate::body;
use crate::conditional::WriteCondition;
use crate::error::{Code, S3Error, S3Result};
use crate::objects::remove;
use crate::reply::{empty, xml_held};
use crate::request::check_key_length;
use crate::server::Call;
use crate::xml::request::{DeleteEntry, parse_delete};
use crate::xml::response::XmlWriter;

/// Largest DeleteObjects document: 1,000 keys of 1,024 bytes, many of them references, and some.
const DOCUMENT_BYTES_MAX: usize = 3 << 20;
/// Deletions of one request that run at once.
const AT_ONCE: usize = 16;

/// Only the `null` version exists.
pub(crate) fn check_version(version: Option<&str>) -> S3Result<()> {
    match version {
        None | Some("null") => Ok(()),
        Some("") => Err(S3Error::argument("versionId", "", "Version id cannot be the empty string")),
        Some(other) => Err(S3Error::from(Code::NoSuchVersion).detail("VersionId", other)),
    }
}

pub(crate) async fn one(call: &Arc<Call>) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let condition = WriteCondition::of(&call.headers)?;
    if condition == WriteCondition::Absent {
        return Err(S3Error::from(Code::NotImplemented).detail("Header", "If-None-Match"));
    }
    match check_version(call.query.get("versionId")) {
        // Deleting a version that does not exist is a success.
        Err(error) if error.code == Code::NoSuchVersion => return Ok(empty(StatusCode::NO_CONTENT)),
        other => other?,
    }
    remove(&call.gateway, bucket.table(), call.key()?, &condition).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn many(call: &Arc<Call>, body: &mut Body) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let stated = body::expectations(&call.auth, &call.headers)?;
    if stated.md5.is_none() && stated.claim.is_none() {
        let message = "Missing required header for this request: Content-MD5 OR x-amz-checksum-*";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    let reader = body::open(&call.auth, body, &call.headers, &call.gateway.runtime)?;
    let budget = &call.gateway.document_budget;
    let document = reader.read_document(budget, &call.auth, &call.headers, DOCUMENT_BYTES_MAX).await?;
    let request = parse_delete(document.bytes())?;
    let permit = document.into_permit();
    let table = bucket.table();
    let results: Vec<(DeleteEntry, S3Result<()>)> = futures::stream::iter(request.objects)
        .map(|entry| {
            let call = call.clone();
            async move {
                let result = async {
                    check_key_length(&entry.key)?;
                    match check_version(entry.version.as_deref()) {
                        Err(error) if error.code == Code::NoSuchVersion => return Ok(()),
                        other => other?,
                    }
                    let condition = entry.etag.clone().map_or(WriteCondition::Any, WriteCondition::Match);
                    if entry.key.is_empty() {
                        return Err(S3Error::argument("key", "", "A key cannot be empty"));
                    }
                    remove(&call.gateway, table, &entry.key, &condition).await
                };
                let result = result.await;
                (entry, result)
            }
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut reply = XmlWriter::document();
    reply.root("DeleteResult");
    for (entry, result) in results {
        match result {
            Ok(()) if request.quiet => {}
            Ok(()) => {
                reply.open("Deleted");
                reply.text("Key", &entry.key);
                if let Some(version) = &entry.version {
                    reply.text("VersionId", version);
                }
                reply.close("Deleted");
            }
            Err(error) if error.table_gone => return Err(error),
            Err(error) => {
                reply.open("Error");
                reply.text("Key", &entry.key);
                if let Some(version) = &entry.version {
                    reply.text("VersionId", version);
                }
                reply.text("Code", error.code.as_str());
                reply.text("Message", &error.message);
                reply.close("Error");
            }
        }
    }
    reply.close("DeleteResult");
    Ok(xml_held(reply, permit))
}
