//! Consensus: an ordered, durable log of commands over a few monitors, and one [`Machine`] that applies them.
//!
//! This module is all that knows the Raft library (openraft), but for its runtime trait (`host`). In go bytes ([`Consensus::propose`],
//! [`Consensus::answer_peer`]), out come bytes, and who leads ([`Consensus::leadership`]).
//!
//! Invariants:
//! - A proposal is answered only after a majority holds it durably and this monitor has applied it.
//! - [`Consensus::read_barrier`] returns only while this monitor leads and its machine holds everything that was
//!   committed before the call (ReadIndex: leases are not used, since a monitor that restarts forgets the lease that
//!   it granted).
//! - A monitor's data directory names the cluster and the monitor; it opens as nobody else.
//! - A cluster is formed only when that is asked for ([`Consensus::start`]); a monitor whose directory is empty for any
//!   other reason votes only after the others have let it in (`join`).
//! - After an error of its disk a monitor takes no part any more, and says so ([`Consensus::stopped`]).

mod encoding;
mod join;
mod kv;
mod log;
mod machine;
mod network;
mod types;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_types::{ClusterId, MonId};
use minicbor::{Decode, Encode};
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, LinearizableReadError, RaftError};
use openraft::{BasicNode, Config, Raft, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::host::{AsyncRuntime, Host, LogLimits, Production, spawn};
use crate::mutants::{Mutant, on};
use encoding::{PeerEnvelope, PeerReply, PeerRequest, TransferReply, decode, encode};
pub use kv::{Kv, Rocks, Write};
use machine::AppliedState;
use types::{Proposal, TypeConfig};

/// A moment on the clock of the runtime.
type Instant<H> = <<H as Host>::Runtime as AsyncRuntime>::Instant;

/// How often a leader shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// A follower that heard nothing for [`ELECTION_MAX`] (the leader's lease) plus a random time between these two asks
/// for votes: 0.8 to 1.1 s after a leader's death, well under the 2 s that clients are promised, and three to five
/// missed heartbeats, so that one slow sync does not unseat a leader.
const ELECTION_MIN: Duration = Duration::from_millis(300);
/// See [`ELECTION_MIN`].
const ELECTION_MAX: Duration = Duration::from_millis(550);

/// How long a shutdown waits for the database to be let go.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Entries that are sent to a monitor at once: whatever they carry, they must fit a message.
pub(crate) const APPEND_ENTRIES_MAX: usize = 32;

/// Applies committed commands. Must be deterministic: every monitor applies the same and must reach the same state.
pub trait Machine: Send + Sync + 'static {
    /// Applies the command at `index` and says what came of it.
    ///
    /// # Errors
    /// When this monitor cannot apply what the others can: the state is unchanged, and it takes no part any more.
    fn apply(&self, index: u64, command: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;
    /// A command that changes nothing.
    fn no_op(&self) -> Vec<u8>;
    /// The whole state, encoded.
    fn snapshot(&self) -> Vec<u8>;
    /// Replaces the whole state.
    ///
    /// # Errors
    /// When `state` cannot be understood; the state is then unchanged.
    fn restore(&self, state: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// A peer did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{to} gives no answer: {reason}")]
pub struct TransportError {
    /// Whom the message was for.
    pub to: MonId,
    /// What the network said.
    pub reason: String,
}

/// Carries a request to a peer's [`Consensus::answer_peer`] and its answer back.
pub trait Transport: Send + Sync + 'static {
    /// Sends `request`, waits at most `timeout` for the answer.
    fn call(
        &self,
        to: MonId,
        request: Vec<u8>,
        timeout: Duration,
    ) -> impl Future<Output = Result<Vec<u8>, TransportError>> + Send;
}

/// Who leads, as far as this monitor knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The term.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<MonId>,
    /// Whether it is this monitor.
    pub is_self: bool,
}

/// Why a monitor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot use the monitor's data directory")]
    Storage(#[from] io::Error),
    /// The data directory is another monitor's.
    #[error("the data directory belongs to {found_id} of cluster {found_cluster}, not to {id} of cluster {cluster}")]
    WrongIdentity {
        /// Who starts.
        id: MonId,
        /// In which cluster.
        cluster: ClusterId,
        /// Whose directory it is.
        found_id: MonId,
        /// Of which cluster.
        found_cluster: ClusterId,
    },
    /// The directory is empty, no cluster is to be formed, and there are no others to learn from.
    #[error(
        "the data directory is empty, and {id} is the only monitor: to form a new cluster, start it once with \
         --bootstrap; if it has served before, bring its directory back (is it mounted?)"
    )]
    NoMemory {
        /// Who starts.
        id: MonId,
    },
    /// The configured members do not name this monitor.
    #[error("{id} is not among the configured monitors")]
    NotAMember {
        /// Who starts.
        id: MonId,
    },
    /// The library refuses.
    #[error("consensus cannot start: {detail}")]
    Consensus {
        /// What it said.
        detail: String,
    },
}

/// Why a proposal or a read was not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsensusError {
    /// Another monitor leads, or none.
    #[error("this monitor does not lead; leader: {leader:?}")]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<MonId>,
    },
    /// The leader changed while the proposal was under way: it may or may not have been committed.
    #[error("leadership changed; whether the command was committed is unknown")]
    OutcomeUnknown,
    /// No majority confirmed in time.
    #[error("no majority of the monitors answers")]
    NoQuorum,
    /// This monitor stopped (shutdown or a failed disk).
    #[error("consensus has stopped: {detail}")]
    Stopped {
        /// Why.
        detail: String,
    },
}

/// Whose part in the consensus it is.
#[derive(Debug, Clone, Copy)]
pub struct Seat<'a> {
    /// Who it is.
    pub id: MonId,
    /// In which cluster.
    pub cluster: ClusterId,
    /// All monitors, this one included, with their addresses.
    pub members: &'a BTreeMap<MonId, String>,
    /// Its own directory.
    pub directory: &'a Path,
    /// Whether to form a new cluster, should the directory be empty.
    pub bootstrap: bool,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Identity {
    #[n(0)]
    cluster: ClusterId,
    #[n(1)]
    id: MonId,
}

/// One monitor's part in the consensus.
pub struct Consensus<M: Machine, H: Host = Production> {
    id: MonId,
    cluster: ClusterId,
    raft: Raft<TypeConfig<H>, AppliedState<M, H>>,
    leadership: watch::Receiver<Leadership>,
    /// Ends the tasks beside the library's.
    end: CancellationToken,
    database: log::Watch,
    gate: Arc<join::Gate>,
    no_op: Vec<u8>,
    heard: parking_lot::Mutex<Heard<Instant<H>>>,
}

/// What a follower knows of how far behind it is.
#[derive(Debug, Clone, Copy)]
struct Heard<I> {
    /// All that the leader knew to be committed at this time has been applied here.
    current: Option<I>,
    /// A time at which the leader was heard, and what it knew to be committed then.
    next: Option<(I, u64)>,
}

impl<I: Copy> Heard<I> {
    /// The leader is heard, with its commit, while this monitor has applied so much.
    fn hear(&mut self, now: I, committed: u64, applied: Option<u64>) {
        match self.next {
            Some((at, awaited)) if Some(awaited) <= applied => {
                self.current = Some(at);
                self.next = Some((now, committed));
            }
            Some(_) => {}
            None => self.next = Some((now, committed)),
        }
    }
}

impl<M: Machine, H: Host> Consensus<M, H> {
    /// Opens the log in `directory` and takes part. With `bootstrap`, and an empty directory, it forms the cluster of
    /// `members` (address by id) with others that are told so, too, unless one of them that is reached says that it exists;
    /// later the stored membership counts. A monitor that once began without memory joins, `bootstrap` or not. Otherwise an empty directory is one whose content was lost: this monitor waits
    /// until the others let it in.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start<T: Transport>(
        Seat { id, cluster, members, directory, bootstrap }: Seat<'_>,
        machine: Arc<M>,
        transport: Arc<T>,
    ) -> Result<Consensus<M, H>, StartError> {
        if !members.contains_key(&id) {
            return Err(StartError::NotAMember { id });
        }
        let storage = log::Storage::<H>::open(directory)?;
        claim(&storage, id, cluster).await?;
        storage.check_purged()?;
        let joining = match (storage.is_blank()?, bootstrap) {
            // What was heard once holds, whoever can be reached now.
            (true, true) if storage.joining()? && !on(Mutant::FormsAfterAll) => true,
            (true, true) => join::is_formed(id, cluster, members, &transport).await,
            (true, false) if members.len() == 1 => return Err(StartError::NoMemory { id }),
            (true, false) => true,
            (false, _) => storage.joining()?,
        };
        let forgets = on(Mutant::MarkForgotten) && storage.joining()?;
        storage.set_joining(joining && !forgets).await?;
        let (database, no_op) = (storage.watch(), machine.no_op());
        let config = Arc::new(config(&cluster, H::log_limits())?);
        let applied = AppliedState::new(machine, storage.clone());
        let peers = network::Peers { cluster, transport: Arc::clone(&transport) };
        let raft = Raft::new(id.0, config, peers, storage.clone(), applied)
            .await
            .map_err(|error| StartError::Consensus { detail: error.to_string() })?;
        let nodes: BTreeMap<u64, BasicNode> =
            members.iter().map(|(id, addr)| (id.0, BasicNode { addr: addr.clone() })).collect();
        if bootstrap && !joining {
            match raft.initialize(nodes).await {
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {} // or formed earlier
                Err(error) => return Err(StartError::Consensus { detail: error.to_string() }),
            }
        }
        let gate = Arc::new(join::Gate::new(joining));
        let end = CancellationToken::new();
        if joining {
            let (raft, storage, gate) = (raft.clone(), storage.clone(), Arc::clone(&gate));
            let joining = join::Joining { id, cluster, members: members.clone(), transport, raft, storage, gate };
            spawn::<H, _>(end.clone().run_until_cancelled_owned(joining.run()));
        }
        let (tx, leadership) = watch::channel(leadership_of(&raft, id));
        spawn::<H, _>(end.clone().run_until_cancelled_owned(follow_leadership(raft.clone(), id, tx)));
        // Alone, nobody else could lead: do not wait for the first tick.
        if members.len() == 1 {
            raft.trigger().elect(false).await.map_err(|error| StartError::Consensus { detail: error.to_string() })?;
        }
        Ok(Consensus {
            id,
            cluster,
            raft,
            leadership,
            end,
            database,
            gate,
            no_op,
            heard: parking_lot::Mutex::new(Heard { current: None, next: None }),
        })
    }

    /// Returns, with the reason, when this monitor takes no part any more: its disk failed, or it was shut down. Only a
    /// new start helps.
    pub fn stopped(&self) -> impl Future<Output = String> + Send + use<M, H> {
        let mut metrics = self.raft.metrics();
        async move {
            loop {
                if let Err(fatal) = &metrics.borrow_watched().running_state {
                    return fatal.to_string();
                }
                if metrics.changed().await.is_err() {
                    return "consensus has ended".to_owned();
                }
            }
        }
    }

    /// Makes every later write to the disk fail.
    #[cfg(test)]
    pub(crate) fn break_disk(&self) {
        self.database.break_disk();
    }

    /// Who leads, and changes of it.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Commits a command and answers what [`Machine::apply`] made of it.
    ///
    /// # Errors
    /// [`ConsensusError`]; after [`ConsensusError::OutcomeUnknown`] the command may still have been committed. Waits
    /// without limit while there is no majority: give it a deadline.
    pub async fn propose(&self, command: Vec<u8>) -> Result<Vec<u8>, ConsensusError> {
        match self.raft.client_write(Proposal(command)).await {
            Ok(done) => Ok(done.data.0),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ConsensusError::NotLeader { leader: forward.leader_id.map(MonId) })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => Err(ConsensusError::OutcomeUnknown),
            Err(error) => Err(ConsensusError::Stopped { detail: error.to_string() }),
        }
    }

    /// Returns when the machine here holds everything that was committed before the call.
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`] when another monitor leads, [`ConsensusError::NoQuorum`] when no majority
    /// confirms that this one still does.
    pub async fn read_barrier(&self) -> Result<(), ConsensusError> {
        if on(Mutant::ReadWithoutBarrier) && self.leadership.borrow().is_self {
            return Ok(());
        }
        let policy = if on(Mutant::LeaseRead) { ReadPolicy::LeaseRead } else { ReadPolicy::ReadIndex };
        match self.raft.ensure_linearizable(policy).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ConsensusError::NotLeader { leader: forward.leader_id.map(MonId) })
            }
            Err(RaftError::APIError(_)) => Err(ConsensusError::NoQuorum),
            Err(error) => Err(ConsensusError::Stopped { detail: error.to_string() }),
        }
    }

    /// Whether this monitor leads and a majority has confirmed it, or it holds all that a leader knew to be committed,
    /// within `limit`.
    #[must_use]
    pub fn in_touch(&self, limit: Duration) -> bool {
        if on(Mutant::OldMapsHandedOut) {
            return true;
        }
        if self.leadership.borrow().is_self {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            // A lone monitor is its own majority; nobody's acknowledgement would renew the time.
            if metrics.membership_config.membership().voter_ids().count() == 1 {
                return true;
            }
            let acknowledged = metrics.last_quorum_acked;
            return acknowledged.is_none_or(|at| at.elapsed() < limit);
        }
        self.heard.lock().current.is_some_and(|at| at.elapsed() < limit)
    }

    /// The monitors that answered this leader's heartbeats within `limit`, itself included.
    #[must_use]
    pub fn answering(&self, limit: Duration) -> BTreeSet<MonId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let lately = metrics.heartbeat.iter().flatten().filter(|(_, at)| at.is_some_and(|at| at.elapsed() < limit));
        lately.map(|(id, _)| MonId(*id)).chain([self.id]).collect()
    }

    /// Answers a message that a peer sent with [`Transport::call`].
    pub async fn answer_peer(&self, request: &[u8]) -> Vec<u8> {
        encode(&self.answer(request).await.unwrap_or_else(PeerReply::Failed))
    }

    async fn answer(&self, request: &[u8]) -> Result<PeerReply, String> {
        let envelope: PeerEnvelope = decode(request).map_err(|error| error.to_string())?;
        if envelope.cluster != self.cluster || envelope.to != self.id.0 {
            return Err(format!(
                "meant for {} of cluster {}, reached {} of cluster {}",
                MonId(envelope.to),
                envelope.cluster,
                self.id,
                self.cluster
            ));
        }
        match &envelope.request {
            PeerRequest::Append(request) => self.gate.may_follow(request.term())?,
            PeerRequest::Snapshot(vote, _) => self.gate.may_follow(vote.term())?,
            PeerRequest::Vote(_) | PeerRequest::PreVote(_) | PeerRequest::Transfer(..) => self.gate.may_vote()?,
            PeerRequest::Join(_) | PeerRequest::IsFormed => {}
        }
        match envelope.request {
            PeerRequest::Append(request) => {
                let committed = request.committed();
                let request = request.try_into().map_err(|error: io::Error| error.to_string())?;
                let reply = self.raft.append_entries(request).await.map_err(|error| error.to_string())?;
                if !matches!(reply, openraft::raft::AppendEntriesResponse::HigherVote(_))
                    && let Some(committed) = committed
                {
                    let applied = self.raft.data_metrics().borrow_watched().last_applied.map(|last| last.index);
                    self.heard.lock().hear(Instant::<H>::now(), committed, applied);
                }
                Ok(PeerReply::Append((&reply).into()))
            }
            PeerRequest::Vote(request) => {
                let reply = self.raft.vote(request.into()).await.map_err(|error| error.to_string())?;
                Ok(encoding::vote_reply(&reply))
            }
            PeerRequest::PreVote(request) => {
                let reply = self.raft.pre_vote(request.into()).await.map_err(|error| error.to_string())?;
                Ok(encoding::vote_reply(&reply))
            }
            PeerRequest::Snapshot(vote, snapshot) => {
                let snapshot = openraft::Snapshot {
                    meta: snapshot.meta.try_into().map_err(|error: io::Error| error.to_string())?,
                    snapshot: snapshot.state.into(),
                };
                let reply =
                    self.raft.install_full_snapshot(vote.into(), snapshot).await.map_err(|error| error.to_string())?;
                Ok(PeerReply::Snapshot((&reply.vote).into()))
            }
            PeerRequest::Transfer(vote, to, last) => {
                let request = openraft::raft::TransferLeaderRequest::new(vote.into(), to, last.map(Into::into));
                let reply = self.raft.handle_transfer_leader(request).await.map_err(|error| error.to_string())?;
                Ok(PeerReply::Transfer(TransferReply::from(&reply)))
            }
            PeerRequest::Join(from) => self.let_in(MonId(from)).await,
            PeerRequest::IsFormed => {
                let last = self.raft.data_metrics().borrow_watched().last_log.map(|last| last.index);
                Ok(PeerReply::Formed(last > Some(join::FIRST)))
            }
        }
    }

    /// Whether this monitor's vote counts: it remembers all that it may have said.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.gate.is_full()
    }

    /// The index of the last entry that only a snapshot holds any more.
    #[must_use]
    pub fn purged(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().purged.map(|id| id.index)
    }

    /// Commits an entry for a monitor without memory, which acknowledges nothing before it has this answer.
    async fn let_in(&self, from: MonId) -> Result<PeerReply, String> {
        if !self.leadership.borrow().is_self {
            return Err(format!("{} does not lead", self.id));
        }
        if on(Mutant::NeverLetIn) {
            return Err("nobody is let in".to_owned());
        }
        tracing::warn!(mon = %from, "has lost its memory and is let in again");
        // What it held is gone: sent again from the start.
        match self.raft.trigger().allow_next_revert(&from.0, true).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(error) => return Err(error.to_string()),
        }
        let write = self.raft.client_write(Proposal(self.no_op.clone()));
        match H::Runtime::timeout(join::COMMIT_TIMEOUT, write).await {
            Ok(Ok(done)) => Ok(PeerReply::Joined(done.log_id.leader_id.term, done.log_id.index)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no majority of the other monitors answers".to_owned()),
        }
    }

    /// Makes `voters` the monitors that decide, one joint step at a time; those that are new first catch up as learners
    /// while the present ones decide. Only the leader can.
    ///
    /// # Errors
    /// [`ConsensusError`]; unless it is [`ConsensusError::NotLeader`], the change may be half done, and the same call
    /// completes it.
    pub async fn change_voters(&self, voters: &BTreeMap<MonId, String>) -> Result<(), ConsensusError> {
        let refused = |error: RaftError<TypeConfig<H>, ClientWriteError<TypeConfig<H>>>| match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                ConsensusError::NotLeader { leader: forward.leader_id.map(MonId) }
            }
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ConsensusError::OutcomeUnknown,
            error => ConsensusError::Stopped { detail: error.to_string() },
        };
        let known: BTreeSet<u64> = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect()
        };
        for (id, address) in voters.iter().filter(|(id, _)| !known.contains(&id.0)) {
            self.raft.add_learner(id.0, BasicNode { addr: address.clone() }, true).await.map_err(refused)?;
        }
        let ids: BTreeSet<u64> = voters.keys().map(|id| id.0).collect();
        self.raft.change_membership(ids, false).await.map_err(refused)?;
        Ok(())
    }

    /// Hands leadership to another monitor, so that a planned stop costs no election timeout.
    pub async fn step_down(&self, to: MonId) {
        if let Err(error) = self.raft.trigger().transfer_leader(to.0).await {
            tracing::debug!(%error, "leadership could not be handed over");
        }
    }

    /// Writes a snapshot now, whatever the log's length.
    pub async fn snapshot_now(&self) {
        if let Err(error) = self.raft.trigger().snapshot().await {
            tracing::debug!(%error, "snapshot could not be triggered");
        }
    }

    /// Stops taking part and gives the data directory free. What was answered stays durable with or without this.
    pub async fn shutdown(&self) {
        self.end.cancel();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop in order");
        }
        // The library's tasks end one by one.
        if H::Runtime::timeout(CLOSE_TIMEOUT, self.database.closed()).await.is_err() {
            tracing::warn!("the monitor's database is still open");
        }
    }
}

fn config(cluster: &ClusterId, limits: LogLimits) -> Result<Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: cluster.to_string(),
        heartbeat_interval: millis(HEARTBEAT),
        election_timeout_min: millis(ELECTION_MIN),
        election_timeout_max: millis(ELECTION_MAX),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(limits.snapshot_every),
        max_payload_entries: APPEND_ENTRIES_MAX as u64,
        max_in_snapshot_log_to_keep: limits.kept,
        replication_lag_threshold: 2 * limits.snapshot_every,
        install_snapshot_timeout: 20_000,
        backoff: "50ms 100ms 200ms ...500ms".to_owned(),
        enable_pre_vote: Some(true),
        // A leader that restarts may have lost what it had not synced, while a majority of the others holds it: in the same
        // term it would give the same places to other entries, and read without what was committed. So it asks for votes.
        enable_leader_restore: Some(on(Mutant::LeaderRestored)),
        api_channel_size: Some(4_096),
        notification_channel_size: Some(4_096),
        ..Config::default()
    }
    .validate()
    .map_err(|error| StartError::Consensus { detail: error.to_string() })
}

async fn claim<H: Host>(storage: &log::Storage<H>, id: MonId, cluster: ClusterId) -> Result<(), StartError> {
    match storage.identity()? {
        None => Ok(storage.save_identity(encode(&Identity { cluster, id })).await?),
        Some(bytes) => {
            let found: Identity = decode(&bytes)?;
            if found.id == id && found.cluster == cluster {
                Ok(())
            } else {
                Err(StartError::WrongIdentity { id, cluster, found_id: found.id, found_cluster: found.cluster })
            }
        }
    }
}

fn leadership_of<M: Machine, H: Host>(raft: &Raft<TypeConfig<H>, AppliedState<M, H>>, id: MonId) -> Leadership {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let leader = metrics.current_leader.map(MonId);
    Leadership {
        term: metrics.vote.leader_id.term,
        leader,
        is_self: leader == Some(id) && metrics.state == ServerState::Leader,
    }
}

async fn follow_leadership<M: Machine, H: Host>(
    raft: Raft<TypeConfig<H>, AppliedState<M, H>>,
    id: MonId,
    tx: watch::Sender<Leadership>,
) {
    let mut metrics = raft.server_metrics();
    let mut was_voter = false;
    loop {
        let now = leadership_of(&raft, id);
        tx.send_if_modified(|last| {
            let changed = *last != now;
            *last = now;
            changed
        });
        if on(Mutant::EndsWhenRemoved) {
            let is_voter = metrics.borrow_watched().membership_config.voter_ids().any(|voter| voter == id.0);
            if was_voter && !is_voter {
                let _ = raft.shutdown().await;
            }
            was_voter = is_voter;
        }
        if metrics.changed().await.is_err() {
            tx.send_replace(Leadership::default()); // the library has stopped
            return;
        }
    }
}
