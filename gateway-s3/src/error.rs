//! The one place where failures become S3 error codes.

use std::borrow::Cow;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::backend::{BackendError, BatchError, DropError};
use crate::xml::response::XmlWriter;

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident $status:literal $message:literal;)*) => {
        /// The S3 error codes that this gateway answers, as AWS names them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $(#[doc = $message] $code,)* }

        impl Code {
            /// The text of `<Code>`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$code => stringify!($code),)* }
            }

            /// The HTTP status.
            pub fn status(self) -> StatusCode {
                StatusCode::from_u16(match self { $(Code::$code => $status,)* }).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            fn message(self) -> &'static str {
                match self { $(Code::$code => $message,)* }
            }
        }
    };
}

codes! {
    AccessControlListNotSupported 400 "The bucket does not allow ACLs";
    AccessDenied 403 "Access Denied";
    AuthorizationHeaderMalformed 400 "The authorization header that you provided is not valid.";
    AuthorizationQueryParametersError 400 "The authorization query parameters that you provided are not valid.";
    BadDigest 400 "The Content-MD5 or checksum value that you specified did not match what the server received.";
    BadRequest 400 "Bad Request";
    BucketAlreadyExists 409 "The requested bucket name is not available. The bucket namespace is shared by all users of the system. Please select a different name and try again.";
    BucketAlreadyOwnedByYou 409 "Your previous request to create the named bucket succeeded and you already own it.";
    BucketNotEmpty 409 "The bucket you tried to delete is not empty";
    ConditionalRequestConflict 409 "The conditional request cannot succeed due to a conflicting operation against this resource.";
    EntityTooLarge 400 "Your proposed upload exceeds the maximum allowed size";
    EntityTooSmall 400 "Your proposed upload is smaller than the minimum allowed size";
    IllegalLocationConstraintException 400 "The specified location-constraint is not valid";
    IncompleteBody 400 "You did not provide the number of bytes specified by the Content-Length HTTP header";
    InsufficientStorage 507 "The cluster has no room for this write.";
    InternalError 500 "We encountered an internal error. Please try again.";
    InvalidAccessKeyId 403 "The AWS Access Key Id you provided does not exist in our records.";
    InvalidArgument 400 "Invalid Argument";
    InvalidBucketName 400 "The specified bucket is not valid.";
    InvalidDigest 400 "The Content-MD5 you specified was invalid.";
    InvalidLocationConstraint 400 "The specified location-constraint is not valid";
    InvalidPart 400 "One or more of the specified parts could not be found.  The part may not have been uploaded, or the specified entity tag may not match the part's entity tag.";
    InvalidPartOrder 400 "The list of parts was not in ascending order. Parts must be ordered by part number.";
    InvalidRange 416 "The requested range is not satisfiable";
    InvalidRequest 400 "Invalid Request";
    InvalidStorageClass 400 "The storage class you specified is not valid";
    InvalidTag 400 "The tag provided was not a valid tag.";
    InvalidURI 400 "Couldn't parse the specified URI.";
    KeyTooLongError 400 "Your key is too long";
    MalformedTrailerError 400 "The request contained trailing data that was not well-formed or did not conform to our published schema.";
    MalformedXML 400 "The XML you provided was not well-formed or did not validate against our published schema";
    MaxMessageLengthExceeded 400 "Your request was too big.";
    MetadataTooLarge 400 "Your metadata headers exceed the maximum allowed metadata size";
    MethodNotAllowed 405 "The specified method is not allowed against this resource.";
    MissingContentLength 411 "You must provide the Content-Length HTTP header.";
    MissingRequestBodyError 400 "Request Body is empty";
    NoSuchBucket 404 "The specified bucket does not exist";
    NoSuchBucketPolicy 404 "The bucket policy does not exist";
    NoSuchCORSConfiguration 404 "The CORS configuration does not exist";
    NoSuchKey 404 "The specified key does not exist.";
    NoSuchLifecycleConfiguration 404 "The lifecycle configuration does not exist";
    NoSuchObjectLockConfiguration 404 "The specified object does not have a ObjectLock configuration";
    NoSuchPublicAccessBlockConfiguration 404 "The public access block configuration was not found";
    NoSuchTagSet 404 "The TagSet does not exist";
    NoSuchUpload 404 "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.";
    NoSuchVersion 404 "The specified version does not exist.";
    NoSuchWebsiteConfiguration 404 "The specified bucket does not have a website configuration";
    NotImplemented 501 "A header or query you provided implies functionality that is not implemented";
    ObjectLockConfigurationNotFoundError 404 "Object Lock configuration does not exist for this bucket";
    OperationAborted 409 "A conflicting conditional operation is currently in progress against this resource. Please try again.";
    OwnershipControlsNotFoundError 404 "The bucket ownership controls were not found";
    PreconditionFailed 412 "At least one of the pre-conditions you specified did not hold";
    ReplicationConfigurationNotFoundError 404 "The replication configuration was not found";
    RequestHeaderSectionTooLarge 400 "Your request header section exceeds the maximum allowed request header section size.";
    RequestTimeTooSkewed 403 "The difference between the request time and the current time is too large.";
    RequestTimeout 400 "Your socket connection to the server was not read from or written to within the timeout period.";
    ServerSideEncryptionConfigurationNotFoundError 404 "The server side encryption configuration was not found";
    ServiceUnavailable 503 "Service is unable to handle request.";
    SignatureDoesNotMatch 403 "The request signature we calculated does not match the signature you provided. Check your key and signing method.";
    SlowDown 503 "Please reduce your request rate.";
    XAmzContentSHA256Mismatch 400 "The provided 'x-amz-content-sha256' header does not match what was computed.";
}

/// A failure to be told to the client.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct S3Error {
    /// The code.
    pub code: Code,
    /// The text of `<Message>`.
    pub message: Cow<'static, str>,
    /// Further elements of the error document.
    pub details: Vec<(&'static str, String)>,
    /// Further headers of the reply.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The table was gone: the bucket's cached row may be stale.
    pub table_gone: bool,
    /// It was seen to have been dropped: the bucket is no more.
    pub table_dropped: bool,
}

/// The result of most things here.
pub type S3Result<T> = Result<T, S3Error>;

impl From<Code> for S3Error {
    fn from(code: Code) -> S3Error {
        S3Error {
            code,
            message: Cow::Borrowed(code.message()),
            details: Vec::new(),
            headers: Vec::new(),
            table_gone: false,
            table_dropped: false,
        }
    }
}

impl S3Error {
    /// A code with a message of its own.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> S3Error {
        S3Error { message: message.into(), ..S3Error::from(code) }
    }

    /// `InvalidArgument` naming the argument.
    pub fn argument(name: &'static str, value: impl Into<String>, message: impl Into<Cow<'static, str>>) -> S3Error {
        S3Error::new(Code::InvalidArgument, message).detail("ArgumentName", name).detail("ArgumentValue", value)
    }

    /// Adds an element to the document.
    #[must_use]
    pub fn detail(mut self, name: &'static str, value: impl Into<String>) -> S3Error {
        self.details.push((name, value.into()));
        self
    }

    /// Adds a header to the reply.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> S3Error {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    /// The error document, with its XML declaration if `declared`.
    pub fn to_xml(&self, declared: bool, resource: &str, request_id: &str) -> String {
        let mut xml = if declared { XmlWriter::document() } else { XmlWriter::fragment() };
        xml.open("Error");
        xml.text("Code", self.code.as_str());
        xml.text("Message", &self.message);
        for (name, value) in &self.details {
            xml.text(name, value);
        }
        xml.text("Resource", resource);
        xml.text("RequestId", request_id);
        xml.text("HostId", request_id);
        xml.close("Error");
        xml.finish()
    }

    /// The reply. `head` leaves the document out.
    pub fn into_response(self, head: bool, resource: &str, request_id: &str) -> Response {
        let body = if head { String::new() } else { self.to_xml(true, resource, request_id) };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        if !head {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        }
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        if matches!(self.code, Code::SlowDown | Code::ServiceUnavailable) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<BackendError> for S3Error {
    fn from(error: BackendError) -> S3Error {
        match error {
            BackendError::NoTable(_) => {
                S3Error { table_gone: true, table_dropped: true, ..S3Error::from(Code::NoSuchBucket) }
            }
            error @ BackendError::TableMissing(_) => {
                tracing::warn!(%error, "the bucket is purged, or its index is not to be seen");
                S3Error { table_gone: true, ..S3Error::from(Code::SlowDown) }
            }
            BackendError::Full => Code::InsufficientStorage.into(),
            BackendError::Unavailable(source) => {
                tracing::warn!(error = %source, "cluster unavailable");
                S3Error::new(Code::SlowDown, "The cluster is not available at the moment. Please try again.")
            }
            BackendError::KeyTooLong => Code::KeyTooLongError.into(),
            BackendError::Failed(source) => {
                tracing::error!(error = %source, "the storage failed");
                Code::InternalError.into()
            }
            error @ (BackendError::NoStripe { .. } | BackendError::Corrupt { .. }) => {
                tracing::error!(%error, "stored data cannot be read");
                Code::InternalError.into()
            }
        }
    }
}

impl From<BatchError> for S3Error {
    fn from(error: BatchError) -> S3Error {
        match error {
            BatchError::Backend(error) => error.into(),
            BatchError::ConditionFailed { .. } => Code::OperationAborted.into(),
        }
    }
}

impl From<DropError> for S3Error {
    fn from(error: DropError) -> S3Error {
        match error {
            DropError::Backend(error) => error.into(),
            DropError::NotEmpty { .. } => Code::BucketNotEmpty.into(),
        }
    }
}
