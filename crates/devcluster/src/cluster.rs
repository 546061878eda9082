//! A whole cluster of processes: what `holdfast dev up --processes` runs, and what tests and benchmarks drive.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use holdfast_net::mon_session::MonSession;
use holdfast_wire::mon::{MonCommand, MonReply, StatusReport};
use rustix::process::Signal;

use crate::bootstrap::{bootstrap, monitor_session};
use crate::config_files::write_config_files;
use crate::credentials::Credentials;
use crate::daemon::{DaemonName, Launcher, Role};
use crate::directory::{ClusterDir, DirLock};
use crate::error::DevError;
use crate::layout::{Layout, Wishes};
use crate::process::ProcessIdentity;
use crate::supervisor::{Restart, Supervisor};

/// Pause between two looks at a status that is waited for; the monitors have no "tell me when" for it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What to start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The `holdfast` binary.
    pub binary: PathBuf,
    /// Where the cluster lives.
    pub dir: PathBuf,
    /// Its shape.
    pub wishes: Wishes,
    /// Whether daemons that end by themselves come back by themselves.
    pub restart: Restart,
    /// Further environment of the daemons.
    pub environment: Vec<(String, String)>,
    /// In what the daemons are started.
    pub launcher: Launcher,
}

/// A running cluster of processes. Dropping it ends them.
pub struct DevCluster {
    dir: ClusterDir,
    layout: Layout,
    credentials: Credentials,
    supervisor: Supervisor,
    session: MonSession,
    _lock: DirLock,
}

impl DevCluster {
    /// Starts the cluster and waits until it serves S3. At first start it makes id, addresses, key and pools.
    ///
    /// # Errors
    /// [`DevError`].
    pub async fn start(settings: Settings) -> Result<DevCluster, DevError> {
        let dir = ClusterDir::create(&settings.dir)?;
        let lock = dir.lock()?;
        dir.record_owner()?;
        let layout = Layout::open_or_create(&dir, &settings.wishes)?;
        let credentials = Credentials::open_or_create(&dir)?;
        write_config_files(&dir, &layout)?;
        let daemons = layout.daemons();
        let Settings { binary, restart, environment, launcher, .. } = settings;
        let supervisor = Supervisor::launching(binary, &dir, &daemons, restart, environment, launcher);
        let session = monitor_session(&layout)?;
        let mut cluster = DevCluster { dir, layout, credentials, supervisor, session, _lock: lock };
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// Starts every daemon that is stopped and waits until all serve.
    ///
    /// # Errors
    /// [`DevError::Ended`] when one ends first.
    pub async fn start_all(&mut self) -> Result<(), DevError> {
        let storage: Vec<DaemonName> = self.layout.daemons().into_iter().filter(|name| name.role != Role::S3).collect();
        let start_storage = async {
            let starting = storage.iter().map(|name| self.supervisor.start(*name)).collect::<Vec<_>>();
            all(starting).await
        };
        if self.layout.bootstrapped {
            let (storage, s3) = tokio::join!(start_storage, self.supervisor.start(DaemonName::s3()));
            return storage.and(s3);
        }
        start_storage.await?;
        bootstrap(&self.session, &self.credentials).await?;
        self.layout.bootstrapped = true;
        self.layout.save(&self.dir)?;
        self.supervisor.start(DaemonName::s3()).await
    }

    /// Kills all daemons at once (SIGKILL) and waits until they are gone.
    ///
    /// # Errors
    /// [`DevError::Stopped`].
    pub async fn kill9_all(&self) -> Result<(), DevError> {
        all(self.layout.daemons().into_iter().map(|name| self.supervisor.kill9(name)).collect()).await
    }

    /// Kills one daemon (SIGKILL) and waits until it is gone; it stays away until [`DevCluster::start_daemon`].
    ///
    /// # Errors
    /// [`DevError::NoDaemon`].
    pub async fn kill9(&self, daemon: DaemonName) -> Result<(), DevError> {
        self.supervisor.kill9(daemon).await
    }

    /// Asks one daemon to stop and waits until it has.
    ///
    /// # Errors
    /// [`DevError::NoDaemon`].
    pub async fn stop(&self, daemon: DaemonName) -> Result<(), DevError> {
        self.supervisor.stop(daemon).await
    }

    /// Starts one daemon and waits until it serves.
    ///
    /// # Errors
    /// [`DevError::Ended`] when it ends first.
    pub async fn start_daemon(&self, daemon: DaemonName) -> Result<(), DevError> {
        self.supervisor.start(daemon).await
    }

    /// Adds an OSD to the running cluster, starts it, and waits until it serves. Moving data there is the cluster's own
    /// affair.
    ///
    /// # Errors
    /// [`DevError::Impossible`] when there are [`OSDS_MAX`](crate::OSDS_MAX) already, and as [`DevCluster::start_daemon`].
    pub async fn add_osd(&mut self, capacity_bytes: Option<u64>) -> Result<DaemonName, DevError> {
        let count = u32::try_from(self.layout.osds.len()).unwrap_or(u32::MAX);
        let wishes = Wishes { osds: Some(count.saturating_add(1)), capacity_bytes, ..Wishes::default() };
        self.layout = Layout::open_or_create(&self.dir, &wishes)?;
        write_config_files(&self.dir, &self.layout)?;
        let added = DaemonName::osd(u64::from(count));
        self.supervisor.add(added);
        self.supervisor.start(added).await?;
        Ok(added)
    }

    /// Kills one daemon and starts it again.
    ///
    /// # Errors
    /// As [`DevCluster::kill9`] and [`DevCluster::start_daemon`].
    pub async fn restart(&self, daemon: DaemonName) -> Result<(), DevError> {
        self.kill9(daemon).await?;
        self.start_daemon(daemon).await
    }

    /// Freezes a daemon (SIGSTOP).
    ///
    /// # Errors
    /// When it has no process.
    pub fn pause(&self, daemon: DaemonName) -> Result<(), DevError> {
        self.supervisor.signal(daemon, Signal::STOP)
    }

    /// Lets a frozen daemon go on (SIGCONT).
    ///
    /// # Errors
    /// When it has no process.
    pub fn resume(&self, daemon: DaemonName) -> Result<(), DevError> {
        self.supervisor.signal(daemon, Signal::CONT)
    }

    /// Stops everything in order: gateway, OSDs, monitors.
    ///
    /// # Errors
    /// [`DevError::Stopped`].
    pub async fn shutdown(self) -> Result<(), DevError> {
        for role in [Role::S3, Role::Osd, Role::Mon] {
            let daemons = self.layout.daemons().into_iter().filter(|name| name.role == role);
            all(daemons.map(|name| self.supervisor.stop(name)).collect()).await?;
        }
        Ok(())
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &ClusterDir {
        &self.dir
    }

    /// Its daemons and addresses.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its S3 key.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The S3 endpoint's URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.layout.endpoint()
    }

    /// The daemons' processes.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// The process of a daemon, if it has one.
    #[must_use]
    pub fn process(&self, daemon: DaemonName) -> Option<ProcessIdentity> {
        self.supervisor.state(daemon).ok().and_then(|state| state.process().cloned())
    }

    /// Asks the monitors.
    ///
    /// # Errors
    /// [`DevError::Monitors`], [`DevError::Refused`].
    pub async fn ask(&self, command: MonCommand) -> Result<MonReply, DevError> {
        let what = format!("{command:?}");
        match self.session.execute(command).await? {
            MonReply::Failed(source) => Err(DevError::Refused { what, source }),
            reply => Ok(reply),
        }
    }

    /// What `holdfast status` says.
    ///
    /// # Errors
    /// As [`DevCluster::ask`].
    pub async fn status(&self) -> Result<StatusReport, DevError> {
        match self.ask(MonCommand::Status).await? {
            MonReply::Status(report) => Ok(*report),
            _ => Err(DevError::Unexpected { what: "status".to_owned() }),
        }
    }

    /// Waits until the status is as wanted and gives it.
    ///
    /// # Errors
    /// [`DevError::Timeout`] with the last status.
    pub async fn wait_status(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&StatusReport) -> bool,
    ) -> Result<StatusReport, DevError> {
        let since = Instant::now();
        loop {
            let state = match self.status().await {
                Ok(report) if wanted(&report) => return Ok(report),
                Ok(report) => format!("the status was {report:?}"),
                Err(error) => format!("the monitors could not be asked: {error}"),
            };
            if since.elapsed() >= limit {
                return Err(DevError::Timeout { what: what.to_owned(), limit, state });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until every OSD is up and every placement group is active and clean.
    ///
    /// # Errors
    /// [`DevError::Timeout`].
    pub async fn wait_clean(&self, limit: Duration) -> Result<StatusReport, DevError> {
        let osds = u32::try_from(self.layout.osds.len()).unwrap_or(u32::MAX);
        self.wait_status("every placement group clean", limit, |report| is_clean(report, osds)).await
    }
}

fn is_clean(report: &StatusReport, osds: u32) -> bool {
    report.osds_up == osds
        && report.pgs > 0
        && report.pg_states.get("active+clean") == Some(&report.pgs)
        && report.copies_missing == 0
        && report.objects_unfound == 0
}

/// Runs all to the end; the first error, if any.
async fn all<F>(futures: Vec<F>) -> Result<(), DevError>
where
    F: Future<Output = Result<(), DevError>>,
{
    let mut pending: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outcome = Ok(());
    std::future::poll_fn(|context| {
        pending.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Ready(Ok(())) => false,
            std::task::Poll::Ready(Err(error)) => {
                if outcome.is_ok() {
                    outcome = Err(error);
                }
                false
            }
            std::task::Poll::Pending => true,
        });
        if pending.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    outcome
}
