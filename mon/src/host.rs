//! What a monitor takes from the machine beneath it: a runtime with its clock, wall and boot time, a key-value store,
//! the look at an OSD's port, random bytes.
//!
//! There are two: [`Production`], and the one of the simulator (`mon/sim`), in which the same monitor runs on one thread
//! and a virtual clock. Nothing else in this crate that consensus or a decision depends on asks the system for anything.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::time::{Duration, SystemTime};

use holdfast_mon_state::leader::ProbeResult;
use holdfast_types::{Epoch, Timestamp};
pub use openraft::AsyncRuntime;
use tokio::net::TcpStream;

use crate::raft::{Kv, Rocks};

/// Connecting to an OSD that is reported; on a refused connection the answer comes at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a log gets before it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Entries between two snapshots. A start re-applies at most about this many (microseconds each).
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, for followers that were away shortly.
    pub kept: u64,
}

/// The machine that a monitor runs on.
pub trait Host: Copy + Debug + Default + Eq + Ord + Send + Sync + 'static {
    /// Tasks, timers and channels.
    type Runtime: AsyncRuntime;
    /// The store of the log, the vote and the snapshot.
    type Kv: Kv;

    /// Does work that waits for the disk, without holding other tasks up. It is done even when nobody waits for it.
    fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send;

    /// Now, on the clock that never goes back and counts suspend.
    fn now() -> Timestamp;

    /// The wall clock, in Unix milliseconds.
    fn unix_ms() -> u64;

    /// Looks whether anybody listens at an OSD's address.
    fn probe(address: String) -> impl Future<Output = ProbeResult> + Send;

    /// Fills `bytes` from a random source that nobody can guess.
    ///
    /// # Errors
    /// When there is none.
    fn random(bytes: &mut [u8]) -> io::Result<()>;

    /// How long the log gets.
    fn log_limits() -> LogLimits {
        LogLimits { snapshot_every: 2_000, kept: 500 }
    }

    /// Told of every command as it has been applied, and the newest epoch then; a simulation compares them.
    fn applied(_index: u64, _command: &[u8], _epoch: Epoch) {}
}

/// Starts a task that nobody waits for.
pub(crate) fn spawn<H: Host, T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) {
    drop(H::Runtime::spawn(work));
}

/// The system that the process runs on: tokio, RocksDB, real clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Production;

impl Host for Production {
    type Runtime = openraft::impls::TokioRuntime;
    type Kv = Rocks;

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }

    fn now() -> Timestamp {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        Timestamp::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    fn unix_ms() -> u64 {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    async fn probe(address: String) -> ProbeResult {
        match tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(&address)).await {
            Ok(Ok(_)) => ProbeResult::Connected,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => ProbeResult::Refused,
            Ok(Err(_)) | Err(_) => ProbeResult::NoAnswer,
        }
    }

    fn random(bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(io::Error::other)
    }
}
