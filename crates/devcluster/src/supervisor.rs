//! Keeps daemons running as processes: starts, stops, kills, and restarts the ones that ended by themselves.
//!
//! One task owns one daemon, so its orders and its end are seen in one order:
//!
//! | state | order or event | next |
//! |---|---|---|
//! | `Stopped` | start | `Starting` |
//! | `Starting` | says that it serves | `Serving` |
//! | `Starting`, `Serving` | ends by itself | `Waiting` when restarts are on, else `Stopped` |
//! | `Starting`, `Serving` | stop, kill | `Stopped`, after it has been reaped |
//! | `Waiting` | pause is over, start | `Starting` |
//! | `Waiting` | stop, kill | `Stopped` |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};

use crate::daemon::{DaemonName, Launcher, Started, start};
use crate::directory::{ClusterDir, tail};
use crate::error::DevError;
use crate::process::ProcessIdentity;

/// First pause before a daemon that ended is started again; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause: a daemon that cannot start costs little, one that can is back soon.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A daemon that ran this long is well: its next end starts with the shortest pause again.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// A daemon that was asked to stop and does not gets SIGKILL after this.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Orders that may wait for one daemon.
const ORDERS_MAX: usize = 16;
/// Of a failed daemon's log, this much is shown.
const TAIL_BYTES: usize = 2000;

/// Whether daemons that end by themselves (a crash, a kill from outside) are started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Yes, after a pause.
    Always,
    /// No: tests decide themselves.
    Never,
}

/// What a daemon's process is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonState {
    /// No process.
    Stopped,
    /// Has a process that does not serve yet.
    Starting(ProcessIdentity),
    /// Serves.
    Serving(ProcessIdentity),
    /// Ended by itself; will be started again.
    Waiting,
}

impl DaemonState {
    /// Its process, if it has one.
    #[must_use]
    pub fn process(&self) -> Option<&ProcessIdentity> {
        match self {
            DaemonState::Starting(process) | DaemonState::Serving(process) => Some(process),
            DaemonState::Stopped | DaemonState::Waiting => None,
        }
    }
}

enum Order {
    Start(oneshot::Sender<Result<(), DevError>>),
    Stop(oneshot::Sender<()>),
    Kill(oneshot::Sender<()>),
}

struct Supervised {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<DaemonState>,
}

/// The daemons of one directory. Dropping it ends them all.
pub struct Supervisor {
    shared: Arc<Shared>,
    daemons: BTreeMap<DaemonName, Supervised>,
}

impl Supervisor {
    /// Takes charge of these daemons; starts none.
    #[must_use]
    pub fn new(
        binary: PathBuf,
        dir: &ClusterDir,
        daemons: &[DaemonName],
        restart: Restart,
        environment: Vec<(String, String)>,
    ) -> Supervisor {
        Supervisor::launching(binary, dir, daemons, restart, environment, Launcher::default())
    }

    /// [`Supervisor::new`], with what the daemons are started in.
    #[must_use]
    pub fn launching(
        binary: PathBuf,
        dir: &ClusterDir,
        daemons: &[DaemonName],
        restart: Restart,
        environment: Vec<(String, String)>,
        launcher: Launcher,
    ) -> Supervisor {
        let shared = Arc::new(Shared { binary, dir: dir.clone(), restart, environment, launcher });
        let daemons = daemons.iter().map(|daemon| (*daemon, supervise(shared.clone(), *daemon))).collect();
        Supervisor { shared, daemons }
    }

    /// Takes charge of one more; does not start it.
    pub fn add(&mut self, daemon: DaemonName) {
        self.daemons.entry(daemon).or_insert_with(|| supervise(self.shared.clone(), daemon));
    }

    fn of(&self, daemon: DaemonName) -> Result<&Supervised, DevError> {
        self.daemons.get(&daemon).ok_or(DevError::NoDaemon { daemon })
    }

    /// Starts a daemon and waits for its word that it serves. Nothing happens when it serves already.
    ///
    /// # Errors
    /// [`DevError::Ended`] when it ends first.
    pub async fn start(&self, daemon: DaemonName) -> Result<(), DevError> {
        let (reply, answer) = oneshot::channel();
        self.of(daemon)?.orders.send(Order::Start(reply)).await.map_err(|_| DevError::Stopped)?;
        answer.await.map_err(|_| DevError::Stopped)?
    }

    /// Asks a daemon to stop (SIGTERM) and waits until it has ended; kills it when it does not.
    ///
    /// # Errors
    /// [`DevError::NoDaemon`].
    pub async fn stop(&self, daemon: DaemonName) -> Result<(), DevError> {
        let (reply, answer) = oneshot::channel();
        self.of(daemon)?.orders.send(Order::Stop(reply)).await.map_err(|_| DevError::Stopped)?;
        answer.await.map_err(|_| DevError::Stopped)
    }

    /// Kills a daemon (SIGKILL) and waits until it is gone. It stays away until it is started.
    ///
    /// # Errors
    /// [`DevError::NoDaemon`].
    pub async fn kill9(&self, daemon: DaemonName) -> Result<(), DevError> {
        let (reply, answer) = oneshot::channel();
        self.of(daemon)?.orders.send(Order::Kill(reply)).await.map_err(|_| DevError::Stopped)?;
        answer.await.map_err(|_| DevError::Stopped)
    }

    /// Sends a signal to a daemon's process, such as SIGSTOP.
    ///
    /// # Errors
    /// When it has no process.
    pub fn signal(&self, daemon: DaemonName, signal: Signal) -> Result<(), DevError> {
        let state = self.state(daemon)?;
        let process = state.process().ok_or(DevError::NoDaemon { daemon })?;
        process.signal(signal).map_err(DevError::file("signal", daemon.to_string()))
    }

    /// What a daemon's process is doing now.
    ///
    /// # Errors
    /// [`DevError::NoDaemon`].
    pub fn state(&self, daemon: DaemonName) -> Result<DaemonState, DevError> {
        Ok(self.of(daemon)?.state.borrow().clone())
    }

    /// Waits until a daemon serves, whoever starts it.
    ///
    /// # Errors
    /// [`DevError::NoDaemon`], [`DevError::Stopped`].
    pub async fn serving(&self, daemon: DaemonName) -> Result<(), DevError> {
        let mut state = self.of(daemon)?.state.clone();
        let serving = state.wait_for(|state| matches!(state, DaemonState::Serving(_))).await;
        serving.map(|_| ()).map_err(|_| DevError::Stopped)
    }

    /// All daemons.
    pub fn daemons(&self) -> impl Iterator<Item = DaemonName> + '_ {
        self.daemons.keys().copied()
    }
}

struct Shared {
    binary: PathBuf,
    dir: ClusterDir,
    restart: Restart,
    environment: Vec<(String, String)>,
    launcher: Launcher,
}

fn supervise(shared: Arc<Shared>, daemon: DaemonName) -> Supervised {
    let (orders, inbox) = mpsc::channel(ORDERS_MAX);
    let (publish, state) = watch::channel(DaemonState::Stopped);
    tokio::spawn(Keeper { shared, daemon, publish, pause: PAUSE_MIN }.run(inbox));
    Supervised { orders, state }
}

struct Keeper {
    shared: Arc<Shared>,
    daemon: DaemonName,
    publish: watch::Sender<DaemonState>,
    pause: Duration,
}

/// How a process's life ended, for the keeper.
enum End {
    /// Who asked is answered when the new state can be seen.
    Ordered(oneshot::Sender<()>),
    ByItself,
    NoMoreOrders,
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        let mut asked: Option<oneshot::Sender<Result<(), DevError>>> = None;
        let mut restart_due = false;
        loop {
            if !restart_due && asked.is_none() {
                match inbox.recv().await {
                    Some(Order::Start(reply)) => asked = Some(reply),
                    Some(Order::Stop(reply) | Order::Kill(reply)) => {
                        let _ = reply.send(());
                        continue;
                    }
                    None => return,
                }
            } else if restart_due {
                self.publish.send_replace(DaemonState::Waiting);
                tokio::select! {
                    () = tokio::time::sleep(self.pause) => {}
                    order = inbox.recv() => match order {
                        Some(Order::Start(reply)) => asked = Some(reply),
                        Some(Order::Stop(reply) | Order::Kill(reply)) => {
                            restart_due = false;
                            self.publish.send_replace(DaemonState::Stopped);
                            let _ = reply.send(());
                            continue;
                        }
                        None => return,
                    }
                }
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
            let since = Instant::now();
            let end = self.life(asked.take(), &mut inbox).await;
            self.shared.dir.forget_daemon(self.daemon);
            self.publish.send_replace(DaemonState::Stopped);
            if since.elapsed() >= WELL_AFTER {
                self.pause = PAUSE_MIN;
            }
            restart_due = match end {
                End::Ordered(reply) => {
                    let _ = reply.send(());
                    false
                }
                End::ByItself => self.shared.restart == Restart::Always,
                End::NoMoreOrders => return,
            };
        }
    }

    /// One process from start to end.
    async fn life(
        &self,
        mut asked: Option<oneshot::Sender<Result<(), DevError>>>,
        inbox: &mut mpsc::Receiver<Order>,
    ) -> End {
        let Shared { binary, dir, environment, launcher, .. } = &*self.shared;
        let started = start(binary, dir, self.daemon, environment, launcher);
        let Started { mut child, stdin: _stdin, mut ready } = match started {
            Ok(started) => started,
            Err(error) => {
                tracing::warn!(daemon = %self.daemon, %error, "cannot be started");
                answer(&mut asked, Err(error));
                return End::ByItself;
            }
        };
        let identity = child.id().and_then(|pid| ProcessIdentity::of(pid).ok());
        if let Some(identity) = &identity {
            self.publish.send_replace(DaemonState::Starting(identity.clone()));
            if let Err(error) = self.shared.dir.record_daemon(self.daemon, identity) {
                tracing::warn!(daemon = %self.daemon, %error, "its process could not be recorded");
            }
        }
        let mut waiting_for_ready = true;
        loop {
            tokio::select! {
                status = child.wait() => {
                    let status = status.map_or_else(|error| error.to_string(), describe);
                    tracing::warn!(daemon = %self.daemon, %status, "ended by itself");
                    let log = self.shared.dir.log_of(self.daemon);
                    let tail = tail(&log, TAIL_BYTES);
                    answer(&mut asked, Err(DevError::Ended { daemon: self.daemon, status, log, tail }));
                    return End::ByItself;
                }
                word = &mut ready, if waiting_for_ready => {
                    waiting_for_ready = false;
                    if word.is_ok() {
                        if let Some(identity) = &identity {
                            self.publish.send_replace(DaemonState::Serving(identity.clone()));
                        }
                        answer(&mut asked, Ok(()));
                    }
                }
                order = inbox.recv() => match order {
                    Some(Order::Start(reply)) if waiting_for_ready => asked = Some(reply),
                    Some(Order::Start(reply)) => {
                        let _ = reply.send(Ok(()));
                    }
                    Some(Order::Stop(reply)) => {
                        terminate(&mut child, identity.as_ref()).await;
                        return End::Ordered(reply);
                    }
                    Some(Order::Kill(reply)) => {
                        // `kill` waits until the process has been reaped.
                        let _ = child.kill().await;
                        return End::Ordered(reply);
                    }
                    None => {
                        terminate(&mut child, identity.as_ref()).await;
                        return End::NoMoreOrders;
                    }
                }
            }
        }
    }
}

fn answer(asked: &mut Option<oneshot::Sender<Result<(), DevError>>>, outcome: Result<(), DevError>) {
    if let Some(asked) = asked.take() {
        let _ = asked.send(outcome);
    }
}

async fn terminate(child: &mut Child, identity: Option<&ProcessIdentity>) {
    if let Some(identity) = identity {
        let _ = identity.signal(Signal::TERM);
    }
    if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn describe(status: ExitStatus) -> String {
    status.to_string()
}
