//! One run: a fresh cluster, all cells in order, and the cluster gone again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use holdfast_client::{Client, ClientConfig, Pool};
use holdfast_devcluster::{DevCluster, Launcher, Restart, Settings, Wishes};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::cells::{self, Cell, Door};
use crate::load::{self, Bounds};
use crate::loopback::{self, Exchange};
use crate::objects::{self, ObjectWorker, Op};
use crate::record::{Daemon, Record, measure};
use crate::s3::{self, S3Connection, S3Worker};
use crate::{cells::SIZES, device};

/// Storage daemons, each with one copy of everything.
const OSDS: u32 = 3;
/// Size of each one's sparse device file.
const CAPACITY_BYTES: u64 = 24 << 30;
/// Longest wait for a new cluster's placement groups.
const CLEAN_LIMIT: Duration = Duration::from_secs(60);
/// Most that the bare device writes in one cell.
const DEVICE_BYTES_MAX: u64 = 4 << 30;
/// Most ops of a cell on the loopback.
const LOOPBACK_OPS_MAX: u64 = 2_000_000;

/// What is measured, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The `holdfast` binary.
    pub binary: PathBuf,
    /// Where clusters and files are made; on the disk that is to be measured.
    pub dir: PathBuf,
    /// How long a cell lasts.
    pub time: Duration,
    /// Only cells whose name contains this.
    pub only: Option<String>,
}

impl Plan {
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// The cells of the cluster that are wanted.
    #[must_use]
    pub fn cells(&self) -> Vec<Cell> {
        Cell::all().into_iter().filter(|cell| self.wants(&cell.name())).collect()
    }
}

/// Bytes that do not compress, the same in every run.
#[must_use]
pub fn body(bytes: usize) -> Bytes {
    let mut body = vec![0; bytes];
    SmallRng::seed_from_u64(bytes as u64).fill_bytes(&mut body);
    body.into()
}

/// Measures the device and the loopback.
///
/// # Errors
/// When a cell cannot be measured.
pub async fn beneath(plan: &Plan, run: u32, each: &mut impl FnMut(Record)) -> anyhow::Result<()> {
    for (size, bytes) in SIZES {
        let name = format!("device {size} append+fdatasync c1");
        if plan.wants(&name) && device::available() {
            let bounds = Bounds { time: plan.time, ops_max: DEVICE_BYTES_MAX / bytes as u64 };
            let dir = tempfile::tempdir_in(&plan.dir).context("cannot make a directory")?;
            each(device::append(&name, run, dir.path(), bytes, bounds)?);
        }
    }
    for ((size, bytes), exchange) in SIZES.into_iter().zip([Exchange::Echo, Exchange::Stream]) {
        let name = format!("loopback {size} {} c1", if exchange == Exchange::Echo { "echo" } else { "stream" });
        if plan.wants(&name) {
            let bounds = Bounds { time: plan.time, ops_max: LOOPBACK_OPS_MAX };
            let load = async { tokio::task::spawn_blocking(move || loopback::run(exchange, bytes, bounds)).await? };
            let mut record = measure(&name, run, bytes as u64, &[], load).await?;
            (record.cpu_us_op, record.cs_op, record.wr_b_op) = (None, None, None); // there are no daemons
            each(record);
        }
    }
    Ok(())
}

/// Measures a fresh cluster of one monitor, three OSDs and a gateway, all processes of their own.
///
/// # Errors
/// When it cannot be started or a cell cannot be measured.
pub async fn cluster(plan: &Plan, run: u32, each: &mut impl FnMut(Record)) -> anyhow::Result<()> {
    let cells = plan.cells();
    if cells.is_empty() {
        return Ok(());
    }
    ensure_space(&plan.dir, cells::disk_bytes_max(&cells, u64::from(OSDS)))?;
    let dir = tempfile::Builder::new().prefix("holdfast-bench-").tempdir_in(&plan.dir)?;
    let settings = Settings {
        binary: plan.binary.clone(),
        dir: dir.path().to_path_buf(),
        wishes: Wishes { mons: Some(1), osds: Some(OSDS), capacity_bytes: Some(CAPACITY_BYTES), ..Wishes::default() },
        restart: Restart::Never,
        environment: Vec::new(),
        launcher: Launcher::default(),
    };
    let cluster = DevCluster::start(settings).await.context("the cluster does not start")?;
    let outcome = on_cluster(&cluster, plan, &cells, run, each).await;
    cluster.shutdown().await?;
    outcome
}

async fn on_cluster(
    cluster: &DevCluster,
    plan: &Plan,
    cells: &[Cell],
    run: u32,
    each: &mut impl FnMut(Record),
) -> anyhow::Result<()> {
    let layout = cluster.layout();
    let client = Client::connect(ClientConfig::new(layout.cluster, layout.monitors())).await?;
    let pool = objects::make_pool(&client).await?;
    let key = cluster.credentials();
    let mut s3 = S3Connection::new(&cluster.endpoint(), &layout.region, &key.access_key, &key.secret_key)?;
    s3::make_bucket(&mut s3).await?;
    cluster.wait_clean(CLEAN_LIMIT).await?;
    let daemons = daemons(cluster)?;
    for cell in cells {
        let body = body(cell.bytes);
        if cell.op == Op::Read {
            match cell.door {
                Door::Objects => objects::fill(&pool, &body, cell.objects()).await?,
                Door::S3 => s3::fill(&mut s3, &body, cell.objects()).await?,
            }
        }
        let bounds = cell.bounds(plan.time);
        let bytes = cell.bytes as u64;
        let record = match cell.door {
            Door::Objects => {
                let workers = object_workers(cell, &pool, &body);
                measure(&cell.name(), run, bytes, &daemons, load::run(workers, bounds)).await?
            }
            Door::S3 => {
                let workers = s3_workers(cell, &s3, &body);
                measure(&cell.name(), run, bytes, &daemons, load::run(workers, bounds)).await?
            }
        };
        each(record);
    }
    client.shutdown().await;
    Ok(())
}

fn object_workers(cell: &Cell, pool: &Pool, body: &Bytes) -> Vec<ObjectWorker> {
    let worker = ObjectWorker { pool: pool.clone(), op: cell.op, body: body.clone(), objects: cell.objects() };
    vec![worker; cell.clients]
}

fn s3_workers(cell: &Cell, s3: &S3Connection, body: &Bytes) -> Vec<S3Worker> {
    let worker = |_| S3Worker { connection: s3.another(), op: cell.op, body: body.clone(), objects: cell.objects() };
    (0..cell.clients).map(worker).collect()
}

fn daemons(cluster: &DevCluster) -> anyhow::Result<Vec<Daemon>> {
    let of = |name| {
        let process = cluster.process(name).with_context(|| format!("{name} has no process"))?;
        Ok(Daemon { name: name.to_string(), pid: process.pid })
    };
    cluster.layout().daemons().into_iter().map(of).collect()
}

fn ensure_space(dir: &Path, bytes: u64) -> anyhow::Result<()> {
    let stat = rustix::fs::statvfs(dir).with_context(|| format!("cannot measure {}", dir.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    ensure!(
        free >= bytes,
        "{} has {} MiB free and a run may write {} MiB; name another directory with --dir, or fewer cells with --only",
        dir.display(),
        free >> 20,
        bytes >> 20
    );
    Ok(())
}
