//! Buckets, and the answers of a bucket for which nothing is configured.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;

use crate::backend::{
    BackendError, BatchError, Condition, DropError, Mutation, Purpose, ScanLimit, ScanRange, TableId,
};
use crate::body;
use crate::clock::iso_date;
use crate::error::{Code, S3Error, S3Result};
use crate::gateway::Gateway;
use crate::reply::{empty, set, xml};
use crate::request::{refuse_unsupported_headers, valid_bucket_name};
use crate::row::{
    BucketRow, DroppedRow, GLOBAL_TABLE, Row as _, after_prefix, escape_prefix, route, row_key, space, split_route,
};
use crate::server::Call;
use crate::xml::request::parse_create_bucket;
use crate::xml::response::XmlWriter;

/// Largest configuration document.
const CONFIGURATION_BYTES_MAX: usize = 64 * 1024;

pub(crate) async fn list(call: &Arc<Call>) -> S3Result<Response> {
    let prefix = call.query.get("prefix").unwrap_or_default();
    let max = match call.query.number("max-buckets")? {
        Some(0) => return Err(S3Error::argument("max-buckets", "0", "max-buckets must be between 1 and 10000")),
        Some(max) => usize::try_from(max).unwrap_or(10_000).min(10_000),
        None => 10_000,
    };
    let lower = escape_prefix(prefix.as_bytes());
    let start = match call.query.get("continuation-token").filter(|token| !token.is_empty()) {
        Some(token) => {
            let wrong =
                || S3Error::argument("continuation-token", token, "The continuation token provided is incorrect");
            hex::decode(token).map_err(|_| wrong())?
        }
        None => lower.clone(),
    };
    let mut range = ScanRange { space: space::BUCKETS, start: start.max(lower.clone()), end: after_prefix(&lower) };
    let mut buckets: Vec<(String, BucketRow)> = Vec::new();
    let mut next = None;
    'pages: loop {
        let limit = ScanLimit { rows: (max - buckets.len() + 1).min(1000), bytes: 1 << 20 };
        let page = call.gateway.backend.tables.scan(GLOBAL_TABLE, range.clone(), limit).await?;
        for (key, value) in page.rows {
            if buckets.len() == max {
                next = Some(hex::encode(&key));
                break 'pages;
            }
            if let Some((name, _)) = split_route(&key) {
                buckets.push((name, BucketRow::from_bytes(&value)?));
            }
        }
        match page.next {
            Some(start) => range.start = start,
            None => break,
        }
    }
    let mut document = XmlWriter::document();
    document.root("ListAllMyBucketsResult");
    owner(&mut document, &call.auth.principal().owner, &call.auth.principal().name);
    document.open("Buckets");
    for (name, row) in &buckets {
        document.open("Bucket");
        document.text("Name", name);
        document.text("CreationDate", &iso_date(row.created_ms));
        document.text("BucketRegion", &call.gateway.config.region);
        document.close("Bucket");
    }
    document.close("Buckets");
    if let Some(next) = next {
        document.text("ContinuationToken", &next);
    }
    if call.query.has("prefix") {
        document.text("Prefix", prefix);
    }
    document.close("ListAllMyBucketsResult");
    Ok(xml(document))
}

/// Writes `<Owner>`.
pub(crate) fn owner(document: &mut XmlWriter, id: &str, name: &str) {
    document.open("Owner");
    document.text("ID", id);
    document.text("DisplayName", name);
    document.close("Owner");
}

pub(crate) async fn create(call: &Arc<Call>, body: &mut Body) -> S3Result<Response> {
    let name = call.bucket_name()?;
    if !valid_bucket_name(name) {
        return Err(S3Error::from(Code::InvalidBucketName).detail("BucketName", name));
    }
    refuse_unsupported_headers(&call.headers)?;
    if call.header("x-amz-bucket-object-lock-enabled").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(Code::NotImplemented.into());
    }
    match call.header("x-amz-object-ownership") {
        None | Some("BucketOwnerEnforced") => {}
        Some(_) => return Err(Code::NotImplemented.into()),
    }
    let reader = body::open(&call.auth, body, &call.headers, &call.gateway.runtime)?;
    let budget = &call.gateway.document_budget;
    let document = reader.read_document(budget, &call.auth, &call.headers, CONFIGURATION_BYTES_MAX).await?;
    let region = &call.gateway.config.region;
    if let Some(location) = parse_create_bucket(document.bytes())?
        && location != *region
    {
        let message = format!(
            "The {location} location constraint is incompatible for the region specific endpoint this request was sent to."
        );
        return Err(S3Error::new(Code::IllegalLocationConstraintException, message));
    }

    let gateway = &call.gateway;
    let principal = call.auth.principal();
    let route = route(name);
    let key = row_key(space::BUCKETS, &route, &[]);
    let row = BucketRow {
        table: TableId(gateway.runtime.unique_id()),
        owner: principal.owner.clone(),
        owner_name: principal.name.clone(),
        created_ms: gateway.clock.now_ms(),
    };
    gateway.backend.tables.create_table(row.table).await?;
    let put = vec![Mutation::Put(key.clone(), row.to_bytes())];
    let mut changes = put.clone();
    let mut condition = Condition::Absent(key.clone());
    let made = || {
        gateway.forget_bucket(name);
        let mut response = empty(StatusCode::OK);
        set(response.headers_mut(), "location", &format!("/{name}"));
        Ok(response)
    };
    for _ in 0..4 {
        match gateway.backend.tables.batch(GLOBAL_TABLE, &route, vec![condition], changes, Purpose::Store).await {
            Ok(()) => return made(),
            // It is our own: the batch was executed, its answer lost, and the batch repeated.
            Err(error) if error.shows(&row.to_bytes()) => return made(),
            Err(BatchError::ConditionFailed { current: Some(current), .. }) => {
                let there = BucketRow::from_bytes(&current)?;
                if table_exists(gateway, there.table).await? {
                    drop_unused(gateway, row.table).await;
                    return already_there(call, name, &there);
                }
                // A deletion was cut off after its commit point: the name is free.
                condition = Condition::Equals(key.clone(), current);
                changes = put.iter().cloned().chain([note_dropped(gateway, &route, there.table)]).collect();
            }
            Err(BatchError::ConditionFailed { current: None, .. }) => {
                condition = Condition::Absent(key.clone());
                changes = put.clone();
            }
            Err(BatchError::Backend(error)) => return Err(error.into()),
        }
    }
    drop_unused(gateway, row.table).await;
    Err(Code::OperationAborted.into())
}

fn already_there(call: &Call, name: &str, there: &BucketRow) -> S3Result<Response> {
    if there.owner != call.auth.principal().owner {
        return Err(S3Error::from(Code::BucketAlreadyExists).detail("BucketName", name));
    }
    if call.gateway.config.region == "us-east-1" {
        // "legacy" of us-east-1: creating a bucket that you own is a success.
        let mut response = empty(StatusCode::OK);
        set(response.headers_mut(), "location", &format!("/{name}"));
        return Ok(response);
    }
    Err(S3Error::from(Code::BucketAlreadyOwnedByYou).detail("BucketName", name))
}

async fn table_exists(gateway: &Gateway, table: TableId) -> S3Result<bool> {
    let probe = ScanRange { space: space::OBJECTS, start: Vec::new(), end: Some(vec![0]) };
    match gateway.backend.tables.scan(table, probe, ScanLimit { rows: 1, bytes: 1 }).await {
        Ok(_) => Ok(true),
        Err(BackendError::NoTable(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Does away with a table that no bucket row names.
async fn drop_unused(gateway: &Gateway, table: TableId) {
    let gone = match gateway.backend.tables.drop_table_if_empty(table, &[]).await {
        Ok(()) => gateway.backend.tables.purge_table(table).await.map_err(DropError::from),
        Err(error) => Err(error),
    };
    if let Err(error) = gone {
        tracing::warn!(%table, %error, "an unused table stays");
    }
}

pub(crate) async fn head(call: &Arc<Call>) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    if !table_exists(&call.gateway, bucket.table()).await? {
        return Err(BackendError::NoTable(bucket.table()).into());
    }
    let mut response = empty(StatusCode::OK);
    set(response.headers_mut(), "x-amz-bucket-region", &call.gateway.config.region);
    set(response.headers_mut(), "x-amz-access-point-alias", "false");
    Ok(response)
}

/// Deletes an empty bucket. Dropping the table is the commit point: a bucket whose table is gone does not exist.
pub(crate) async fn delete(call: &Arc<Call>) -> S3Result<Response> {
    let gateway = &call.gateway;
    let name = call.bucket_name()?;
    let bucket = call.bucket_fresh().await?;
    let table = bucket.table();
    let one = ScanRange { space: space::OBJECTS, start: Vec::new(), end: None };
    let existed = match gateway.backend.tables.scan(table, one, ScanLimit { rows: 1, bytes: 1 }).await {
        Ok(page) if !page.rows.is_empty() => {
            return Err(S3Error::from(Code::BucketNotEmpty).detail("BucketName", name));
        }
        Ok(_) => {
            // Garbage stays in the dropped table, and with it uploads in progress, which do not keep a bucket from being
            // deleted. If it is not dropped, they go on. Writes in progress fail from now on; what they write is garbage.
            let spaces = [space::OBJECTS, space::DATA, space::EXTERNAL];
            match gateway.backend.tables.drop_table_if_empty(table, &spaces).await {
                Ok(()) => true,
                Err(DropError::Backend(BackendError::NoTable(_))) => false,
                Err(DropError::NotEmpty { .. }) => {
                    return Err(S3Error::from(Code::BucketNotEmpty).detail("BucketName", name));
                }
                Err(DropError::Backend(error)) => return Err(error.into()),
            }
        }
        Err(BackendError::NoTable(_)) => false,
        Err(error) => return Err(error.into()),
    };
    forget_row(gateway, name, &bucket.row).await?;
    if existed { Ok(empty(StatusCode::NO_CONTENT)) } else { Err(Code::NoSuchBucket.into()) }
}

/// A mutation that hands a dropped table to the collector.
fn note_dropped(gateway: &Gateway, route: &[u8], table: TableId) -> Mutation {
    let row = DroppedRow { table, since_ms: gateway.clock.now_ms(), collected: None };
    Mutation::Put(row_key(space::DROPPED, route, &table.0), row.to_bytes())
}

/// Removes the row of a bucket whose table was dropped, and hands the table to the collector.
pub(crate) async fn forget_row(gateway: &Gateway, name: &str, row: &BucketRow) -> S3Result<()> {
    let route = route(name);
    let key = row_key(space::BUCKETS, &route, &[]);
    let unchanged = vec![Condition::Equals(key.clone(), row.to_bytes())];
    let changes = vec![Mutation::Delete(key), note_dropped(gateway, &route, row.table)];
    let result = gateway.backend.tables.batch(GLOBAL_TABLE, &route, unchanged, changes, Purpose::FreeSpace).await;
    gateway.forget_bucket(name);
    match result {
        Ok(()) | Err(BatchError::ConditionFailed { .. }) => Ok(()),
        Err(BatchError::Backend(error)) => Err(error.into()),
    }
}

pub(crate) async fn location(call: &Arc<Call>) -> S3Result<Response> {
    call.bucket().await?;
    let region = call.gateway.config.region.as_str();
    let mut document = XmlWriter::document();
    // us-east-1 is the empty location.
    document.root("LocationConstraint");
    document.raw(if region == "us-east-1" { "" } else { region });
    document.close("LocationConstraint");
    Ok(xml(document))
}

pub(crate) async fn versioning(call: &Arc<Call>) -> S3Result<Response> {
    call.bucket().await?;
    Ok(xml(nothing("VersioningConfiguration")))
}

fn nothing(name: &str) -> XmlWriter {
    let mut document = XmlWriter::document();
    document.root(name);
    document.close(name);
    document
}

pub(crate) async fn acl(call: &Arc<Call>) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    Ok(xml(full_control(&bucket.row)))
}

/// The only ACL there is: the bucket's owner has full control.
pub(crate) fn full_control(row: &BucketRow) -> XmlWriter {
    let mut document = XmlWriter::document();
    document.root("AccessControlPolicy");
    owner(&mut document, &row.owner, &row.owner_name);
    document.open("AccessControlList");
    document.open("Grant");
    document.raw("<Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"CanonicalUser\">");
    document.text("ID", &row.owner);
    document.text("DisplayName", &row.owner_name);
    document.close("Grantee");
    document.text("Permission", "FULL_CONTROL");
    document.close("Grant");
    document.close("AccessControlList");
    document.close("AccessControlPolicy");
    document
}

pub(crate) async fn unset(call: &Arc<Call>, sub: &str) -> S3Result<Response> {
    let bucket = call.bucket().await?;
    let code = match sub {
        "object-lock" => Code::ObjectLockConfigurationNotFoundError,
        "policy" | "policyStatus" => Code::NoSuchBucketPolicy,
        "cors" => Code::NoSuchCORSConfiguration,
        "lifecycle" => Code::NoSuchLifecycleConfiguration,
        "tagging" => Code::NoSuchTagSet,
        "encryption" => Code::ServerSideEncryptionConfigurationNotFoundError,
        "replication" => Code::ReplicationConfigurationNotFoundError,
        "website" => Code::NoSuchWebsiteConfiguration,
        "publicAccessBlock" => Code::NoSuchPublicAccessBlockConfiguration,
        "ownershipControls" => Code::OwnershipControlsNotFoundError,
        "notification" => return Ok(xml(nothing("NotificationConfiguration"))),
        "logging" => return Ok(xml(nothing("BucketLoggingStatus"))),
        "accelerate" => return Ok(xml(nothing("AccelerateConfiguration"))),
        "requestPayment" => {
            let mut document = XmlWriter::document();
            document.root("RequestPaymentConfiguration");
            document.text("Payer", "BucketOwner");
            document.close("RequestPaymentConfiguration");
            return Ok(xml(document));
        }
        _ => Code::NotImplemented,
    };
    Err(S3Error::from(code).detail("BucketName", bucket.name.clone()))
}

pub(crate) async fn delete_unset(call: &Arc<Call>) -> S3Result<Response> {
    call.bucket().await?;
    Ok(empty(StatusCode::NO_CONTENT))
}
