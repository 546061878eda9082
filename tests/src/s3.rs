//! A small S3 client: signature version 4, no retries, and an error that says whether the operation may have happened.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use http::{Method, Request, StatusCode};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use md5::Md5;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use quick_xml::events::Event;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;

use crate::content::Content;

/// A request without a whole answer after this has an unknown outcome. Longer than any outage that the tests make.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Large bodies have more time, at what a client may get when many share a slow disk.
const SLOWEST_BYTES_PER_SECOND: u64 = 1 << 20;
/// Idle connections kept.
const IDLE_MAX: usize = 64;

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &UNRESERVED.remove(b'/');

type RequestBody = BoxBody<Bytes, Infallible>;

/// Why an operation has no good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Error {
    /// The gateway says no: nothing has happened.
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// S3's code.
        code: String,
    },
    /// A broken connection, no answer in time, or a server's fault: it may have happened.
    Unknown(String),
}

impl std::fmt::Display for S3Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            S3Error::Refused { status, code } => write!(f, "{} {code}", status.as_u16()),
            S3Error::Unknown(why) => write!(f, "unknown outcome: {why}"),
        }
    }
}

impl std::error::Error for S3Error {}

fn unknown(error: impl std::fmt::Display) -> S3Error {
    S3Error::Unknown(error.to_string())
}

/// A client of one endpoint with one key. Clones share their connections.
#[derive(Clone)]
pub struct S3 {
    shared: Arc<Shared>,
}

struct Shared {
    address: String,
    region: String,
    access_key: String,
    secret_key: String,
    idle: Mutex<Vec<SendRequest<RequestBody>>>,
}

/// One page of a listing.
#[derive(Debug, Default)]
struct Page {
    keys: Vec<String>,
    next: Option<String>,
}

impl S3 {
    /// A client of `address` (`host:port`).
    #[must_use]
    pub fn new(address: String, region: &str, access_key: &str, secret_key: &str) -> S3 {
        let (region, access_key, secret_key) = (region.to_owned(), access_key.to_owned(), secret_key.to_owned());
        S3 { shared: Arc::new(Shared { address, region, access_key, secret_key, idle: Mutex::new(Vec::new()) }) }
    }

    /// Makes a bucket; one that is there is as good.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn create_bucket(&self, bucket: &str) -> Result<(), S3Error> {
        match self.call(Method::PUT, bucket, "", &[], none()).await {
            Ok(_) => Ok(()),
            Err(S3Error::Refused { code, .. }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Stores an object.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn put(&self, bucket: &str, key: &str, content: Content) -> Result<(), S3Error> {
        let limit = REQUEST_LIMIT + Duration::from_secs(content.bytes / SLOWEST_BYTES_PER_SECOND);
        self.call_within(limit, Method::PUT, bucket, key, &[], content.body().boxed()).await.map(|_| ())
    }

    /// Reads an object: `None` when there is none.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn get(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, S3Error> {
        match self.call(Method::GET, bucket, key, &[], none()).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(S3Error::Refused { code, .. }) if code == "NoSuchKey" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads an object and compares it while it comes, holding one piece at a time. `false`: another content.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn compare(&self, bucket: &str, key: &str, content: Content) -> Result<bool, S3Error> {
        let request = self.signed(&Method::GET, bucket, key, &[], none()).map_err(unknown)?;
        let (mut connection, reply) = self.send(request).await?;
        let mut body = succeeded(reply).await?;
        let (mut at, mut equal) = (0u64, true);
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.map_err(unknown)?.into_data() else { continue };
            let to = at + piece.len() as u64;
            equal &= to <= content.bytes && content.piece(at, to) == piece;
            at = to;
        }
        self.give_back(&mut connection);
        Ok(equal && at == content.bytes)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<(), S3Error> {
        self.call(Method::DELETE, bucket, key, &[], none()).await.map(|_| ())
    }

    /// Deletes objects by one request: the keys that were not deleted, each with S3's code.
    ///
    /// # Errors
    /// [`S3Error`], when the whole request failed.
    pub async fn delete_many(&self, bucket: &str, keys: &[String]) -> Result<Vec<(String, String)>, S3Error> {
        let objects = keys.iter().map(|key| format!("<Object><Key>{}</Key></Object>", quick_xml::escape::escape(key)));
        let document = format!("<Delete><Quiet>true</Quiet>{}</Delete>", objects.collect::<String>());
        let digest = BASE64_STANDARD.encode(Md5::digest(&document));
        let body = Full::new(Bytes::from(document)).boxed();
        let mut request = self.signed(&Method::POST, bucket, "", &[("delete", "")], body).map_err(unknown)?;
        request.headers_mut().insert("content-md5", digest.parse().map_err(unknown)?);
        let reply = self.answer_within(REQUEST_LIMIT, request).await?;
        let (mut failed, mut current) = (Vec::new(), String::new());
        for (name, text) in elements(&reply)? {
            match name.as_str() {
                "Key" => current = text,
                "Code" => failed.push((current.clone(), text)),
                _ => {}
            }
        }
        Ok(failed)
    }

    /// Deletes an empty bucket.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn delete_bucket(&self, bucket: &str) -> Result<(), S3Error> {
        self.call(Method::DELETE, bucket, "", &[], none()).await.map(|_| ())
    }

    /// All keys below a prefix, page by page. Fails when they are out of order or one comes twice.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn list(&self, bucket: &str, prefix: &str) -> Result<BTreeSet<String>, S3Error> {
        let mut all: Vec<String> = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let mut query = vec![("list-type", "2"), ("prefix", prefix)];
            query.extend(next.as_deref().map(|token| ("continuation-token", token)));
            let page = page_of(&self.call(Method::GET, bucket, "", &query, none()).await?)?;
            all.extend(page.keys);
            match page.next {
                Some(token) => next = Some(token),
                None => break,
            }
        }
        if let Some(pair) = all.windows(2).find(|pair| pair.first() >= pair.get(1)) {
            return Err(unknown(format!("the listing is out of order: {pair:?}")));
        }
        Ok(all.into_iter().collect())
    }

    async fn call(
        &self,
        method: Method,
        bucket: &str,
        key: &str,
        query: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<Bytes, S3Error> {
        self.call_within(REQUEST_LIMIT, method, bucket, key, query, body).await
    }

    async fn call_within(
        &self,
        limit: Duration,
        method: Method,
        bucket: &str,
        key: &str,
        query: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<Bytes, S3Error> {
        let request = self.signed(&method, bucket, key, query, body).map_err(unknown)?;
        self.answer_within(limit, request).await
    }

    async fn answer_within(&self, limit: Duration, request: Request<RequestBody>) -> Result<Bytes, S3Error> {
        let whole = async {
            let (mut connection, reply) = self.send(request).await?;
            let body = succeeded(reply).await;
            let bytes = match body {
                Ok(body) => Ok(body.collect().await.map_err(unknown)?.to_bytes()),
                Err(error) => Err(error),
            };
            self.give_back(&mut connection);
            bytes
        };
        tokio::time::timeout(limit, whole).await.map_err(|_| unknown("no answer in time"))?
    }

    async fn send(
        &self,
        request: Request<RequestBody>,
    ) -> Result<(Option<SendRequest<RequestBody>>, http::Response<Incoming>), S3Error> {
        let mut connection = self.connection().await?;
        let reply = connection.send_request(request).await.map_err(unknown)?;
        Ok((Some(connection), reply))
    }

    async fn connection(&self) -> Result<SendRequest<RequestBody>, S3Error> {
        loop {
            let Some(mut idle) = self.shared.idle.lock().pop() else { break };
            if !idle.is_closed() && idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let stream = TcpStream::connect(&self.shared.address).await.map_err(unknown)?;
        stream.set_nodelay(true).map_err(unknown)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(unknown)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn give_back(&self, connection: &mut Option<SendRequest<RequestBody>>) {
        let mut idle = self.shared.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.extend(connection.take().filter(|connection| !connection.is_closed()));
        }
    }

    /// Signature version 4 in the header, with the payload unsigned.
    fn signed(
        &self,
        method: &Method,
        bucket: &str,
        key: &str,
        query: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<Request<RequestBody>, http::Error> {
        const PAYLOAD: &str = "UNSIGNED-PAYLOAD";
        const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";
        let shared = &*self.shared;
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = time.get(..8).unwrap_or_default();
        let path =
            if key.is_empty() { format!("/{bucket}") } else { format!("/{bucket}/{}", utf8_percent_encode(key, PATH)) };
        let encoded = |text: &str| utf8_percent_encode(text, UNRESERVED).to_string();
        let mut pairs: Vec<String> =
            query.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        pairs.sort_unstable();
        let query = pairs.join("&");
        let canonical = format!(
            "{method}\n{path}\n{query}\nhost:{}\nx-amz-content-sha256:{PAYLOAD}\nx-amz-date:{time}\n\n{SIGNED}\n{PAYLOAD}",
            shared.address
        );
        let scope = format!("{day}/{}/s3/aws4_request", shared.region);
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
        let mut secret = format!("AWS4{}", shared.secret_key).into_bytes();
        for part in [day, &shared.region, "s3", "aws4_request"] {
            secret = hmac(&secret, part);
        }
        let signature = hex::encode(hmac(&secret, &text));
        let credential = format!("{}/{scope}", shared.access_key);
        let length = body.size_hint().exact().unwrap_or(0);
        let mut request = Request::builder()
            .method(method.clone())
            .uri(if query.is_empty() { path } else { format!("{path}?{query}") })
            .header("host", &shared.address)
            .header("x-amz-date", time)
            .header("x-amz-content-sha256", PAYLOAD)
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={SIGNED}, Signature={signature}"),
            );
        if *method == Method::PUT || *method == Method::POST {
            request = request.header("content-length", length);
        }
        request.body(body)
    }
}

fn none() -> RequestBody {
    Full::new(Bytes::new()).boxed()
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length of key is good for HMAC");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

async fn succeeded(reply: http::Response<Incoming>) -> Result<Incoming, S3Error> {
    let (parts, body) = reply.into_parts();
    if parts.status.is_success() {
        return Ok(body);
    }
    let text = body.collect().await.map_err(unknown)?.to_bytes();
    let code = element(&text, "Code").unwrap_or_default();
    // A full cluster is no server's fault: it refuses, and nothing has happened.
    if parts.status.is_server_error() && parts.status != StatusCode::INSUFFICIENT_STORAGE {
        let message = element(&text, "Message").unwrap_or_default();
        return Err(unknown(format!("{} {code}: {message}", parts.status.as_u16())));
    }
    Err(S3Error::Refused { status: parts.status, code })
}

/// The text of the first element of this name.
fn element(xml: &[u8], name: &str) -> Option<String> {
    elements(xml).ok()?.into_iter().find(|(found, _)| found == name).map(|(_, text)| text)
}

/// All elements that hold text, in order.
fn elements(xml: &[u8]) -> Result<Vec<(String, String)>, S3Error> {
    let mut reader = quick_xml::Reader::from_str(std::str::from_utf8(xml).map_err(unknown)?);
    let (mut open, mut text, mut found) = (String::new(), String::new(), Vec::new());
    loop {
        match reader.read_event().map_err(unknown)? {
            Event::Start(start) => {
                open = start.local_name().as_ref().to_owned();
                text.clear();
            }
            Event::Text(more) => text.push_str(&more),
            Event::GeneralRef(entity) => match entity.resolve_char_ref().map_err(unknown)? {
                Some(character) => text.push(character),
                None => {
                    text.push_str(quick_xml::escape::resolve_predefined_entity(&entity).unwrap_or_default());
                }
            },
            Event::End(_) if !open.is_empty() => {
                found.push((std::mem::take(&mut open), std::mem::take(&mut text)));
            }
            Event::Eof => return Ok(found),
            _ => {}
        }
    }
}

fn page_of(xml: &[u8]) -> Result<Page, S3Error> {
    let mut page = Page::default();
    let mut truncated = false;
    for (name, text) in elements(xml)? {
        match name.as_str() {
            "Key" => page.keys.push(text),
            "NextContinuationToken" => page.next = Some(text),
            "IsTruncated" => truncated = text == "true",
            _ => {}
        }
    }
    if truncated != page.next.is_some() {
        return Err(unknown("a page that is cut off has no token, or a whole one has"));
    }
    Ok(page)
}
