//! Real monitors, OSDs and a client in one process, over loopback and real disks: what the shell adds to the core.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::{Client, ClientConfig};
use holdfast_mon::{Listen, MonConfig};
use holdfast_osd::{OsdConfig, OsdHandle};
use holdfast_types::{ClusterId, MonId, ObjectName, OsdId};
use holdfast_wire::mon::{LocationStep, MonCommand, MonReply, StatusReport};
use tokio_util::sync::CancellationToken;

const CLUSTER: ClusterId = ClusterId([7; 16]);

struct Cluster {
    dir: tempfile::TempDir,
    mon_address: String,
    mon: Option<holdfast_mon::Handle>,
    osds: BTreeMap<u32, OsdHandle>,
}

fn socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

async fn start_mon(dir: &Path, listener: TcpListener, address: &str) -> holdfast_mon::Handle {
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
    async fn start(osds: u32) -> Cluster {
        // Quiet unless RUST_LOG asks; the first test to come sets it up for all.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = socket();
        let mon_address = listener.local_addr().expect("bound").to_string();
        let mon = start_mon(dir.path(), listener, &mon_address).await;
        let mut cluster = Cluster { dir, mon_address, mon: Some(mon), osds: BTreeMap::new() };
        for id in 0..osds {
            cluster.start_osd(id).await;
        }
        cluster
    }

    async fn start_osd(&mut self, id: u32) {
        let config = OsdConfig {
            cluster: CLUSTER,
            data_dir: self.dir.path().join(format!("osd-{id}")),
            device: None,
            capacity_bytes: 256 << 20,
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
            shards: 1,
        };
        let osd = holdfast_osd::start(config, socket(), CancellationToken::new()).await.expect("the OSD starts");
        assert_eq!(osd.id(), OsdId(id));
        assert!(osd.wait_up().await, "it comes up");
        self.osds.insert(id, osd);
    }

    async fn stop_osd(&mut self, id: u32) {
        let osd = self.osds.remove(&id).expect("it runs");
        osd.stop();
        osd.join().await.expect("it ends in order");
    }

    async fn client(&self) -> Client {
        Client::connect(ClientConfig::new(CLUSTER, vec![self.mon_address.clone()])).await.expect("the monitors answer")
    }

    async fn stop(mut self) {
        for id in self.osds.keys().copied().collect::<Vec<_>>() {
            self.stop_osd(id).await;
        }
        if let Some(mon) = self.mon.take() {
            mon.shutdown().await;
        }
    }
}

async fn create_pool(client: &Client) {
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

async fn status(client: &Client) -> StatusReport {
    match client.mon_command(MonCommand::Status).await.expect("the monitors answer") {
        MonReply::Status(status) => *status,
        other => panic!("no status: {other:?}"),
    }
}

/// Asks until the status is as wanted: states change with reports, which no client hears of.
async fn wait_status(client: &Client, what: &str, wanted: impl Fn(&StatusReport) -> bool) -> StatusReport {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let now = status(client).await;
        if wanted(&now) {
            return now;
        }
        assert!(tokio::time::Instant::now() < deadline, "not {what} in time: {now:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn all_clean(status: &StatusReport) -> bool {
    status.pgs > 0 && status.pg_states.get("active+clean") == Some(&status.pgs)
}

fn name(index: u32) -> ObjectName {
    ObjectName::new(format!("object-{index}")).expect("valid")
}

fn content(index: u32) -> Bytes {
    Bytes::from(vec![u8::try_from(index % 251).expect("small"); 1000 + index as usize * 977])
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_survive_the_loss_of_an_osd_and_come_back_to_it() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create_pool(&client).await;
    let pool = client.pool("p").await.expect("the pool is there");
    for index in 0..50 {
        pool.write_full(&name(index), content(index)).await.expect("written");
    }
    wait_status(&client, "clean", all_clean).await;

    cluster.stop_osd(1).await;
    let degraded = status(&client).await;
    assert!(!all_clean(&degraded), "an OSD is gone and the status says clean: {degraded:#?}");
    for index in 50..100 {
        pool.write_full(&name(index), content(index)).await.expect("written with two of three");
    }
    for index in 0..100 {
        let read = pool.read(&name(index), 0, 1 << 20).await.expect("read with two of three");
        assert_eq!(read, content(index), "object {index}");
    }

    cluster.start_osd(1).await;
    wait_status(&client, "clean again", all_clean).await;
    cluster.stop_osd(0).await;
    for index in 0..100 {
        let read = pool.read(&name(index), 0, 1 << 20).await.expect("read from those that were filled");
        assert_eq!(read, content(index), "object {index}");
    }
    client.shutdown().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_all_daemons_restarted() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    create_pool(&client).await;
    let pool = client.pool("p").await.expect("the pool is there");
    for index in 0..30 {
        pool.write_full(&name(index), content(index)).await.expect("written");
    }
    for id in 0..3 {
        cluster.stop_osd(id).await;
    }
    cluster.mon.take().expect("it runs").shutdown().await;
    let listener = TcpListener::bind(&cluster.mon_address).expect("the port is free again");
    cluster.mon = Some(start_mon(cluster.dir.path(), listener, &cluster.mon_address).await);
    for id in 0..3 {
        cluster.start_osd(id).await;
    }
    for index in 0..30 {
        let read = pool.read(&name(index), 0, 1 << 20).await.expect("read after the restart");
        assert_eq!(read, content(index), "object {index}");
    }
    wait_status(&client, "clean", all_clean).await;
    client.shutdown().await;
    cluster.stop().await;
}
