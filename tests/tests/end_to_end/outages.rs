//! What clients notice: writes after an OSD's death, and everything while no monitor is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use holdfast_devcluster::DaemonName;
use holdfast_tests::content::Content;
use holdfast_tests::s3::S3;
use holdfast_tests::world::{CLEAN_LIMIT, World, dose, is_release};

const BUCKET: &str = "outages";
const WRITERS: u64 = 4;
/// Longest stall of writes after kill -9 of an OSD.
const STALL_LIMIT: Duration = Duration::from_millis(1500);
/// Writes go on for this long after each kill.
const WATCH: Duration = Duration::from_secs(5);

/// Writes and reads back until told to stop; the longest time that one of both took.
async fn write_and_read(s3: S3, writer: u64, stop: Arc<AtomicBool>) -> anyhow::Result<(u64, Duration)> {
    let (mut count, mut slowest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        // Over 50 keys each: many placement groups, and none that was not used before.
        let key = format!("{writer}/{}", count % 50);
        let content = Content { seed: count, bytes: if count % 2 == 0 { 4096 } else { 20_000 } };
        let since = Instant::now();
        s3.put(BUCKET, &key, content).await.with_context(|| format!("PUT {key} after {:?}", since.elapsed()))?;
        slowest = slowest.max(since.elapsed());
        if since.elapsed() > STALL_LIMIT {
            println!("   a PUT of {key} took {:.2?}", since.elapsed());
        }
        let since = Instant::now();
        let same = s3.compare(BUCKET, &key, content).await.with_context(|| format!("GET {key}"))?;
        slowest = slowest.max(since.elapsed());
        if since.elapsed() > STALL_LIMIT {
            println!("   a GET of {key} took {:.2?}", since.elapsed());
        }
        ensure!(same, "{key} is not what was written");
        count += 1;
    }
    Ok((count, slowest))
}

/// Runs the writers during `what`: operations, and the slowest of them.
async fn during(s3: &S3, what: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<(u64, Duration)> {
    let stop = Arc::new(AtomicBool::new(false));
    let writers = (0..WRITERS).map(|writer| tokio::spawn(write_and_read(s3.clone(), writer, stop.clone())));
    let writers: Vec<_> = writers.collect();
    what.await?;
    stop.store(true, Ordering::Relaxed);
    let results: Vec<(u64, Duration)> = try_join_all(writers).await?.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(results.into_iter().fold((0, Duration::ZERO), |(sum, max), (count, slowest)| (sum + count, max.max(slowest))))
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_soon_after_kill_9_of_an_osd() -> anyhow::Result<()> {
    let world = World::start(3, 5).await?;
    let s3 = world.s3_with(BUCKET).await?;
    world.cluster.wait_clean(CLEAN_LIMIT).await?;
    let (_, undisturbed) = during(&s3, async {
        tokio::time::sleep(WATCH).await;
        Ok(())
    })
    .await?;
    println!("   slowest operation with nothing killed: {undisturbed:.2?}");
    let mut stalls = Vec::new();
    for osd in 0..dose(3, 5) {
        let kill = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.cluster.kill9(DaemonName::osd(osd)).await?;
            tokio::time::sleep(WATCH).await;
            Ok(())
        };
        let (count, slowest) = during(&s3, kill).await?;
        println!("   kill -9 of osd.{osd}: slowest of {count} writes with read-back {slowest:.2?}");
        stalls.push(slowest);
        world.cluster.start_daemon(DaemonName::osd(osd)).await?;
        world.cluster.wait_clean(CLEAN_LIMIT).await?;
    }
    // The full dose is for a quiet machine; the small one runs beside whatever else a build machine does.
    let limit = if is_release() { STALL_LIMIT * u32::try_from(dose(3, 1))? } else { STALL_LIMIT * 6 };
    ensure!(stalls.iter().all(|stall| *stall <= limit), "writes stalled for {stalls:?}, more than {limit:?}");
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_writes_go_on_while_no_monitor_is_there() -> anyhow::Result<()> {
    let world = World::start(3, 5).await?;
    let s3 = world.s3_with(BUCKET).await?;
    // Settled: every placement group has peered and the gateway has the map.
    during(&s3, async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    })
    .await?;
    world.cluster.wait_clean(CLEAN_LIMIT).await?;
    let away = Duration::from_secs(dose(20, 600));
    let outage = async {
        for mon in 0..3 {
            world.cluster.kill9(DaemonName::mon(mon)).await?;
        }
        tokio::time::sleep(away).await;
        Ok(())
    };
    let (count, slowest) = during(&s3, outage).await?;
    println!("   {away:?} without any monitor: {count} writes with read-back, the slowest took {slowest:.2?}");
    ensure!(count > 20, "hardly anything was written");
    try_join_all((0..3).map(|mon| world.cluster.start_daemon(DaemonName::mon(mon)))).await?;
    let report = world.cluster.wait_clean(CLEAN_LIMIT).await?;
    ensure!(report.osds_up == 5, "nobody died: {report:?}");
    world.end().await
}
