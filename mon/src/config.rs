//! What a monitor is told at start.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use holdfast_types::{ClusterId, MonId};

use crate::raft::StartError;

/// Where a monitor takes its listening socket from.
#[derive(Debug)]
pub enum Listen {
    /// Bind this address.
    Address(SocketAddr),
    /// Use this socket, which is bound already: so a caller can choose free ports before it writes the members down.
    Bound(TcpListener),
}

/// One monitor's configuration.
#[derive(Debug)]
pub struct MonConfig {
    /// Who it is.
    pub id: MonId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its own directory; made when it does not exist.
    pub data: PathBuf,
    /// Where it listens.
    pub listen: Listen,
    /// All monitors and the `host:port` under which the others, the daemons and the clients reach them, this one
    /// included. An odd number, at most seven; three or five are meant for real clusters.
    pub members: BTreeMap<MonId, String>,
    /// Whether to form a new cluster of `members`, should the directory be empty: for the very first start of each of
    /// them, and never again. A monitor that finds its directory empty without it has lost its memory and waits until
    /// the others let it in.
    pub bootstrap: bool,
}

/// Why a monitor does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The data directory cannot be made.
    #[error("cannot make the data directory {path}")]
    Data {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The configuration makes no sense.
    #[error("{reason}")]
    Config {
        /// What is wrong.
        reason: String,
    },
    /// Consensus does not start.
    #[error("the monitor cannot take part in the quorum")]
    Consensus(#[from] StartError),
    /// It ran and cannot go on; a new start may help.
    #[error("the monitor takes no part in the quorum any more: {reason}")]
    Stopped {
        /// What failed.
        reason: String,
    },
}

/// Most monitors: each commit waits for a majority of them.
const MEMBERS_MAX: usize = 7;

impl MonConfig {
    pub(crate) fn check(&self) -> Result<(), RunError> {
        let count = self.members.len();
        if count == 0 || count > MEMBERS_MAX || count.is_multiple_of(2) {
            let reason = format!(
                "{count} monitors are configured; use 1, 3, 5 or {MEMBERS_MAX}: an even number survives no more failures"
            );
            return Err(RunError::Config { reason });
        }
        if !self.members.contains_key(&self.id) {
            return Err(RunError::Config { reason: format!("{} is not among the configured monitors", self.id) });
        }
        Ok(())
    }
}
