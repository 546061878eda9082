//! Real monitors, OSDs and a client in one process, over loopback and real disks.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::{Client, ClientConfig, Pool};
use holdfast_map::ClusterMap;
use holdfast_mon::{Listen, MonConfig};
use holdfast_osd::{OsdConfig, OsdHandle};
use holdfast_pg::ObjectKey;
use holdfast_store::{CollectionId, ObjectKey as StoreKey, ReadError, Store, StoreConfig};
use holdfast_types::{ClusterId, Epoch, MonId, ObjectName, OsdId};
use holdfast_wire::mon::{LocationStep, MonCommand, MonReply, StatusReport};
use tokio_util::sync::CancellationToken;

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
/// What never comes on a busy machine either.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub mon_address: String,
    pub mon: Option<holdfast_mon::Handle>,
    pub osds: BTreeMap<u32, OsdHandle>,
    /// Sizes of the devices, in bytes.
    pub capacities: Vec<u64>,
}

pub fn socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

pub async fn start_mon(dir: &Path, listener: TcpListener, address: &str) -> holdfast_mon::Handle {
    let config = MonConfig {
        id: MonId(0),
        cluster: CLUSTER,
        data: dir.join("mon-0"),
        listen: Listen::Bound(listener),
        members: BTreeMap::from([(MonId(0), address.to_owned())]),
        bootstrap: true,
    };
    let mon = holdfast_mon::run(config, CancellationToken::new()).await.expect("the monitor starts");
    mon.ready().await;
    mon
}

impl Cluster {
    pub async fn start(osds: u32) -> Cluster {
        Cluster::start_with(&vec![256 << 20; osds as usize]).await
    }

    pub async fn start_with(capacities: &[u64]) -> Cluster {
        // Quiet unless RUST_LOG asks; the first test to come sets it up for all.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = socket();
        let mon_address = listener.local_addr().expect("bound").to_string();
        let mon = start_mon(dir.path(), listener, &mon_address).await;
        let capacities = capacities.to_vec();
        let mut cluster = Cluster { dir, mon_address, mon: Some(mon), osds: BTreeMap::new(), capacities };
        for id in 0..u32::try_from(cluster.capacities.len()).expect("few") {
            cluster.start_osd(id).await;
        }
        cluster
    }

    fn config(&self, id: u32) -> OsdConfig {
        OsdConfig {
            cluster: CLUSTER,
            data_dir: self.dir.path().join(format!("osd-{id}")),
            device: None,
            capacity_bytes: self.capacities[id as usize],
            monitors: vec![self.mon_address.clone()],
            advertise: None,
            location: vec![
                LocationStep { kind: "host".to_owned(), name: format!("host-{id}") },
                LocationStep { kind: "root".to_owned(), name: "default".to_owned() },
            ],
            class: Some("ssd".to_owned()),
            wanted_id: Some(OsdId(id)),
            memory_target: 64 << 20,
            segment_bytes: 4 << 20,
            shards: 2,
        }
    }

    /// Starts an OSD that may end by itself.
    pub async fn launch(&self, id: u32) -> OsdHandle {
        let config = self.config(id);
        let osd = holdfast_osd::start(config, socket(), CancellationToken::new()).await.expect("the OSD starts");
        assert_eq!(osd.id(), OsdId(id));
        osd
    }

    pub async fn start_osd(&mut self, id: u32) {
        let osd = self.launch(id).await;
        assert!(osd.wait_up().await, "it comes up");
        self.osds.insert(id, osd);
    }

    pub async fn stop_osd(&mut self, id: u32) {
        let osd = self.osds.remove(&id).expect("it runs");
        osd.stop();
        osd.join().await.expect("it ends in order");
    }

    pub async fn client(&self) -> Client {
        let config = ClientConfig::new(CLUSTER, vec![self.mon_address.clone()]);
        Client::connect(ClientConfig { op_timeout: PATIENCE, ..config }).await.expect("the monitors answer")
    }

    pub async fn stop(mut self) {
        for id in self.osds.keys().copied().collect::<Vec<_>>() {
            self.stop_osd(id).await;
        }
        if let Some(mon) = self.mon.take() {
            mon.shutdown().await;
        }
    }
}

pub async fn create_pool(client: &Client) {
    let command = MonCommand::PoolCreate {
        name: "p".to_owned(),
        size: Some(3),
        min_size: Some(2),
        application: "test".to_owned(),
        failure_domain: None,
        share_percent: None,
    };
    let reply = client.mon_command(command).await.expect("the monitors answer");
    assert!(matches!(reply, MonReply::Pool { .. }), "{reply:?}");
}

pub async fn status(client: &Client) -> StatusReport {
    match client.mon_command(MonCommand::Status).await.expect("the monitors answer") {
        MonReply::Status(status) => *status,
        other => panic!("no status: {other:?}"),
    }
}

/// Asks until the status is as wanted. This has to poll: states of placement groups change with the reports of OSDs to the
/// monitors, which make no new map, so a client that follows the maps hears nothing of them.
pub async fn wait_status(client: &Client, what: &str, wanted: impl Fn(&StatusReport) -> bool) -> StatusReport {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let now = status(client).await;
        if wanted(&now) {
            return now;
        }
        assert!(tokio::time::Instant::now() < deadline, "not {what} in time: {now:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn all_clean(status: &StatusReport) -> bool {
    status.pgs > 0 && status.pg_states.get("active+clean") == Some(&status.pgs)
}

pub fn name(index: u32) -> ObjectName {
    ObjectName::new(format!("object-{index}")).expect("valid")
}

pub fn content(index: u32) -> Bytes {
    Bytes::from(vec![u8::try_from(index % 251).expect("small"); 1000 + index as usize * 977])
}

/// The present map.
pub async fn map(client: &Client) -> ClusterMap {
    match client.mon_command(MonCommand::GetMaps { after: Epoch::ZERO }).await.expect("the monitors answer") {
        MonReply::Maps(update) => ClusterMap::decode_full(&update.full.expect("a full map")).expect("a map"),
        other => panic!("no map: {other:?}"),
    }
}

/// Who keeps an object now, the primary first.
pub async fn keepers(pool: &Pool, name: &ObjectName) -> Vec<u32> {
    let map = map(pool.client()).await;
    let pg = map.pg_of(pool.id(), name).expect("the pool exists");
    map.members(pg).acting.iter().map(|osd| osd.0).collect()
}

/// Bytes that are nowhere else on a disk.
pub fn unique(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| byte()).collect::<Vec<u8>>().into()
}

impl Cluster {
    /// Flips one bit of an object's bytes wherever they lie on an OSD's device.
    pub fn flip_bit(&self, osd: u32, content: &[u8]) {
        let path = self.dir.path().join(format!("osd-{osd}/block"));
        let device = std::fs::read(&path).expect("the device is a file");
        let needle = content.get(..64).expect("long enough to be found");
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("writable");
        let mut found = 0;
        for at in memchr_all(&device, needle) {
            found += 1;
            let at = at + 40;
            let flipped = device[at] ^ 0x10;
            std::os::unix::fs::FileExt::write_all_at(&file, &[flipped], at as u64).expect("written");
        }
        assert!(found > 0, "the object's bytes are not on osd.{osd}");
    }

    /// Reads an object straight from the store of an OSD that does not run.
    pub fn on_disk(&self, osd: u32, pool: &Pool, map: &ClusterMap, name: &ObjectName) -> Result<Bytes, ReadError> {
        let config = StoreConfig {
            memory_target: 16 << 20,
            ..StoreConfig::in_directory(&self.dir.path().join(format!("osd-{osd}")))
        };
        let store = Store::open(&config).expect("the store opens");
        let pg = map.pg_of(pool.id(), name).expect("the pool exists");
        let collection = CollectionId { pool: pg.pool.0, seed: pg.seed };
        let key = StoreKey::new(ObjectKey::of(name).as_bytes().to_vec()).expect("a key");
        let read = store.read(collection, &key, 0, u64::MAX);
        store.close().expect("closed");
        read
    }
}

fn memchr_all<'a>(device: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = needle[0];
    let starts = device.iter().enumerate().filter(move |(_, byte)| **byte == first).map(|(at, _)| at);
    starts.filter(move |at| device.get(*at..*at + needle.len()) == Some(needle))
}

/// What a health check says, line by line; nothing when it does not fire.
pub fn check_lines(status: &StatusReport, code: &str) -> Vec<String> {
    status.checks.iter().filter(|check| check.code == code).flat_map(|check| check.detail.clone()).collect()
}
