//! One monitor without its sockets: consensus, the applied state, the batcher, and the service that answers.
//!
//! [`crate::run`] puts it behind a listening socket; the simulator (`mon/sim`) runs it as it is.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_types::{Epoch, MonId};
use holdfast_wire::mon::{MonError, MonReply, MonRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::batcher::Batcher;
use crate::host::{AsyncRuntime, Host, Production, spawn};
use crate::machine::AppliedState;
use crate::raft::{Consensus, ConsensusError, Leadership, Machine, Seat, StartError, Transport};
use crate::service::Service;

/// How long a leader that shuts down waits for another one to take over.
const HAND_OVER: Duration = Duration::from_millis(500);
/// A monitor that answered this lately can take over.
const CAN_TAKE_OVER: Duration = Duration::from_millis(500);

/// A monitor that runs.
pub struct Member<H: Host = Production> {
    service: Arc<Service<H>>,
    /// Ends its tasks.
    end: CancellationToken,
}

impl<H: Host> Member<H> {
    /// Takes its seat in the quorum and its duties. `stop` ends what it does of itself; [`Member::end`] frees the rest.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start<T: Transport>(
        seat: Seat<'_>,
        transport: Arc<T>,
        stop: CancellationToken,
    ) -> Result<Member<H>, StartError> {
        let state = Arc::new(AppliedState::new(seat.cluster));
        let consensus = Arc::new(Consensus::start(seat, Arc::clone(&state), transport).await?);
        let (batcher, batching) = Batcher::new(Arc::clone(&consensus), Arc::clone(&state));
        let service = Arc::new(Service {
            cluster: seat.cluster,
            id: seat.id,
            members: seat.members.clone(),
            state,
            consensus,
            batcher,
            leader: parking_lot::Mutex::new(None),
            probing: parking_lot::Mutex::default(),
            stop,
        });
        let end = CancellationToken::new();
        spawn::<H, _>(end.clone().run_until_cancelled_owned(batching));
        spawn::<H, _>(end.clone().run_until_cancelled_owned(Arc::clone(&service).lead()));
        Ok(Member { service, end })
    }

    /// What its callers reach.
    pub(crate) fn service(&self) -> &Arc<Service<H>> {
        &self.service
    }

    pub(crate) fn consensus(&self) -> &Consensus<AppliedState<H>, H> {
        &self.service.consensus
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> MonId {
        self.service.id
    }

    /// Carries out a command or answers a question.
    ///
    /// # Errors
    /// [`MonError`], as the asker gets it.
    pub async fn execute(&self, request: MonRequest) -> Result<MonReply, MonError> {
        self.service.handle(request).await
    }

    /// Answers a message that a peer sent with [`Transport::call`].
    pub async fn answer_peer(&self, request: &[u8]) -> Vec<u8> {
        self.consensus().answer_peer(request).await
    }

    /// Who leads, as far as this monitor knows.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.consensus().leadership()
    }

    /// The maps that this monitor has applied: the newest, and each one after it.
    #[must_use]
    pub fn maps(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.service.state.maps()
    }

    /// The maps after `seen` that this monitor remembers, in order, up to the newest.
    #[must_use]
    pub fn maps_after(&self, seen: Epoch) -> Vec<Arc<ClusterMap>> {
        self.service.state.maps_after(seen)
    }

    /// The whole applied state, encoded.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.service.state.snapshot()
    }

    /// Writes a snapshot now, whatever the log's length.
    pub async fn snapshot_now(&self) {
        self.consensus().snapshot_now().await;
    }

    /// See [`Consensus::change_voters`].
    ///
    /// # Errors
    /// [`ConsensusError`].
    pub async fn change_voters(
        &self,
        voters: &std::collections::BTreeMap<MonId, String>,
    ) -> Result<(), ConsensusError> {
        self.consensus().change_voters(voters).await
    }

    /// See [`Consensus::stopped`].
    pub fn stopped(&self) -> impl Future<Output = String> + Send + use<H> {
        self.consensus().stopped()
    }

    /// Lets another monitor lead, so that a planned stop costs no election timeout.
    pub async fn hand_over(&self) {
        let mut leadership = self.leadership();
        let Leadership { leader, is_self: true, .. } = *leadership.borrow() else { return };
        let other = self.consensus().answering(CAN_TAKE_OVER).into_iter().find(|mon| Some(*mon) != leader);
        if let Some(other) = other {
            self.consensus().step_down(other).await;
            let handed_over =
                async move { while leadership.borrow_and_update().is_self && leadership.changed().await.is_ok() {} };
            let _ = H::Runtime::timeout(HAND_OVER, handed_over).await;
        }
    }

    /// Ends its tasks and lets the data directory go.
    pub async fn end(&self) {
        self.end.cancel();
        self.consensus().shutdown().await;
    }
}
