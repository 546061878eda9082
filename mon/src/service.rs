//! What the monitor answers: commands and questions, map subscriptions, consensus messages.
//!
//! Only the leader executes; others name it. Questions are answered after a read barrier, so they show everything that
//! was committed before they were asked. Maps are handed out by every monitor that is in touch with the quorum.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use holdfast_map::ClusterMap;
use holdfast_mon_state::leader::{Due, Leader, Quorum, Scene, Verdict};
use holdfast_mon_state::{Change, Op};
use holdfast_net::mon_api::{Monitor, RaftBytes, check_cluster};
use holdfast_types::{ClusterId, Incarnation, MonId, OsdId, RequestId, Timestamp};
use holdfast_wire::mon::{FailureKind, MapUpdate, MonCommand, MonError, MonReply, MonRequest, Secret, Subscribe};
use openraft::Instant as _;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::batcher::Batcher;
use crate::host::{AsyncRuntime, Host, Production, spawn};
use crate::machine::AppliedState;
use crate::mutants::{Mutant, on};
use crate::raft::{Consensus, ConsensusError};

/// How long a question waits for a majority to confirm the leader.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// A monitor that heard nothing of the quorum for this long ends its subscriptions, so that subscribers go elsewhere.
const OUT_OF_TOUCH: Duration = Duration::from_secs(4);
/// How often that is looked at.
const TOUCH_CHECK: Duration = Duration::from_secs(1);
/// A monitor that has not answered the leader for this long counts as down.
const ANSWERING: Duration = Duration::from_secs(2);
/// How often the leader looks for things to do.
const TICK: Duration = Duration::from_millis(200);
/// Updates that wait for a slow subscriber; then it simply gets later, larger ones.
const SUBSCRIBER_QUEUE: usize = 2;

/// The service of one monitor.
pub(crate) struct Service<H: Host = Production> {
    pub(crate) cluster: ClusterId,
    pub(crate) id: MonId,
    pub(crate) members: BTreeMap<MonId, String>,
    pub(crate) state: Arc<AppliedState<H>>,
    pub(crate) consensus: Arc<Consensus<AppliedState<H>, H>>,
    pub(crate) batcher: Batcher,
    pub(crate) leader: Mutex<Option<Leader>>,
    pub(crate) probing: Mutex<BTreeSet<(OsdId, Incarnation)>>,
    pub(crate) stop: CancellationToken,
}

/// Whether a resend must find the first answer: everything but what daemons repeat anyway.
fn is_once(command: &MonCommand) -> bool {
    !matches!(
        command,
        MonCommand::OsdRegister { .. }
            | MonCommand::OsdBoot { .. }
            | MonCommand::OsdStopping { .. }
            | MonCommand::UpThru { .. }
            | MonCommand::PgTemp { .. }
            | MonCommand::ServiceRegister { .. }
    )
}

impl<H: Host> Service<H> {
    /// Runs `work` on the leader's memory and the newest map, or answers who leads.
    fn leading<T>(&self, work: impl FnOnce(&mut Leader, &ClusterMap, Timestamp) -> T) -> Result<T, MonError> {
        let mut leader = self.leader.lock();
        let Some(leader) = leader.as_mut() else { return Err(self.not_leader()) };
        let (map, now) = (self.state.map(), H::now());
        self.catch_up(leader, &map, now);
        Ok(work(leader, &map, now))
    }

    /// As [`Service::leading`], with all that a decision needs of the replicated state.
    fn deciding<T>(&self, work: impl FnOnce(&mut Leader, &Scene, Timestamp) -> T) -> Result<T, MonError> {
        let mut leader = self.leader.lock();
        let Some(leader) = leader.as_mut() else { return Err(self.not_leader()) };
        let (scene, now) = (self.state.scene(), H::now());
        self.catch_up(leader, &scene.map, now);
        Ok(work(leader, &scene, now))
    }

    fn catch_up(&self, leader: &mut Leader, newest: &ClusterMap, now: Timestamp) {
        for missed in self.state.maps_after(leader.seen()) {
            leader.observe(now, &missed);
        }
        leader.observe(now, newest);
    }

    fn not_leader(&self) -> MonError {
        let known = self.consensus.leadership().borrow().leader.filter(|leader| *leader != self.id);
        assert!(known.is_some() || !on(Mutant::LeaderPresumed), "another monitor leads");
        MonError::NotLeader { leader: known.and_then(|leader| self.members.get(&leader).cloned()) }
    }

    fn consensus_error(&self, error: &ConsensusError) -> MonError {
        match error {
            ConsensusError::NotLeader { leader } => {
                let leader = leader.filter(|leader| *leader != self.id);
                MonError::NotLeader { leader: leader.and_then(|leader| self.members.get(&leader).cloned()) }
            }
            ConsensusError::OutcomeUnknown | ConsensusError::NoQuorum | ConsensusError::Stopped { .. } => {
                MonError::Unavailable
            }
        }
    }

    async fn propose(&self, id: Option<RequestId>, change: Change) -> MonReply {
        let is_option = on(Mutant::RefusedIsDone) && matches!(change, Change::Request(MonCommand::ConfigSet { .. }));
        match self.batcher.propose(Op { id, change }).await {
            Ok(reply) => reply,
            Err(ConsensusError::NotLeader { .. } | ConsensusError::OutcomeUnknown) if is_option => self.done(),
            Err(error) => MonReply::Failed(self.consensus_error(&error)),
        }
    }

    fn done(&self) -> MonReply {
        MonReply::Done { epoch: self.state.map().epoch }
    }

    pub(crate) async fn handle(self: &Arc<Self>, request: MonRequest) -> Result<MonReply, MonError> {
        let MonRequest { id, command } = request;
        match command {
            MonCommand::GetMaps { .. } | MonCommand::GetFullMap { .. } => {
                // Any monitor may answer, but not one that may be long behind, or has lost its memory.
                if !self.consensus.in_touch(OUT_OF_TOUCH) {
                    return Err(MonError::Unavailable);
                }
                self.state.answer(&command).ok_or(MonError::Unavailable)
            }
            MonCommand::Report(report) => {
                self.leading(|leader, map, now| leader.on_report(now, map, report))??;
                Ok(self.done())
            }
            MonCommand::OsdFailure { reporter, target, incarnation, kind } => {
                self.failure(reporter, target, incarnation, kind).await
            }
            MonCommand::OsdAlive { reporter, target } => {
                self.leading(|leader, _, _| leader.on_alive(reporter, target))?;
                Ok(self.done())
            }
            MonCommand::ServiceRegister { .. } => {
                if self.leading(|leader, map, now| leader.on_service(now, map, &command))? {
                    Ok(self.propose(None, Change::Request(command)).await)
                } else {
                    Ok(self.done())
                }
            }
            MonCommand::KeyNew { name, access_key, secret_key } => {
                self.leading(|_, _, _| ())?;
                let access_key = match access_key {
                    Some(access_key) => access_key,
                    None => random_text::<H>(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 20)?,
                };
                let secret_key = match secret_key {
                    Some(secret) => secret,
                    None => {
                        Secret(random_text::<H>(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 40)?)
                    }
                };
                let command = MonCommand::KeyNew { name, access_key: Some(access_key), secret_key: Some(secret_key) };
                Ok(self.propose(Some(id), Change::Request(command)).await)
            }
            MonCommand::KeyList
            | MonCommand::KeyLookup { .. }
            | MonCommand::ConfigDump
            | MonCommand::ConfigLog
            | MonCommand::Status
            | MonCommand::OsdTree
            | MonCommand::OsdDf
            | MonCommand::Df
            | MonCommand::PoolList
            | MonCommand::PgList
            | MonCommand::PgQuery(_)
            | MonCommand::Explain(_)
            | MonCommand::BalancerStatus => self.question(&command).await,
            // What was asked before and done finds the OSD gone: the log then gives the same answer again.
            MonCommand::OsdRemove(osd) => {
                self.leading(|leader, map, now| leader.may_remove(now, map, osd))??;
                Ok(self.propose(Some(id), Change::Request(command)).await)
            }
            MonCommand::OsdRegister { .. }
            | MonCommand::OsdBoot { .. }
            | MonCommand::OsdStopping { .. }
            | MonCommand::UpThru { .. }
            | MonCommand::PgTemp { .. }
            | MonCommand::PoolCreate { .. }
            | MonCommand::PoolDelete { .. }
            | MonCommand::PoolSet { .. }
            | MonCommand::OsdOut(_)
            | MonCommand::OsdIn(_)
            | MonCommand::OsdDown(_)
            | MonCommand::OsdReweight { .. }
            | MonCommand::OsdLost { .. }
            | MonCommand::OsdRelease(_)
            | MonCommand::FullRatios { .. }
            | MonCommand::Scrub { .. }
            | MonCommand::BlocklistAdd { .. }
            | MonCommand::BlocklistRemove { .. }
            | MonCommand::KeyRemove { .. }
            | MonCommand::ConfigSet { .. }
            | MonCommand::ConfigRollback { .. } => {
                self.leading(|_, _, _| ())?;
                let id = (is_once(&command) && !on(Mutant::ResendAppliedTwice)).then_some(id);
                Ok(self.propose(id, Change::Request(command)).await)
            }
        }
    }

    async fn question(&self, question: &MonCommand) -> Result<MonReply, MonError> {
        self.leading(|_, _, _| ())?;
        match H::Runtime::timeout(READ_TIMEOUT, self.consensus.read_barrier()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.consensus_error(&error)),
            Err(_) => return Err(MonError::Unavailable),
        }
        if let Some(reply) = self.state.answer(question) {
            return Ok(reply);
        }
        let quorum = Quorum { leader: self.id, answering: self.consensus.answering(ANSWERING) };
        self.deciding(|leader, scene, now| leader.answer(now, scene, &quorum, question))?.ok_or(MonError::Unavailable)
    }

    async fn failure(
        self: &Arc<Self>,
        reporter: OsdId,
        target: OsdId,
        incarnation: Incarnation,
        kind: FailureKind,
    ) -> Result<MonReply, MonError> {
        let verdict = self.leading(|leader, map, now| {
            let verdict = leader.on_failure(now, map, reporter, target, incarnation, kind);
            let address = map.osds.get(&target).map(|info| info.address.clone());
            (verdict, address)
        })?;
        match verdict {
            (Verdict::Wait, _) => Ok(self.done()),
            (Verdict::Stale, _) => {
                Err(MonError::Stale { reason: format!("{target} is not up in that run, or {reporter} is not up") })
            }
            (Verdict::Propose(change), _) => {
                match self.propose(None, change).await {
                    // Others were marked down at the same moment: as if it had been held back before.
                    MonReply::Failed(MonError::Unsafe { reason }) => {
                        info!(osd = %target, %incarnation, reason, "silent, and not marked down");
                        Ok(self.done())
                    }
                    reply => {
                        info!(osd = %target, %incarnation, ?reply, "silent, as reported by its peers");
                        Ok(reply)
                    }
                }
            }
            (Verdict::Probe, Some(address)) => {
                self.start_probe(target, incarnation, address);
                Ok(self.done())
            }
            (Verdict::Probe, None) => Ok(self.done()),
        }
    }

    /// Looks at an OSD, once at a time.
    fn start_probe(self: &Arc<Self>, osd: OsdId, incarnation: Incarnation, address: String) {
        if !self.probing.lock().insert((osd, incarnation)) {
            return;
        }
        let service = Arc::clone(self);
        spawn::<H, _>(async move {
            let result = H::probe(address.clone()).await;
            service.probing.lock().remove(&(osd, incarnation));
            let change = service.leading(|leader, map, now| leader.on_probe(now, map, osd, incarnation, result));
            if let Ok(Some(change)) = change {
                info!(%osd, %incarnation, %address, ?result, "marked down after a look at it");
                if let MonReply::Failed(error) = service.propose(None, change).await {
                    warn!(%osd, %error, "could not mark it down");
                }
            }
        });
    }

    /// Follows who leads, and does a leader's duties while it is this monitor.
    pub(crate) async fn lead(self: Arc<Self>) {
        let mut leadership = self.consensus.leadership();
        let mut tick = <H::Runtime as AsyncRuntime>::Instant::now();
        let mut leading_term = None;
        loop {
            let now_led = *leadership.borrow_and_update();
            if !now_led.is_self {
                if leading_term.take().is_some() {
                    info!(term = now_led.term, leader = ?now_led.leader, "leads no more");
                    *self.leader.lock() = None;
                }
            } else if leading_term != Some(now_led.term) {
                *self.leader.lock() = None;
                // What earlier leaders committed must be applied before anything is decided.
                let caught_up = H::Runtime::timeout(READ_TIMEOUT, self.consensus.read_barrier()).await;
                if let Ok(Ok(())) = caught_up {
                    *self.leader.lock() = Some(Leader::new(H::now(), &self.state.map()));
                    leading_term = Some(now_led.term);
                    info!(term = now_led.term, epoch = %self.state.map().epoch, "leads");
                    self.publish_members().await;
                }
            } else {
                self.duties().await;
            }
            let now = <H::Runtime as AsyncRuntime>::Instant::now();
            let wait = if now_led.is_self && leading_term.is_none() {
                now + Duration::from_millis(5)
            } else {
                tick = if tick > now { tick } else { now + TICK };
                tick
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                changed = leadership.changed() => if changed.is_err() { return },
                () = H::Runtime::sleep_until(wait) => {}
            }
        }
    }

    async fn publish_members(&self) {
        if self.state.map().mons != self.members {
            self.propose(None, Change::Mons(self.members.clone())).await;
        }
    }

    async fn duties(self: &Arc<Self>) {
        let Ok(due) = self.deciding(|leader, scene, now| leader.due(now, scene)) else { return };
        for due in due {
            match due {
                Due::Probe { osd, incarnation, address } => self.start_probe(osd, incarnation, address),
                Due::Propose(change) => {
                    info!(?change, "decided by the leader");
                    if let MonReply::Failed(error) = self.propose(None, change).await {
                        warn!(%error, "not committed");
                        return;
                    }
                }
            }
        }
    }
}

/// `length` characters of `alphabet`, from the system's random source, without bias.
fn random_text<H: Host>(alphabet: &[u8], length: usize) -> Result<String, MonError> {
    let mut text = String::with_capacity(length);
    let fair = 256 - 256 % alphabet.len();
    let mut bytes = [0u8; 64];
    while text.len() < length {
        H::random(&mut bytes)
            .map_err(|error| MonError::Invalid { reason: format!("no random bytes from the system: {error}") })?;
        let chosen = bytes.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < fair);
        text.extend(chosen.filter_map(|byte| alphabet.get(byte % alphabet.len())).map(|byte| char::from(*byte)));
    }
    text.truncate(length);
    Ok(text)
}

/// The type that tonic's trait wants: `Arc<Service>` with the trait on it.
pub(crate) struct Shared(pub(crate) Arc<Service>);

#[tonic::async_trait]
impl Monitor for Shared {
    async fn execute(&self, request: Request<MonRequest>) -> Result<Response<MonReply>, Status> {
        check_cluster(&request, self.0.cluster)?;
        let reply = self.0.handle(request.into_inner()).await.unwrap_or_else(MonReply::Failed);
        Ok(Response::new(reply))
    }

    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<MapUpdate, Status>> + Send>>;

    async fn subscribe(&self, request: Request<Subscribe>) -> Result<Response<Self::SubscribeStream>, Status> {
        check_cluster(&request, self.0.cluster)?;
        let mut after = request.into_inner().after;
        let service = Arc::clone(&self.0);
        let (updates, stream) = mpsc::channel(SUBSCRIBER_QUEUE);
        tokio::spawn(async move {
            let mut maps = service.state.maps();
            loop {
                while maps.borrow_and_update().epoch > after {
                    let (update, reached) = service.state.maps_since(after);
                    if updates.send(Ok(update)).await.is_err() {
                        return;
                    }
                    after = reached;
                }
                tokio::select! {
                    () = service.stop.cancelled() => return,
                    () = updates.closed() => return,
                    changed = maps.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(TOUCH_CHECK) => {
                        if !service.consensus.in_touch(OUT_OF_TOUCH) {
                            let _ = updates.send(Err(Status::unavailable("this monitor has lost the quorum"))).await;
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn raft(&self, request: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        check_cluster(&request, self.0.cluster)?;
        let reply = self.0.consensus.answer_peer(&request.into_inner().bytes).await;
        Ok(Response::new(RaftBytes { bytes: reply.into() }))
    }
}
