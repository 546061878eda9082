//! Making replies.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::blob::Download;
use crate::body::Source as _;
use crate::budget::Permit;
use crate::error::{Code, S3Error, S3Result};
use crate::runtime::{AbortOnDrop, TaskLost};
use crate::server::Call;
use crate::xml::response::{DECLARATION, XmlWriter};

/// A reply without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A 200 with an XML document.
pub(crate) fn xml(document: XmlWriter) -> Response {
    xml_held(document, None)
}

fn xml_head() -> Response {
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

/// The same for a document that counts as memory until the client has it.
pub(crate) fn xml_held(document: XmlWriter, permit: Option<Permit>) -> Response {
    let mut response = xml_head();
    let document = Bytes::from(document.finish());
    *response.body_mut() = Body::from(match permit {
        None => document,
        Some(mut permit) => {
            permit.shrink(document.len());
            permit.hold(document)
        }
    });
    response
}

/// Sets a header; a value that cannot be one is left out.
pub(crate) fn set(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
    {
        headers.insert(name, value);
    }
}

/// An ETag in its quotes.
pub(crate) fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

/// A body that streams a download. Its first piece is fetched before the reply begins, so that an unavailable cluster
/// is told by a status and not by a broken connection.
pub(crate) async fn stream(mut download: Download) -> S3Result<Body> {
    let first = download.next().await?;
    let rest = futures::stream::unfold(Some(download), |download| async move {
        let mut download = download?;
        match download.next().await {
            Ok(None) => None,
            Ok(Some(piece)) => Some((Ok(piece), Some(download))),
            Err(error) => {
                tracing::warn!(%error, "a download was cut off");
                Some((Err(error), None))
            }
        }
    });
    let first = futures::stream::iter(first.map(Ok::<Bytes, S3Error>));
    Ok(Body::from_stream(futures::StreamExt::chain(first, rest)))
}

/// What a slow operation answers: the document without declaration, and headers if they can still be sent.
pub(crate) struct SlowReply {
    /// The document, a fragment.
    pub document: XmlWriter,
    /// Headers that clients can do without.
    pub headers: HeaderMap,
}

/// Answers an operation that may take minutes. It goes on even if the client leaves. If it is not done after a while, the
/// reply begins with 200, the XML declaration and white space, and an error comes inside the 200, as S3 does.
pub(crate) async fn patient<F>(call: &Arc<Call>, operation: F) -> S3Result<Response>
where
    F: Future<Output = S3Result<SlowReply>> + Send + 'static,
{
    keep_alive(call, call.gateway.runtime.spawn(operation)).await
}

/// The same for an operation that ends when its client leaves, wherever it is: nobody waits for it, and what it would do
/// minutes later could undo what others have done since.
pub(crate) async fn patient_while_awaited<F>(call: &Arc<Call>, operation: F) -> S3Result<Response>
where
    F: Future<Output = S3Result<SlowReply>> + Send + 'static,
{
    keep_alive(call, AbortOnDrop(call.gateway.runtime.spawn(operation))).await
}

async fn keep_alive<T>(call: &Arc<Call>, mut task: T) -> S3Result<Response>
where
    T: Future<Output = Result<S3Result<SlowReply>, TaskLost>> + Send + Unpin + 'static,
{
    let every: Duration = call.gateway.config.keep_alive_every;
    if let Ok(done) = call.gateway.runtime.timeout(every, &mut task).await {
        let reply = done.map_err(|_| S3Error::from(Code::InternalError))??;
        let mut response = Response::new(Body::from(DECLARATION.to_owned() + &reply.document.finish()));
        *response.headers_mut() = reply.headers;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        return Ok(response);
    }
    let call = call.clone();
    let first = futures::stream::iter([Ok::<Bytes, S3Error>(Bytes::from_static(DECLARATION.as_bytes()))]);
    let rest = futures::stream::unfold(Some(task), move |task| {
        let call = call.clone();
        async move {
            let mut task = task?;
            let document = match call.gateway.runtime.timeout(every, &mut task).await {
                Err(_) => return Some((Ok(Bytes::from_static(b" ")), Some(task))),
                Ok(Ok(Ok(reply))) => reply.document.finish(),
                Ok(Ok(Err(error))) => error.to_xml(false, &call.raw_path, &call.request_id),
                Ok(Err(_)) => S3Error::from(Code::InternalError).to_xml(false, &call.raw_path, &call.request_id),
            };
            Some((Ok(Bytes::from(document)), None))
        }
    });
    let mut response = Response::new(Body::from_stream(futures::StreamExt::chain(first, rest)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    Ok(response)
}
