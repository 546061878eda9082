//! Between the library and the applied state: applies committed commands, takes and installs snapshots.
//!
//! The state lives in memory. A start restores the newest snapshot and applies the committed rest of the log again, so
//! `Machine::apply` must be a pure function of state and command.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use minicbor::bytes::ByteVec;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};

use super::Machine;
use super::encoding::{StoredMeta, StoredSnapshot};
use super::log::Storage;
use super::types::{Applied, LogId, SnapshotMeta, StateSnapshot, StoredMembership, TypeConfig};
use crate::host::Host;
use crate::mutants::{Mutant, on};

/// The library's view of a [`Machine`].
pub(super) struct AppliedState<M, H: Host> {
    machine: Arc<M>,
    storage: Storage<H>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

impl<M: Machine, H: Host> AppliedState<M, H> {
    pub(super) fn new(machine: Arc<M>, storage: Storage<H>) -> AppliedState<M, H> {
        AppliedState { machine, storage, last_applied: None, membership: StoredMembership::default() }
    }
}

impl<M: Machine, H: Host> RaftStateMachine<TypeConfig<H>> for AppliedState<M, H> {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Builder<H>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig<H>>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let index = entry.log_id.index;
            let next = self.last_applied.map_or(0, |last| last.index + 1);
            if index != next {
                let detail = format!("entry {index} was to be applied where entry {next} follows");
                return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
            }
            let answer = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Normal(command) => self.machine.apply(index, &command.0).map_err(io::Error::other)?,
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Vec::new()
                }
            };
            self.last_applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(Applied(answer));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<H> {
        Builder {
            meta: SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() },
            state: self.machine.snapshot(),
            storage: self.storage.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, state: Vec<u8>) -> io::Result<()> {
        // Decode first: a snapshot that cannot be understood must replace nothing.
        self.machine.restore(&state).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.storage
            .save_snapshot(&StoredSnapshot { meta: StoredMeta::from(meta), state: ByteVec::from(state) })
            .await?;
        self.last_applied = meta.last_log_id;
        if !on(Mutant::SnapshotWithoutMembership) {
            self.membership = meta.last_membership.clone();
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<StateSnapshot>> {
        match self.storage.snapshot()? {
            Some(stored) => Ok(Some(Snapshot { meta: stored.meta.try_into()?, snapshot: stored.state.into() })),
            None => Ok(None),
        }
    }
}

/// The state at one moment, on its way to disk.
pub(super) struct Builder<H: Host> {
    meta: SnapshotMeta,
    state: Vec<u8>,
    storage: Storage<H>,
}

impl<H: Host> RaftSnapshotBuilder<TypeConfig<H>> for Builder<H> {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> io::Result<StateSnapshot> {
        let stored = StoredSnapshot { meta: StoredMeta::from(&self.meta), state: ByteVec::from(self.state.clone()) };
        self.storage.save_snapshot(&stored).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: stored.state.into() })
    }
}
