//! What can go wrong with a cluster on one machine.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_net::mon_session::MonSessionError;
use holdfast_wire::mon::MonError;

use crate::daemon::DaemonName;

/// Why a development cluster could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file or directory could not be used.
    #[error("cannot {what} {path}")]
    File {
        /// Such as `write`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A kept file does not hold what it should.
    #[error("{path} is damaged or of another version: {detail}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What the parser said.
        detail: String,
    },
    /// There is no cluster in the directory.
    #[error("there is no cluster in {dir}")]
    NoCluster {
        /// Where.
        dir: PathBuf,
    },
    /// Another process runs the cluster of this directory.
    #[error("the cluster in {dir} is running already{}", owner.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Running {
        /// Where.
        dir: PathBuf,
        /// The process, if it could be found out.
        owner: Option<u32>,
    },
    /// The cluster of this directory has another shape than asked for.
    #[error("the cluster in {dir} has {has} {what}, {asked} were asked for: {why}")]
    OtherShape {
        /// Where.
        dir: PathBuf,
        /// `monitors` or `OSDs`.
        what: &'static str,
        /// How many there are.
        has: u32,
        /// How many were asked for.
        asked: u32,
        /// Why that cannot be.
        why: &'static str,
    },
    /// A number that makes no cluster.
    #[error("{asked} {what} make no cluster: {why}")]
    Impossible {
        /// `monitors` or `OSDs`.
        what: &'static str,
        /// How many were asked for.
        asked: u32,
        /// What is possible.
        why: &'static str,
    },
    /// No port could be bound.
    #[error("no free port on {host} after {attempts} attempts")]
    NoPort {
        /// Where.
        host: String,
        /// How many were tried.
        attempts: u32,
    },
    /// A daemon could not be started at all.
    #[error("cannot start {daemon}")]
    Spawn {
        /// Which.
        daemon: DaemonName,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A daemon ended before it said that it serves.
    #[error("{daemon} ended with {status} before it served; the end of {log}:\n{tail}")]
    Ended {
        /// Which.
        daemon: DaemonName,
        /// How.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {limit:?}; {state}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// How far it had come.
        state: String,
    },
    /// There is no such daemon in the layout.
    #[error("there is no {daemon} in this cluster")]
    NoDaemon {
        /// Which.
        daemon: DaemonName,
    },
    /// The monitors could not be asked.
    #[error(transparent)]
    Monitors(#[from] MonSessionError),
    /// The monitors refused.
    #[error("the monitors refused to {what}")]
    Refused {
        /// What was asked.
        what: String,
        /// Their words.
        #[source]
        source: MonError,
    },
    /// The monitors answered something else.
    #[error("the monitors answered {what} with something that is no answer to it")]
    Unexpected {
        /// What was asked.
        what: String,
    },
    /// The supervisor is gone.
    #[error("the supervisor has stopped")]
    Stopped,
}

impl DevError {
    /// For `map_err` on file operations.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> DevError {
        let path = path.into();
        move |source| DevError::File { what, path, source }
    }
}
