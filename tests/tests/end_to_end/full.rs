//! A cluster that is filled to 100 %: it says so, refuses what needs room and nothing else, and has room again by itself
//! when something was deleted. No process ends for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use holdfast_devcluster::{DaemonName, ProcessIdentity, Role, Wishes};
use holdfast_tests::content::Content;
use holdfast_tests::ledger::{Ledger, judge_read};
use holdfast_tests::s3::{S3, S3Error};
use holdfast_tests::world::{CLEAN_LIMIT, World, dose};
use holdfast_wire::mon::{HealthCheck, Severity, StatusReport};

const BUCKET: &str = "full";
/// It is emptied and deleted while nothing can be written.
const DOOMED: &str = "doomed";
const WRITERS: u64 = 4;
/// In rising order of what is left when one is refused: large in stripes, one stripe, a few KiB, and in the index alone.
const SIZES: [u64; 5] = [5 << 20, 1 << 20, 200_000, 30_000, 3_000];
/// So often refused one after the other, at the smallest size, a writer takes it that nothing fits any more.
const REFUSALS: u32 = 20;
/// Every OSD reports what it uses at least this often, and a map goes round.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
/// From the last delete until a write is taken: garbage collected, segments cleaned, and the monitors told.
const ROOM_LIMIT: Duration = Duration::from_secs(120);

async fn small_cluster() -> anyhow::Result<World> {
    let capacity_bytes = Some(dose(256, 768) << 20);
    let osds = Some(u32::try_from(dose(3, 5))?);
    World::start_as(Wishes { mons: Some(1), osds, capacity_bytes, ..Wishes::default() }).await
}

fn is_full(error: &S3Error) -> bool {
    matches!(error, S3Error::Refused { status, code } if status.as_u16() == 507 && code == "InsufficientStorage")
}

/// Fails unless it was refused for want of room, by the status and code that S3 clients know.
fn refused_for_room<T>(what: &str, outcome: Result<T, S3Error>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if is_full(&error) => Ok(()),
        Err(error) => anyhow::bail!("{what} on a full cluster: {error}, not 507 InsufficientStorage"),
        Ok(_) => anyhow::bail!("{what} was taken by a full cluster"),
    }
}

/// Writes new objects, smaller ones when large ones are refused, until nothing at all is taken.
async fn fill(s3: S3, writer: u64) -> anyhow::Result<Ledger> {
    let mut ledger = Ledger::default();
    let (mut refused, mut largest) = (0, 0);
    for number in 0_u64.. {
        // Mostly one stripe, at first.
        let index = if largest == 0 && number % 8 != 0 { 1 + usize::from(number % 3 == 0) } else { largest };
        let content = Content { seed: (writer << 32) | number, bytes: SIZES[index] };
        let key = format!("{writer}/{number:05}");
        match s3.put(BUCKET, &key, content).await {
            Ok(()) => {
                ledger.acknowledged(&key, Some(content));
                refused = 0;
            }
            Err(error) if is_full(&error) => {
                refused += 1;
                if index + 1 < SIZES.len() {
                    largest = index + 1;
                } else if refused > REFUSALS {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error).with_context(|| format!("PUT {key} while the cluster fills")),
        }
    }
    Ok(ledger)
}

async fn fill_up(s3: &S3) -> anyhow::Result<Vec<Ledger>> {
    let writers = (0..WRITERS).map(|writer| tokio::spawn(fill(s3.clone(), writer)));
    try_join_all(writers.collect::<Vec<_>>()).await?.into_iter().collect()
}

/// Everything that was acknowledged is there, what was deleted is not, and the listing says the same.
async fn check(s3: &S3, writer: usize, ledger: &Ledger) -> anyhow::Result<()> {
    for (key, possible) in ledger.keys() {
        let read = s3.get(BUCKET, key).await.with_context(|| format!("GET {key}"))?;
        if let Some(wrong) = judge_read(key, possible, read.as_deref()) {
            anyhow::bail!("{wrong}");
        }
    }
    let listed = s3.list(BUCKET, &format!("{writer}/")).await?;
    let wrong = ledger.judge_listing(&listed);
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

async fn check_all(s3: &S3, ledgers: &[Ledger]) -> anyhow::Result<()> {
    let checks = ledgers.iter().enumerate().map(|(writer, ledger)| check(s3, writer, ledger));
    try_join_all(checks).await.map(|_| ())
}

fn present(ledger: &Ledger) -> Vec<String> {
    ledger.keys().keys().filter(|key| !ledger.possible(key).contains(&None)).cloned().collect()
}

async fn delete_one_by_one(s3: &S3, ledger: &mut Ledger) -> anyhow::Result<()> {
    for key in present(ledger) {
        s3.delete(BUCKET, &key).await.with_context(|| format!("DELETE {key} on a full cluster"))?;
        ledger.acknowledged(&key, None);
    }
    Ok(())
}

async fn delete_by_the_hundred(s3: &S3, ledger: &mut Ledger) -> anyhow::Result<()> {
    for keys in present(ledger).chunks(100) {
        let failed = s3.delete_many(BUCKET, keys).await.context("DeleteObjects on a full cluster")?;
        ensure!(failed.is_empty(), "not deleted on a full cluster: {failed:?}");
        for key in keys {
            ledger.acknowledged(key, None);
        }
    }
    Ok(())
}

fn check_of<'r>(report: &'r StatusReport, code: &str) -> Option<&'r HealthCheck> {
    report.checks.iter().find(|check| check.code == code)
}

fn says_full(report: &StatusReport) -> bool {
    report.health == Severity::Error && check_of(report, "OSD_FULL").is_some_and(|c| c.severity == Severity::Error)
}

/// No level of fullness that stops anything is left.
fn has_room(report: &StatusReport) -> bool {
    ["OSD_FULL", "OSD_BACKFILL_FULL"].iter().all(|code| check_of(report, code).is_none())
}

fn processes(world: &World) -> BTreeMap<DaemonName, Option<ProcessIdentity>> {
    world.cluster.layout().daemons().into_iter().map(|daemon| (daemon, world.cluster.process(daemon))).collect()
}

/// Writes until it works; how long it took.
async fn write_again(s3: &S3) -> anyhow::Result<Duration> {
    let since = Instant::now();
    let content = Content { seed: 77, bytes: 1 << 20 };
    loop {
        match s3.put(BUCKET, "again", content).await {
            Ok(()) => break,
            Err(error) if is_full(&error) => {
                ensure!(since.elapsed() < ROOM_LIMIT, "still no room {ROOM_LIMIT:?} after data was deleted");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(s3.compare(BUCKET, "again", content).await?, "what was written first is not what is read");
    s3.delete(BUCKET, "again").await?;
    Ok(since.elapsed())
}

/// As much as was deleted of one writer can be written again.
async fn refill(s3: &S3, bytes: u64) -> anyhow::Result<()> {
    for number in 0..bytes >> 20 {
        let content = Content { seed: number, bytes: 1 << 20 };
        s3.put(BUCKET, &format!("refill/{number}"), content).await.context("a PUT after room was made")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_refuses_writes_with_507_takes_deletes_and_has_room_again_by_itself() -> anyhow::Result<()> {
    let world = small_cluster().await?;
    let s3 = world.s3_with(BUCKET).await?;
    s3.create_bucket(DOOMED).await?;
    for number in 0..20 {
        let content = Content { seed: number, bytes: 100_000 };
        s3.put(DOOMED, &number.to_string(), content).await?;
    }
    world.cluster.wait_clean(CLEAN_LIMIT).await?;
    let before = processes(&world);

    let since = Instant::now();
    let mut ledgers = fill_up(&s3).await?;
    let objects: usize = ledgers.iter().map(|ledger| ledger.keys().len()).sum();
    println!("   full after {:.2?} with {objects} objects", since.elapsed());
    let report = world.cluster.wait_status("full", NOTICE_LIMIT, says_full).await?;
    let full = check_of(&report, "OSD_FULL").context("just seen")?;
    ensure!(!full.detail.is_empty() && !full.impact.is_empty() && !full.fix.is_empty(), "it must help: {full:?}");
    println!("   status: {} ({})", full.summary, full.detail.join("; "));

    // Whatever needs room is refused, and has changed nothing.
    for bytes in SIZES {
        refused_for_room(&format!("a new object of {bytes}"), s3.put(BUCKET, "new", Content { seed: 1, bytes }).await)?;
        let over = present(&ledgers[0])[0].clone();
        refused_for_room(&format!("an overwrite of {bytes}"), s3.put(BUCKET, &over, Content { seed: 2, bytes }).await)?;
    }
    refused_for_room("a new bucket", s3.create_bucket("one-more").await)?;
    check_all(&s3, &ledgers).await.context("on the full cluster")?;

    // All ways to delete go on: a bucket with all in it, single objects, many at a time. The first may make room already.
    ensure!(says_full(&world.cluster.status().await?), "it is not full any more, though nothing was deleted: no test");
    let doomed: Vec<String> = s3.list(DOOMED, "").await?.into_iter().collect();
    ensure!(s3.delete_many(DOOMED, &doomed).await?.is_empty(), "DeleteObjects on a full cluster");
    s3.delete_bucket(DOOMED).await.context("DeleteBucket on a full cluster")?;
    let gone = s3.put(DOOMED, "late", Content { seed: 1, bytes: 10 }).await;
    ensure!(matches!(&gone, Err(S3Error::Refused { code, .. }) if code == "NoSuchBucket"), "{gone:?}");
    let since = Instant::now();
    delete_one_by_one(&s3, &mut ledgers[0]).await?;
    delete_by_the_hundred(&s3, &mut ledgers[1]).await?;
    println!("   half of all deleted in {:.2?}", since.elapsed());

    let writable = write_again(&s3).await?;
    let since = Instant::now();
    world.cluster.wait_status("room, and said so", ROOM_LIMIT, has_room).await?;
    world.cluster.wait_clean(CLEAN_LIMIT).await?;
    println!(
        "   writable again {writable:.2?} after the last delete, clean and no more full {:.2?} later",
        since.elapsed()
    );
    check_all(&s3, &ledgers).await.context("after it was full")?;
    refill(&s3, dose(16, 64) << 20).await?;
    let now = processes(&world);
    ensure!(now == before, "a process ended: {before:?}, now {now:?}");
    world.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_osd_that_dies_and_comes_back_while_all_are_full_becomes_clean() -> anyhow::Result<()> {
    let world = small_cluster().await?;
    let s3 = world.s3_with(BUCKET).await?;
    world.cluster.wait_clean(CLEAN_LIMIT).await?;
    let mut ledgers = fill_up(&s3).await?;
    world.cluster.wait_status("full", NOTICE_LIMIT, says_full).await?;

    let victim = DaemonName::osd(1);
    let others: BTreeSet<DaemonName> =
        world.cluster.layout().daemons().into_iter().filter(|daemon| *daemon != victim).collect();
    let before = processes(&world);
    let osds = u32::try_from(world.cluster.layout().daemons().iter().filter(|d| d.role == Role::Osd).count())?;
    world.cluster.kill9(victim).await?;
    world.cluster.wait_status("the dead OSD shown down", NOTICE_LIMIT, |report| report.osds_up == osds - 1).await?;
    check_all(&s3, &ledgers).await.context("on the full cluster, one OSD dead")?;
    refused_for_room("a new object", s3.put(BUCKET, "new", Content { seed: 1, bytes: 1 << 20 }).await)?;
    // It will have to catch up with these, and has no room to spare itself.
    delete_by_the_hundred(&s3, &mut ledgers[0]).await.context("one OSD dead")?;

    let since = Instant::now();
    world.cluster.start_daemon(victim).await?;
    delete_one_by_one(&s3, &mut ledgers[1]).await.context("while it comes back")?;
    world.cluster.wait_clean(CLEAN_LIMIT).await?;
    println!("   {victim} is clean again {:.2?} after its start", since.elapsed());
    let writable = write_again(&s3).await?;
    world.cluster.wait_status("room, and said so", ROOM_LIMIT, has_room).await?;
    world.cluster.wait_clean(CLEAN_LIMIT).await?;
    println!("   writable again {writable:.2?} after that");
    check_all(&s3, &ledgers).await.context("after it was full")?;
    refill(&s3, dose(16, 64) << 20).await?;
    let now = processes(&world);
    for daemon in others {
        ensure!(before.get(&daemon) == now.get(&daemon), "{daemon} ended");
    }
    world.end().await
}
