//! A client without a network: signs requests, gives them to a gateway, takes the whole reply.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::stream::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::BodyExt as _;
use md5::{Digest as _, Md5};

use super::signer::Signer;
use crate::gateway::Gateway;

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// The method.
    pub method: &'static str,
    /// Path and query, encoded.
    pub target: String,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as far as it came.
    pub body: Bytes,
    /// Why the body did not come to its end.
    pub cut_off: Option<String>,
}

impl Reply {
    /// A header as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The text of each element of this name, as it stands in the document.
    #[must_use]
    pub fn texts(&self, element: &str) -> Vec<String> {
        let document = String::from_utf8_lossy(&self.body);
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let pieces = document.split(open.as_str()).skip(1);
        pieces.filter_map(|piece| Some(piece.split_once(close.as_str())?.0.replace("&quot;", "\""))).collect()
    }

    /// The code of an error document.
    #[must_use]
    pub fn code(&self) -> Option<String> {
        let document = String::from_utf8_lossy(&self.body);
        document.contains("<Error>").then(|| self.texts("Code").into_iter().next()).flatten()
    }
}

/// Calls a gateway as one user; `length` bytes of body come from `pieces`.
pub async fn call(
    gateway: &Arc<Gateway>,
    signer: &Signer,
    ask: Ask,
    length: usize,
    pieces: impl Stream<Item = Bytes> + Send + 'static,
) -> Reply {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("s3.test"));
    headers.insert("content-length", HeaderValue::from(length));
    for (name, value) in ask.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let signed = signer.sign_literal(ask.method, &ask.target, headers, "UNSIGNED-PAYLOAD");
    let pieces = futures::StreamExt::map(pieces, Ok::<Bytes, std::convert::Infallible>);
    let body = if length == 0 { Body::empty() } else { Body::from_stream(pieces) };
    let mut request = Request::new(body);
    *request.headers_mut() = signed.headers;
    if let (Ok(method), Ok(uri)) = (ask.method.parse(), ask.target.parse()) {
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
    }
    let (parts, mut body) = crate::server::handle(gateway, request).await.into_parts();
    let (mut bytes, mut cut_off) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            Err(error) => {
                cut_off = Some(error.to_string());
                break;
            }
        }
    }
    Reply { status: parts.status.as_u16(), headers: parts.headers, body: bytes.freeze(), cut_off }
}

/// The ETag of an object that was written in one piece.
#[must_use]
pub fn etag(body: &[u8]) -> String {
    hex::encode(Md5::digest(body))
}

/// The ETag of an object that was written in these parts.
#[must_use]
pub fn etag_of_parts(parts: &[Bytes]) -> String {
    let mut all = Md5::new();
    for part in parts {
        all.update(Md5::digest(part));
    }
    format!("{}-{}", hex::encode(all.finalize()), parts.len())
}
