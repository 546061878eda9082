//! A cluster that grows under load, one OSD after the other: no operation fails, data moves by itself, in the end all
//! OSDs are filled alike, and pools that have outgrown their placement groups get more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use holdfast_devcluster::Wishes;
use holdfast_tests::content::Content;
use holdfast_tests::s3::S3;
use holdfast_tests::world::{CLEAN_LIMIT, World, dose};
use holdfast_wire::mon::{MonCommand, MonReply, OsdDfRow, StatusReport};

const BUCKET: &str = "growth";
const WRITERS: u64 = 4;
const OSDS_BEFORE: u32 = 3;
/// Of each OSD. A device file is sparse: it takes what is in it.
const CAPACITY_BYTES: u64 = 4 << 30;
/// What lies there before and moves. Enough of them, and alike, that chance makes no OSD fuller than others.
const OBJECT_BYTES: u64 = 128 << 10;
/// Thousandths that an OSD's fill may be off the mean in the end.
const UNEVEN_PERMILLE: u64 = 100;
/// From the last new OSD until all are filled alike: the balancer waits for calm, then moves a few at a time.
const EVEN_LIMIT: Duration = Duration::from_secs(300);
/// From then on until a pool has more placement groups, too: the monitors wait for calm.
const SPLIT_LIMIT: Duration = Duration::from_secs(120);

/// What the load has done so far.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    operations: AtomicU64,
    slowest_us: AtomicU64,
}

impl Load {
    fn done(&self, since: Instant) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.slowest_us.fetch_max(us, Ordering::Relaxed);
    }

    /// Operations per second while `what` runs, and the slowest of them.
    async fn during<T>(&self, what: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(T, String)> {
        let (before, since) = (self.operations.load(Ordering::Relaxed), Instant::now());
        self.slowest_us.store(0, Ordering::Relaxed);
        let result = what.await?;
        let count = self.operations.load(Ordering::Relaxed) - before;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let per_second = count as f64 / since.elapsed().as_secs_f64();
        let slowest = Duration::from_micros(self.slowest_us.load(Ordering::Relaxed));
        Ok((result, format!("{per_second:.0} operations/s over {:.1?}, the slowest {slowest:.2?}", since.elapsed())))
    }
}

/// Writes, reads back, lists and deletes until told to stop. Every operation must succeed.
async fn work(s3: S3, writer: u64, load: Arc<Load>, objects: u64) -> anyhow::Result<()> {
    let mut last = std::collections::BTreeMap::new();
    for number in 0_u64.. {
        if load.stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("load {writer}/{}", number % 40);
        let content = Content { seed: (writer << 32) | number, bytes: if number % 3 == 0 { 3_000 } else { 40_000 } };
        let since = Instant::now();
        s3.put(BUCKET, &key, content).await.with_context(|| format!("PUT {key} after {:?}", since.elapsed()))?;
        load.done(since);
        last.insert(key.clone(), content);
        let since = Instant::now();
        let same = s3.compare(BUCKET, &key, content).await;
        ensure!(same.with_context(|| format!("GET {key} after {:?}", since.elapsed()))?, "{key} is not what was put");
        load.done(since);
        // What moves is read, too.
        let old = number.wrapping_mul(7919) % objects;
        let since = Instant::now();
        let same = s3.compare(BUCKET, &lasting(old), Content { seed: old, bytes: OBJECT_BYTES }).await;
        ensure!(same.with_context(|| format!("GET {}", lasting(old)))?, "{} has changed", lasting(old));
        load.done(since);
        if number % 20 == 19 {
            let since = Instant::now();
            let listed = s3.list(BUCKET, &format!("load {writer}/")).await.context("a listing")?;
            ensure!(listed.iter().eq(last.keys()), "listed {listed:?}, there are {:?}", last.keys());
            s3.delete(BUCKET, &key).await.with_context(|| format!("DELETE {key}"))?;
            last.remove(&key);
            load.done(since);
        }
    }
    for (key, content) in last {
        ensure!(s3.compare(BUCKET, &key, content).await?, "{key} is not what was put last");
    }
    Ok(())
}

fn lasting(number: u64) -> String {
    format!("lasting/{number:06}")
}

async fn check_lasting(s3: &S3, objects: u64) -> anyhow::Result<()> {
    let check = |number| async move {
        let content = Content { seed: number, bytes: OBJECT_BYTES };
        let same = s3.compare(BUCKET, &lasting(number), content).await;
        ensure!(same.with_context(|| format!("GET {}", lasting(number)))?, "{} has changed", lasting(number));
        Ok(())
    };
    stream::iter(0..objects).map(check).buffer_unordered(8).try_collect::<()>().await?;
    let listed = s3.list(BUCKET, "lasting/").await?;
    ensure!(listed.len() as u64 == objects, "{} of {objects} are listed", listed.len());
    Ok(())
}

async fn rows(world: &World) -> anyhow::Result<Vec<OsdDfRow>> {
    match world.cluster.ask(MonCommand::OsdDf).await? {
        MonReply::OsdDf(rows) => Ok(rows),
        other => anyhow::bail!("osd df answers {other:?}"),
    }
}

fn fill_of(row: &OsdDfRow) -> u64 {
    row.usage.map_or(0, |usage| usage.live_bytes)
}

/// By how many thousandths of the mean the OSD that is furthest from it differs.
fn unevenness_permille(rows: &[OsdDfRow]) -> u64 {
    let mean = rows.iter().map(fill_of).sum::<u64>() / (rows.len() as u64).max(1);
    rows.iter().map(|row| fill_of(row).abs_diff(mean) * 1000 / mean.max(1)).max().unwrap_or(0)
}

fn shown(rows: &[OsdDfRow]) -> String {
    let one = |row: &OsdDfRow| format!("{}: {} MiB, {} PGs", row.osd, fill_of(row) >> 20, row.pgs);
    rows.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Waits until the data is spread evenly; how many looks it took is of no interest.
async fn wait_even(world: &World) -> anyhow::Result<Vec<OsdDfRow>> {
    let since = Instant::now();
    loop {
        let rows = rows(world).await?;
        if rows.iter().all(|row| row.usage.is_some()) && unevenness_permille(&rows) <= UNEVEN_PERMILLE {
            return Ok(rows);
        }
        ensure!(since.elapsed() < EVEN_LIMIT, "{} ‰ off the mean: {}", unevenness_permille(&rows), shown(&rows));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn osds_added_one_by_one_under_load_get_their_part_and_no_operation_fails() -> anyhow::Result<()> {
    let osds = u32::try_from(dose(5, 12))?;
    let objects = dose(1_000, 8_000);
    let wishes =
        Wishes { mons: Some(1), osds: Some(OSDS_BEFORE), capacity_bytes: Some(CAPACITY_BYTES), ..Wishes::default() };
    let mut world = World::start_as(wishes).await?;
    let s3 = world.s3_with(BUCKET).await?;
    let put = |number| {
        let s3 = s3.clone();
        async move { s3.put(BUCKET, &lasting(number), Content { seed: number, bytes: OBJECT_BYTES }).await }
    };
    stream::iter(0..objects).map(put).buffer_unordered(8).try_collect::<()>().await?;
    let pgs_before = world.cluster.wait_clean(CLEAN_LIMIT).await?.pgs;
    // With little data the monitors would not judge by it how many placement groups a pool should have.
    let set = MonCommand::ConfigSet { name: "pg_split_bytes_min".to_owned(), value: Some("1".to_owned()) };
    world.cluster.ask(set).await?;

    let load = Arc::new(Load::default());
    let workers = (0..WRITERS).map(|writer| tokio::spawn(work(s3.clone(), writer, load.clone(), objects)));
    let mut workers: Vec<_> = workers.collect();
    let growing = async {
        let calm = async {
            tokio::time::sleep(Duration::from_secs(dose(4, 20))).await;
            anyhow::Ok(())
        };
        let ((), before) = load.during(calm).await?;
        println!("   with {OSDS_BEFORE} OSDs, nothing moving: {before}");
        let growth = async {
            for count in OSDS_BEFORE + 1..=osds {
                world.cluster.add_osd(Some(CAPACITY_BYTES)).await?;
                world
                    .cluster
                    .wait_status("the new OSD in", CLEAN_LIMIT, |report| {
                        report.osds_up == count && report.osds_in == count
                    })
                    .await?;
                // The full dose lets each new one fill before the next comes; the small one does not wait.
                if dose(0, 1) == 1 {
                    world.cluster.wait_clean(CLEAN_LIMIT).await?;
                }
            }
            world.cluster.wait_clean(CLEAN_LIMIT).await?;
            anyhow::Ok(())
        };
        let ((), moving) = load.during(growth).await?;
        println!("   while it grew to {osds} and data moved:  {moving}");
        let (rows, evening) = load.during(wait_even(&world)).await?;
        println!("   until it was even:                 {evening}");
        println!("   {} ‰ off the mean: {}", unevenness_permille(&rows), shown(&rows));
        ensure!(rows.len() == osds as usize && rows.iter().all(|row| row.pgs > 0), "one has nothing: {}", shown(&rows));
        let split = async {
            let grown = |report: &StatusReport| report.pgs > pgs_before;
            Ok(world.cluster.wait_status("more placement groups", SPLIT_LIMIT, grown).await?)
        };
        let (_, splitting) = load.during(split).await?;
        println!("   until a pool was split:            {splitting}");
        let spread = async { Ok(world.cluster.wait_clean(CLEAN_LIMIT).await?) };
        let (_, spreading) = load.during(spread).await?;
        println!("   until what was split was clean:    {spreading}");
        anyhow::Ok(())
    };
    tokio::select! {
        grown = growing => grown?,
        // A worker ends early only with a finding.
        (early, _, _) = futures::future::select_all(&mut workers) => {
            early??;
            anyhow::bail!("a worker ended before it was told to");
        }
    }
    load.stop.store(true, Ordering::Relaxed);
    try_join_all(workers).await?.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    check_lasting(&s3, objects).await?;
    let report = world.cluster.wait_clean(CLEAN_LIMIT).await?;
    println!(
        "   {} operations, none failed; {pgs_before} placement groups before, {} now",
        load.operations.load(Ordering::Relaxed),
        report.pgs
    );
    world.end().await
}
