//! The monitor daemon: drives consensus and `mon/state` with disk, network and time. It makes no map decision itself.
//!
//! - [`run`] starts one monitor and returns its [`Handle`]; several run side by side in one process.
//! - [`raft`] is the consensus, the only module that knows the Raft library.
//! - [`member`] is a monitor without its sockets, on any [`host`]: the system, or the simulator's.
//! - `service` answers, `server` accepts, `batcher` gathers changes into log entries, `machine` holds the applied state.
//!
//! What it guarantees: an answered change is durable at a majority; a question's answer shows all that was committed
//! before it was asked; a subscriber sees every map in order, or a full one when it was too far behind. A cluster is formed
//! only when [`MonConfig::bootstrap`] says so; a monitor that finds its directory empty otherwise is let in by the others.

mod batcher;
mod config;
pub mod host;
mod machine;
pub mod member;
pub mod mutants;
mod peers;
pub mod raft;
mod server;
mod service;

use std::net::SocketAddr;
use std::sync::Arc;

use holdfast_map::ClusterMap;
use holdfast_types::{Epoch, MonId};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use config::{Listen, MonConfig, RunError};
use member::Member;
use raft::{Leadership, Seat};
use service::Shared;

/// A running monitor.
pub struct Handle {
    id: MonId,
    address: SocketAddr,
    member: Arc<Member>,
    stop: CancellationToken,
    killed: CancellationToken,
    running: JoinHandle<Result<(), RunError>>,
}

/// Starts a monitor. It stops when `shutdown` is cancelled or [`Handle::shutdown`] is called, and by itself when it can
/// take no part in the quorum any more, as after an error of its disk ([`Handle::join`]).
///
/// # Errors
/// [`RunError`]; then nothing is left running.
pub async fn run(config: MonConfig, shutdown: CancellationToken) -> Result<Handle, RunError> {
    config.check()?;
    std::fs::create_dir_all(&config.data).map_err(|source| RunError::Data { path: config.data.clone(), source })?;
    let listener = listen(config.listen).await?;
    let address = listener
        .local_addr()
        .map_err(|source| RunError::Listen { address: "the socket that was handed over".into(), source })?;
    let peers = peers::Peers::new(config.cluster, config.id, &config.members)?;
    let seat = Seat {
        id: config.id,
        cluster: config.cluster,
        members: &config.members,
        directory: &config.data,
        bootstrap: config.bootstrap,
    };
    let stop = shutdown.child_token();
    let member: Arc<Member> = Arc::new(Member::start(seat, Arc::new(peers), stop.clone()).await?);
    info!(mon = %config.id, cluster = %config.cluster, %address, "monitor started");
    let serving_stop = CancellationToken::new();
    let serving =
        tokio::spawn(server::serve(listener, Arc::new(Shared(Arc::clone(member.service()))), serving_stop.clone()));
    let killed = CancellationToken::new();
    let running = tokio::spawn({
        let (stop, killed, member) = (stop.clone(), killed.clone(), Arc::clone(&member));
        async move {
            let mut end = Ok(());
            tokio::select! {
                () = stop.cancelled() => member.hand_over().await,
                () = killed.cancelled() => stop.cancel(),
                reason = member.stopped() => {
                    error!(mon = %member.id(), %reason, "this monitor takes no part any more and ends");
                    stop.cancel();
                    end = Err(RunError::Stopped { reason });
                }
            }
            serving_stop.cancel();
            if killed.is_cancelled() || end.is_err() {
                serving.abort();
            }
            let _ = serving.await;
            member.end().await;
            info!(mon = %member.id(), "monitor stopped");
            end
        }
    });
    Ok(Handle { id: config.id, address, member, stop, killed, running })
}

async fn listen(listen: Listen) -> Result<TcpListener, RunError> {
    match listen {
        Listen::Address(address) => {
            TcpListener::bind(address).await.map_err(|source| RunError::Listen { address: address.to_string(), source })
        }
        Listen::Bound(socket) => {
            let taken = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
            taken.map_err(|source| RunError::Listen { address: "the socket that was handed over".into(), source })
        }
    }
}

impl Handle {
    /// Who it is.
    #[must_use]
    pub fn id(&self) -> MonId {
        self.id
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who leads, as far as this monitor knows.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.member.leadership()
    }

    /// The maps that this monitor has applied: the newest, and each one after it.
    #[must_use]
    pub fn maps(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.member.maps()
    }

    /// Returns when the monitor is part of a quorum that serves: there is a leader, and the first map.
    pub async fn ready(&self) {
        let (mut leadership, mut maps) = (self.leadership(), self.maps());
        let _ = leadership.wait_for(|now| now.leader.is_some()).await;
        let _ = maps.wait_for(|map| map.epoch > Epoch::ZERO).await;
    }

    /// Stops in order: leadership is handed over, calls end, the data directory is let go.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let _ = self.running.await;
    }

    /// Waits for its end, without asking for it.
    ///
    /// # Errors
    /// [`RunError::Stopped`] when it had to end by itself.
    pub async fn join(self) -> Result<(), RunError> {
        match self.running.await {
            Ok(end) => end,
            Err(panic) => Err(RunError::Stopped { reason: format!("a task of the monitor panicked: {panic}") }),
        }
    }

    /// Stops without any courtesy, as a crash would, but lets the data directory go. For tests.
    pub async fn kill(self) {
        self.killed.cancel();
        let _ = self.running.await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use std::time::Duration;

    use holdfast_types::ClusterId;

    use super::*;
    use crate::host::{Host as _, Production};

    async fn alone(directory: &std::path::Path) -> Handle {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound").to_string();
        let config = MonConfig {
            id: MonId(0),
            cluster: ClusterId([1; 16]),
            data: directory.to_owned(),
            listen: Listen::Bound(socket),
            members: BTreeMap::from([(MonId(0), address)]),
            bootstrap: true,
        };
        let mon = run(config, CancellationToken::new()).await.expect("it starts");
        mon.ready().await;
        mon
    }

    async fn end_of(mon: Handle) -> String {
        let end = tokio::time::timeout(Duration::from_secs(10), mon.join()).await.expect("it does not live on");
        let Err(RunError::Stopped { reason }) = end else { panic!("{end:?}") };
        reason
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_monitor_that_does_not_understand_a_command_applies_nothing_after_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let mon = alone(directory.path()).await;
        let member = Arc::clone(&mon.member);
        let (consensus, state) = (Arc::clone(&member.service().consensus), Arc::clone(&member.service().state));
        let epoch = state.map().epoch;
        assert!(consensus.propose(vec![200, 1, 2]).await.is_err());
        let later = holdfast_mon_state::Change::Flags(holdfast_map::ClusterFlags { full: true, near_full: true });
        let op = holdfast_mon_state::Op { id: None, change: later };
        let later = holdfast_mon_state::Command { at_unix_ms: Production::unix_ms(), ops: vec![op], seen: None };
        assert!(consensus.propose(later.encode()).await.is_err());
        drop((consensus, member));
        let reason = end_of(mon).await;
        assert!(reason.contains("does not understand command"), "{reason}");
        assert_eq!(state.map().epoch, epoch);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_monitor_whose_map_is_not_the_one_of_its_leader_applies_nothing_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let mon = alone(directory.path()).await;
        let member = Arc::clone(&mon.member);
        let consensus = Arc::clone(&member.service().consensus);
        let mut mark = member.service().state.mark();
        let seen = |mark, at_unix_ms| holdfast_mon_state::Command { at_unix_ms, ops: Vec::new(), seen: Some(mark) };
        let now = Production::unix_ms();
        assert!(consensus.propose(seen(mark, now).encode()).await.is_ok());
        mark.checksum ^= 1;
        let past = now - 2 * machine::COMPARED_MS;
        assert!(consensus.propose(seen(mark, past).encode()).await.is_ok(), "whoever said that is gone");
        assert!(consensus.propose(seen(mark, now).encode()).await.is_err());
        drop((consensus, member));
        let reason = end_of(mon).await;
        assert!(reason.contains("checksum"), "{reason}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_monitor_whose_disk_fails_ends_with_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let mon = alone(directory.path()).await;
        let member = Arc::clone(&mon.member);
        let consensus = Arc::clone(&member.service().consensus);
        consensus.break_disk();
        let refused = consensus.propose(Vec::new()).await;
        assert!(refused.is_err(), "an entry that is not durable was answered");
        drop((consensus, member));
        end_of(mon).await;
    }
}
