//! What arrives over connections, sorted to the shards.

use std::sync::Arc;

use holdfast_net::{ConnectError, Connection, Handler, Message, Permit, Target};
use holdfast_types::{Epoch, Incarnation, OsdId};
use holdfast_wire::frame::{GoodbyeReason, PeerIdentity};
use holdfast_wire::mon::MapUpdate;
use holdfast_wire::peer::{Heartbeat, MapShare, PeerMessage};
use holdfast_wire::{Barrier, ClientRequest, Decoded, Kind, Payload, decode};
use minicbor::Decode;
use tokio::sync::mpsc::{Sender, UnboundedSender};
use tracing::warn;

use crate::barrier::BarrierWait;
use crate::leases::Leases;
use crate::shard::{ClientArrival, Event, Question, Shards, now};

/// Something that the failure detector must know at once.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sign {
    /// Connections to this run are refused: its process is gone.
    Refused { osd: OsdId, incarnation: Incarnation },
}

/// The handler of all connections of one run.
pub(crate) struct OsdHandler {
    pub(crate) shards: Shards,
    pub(crate) signs: UnboundedSender<Sign>,
    pub(crate) maps: Sender<MapUpdate>,
    pub(crate) leases: Arc<Leases>,
}

impl OsdHandler {
    /// Decodes, or closes the connection with a logged reason: a peer that sends what is no message is broken.
    fn decode<T: for<'b> Decode<'b, Payload>>(from: &Arc<Connection>, message: &Message) -> Option<T> {
        let decoded: Decoded<T> = decode(message.kind, &message.body, &message.payload());
        match decoded {
            Ok(value) => Some(value),
            Err(error) => {
                warn!(peer = %from.peer(), remote = %from.remote(), %error, "connection closed: malformed message");
                from.close(GoodbyeReason::BadFrame { detail: error.to_string() });
                None
            }
        }
    }

    /// Whether the session that the request names is that of its connection: fences and remembered answers are by session.
    fn is_of(from: &Arc<Connection>, request: &ClientRequest) -> bool {
        let same = **from.peer() == PeerIdentity::Client(request.id.client)
            && from.peer().incarnation() == request.id.incarnation;
        if !same {
            warn!(peer = %from.peer(), remote = %from.remote(), id = %request.id,
                "connection closed: a request in another session's name");
            from.close(GoodbyeReason::BadFrame { detail: "the request names another session".to_owned() });
        }
        same
    }

    /// The OSD on the other side; others may not send what only OSDs send.
    fn osd_of(from: &Arc<Connection>) -> Option<(OsdId, Incarnation)> {
        match **from.peer() {
            PeerIdentity::Osd(osd) => Some((osd, from.peer().incarnation())),
            PeerIdentity::Mon(_) | PeerIdentity::Client(_) => {
                warn!(peer = %from.peer(), remote = %from.remote(), "connection closed: only OSDs may send this");
                from.close(GoodbyeReason::BadFrame { detail: "not for this daemon".to_owned() });
                None
            }
        }
    }
}

impl Handler for OsdHandler {
    fn on_message(&self, from: &Arc<Connection>, message: Message, permit: Permit) {
        match Kind::from_number(message.kind) {
            Some(Kind::ClientRequest) => {
                let Some(request) = Self::decode::<ClientRequest>(from, &message) else { return };
                if !Self::is_of(from, &request) {
                    return;
                }
                let arrival =
                    ClientArrival { connection: from.clone(), request_id: message.request_id, request, permit };
                self.shards.send(arrival.request.pg, Event::Client(arrival));
            }
            Some(Kind::Barrier) => {
                let Some(barrier) = Self::decode::<Barrier>(from, &message) else { return };
                let (connection, request_id) = (from.clone(), message.request_id);
                let wait = BarrierWait::new(barrier.epoch, connection, request_id, permit, self.shards.count());
                self.shards.send_all(|| Event::Barrier(wait.clone()));
            }
            Some(Kind::Peer) => {
                let Some((osd, incarnation)) = Self::osd_of(from) else { return };
                let Some(peer) = Self::decode::<PeerMessage>(from, &message) else { return };
                self.shards.send(peer.pg, Event::Peer { from: osd, incarnation, message: peer, permit });
            }
            Some(Kind::Heartbeat) => {
                let Some(heartbeat) = Self::decode::<Heartbeat>(from, &message) else { return };
                if let Some((osd, incarnation)) = Self::osd_of(from) {
                    self.leases.grant(now(), osd, incarnation);
                }
                // It goes through all shards' threads: while one is stuck the daemon is silent, though the process lives.
                let (connection, request_id) = (from.clone(), message.request_id);
                self.shards.ask(0, Question { connection, request_id, heartbeat, permit, epoch: Epoch::ZERO });
            }
            Some(Kind::MapShare) => {
                if Self::osd_of(from).is_none() {
                    return;
                }
                let Some(share) = Self::decode::<MapShare>(from, &message) else { return };
                // A full queue means that maps are being taken already; the next message of the peer brings it again.
                let _ = self.maps.try_send(MapUpdate { full: share.full, increments: share.increments });
            }
            other => {
                warn!(peer = %from.peer(), remote = %from.remote(), kind = message.kind, ?other,
                    "connection closed: an OSD does not take this kind of message");
                from.close(GoodbyeReason::BadFrame { detail: "not for this daemon".to_owned() });
            }
        }
    }

    fn on_unreachable(&self, target: &Target, error: &ConnectError) {
        if let (true, Some(PeerIdentity::Osd(osd)), Some(incarnation)) =
            (error.is_refused(), target.identity, target.incarnation)
        {
            let _ = self.signs.send(Sign::Refused { osd, incarnation });
        }
    }
}
