//! The library's type parameters: opaque bytes in, opaque bytes out.
//!
//! Nothing outside `raft/` names these types, so the library can be exchanged without touching the monitor.

use std::fmt;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::host::Host;

/// A command as the library carries it: the bytes that [`super::Machine::apply`] gets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proposal(pub(super) Vec<u8>);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What [`super::Machine::apply`] answered; empty for the library's own entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied(pub(super) Vec<u8>);

/// The library's parameters on one kind of machine: all but the runtime are those that it would choose itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TypeConfig<H>(PhantomData<H>);

impl<H: Host> openraft::RaftTypeConfig for TypeConfig<H> {
    type D = Proposal;
    type R = Applied;
    type NodeId = u64;
    type Node = openraft::BasicNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = openraft::EntryPayload<Proposal, u64, openraft::BasicNode>;
    type Entry = Entry;
    type AsyncRuntime = H::Runtime;
    type Responder<T>
        = openraft::impls::ProgressResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(super) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(super) type LogId = openraft::LogId<LeaderId>;
pub(super) type Vote = openraft::Vote<LeaderId>;
pub(super) type Membership = openraft::Membership<u64, openraft::BasicNode>;
pub(super) type StoredMembership = openraft::StoredMembership<LeaderId, u64, openraft::BasicNode>;
pub(super) type Entry = openraft::Entry<LeaderId, openraft::EntryPayload<Proposal, u64, openraft::BasicNode>>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, openraft::BasicNode>;
pub(super) type StateSnapshot = openraft::Snapshot<LeaderId, u64, openraft::BasicNode, Vec<u8>>;
