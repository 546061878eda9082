//! Carries the library's messages over a [`Transport`] and answers those that peers send.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_types::{ClusterId, MonId};
use minicbor::bytes::ByteVec;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, RaftNetworkFactory, RaftNetworkV2};

use super::encoding::{
    PeerEnvelope, PeerReply, PeerRequest, StoredMeta, StoredSnapshot, decode, encode, transfer_request, vote_response,
};
use super::types::{StateSnapshot, TypeConfig, Vote};
use super::{Transport, TransportError};
use crate::host::Host;

/// No answer to an append within this long means that the peer is slow or gone. The library's own limit (one heartbeat
/// interval) is shorter than one slow sync of a busy disk, and a second copy of the same append helps nobody.
const APPEND_TIMEOUT: Duration = Duration::from_millis(1000);

/// A snapshot is a few MiB; more than this long means that the peer is gone.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes a [`Peer`] for each monitor.
pub(super) struct Peers<T> {
    pub(super) cluster: ClusterId,
    pub(super) transport: Arc<T>,
}

impl<T: Transport, H: Host> RaftNetworkFactory<TypeConfig<H>> for Peers<T> {
    type Network = Peer<T>;

    async fn new_client(&mut self, target: u64, _: &BasicNode) -> Peer<T> {
        Peer::new(self.cluster, MonId(target), Arc::clone(&self.transport))
    }
}

/// The way to one monitor.
pub(super) struct Peer<T> {
    cluster: ClusterId,
    target: u64,
    transport: Arc<T>,
}

/// Why a peer gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("{0}")]
    Unreachable(TransportError),
    #[error("{0}")]
    Failed(String),
}

impl<H: Host> From<CallError> for RPCError<TypeConfig<H>> {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(error) => RPCError::Unreachable(Unreachable::new(&error)),
            CallError::Failed(why) => RPCError::Network(NetworkError::from_string(why)),
        }
    }
}

impl<H: Host> From<CallError> for StreamingError<TypeConfig<H>> {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(error) => StreamingError::Unreachable(Unreachable::new(&error)),
            CallError::Failed(why) => StreamingError::Network(NetworkError::from_string(why)),
        }
    }
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> CallError {
        CallError::Failed(error.to_string())
    }
}

impl<T: Transport> Peer<T> {
    pub(super) fn new(cluster: ClusterId, target: MonId, transport: Arc<T>) -> Peer<T> {
        Peer { cluster, target: target.0, transport }
    }

    pub(super) async fn call(&self, request: PeerRequest, timeout: Duration) -> Result<PeerReply, CallError> {
        let envelope = encode(&PeerEnvelope { cluster: self.cluster, to: self.target, request });
        let reply = self.transport.call(MonId(self.target), envelope, timeout).await.map_err(CallError::Unreachable)?;
        match decode(&reply)? {
            PeerReply::Failed(why) => Err(CallError::Failed(why)),
            reply => Ok(reply),
        }
    }
}

fn unexpected() -> CallError {
    CallError::Failed("the peer answered another question".to_owned())
}

impl<T: Transport, H: Host> RaftNetworkV2<TypeConfig<H>> for Peer<T> {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig<H>>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<H>>, RPCError<TypeConfig<H>>> {
        match self.call(PeerRequest::Append((&rpc).into()), APPEND_TIMEOUT).await? {
            PeerReply::Append(reply) => Ok(reply.into()),
            _ => Err(unexpected().into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<H>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<H>>, RPCError<TypeConfig<H>>> {
        match self.call(PeerRequest::Vote((&rpc).into()), option.hard_ttl()).await? {
            PeerReply::Vote(vote, granted, last) => Ok(vote_response(vote, granted, last)),
            _ => Err(unexpected().into()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<H>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<H>>, RPCError<TypeConfig<H>>> {
        match self.call(PeerRequest::PreVote((&rpc).into()), option.hard_ttl()).await? {
            PeerReply::Vote(vote, granted, last) => Ok(vote_response(vote, granted, last)),
            _ => Err(unexpected().into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: StateSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<H>>, StreamingError<TypeConfig<H>>> {
        let stored = StoredSnapshot { meta: StoredMeta::from(&snapshot.meta), state: ByteVec::from(snapshot.snapshot) };
        let sent = self.call(PeerRequest::Snapshot((&vote).into(), stored), SNAPSHOT_TIMEOUT);
        let reply = tokio::select! {
            biased;
            reply = sent => reply?,
            closed = cancel => return Err(closed.into()),
        };
        match reply {
            PeerReply::Snapshot(vote) => Ok(SnapshotResponse::new(vote.into())),
            _ => Err(unexpected().into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig<H>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<H>>, RPCError<TypeConfig<H>>> {
        match self.call(transfer_request(&request), option.hard_ttl()).await? {
            PeerReply::Transfer(reply) => Ok(reply.into()),
            _ => Err(unexpected().into()),
        }
    }
}
