//! The power of all hosts fails at one moment, under load.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use holdfast_tests::fabric::Fabric;
use holdfast_tests::field::{Field, Ground, OSDS};
use holdfast_tests::powerfs::Lost;
use holdfast_tests::running::Running;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::{BUCKET, CLEAN_LIMIT};

/// Answers that each round must have had before the power fails.
const ANSWERED_MIN: u64 = 60;
/// They must come within this.
const ANSWERED_LIMIT: Duration = Duration::from_secs(60);
/// How many rounds begin before everything is clean after the one before: what is being recovered loses power, too.
const TOO_SOON: f64 = 0.3;
/// The power fails at a moment within this, then.
const MOMENT: Duration = Duration::from_secs(3);
/// After how many power losses it fails once more while the daemons start, and within what time.
const TWICE: f64 = 0.3;
const WHILE_STARTING: Duration = Duration::from_millis(1500);

/// So many power losses, then everything is checked.
pub async fn run(fabric: Arc<Fabric>, rounds: u64, seed: u64) -> anyhow::Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let started = Instant::now();
    let mut field = Field::start(fabric, Ground::Power(random.random())).await?;
    field.s3().create_bucket(BUCKET).await.context("the bucket cannot be made")?;
    field.wait_clean(CLEAN_LIMIT).await?;
    println!("   a cluster on {OSDS} hosts that lose power after {:.1?}", started.elapsed());

    let mut running = Running::start(&field, BUCKET, seed).await?;
    let mut total = Lost::default();
    for round in 1..=rounds {
        let lost = {
            let load = running.load.clone();
            let round = one(&mut field, &load.answered, &mut random, round == rounds);
            tokio::select! {
                lost = round => lost,
                finding = running.finding() => Err(finding),
            }
        };
        match lost.with_context(|| format!("power loss {round}")) {
            Ok((lost, words)) => {
                println!("   {:6.1?} power loss {round} of {rounds}: {words}", started.elapsed());
                total.add(lost);
            }
            Err(error) => {
                running.load.history.judge().into_iter().for_each(|finding| println!("   {finding}"));
                return Err(error);
            }
        }
    }
    running.stop().await?;
    field.wait_clean(CLEAN_LIMIT).await.context("after the last power loss")?;
    let summary = running.check_all(&field, &mut random, CLEAN_LIMIT).await?;
    running.unwatch().await?;
    let mut findings = running.load.history.judge();
    findings.extend(running.watch.record.lock().findings.clone());
    ensure!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    ensure!(total.dropped > 0, "nothing was unsynced when the power failed: no test");
    println!("   {}", field.losses());
    field.end().await?;
    println!(
        "headline power, real processes: {rounds} power losses of all hosts, {} unsynced pages dropped, {} kept, {} torn, \
         {} operations on names undone; {} acknowledged writes, 0 lost or wrong",
        total.dropped, total.survived, total.torn, total.operations, summary.acknowledged
    );
    Ok(())
}

/// One power loss: what it took, and how long it was until everything was there again.
async fn one(
    field: &mut Field,
    answered: &std::sync::atomic::AtomicU64,
    random: &mut SmallRng,
    last: bool,
) -> anyhow::Result<(Lost, String)> {
    let (before, since) = (answered.load(Ordering::Relaxed), Instant::now());
    while answered.load(Ordering::Relaxed) < before + ANSWERED_MIN {
        ensure!(since.elapsed() < ANSWERED_LIMIT, "hardly anything is answered before the power fails");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(MOMENT.mul_f64(random.random_range(0.0..1.0))).await;
    let answered = answered.load(Ordering::Relaxed) - before;
    let mut lost = field.lose_power().await?;
    let mut twice = String::new();
    if random.random_bool(TWICE) {
        let moment = WHILE_STARTING.mul_f64(random.random_range(0.0..1.0));
        // Whether all serve by then or not.
        if let Ok(started) = tokio::time::timeout(moment, field.power_on()).await {
            started?;
        }
        lost.add(field.lose_power().await?);
        twice = format!("again after {moment:.2?}, ");
    }
    let since = Instant::now();
    field.power_on().await?;
    let serving = since.elapsed();
    let mut words = format!(
        "{answered} operations after the one before; {twice}{} pages dropped, {} kept, {} torn, {} names undone; all serve after \
         {serving:.2?}",
        lost.dropped, lost.survived, lost.torn, lost.operations
    );
    if last || !random.random_bool(TOO_SOON) {
        field.wait_clean(CLEAN_LIMIT).await?;
        words.push_str(&format!(", clean after {:.2?}", since.elapsed()));
    }
    Ok((lost, words))
}
