//! Which operation a request is: a pure function of method, resource, query and a few headers.
//!
//! A sub-resource that S3 has and this gateway has not is [`Code::NotImplemented`]; it is never answered as if the
//! sub-resource had not been named.

use http::{HeaderMap, Method};

use crate::error::{Code, S3Error, S3Result};
use crate::request::{Query, Resource};

/// The operations, by their names in the S3 API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the S3 API reference")]
pub enum Operation {
    ListBuckets,
    CreateBucket,
    HeadBucket,
    DeleteBucket,
    GetBucketLocation,
    GetBucketVersioning,
    GetBucketAcl,
    /// A bucket's sub-resource that is not set: answers what AWS answers then.
    GetBucketUnset(&'static str),
    /// Removes a bucket's sub-resource that is not set.
    DeleteBucketUnset(&'static str),
    ListObjects,
    ListObjectsV2,
    ListObjectVersions,
    ListMultipartUploads,
    DeleteObjects,
    GetObject,
    HeadObject,
    PutObject,
    CopyObject,
    DeleteObject,
    GetObjectAcl,
    GetObjectTagging,
    GetObjectAttributes,
    GetObjectLock,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    ListParts,
    CompleteMultipartUpload,
    AbortMultipartUpload,
}

/// Everything that S3 has as `?name`.
const SUB_RESOURCES: &[&str] = &[
    "abac",
    "accelerate",
    "acl",
    "analytics",
    "append",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "location",
    "logging",
    "metadataInventoryTable",
    "metadataJournalTable",
    "metadataTable",
    "metadataConfiguration",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "session",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versioning",
    "versions",
    "website",
];

fn sub_resource(query: &Query) -> Option<&'static str> {
    // `uploads` and `uploadId` before the rest: `partNumber`, `versionId` and `response-*` only modify.
    query.names().find_map(|name| SUB_RESOURCES.iter().find(|sub| **sub == name).copied())
}

/// Finds the operation.
///
/// # Errors
/// [`Code::NotImplemented`] or [`Code::MethodNotAllowed`].
pub fn route(method: &Method, resource: &Resource, query: &Query, headers: &HeaderMap) -> S3Result<Operation> {
    let sub = sub_resource(query);
    match (&resource.bucket, &resource.key) {
        (None, _) => match (method, sub) {
            (&Method::GET, None) => Ok(Operation::ListBuckets),
            (_, Some(sub)) => Err(not_implemented(sub)),
            (_, None) => Err(Code::MethodNotAllowed.into()),
        },
        (Some(_), None) => bucket(method, sub, query),
        (Some(_), Some(_)) => object(method, sub, query, headers),
    }
}

fn not_implemented(sub: &str) -> S3Error {
    S3Error::from(Code::NotImplemented).detail("SubResource", sub)
}

fn bucket(method: &Method, sub: Option<&'static str>, query: &Query) -> S3Result<Operation> {
    use Operation::*;
    match (method.as_str(), sub) {
        ("GET", None) if query.get("list-type") == Some("2") => Ok(ListObjectsV2),
        ("GET", None) => Ok(ListObjects),
        ("GET", Some("location")) => Ok(GetBucketLocation),
        ("GET", Some("versioning")) => Ok(GetBucketVersioning),
        ("GET", Some("versions")) => Ok(ListObjectVersions),
        ("GET", Some("uploads")) => Ok(ListMultipartUploads),
        ("GET", Some("acl")) => Ok(GetBucketAcl),
        (
            "GET",
            Some(
                sub @ ("object-lock" | "policy" | "policyStatus" | "cors" | "lifecycle" | "tagging" | "encryption"
                | "replication" | "website" | "publicAccessBlock" | "ownershipControls" | "notification"
                | "logging" | "requestPayment" | "accelerate"),
            ),
        ) => Ok(GetBucketUnset(sub)),
        (
            "DELETE",
            Some(
                sub @ ("policy" | "cors" | "lifecycle" | "tagging" | "encryption" | "replication" | "website"
                | "publicAccessBlock" | "ownershipControls"),
            ),
        ) => Ok(DeleteBucketUnset(sub)),
        ("PUT", None) => Ok(CreateBucket),
        ("HEAD", None) => Ok(HeadBucket),
        ("DELETE", None) => Ok(DeleteBucket),
        ("POST", Some("delete")) => Ok(DeleteObjects),
        ("POST", None) => Err(not_implemented("POST object")),
        (_, Some(sub)) => Err(not_implemented(sub)),
        (_, None) => Err(Code::MethodNotAllowed.into()),
    }
}

fn object(method: &Method, sub: Option<&'static str>, query: &Query, headers: &HeaderMap) -> S3Result<Operation> {
    use Operation::*;
    let copies = headers.contains_key("x-amz-copy-source");
    match (method.as_str(), sub) {
        ("GET", None) => Ok(GetObject),
        ("GET", Some("uploadId")) => Ok(ListParts),
        ("GET", Some("acl")) => Ok(GetObjectAcl),
        ("GET", Some("tagging")) => Ok(GetObjectTagging),
        ("GET", Some("attributes")) => Ok(GetObjectAttributes),
        ("GET", Some("legal-hold" | "retention")) => Ok(GetObjectLock),
        ("HEAD", None) => Ok(HeadObject),
        ("PUT", None) if query.has("partNumber") => {
            Err(S3Error::argument("uploadId", "", "This operation does not accept partNumber without uploadId"))
        }
        ("PUT", None) if copies => Ok(CopyObject),
        ("PUT", None) => Ok(PutObject),
        ("PUT", Some("uploadId")) if !query.has("partNumber") => {
            Err(S3Error::argument("partNumber", "", "A part number is needed"))
        }
        ("PUT", Some("uploadId")) if copies => Ok(UploadPartCopy),
        ("PUT", Some("uploadId")) => Ok(UploadPart),
        ("DELETE", None) => Ok(DeleteObject),
        ("DELETE", Some("uploadId")) => Ok(AbortMultipartUpload),
        ("POST", Some("uploads")) => Ok(CreateMultipartUpload),
        ("POST", Some("uploadId")) => Ok(CompleteMultipartUpload),
        (_, Some(sub)) => Err(not_implemented(sub)),
        (_, None) => Err(Code::MethodNotAllowed.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn find(method: &str, path: &str) -> Result<Operation, Code> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let method: Method = method.parse().unwrap();
        let resource = Resource::parse(path, None, &[]).unwrap();
        route(&method, &resource, &Query::parse(query).unwrap(), &HeaderMap::new()).map_err(|error| error.code)
    }

    #[test]
    fn an_unknown_sub_resource_is_never_answered_as_something_else() {
        for sub in SUB_RESOURCES {
            for method in ["GET", "PUT", "POST", "DELETE", "HEAD"] {
                for path in ["/b", "/b/k"] {
                    let plain = find(method, path);
                    let found = find(method, &format!("{path}?{sub}"));
                    assert!(found.is_err() || found != plain, "{method} {path}?{sub}");
                }
            }
        }
        assert_eq!(find("GET", "/b?torrent"), Err(Code::NotImplemented));
        assert_eq!(find("PUT", "/b/k?tagging"), Err(Code::NotImplemented));
        assert_eq!(find("PUT", "/b?versioning"), Err(Code::NotImplemented));
    }

    #[test]
    fn requests_find_their_operation() {
        use Operation::*;
        for (method, path, operation) in [
            ("GET", "/", ListBuckets),
            ("GET", "/?x-id=ListBuckets", ListBuckets),
            ("GET", "/b", ListObjects),
            ("GET", "/b?list-type=2&prefix=x", ListObjectsV2),
            ("GET", "/b?location", GetBucketLocation),
            ("POST", "/b?delete=", DeleteObjects),
            ("GET", "/b/k?versionId=null", GetObject),
            ("PUT", "/b/k?partNumber=1&uploadId=x", UploadPart),
            ("POST", "/b/k?uploads", CreateMultipartUpload),
            ("POST", "/b/k?uploadId=x", CompleteMultipartUpload),
            ("DELETE", "/b/k?uploadId=x", AbortMultipartUpload),
            ("GET", "/b/k?uploadId=x", ListParts),
        ] {
            assert_eq!(find(method, path), Ok(operation), "{method} {path}");
        }
        assert_eq!(find("PATCH", "/b/k"), Err(Code::MethodNotAllowed));
    }
}
