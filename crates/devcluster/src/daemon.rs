//! One daemon as a child process: how it is started and how it says that it serves.

use std::ffi::OsString;
use std::fmt;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

use crate::directory::ClusterDir;
use crate::error::DevError;
use crate::layout::Layout;

/// What a daemon prints on its standard output, followed by a line end, as soon as it serves.
pub const READY_MARK: &str = "holdfast: ready";

/// Set for supervised daemons: they end when their standard input ends, as it does when the supervisor is gone.
pub const SUPERVISED_ENV: &str = "HOLDFAST_SUPERVISED";

/// What a daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Monitor.
    Mon,
    /// Storage daemon.
    Osd,
    /// S3 gateway.
    S3,
}

impl Role {
    /// The sub-command of `holdfast` that runs it.
    #[must_use]
    pub fn command(self) -> &'static str {
        match self {
            Role::Mon => "mon",
            Role::Osd => "osd",
            Role::S3 => "s3",
        }
    }
}

/// One daemon of a cluster. Shown as `osd.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DaemonName {
    /// What it does.
    pub role: Role,
    /// Its number within the role, from 0.
    pub id: u64,
}

impl DaemonName {
    /// Monitor `id`.
    #[must_use]
    pub const fn mon(id: u64) -> DaemonName {
        DaemonName { role: Role::Mon, id }
    }

    /// OSD `id`.
    #[must_use]
    pub const fn osd(id: u64) -> DaemonName {
        DaemonName { role: Role::Osd, id }
    }

    /// The gateway.
    #[must_use]
    pub const fn s3() -> DaemonName {
        DaemonName { role: Role::S3, id: 0 }
    }

    /// The name of its files: `osd-3`; the only gateway is `s3`.
    pub(crate) fn file_stem(self) -> String {
        match self.role {
            Role::S3 => "s3".to_owned(),
            role => format!("{}-{}", role.command(), self.id),
        }
    }
}

impl fmt::Display for DaemonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.role.command(), self.id)
    }
}

/// What a daemon's command line is put behind: programs that make an environment, such as a network namespace, and then
/// *become* the daemon (`exec`), so that the process started is the daemon's.
#[derive(Clone, Default)]
pub struct Launcher(Option<Arc<dyn Fn(DaemonName) -> Vec<OsString> + Send + Sync>>);

impl Launcher {
    /// Asked at every start of a daemon: program and arguments before the daemon's own; none: started directly.
    pub fn new(prefix: impl Fn(DaemonName) -> Vec<OsString> + Send + Sync + 'static) -> Launcher {
        Launcher(Some(Arc::new(prefix)))
    }

    fn command(&self, binary: &Path, daemon: DaemonName) -> Command {
        let prefix = self.0.as_ref().map(|prefix| prefix(daemon)).unwrap_or_default();
        let Some((program, arguments)) = prefix.split_first() else { return Command::new(binary) };
        let mut command = Command::new(program);
        command.args(arguments).arg(binary);
        command
    }
}

impl fmt::Debug for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Launcher(…)" } else { "Launcher(none)" })
    }
}

/// A daemon that was started: its process, and its word that it serves (an error when it ends without).
pub(crate) struct Started {
    pub child: Child,
    /// Held for as long as the daemon shall live. Not left in `child`: waiting for a child closes its input first.
    pub stdin: Option<ChildStdin>,
    pub ready: oneshot::Receiver<()>,
}

/// Starts a daemon as `holdfast ROLE --config FILE`. Its log is appended to. Until the cluster has been set up, monitors
/// form it; later, one whose directory is empty has lost its memory and must be let in by the others.
pub(crate) fn start(
    binary: &Path,
    dir: &ClusterDir,
    daemon: DaemonName,
    environment: &[(String, String)],
    launcher: &Launcher,
) -> Result<Started, DevError> {
    let log = dir.log_of(daemon);
    let stderr = OpenOptions::new().create(true).append(true).open(&log).map_err(DevError::file("open", &log))?;
    let forms = daemon.role == Role::Mon && Layout::open(dir).is_ok_and(|layout| !layout.bootstrapped);
    let mut child = launcher
        .command(binary, daemon)
        .arg(daemon.role.command())
        .args(forms.then_some("--bootstrap"))
        .arg("--config")
        .arg(dir.config_of(daemon))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env(SUPERVISED_ENV, "1")
        // Kept open for as long as the supervisor lives; nothing is ever written.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        // Its own group: Ctrl-C at the terminal reaches the supervisor, which stops the daemons in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| DevError::Spawn { daemon, source })?;
    let (sender, ready) = oneshot::channel();
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(watch_stdout(stdout, sender));
    }
    let stdin = child.stdin.take();
    Ok(Started { child, stdin, ready })
}

/// Reads until the mark, then on to the end: a daemon must never block on a full pipe.
async fn watch_stdout(mut stdout: ChildStdout, ready: oneshot::Sender<()>) {
    let mut ready = Some(ready);
    let mut seen = Vec::new();
    let mut buffer = [0u8; 1024];
    while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
        if ready.is_none() {
            continue;
        }
        seen.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if seen.split(|byte| *byte == b'\n').any(|line| line == READY_MARK.as_bytes()) {
            if let Some(sender) = ready.take() {
                let _ = sender.send(());
            }
            seen = Vec::new();
        } else if seen.len() > 64 * 1024 {
            // Whatever this prints, it is not a daemon of ours; only the last line can still become the mark.
            seen.drain(..seen.len() - READY_MARK.len());
        }
    }
}
