//! A cluster of real processes on a [`Fabric`]: five hosts with an OSD each, monitors on the first three, the gateway and
//! the test on hosts of their own; and all that can be done to it.
//!
//! Invariants:
//! - What is done to a daemon is written down ([`Field::away`]) before it is done and taken back after it was undone, so
//!   that whoever compares the status with the facts never has it wrong.
//! - Everything made outside the directory (namespaces, mounts, tracers) is undone when the field is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use holdfast_devcluster::{
    DaemonName, DevCluster, Host, Hosts, Launcher, ProcessIdentity, Restart, Role, Settings, Wishes,
};
use holdfast_wire::mon::{MonCommand, MonReply, PgRow, StatusReport};
use parking_lot::Mutex;
use rand::Rng as _;
use rand::rngs::SmallRng;
use rustix::fs::SeekFrom;
use tempfile::TempDir;

use crate::fabric::{Fabric, run};
use crate::powerfs::{Grid, Lost, SyncTime};
use crate::s3::S3;
use crate::watch::facts::{Absence, Away, Loss};
use crate::world::binary;

/// Monitors; they stand on the first hosts.
pub const MONS: u64 = 3;
/// OSDs, one on each host.
pub const OSDS: u64 = 5;
/// The host of the test itself.
pub const CLIENT: &str = "client";
/// The host of the gateway.
pub const GATEWAY: &str = "gateway";
/// The OSD whose data lie on a file system of their own, which can be filled.
pub const OSD_ON_LOOP: DaemonName = DaemonName::osd(4);
/// What each device file may grow to. Sparse: only what is written counts.
const CAPACITY_BYTES: u64 = 6 << 30;
/// The file system of [`OSD_ON_LOOP`]: has room for the device file, the index and little else.
const LOOP_BYTES: u64 = 8 << 30;

/// The start of a device, of which the OSD keeps two copies; damage there is met only at the next start.
const SUPERBLOCKS_BYTES: u64 = 128 << 10;

/// After a power loss, every process must have been sent its signal within this.
const KILLED_LIMIT: Duration = Duration::from_secs(10);
/// A tracer that was told to end has ended within this.
const TRACER_ENDS_LIMIT: Duration = Duration::from_secs(2);

/// What the daemons' data lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// The machine's file system, and a small one for [`OSD_ON_LOOP`].
    Plain,
    /// File systems that lose power ([`crate::powerfs`]); what becomes of what was not synced is drawn from this seed.
    Power(u64),
}

/// The cluster and its surroundings.
pub struct Field {
    /// The daemons.
    pub cluster: DevCluster,
    /// Daemons that were killed or stopped and not started again.
    pub away: Away,
    /// Seconds by which daemons' clocks are off, from their next start on.
    skews: Arc<Mutex<BTreeMap<DaemonName, i64>>>,
    /// OSDs of which a bit was flipped.
    flipped: Mutex<BTreeSet<DaemonName>>,
    loop_fs: Option<LoopFs>,
    grid: Option<Grid>,
    /// The network.
    pub fabric: Arc<Fabric>,
    dir: Option<TempDir>,
}

/// The host of a daemon.
#[must_use]
pub fn host_of(daemon: DaemonName) -> String {
    match daemon.role {
        Role::Mon | Role::Osd => format!("host{}", daemon.id),
        Role::S3 => GATEWAY.to_owned(),
    }
}

/// The daemons of a host.
#[must_use]
pub fn daemons_of(host: u64) -> Vec<DaemonName> {
    let mon = (host < MONS).then(|| DaemonName::mon(host));
    mon.into_iter().chain([DaemonName::osd(host)]).collect()
}

/// Makes the network. Before any thread that opens sockets: they are to be opened on [`CLIENT`].
///
/// # Errors
/// When the machine does not allow it.
pub fn fabric() -> anyhow::Result<Arc<Fabric>> {
    let hosts: Vec<String> =
        (0..OSDS).map(|host| format!("host{host}")).chain([GATEWAY, CLIENT].map(str::to_owned)).collect();
    Ok(Arc::new(Fabric::new(&hosts.iter().map(String::as_str).collect::<Vec<_>>())?))
}

impl Field {
    /// Starts the cluster on the fabric. Daemons that end by themselves come back, as under any init.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(fabric: Arc<Fabric>, ground: Ground) -> anyhow::Result<Field> {
        // With the number of this process, by which `cargo xtask chaos` knows what a killed run has left mounted.
        let prefix = format!("holdfast-chaos-{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let (mut loop_fs, mut grid) = (None, None);
        match ground {
            Ground::Plain => {
                loop_fs = Some(LoopFs::mount(&dir.path().join("loop.img"), &dir.path().join("osd-4"), LOOP_BYTES)?);
            }
            Ground::Power(seed) => grid = Some(power_grid(dir.path(), seed)?),
        }
        let host = |daemon| -> anyhow::Result<Host> {
            let name = host_of(daemon);
            Ok(Host { address: fabric.address(&name)?, name })
        };
        let hosts = Hosts {
            mons: (0..MONS).map(|id| host(DaemonName::mon(id))).collect::<Result<_, _>>()?,
            osds: (0..OSDS).map(|id| host(DaemonName::osd(id))).collect::<Result<_, _>>()?,
            s3: host(DaemonName::s3())?,
        };
        let wishes = Wishes { capacity_bytes: Some(CAPACITY_BYTES), hosts: Some(hosts), ..Wishes::default() };
        let skews = Arc::new(Mutex::new(BTreeMap::new()));
        let settings = Settings {
            binary: binary(),
            dir: dir.path().to_path_buf(),
            wishes,
            restart: Restart::Always,
            environment: Vec::new(),
            launcher: launcher(fabric.clone(), skews.clone()),
        };
        match DevCluster::start(settings).await {
            Ok(cluster) => {
                let (away, flipped) = (Away::default(), Mutex::default());
                Ok(Field { cluster, away, skews, flipped, loop_fs, grid, fabric, dir: Some(dir) })
            }
            Err(error) => {
                println!("   its logs are kept in {}", dir.keep().display());
                Err(error).context("the cluster does not come up")
            }
        }
    }

    /// A client of the gateway.
    #[must_use]
    pub fn s3(&self) -> S3 {
        let (layout, credentials) = (self.cluster.layout(), self.cluster.credentials());
        S3::new(layout.s3.address.to_string(), &layout.region, &credentials.access_key, &credentials.secret_key)
    }

    /// A daemon ended by itself, because of what was done to it.
    pub fn gone(&self, daemon: DaemonName) {
        self.lose(daemon, Loss::Ended);
    }

    fn lose(&self, daemon: DaemonName, how: Loss) {
        self.away.lock().insert(daemon, Absence { since: Instant::now(), how });
    }

    fn back(&self, daemon: DaemonName) {
        self.away.lock().remove(&daemon);
    }

    /// Kills a daemon (SIGKILL); it stays away until [`Field::revive`].
    ///
    /// # Errors
    /// When there is no such daemon.
    pub async fn kill(&self, daemon: DaemonName) -> anyhow::Result<()> {
        self.gone(daemon);
        Ok(self.cluster.kill9(daemon).await?)
    }

    /// Starts a daemon that was killed and waits until it serves.
    ///
    /// # Errors
    /// When it ends first.
    pub async fn revive(&self, daemon: DaemonName) -> anyhow::Result<()> {
        self.back(daemon);
        self.cluster.start_daemon(daemon).await.with_context(|| format!("{daemon} does not start"))
    }

    /// Freezes daemons (SIGSTOP).
    ///
    /// # Errors
    /// When one has no process.
    pub fn freeze(&self, daemons: &[DaemonName]) -> anyhow::Result<()> {
        for daemon in daemons {
            self.lose(*daemon, Loss::Silent);
            self.cluster.pause(*daemon)?;
        }
        Ok(())
    }

    /// Lets frozen daemons go on (SIGCONT).
    ///
    /// # Errors
    /// When one has no process.
    pub fn thaw(&self, daemons: &[DaemonName]) -> anyhow::Result<()> {
        for daemon in daemons {
            self.back(*daemon);
            self.cluster.resume(*daemon)?;
        }
        Ok(())
    }

    /// Kills everything at once, as power does that fails; [`Field::power_on`] brings it back.
    ///
    /// # Errors
    /// When the supervisor has stopped.
    pub async fn power_off(&self) -> anyhow::Result<()> {
        for daemon in self.cluster.layout().daemons() {
            self.gone(daemon);
        }
        Ok(self.cluster.kill9_all().await?)
    }

    /// What each daemon's file system has lost so far, in words; how many syncs there were.
    #[must_use]
    pub fn losses(&self) -> String {
        let Some(grid) = &self.grid else { return String::new() };
        let words = grid.lost().map(|(at, lost)| {
            let name = at.file_name().unwrap_or_default().to_string_lossy();
            format!(
                "{name}: {} dropped, {} kept, {} torn, {} names",
                lost.dropped, lost.survived, lost.torn, lost.operations
            )
        });
        let (syncs, written_out) = grid.counts();
        format!("{}; {syncs} syncs, {written_out} pages written out", words.collect::<Vec<_>>().join("; "))
    }

    /// Whether the hosts lie on [`Ground::Power`].
    #[must_use]
    pub fn loses_power(&self) -> bool {
        self.grid.is_some()
    }

    /// Takes the power away from all hosts at one moment, with everything that was not synced; [`Field::power_on`] brings
    /// back what is left.
    ///
    /// # Errors
    /// When the field is not on [`Ground::Power`], or a process does not end.
    pub async fn lose_power(&mut self) -> anyhow::Result<Lost> {
        let grid = self.grid.as_mut().context("the hosts lie on file systems that do not lose power")?;
        let daemons = self.cluster.layout().daemons();
        let processes: Vec<_> = daemons.iter().filter_map(|daemon| self.cluster.process(*daemon)).collect();
        for daemon in daemons {
            let absence = Absence { since: Instant::now(), how: Loss::Ended };
            self.away.lock().insert(daemon, absence);
        }
        grid.cut();
        let since = Instant::now();
        let release = async {
            // None may live to see that its file system answers again.
            while !processes.iter().all(is_killed) && since.elapsed() < KILLED_LIMIT {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let all = processes.iter().all(is_killed);
            grid.release();
            all
        };
        let (killed, all) = tokio::join!(self.cluster.kill9_all(), release);
        killed?;
        ensure!(all, "a process was not killed within {KILLED_LIMIT:?}");
        tokio::task::block_in_place(|| grid.restore())
    }

    /// Starts everything that is stopped and waits until all serve.
    ///
    /// # Errors
    /// When a daemon does not come up.
    pub async fn power_on(&mut self) -> anyhow::Result<()> {
        self.away.lock().clear();
        Ok(self.cluster.start_all().await?)
    }

    /// Starts a daemon again with its clocks (since boot, monotonic) off by this many seconds.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn skew(&self, daemon: DaemonName, seconds: i64) -> anyhow::Result<()> {
        self.skews.lock().insert(daemon, seconds);
        self.kill(daemon).await?;
        self.revive(daemon).await
    }

    /// Fills the file system of [`OSD_ON_LOOP`] until so many bytes are left.
    ///
    /// # Errors
    /// When it cannot be filled.
    pub fn fill(&self, left_bytes: u64) -> anyhow::Result<()> {
        self.loop_fs.as_ref().context("no small file system here")?.fill(left_bytes)
    }

    /// Gives the file system of [`OSD_ON_LOOP`] its room back.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn unfill(&self) -> anyhow::Result<()> {
        self.loop_fs.as_ref().context("no small file system here")?.unfill()
    }

    /// From now on every sync of the daemon's files fails with EIO, until the answer is dropped.
    ///
    /// # Errors
    /// When it cannot be traced.
    pub fn fail_syncs(&self, daemon: DaemonName) -> anyhow::Result<Tracer> {
        let process = self.cluster.process(daemon).with_context(|| format!("{daemon} has no process"))?;
        Tracer::attach(process)
    }

    /// Flips one bit of what an OSD has written to its device file: which byte.
    ///
    /// # Errors
    /// When nothing was written yet, or the file cannot be written.
    pub fn flip_bit(&self, osd: DaemonName, random: &mut SmallRng) -> anyhow::Result<u64> {
        let path = self.data_of(osd)?.join("block");
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut allocated = Vec::new();
        let mut at = 0;
        // Only extents that hold data: the file is sparse.
        while let Ok(from) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
            at = rustix::fs::seek(&file, SeekFrom::Hole(from))?;
            allocated.push((from, at));
        }
        let total: u64 = allocated.iter().map(|(from, to)| to - from).sum();
        ensure!(total > 0, "{} is empty", path.display());
        for _ in 0..100_000 {
            let mut nth = random.random_range(0..total);
            for (from, to) in &allocated {
                if nth >= to - from {
                    nth -= to - from;
                    continue;
                }
                let (offset, mut byte) = (from + nth, [0u8]);
                file.read_exact_at(&mut byte, offset)?;
                // Zeros may be room that is being written to right now.
                if byte[0] != 0 && offset >= SUPERBLOCKS_BYTES {
                    self.flipped.lock().insert(osd);
                    file.write_all_at(&[byte[0] ^ (1 << random.random_range(0..8))], offset)?;
                    return Ok(offset);
                }
                break;
            }
        }
        anyhow::bail!("{} holds nothing but zeros", path.display())
    }

    /// The OSDs of which [`Field::flip_bit`] has flipped a bit.
    #[must_use]
    pub fn flipped(&self) -> BTreeSet<DaemonName> {
        self.flipped.lock().clone()
    }

    /// The directory of a daemon's data.
    ///
    /// # Errors
    /// When it has none.
    pub fn data_of(&self, daemon: DaemonName) -> anyhow::Result<PathBuf> {
        self.cluster.dir().data_of(daemon).with_context(|| format!("{daemon} has no data"))
    }

    /// Waits until all daemons are there and every placement group is active and clean.
    ///
    /// # Errors
    /// With the last status, when it takes longer.
    pub async fn wait_clean(&self, limit: Duration) -> anyhow::Result<StatusReport> {
        let mons = usize::try_from(MONS)?;
        let report = self.cluster.wait_status("every placement group clean", limit, |report| {
            u64::from(report.osds_up) == OSDS && report.mons_in_quorum.len() == mons && says_clean(report)
        });
        Ok(report.await?)
    }

    /// All placement groups, as `pg ls` has them.
    ///
    /// # Errors
    /// When the monitors do not answer.
    pub async fn pgs(&self) -> anyhow::Result<Vec<PgRow>> {
        match self.cluster.ask(MonCommand::PgList).await? {
            MonReply::Pgs(rows) => Ok(rows),
            other => anyhow::bail!("pg ls answers {other:?}"),
        }
    }

    /// Fails when a daemon's log shows a panic.
    ///
    /// # Errors
    /// With the lines.
    pub fn no_panic(&self) -> anyhow::Result<()> {
        for daemon in self.cluster.layout().daemons() {
            let log = std::fs::read(self.cluster.dir().log_of(daemon))?;
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().skip_while(|line| !line.contains("panicked at")).take(3).collect();
            ensure!(lines.is_empty(), "{daemon} panicked: {}", lines.join(" "));
        }
        Ok(())
    }

    /// Ends the cluster, and its directory with it.
    ///
    /// # Errors
    /// When a daemon panicked or the directory cannot be removed.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.no_panic()?;
        self.power_off().await?;
        self.loop_fs = None;
        self.grid = None;
        if std::env::var_os("HOLDFAST_KEEP").is_none()
            && let Some(dir) = self.dir.take()
        {
            dir.close()?;
        }
        Ok(())
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            println!("   its logs are kept in {}", dir.keep().display());
        }
    }
}

/// Whether a status claims that nothing is missing.
#[must_use]
pub fn says_clean(report: &StatusReport) -> bool {
    report.pgs > 0
        && report.pg_states.get("active+clean") == Some(&report.pgs)
        && report.copies_missing == 0
        && report.objects_unfound == 0
}

fn launcher(fabric: Arc<Fabric>, skews: Arc<Mutex<BTreeMap<DaemonName, i64>>>) -> Launcher {
    Launcher::new(move |daemon| {
        let mut prefix = fabric.on(&host_of(daemon));
        if let Some(seconds) = skews.lock().get(&daemon) {
            let (boot, monotonic) = (format!("--boottime={seconds}"), format!("--monotonic={seconds}"));
            prefix.extend(["unshare", "--time", &boot, &monotonic, "--"].map(OsString::from));
        }
        prefix
    })
}

/// A file system that loses power under the data of each OSD and monitor.
fn power_grid(dir: &Path, seed: u64) -> anyhow::Result<Grid> {
    let mut grid = Grid::new(seed);
    let osds = (0..OSDS).map(DaemonName::osd);
    for daemon in osds.chain((0..MONS).map(DaemonName::mon)) {
        let name = daemon.to_string().replace('.', "-"); // as the cluster names it
        grid.mount(&dir.join(&name), &dir.join("durable").join(&name), SyncTime::DISK)?;
    }
    Ok(grid)
}

/// Whether a process has ended, or has been sent SIGKILL and runs no more of its own code.
fn is_killed(process: &ProcessIdentity) -> bool {
    const SIGKILL: u64 = 1 << 8;
    let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", process.pid)) else { return true };
    if status.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX")) {
        return true;
    }
    let pending = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    let mut pending = pending.filter_map(|set| u64::from_str_radix(set.trim(), 16).ok());
    pending.any(|set| set & SIGKILL != 0) || !process.is_alive()
}

/// A small file system in a file.
#[derive(Debug)]
struct LoopFs {
    mountpoint: PathBuf,
}

impl LoopFs {
    fn mount(image: &Path, mountpoint: &Path, bytes: u64) -> anyhow::Result<LoopFs> {
        std::fs::File::create(image)?.set_len(bytes)?;
        std::fs::create_dir_all(mountpoint)?;
        let (image, at) = (image.display().to_string(), mountpoint.display().to_string());
        // No blocks kept for root: full is to be full.
        run("mkfs.ext4", &["-q", "-m", "0", "-E", "lazy_itable_init=1", &image])?;
        run("mount", &["-o", "loop", &image, &at])?;
        // The daemon wants an empty directory.
        let lost_and_found = mountpoint.join("lost+found");
        if lost_and_found.exists() {
            std::fs::remove_dir(lost_and_found)?;
        }
        Ok(LoopFs { mountpoint: mountpoint.to_path_buf() })
    }

    fn ballast(&self) -> PathBuf {
        self.mountpoint.join("ballast")
    }

    fn fill(&self, left_bytes: u64) -> anyhow::Result<()> {
        let file = std::fs::File::create(self.ballast())?;
        let mut size = 0;
        // In ever smaller pieces: what is free now is not all of it, some are blocks of the file's own map.
        for step in [64u64 << 20, 1 << 20, 64 << 10, 4 << 10] {
            let flags = rustix::fs::FallocateFlags::empty();
            while rustix::fs::fallocate(&file, flags, size, step).is_ok() {
                size += step;
            }
        }
        ensure!(size > left_bytes, "the file system was full before");
        Ok(file.set_len(size - left_bytes)?)
    }

    fn unfill(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(self.ballast()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    fn unmount(&self) {
        let at = self.mountpoint.display().to_string();
        let _ = run("umount", &["-l", &at]);
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// A tracer that makes a process's syncs fail. Ends with the process, or when dropped: then syncs succeed again.
#[derive(Debug)]
pub struct Tracer {
    tracer: Child,
    traced: ProcessIdentity,
}

impl Tracer {
    fn attach(traced: ProcessIdentity) -> anyhow::Result<Tracer> {
        let tracer = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync,sync_file_range"])
            .args(["-e", "inject=fsync,fdatasync,sync_file_range:error=EIO", "-p"])
            .arg(traced.pid.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run strace")?;
        Ok(Tracer { tracer, traced })
    }

    /// Whether the traced process still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.traced.is_alive()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Ok(tracer) = ProcessIdentity::of(self.tracer.id()) {
            // It detaches from what it traces before it ends.
            let _ = tracer.signal(rustix::process::Signal::INT);
        }
        // Seen once: it waited for ever for threads that had all ended. What it traces is rid of it then, too.
        let since = Instant::now();
        while matches!(self.tracer.try_wait(), Ok(None)) {
            if since.elapsed() > TRACER_ENDS_LIMIT {
                let _ = self.tracer.kill();
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.tracer.wait();
    }
}
