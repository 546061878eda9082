//! Nothing acknowledged is lost: load with a ledger while one process at a time gets kill -9, then all at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use holdfast_devcluster::{DaemonName, Role};
use holdfast_tests::content::Content;
use holdfast_tests::ledger::{Ledger, judge_read};
use holdfast_tests::s3::{S3, S3Error};
use holdfast_tests::world::{CLEAN_LIMIT, World, dose, seed};
use holdfast_wire::mon::StatusReport;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

const BUCKET: &str = "chaos";
const WRITERS: u64 = 4;
/// Keys of one writer: few, so that they are overwritten and deleted again and again.
const KEYS: u64 = 150;

/// After a kill the cluster must have noticed within this; the small dose runs beside whatever a build machine does.
fn notice_limit() -> Duration {
    Duration::from_secs(dose(40, 15))
}

fn seconds() -> u64 {
    let asked = std::env::var("HOLDFAST_CHAOS_SECONDS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or_else(|| dose(40, 120))
}

/// One writer and reader of its own keys.
struct Worker {
    s3: S3,
    id: u64,
    random: SmallRng,
    ledger: Ledger,
    /// Longest time that any operation took.
    slowest: Duration,
}

impl Worker {
    fn new(s3: &S3, id: u64, seed: u64) -> Worker {
        let random = SmallRng::seed_from_u64(seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Worker { s3: s3.clone(), id, random, ledger: Ledger::default(), slowest: Duration::ZERO }
    }

    fn prefix(&self) -> String {
        format!("writer {}/", self.id)
    }

    fn content(&mut self) -> Content {
        let bytes = match self.random.random_range(0..100) {
            0..50 => self.random.random_range(0..16_384),
            50..80 => self.random.random_range(16_000..40_000),
            80..98 => self.random.random_range(40_000..600_000),
            _ => self.random.random_range(600_000..6_000_000),
        };
        Content { seed: self.random.random(), bytes }
    }

    async fn run(mut self, stop: Arc<AtomicBool>) -> anyhow::Result<Worker> {
        while !stop.load(Ordering::Relaxed) {
            let key = format!("{}key {:03}", self.prefix(), self.random.random_range(0..KEYS));
            let since = Instant::now();
            match self.random.random_range(0..100) {
                0..45 if self.ledger.is_certain(&key) => self.write(&key).await?,
                45..60 if self.ledger.is_certain(&key) => self.delete(&key).await?,
                60..70 => self.list().await?,
                _ => self.read(&key).await?,
            }
            self.slowest = self.slowest.max(since.elapsed());
        }
        Ok(self)
    }

    async fn write(&mut self, key: &str) -> anyhow::Result<()> {
        let content = self.content();
        match self.s3.put(BUCKET, key, content).await {
            Ok(()) => self.ledger.acknowledged(key, Some(content)),
            Err(S3Error::Unknown(_)) => self.ledger.unknown(key, Some(content)),
            Err(refused @ S3Error::Refused { .. }) => return Err(refused).context("a PUT was refused"),
        }
        Ok(())
    }

    async fn delete(&mut self, key: &str) -> anyhow::Result<()> {
        match self.s3.delete(BUCKET, key).await {
            Ok(()) => self.ledger.acknowledged(key, None),
            Err(S3Error::Unknown(_)) => self.ledger.unknown(key, None),
            Err(refused @ S3Error::Refused { .. }) => return Err(refused).context("a DELETE was refused"),
        }
        Ok(())
    }

    async fn read(&mut self, key: &str) -> anyhow::Result<()> {
        match self.s3.get(BUCKET, key).await {
            Ok(read) => match judge_read(key, &self.ledger.possible(key), read.as_deref()) {
                None => Ok(()),
                Some(wrong) => anyhow::bail!("read while processes were killed: {wrong}"),
            },
            Err(S3Error::Unknown(_)) => Ok(()),
            Err(refused) => Err(refused).context("a GET was refused"),
        }
    }

    async fn list(&mut self) -> anyhow::Result<()> {
        match self.s3.list(BUCKET, &self.prefix()).await {
            Ok(listed) => {
                let wrong = self.ledger.judge_listing(&listed);
                ensure!(wrong.is_empty(), "listed while processes were killed: {wrong:?}");
                Ok(())
            }
            Err(S3Error::Unknown(_)) => Ok(()),
            Err(refused) => Err(refused).context("a listing was refused"),
        }
    }

    /// All that this worker ever wrote, once the cluster is whole again. Every answer must come.
    async fn check(&self) -> anyhow::Result<u64> {
        for (key, possible) in self.ledger.keys() {
            let read = self.s3.get(BUCKET, key).await.with_context(|| format!("{key} cannot be read"))?;
            if let Some(wrong) = judge_read(key, possible, read.as_deref()) {
                anyhow::bail!("after it all: {wrong}");
            }
        }
        let listed = self.s3.list(BUCKET, &self.prefix()).await.context("the listing")?;
        let wrong = self.ledger.judge_listing(&listed);
        ensure!(wrong.is_empty(), "after it all: {wrong:?}");
        Ok(self.ledger.keys().len() as u64)
    }
}

fn says_clean(report: &StatusReport) -> bool {
    report.pgs > 0 && report.pg_states.get("active+clean") == Some(&report.pgs) && report.copies_missing == 0
}

/// Kills and restarts random monitors and OSDs, and holds the status to the truth at each step.
async fn kill_one_after_the_other(world: &World, random: &mut SmallRng, until: Instant) -> anyhow::Result<u64> {
    let cluster = &world.cluster;
    let victims: Vec<DaemonName> =
        cluster.layout().daemons().into_iter().filter(|daemon| daemon.role != Role::S3).collect();
    let mut kills = 0;
    while Instant::now() < until {
        let victim = victims[random.random_range(0..victims.len())];
        cluster.kill9(victim).await?;
        kills += 1;
        match victim.role {
            Role::Osd => {
                let others = u32::try_from(cluster.layout().osds.len())? - 1;
                let report = cluster
                    .wait_status("the dead OSD shown down", notice_limit(), |report| report.osds_up == others)
                    .await?;
                // Five OSDs, three copies: some placement group has lost one.
                ensure!(!says_clean(&report), "{victim} is dead and the status says clean: {report:?}");
                ensure!(!report.checks.is_empty(), "{victim} is dead and no check says so: {report:?}");
            }
            _ => {
                let quorum = cluster.layout().mons.len() - 1;
                cluster
                    .wait_status("the dead monitor out of the quorum", notice_limit(), |report| {
                        report.mons_in_quorum.len() == quorum
                    })
                    .await?;
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..3000))).await;
        cluster.start_daemon(victim).await?;
        // Every second time the next kill comes while copies are still being made.
        if random.random_bool(0.5) {
            cluster.wait_clean(CLEAN_LIMIT).await?;
        }
    }
    Ok(kills)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_processes_are_killed_one_by_one_and_all_at_once() -> anyhow::Result<()> {
    let seed = seed();
    let mut world = World::start(3, 5).await?;
    let s3 = world.s3_with(BUCKET).await?;
    world.cluster.wait_clean(CLEAN_LIMIT).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let mut workers: Vec<_> =
        (0..WRITERS).map(|id| tokio::spawn(Worker::new(&s3, id, seed).run(stop.clone()))).collect();
    let until = Instant::now() + Duration::from_secs(seconds());
    let mut random = SmallRng::seed_from_u64(seed);
    let killing = kill_one_after_the_other(&world, &mut random, until);
    let kills = tokio::select! {
        kills = killing => kills?,
        // A worker ends early only with a finding.
        (early, _, _) = futures::future::select_all(&mut workers) => {
            early??;
            anyhow::bail!("a worker ended before it was told to");
        }
    };

    world.cluster.kill9_all().await?;
    stop.store(true, Ordering::Relaxed);
    let workers: Vec<Worker> = try_join_all(workers).await?.into_iter().collect::<anyhow::Result<_>>()?;
    let since = Instant::now();
    world.cluster.start_all().await?;
    let back = since.elapsed();
    let report = world.cluster.wait_clean(CLEAN_LIMIT).await?;
    let clean = since.elapsed();
    let keys: u64 = try_join_all(workers.iter().map(Worker::check)).await?.into_iter().sum();

    // Clean was true: with any one OSD away, everything is still there.
    let away = DaemonName::osd(random.random_range(0..5));
    world.cluster.kill9(away).await?;
    try_join_all(workers.iter().map(Worker::check)).await.with_context(|| format!("without {away}"))?;
    world.cluster.start_daemon(away).await?;
    world.cluster.wait_clean(CLEAN_LIMIT).await?;

    let sum = |of: fn(&Worker) -> u64| workers.iter().map(of).sum::<u64>();
    let slowest = workers.iter().map(|worker| worker.slowest).max().unwrap_or_default();
    println!(
        "   {kills} kills under load, then all at once: {} operations acknowledged, {} of unknown outcome, {keys} keys \
         checked, {} objects in the cluster; slowest operation {slowest:.2?}; after the restart of all: serving after \
         {back:.2?}, clean after {clean:.2?}",
        sum(|worker| worker.ledger.acknowledged),
        sum(|worker| worker.ledger.unknown),
        report.objects,
    );
    ensure!(sum(|worker| worker.ledger.acknowledged) > 100, "hardly anything was acknowledged: no test");
    world.end().await
}
