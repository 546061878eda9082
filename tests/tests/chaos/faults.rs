//! The faults: how each is made, what the status must say meanwhile, and how it ends.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use holdfast_devcluster::DaemonName;
use holdfast_tests::field::{Field, MONS, OSD_ON_LOOP, OSDS, daemons_of, host_of, says_clean};
use holdfast_tests::load::Load;
use holdfast_tests::watch::{NOTICE_LIMIT, Watch};
use holdfast_wire::mon::MonCommand;
use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;

/// Longer than the lease of reads and than the grace after which a silent OSD is reported, with what reports take.
const LONGER_THAN_GRACE: Duration = Duration::from_secs(12);
/// How long packets are lost.
const LOSS: Duration = Duration::from_secs(10);
/// How long a client's connection may be slow after that: its kernel decides it (Linux' BBR: 80 s were seen).
const SLOW_AFTER_LOSS: Duration = Duration::from_secs(120);
/// How long a majority of the monitors is away.
const NO_MAJORITY: Duration = Duration::from_secs(8);
/// Until the load has written a segment of 16 MiB to the full disk, on a slow machine.
const FULL_NOTICE_LIMIT: Duration = Duration::from_secs(90);
/// So many PUTs acknowledged while a disk has no room to spare, and nothing shown of it: it needed none.
const STORED_UNNOTICED: u64 = 400;
/// A segment of a device file is 16 MiB here.
const LESS_THAN_A_SEGMENT: u64 = 12 << 20;
/// A process whose syncs fail must have ended within this: the load syncs all the time.
const SYNC_FAILS_LIMIT: Duration = Duration::from_secs(60);

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillOsd,
    KillMonitor,
    KillGateway,
    StopHost,
    OneWayLoss,
    RandomLoss,
    DiskFull,
    BitFlip,
    SyncError,
    ClockSkew,
    MonitorMajority,
    Power,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 12] = [
        Fault::KillOsd,
        Fault::KillMonitor,
        Fault::KillGateway,
        Fault::StopHost,
        Fault::OneWayLoss,
        Fault::RandomLoss,
        Fault::DiskFull,
        Fault::BitFlip,
        Fault::SyncError,
        Fault::ClockSkew,
        Fault::MonitorMajority,
        Fault::Power,
    ];

    /// Those of a small dose: seconds each.
    pub const QUICK: [Fault; 5] =
        [Fault::KillOsd, Fault::RandomLoss, Fault::StopHost, Fault::MonitorMajority, Fault::Power];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillOsd => "kill -9 of an OSD",
            Fault::KillMonitor => "kill -9 of a monitor",
            Fault::KillGateway => "kill -9 of the gateway",
            Fault::StopHost => "SIGSTOP of a host, then SIGCONT",
            Fault::OneWayLoss => "one-way loss",
            Fault::RandomLoss => "random loss",
            Fault::DiskFull => "full file system",
            Fault::BitFlip => "one bit flipped",
            Fault::SyncError => "EIO of sync",
            Fault::ClockSkew => "clock skew",
            Fault::MonitorMajority => "majority of the monitors gone",
            Fault::Power => "power of all",
        }
    }

    /// Does it and undoes it; what happened, in words.
    pub async fn strike(
        self,
        field: &mut Field,
        load: &Load,
        watch: &Watch,
        random: &mut SmallRng,
    ) -> anyhow::Result<String> {
        match self {
            Fault::KillOsd => kill_osd(field, watch, random).await,
            Fault::KillMonitor => kill_monitor(field, watch, random).await,
            Fault::KillGateway => kill_gateway(field, load).await,
            Fault::StopHost => stop_host(field, watch, random).await,
            Fault::OneWayLoss => one_way_loss(field, load, random).await,
            Fault::RandomLoss => random_loss(field, load, random).await,
            Fault::DiskFull => disk_full(field, load, random).await,
            Fault::BitFlip => bit_flip(field, random).await,
            Fault::SyncError => sync_error(field, watch, random).await,
            Fault::ClockSkew => clock_skew(field, random).await,
            Fault::MonitorMajority => monitor_majority(field, load, watch, random).await,
            Fault::Power => power(field, random).await,
        }
    }
}

/// Waits until the status shows an OSD away that is, and checks what else it says then.
async fn shown_down(field: &Field, osd: DaemonName) -> anyhow::Result<Duration> {
    let since = Instant::now();
    let others = u32::try_from(OSDS)? - 1;
    let what = format!("{osd} shown down");
    let report = field.cluster.wait_status(&what, NOTICE_LIMIT, |report| report.osds_up == others).await?;
    // Five OSDs, three copies: some placement group has lost one.
    ensure!(!says_clean(&report), "{osd} is away and the status says clean: {report:?}");
    ensure!(!report.checks.is_empty(), "{osd} is away and no check says so: {report:?}");
    Ok(since.elapsed())
}

async fn kill_osd(field: &mut Field, watch: &Watch, random: &mut SmallRng) -> anyhow::Result<String> {
    let osd = DaemonName::osd(random.random_range(0..OSDS));
    field.kill(osd).await?;
    let noticed = shown_down(field, osd).await?;
    watch.judged(osd).await?;
    tokio::time::sleep(Duration::from_millis(random.random_range(0..3000))).await;
    field.revive(osd).await?;
    Ok(format!("{osd}, shown down after {noticed:.2?}"))
}

async fn kill_monitor(field: &mut Field, watch: &Watch, random: &mut SmallRng) -> anyhow::Result<String> {
    let mon = DaemonName::mon(random.random_range(0..MONS));
    field.kill(mon).await?;
    let since = Instant::now();
    let others = usize::try_from(MONS)? - 1;
    let what = format!("{mon} out of the quorum");
    field.cluster.wait_status(&what, NOTICE_LIMIT, |report| report.mons_in_quorum.len() == others).await?;
    let noticed = since.elapsed();
    watch.judged(mon).await?;
    field.revive(mon).await?;
    Ok(format!("{mon}, out of the quorum after {noticed:.2?}"))
}

/// Waits until some operations were answered after the `before` of then.
async fn answers(load: &Load, before: u64, since: Instant) -> anyhow::Result<()> {
    while load.answered.load(Ordering::Relaxed) < before + 20 {
        ensure!(since.elapsed() < NOTICE_LIMIT, "hardly anything is answered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until some operations were answered after the network was healed: how long that took.
async fn serves_again(load: &Load) -> anyhow::Result<Duration> {
    let (before, since) = (load.answered.load(Ordering::Relaxed), Instant::now());
    answers(load, before, since).await.context("although no packet is lost any more")?;
    Ok(since.elapsed())
}

async fn kill_gateway(field: &mut Field, load: &Load) -> anyhow::Result<String> {
    field.kill(DaemonName::s3()).await?;
    let (before, since) = (load.answered.load(Ordering::Relaxed), Instant::now());
    field.revive(DaemonName::s3()).await?;
    // A gateway learns a client's key from the monitors when it is first used: before that it needs them.
    answers(load, before, since).await.context("the gateway that was started again")?;
    Ok(format!("it serves again after {:.2?}", since.elapsed()))
}

async fn stop_host(field: &mut Field, watch: &Watch, random: &mut SmallRng) -> anyhow::Result<String> {
    let host = random.random_range(0..OSDS);
    let daemons = daemons_of(host);
    field.freeze(&daemons)?;
    let since = Instant::now();
    let shown = async {
        let noticed = shown_down(field, DaemonName::osd(host)).await?;
        for daemon in &daemons {
            watch.judged(*daemon).await?;
        }
        tokio::time::sleep(LONGER_THAN_GRACE.saturating_sub(since.elapsed())).await;
        anyhow::Ok(noticed)
    };
    let noticed = shown.await;
    let stopped = since.elapsed();
    field.thaw(&daemons)?;
    Ok(format!("host{host} for {stopped:.1?}, shown down after {:.2?}", noticed?))
}

async fn one_way_loss(field: &mut Field, load: &Load, random: &mut SmallRng) -> anyhow::Result<String> {
    let mut hosts: Vec<u64> = (0..OSDS).collect();
    hosts.shuffle(random);
    let (one, other) = (format!("host{}", hosts[0]), format!("host{}", hosts[1]));
    let words = match random.random_range(0..3) {
        0 => {
            field.fabric.mute(&one)?;
            format!("nobody hears {one}")
        }
        1 => {
            field.fabric.deafen(&one)?;
            format!("{one} hears nobody")
        }
        _ => {
            field.fabric.cut(&one, &other)?;
            format!("{other} does not hear {one}")
        }
    };
    tokio::time::sleep(LOSS).await;
    let lost = field.fabric.heal()?;
    ensure!(lost > 0, "{words}, and no packet was lost: no fault");
    let served = serves_again(load).await?;
    Ok(format!("{words} for {LOSS:?}: {lost} packets lost, served again after {served:.2?}"))
}

async fn random_loss(field: &mut Field, load: &Load, random: &mut SmallRng) -> anyhow::Result<String> {
    let host = random.random_range(0..=OSDS);
    let host = if host == OSDS { host_of(DaemonName::s3()) } else { format!("host{host}") };
    let probability = random.random_range(0.03..0.45);
    field.fabric.lose(&host, probability)?;
    if host == host_of(DaemonName::s3()) {
        *load.lossy_until.lock() = Some(Instant::now() + LOSS + SLOW_AFTER_LOSS);
    }
    tokio::time::sleep(LOSS).await;
    let lost = field.fabric.heal()?;
    ensure!(lost > 0, "no packet of {host} was lost: no fault");
    let percent = probability * 100.0;
    let served = serves_again(load).await.with_context(|| format!("after the loss of {percent:.0} % of {host}"))?;
    Ok(format!("{percent:.0} % of {host} for {LOSS:?}: {lost} packets lost, served again after {served:.2?}"))
}

async fn disk_full(field: &mut Field, load: &Load, random: &mut SmallRng) -> anyhow::Result<String> {
    // To the last byte, or with room for the index and for no segment more.
    let left = if random.random_bool(0.5) { 0 } else { LESS_THAN_A_SEGMENT };
    *load.full_until.lock() = Some(Instant::now() + FULL_NOTICE_LIMIT + NOTICE_LIMIT);
    field.fill(left)?;
    let (before, since) = (load.stored.load(Ordering::Relaxed), Instant::now());
    let full = |report: &holdfast_wire::mon::StatusReport| report.checks.iter().any(|check| check.code == "OSD_FULL");
    // Noticed when the log wants its next segment, or the index its next file: how soon is a matter of the load.
    let shown = field.cluster.wait_status("the full disk shown", FULL_NOTICE_LIMIT, full).await;
    let codes = |report: &holdfast_wire::mon::StatusReport| -> Vec<String> {
        report.checks.iter().map(|check| check.code.clone()).collect()
    };
    let words = shown.as_ref().map(|report| format!("shown after {:.2?} as {:?}", since.elapsed(), codes(report)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    field.unfill()?;
    let words = match words {
        Ok(words) => words,
        // Its log has lived on the segments that it had, and cleaned them: then all was served.
        Err(_) if load.stored.load(Ordering::Relaxed) - before >= STORED_UNNOTICED => "not noticed".to_owned(),
        Err(error) => anyhow::bail!("{OSD_ON_LOOP} has no room: {error}"),
    };
    // It must be written to again, with no step but the room.
    let (before, since) = (load.answered.load(Ordering::Relaxed), Instant::now());
    answers(load, before, since).await.context("although there is room again")?;
    // What the monitors know of room is a little older than what there is.
    *load.full_until.lock() = Some(Instant::now() + NOTICE_LIMIT);
    Ok(format!("{OSD_ON_LOOP} with {left} bytes left, {words}"))
}

async fn bit_flip(field: &mut Field, random: &mut SmallRng) -> anyhow::Result<String> {
    let osd = DaemonName::osd(random.random_range(0..OSDS));
    let offset = field.flip_bit(osd, random)?;
    // Met by whoever reads it next, or by the replay of the next start.
    let restarted = random.random_bool(0.5);
    if restarted {
        field.kill(osd).await?;
        field.revive(osd).await?;
    }
    Ok(format!("byte {offset} of {osd}{}", if restarted { ", which was then killed and started" } else { "" }))
}

async fn sync_error(field: &mut Field, watch: &Watch, random: &mut SmallRng) -> anyhow::Result<String> {
    let osd = DaemonName::osd(random.random_range(0..OSDS));
    let since = Instant::now();
    let tracer = field.fail_syncs(osd)?;
    while tracer.is_alive() {
        ensure!(since.elapsed() < SYNC_FAILS_LIMIT, "{osd} goes on although its syncs fail");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    field.gone(osd);
    let ended = since.elapsed();
    drop(tracer);
    // The supervisor starts it again and again; a disk in quarantine must not serve.
    let noticed = shown_down(field, osd).await?;
    watch.judged(osd).await?;
    let marker = field.data_of(osd)?.join("quarantined");
    let reason = std::fs::read_to_string(&marker).with_context(|| format!("{osd} has no {}", marker.display()))?;
    // A person has looked at the disk and wants its copies.
    std::fs::write(marker.with_file_name("release-quarantine"), "")?;
    field.revive(osd).await?;
    Ok(format!("{osd} ended after {ended:.2?}, shown down after {noticed:.2?}, quarantined: {}", reason.trim()))
}

async fn clock_skew(field: &mut Field, random: &mut SmallRng) -> anyhow::Result<String> {
    let (osd, mon) = (random.random_range(0..OSDS), random.random_range(0..MONS));
    // Backwards only as far as this machine has run.
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0i64);
    let back = (uptime - 60).clamp(0, 3600);
    let (osd_by, mon_by) = (random.random_range(-back..1_000_000), random.random_range(-back..1_000_000));
    field.skew(DaemonName::osd(osd), osd_by).await?;
    field.skew(DaemonName::mon(mon), mon_by).await?;
    Ok(format!("osd.{osd} by {osd_by} s, mon.{mon} by {mon_by} s"))
}

/// Has the balancer move placement groups, or not.
async fn balance(field: &Field, on: bool) -> anyhow::Result<()> {
    let value = Some(if on { "on" } else { "off" }.to_owned());
    field.cluster.ask(MonCommand::ConfigSet { name: "balancer".to_owned(), value }).await?;
    Ok(())
}

async fn monitor_majority(
    field: &mut Field,
    load: &Load,
    watch: &Watch,
    random: &mut SmallRng,
) -> anyhow::Result<String> {
    let mut mons: Vec<u64> = (0..MONS).collect();
    mons.shuffle(random);
    // What is still being agreed on needs the monitors; what is settled does not. So nothing is being moved when they go.
    balance(field, false).await?;
    field.wait_clean(crate::CLEAN_LIMIT).await?;
    let (before, asked) = (load.answered.load(Ordering::Relaxed), watch.unanswerable());
    for mon in &mons[..2] {
        field.kill(DaemonName::mon(*mon)).await?;
    }
    let gone = Instant::now();
    tokio::time::sleep(NO_MAJORITY).await;
    // The watch may have been in the middle of another question.
    while watch.unanswerable() == asked && gone.elapsed() < NOTICE_LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lasted = gone.elapsed();
    let answered = load.answered.load(Ordering::Relaxed) - before;
    let asked = watch.unanswerable() - asked;
    for mon in &mons[..2] {
        field.revive(DaemonName::mon(*mon)).await?;
    }
    balance(field, true).await?;
    ensure!(answered > 20, "{answered} operations were answered in {lasted:.1?} without a majority of the monitors");
    ensure!(asked > 0, "the monitors were asked for no status while most of them were away");
    Ok(format!("{lasted:.1?}: {answered} operations answered meanwhile"))
}

async fn power(field: &mut Field, random: &mut SmallRng) -> anyhow::Result<String> {
    let lost = if field.loses_power() {
        let lost = field.lose_power().await?;
        format!("{} unsynced pages dropped, {} kept, {} torn, ", lost.dropped, lost.survived, lost.torn)
    } else {
        field.power_off().await?;
        String::new()
    };
    tokio::time::sleep(Duration::from_millis(random.random_range(0..2000))).await;
    let since = Instant::now();
    field.power_on().await?;
    Ok(format!("{lost}all serve again after {:.2?}", since.elapsed()))
}
