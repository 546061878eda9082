//! The applied state: `mon/state` behind a lock, and the newest map for all who wait for it.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use holdfast_map::ClusterMap;
use holdfast_mon_state::leader::Scene;
use holdfast_mon_state::{Command, Diverged, MapMark, PastMap, STATE_BYTES_MAX, State};
use holdfast_net::mon_api::MESSAGE_BYTES_MAX;
use holdfast_types::{ClusterId, Epoch};
use holdfast_wire::mon::{MapUpdate, MonCommand, MonError, MonReply};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::host::{Host, Production};
use crate::raft::Machine;

const _: () = assert!(STATE_BYTES_MAX + (64 << 10) <= MESSAGE_BYTES_MAX, "a snapshot reaches a monitor that is behind");

/// The replicated state of this monitor.
pub(crate) struct AppliedState<H: Host = Production> {
    cluster: ClusterId,
    state: RwLock<State>,
    newest: watch::Sender<Arc<ClusterMap>>,
    recent: Mutex<VecDeque<Arc<ClusterMap>>>,
    host: PhantomData<H>,
}

/// A committed command was not applied. The log goes on behind it, so this monitor takes no part any more.
#[derive(Debug, thiserror::Error)]
enum NotApplied {
    #[error(
        "this release does not understand command {index} of the monitors' log: bring this monitor to the release of \
         the one that leads"
    )]
    Foreign {
        index: u64,
        #[source]
        source: minicbor::decode::Error,
    },
    #[error(
        "at command {index}, {diverged}: one of the two is wrong. If the other monitors end with the same checksums, it is \
         the one that leads. Stop the wrong one, empty its data directory and start it: it learns all from the others"
    )]
    Diverged { index: u64, diverged: Diverged },
}

/// The maps of a command's proposer and of whoever applies it are compared if it was proposed so lately: a monitor that
/// was wrong, and has been emptied since, must not be met again in the log by those who start.
pub(crate) const COMPARED_MS: u64 = 60_000;

/// Maps that are kept for the leader's memory, which looks several times a second and should miss none.
const RECENT_MAX: usize = 32;

impl<H: Host> AppliedState<H> {
    pub(crate) fn new(cluster: ClusterId) -> AppliedState<H> {
        let state = State::new(cluster);
        let newest = watch::Sender::new(Arc::clone(state.map()));
        AppliedState { cluster, state: RwLock::new(state), newest, recent: Mutex::default(), host: PhantomData }
    }

    /// The newest map that this monitor has applied, and each one after it.
    pub(crate) fn maps(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.newest.subscribe()
    }

    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(self.state.read().map())
    }

    /// The maps after `seen`, in order, up to the newest; the oldest of them may be missing.
    pub(crate) fn maps_after(&self, seen: Epoch) -> Vec<Arc<ClusterMap>> {
        let recent = self.recent.lock();
        recent.iter().filter(|map| map.epoch > seen).cloned().collect()
    }

    /// What a proposal says of the newest map.
    pub(crate) fn mark(&self) -> MapMark {
        self.state.read().mark()
    }

    /// What a leader decides from, now.
    pub(crate) fn scene(&self) -> Scene {
        self.state.read().scene(H::unix_ms())
    }

    pub(crate) fn answer(&self, question: &MonCommand) -> Option<MonReply> {
        let MonCommand::GetFullMap { epoch } = question else { return self.state.read().answer(question) };
        // Commands and all other questions would wait while an old map is put together.
        let past = self.state.read().map_at(*epoch);
        Some(match past.and_then(PastMap::build) {
            Some(map) => MonReply::Maps(MapUpdate { full: Some(map.encode_full().into()), increments: Vec::new() }),
            None => MonReply::Failed(MonError::NotFound { what: "map".into(), name: epoch.to_string() }),
        })
    }

    /// What a holder of `after` lacks, and the epoch that it then has.
    pub(crate) fn maps_since(&self, after: Epoch) -> (MapUpdate, Epoch) {
        let state = self.state.read();
        let update = state.maps_since(after);
        let reached =
            if update.full.is_some() { state.map().epoch } else { Epoch(after.0 + update.increments.len() as u64) };
        (update, reached)
    }

    fn publish(&self, map: &Arc<ClusterMap>) {
        {
            let mut recent = self.recent.lock();
            if recent.back().is_none_or(|last| last.epoch < map.epoch) {
                recent.push_back(Arc::clone(map));
            }
            if recent.len() > RECENT_MAX {
                recent.pop_front();
            }
        }
        self.newest.send_if_modified(|newest| {
            let changed = newest.epoch != map.epoch;
            if changed {
                *newest = Arc::clone(map);
            }
            changed
        });
    }
}

impl<H: Host> Machine for AppliedState<H> {
    fn apply(&self, index: u64, command: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        // Skipping it would make another map of the same epoch here than at those who understand it.
        let bytes = command;
        let command = Command::decode(bytes).map_err(|source| NotApplied::Foreign { index, source })?;
        let mut state = self.state.write();
        if H::unix_ms().abs_diff(command.at_unix_ms) < COMPARED_MS {
            state.check(&command).map_err(|diverged| NotApplied::Diverged { index, diverged })?;
        }
        let outcome = state.apply(index, &command);
        H::applied(index, bytes, state.map().epoch);
        self.publish(state.map());
        Ok(outcome.encode())
    }

    fn no_op(&self) -> Vec<u8> {
        Command::default().encode()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.state.read().encode()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let restored = State::decode(bytes)?;
        if restored.map().cluster != self.cluster {
            return Err(format!("the snapshot is of cluster {}", restored.map().cluster).into());
        }
        let mut state = self.state.write();
        *state = restored;
        self.publish(state.map());
        Ok(())
    }
}
