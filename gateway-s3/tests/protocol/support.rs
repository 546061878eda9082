//! A gateway in memory with a clock of its own, and a client that signs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use holdfast_gateway_s3::clock::{Clock as _, FixedClock};
use holdfast_gateway_s3::server::handle;
use holdfast_gateway_s3::testing::memory::Memory;
use holdfast_gateway_s3::testing::signer::Signer;
use holdfast_gateway_s3::{Gateway, GatewayConfig};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;

/// 24 May 2013, the day of the S3 guide's examples.
pub const NOW_MS: u64 = 1_369_353_600_000;
pub const HOST: &str = "localhost:9000";

pub struct World {
    pub memory: Arc<Memory>,
    pub gateway: Arc<Gateway>,
    pub clock: Arc<FixedClock>,
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The text of the first element with this name.
    pub fn element(&self, name: &str) -> String {
        element(&self.text(), name).unwrap_or_default()
    }

    pub fn elements(&self, name: &str) -> Vec<String> {
        let text = self.text();
        text.split(&format!("<{name}>")).skip(1).map(|rest| rest.split("</").next().unwrap().to_owned()).collect()
    }

    #[track_caller]
    pub fn ok(self) -> Reply {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text());
        self
    }

    #[track_caller]
    pub fn is(self, status: u16, code: &str) -> Reply {
        assert_eq!((self.status.as_u16(), self.element("Code").as_str()), (status, code), "{}", self.text());
        assert_eq!(self.element("RequestId"), self.header("x-amz-request-id"));
        assert_eq!(self.header("content-type"), "application/xml");
        self
    }
}

pub fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
}

pub fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    }
    headers
}

pub fn config() -> GatewayConfig {
    GatewayConfig {
        base_domains: vec!["s3.example.com".to_owned(), "s3.amazonaws.com".to_owned()],
        keep_alive_every: Duration::from_millis(20),
        gc_min_age: Duration::from_secs(600),
        ..GatewayConfig::default()
    }
}

impl World {
    pub async fn new() -> World {
        World::with(config()).await
    }

    pub async fn with(config: GatewayConfig) -> World {
        let (memory, clock) = (Memory::new(), Arc::new(FixedClock::new(NOW_MS)));
        let gateway = Gateway::new(config, memory.backend(), clock.clone());
        gateway.prepare().await.unwrap();
        World { memory, gateway, clock }
    }

    pub async fn with_bucket() -> World {
        let world = World::new().await;
        world.put("/bkt", &[]).await.ok();
        world
    }

    pub fn signer(&self) -> Signer {
        Signer::example(self.clock.now_ms())
    }

    pub async fn raw(&self, method: &str, target: &str, headers: HeaderMap, body: impl Into<Body>) -> Reply {
        let (parts, body) = self.response(method, target, headers, body).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    /// A response whose body is still to be read.
    pub async fn response(
        &self,
        method: &str,
        target: &str,
        headers: HeaderMap,
        body: impl Into<Body>,
    ) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(target).body(body.into()).unwrap();
        *request.headers_mut() = headers;
        handle(&self.gateway, request).await
    }

    pub async fn call(&self, method: &str, target: &str, pairs: &[(&str, &str)], body: &[u8]) -> Reply {
        self.raw(method, target, self.signed(method, target, pairs, body), body.to_vec()).await
    }

    /// The headers of a request.
    pub fn signed(&self, method: &str, target: &str, pairs: &[(&str, &str)], body: &[u8]) -> HeaderMap {
        let mut all = headers(pairs);
        if !all.contains_key("host") {
            all.insert("host", HOST.parse().unwrap());
        }
        let mut all = self.signer().sign(method, target, all, body).headers;
        if !body.is_empty() || method == "PUT" || method == "POST" {
            all.insert("content-length", body.len().to_string().parse().unwrap());
        }
        all
    }

    pub async fn get(&self, target: &str) -> Reply {
        self.call("GET", target, &[], b"").await
    }

    pub async fn put(&self, target: &str, body: &[u8]) -> Reply {
        self.call("PUT", target, &[], body).await
    }

    pub async fn delete(&self, target: &str) -> Reply {
        self.call("DELETE", target, &[], b"").await
    }
}

/// Bytes that differ everywhere.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

pub fn md5_hex(data: &[u8]) -> String {
    use md5::Digest as _;
    hex::encode(md5::Md5::digest(data))
}
