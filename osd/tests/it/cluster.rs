//! Real monitors, OSDs and a client in one process, over loopback and real disks: what the shell adds to the core.

use std::net::TcpListener;

use crate::common::*;

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
