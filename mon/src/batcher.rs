//! Gathers changes into log entries: while one entry is being committed the next one fills, so a storm of requests
//! after a failure costs a few map epochs, not one each.

use std::sync::Arc;
use std::time::Duration;

use holdfast_mon_state::{Change, Command, Op, Outcome};
use holdfast_net::mon_api::MESSAGE_BYTES_MAX;
use holdfast_wire::mon::{MonCommand, MonError, MonReply};
use openraft::Instant;
use tokio::sync::{mpsc, oneshot};

use crate::host::{AsyncRuntime, Host};
use crate::machine::AppliedState;
use crate::mutants::{Mutant, on};
use crate::raft::{APPEND_ENTRIES_MAX, Consensus, ConsensusError};

/// Changes that wait at most; then callers wait.
const QUEUE_MAX: usize = 1_024;
/// Changes of one log entry.
const BATCH_MAX: usize = 256;
/// Bytes at which a log entry takes no further change: entries are sent to the other monitors within a second.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Bytes of a change that is asked for. The largest are the wishes of one OSD for thousands of placement groups.
const REQUEST_BYTES_MAX: usize = 256 << 10;
const _: () = assert!(
    (BATCH_BYTES_MAX + REQUEST_BYTES_MAX) * APPEND_ENTRIES_MAX + (1 << 20) <= MESSAGE_BYTES_MAX,
    "the entries of one append fit a message"
);
/// How long an entry of nothing but `up_thru` and `pg_temp` waits for more of them: after a failure every primary asks
/// within milliseconds.
const LINGER: Duration = Duration::from_millis(20);
/// A commit takes milliseconds; without a quorum it takes for ever.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(3);

struct Waiting {
    op: Op,
    bytes: usize,
    answer: oneshot::Sender<Result<MonReply, ConsensusError>>,
}

/// The door to the log.
#[derive(Clone)]
pub(crate) struct Batcher {
    queue: mpsc::Sender<Waiting>,
}

fn can_wait(change: &Change) -> bool {
    matches!(change, Change::Request(MonCommand::UpThru { .. } | MonCommand::PgTemp { .. }) | Change::TrimMaps(_))
}

impl Batcher {
    /// A batcher, and the work that someone must run for it.
    pub(crate) fn new<H: Host>(
        consensus: Arc<Consensus<AppliedState<H>, H>>,
        state: Arc<AppliedState<H>>,
    ) -> (Batcher, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        (Batcher { queue }, run(consensus, state, waiting))
    }

    /// Has a change committed; answers what the state machine made of it.
    pub(crate) async fn propose(&self, op: Op) -> Result<MonReply, ConsensusError> {
        let bytes = minicbor::to_vec(&op).map_or(usize::MAX, |encoded| encoded.len());
        if bytes > REQUEST_BYTES_MAX && matches!(op.change, Change::Request(_)) {
            let reason = format!("a change of {bytes} bytes; {REQUEST_BYTES_MAX} are the most");
            return Ok(MonReply::Failed(MonError::Invalid { reason }));
        }
        let (answer, answered) = oneshot::channel();
        let stopped = || ConsensusError::Stopped { detail: "the monitor is shutting down".into() };
        self.queue.send(Waiting { op, bytes, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

async fn run<H: Host>(
    consensus: Arc<Consensus<AppliedState<H>, H>>,
    state: Arc<AppliedState<H>>,
    mut queue: mpsc::Receiver<Waiting>,
) {
    while let Some(first) = queue.recv().await {
        let deadline = <H::Runtime as AsyncRuntime>::Instant::now() + LINGER;
        let mut batch = vec![first];
        let bytes = |batch: &[Waiting]| batch.iter().fold(0usize, |sum, waiting| sum.saturating_add(waiting.bytes));
        while batch.len() < BATCH_MAX && bytes(&batch) < BATCH_BYTES_MAX {
            match queue.try_recv() {
                Ok(next) => batch.push(next),
                Err(_) if batch.iter().all(|waiting| can_wait(&waiting.op.change)) => {
                    match H::Runtime::timeout_at(deadline, queue.recv()).await {
                        Ok(Some(next)) => batch.push(next),
                        Ok(None) | Err(_) => break,
                    }
                }
                Err(_) => break,
            }
        }
        let (ops, answers): (Vec<Op>, Vec<_>) = batch.into_iter().map(|waiting| (waiting.op, waiting.answer)).unzip();
        let result = commit(&consensus, &state, ops).await;
        for (index, answer) in answers.into_iter().enumerate() {
            let reply = match &result {
                Ok(outcome) => Ok(outcome.replies.get(index).cloned().unwrap_or_else(missing)),
                Err(error) => Err(error.clone()),
            };
            let _ = answer.send(reply); // the asker may have gone; the change is committed all the same
        }
    }
}

fn missing() -> MonReply {
    MonReply::Failed(MonError::Invalid { reason: "the monitors' log has a command of another release".into() })
}

async fn commit<H: Host>(
    consensus: &Consensus<AppliedState<H>, H>,
    state: &AppliedState<H>,
    ops: Vec<Op>,
) -> Result<Outcome, ConsensusError> {
    let command = Command { at_unix_ms: H::unix_ms(), ops, seen: Some(state.mark()) };
    let proposing = async {
        loop {
            match consensus.propose(command.encode()).await {
                Err(ConsensusError::NotLeader { .. }) if on(Mutant::RefusalRetried) => {}
                result => return result,
            }
        }
    };
    let committed = H::Runtime::timeout(COMMIT_TIMEOUT, proposing).await;
    let outcome = committed.unwrap_or(Err(ConsensusError::NoQuorum))?;
    Outcome::decode(&outcome).map_err(|error| ConsensusError::Stopped { detail: error.to_string() })
}
