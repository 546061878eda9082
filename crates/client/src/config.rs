//! What a client is made from.

use std::time::Duration;

use holdfast_net::NetConfig;
use holdfast_types::{ClientId, ClusterId, Incarnation};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Who a client is. Keyless: nothing proves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Its id.
    pub client: ClientId,
    /// This run of it.
    pub incarnation: Incarnation,
}

impl ClientIdentity {
    /// A new client, in its first run.
    #[must_use]
    pub fn random() -> ClientIdentity {
        // 63 bits: ids stay positive wherever they are shown or stored as signed numbers.
        let client = ClientId(SmallRng::from_os_rng().random::<u64>() >> 1);
        ClientIdentity { client, incarnation: Incarnation(1) }
    }
}

/// Where the cluster is, and what the client may use.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its monitors, `host:port`; others of the map are learnt.
    pub monitors: Vec<String>,
    /// Who the client is.
    pub identity: ClientIdentity,
    /// How long an op is tried, when its options name no other time. Detection and peering after a failure take
    /// seconds; this leaves room for several.
    pub op_timeout: Duration,
    /// How long a command to the monitors is tried.
    pub mon_timeout: Duration,
    /// Small ops in flight at one time (up to 16 KiB), and as many large ones. One placement group gets a quarter.
    pub ops_in_flight_max: usize,
    /// Bytes of large ops in flight at one time: what they carry, and what they may bring back. One placement group gets a
    /// quarter.
    pub bytes_in_flight_max: usize,
    /// Connections to each OSD; ops are spread over them by placement group. One carries 2 GB/s.
    pub connections_per_osd: usize,
    /// Limits of the connections.
    pub net: NetConfig,
}

impl ClientConfig {
    /// The usual limits, and a new identity.
    #[must_use]
    pub fn new(cluster: ClusterId, monitors: Vec<String>) -> ClientConfig {
        ClientConfig {
            cluster,
            monitors,
            identity: ClientIdentity::random(),
            op_timeout: Duration::from_secs(30),
            mon_timeout: Duration::from_secs(30),
            ops_in_flight_max: 1024,
            bytes_in_flight_max: 64 << 20,
            connections_per_osd: 1,
            net: NetConfig::default(),
        }
    }
}
