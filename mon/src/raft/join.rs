//! How a monitor without memory comes back into a quorum that has it.
//!
//! Raft is safe only among voters that remember: what they voted, and what they said they hold. A monitor whose
//! directory is empty may have been a voter before (a disk was changed, a file system is not mounted), so it says
//! nothing at all until its past can do no harm:
//!
//! | standing | votes | takes entries | until |
//! |---|---|---|---|
//! | `Silent` | never | never | a leader has committed an entry that it began after this monitor asked for it |
//! | `Following` | never | from that leader and later ones | it has applied that entry |
//! | `Full` | yes | yes | |
//!
//! Why that is enough: this monitor acknowledges nothing while it is silent, so a majority made of *others* holds the
//! entry, durably, in the leader's term. (1) Whatever it acknowledged before and was committed, that leader has, and
//! whoever leads later. (2) A vote that it gave before and forgot can elect nobody any more but a candidate that has
//! the entry: any majority with this monitor in it has one of the others, who refuses a candidate without. (3) An older
//! leader, which does not know that it is replaced, gets no acknowledgement from here.
//!
//! A monitor that is told to form a cluster cannot know, with an empty directory, whether it did so before (a disk was
//! changed, and `--bootstrap` stands in a unit file). So it asks the others first ([`is_formed`]): when one of them knows
//! more than the first entry, it joins like any other without memory. What is left: who reaches none of them forms, and
//! one that lags may then be elected with its vote. A deposed leader of a cluster that is just being formed may have
//! more than the first entry, too, so such votes cannot be refused.
//!
//! The standing is durable (`m/joining`): a restart half way does not make a voter, and no `--bootstrap` does: who heard
//! once that there is a cluster may reach nobody at its next start, as after a power failure of all. With a majority's memory lost no
//! entry can be committed, and nobody joins: such a cluster is not formed anew behind the operator's back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_types::{ClusterId, MonId};
use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, Raft};
use parking_lot::Mutex;

use super::encoding::{PeerReply, PeerRequest};
use super::log::Storage;
use super::machine::AppliedState;
use super::network::Peer;
use super::types::TypeConfig;
use super::{Instant, Machine, Transport};
use crate::host::{AsyncRuntime, Host};
use crate::mutants::{Mutant, on};

/// How long another monitor is given to say whether there is a cluster.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// The index of the entry with which a cluster is formed.
pub(super) const FIRST: u64 = 0;
/// How long a leader is given to commit the entry.
pub(super) const COMMIT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two rounds of asking.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How often it is said that this monitor waits.
const SAY_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Silent,
    Following { term: u64 },
    Full,
}

/// What this monitor may answer to the others.
#[derive(Debug)]
pub(super) struct Gate(Mutex<Standing>);

impl Gate {
    pub(super) fn new(joining: bool) -> Gate {
        Gate(Mutex::new(if joining { Standing::Silent } else { Standing::Full }))
    }

    pub(super) fn is_full(&self) -> bool {
        *self.0.lock() == Standing::Full
    }

    pub(super) fn may_vote(&self) -> Result<(), String> {
        match *self.0.lock() {
            Standing::Full => Ok(()),
            Standing::Silent | Standing::Following { .. } if on(Mutant::VoteWithoutMemory) => Ok(()),
            Standing::Silent | Standing::Following { .. } => {
                Err("it has no memory of its earlier votes, and gives none until it has caught up".to_owned())
            }
        }
    }

    /// Whether a leader of this term may be followed.
    pub(super) fn may_follow(&self, leader_term: u64) -> Result<(), String> {
        match *self.0.lock() {
            Standing::Full => Ok(()),
            Standing::Following { term } if leader_term >= term => Ok(()),
            Standing::Silent | Standing::Following { .. } => {
                Err("it has no memory, and follows nobody who has not let it in".to_owned())
            }
        }
    }
}

/// Whether one of the others knows that this cluster was formed. Who cannot be reached is not waited for: when a cluster
/// is formed, the first of its monitors is alone.
pub(super) async fn is_formed<T: Transport>(
    id: MonId,
    cluster: ClusterId,
    members: &BTreeMap<MonId, String>,
    transport: &Arc<T>,
) -> bool {
    for to in members.keys().filter(|to| **to != id) {
        let peer = Peer::new(cluster, *to, Arc::clone(transport));
        if let Ok(PeerReply::Formed(true)) = peer.call(PeerRequest::IsFormed, KNOWN_TIMEOUT).await {
            tracing::warn!(mon = %id, says = %to, "told to form a cluster that exists already: it joins");
            return true;
        }
    }
    false
}

/// A monitor that joins.
pub(super) struct Joining<T, M: Machine, H: Host> {
    pub(super) id: MonId,
    pub(super) cluster: ClusterId,
    pub(super) members: BTreeMap<MonId, String>,
    pub(super) transport: Arc<T>,
    pub(super) raft: Raft<TypeConfig<H>, AppliedState<M, H>>,
    pub(super) storage: Storage<H>,
    pub(super) gate: Arc<Gate>,
}

impl<T: Transport, M: Machine, H: Host> Joining<T, M, H> {
    /// Asks until a leader lets this monitor in, catches up, and makes it a voter again.
    pub(super) async fn run(self) {
        tracing::warn!(mon = %self.id, "no memory of the cluster here: this monitor is silent until the others let it in");
        let (term, index) = self.ask().await;
        tracing::info!(mon = %self.id, term, index, "let in, catching up");
        *self.gate.0.lock() = Standing::Following { term };
        let mut metrics = self.raft.metrics();
        let caught_up = |applied: Option<u64>| applied.is_some_and(|applied| applied >= index);
        while !caught_up(metrics.borrow_watched().last_applied.map(|last| last.index)) {
            if metrics.changed().await.is_err() {
                return; // the library has stopped
            }
        }
        if let Err(error) = self.storage.set_joining(false).await {
            tracing::error!(mon = %self.id, %error, "caught up, but that cannot be recorded: no votes from here");
            return;
        }
        *self.gate.0.lock() = Standing::Full;
        tracing::info!(mon = %self.id, "caught up: this monitor votes again");
    }

    /// Term and index of the entry that a leader committed for this monitor.
    async fn ask(&self) -> (u64, u64) {
        let mut said = Instant::<H>::now();
        loop {
            let mut answers = Vec::new();
            for to in self.members.keys().filter(|to| **to != self.id) {
                let peer = Peer::new(self.cluster, *to, Arc::clone(&self.transport));
                match peer.call(PeerRequest::Join(self.id.0), 2 * COMMIT_TIMEOUT).await {
                    Ok(PeerReply::Joined(term, index)) => return (term, index),
                    Ok(_) => answers.push(format!("{to}: an answer to another question")),
                    Err(error) => answers.push(format!("{to}: {error}")),
                }
            }
            if said.elapsed() >= SAY_EVERY {
                said = Instant::<H>::now();
                tracing::warn!(
                    mon = %self.id,
                    answers = %answers.join("; "),
                    "still waiting to be let in: a majority of the other monitors must run with their data. If this \
                     monitor has lost its directory (is it mounted?), bring that back or wait for the others. If this is \
                     a new cluster that has never served, empty the directories of its monitors and start each once \
                     with --bootstrap"
                );
            }
            H::Runtime::sleep(ASK_EVERY).await;
        }
    }
}
