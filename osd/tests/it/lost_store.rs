//! A store that is lost does not come back as the disk that it was.

use std::path::Path;

use holdfast_osd::OsdConfig;
use holdfast_types::OsdId;
use holdfast_wire::mon::LocationStep;
use tokio_util::sync::CancellationToken;

use crate::common::{CLUSTER, socket, start_mon};

/// Runs an OSD until the map shows it up; gives its id.
async fn serve_once(data_dir: &Path, monitor: &str) -> OsdId {
    let config = OsdConfig {
        cluster: CLUSTER,
        data_dir: data_dir.to_owned(),
        device: None,
        capacity_bytes: 256 << 20,
        monitors: vec![monitor.to_owned()],
        advertise: None,
        location: vec![LocationStep { kind: "host".to_owned(), name: "host-0".to_owned() }],
        class: None,
        wanted_id: Some(OsdId(0)),
        memory_target: 64 << 20,
        segment_bytes: 4 << 20,
        shards: 1,
    };
    let osd = holdfast_osd::start(config, socket(), CancellationToken::new()).await.expect("the OSD starts");
    assert!(osd.wait_up().await, "it comes up");
    let id = osd.id();
    osd.stop();
    osd.join().await.expect("it ends in order");
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_store_is_lost_joins_as_a_new_osd() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listener = socket();
    let monitor = listener.local_addr().expect("bound").to_string();
    let mon = start_mon(dir.path(), listener, &monitor).await;
    let data = dir.path().join("osd");
    assert_eq!(serve_once(&data, &monitor).await, OsdId(0));
    assert_eq!(serve_once(&data, &monitor).await, OsdId(0), "the same disk is the same OSD");
    // All but the identity is gone.
    std::fs::remove_file(data.join("formatted")).expect("it was there");
    std::fs::remove_file(data.join("block")).expect("it was there");
    std::fs::remove_dir_all(data.join("index")).expect("it was there");
    assert_eq!(serve_once(&data, &monitor).await, OsdId(1), "a blank disk passes for the one that is lost");
    assert_eq!(serve_once(&data, &monitor).await, OsdId(1));
    mon.shutdown().await;
}
