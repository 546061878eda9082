//! A cluster in one process, over loopback and real disks, with a gateway on it and a client that signs.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use holdfast_client::{Client, ClientConfig};
use holdfast_gateway_s3::clock::{Clock as _, SystemClock};
use holdfast_gateway_s3::server::handle;
use holdfast_gateway_s3::testing::signer::Signer;
use holdfast_gateway_s3::{Gateway, GatewayConfig, S3Config, S3Handle};
use holdfast_mon::{Listen, MonConfig};
use holdfast_osd::{OsdConfig, OsdHandle};
use holdfast_types::{ClusterId, MonId, OsdId};
use holdfast_wire::mon::{LocationStep, MonCommand, MonReply, Secret};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt as _;
use tokio_util::sync::CancellationToken;

const CLUSTER: ClusterId = ClusterId([8; 16]);
const DEADLINE: Duration = Duration::from_secs(120);

pub struct Cluster {
    _dir: tempfile::TempDir,
    mon_address: String,
    mon: Option<holdfast_mon::Handle>,
    osds: BTreeMap<u32, OsdHandle>,
    pub client: Client,
}

fn socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

async fn start_osd(dir: &Path, mon: &str, id: u32) -> OsdHandle {
    let config = OsdConfig {
        cluster: CLUSTER,
        data_dir: dir.join(format!("osd-{id}")),
        device: None,
        capacity_bytes: 1 << 30,
        monitors: vec![mon.to_owned()],
        advertise: None,
        location: vec![
            LocationStep { kind: "host".to_owned(), name: format!("host-{id}") },
            LocationStep { kind: "root".to_owned(), name: "default".to_owned() },
        ],
        class: None,
        wanted_id: Some(OsdId(id)),
        memory_target: 64 << 20,
        segment_bytes: 16 << 20,
        shards: 1,
    };
    let osd = holdfast_osd::start(config, socket(), CancellationToken::new()).await.unwrap();
    assert!(osd.wait_up().await, "it comes up");
    osd
}

impl Cluster {
    /// One monitor, three OSDs, and the key of the S3 guide.
    pub async fn start() -> Cluster {
        // Quiet unless RUST_LOG asks; the first test to come sets it up for all.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().unwrap();
        let listener = socket();
        let mon_address = listener.local_addr().unwrap().to_string();
        let config = MonConfig {
            id: MonId(0),
            cluster: CLUSTER,
            data: dir.path().join("mon-0"),
            listen: Listen::Bound(listener),
            members: BTreeMap::from([(MonId(0), mon_address.clone())]),
            bootstrap: true,
        };
        let mon = holdfast_mon::run(config, CancellationToken::new()).await.unwrap();
        mon.ready().await;
        let mut osds = BTreeMap::new();
        for id in 0..3 {
            osds.insert(id, start_osd(dir.path(), &mon_address, id).await);
        }
        let client = Client::connect(ClientConfig::new(CLUSTER, vec![mon_address.clone()])).await.unwrap();
        let signer = Signer::example(0);
        let key = MonCommand::KeyNew {
            name: "guide".to_owned(),
            access_key: Some(signer.access_key),
            secret_key: Some(Secret(signer.secret)),
        };
        client.mon_command(key).await.unwrap();
        Cluster { _dir: dir, mon_address, mon: Some(mon), osds, client }
    }

    pub async fn gateway(&self) -> S3 {
        self.gateway_with(GatewayConfig { gc_every: None, ..GatewayConfig::default() }).await
    }

    pub async fn gateway_with(&self, gateway: GatewayConfig) -> S3 {
        self.start_gateway(S3Config { gateway, ..self.gateway_config() }).await
    }

    pub fn gateway_config(&self) -> S3Config {
        S3Config::new(CLUSTER, vec![self.mon_address.clone()])
    }

    pub async fn start_gateway(&self, config: S3Config) -> S3 {
        let handle = holdfast_gateway_s3::start(config, socket(), CancellationToken::new()).await.unwrap();
        S3 { gateway: handle.gateway().clone(), handle }
    }

    pub async fn stop_monitors(&mut self) {
        self.mon.take().unwrap().shutdown().await;
    }

    /// What `holdfast df` says of the pool's objects, once `wanted` holds of it.
    pub async fn wait_objects(&self, pool: &str, wanted: impl Fn(u64) -> bool) -> u64 {
        let id = self.client.pool(pool).await.unwrap().id();
        let count = async || match self.client.mon_command(MonCommand::PgList).await.unwrap() {
            MonReply::Pgs(pgs) => pgs.iter().filter(|row| row.pg.pool == id).map(|row| row.objects).sum::<u64>(),
            other => panic!("no list: {other:?}"),
        };
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let now = count().await;
            if wanted(now) {
                return now;
            }
            assert!(tokio::time::Instant::now() < deadline, "{pool} has {now} objects");
            tokio::time::sleep(Duration::from_millis(50)).await; // reports come when they come
        }
    }

    pub async fn services(&self) -> Vec<String> {
        match self.client.mon_command(MonCommand::Status).await.unwrap() {
            MonReply::Status(status) => status.services,
            other => panic!("no status: {other:?}"),
        }
    }

    pub async fn stop(mut self) {
        self.client.shutdown().await;
        for (_, osd) in std::mem::take(&mut self.osds) {
            osd.stop();
            osd.join().await.unwrap();
        }
        if let Some(mon) = self.mon.take() {
            mon.shutdown().await;
        }
    }
}

pub struct S3 {
    pub gateway: Arc<Gateway>,
    pub handle: S3Handle,
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    #[track_caller]
    pub fn ok(self) -> Reply {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text());
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn elements(&self, name: &str) -> Vec<String> {
        let text = self.text();
        text.split(&format!("<{name}>")).skip(1).map(|rest| rest.split("</").next().unwrap().to_owned()).collect()
    }

    pub fn element(&self, name: &str) -> String {
        self.elements(name).into_iter().next().unwrap_or_default()
    }
}

impl S3 {
    pub async fn call(&self, method: &str, target: &str, pairs: &[(&str, &str)], body: Bytes) -> Reply {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers.insert("host", HeaderValue::from_static("localhost"));
        let signer = Signer::example(SystemClock.now_ms());
        let headers = signer.sign(method, target, headers, &body).headers;
        self.send(method, target, headers, body.len(), body.into()).await
    }

    /// A PUT whose body comes as it comes.
    pub async fn put_stream(&self, target: &str, length: usize, body: Body) -> Reply {
        let host = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("localhost"))]);
        let head = Signer::example(SystemClock.now_ms()).sign_literal("PUT", target, host, "UNSIGNED-PAYLOAD");
        self.send("PUT", target, head.headers, length, body).await
    }

    async fn send(&self, method: &str, target: &str, mut headers: HeaderMap, length: usize, body: Body) -> Reply {
        headers.insert("content-length", length.to_string().parse().unwrap());
        let mut request = Request::builder().method(method).uri(target).body(body).unwrap();
        *request.headers_mut() = headers;
        let (parts, body) = handle(&self.gateway, request).await.into_parts();
        Reply { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    pub fn put(&self, target: &str, body: impl Into<Bytes>) -> impl Future<Output = Reply> {
        let body = body.into();
        async move { self.call("PUT", target, &[], body).await }
    }

    pub async fn get(&self, target: &str) -> Reply {
        self.call("GET", target, &[], Bytes::new()).await
    }

    pub async fn delete(&self, target: &str) -> Reply {
        self.call("DELETE", target, &[], Bytes::new()).await
    }

    /// All keys of a bucket, page by page.
    pub async fn list(&self, bucket: &str, page: usize) -> Vec<String> {
        let (mut keys, mut token) = (Vec::new(), String::new());
        loop {
            let target = format!("/{bucket}?list-type=2&max-keys={page}{token}");
            let reply = self.get(&target).await.ok();
            keys.extend(reply.elements("Key"));
            if reply.element("IsTruncated") != "true" {
                return keys;
            }
            token = format!("&continuation-token={}", reply.element("NextContinuationToken"));
        }
    }

    pub async fn stop(self) {
        self.handle.stop();
        self.handle.join().await.unwrap();
    }
}

/// Bytes that differ everywhere.
pub fn pattern(length: usize, seed: usize) -> Bytes {
    (0..length).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
