//! What clients notice of faults, in seconds: stalls of writes, and how soon lost redundancy is back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use holdfast_client::{Client, ClientConfig, Pool, STRIPE_BYTES};
use holdfast_devcluster::{DATA_POOL, DaemonName, Role};
use holdfast_tests::content::Content;
use holdfast_tests::field::{Field, MONS, OSDS, daemons_of};
use holdfast_tests::s3::S3;
use holdfast_tests::stalls::{Probe, Stalls};
use holdfast_tests::watch::explained::place_of_object;
use holdfast_tests::watch::{NOTICE_LIMIT, Watch};
use holdfast_tests::world::is_release;
use holdfast_types::{ObjectName, OsdId, PgId};
use holdfast_wire::mon::{MonCommand, MonReply, Subject};

use super::CLEAN_LIMIT;

/// 99 of 100 stalls after each kind of fault.
const KILL_LIMIT: Duration = Duration::from_millis(1500);
const SILENT_LIMIT: Duration = Duration::from_secs(8);
const SILENT_LEADER_LIMIT: Duration = Duration::from_secs(10);
/// An OSD that comes back after [`BACK_AFTER`] with [`DEGRADED_BYTES`] to copy is clean within this.
const BACK_CLEAN_LIMIT: Duration = Duration::from_secs(10);
/// The same while clients write, for whose sake the copying holds back. Nothing is promised of that; this is too long.
const BACK_CLEAN_WRITING_LIMIT: Duration = Duration::from_secs(30);
const BACK_AFTER: Duration = Duration::from_secs(25);
const DEGRADED_BYTES: u64 = 800_000_000;
/// The largest objects that there are in the cluster.
const OBJECT_BYTES: u64 = STRIPE_BYTES;
/// Copies of such objects that make [`DEGRADED_BYTES`].
const COPIES_MISSED: u64 = DEGRADED_BYTES.div_ceil(OBJECT_BYTES);
/// Names that are tried for each of them: of five OSDs with three copies each, one keeps three fifths.
const NAMES_TRIED: u64 = 5;
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
    let layout = field.cluster.layout();
    let client = Client::connect(ClientConfig::new(layout.cluster, layout.monitors())).await?;
    let pool = client.pool(DATA_POOL).await?;
    let rounds = times(1).min(4); // of a minute each
    for round in 0..rounds {
        back.stalls.push(return_with_much_to_copy(field, &pool, round, None).await?);
    }
    let writing = return_with_much_to_copy(field, &pool, rounds, Some((s3, bucket))).await?;
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
    let words = format!("the same while clients write: clean after {writing:.2?} (limit {BACK_CLEAN_WRITING_LIMIT:?})");
    println!("   {words}");
    if is_release() && writing > BACK_CLEAN_WRITING_LIMIT {
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

/// Kills an OSD, writes objects that it is to have, [`DEGRADED_BYTES`] of them, and starts it again: the time until all is
/// clean. Clients write to this bucket meanwhile, or nobody writes.
async fn return_with_much_to_copy(
    field: &Field,
    pool: &Pool,
    round: u64,
    writing: Option<(&S3, &str)>,
) -> anyhow::Result<Duration> {
    let osd = DaemonName::osd(round % OSDS);
    let names = names_kept_by(field, OsdId(u32::try_from(osd.id)?), round).await?;
    field.kill(osd).await?;
    let since = Instant::now();
    let writes = futures::stream::iter((0u64..).zip(&names)).map(|(number, name)| async move {
        let content = Content { seed: number << 32 | round, bytes: OBJECT_BYTES };
        pool.write_full(name, content.whole()).await.with_context(|| format!("a large object without {osd}"))
    });
    writes.buffer_unordered(LARGE_WRITES).try_collect::<Vec<_>>().await?;
    let wrote = since.elapsed();
    tokio::time::sleep(BACK_AFTER.saturating_sub(wrote)).await;
    let missing = field.cluster.status().await?.copies_missing;
    ensure!(missing >= COPIES_MISSED, "{osd} lacks {COPIES_MISSED} objects, and {missing} copies are called missing");
    let probe = writing.map(|(s3, bucket)| Probe::start(s3, bucket));
    if probe.is_some() {
        tokio::time::sleep(AROUND).await;
    }
    let (away, start) = (since.elapsed(), Instant::now());
    field.revive(osd).await?;
    field.wait_clean(CLEAN_LIMIT).await.with_context(|| format!("{osd} is back"))?;
    let clean = start.elapsed();
    let beside = match probe {
        Some(probe) => {
            let (longest, writes) = probe.longest_since(start).await?;
            format!("beside {writes} writes, the longest of {longest:.2?}")
        }
        None => "nobody wrote".to_owned(),
    };
    println!(
        "   {osd} away for {away:.1?} (written in {wrote:.1?}), lacked {} objects of {OBJECT_BYTES} bytes; clean {clean:.2?} \
         after its start, {beside}",
        names.len()
    );
    for name in &names {
        pool.remove(name).await.context("a large object cannot be removed")?;
    }
    Ok(clean)
}

/// Names of [`COPIES_MISSED`] objects of which this OSD has to keep a copy.
async fn names_kept_by(field: &Field, osd: OsdId, round: u64) -> anyhow::Result<Vec<ObjectName>> {
    let kept = field.pgs().await?.into_iter().filter(|row| row.acting.contains(&osd)).map(|row| row.pg);
    let kept: BTreeSet<PgId> = kept.collect();
    let mut names = Vec::new();
    for number in 0..COPIES_MISSED * NAMES_TRIED {
        if names.len() as u64 == COPIES_MISSED {
            break;
        }
        let name = format!("chaos-large-{round}-{number}");
        let subject = Subject::Object { pool: DATA_POOL.to_owned(), name: name.clone().into_bytes() };
        let explanation = match field.cluster.ask(MonCommand::Explain(subject)).await? {
            MonReply::Explanation(explanation) => explanation,
            other => bail!("an object is explained with {other:?}"),
        };
        let pg = place_of_object(&explanation).with_context(|| format!("no place of {name}: {explanation:?}"))?;
        if kept.contains(&pg) {
            names.push(ObjectName::new(name)?);
        }
    }
    ensure!(names.len() as u64 == COPIES_MISSED, "{osd} is to keep {} objects only: no test", names.len());
    Ok(names)
}
