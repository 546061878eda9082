//! This process on the network: who it is, what it may hold, whom it knows.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use holdfast_types::{ClusterId, Incarnation};
use holdfast_wire::frame::{GoodbyeReason, PeerIdentity};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::NetConfig;
use crate::connection::Connection;

/// What this process says of itself in each handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// Who it is.
    pub identity: PeerIdentity,
    /// Which run; must be larger than that of each earlier run of the same identity.
    pub incarnation: Incarnation,
    /// Feature bits offered.
    pub features: u64,
    /// Feature bits that a peer must offer.
    pub features_required: u64,
}

/// The shared part of all listeners, peers and connections of one identity.
pub struct Endpoint {
    local: LocalIdentity,
    config: NetConfig,
    known: Mutex<Known>,
    next_connection_id: AtomicU64,
    /// Accepted connections, those in their handshake included.
    pub(crate) slots: Arc<Semaphore>,
    /// Bytes of messages with handlers, over all connections of clients, and over all of daemons. They are apart because
    /// a client's request may hold its bytes until other daemons have answered.
    client_credit: Arc<Semaphore>,
    daemon_credit: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

#[derive(Default)]
struct Known {
    /// Of daemons only: clients are unbounded in number, and each draws its id anew.
    incarnations: BTreeMap<PeerIdentity, Incarnation>,
    connections: HashMap<u64, Weak<Connection>>,
}

impl Known {
    fn stale(&self, identity: PeerIdentity, incarnation: Incarnation) -> Option<Incarnation> {
        self.incarnations.get(&identity).copied().filter(|known| *known > incarnation)
    }
}

impl Endpoint {
    /// An endpoint that ends when `shutdown` is cancelled.
    #[must_use]
    pub fn new(local: LocalIdentity, config: NetConfig, shutdown: CancellationToken) -> Arc<Endpoint> {
        let permits = |bytes: usize| Arc::new(Semaphore::new(bytes.clamp(1, Semaphore::MAX_PERMITS)));
        Arc::new(Endpoint {
            local,
            slots: permits(config.connections_max),
            client_credit: permits(config.inbound_bytes_total_max),
            daemon_credit: permits(config.inbound_bytes_total_max),
            config,
            known: Mutex::new(Known::default()),
            next_connection_id: AtomicU64::new(1),
            tasks: TaskTracker::new(),
            shutdown: shutdown.child_token(),
        })
    }

    /// The credit that messages of this peer are charged to.
    pub(crate) fn credit_for(&self, peer: PeerIdentity) -> &Arc<Semaphore> {
        match peer {
            PeerIdentity::Client(_) => &self.client_credit,
            PeerIdentity::Osd(_) | PeerIdentity::Mon(_) => &self.daemon_credit,
        }
    }

    /// What it says of itself.
    #[must_use]
    pub fn local(&self) -> &LocalIdentity {
        &self.local
    }

    /// Its limits.
    #[must_use]
    pub fn config(&self) -> &NetConfig {
        &self.config
    }

    /// Says that `identity` now runs as `incarnation` (from a map, say): earlier runs are refused from here on, and
    /// their connections closed.
    pub fn learn_incarnation(&self, identity: PeerIdentity, incarnation: Incarnation) {
        let stale: Vec<Arc<Connection>> = {
            let mut known = self.known.lock();
            if matches!(identity, PeerIdentity::Client(_)) || known.stale(identity, incarnation).is_some() {
                return;
            }
            if known.incarnations.insert(identity, incarnation) == Some(incarnation) {
                return;
            }
            known
                .connections
                .values()
                .filter_map(Weak::upgrade)
                .filter(|connection| **connection.peer() == identity && connection.peer().incarnation() < incarnation)
                .collect()
        };
        for connection in stale {
            connection.close(GoodbyeReason::StaleIncarnation { known: incarnation });
        }
    }

    /// Ends all listeners, peers and connections, each with a goodbye after what it has queued, and waits for them.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        // A task takes at most the linger timeout and a short drain; a stuck one must not hold up the process.
        let _ = tokio::time::timeout(self.config.linger_timeout * 2, self.tasks.wait()).await;
    }

    /// Whether a peer with this identity and incarnation may be heard; remembers the incarnation.
    pub(crate) fn admit(&self, identity: PeerIdentity, incarnation: Incarnation) -> Result<(), GoodbyeReason> {
        if let Some(known) = self.known.lock().stale(identity, incarnation) {
            return Err(GoodbyeReason::StaleIncarnation { known });
        }
        self.learn_incarnation(identity, incarnation);
        Ok(())
    }

    pub(crate) fn next_connection_id(&self) -> u64 {
        self.next_connection_id.fetch_add(1, Ordering::Relaxed)
    }

    /// From here on the connection ends when a later incarnation of its peer becomes known; it may be known by now.
    pub(crate) fn register(&self, connection: &Arc<Connection>) {
        let stale = {
            let mut known = self.known.lock();
            known.connections.insert(connection.id(), Arc::downgrade(connection));
            known.stale(**connection.peer(), connection.peer().incarnation())
        };
        if let Some(known) = stale {
            connection.close(GoodbyeReason::StaleIncarnation { known });
        }
    }

    pub(crate) fn forget(&self, connection: &Connection) {
        self.known.lock().connections.remove(&connection.id());
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("local", &self.local).finish_non_exhaustive()
    }
}
