//! Connections to the other OSDs, as the newest map has them.
//!
//! Each up OSD is kept connected, so that the end of its process is noticed at once: its connections end, and new ones
//! are refused. Sending never waits: a placement group repeats what a peer has not acknowledged, so a message may be
//! dropped when the peer's queue is full or its connection is down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_map::ClusterMap;
use holdfast_net::{Connection, Endpoint, Handler, Message, Peer, PeerMode, Prepared, Target};
use holdfast_types::{Incarnation, OsdId};
use holdfast_wire::frame::PeerIdentity;
use holdfast_wire::peer::{Heartbeat, HeartbeatReply};
use holdfast_wire::{Kind, Payload, decode, encode};
use minicbor::Encode;
use parking_lot::RwLock;
use tracing::{debug, error};

struct Entry {
    incarnation: Incarnation,
    address: String,
    peer: Peer,
    /// For heartbeats alone: on the other connection they would wait behind all that a busy peer has not taken yet.
    pulse: Peer,
}

/// The table of peers.
pub(crate) struct Peers {
    me: OsdId,
    endpoint: Arc<Endpoint>,
    table: RwLock<BTreeMap<OsdId, Entry>>,
    /// Messages that wait for a connection.
    early: Arc<AtomicUsize>,
    runtime: tokio::runtime::Handle,
}

/// A message to one peer or several, encoded once.
pub(crate) struct Outbound {
    kind: Kind,
    message: Message,
    frame: Prepared,
}

impl Outbound {
    /// `None`: it is larger than any message may be, which its maker has to prevent.
    pub(crate) fn new<T: Encode<Payload>>(kind: Kind, message: &T) -> Option<Outbound> {
        let encoded = encode(message);
        let message = Message::new(kind as u16, encoded.body, encoded.payload);
        match message.clone().prepare() {
            Ok(frame) => Some(Outbound { kind, message, frame }),
            Err(error) => {
                error!(?kind, %error, "message dropped");
                None
            }
        }
    }
}

/// Connections that hold messages back until they are flushed: what one turn of a thread has to say goes out together.
#[derive(Default)]
pub(crate) struct Held(Vec<Arc<Connection>>);

impl Held {
    /// This one holds something.
    pub(crate) fn add(&mut self, connection: &Arc<Connection>) {
        // A handful at most: the peers of a few placement groups and the clients of one turn.
        if !self.0.iter().any(|held| Arc::ptr_eq(held, connection)) {
            self.0.push(connection.clone());
        }
    }

    /// Writes what they hold.
    pub(crate) fn flush(&mut self) {
        for connection in self.0.drain(..) {
            connection.flush();
        }
    }
}

/// Messages that may wait for connections: a query for each placement group of a large daemon.
const EARLY_MESSAGES_MAX: usize = 4096;
/// How long a message waits for its connection.
const EARLY_WAIT: Duration = Duration::from_secs(1);

impl Peers {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(me: OsdId, endpoint: Arc<Endpoint>) -> Peers {
        let runtime = tokio::runtime::Handle::current();
        Peers { me, endpoint, table: RwLock::default(), early: Arc::default(), runtime }
    }

    /// Connects to the OSDs that are up in this map, gives up those that are not, and remembers their runs.
    pub(crate) fn follow(&self, map: &ClusterMap, handler: &Arc<dyn Handler>) {
        let mut table = self.table.write();
        table.retain(|osd, entry| {
            map.osds
                .get(osd)
                .is_some_and(|info| info.up && info.incarnation == entry.incarnation && info.address == entry.address)
        });
        for (osd, info) in &map.osds {
            if *osd == self.me {
                continue;
            }
            self.endpoint.learn_incarnation(PeerIdentity::Osd(*osd), info.incarnation);
            if !info.up || table.contains_key(osd) {
                continue;
            }
            let target = Target {
                address: info.address.clone(),
                identity: Some(PeerIdentity::Osd(*osd)),
                incarnation: Some(info.incarnation),
            };
            let peer = Peer::new(&self.endpoint, target.clone(), PeerMode::KeepConnected, handler.clone());
            let pulse = Peer::new(&self.endpoint, target, PeerMode::OnDemand, handler.clone());
            table.insert(*osd, Entry { incarnation: info.incarnation, address: info.address.clone(), peer, pulse });
        }
    }

    /// The peers and their runs.
    pub(crate) fn watched(&self) -> BTreeMap<OsdId, Incarnation> {
        self.table.read().iter().map(|(osd, entry)| (*osd, entry.incarnation)).collect()
    }

    /// Sends one way, best effort: what a peer's queue does not take is dropped, what comes while the connection is being
    /// made waits for it, up to [`EARLY_MESSAGES_MAX`]. Such messages may overtake each other; receivers expect it.
    ///
    /// `held`: where messages wait for a [`Connection::flush`], which is the caller's to do.
    pub(crate) fn send(&self, to: OsdId, outbound: &Outbound, held: &mut Held) {
        let Outbound { kind, message, frame } = outbound;
        let Some(peer) = self.table.read().get(&to).map(|entry| entry.peer.clone()) else {
            debug!(%to, ?kind, "the peer is not up: message dropped");
            return;
        };
        if let Some(connection) = peer.connected() {
            match connection.hold_send(frame.clone()) {
                Ok(()) => held.add(&connection),
                Err(error) => debug!(%to, ?kind, %error, "message dropped"),
            }
            return;
        }
        if self.early.fetch_add(1, Ordering::Relaxed) >= EARLY_MESSAGES_MAX {
            self.early.fetch_sub(1, Ordering::Relaxed);
            debug!(%to, ?kind, "too much waits for connections: message dropped");
            return;
        }
        let (early, kind, message) = (self.early.clone(), *kind, message.clone());
        self.runtime.spawn(async move {
            // Both ends of a new interval connect at once; a peer that takes longer hears the repetition.
            let sent = tokio::time::timeout(EARLY_WAIT, peer.send(message)).await;
            if !matches!(sent, Ok(Ok(()))) {
                debug!(%to, ?kind, "no connection in time: message dropped");
            }
            early.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Asks for a sign of life, over a connection for nothing else, and waits for it; `None` when none came in time.
    pub(crate) async fn heartbeat(&self, to: OsdId, heartbeat: &Heartbeat, wait: Duration) -> Option<HeartbeatReply> {
        let peer = self.table.read().get(&to).map(|entry| entry.pulse.clone())?;
        let encoded = encode(heartbeat);
        let message = Message::new(Kind::Heartbeat as u16, encoded.body, encoded.payload);
        let answer = peer.request(message, Instant::now() + wait).await.ok()?;
        decode(answer.kind, &answer.body, &answer.payload()).ok()
    }
}
