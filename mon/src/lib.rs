//! The monitor daemon: drives consensus and `mon/state` with disk, network and time. It makes no map decision itself.
//!
//! - [`run`] starts one monitor and returns its [`Handle`]; several run side by side in one process.
//! - [`raft`] is the consensus, the only module that knows the Raft library.
//! - `service` answers, `server` accepts, `batcher` gathers changes into log entries, `machine` holds the applied state.
//!
//! What it guarantees: an answered change is durable at a majority; a question's answer shows all that was committed
//! before it was asked; a subscriber sees every map in order, or a full one when it was too far behind.

mod batcher;
mod config;
mod machine;
mod peers;
pub mod raft;
mod server;
mod service;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_types::{Epoch, MonId};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use config::{Listen, MonConfig, RunError};
use machine::AppliedState;
use raft::{Consensus, Leadership};
use service::{Service, Shared};

/// How long a leader that shuts down waits for another one to take over.
const HAND_OVER: Duration = Duration::from_millis(500);
/// A monitor that answered this lately can take over.
const CAN_TAKE_OVER: Duration = Duration::from_millis(500);

/// A running monitor.
pub struct Handle {
    id: MonId,
    address: SocketAddr,
    state: Arc<AppliedState>,
    consensus: Arc<Consensus<AppliedState>>,
    stop: CancellationToken,
    killed: CancellationToken,
    running: JoinHandle<()>,
}

/// Starts a monitor. It stops when `shutdown` is cancelled or [`Handle::shutdown`] is called.
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
    let state = Arc::new(AppliedState::new(config.cluster));
    let peers = peers::Peers::new(config.cluster, config.id, &config.members)?;
    let consensus =
        Consensus::start(config.id, config.cluster, &config.members, &config.data, Arc::clone(&state), Arc::new(peers))
            .await?;
    let consensus = Arc::new(consensus);
    let (batcher, batching) = batcher::Batcher::new(Arc::clone(&consensus));
    let stop = shutdown.child_token();
    let service = Arc::new(Service {
        cluster: config.cluster,
        id: config.id,
        members: config.members,
        state: Arc::clone(&state),
        consensus: Arc::clone(&consensus),
        batcher,
        leader: parking_lot::Mutex::new(None),
        probing: parking_lot::Mutex::default(),
        stop: stop.clone(),
    });
    info!(mon = %config.id, cluster = %config.cluster, %address, "monitor started");
    let batching = tokio::spawn(batching);
    let leading = tokio::spawn(Arc::clone(&service).lead());
    let serving_stop = CancellationToken::new();
    let serving = tokio::spawn(server::serve(listener, Arc::new(Shared(Arc::clone(&service))), serving_stop.clone()));
    let killed = CancellationToken::new();
    let running = tokio::spawn({
        let (stop, killed, consensus) = (stop.clone(), killed.clone(), Arc::clone(&consensus));
        async move {
            tokio::select! {
                () = stop.cancelled() => hand_over(&consensus).await,
                () = killed.cancelled() => service.stop.cancel(),
            }
            serving_stop.cancel();
            if killed.is_cancelled() {
                serving.abort();
            }
            let _ = serving.await;
            leading.abort();
            batching.abort();
            consensus.shutdown().await;
            info!(mon = %service.id, "monitor stopped");
        }
    });
    Ok(Handle { id: config.id, address, state, consensus, stop, killed, running })
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

/// Lets another monitor lead, so that a planned stop costs no election timeout.
async fn hand_over(consensus: &Consensus<AppliedState>) {
    let mut leadership = consensus.leadership();
    let Leadership { leader, is_self: true, .. } = *leadership.borrow() else { return };
    let other = consensus.answering(CAN_TAKE_OVER).into_iter().find(|mon| Some(*mon) != leader);
    if let Some(other) = other {
        consensus.step_down(other).await;
        let _ = tokio::time::timeout(HAND_OVER, leadership.wait_for(|now| !now.is_self)).await;
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
        self.consensus.leadership()
    }

    /// The maps that this monitor has applied: the newest, and each one after it.
    #[must_use]
    pub fn maps(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.state.maps()
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

    /// Stops without any courtesy, as a crash would, but lets the data directory go. For tests.
    pub async fn kill(self) {
        self.killed.cancel();
        let _ = self.running.await;
    }
}
