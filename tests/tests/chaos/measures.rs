//! What clients notice of faults, in seconds: stalls of writes, and how soon lost redundancy is back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use holdfast_devcluster::{DaemonName, Role};
use holdfast_tests::content::Content;
use holdfast_tests::field::{Field, MONS, OSDS, daemons_of};
use holdfast_tests::s3::S3;
use holdfast_tests::stalls::{Probe, Stalls};
use holdfast_tests::watch::{NOTICE_LIMIT, Watch};
use holdfast_tests::world::is_release;

use super::CLEAN_LIMIT;

/// 99 of 100 stalls after each kind of fault.
const KILL_LIMIT: Duration = Duration::from_millis(1500);
const SILENT_LIMIT: Duration = Duration::from_secs(8);
const SILENT_LEADER_LIMIT: Duration = Duration::from_secs(10);
/// An OSD that comes back after [`BACK_AFTER`] with [`DEGRADED_BYTES`] to copy is clean within this.
const BACK_CLEAN_LIMIT: Duration = Duration::from_secs(10);
const BACK_AFTER: Duration = Duration::from_secs(25);
const DEGRADED_BYTES: u64 = 800_000_000;
const OBJECT_BYTES: u64 = 4 << 20;
/// Large writes at one time.
const LARGE_WRITES: usize = 8;
/// Writes go on for this long before a fault, so that each is under way, and after it was noticed.
const AROUND: Duration = Duration::from_secs(2);

/// The measurement alone, for as long as a run of this length would have it (`HOLDFAST_CHAOS_MEASURE`, in seconds).
pub fn asked() -> Option<Duration> {
    Some(Duration::from_secs(std::env::var("HOLDFAST_CHAOS_MEASURE").ok()?.parse().ok()?))
}

/// Measures all; what exceeds its limit.
pub async fn measure(
    field: &Field,
    watch: &Watch,
    s3: &S3,
    bucket: &str,
    length: Duration,
) -> anyhow::Result<Vec<String>> {
    // For a run of five minutes 5, 3, 3 and 1; more for longer ones.
    let times = |base: u64| base * (length.as_secs() / 300).clamp(1, 6);
    let mut killed = Stalls::new("kill -9 of an OSD", KILL_LIMIT);
    for round in 0..times(5) {
        let osd = DaemonName::osd(round % OSDS);
        let probe = Probe::start(s3, bucket);
        tokio::time::sleep(AROUND).await;
        let fault = Instant::now();
        field.kill(osd).await?;
        let stall = longest(field, probe, fault).await?;
        println!("   kill -9 of {osd}: the longest write took {stall:.2?}");
        killed.stalls.push(stall);
        field.revive(osd).await?;
        field.wait_clean(CLEAN_LIMIT).await?;
    }
    let mut silent = Stalls::new("SIGSTOP of a host with an OSD", SILENT_LIMIT);
    for round in 0..times(3) {
        let host = MONS + round % (OSDS - MONS);
        silent.stalls.push(freeze(field, watch, s3, bucket, host).await?);
    }
    let mut leader = Stalls::new("SIGSTOP of a host that also leads the monitors", SILENT_LEADER_LIMIT);
    for _ in 0..times(3) {
        let host = field.cluster.status().await?.leader.0;
        leader.stalls.push(freeze(field, watch, s3, bucket, host).await?);
    }
    let mut back = Stalls::new("return of an OSD", BACK_CLEAN_LIMIT);
    // What they wrote is garbage for a quarter of an hour: more rounds would fill the disks.
    for round in 0..times(1).min(4) {
        back.stalls.push(return_with_much_to_copy(field, s3, bucket, round).await?);
    }
    let mut findings = Vec::new();
    for stalls in [killed, silent, leader] {
        println!("   {}: {:.2?}", stalls.summary(), stalls.stalls);
        if is_release() && !stalls.is_within() {
            findings.push(stalls.summary());
        }
    }
    let words = format!(
        "an OSD back after {BACK_AFTER:?} with {DEGRADED_BYTES} bytes to copy: clean after median {:.2?}, p99 {:.2?} \
         (limit {BACK_CLEAN_LIMIT:?})",
        back.percentile(50),
        back.percentile(99)
    );
    println!("   {words}");
    if is_release() && !back.is_within() {
        findings.push(words);
    }
    Ok(findings)
}

/// Waits until the fault has been noticed and writes have gone on, then gives the longest write.
async fn longest(field: &Field, probe: Probe, fault: Instant) -> anyhow::Result<Duration> {
    let others = u32::try_from(OSDS)? - 1;
    field.cluster.wait_status("the OSD shown down", NOTICE_LIMIT, |report| report.osds_up == others).await?;
    tokio::time::sleep(AROUND).await;
    let (longest, _) = probe.longest_since(fault).await?;
    Ok(longest)
}

async fn freeze(field: &Field, watch: &Watch, s3: &S3, bucket: &str, host: u64) -> anyhow::Result<Duration> {
    let daemons = daemons_of(host);
    ensure!(daemons.iter().any(|daemon| daemon.role == Role::Osd), "host{host} has no OSD");
    let probe = Probe::start(s3, bucket);
    tokio::time::sleep(AROUND).await;
    let fault = Instant::now();
    field.freeze(&daemons)?;
    let stall = async {
        let stall = longest(field, probe, fault).await?;
        for daemon in &daemons {
            watch.judged(*daemon).await?;
        }
        anyhow::Ok(stall)
    };
    let stall = stall.await;
    field.thaw(&daemons)?;
    field.wait_clean(CLEAN_LIMIT).await.with_context(|| format!("host{host} went on after a pause"))?;
    let (stall, names) = (stall?, daemons.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "));
    println!("   SIGSTOP of {names}: the longest write took {stall:.2?}");
    Ok(stall)
}

/// Kills an OSD, writes so much that it misses [`DEGRADED_BYTES`], and starts it again: the time until all is clean.
async fn return_with_much_to_copy(field: &Field, s3: &S3, bucket: &str, round: u64) -> anyhow::Result<Duration> {
    let osd = DaemonName::osd(round % OSDS);
    field.kill(osd).await?;
    let since = Instant::now();
    // Of five OSDs with three copies each, this one would hold three fifths.
    let count = DEGRADED_BYTES * 5 / 3 / OBJECT_BYTES + 1;
    let key = |number: u64| format!("large/{number}");
    let writes = futures::stream::iter(0..count).map(|number| {
        let (s3, key) = (s3.clone(), key(number));
        async move { s3.put(bucket, &key, Content { seed: number ^ round << 32, bytes: OBJECT_BYTES }).await }
    });
    let outcomes: Vec<_> = writes.buffer_unordered(LARGE_WRITES).collect().await;
    outcomes.into_iter().collect::<Result<Vec<()>, _>>().context("a large PUT without one OSD")?;
    let wrote = since.elapsed();
    tokio::time::sleep(BACK_AFTER.saturating_sub(wrote)).await;
    let missing = field.cluster.status().await?.copies_missing;
    let start = Instant::now();
    field.revive(osd).await?;
    field.wait_clean(CLEAN_LIMIT).await.with_context(|| format!("{osd} is back"))?;
    let clean = start.elapsed();
    println!(
        "   {osd} away for {:.1?} (written in {wrote:.1?}), {missing} copies missing; clean {clean:.2?} after its start",
        since.elapsed() - clean
    );
    for number in 0..count {
        s3.delete(bucket, &key(number)).await.context("a large object cannot be deleted")?;
    }
    Ok(clean)
}
