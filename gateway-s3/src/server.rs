//! The HTTP side: connections with limits, one fallback for every path, request ids, errors as XML.
//!
//! hyper parses, axum carries. There is one route of our own, `/-/healthz` (no bucket can be called `-`); everything else
//! reaches [`handle`] with the request line untouched.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::authorize::authorize;
use crate::body::drain;
use crate::error::{Code, S3Result};
use crate::gateway::Gateway;
use crate::ops;
use crate::paced::Paced;
use crate::request::{Query, Resource};
use crate::router::{Operation, route};
use crate::sigv4::{Authenticated, SignedRequest, authenticate, header as text_header, presigned};

/// Largest head of a request: S3 allows 8 KB of headers, of which 2 KB metadata; keys are up to 3 KB when encoded.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most headers.
const HEADERS_MAX: usize = 128;
/// hyper's read buffer: bodies arrive in pieces of up to this.
const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// How much of a body is read and dropped after an early error, so that the client gets to read the reply.
const DRAIN_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A request that passed authentication and authorisation.
pub(crate) struct Call {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Proof of the signature, and who signed.
    pub auth: Authenticated,
    /// Its headers.
    pub headers: http::HeaderMap,
    /// Its query.
    pub query: Query,
    /// What it addresses.
    pub resource: Resource,
    /// Its id.
    pub request_id: String,
    /// Path as sent, for error documents.
    pub raw_path: String,
}

impl Call {
    /// The name of the bucket addressed.
    pub fn bucket_name(&self) -> S3Result<&str> {
        self.resource.bucket.as_deref().ok_or_else(|| Code::InvalidBucketName.into())
    }

    /// The key addressed.
    pub fn key(&self) -> S3Result<&str> {
        self.resource.key.as_deref().ok_or_else(|| Code::InvalidURI.into())
    }

    /// The bucket addressed.
    pub async fn bucket(&self) -> S3Result<Arc<crate::gateway::Bucket>> {
        let bucket = self.gateway.bucket(self.bucket_name()?).await?;
        self.check_owner(&bucket)?;
        Ok(bucket)
    }

    /// The same, past the cache.
    pub async fn bucket_fresh(&self) -> S3Result<Arc<crate::gateway::Bucket>> {
        let bucket = self.gateway.bucket_fresh(self.bucket_name()?).await?.ok_or(Code::NoSuchBucket)?;
        self.check_owner(&bucket)?;
        Ok(bucket)
    }

    /// A client may say whose bucket it expects.
    fn check_owner(&self, bucket: &crate::gateway::Bucket) -> S3Result<()> {
        match text_header(&self.headers, "x-amz-expected-bucket-owner") {
            Some(owner) if owner != bucket.row.owner => Err(Code::AccessDenied.into()),
            _ => Ok(()),
        }
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        text_header(&self.headers, name)
    }
}

/// Serves a prepared gateway on `listener`, and runs its collector, until `shutdown`; then requests in progress finish.
pub async fn serve(gateway: Arc<Gateway>, listener: TcpListener, shutdown: CancellationToken) {
    let collector = gateway.config.gc_every.map(|every| {
        let (gateway, stop) = (gateway.clone(), shutdown.child_token());
        tokio::spawn(async move { crate::gc::run(&gateway, every, stop).await })
    });
    accept(gateway, listener, shutdown).await;
    if let Some(collector) = collector {
        collector.abort();
        let _ = collector.await;
    }
}

/// Serves connections of a prepared gateway.
pub async fn accept(gateway: Arc<Gateway>, listener: TcpListener, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(gateway.config.connections_max));
    let graceful = GracefulShutdown::new();
    let router = router(gateway.clone());
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot,
        };
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (Ok(slot), stream) = (slot, stream) else { break };
        match stream {
            Ok((stream, _peer)) => {
                let connection = connection(&gateway, stream, router.clone());
                let connection = graceful.watch(connection);
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors or the like: other connections must end first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(gateway.config.drain_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were cut off at shutdown");
    }
}

type S3Service = TowerToHyperService<Router>;

fn connection(
    gateway: &Gateway,
    stream: TcpStream,
    router: Router,
) -> hyper::server::conn::http1::Connection<TokioIo<Paced<TcpStream>>, S3Service> {
    let _ = stream.set_nodelay(true);
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(gateway.config.header_timeout)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(Paced::new(stream)), TowerToHyperService::new(router))
}

/// The gateway as a service.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new().route("/-/healthz", axum::routing::get(health)).fallback(entry).with_state(gateway)
}

async fn health(State(gateway): State<Arc<Gateway>>) -> (StatusCode, &'static str) {
    match gateway.bucket_fresh("-").await {
        Ok(_) => (StatusCode::OK, "ok\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the cluster is unavailable\n"),
    }
}

async fn entry(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    handle(&gateway, request).await
}

/// Answers one request.
pub async fn handle(gateway: &Arc<Gateway>, request: Request) -> Response {
    let request_id = format!("{:016X}", gateway.runtime.random());
    let (parts, mut body) = request.into_parts();
    let head = parts.method == Method::HEAD;
    let raw_path = parts.uri.path().to_owned();
    let waits_for_100 = text_header(&parts.headers, "expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue"));
    let empty = http_body::Body::is_end_stream(&body);
    let mut response = match answer(gateway, parts, &mut body, &request_id).await {
        Ok(mut response) => {
            // hyper sends no `100 Continue` for an empty body. botocore, having read a final status in place of one,
            // takes that status for the next reply on the same connection too, and hangs.
            if waits_for_100 && empty {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
        Err(error) => {
            tracing::debug!(%request_id, path = %raw_path, %error, "refused");
            let mut response = error.into_response(head, &raw_path, &request_id);
            // A client that waits for `100 Continue` reads this reply instead; then the connection is closed.
            if response.status() == StatusCode::INSUFFICIENT_STORAGE {
                gateway.refused_for_room.notify_one();
            }
            let ended = http_body::Body::is_end_stream(&body);
            if waits_for_100 || (!ended && !drain(&mut body, DRAIN_BYTES_MAX, &gateway.runtime).await) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        headers.insert("x-amz-request-id", id.clone());
        headers.insert("x-amz-id-2", id);
    }
    headers.insert(header::SERVER, HeaderValue::from_static("Holdfast"));
    response
}

async fn answer(
    gateway: &Arc<Gateway>,
    mut parts: http::request::Parts,
    body: &mut Body,
    request_id: &str,
) -> S3Result<Response> {
    let raw_path = parts.uri.path().to_owned();
    let raw_query = parts.uri.query().unwrap_or_default().to_owned();
    let host =
        text_header(&parts.headers, "host").map(str::to_owned).or_else(|| parts.uri.authority().map(|a| a.to_string()));
    if parts.headers.contains_key("content-length") && parts.headers.contains_key("transfer-encoding") {
        return Err(Code::BadRequest.into());
    }
    let signed = SignedRequest {
        method: parts.method.as_str(),
        raw_path: &raw_path,
        raw_query: &raw_query,
        headers: &parts.headers,
    };
    // The resource is read first only because a bad one cannot be routed; nothing is told about it before authentication.
    let resource = Resource::parse(&raw_path, host.as_deref(), &gateway.config.base_domains);
    let query = Query::parse(&raw_query);
    let keys = gateway.backend.keys.as_ref();
    let auth = authenticate(signed, keys, &gateway.config.region, gateway.clock.now_ms()).await?;
    let (resource, query) = (resource?, query?);
    if auth.is_presigned() {
        presigned::restore_headers(&query, &mut parts.headers)?;
    }
    let operation = route(&parts.method, &resource, &query, &parts.headers)?;
    authorize(auth.principal(), operation, &resource)?;
    let bucket = resource.bucket.clone();
    let call = Arc::new(Call {
        gateway: gateway.clone(),
        auth,
        headers: parts.headers,
        query,
        resource,
        request_id: request_id.to_owned(),
        raw_path,
    });
    let result = perform(&call, operation, body).await;
    match result {
        Err(error) if error.table_gone => {
            // The cached bucket was deleted, and perhaps made again. If it is there, the client's retry will find it.
            let Some(bucket) = bucket else { return Err(error) };
            gateway.forget_bucket(&bucket);
            match gateway.bucket_fresh(&bucket).await? {
                None => Err(crate::error::S3Error::from(Code::NoSuchBucket).detail("BucketName", bucket)),
                Some(_) => Err(Code::SlowDown.into()),
            }
        }
        Err(error) if error.code == Code::NoSuchBucket => Err(error.detail("BucketName", bucket.unwrap_or_default())),
        Err(error) if error.code == Code::NoSuchKey => {
            let key = call.resource.key.clone().unwrap_or_default();
            Err(error.detail("Key", key))
        }
        result => result,
    }
}

async fn perform(call: &Arc<Call>, operation: Operation, body: &mut Body) -> S3Result<Response> {
    match operation {
        Operation::ListBuckets => ops::bucket::list(call).await,
        Operation::CreateBucket => ops::bucket::create(call, body).await,
        Operation::HeadBucket => ops::bucket::head(call).await,
        Operation::DeleteBucket => ops::bucket::delete(call).await,
        Operation::GetBucketLocation => ops::bucket::location(call).await,
        Operation::GetBucketVersioning => ops::bucket::versioning(call).await,
        Operation::GetBucketAcl => ops::bucket::acl(call).await,
        Operation::GetBucketUnset(sub) => ops::bucket::unset(call, sub).await,
        Operation::DeleteBucketUnset(_) => ops::bucket::delete_unset(call).await,
        Operation::ListObjects => ops::list::objects_v1(call).await,
        Operation::ListObjectsV2 => ops::list::objects_v2(call).await,
        Operation::ListObjectVersions => ops::list::versions(call).await,
        Operation::ListMultipartUploads => ops::list::uploads(call).await,
        Operation::DeleteObjects => ops::delete::many(call, body).await,
        Operation::GetObject => ops::object::get(call, true).await,
        Operation::HeadObject => ops::object::get(call, false).await,
        Operation::PutObject => ops::object::put(call, body).await,
        Operation::CopyObject => ops::copy::object(call).await,
        Operation::DeleteObject => ops::delete::one(call).await,
        Operation::GetObjectAcl => ops::object::acl(call).await,
        Operation::GetObjectTagging => ops::object::tagging(call).await,
        Operation::GetObjectAttributes => ops::object::attributes(call).await,
        Operation::GetObjectLock => ops::object::lock(call).await,
        Operation::CreateMultipartUpload => ops::multipart::create(call).await,
        Operation::UploadPart => ops::multipart::upload_part(call, body).await,
        Operation::UploadPartCopy => ops::copy::part(call).await,
        Operation::ListParts => ops::multipart::list_parts(call).await,
        Operation::CompleteMultipartUpload => ops::complete::complete(call, body).await,
        Operation::AbortMultipartUpload => ops::multipart::abort(call).await,
    }
}
