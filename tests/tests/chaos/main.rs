//! Chaos with real processes: daemons on hosts with networks of their own, load from many clients, and everything that
//! can happen to processes, network, disks and clocks.
//!
//! What must hold, whatever happens: each key's history is linearizable, counters count exactly once, what was
//! acknowledged is there at the end, the status is true to the facts at every moment, every state that is not clean is
//! explained, and the cluster comes back to clean by itself. At the end all copies are compared: none is bad but where a bit
//! was flipped.
//!
//! `cargo xtask chaos --minutes N` deals the faults in a shuffled order until the time is over, then measures how long
//! writes stall. A plain `cargo test` runs a small dose.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod faults;
mod measures;
mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use faults::Fault;
use holdfast_tests::fabric::{Fabric, obstacle};
use holdfast_tests::field::{self, Field, Ground, OSDS};
use holdfast_tests::running::{Running, on_client};
use holdfast_tests::scrub::{damage_of, deep_scrub, unexplained};
use holdfast_tests::watch::Watch;
use holdfast_tests::watch::facts::Kind;
use holdfast_tests::world::{seed, skip};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

const BUCKET: &str = "chaos";
/// After the end of a fault, everything is to be clean again within this, with nobody's help. It is a bound on harm, not
/// the time that is promised; that is measured.
const CLEAN_LIMIT: Duration = Duration::from_secs(120);
/// From this length on a run must have seen every fault, and is measured.
const WHOLE_RUN: Duration = Duration::from_secs(300);

/// How long faults are dealt; `None`: a small dose.
fn asked() -> Option<Duration> {
    let seconds = std::env::var("HOLDFAST_CHAOS_SECONDS").ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Whether this run deals every fault, and so must have seen everything.
fn is_whole() -> bool {
    asked().is_some_and(|asked| asked >= WHOLE_RUN) && std::env::var_os("HOLDFAST_CHAOS_ONLY").is_none()
}

/// Whether the data of all daemons lie on file systems that lose power, with what was not synced.
fn on_power_ground() -> bool {
    std::env::var_os("HOLDFAST_CHAOS_POWER").is_some()
}

/// Faults named by `HOLDFAST_CHAOS_ONLY` (names as in the code, with commas), to look at one.
fn deck() -> Vec<Fault> {
    let mut of_run = if asked().is_some() { Fault::ALL.to_vec() } else { Fault::QUICK.to_vec() };
    // The file system that can be filled lies elsewhere then.
    of_run.retain(|fault| *fault != Fault::DiskFull || !on_power_ground());
    let Ok(only) = std::env::var("HOLDFAST_CHAOS_ONLY") else { return of_run };
    let wanted = |fault: &Fault| only.split(',').any(|name| name == format!("{fault:?}"));
    Fault::ALL.into_iter().filter(wanted).collect()
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_to_processes_network_disks_and_clocks() -> anyhow::Result<()> {
    if let Some(obstacle) = obstacle() {
        ensure!(asked().is_none(), "{obstacle}");
        return skip(&obstacle);
    }
    let fabric = field::fabric()?;
    on_client(&fabric, chaos(fabric.clone()))
}

async fn chaos(fabric: Arc<Fabric>) -> anyhow::Result<()> {
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let started = Instant::now();
    let mut field =
        Field::start(fabric, if on_power_ground() { Ground::Power(random.random()) } else { Ground::Plain }).await?;
    let s3 = field.s3();
    s3.create_bucket(BUCKET).await.context("the bucket cannot be made")?;
    field.wait_clean(CLEAN_LIMIT).await?;
    println!("   a cluster on {} hosts after {:.1?}", OSDS + 1, started.elapsed());

    let mut running = Running::start(&field, BUCKET, seed).await?;
    let counts = match deal(&mut field, &mut running, &mut random).await {
        Ok(counts) => counts,
        Err(error) => {
            report(&running.watch, &BTreeMap::new()).into_iter().for_each(|finding| println!("   {finding}"));
            running.load.history.judge().into_iter().for_each(|finding| println!("   {finding}"));
            return Err(error);
        }
    };
    running.stop().await?;
    field.wait_clean(CLEAN_LIMIT).await.context("after the last fault")?;

    running.check_all(&field, &mut random, CLEAN_LIMIT).await?;
    let mut findings = running.load.history.judge();
    let measured = asked().filter(|asked| *asked >= WHOLE_RUN).or_else(measures::asked);
    if let Some(length) = measured {
        findings.extend(measures::measure(&field, &running.watch, &s3, BUCKET, length).await?);
    }
    findings.extend(compare_copies(&field).await?);
    findings.extend(memory::findings(&field)?);
    running.unwatch().await?;
    findings.extend(report(&running.watch, &counts));
    if is_whole() {
        findings.extend(running.watch.record.lock().never_judged());
    }
    ensure!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    field.end().await
}

/// Has all copies compared, byte by byte, when nothing is done any more; what is wrong that no flipped bit explains.
async fn compare_copies(field: &Field) -> anyhow::Result<Vec<String>> {
    let mut findings = Vec::new();
    match deep_scrub(field).await {
        Ok(scrubbed) => println!("   {scrubbed}"),
        Err(error) => findings.push(format!("{error:#}")),
    }
    // What cannot be repaired is never clean again.
    let clean = field.wait_clean(CLEAN_LIMIT).await.context("after the deep scrub");
    findings.extend(clean.err().map(|error| format!("{error:#}")));
    let (damage, flipped) = (damage_of(&field.cluster.status().await?.checks)?, field.flipped());
    for osd in &flipped {
        let damage = damage.get(osd).copied().unwrap_or_default();
        println!("   {osd}, of which bits were flipped, has found {damage} since it was last started");
    }
    findings.extend(unexplained(field, &flipped).await?);
    Ok(findings)
}

/// Deals the faults in a shuffled order, again and again, until the time is over and each was dealt.
async fn deal(
    field: &mut Field,
    running: &mut Running,
    random: &mut SmallRng,
) -> anyhow::Result<BTreeMap<Fault, (u64, Duration)>> {
    let (deck, since) = (deck(), Instant::now());
    let length = asked().unwrap_or_default();
    let mut counts: BTreeMap<Fault, (u64, Duration)> = BTreeMap::new();
    let mut hand: Vec<Fault> = Vec::new();
    loop {
        let all_dealt = counts.len() == deck.len() && (hand.is_empty() || length >= WHOLE_RUN);
        if since.elapsed() >= length && (all_dealt || (length > Duration::ZERO && length < WHOLE_RUN)) {
            return Ok(counts);
        }
        if hand.is_empty() {
            hand.clone_from(&deck);
            hand.shuffle(random);
        }
        let Some(fault) = hand.pop() else { return Ok(counts) };
        running.watch.next_fault();
        let (load, watch) = (running.load.clone(), running.watch.clone());
        let struck = async {
            let words = fault.strike(field, &load, &watch, random).await?;
            let undone = Instant::now();
            field.wait_clean(CLEAN_LIMIT).await?;
            anyhow::Ok((words, undone.elapsed()))
        };
        let (words, clean) = tokio::select! {
            outcome = struck => outcome.with_context(|| fault.name())?,
            finding = running.finding() => return Err(finding.context(fault.name())),
        };
        println!("   {:6.1?} {}: {words}; clean after {clean:.2?}", since.elapsed(), fault.name());
        let count = counts.entry(fault).or_default();
        *count = (count.0 + 1, count.1.max(clean));
    }
}

/// Prints what was counted; what the watch found.
fn report(watch: &Watch, counts: &BTreeMap<Fault, (u64, Duration)>) -> Vec<String> {
    for (fault, (count, clean)) in counts {
        println!("   {count:4} times {}; clean again after {clean:.2?} at most", fault.name());
    }
    let record = watch.record.lock();
    println!("   {} statuses compared with the facts; how often something had to be shown:", record.looks);
    for kind in Kind::ALL {
        println!("   {:4} times {}", record.due.get(&kind).copied().unwrap_or(0), kind.name());
    }
    println!("   explanations that had to name who was away: {:?}; what was explained, and how:", record.named);
    for (state, (count, words)) in &record.explained {
        println!("   {count:4} times {state}: {words}");
    }
    let never = record.states.never_explained().map(|(state, shown)| format!("{state} ({shown})"));
    let never: Vec<String> = never.collect();
    println!(
        "   placement groups were in {} states that are not clean; never explained: {}",
        record.states.count(),
        if never.is_empty() { "none".to_owned() } else { never.join(", ") }
    );
    let mut findings = record.findings.clone();
    findings.extend(record.states.findings());
    findings
}
