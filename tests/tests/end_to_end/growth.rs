//! A cluster that grows under load, one OSD after the other: no operation fails, data moves by itself, in the end all
//! OSDs are filled alike, and pools that have outgrown their placement groups get more, which are spread as evenly.

use std::collections::BTreeMap;
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
use holdfast_types::{OsdId, PgId, PoolId};
use holdfast_wire::mon::{MonCommand, MonReply, OsdDfRow, PgRow, StatusReport};

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
/// With so much data the monitors judge by it how many placement groups a pool should have; with less only where
/// `pg_split_bytes_min` says so (`DATA_BYTES_MIN` of `mon/state/src/leader/growth.rs`).
const JUDGED_BYTES: u64 = 256 << 20;
/// From then on until a pool has more placement groups, too: the monitors wait for calm, and the balancer goes on meanwhile.
const SPLIT_LIMIT: Duration = Duration::from_secs(300);
/// Until all that was split lies where it shall, and nothing is split any more. The full dose doubles a pool twice, and moves
/// half of its data each time.
const SPREAD_LIMIT: Duration = Duration::from_secs(900);
/// When nothing has moved for so long, nothing is left to spread: the next step of it comes within a second or so of all
/// being clean, a further split ten seconds after the last step.
const STILL: Duration = Duration::from_secs(15);

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
    let mut last = BTreeMap::new();
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

async fn placement(world: &World) -> anyhow::Result<Vec<PgRow>> {
    match world.cluster.ask(MonCommand::PgList).await? {
        MonReply::Pgs(rows) => Ok(rows),
        other => anyhow::bail!("pg ls answers {other:?}"),
    }
}

/// Waits until all is clean and nothing moves any more. How far the data of a split has been spread is in the map alone;
/// but while some is left, places change.
async fn wait_still(world: &World) -> anyhow::Result<Vec<PgRow>> {
    let since = Instant::now();
    let mut still_since = since;
    let mut places: BTreeMap<PgId, Vec<OsdId>> = BTreeMap::new();
    loop {
        let rows = placement(world).await?;
        let now: BTreeMap<PgId, Vec<OsdId>> = rows.iter().map(|row| (row.pg, row.up.clone())).collect();
        let unclean = rows.iter().filter(|row| row.state != "active+clean").count();
        if unclean > 0 || now != places {
            still_since = Instant::now();
            places = now;
        } else if still_since.elapsed() >= STILL {
            return Ok(rows);
        }
        ensure!(
            since.elapsed() < SPREAD_LIMIT,
            "after {SPREAD_LIMIT:?} placement groups still move: {unclean} of {} are not clean; nothing moved for {:?}",
            rows.len(),
            still_since.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Placement groups of each pool.
fn pg_nums(rows: &[PgRow]) -> BTreeMap<PoolId, u32> {
    let mut nums = BTreeMap::new();
    for row in rows {
        *nums.entry(row.pg.pool).or_insert(0) += 1;
    }
    nums
}

/// Of the placement groups that the last split of each pool has made: how many lie elsewhere than what they were split from,
/// and how many there are.
fn moved_of_split(rows: &[PgRow], before: &BTreeMap<PoolId, u32>) -> (u32, u32) {
    let up: BTreeMap<PgId, &[OsdId]> = rows.iter().map(|row| (row.pg, row.up.as_slice())).collect();
    let (mut moved, mut made) = (0, 0);
    for (pool, now) in pg_nums(rows) {
        if before.get(&pool).is_none_or(|before| now <= *before) {
            continue;
        }
        let half = now / 2; // a split doubles
        for seed in half..now {
            let from = PgId { pool, seed: seed - half };
            made += 1;
            moved += u32::from(up.get(&PgId { pool, seed }) != up.get(&from));
        }
    }
    (moved, made)
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
    // Enough of them may have had a pool split already; what follows begins when that is over.
    let judged = objects * OBJECT_BYTES >= JUDGED_BYTES;
    let pgs = if judged {
        wait_still(&world).await?
    } else {
        world.cluster.wait_clean(CLEAN_LIMIT).await?;
        placement(&world).await?
    };
    let pg_nums_before = pg_nums(&pgs);
    let pgs_before: u32 = pg_nums_before.values().sum();

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
            if !judged {
                let set = MonCommand::ConfigSet { name: "pg_split_bytes_min".to_owned(), value: Some("1".to_owned()) };
                world.cluster.ask(set).await?;
            }
            let grown = |report: &StatusReport| report.pgs > pgs_before;
            anyhow::Ok(world.cluster.wait_status("more placement groups", SPLIT_LIMIT, grown).await?)
        };
        let (_, splitting) = load.during(split).await?;
        println!("   until a pool was split:            {splitting}");
        let (pgs, spreading) = load.during(wait_still(&world)).await?;
        let (moved, made) = moved_of_split(&pgs, &pg_nums_before);
        println!("   until all of it was spread:        {spreading}");
        // By chance one in sixty, or fewer, is placed as what it was split from.
        ensure!(moved * 2 > made, "{moved} of {made} placement groups of a split lie elsewhere than what was split");
        let (rows, evening) = load.during(wait_even(&world)).await?;
        println!("   until it was even again:           {evening}");
        println!(
            "   {} ‰ off the mean after the split, {moved} of its {made} placement groups moved: {}",
            unevenness_permille(&rows),
            shown(&rows)
        );
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
