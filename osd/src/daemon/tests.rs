//! Tests of the daemon that need no cluster.

use std::path::Path;

use super::*;

fn config(data: &Path, device: Option<&Path>) -> OsdConfig {
    OsdConfig {
        cluster: holdfast_types::ClusterId([1; 16]),
        data_dir: data.to_owned(),
        device: device.map(Path::to_owned),
        capacity_bytes: 64 << 20,
        monitors: Vec::new(),
        advertise: None,
        location: Vec::new(),
        class: None,
        wanted_id: None,
        memory_target: 16 << 20,
        segment_bytes: 4 << 20,
        shards: 1,
    }
}

/// Starts as the daemon does, writes something and closes.
fn use_store(config: &OsdConfig) -> DiskUuid {
    let disk = known_disk(config).expect("an identity");
    let store = open_store_blocking(config, disk, OsdId(3)).expect("a store").0;
    let own = own_collection(&store.engine().collections());
    store.submit_and_wait(own.expect("it is new")).expect("written");
    store.close().expect("closed");
    disk
}

#[test]
fn a_lost_data_directory_never_gets_the_device_formatted() {
    let (data, elsewhere) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let device = elsewhere.path().join("device");
    std::fs::File::create(&device).expect("an empty device");
    let before = config(data.path(), Some(&device));
    let disk = use_store(&before);
    let unmounted = tempfile::tempdir().expect("a directory");
    let lost = config(unmounted.path(), Some(&device));
    for _ in 0..2 {
        let refused = known_disk(&lost);
        let Err(OsdError::Format { source: FormatError::InUse { found: Some(found), .. }, .. }) = refused else {
            panic!("not refused: {refused:?}");
        };
        assert_eq!((found.disk, found.osd), (disk, OsdId(3)));
    }
    assert!(!unmounted.path().join("identity").exists(), "no new disk is made known");
    let store = open_store_blocking(&before, disk, OsdId(3)).expect("untouched").0;
    assert_eq!(own_collection(&store.engine().collections()), None);
}

#[test]
fn a_device_of_somebody_else_is_never_wiped_for_one_that_was_given_up() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
    let [data, other_data, elsewhere] = &dirs;
    let (device, aside) = (elsewhere.path().join("device"), elsewhere.path().join("aside"));
    std::fs::File::create(&device).expect("an empty device");
    let own = config(data.path(), Some(&device));
    let disk = use_store(&own);
    Lost { life: 1, pending: true, before: None }.write(data.path()).expect("written");
    std::fs::rename(&device, &aside).expect("the names of devices change");
    std::fs::File::create(&device).expect("another one of that name");
    let other = config(other_data.path(), Some(&device));
    let other_disk = use_store(&other);
    let refused = open_store_blocking(&own, disk, OsdId(3)).map(|_| ());
    assert!(matches!(refused, Err(OsdError::Format { source: FormatError::InUse { .. }, .. })), "{refused:?}");
    drop(open_store_blocking(&other, other_disk, OsdId(3)).expect("untouched"));
    std::fs::rename(&aside, &device).expect("the names change back");
    let (_store, lost_now) = open_store_blocking(&own, disk, OsdId(3)).expect("made anew");
    assert!(lost_now);
}

#[tokio::test]
async fn nothing_is_made_in_the_place_of_a_device_that_is_not_there() {
    let data = tempfile::tempdir().expect("a directory");
    let device = data.path().join("not-there");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let started = start(config(data.path(), Some(&device)), listener, CancellationToken::new()).await;
    assert!(matches!(started, Err(OsdError::NoDevice { .. })), "{started:?}");
    assert!(!device.exists() && !data.path().join("identity").exists());
}

#[test]
fn a_device_that_goes_before_its_store_is_made_or_lies_behind_a_link_is_not_replaced_by_a_file() {
    let [data, elsewhere] = &[(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let device = elsewhere.path().join("device");
    std::fs::File::create(&device).expect("an empty file");
    let named = config(data.path(), Some(&device));
    let disk = known_disk(&named).expect("an identity");
    std::fs::remove_file(&device).expect("removed while the monitors are waited for");
    let made = open_store_blocking(&named, disk, OsdId(3)).map(|_| ());
    assert!(matches!(made, Err(OsdError::NoDevice { .. })) && !device.exists(), "{made:?}");

    std::os::unix::fs::symlink(&device, data.path().join("block")).expect("a link");
    let linked = config(data.path(), None);
    assert!(matches!(check_attached(&linked), Err(OsdError::NoDevice { .. })));
    for pending in [false, true] {
        if pending {
            Lost { life: 1, pending, before: None }.write(data.path()).expect("written");
        }
        let made = open_store_blocking(&linked, disk, OsdId(3)).map(|_| ());
        assert!(matches!(made, Err(OsdError::NoDevice { .. })) && !device.exists(), "{made:?}");
    }
    // Attached, and given up: the link stays, what it names is used anew.
    std::fs::File::create(&device).expect("an empty file");
    check_attached(&linked).expect("it is there");
    let (_store, lost_now) = open_store_blocking(&linked, disk, OsdId(3)).expect("made");
    assert!(lost_now && data.path().join("block").is_symlink());
    assert_eq!(device.metadata().expect("a file").len(), linked.capacity_bytes);
}

#[tokio::test]
async fn a_daemon_ends_though_its_device_hangs() {
    let data = tempfile::tempdir().expect("a directory");
    let config = config(data.path(), None);
    let disk = known_disk(&config).expect("an identity");
    let (store, _) = open_store_blocking(&config, disk, OsdId(3)).expect("a store");
    let (free, freed) = std::sync::mpsc::channel::<()>();
    let (reached, is_reached) = std::sync::mpsc::channel();
    let own = own_collection(&store.engine().collections()).expect("it is new");
    let hang = move |_: Result<(), Arc<_>>| {
        let _ = reached.send(());
        let _ = freed.recv();
    };
    store.submit(own, hang).expect("submitted");
    is_reached.recv().expect("the commit thread hangs");
    close(store, Duration::ZERO).await;
    drop(free);
    // What closes it goes on in a thread of its own; a process that ends while the index is being closed aborts.
    let since = std::time::Instant::now();
    while open_store_blocking(&config, disk, OsdId(3)).is_err() && since.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
}

#[test]
fn only_the_maps_that_a_copy_needs_are_taken_from_the_store() {
    let data = tempfile::tempdir().expect("a directory");
    let config = config(data.path(), None);
    let disk = known_disk(&config).expect("an identity");
    let (store, _) = open_store_blocking(&config, disk, OsdId(3)).expect("a store");
    store.submit_and_wait(own_collection(&store.engine().collections()).expect("it is new")).expect("written");
    for epoch in 1..=100 {
        let mut map = holdfast_map::ClusterMap::empty(config.cluster);
        map.epoch = Epoch(epoch);
        for transaction in crate::local::map_transactions(&map) {
            store.submit_and_wait(transaction).expect("written");
        }
    }
    let epochs = |least: Option<u64>| {
        let maps = copies::kept_maps(store.engine(), least.map(Epoch), config.cluster).expect("readable");
        assert!(maps.new.is_empty());
        (maps.start.epoch.0, maps.kept.len(), maps.newest().epoch.0)
    };
    assert_eq!(epochs(Some(40)), (40, 60, 100));
    assert_eq!(epochs(Some(100)), (100, 0, 100));
    assert_eq!(epochs(Some(500)), (1, 99, 100), "without the right ones all that there are");
    assert_eq!(copies::least_epoch(store.engine()), None);
    assert_eq!(epochs(None), (0, 0, 0));
}

#[test]
fn a_copy_whose_index_was_found_damaged_is_given_up_at_the_next_start() {
    let data = tempfile::tempdir().expect("a directory");
    let config = config(data.path(), None);
    let disk = use_store(&config);
    std::fs::write(data.path().join("index-damaged"), "a block of it is bad").expect("written");
    let (store, lost_now) = open_store_blocking(&config, disk, OsdId(3)).expect("made anew");
    assert!(lost_now);
    store.close().expect("closed");
    drop(store);
    let (_store, lost_now) = open_store_blocking(&config, disk, OsdId(3)).expect("opened");
    assert!(!lost_now, "once");
}

#[test]
fn a_lost_mark_beside_the_store_costs_nothing() {
    let data = tempfile::tempdir().expect("a directory");
    let config = config(data.path(), None);
    let disk = use_store(&config);
    std::fs::remove_file(data.path().join(FORMATTED)).expect("removed");
    assert_eq!(known_disk(&config).expect("its identity"), disk);
    let store = open_store_blocking(&config, disk, OsdId(3)).expect("opened").0;
    assert_eq!(own_collection(&store.engine().collections()), None, "what it held is there");
    assert!(data.path().join(FORMATTED).exists());
}
