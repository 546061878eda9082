//! Clusters of real processes for tests, and how hard a run tries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use holdfast_devcluster::{DaemonName, DevCluster, Launcher, Restart, Settings, Wishes};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;

use crate::s3::S3;

/// A cluster that came up gets this long until every copy is counted.
pub const CLEAN_LIMIT: Duration = Duration::from_secs(120);

/// The binary under test: `HOLDFAST_BIN`, else the newest of what cargo built here.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("HOLDFAST_BIN") {
        return PathBuf::from(path);
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let built = ["release", "debug"].map(|profile| target.join(profile).join("holdfast"));
    let age = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).ok();
    built
        .into_iter()
        .filter(|path| path.exists())
        .max_by_key(age)
        .expect("there is no holdfast binary: cargo build --bin holdfast, or set HOLDFAST_BIN")
}

/// Whether the binary is optimised: limits of time hold only for such.
#[must_use]
pub fn is_release() -> bool {
    !binary().components().any(|part| part.as_os_str() == "debug")
}

/// Passes over a test that this machine cannot run, where `HOLDFAST_MAY_SKIP=1` allows it.
///
/// # Errors
/// Everywhere else: a test that tested nothing has not passed.
pub fn skip(obstacle: &str) -> anyhow::Result<()> {
    skip_if(std::env::var("HOLDFAST_MAY_SKIP").ok().as_deref(), obstacle)
}

fn skip_if(may_skip: Option<&str>, obstacle: &str) -> anyhow::Result<()> {
    anyhow::ensure!(may_skip == Some("1"), "{obstacle}; with HOLDFAST_MAY_SKIP=1 this test is skipped here");
    println!("   SKIPPED, nothing was tested: {obstacle}");
    Ok(())
}

/// A number of the run: `in_ci` of it, or `full` with `HOLDFAST_DOSE=full`.
#[must_use]
pub fn dose(in_ci: u64, full: u64) -> u64 {
    if std::env::var("HOLDFAST_DOSE").is_ok_and(|dose| dose == "full") { full } else { in_ci }
}

/// A seed for everything random in a test; printed, so that a run can be repeated in kind (not in timing).
#[must_use]
pub fn seed() -> u64 {
    let seed = std::env::var("HOLDFAST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| SmallRng::from_os_rng().random());
    println!("   seed {seed} (HOLDFAST_SEED)");
    seed
}

/// A cluster in a directory that ends with it. When the test fails the directory is kept and named.
pub struct World {
    /// The cluster.
    pub cluster: DevCluster,
    dir: Option<TempDir>,
}

impl World {
    /// Starts a cluster whose daemons come back only when the test says so.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(mons: u32, osds: u32) -> anyhow::Result<World> {
        World::start_as(Wishes { mons: Some(mons), osds: Some(osds), ..Wishes::default() }).await
    }

    /// [`World::start`], with more to say on the cluster's shape.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_as(wishes: Wishes) -> anyhow::Result<World> {
        let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir()?;
        let settings = Settings {
            binary: binary(),
            dir: dir.path().to_path_buf(),
            wishes,
            restart: Restart::Never,
            environment: Vec::new(),
            launcher: Launcher::default(),
        };
        let cluster = DevCluster::start(settings).await;
        let cluster = cluster.inspect_err(|_| println!("   its logs are kept in {}", dir.path().display()));
        match cluster {
            Ok(cluster) => Ok(World { cluster, dir: Some(dir) }),
            Err(error) => {
                let _ = dir.keep();
                Err(error).context("the cluster does not come up")
            }
        }
    }

    /// A client of its gateway.
    #[must_use]
    pub fn s3(&self) -> S3 {
        let (layout, credentials) = (self.cluster.layout(), self.cluster.credentials());
        S3::new(layout.s3.address.to_string(), &layout.region, &credentials.access_key, &credentials.secret_key)
    }

    /// A client with a bucket of this name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn s3_with(&self, bucket: &str) -> anyhow::Result<S3> {
        let s3 = self.s3();
        s3.create_bucket(bucket).await.context("the bucket cannot be made")?;
        Ok(s3)
    }

    /// A daemon's log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log_of(&self, daemon: DaemonName) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.cluster.dir().log_of(daemon))?)
    }

    /// Fails when a daemon's log shows a panic.
    ///
    /// # Errors
    /// With the lines.
    pub fn no_panic(&self) -> anyhow::Result<()> {
        for daemon in self.cluster.layout().daemons() {
            let log = self.log_of(daemon)?;
            let lines: Vec<&str> = log.lines().skip_while(|line| !line.contains("panicked at")).take(3).collect();
            anyhow::ensure!(lines.is_empty(), "{daemon} panicked: {}", lines.join(" "));
        }
        Ok(())
    }

    /// Ends the cluster in order, and its directory with it.
    ///
    /// # Errors
    /// When a daemon panicked.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.no_panic()?;
        if let Some(dir) = self.dir.take() {
            self.cluster_shutdown().await?;
            dir.close()?;
        }
        Ok(())
    }

    async fn cluster_shutdown(&self) -> anyhow::Result<()> {
        for daemon in self.cluster.layout().daemons().into_iter().rev() {
            self.cluster.stop(daemon).await?;
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            println!("   its logs are kept in {}", dir.keep().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_cannot_run_has_failed_unless_it_may_be_skipped() {
        assert!(skip_if(Some("1"), "no root").is_ok());
        for may_skip in [None, Some(""), Some("0")] {
            let error = skip_if(may_skip, "no root").expect_err("nothing was tested").to_string();
            assert!(error.contains("no root") && error.contains("HOLDFAST_MAY_SKIP=1"), "{error}");
        }
    }
}
