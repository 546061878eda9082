//! Raft's vote, log and messages as CBOR: what the log store writes and what monitors send each other.
//!
//! Every shape is ours, with integer keys, so that stored logs outlive a change of the library. Conversion from bytes
//! is the only door; what does not decode is an error, never a panic.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId;
use openraft::{BasicNode, EntryPayload};

use super::types;
use crate::host::Host;
use holdfast_types::ClusterId;

/// `(term, node, index)` of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct StoredLogId {
    #[n(0)]
    term: u64,
    #[n(1)]
    node: u64,
    #[n(2)]
    index: u64,
}

impl From<&types::LogId> for StoredLogId {
    fn from(id: &types::LogId) -> StoredLogId {
        StoredLogId { term: id.leader_id.term(), node: *id.leader_id.node_id(), index: id.index }
    }
}

impl From<StoredLogId> for types::LogId {
    fn from(id: StoredLogId) -> types::LogId {
        types::LogId { leader_id: types::LeaderId { term: id.term, node_id: id.node }, index: id.index }
    }
}

/// A vote: for whom, in which term, and whether a quorum gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct StoredVote {
    #[n(0)]
    term: u64,
    #[n(1)]
    node: u64,
    #[n(2)]
    committed: bool,
}

impl StoredVote {
    pub(super) fn term(&self) -> u64 {
        self.term
    }
}

impl From<&types::Vote> for StoredVote {
    fn from(vote: &types::Vote) -> StoredVote {
        StoredVote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<StoredVote> for types::Vote {
    fn from(vote: StoredVote) -> types::Vote {
        types::Vote { leader_id: types::LeaderId { term: vote.term, node_id: vote.node }, committed: vote.committed }
    }
}

/// The voters (one set, or two during a change) and the address of each node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct StoredNodes {
    #[n(0)]
    configs: Vec<Vec<u64>>,
    #[n(1)]
    addresses: BTreeMap<u64, String>,
}

impl From<&types::Membership> for StoredNodes {
    fn from(membership: &types::Membership) -> StoredNodes {
        StoredNodes {
            configs: membership.get_joint_config().iter().map(|set| set.iter().copied().collect()).collect(),
            addresses: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        }
    }
}

impl TryFrom<StoredNodes> for types::Membership {
    type Error = io::Error;

    fn try_from(nodes: StoredNodes) -> io::Result<types::Membership> {
        let configs: Vec<BTreeSet<u64>> = nodes.configs.into_iter().map(|set| set.into_iter().collect()).collect();
        let addresses: BTreeMap<u64, BasicNode> =
            nodes.addresses.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
        if configs.is_empty() {
            return Ok(types::Membership::default());
        }
        types::Membership::new(configs, addresses).map_err(|error| invalid(&error))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
enum StoredPayload {
    #[n(0)]
    Blank,
    #[n(1)]
    Command(#[n(0)] ByteVec),
    #[n(2)]
    Nodes(#[n(0)] StoredNodes),
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct StoredEntry {
    #[n(0)]
    id: StoredLogId,
    #[n(1)]
    payload: StoredPayload,
}

impl From<&types::Entry> for StoredEntry {
    fn from(entry: &types::Entry) -> StoredEntry {
        let payload = match &entry.payload {
            EntryPayload::Blank => StoredPayload::Blank,
            EntryPayload::Normal(command) => StoredPayload::Command(command.0.clone().into()),
            EntryPayload::Membership(membership) => StoredPayload::Nodes(membership.into()),
        };
        StoredEntry { id: (&entry.log_id).into(), payload }
    }
}

impl TryFrom<StoredEntry> for types::Entry {
    type Error = io::Error;

    fn try_from(entry: StoredEntry) -> io::Result<types::Entry> {
        let payload = match entry.payload {
            StoredPayload::Blank => EntryPayload::Blank,
            StoredPayload::Command(bytes) => EntryPayload::Normal(types::Proposal(bytes.into())),
            StoredPayload::Nodes(nodes) => EntryPayload::Membership(nodes.try_into()?),
        };
        Ok(types::Entry { log_id: entry.id.into(), payload })
    }
}

/// Up to where a snapshot reaches, and the membership it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct StoredMeta {
    #[n(0)]
    last: Option<StoredLogId>,
    #[n(1)]
    nodes_at: Option<StoredLogId>,
    #[n(2)]
    nodes: StoredNodes,
}

impl StoredMeta {
    /// The last entry that the snapshot holds.
    pub(super) fn last(&self) -> Option<types::LogId> {
        self.last.map(Into::into)
    }
}

impl From<&types::SnapshotMeta> for StoredMeta {
    fn from(meta: &types::SnapshotMeta) -> StoredMeta {
        StoredMeta {
            last: meta.last_log_id.as_ref().map(Into::into),
            nodes_at: meta.last_membership.log_id().as_ref().map(Into::into),
            nodes: meta.last_membership.membership().into(),
        }
    }
}

impl TryFrom<StoredMeta> for types::SnapshotMeta {
    type Error = io::Error;

    fn try_from(meta: StoredMeta) -> io::Result<types::SnapshotMeta> {
        Ok(types::SnapshotMeta {
            last_log_id: meta.last.map(Into::into),
            last_membership: types::StoredMembership::new(meta.nodes_at.map(Into::into), meta.nodes.try_into()?),
        })
    }
}

/// A snapshot as it lies on disk and travels: the meta data and the encoded state.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct StoredSnapshot {
    #[n(0)]
    pub(super) meta: StoredMeta,
    #[n(1)]
    pub(super) state: ByteVec,
}

/// What one monitor asks another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub(super) enum PeerRequest {
    #[n(0)]
    Append(#[n(0)] AppendRequest),
    #[n(1)]
    Vote(#[n(0)] BallotRequest),
    #[n(2)]
    PreVote(#[n(0)] BallotRequest),
    #[n(3)]
    Snapshot(#[n(0)] StoredVote, #[n(1)] StoredSnapshot),
    #[n(4)]
    Transfer(#[n(0)] StoredVote, #[n(1)] u64, #[n(2)] Option<StoredLogId>),
    /// This monitor has no memory and asks the leader to commit an entry (`join`).
    #[n(5)]
    Join(#[n(0)] u64),
    /// Whether the cluster was formed, as far as the peer knows.
    #[n(6)]
    IsFormed,
}

/// What the other answers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub(super) enum PeerReply {
    #[n(0)]
    Append(#[n(0)] AppendReply),
    #[n(1)]
    Vote(#[n(0)] StoredVote, #[n(1)] bool, #[n(2)] Option<StoredLogId>),
    #[n(2)]
    Snapshot(#[n(0)] StoredVote),
    #[n(3)]
    Transfer(#[n(0)] TransferReply),
    /// The peer cannot answer: it stops, its disk fails, or the message was not for it.
    #[n(4)]
    Failed(#[n(0)] String),
    /// Term and index of the entry that was committed.
    #[n(5)]
    Joined(#[n(0)] u64, #[n(1)] u64),
    /// Answer to [`PeerRequest::IsFormed`].
    #[n(6)]
    Formed(#[n(0)] bool),
}

/// A message with the proof that it reached whom it was meant for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct PeerEnvelope {
    #[n(0)]
    pub(super) cluster: ClusterId,
    #[n(1)]
    pub(super) to: u64,
    #[n(2)]
    pub(super) request: PeerRequest,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct AppendRequest {
    #[n(0)]
    vote: StoredVote,
    #[n(1)]
    previous: Option<StoredLogId>,
    #[n(2)]
    entries: Vec<StoredEntry>,
    #[n(3)]
    committed: Option<StoredLogId>,
}

impl AppendRequest {
    /// Of the leader that sends it.
    pub(super) fn term(&self) -> u64 {
        self.vote.term
    }

    /// The index up to which the leader knows entries to be committed; `None` while it has committed none of its own, and
    /// so may not know of those that others committed last.
    pub(super) fn committed(&self) -> Option<u64> {
        let own = |id: &StoredLogId| (id.term, id.node) == (self.vote.term, self.vote.node);
        self.committed.filter(own).map(|id| id.index)
    }
}

impl<H: Host> From<&AppendEntriesRequest<types::TypeConfig<H>>> for AppendRequest {
    fn from(request: &AppendEntriesRequest<types::TypeConfig<H>>) -> AppendRequest {
        AppendRequest {
            vote: (&request.vote).into(),
            previous: request.prev_log_id.as_ref().map(Into::into),
            entries: request.entries.iter().map(Into::into).collect(),
            committed: request.leader_commit.as_ref().map(Into::into),
        }
    }
}

impl<H: Host> TryFrom<AppendRequest> for AppendEntriesRequest<types::TypeConfig<H>> {
    type Error = io::Error;

    fn try_from(request: AppendRequest) -> io::Result<Self> {
        Ok(AppendEntriesRequest {
            vote: request.vote.into(),
            prev_log_id: request.previous.map(Into::into),
            entries: request.entries.into_iter().map(TryInto::try_into).collect::<io::Result<_>>()?,
            leader_commit: request.committed.map(Into::into),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub(super) enum AppendReply {
    #[n(0)]
    Success,
    #[n(1)]
    Partial(#[n(0)] Option<StoredLogId>),
    #[n(2)]
    Conflict,
    #[n(3)]
    HigherVote(#[n(0)] StoredVote),
}

impl<H: Host> From<&AppendEntriesResponse<types::TypeConfig<H>>> for AppendReply {
    fn from(reply: &AppendEntriesResponse<types::TypeConfig<H>>) -> AppendReply {
        match reply {
            AppendEntriesResponse::Success => AppendReply::Success,
            AppendEntriesResponse::PartialSuccess(id) => AppendReply::Partial(id.as_ref().map(Into::into)),
            AppendEntriesResponse::Conflict => AppendReply::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendReply::HigherVote(vote.into()),
        }
    }
}

impl<H: Host> From<AppendReply> for AppendEntriesResponse<types::TypeConfig<H>> {
    fn from(reply: AppendReply) -> Self {
        match reply {
            AppendReply::Success => AppendEntriesResponse::Success,
            AppendReply::Partial(id) => AppendEntriesResponse::PartialSuccess(id.map(Into::into)),
            AppendReply::Conflict => AppendEntriesResponse::Conflict,
            AppendReply::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct BallotRequest {
    #[n(0)]
    vote: StoredVote,
    #[n(1)]
    last: Option<StoredLogId>,
    #[n(2)]
    transfer: bool,
}

impl<H: Host> From<&VoteRequest<types::TypeConfig<H>>> for BallotRequest {
    fn from(request: &VoteRequest<types::TypeConfig<H>>) -> BallotRequest {
        BallotRequest {
            vote: (&request.vote).into(),
            last: request.last_log_id.as_ref().map(Into::into),
            transfer: request.leadership_transfer,
        }
    }
}

impl<H: Host> From<BallotRequest> for VoteRequest<types::TypeConfig<H>> {
    fn from(request: BallotRequest) -> Self {
        VoteRequest {
            vote: request.vote.into(),
            last_log_id: request.last.map(Into::into),
            leadership_transfer: request.transfer,
        }
    }
}

pub(super) fn vote_reply<H: Host>(reply: &VoteResponse<types::TypeConfig<H>>) -> PeerReply {
    PeerReply::Vote((&reply.vote).into(), reply.vote_granted, reply.last_log_id.as_ref().map(Into::into))
}

pub(super) fn vote_response<H: Host>(
    vote: StoredVote,
    granted: bool,
    last: Option<StoredLogId>,
) -> VoteResponse<types::TypeConfig<H>> {
    VoteResponse { vote: vote.into(), vote_granted: granted, last_log_id: last.map(Into::into) }
}

pub(super) fn transfer_request<H: Host>(request: &TransferLeaderRequest<types::TypeConfig<H>>) -> PeerRequest {
    PeerRequest::Transfer(request.from_leader().into(), *request.to_node_id(), request.last_log_id().map(Into::into))
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub(super) enum TransferReply {
    #[n(0)]
    Done,
    #[n(1)]
    VoteChanged(#[n(0)] StoredVote, #[n(1)] StoredVote),
    #[n(2)]
    LogNotFlushed(#[n(0)] Option<StoredLogId>, #[n(1)] Option<StoredLogId>),
}

impl<H: Host> From<&Result<(), TransferLeaderError<types::TypeConfig<H>>>> for TransferReply {
    fn from(reply: &Result<(), TransferLeaderError<types::TypeConfig<H>>>) -> TransferReply {
        match reply {
            Ok(()) => TransferReply::Done,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                TransferReply::VoteChanged(expected.into(), actual.into())
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                TransferReply::LogNotFlushed(expected.as_ref().map(Into::into), actual.as_ref().map(Into::into))
            }
        }
    }
}

impl<H: Host> From<TransferReply> for Result<(), TransferLeaderError<types::TypeConfig<H>>> {
    fn from(reply: TransferReply) -> Self {
        match reply {
            TransferReply::Done => Ok(()),
            TransferReply::VoteChanged(expected, actual) => {
                Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
            }
            TransferReply::LogNotFlushed(expected, actual) => Err(TransferLeaderError::LogNotFlushed {
                expected: expected.map(Into::into),
                actual: actual.map(Into::into),
            }),
        }
    }
}

/// Encodes to CBOR.
pub(super) fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("encoding to memory cannot fail")
}

/// Decodes from CBOR that a disk or a peer gave.
pub(super) fn decode<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> io::Result<T> {
    minicbor::decode(bytes).map_err(|error| invalid(&error))
}

fn invalid(error: &impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(term: u64, node: u64, index: u64) -> types::LogId {
        types::LogId { leader_id: types::LeaderId { term, node_id: node }, index }
    }

    #[test]
    fn an_entry_of_each_kind_comes_back_as_it_was() {
        let nodes = BTreeMap::from([
            (1, BasicNode { addr: "127.0.0.1:1".into() }),
            (2, BasicNode { addr: "127.0.0.1:2".into() }),
        ]);
        let membership =
            types::Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2])], nodes).expect("valid");
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(types::Proposal(vec![0, 255, 7])),
            EntryPayload::Membership(membership),
        ] {
            let entry = types::Entry { log_id: log_id(3, 2, 9), payload };
            let stored: StoredEntry = decode(&encode(&StoredEntry::from(&entry))).expect("valid");
            assert_eq!(types::Entry::try_from(stored).expect("valid"), entry);
        }
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        assert!(decode::<PeerEnvelope>(&[0xff, 0x00]).is_err());
        assert!(decode::<StoredEntry>(b"").is_err());
        let voterless = StoredNodes { configs: vec![vec![7]], addresses: BTreeMap::new() };
        assert!(types::Membership::try_from(voterless).is_err(), "a voter without an address");
    }
}
