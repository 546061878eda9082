//! Messages cut short, and requests in another session's name, on the OSD's port: the connection closes with a reason, the
//! daemon goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::*;
use holdfast_net::{
    CloseReason, Endpoint, GoodbyeReason, LocalIdentity, Message, NetConfig, NetError, NoHandler, Peer, PeerMode,
    Target,
};
use holdfast_types::{ClientId, Epoch, Incarnation, PgId, PoolId, RequestId};
use holdfast_wire::frame::PeerIdentity;
use holdfast_wire::{ClientRequest, Kind, ObjectOp, encode};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_cut_short_in_a_whole_frame_closes_its_connection_with_a_reason() {
    let cluster = Cluster::start(1).await;
    let request = ClientRequest {
        id: RequestId { client: ClientId(9), incarnation: Incarnation(1), tid: 1 },
        epoch: Epoch(1),
        pg: PgId { pool: PoolId(1), seed: 0 },
        object: name(1),
        ops: vec![ObjectOp::Stat, ObjectOp::Read { offset: 0, length: 100 }],
        lowest_outstanding_tid: 1,
        frees_space: None,
    };
    let whole = encode(&request);
    let local = LocalIdentity {
        cluster: CLUSTER,
        identity: PeerIdentity::Client(ClientId(9)),
        incarnation: Incarnation(1),
        features: 0,
        features_required: 0,
    };
    let endpoint = Endpoint::new(local, NetConfig::default(), CancellationToken::new());
    let target = || Target { address: cluster.osds[&0].address().to_string(), identity: None, incarnation: None };
    let ask = |kind: Kind, body: Vec<u8>| {
        let peer = Peer::new(&endpoint, target(), PeerMode::OnDemand, Arc::new(NoHandler));
        async move {
            let message = Message::new(kind as u16, body.into(), Vec::new());
            peer.request(message, Instant::now() + Duration::from_secs(60)).await
        }
    };
    for length in 0..whole.body.len() {
        // What only OSDs may send is refused from a client before it is looked at.
        for kind in [Kind::ClientRequest, Kind::Peer, Kind::MapShare] {
            let cut = whole.body[..length].to_vec();
            match ask(kind, cut).await {
                Err(NetError::Closed(reason)) => assert!(
                    matches!(&*reason, CloseReason::Remote(GoodbyeReason::BadFrame { .. })),
                    "{kind:?} of {length} bytes: {reason}"
                ),
                other => panic!("{kind:?} of {length} bytes: {other:?}"),
            }
        }
    }
    assert!(ask(Kind::ClientRequest, whole.body.to_vec()).await.is_ok(), "a whole one is answered");
    endpoint.shutdown().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_another_sessions_name_is_not_taken_and_closes_its_connection() {
    let cluster = Cluster::start(1).await;
    let local = LocalIdentity {
        cluster: CLUSTER,
        identity: PeerIdentity::Client(ClientId(9)),
        incarnation: Incarnation(3),
        features: 0,
        features_required: 0,
    };
    let endpoint = Endpoint::new(local, NetConfig::default(), CancellationToken::new());
    let ask = |client: u64, run: u64| {
        let request = ClientRequest {
            id: RequestId { client: ClientId(client), incarnation: Incarnation(run), tid: 1 },
            epoch: Epoch(1),
            pg: PgId { pool: PoolId(1), seed: 0 },
            object: name(1),
            ops: vec![ObjectOp::Stat],
            lowest_outstanding_tid: 1,
            frees_space: None,
        };
        let target = Target { address: cluster.osds[&0].address().to_string(), identity: None, incarnation: None };
        let peer = Peer::new(&endpoint, target, PeerMode::OnDemand, Arc::new(NoHandler));
        async move {
            let message = Message::new(Kind::ClientRequest as u16, encode(&request).body, Vec::new());
            peer.request(message, Instant::now() + Duration::from_secs(60)).await
        }
    };
    for (client, run) in [(10, 3), (9, 2), (9, 4)] {
        match ask(client, run).await {
            Err(NetError::Closed(reason)) => assert!(
                matches!(&*reason, CloseReason::Remote(GoodbyeReason::BadFrame { detail }) if detail.contains("session")),
                "client {client}, run {run}: {reason}"
            ),
            other => panic!("client {client}, run {run}: {other:?}"),
        }
    }
    assert!(ask(9, 3).await.is_ok(), "its own session is answered");
    endpoint.shutdown().await;
    cluster.stop().await;
}
