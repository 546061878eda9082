//! A whole cluster in this process: the same daemons with the same configuration files, on one runtime.

use std::time::Duration;

use futures::future::try_join_all;
use holdfast_devcluster::{
    ClusterDir, Credentials, DaemonName, Layout, ProcessIdentity, Role, bootstrap, monitor_session,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::load;
use crate::failure::{Exit, Failure};
use crate::roles;

/// Daemons of one role that do not end within this are left behind.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// A running cluster.
pub struct Embedded {
    /// Each role with its own token, in the order in which they are stopped: gateway, OSDs, monitors.
    groups: Vec<Group>,
    /// Cancelled when a daemon ended by itself.
    failed: CancellationToken,
}

struct Group {
    stop: CancellationToken,
    ends: Vec<JoinHandle<Result<(), Failure>>>,
}

impl Embedded {
    /// Starts all daemons of the directory and returns when S3 is served.
    pub async fn start(dir: &ClusterDir, layout: &mut Layout, credentials: &Credentials) -> Result<Embedded, Failure> {
        let own = ProcessIdentity::of_self()
            .map_err(|error| Failure::new(Exit::Error, "cannot read /proc").because(&error))?;
        for daemon in layout.daemons() {
            dir.record_daemon(daemon, &own).map_err(|error| Failure::dev("record a daemon", &error))?;
        }
        let failed = CancellationToken::new();
        let of = |role| layout.daemons().into_iter().filter(move |name| name.role == role).collect::<Vec<_>>();
        let forms = !layout.bootstrapped;
        let (mons, osds) = tokio::try_join!(
            Group::start(dir, of(Role::Mon), forms, failed.clone()),
            Group::start(dir, of(Role::Osd), forms, failed.clone())
        )?;
        if !layout.bootstrapped {
            let session = monitor_session(layout).map_err(|error| Failure::dev("reach the monitors", &error))?;
            bootstrap(&session, credentials).await.map_err(|error| Failure::dev("make pools and key", &error))?;
            layout.bootstrapped = true;
            layout.save(dir).map_err(|error| Failure::dev("keep the layout", &error))?;
        }
        let s3 = Group::start(dir, vec![DaemonName::s3()], false, failed.clone()).await?;
        Ok(Embedded { groups: vec![s3, osds, mons], failed })
    }

    /// Returns when a daemon ended by itself, which none should.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Stops all in order; the first failure of a daemon, if any.
    pub async fn stop(self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for group in self.groups {
            group.stop.cancel();
            for end in group.ends {
                let ended = match tokio::time::timeout(STOP_LIMIT, end).await {
                    Ok(Ok(ended)) => ended,
                    Ok(Err(panic)) => Err(Failure::new(Exit::Error, "a daemon panicked").because(&panic)),
                    Err(_) => Err(Failure::new(Exit::Timeout, format!("a daemon did not end within {STOP_LIMIT:?}"))),
                };
                outcome = outcome.and(ended);
            }
        }
        outcome
    }
}

impl Group {
    /// `forms`: whether the cluster is being formed.
    async fn start(
        dir: &ClusterDir,
        daemons: Vec<DaemonName>,
        forms: bool,
        failed: CancellationToken,
    ) -> Result<Group, Failure> {
        let stop = CancellationToken::new();
        let starting = daemons.into_iter().map(|daemon| start_one(dir, daemon, forms, stop.clone(), failed.clone()));
        let ends = try_join_all(starting).await?;
        Ok(Group { stop, ends })
    }
}

/// Starts one daemon and waits until it serves.
async fn start_one(
    dir: &ClusterDir,
    daemon: DaemonName,
    forms: bool,
    stop: CancellationToken,
    failed: CancellationToken,
) -> Result<JoinHandle<Result<(), Failure>>, Failure> {
    let path = dir.config_of(daemon);
    let mut role = match daemon.role {
        Role::Mon => roles::start_mon(load(&path)?, forms, stop.clone()).await?,
        Role::Osd => roles::start_osd(load(&path)?, stop.clone()).await?,
        Role::S3 => roles::start_s3(load(&path)?, stop.clone()).await?,
    };
    tokio::select! {
        () = &mut role.ready => role.admin.set_ready(true),
        ended = &mut role.end => {
            ended?;
            return Err(Failure::new(Exit::Error, format!("{daemon} ended before it served")));
        }
    }
    Ok(tokio::spawn(async move {
        let ended = role.end.await;
        role.admin.set_ready(false);
        if !stop.is_cancelled() {
            tracing::error!(%daemon, "ended by itself");
            failed.cancel();
        }
        ended
    }))
}
