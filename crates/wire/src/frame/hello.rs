//! The first and the last frame of a connection.

use std::fmt;

use holdfast_types::{ClientId, ClusterId, Incarnation, MonId, OsdId};
use minicbor::{Decode, Encode};

/// Who speaks on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum PeerIdentity {
    /// A storage daemon.
    #[n(0)]
    Osd(#[n(0)] OsdId),
    /// A monitor.
    #[n(1)]
    Mon(#[n(0)] MonId),
    /// A client process.
    #[n(2)]
    Client(#[n(0)] ClientId),
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerIdentity::Osd(id) => id.fmt(f),
            PeerIdentity::Mon(id) => id.fmt(f),
            PeerIdentity::Client(id) => id.fmt(f),
        }
    }
}

/// The first frame of each direction; the connecting side speaks first.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The oldest protocol version that the sender speaks.
    #[n(0)]
    pub version_min: u16,
    /// The newest protocol version that the sender speaks; the connection uses the smaller of the two newest.
    #[n(1)]
    pub version_max: u16,
    /// The sender's cluster.
    #[n(2)]
    pub cluster: ClusterId,
    /// The sender.
    #[n(3)]
    pub sender: PeerIdentity,
    /// The sender's run; grows with each of its boots (`docs/invariants.md`, F3).
    #[n(4)]
    pub incarnation: Incarnation,
    /// Whom the sender means to speak to, where it knows.
    #[n(5)]
    pub expected: Option<PeerIdentity>,
    /// Which run of it, where it knows.
    #[n(6)]
    pub expected_incarnation: Option<Incarnation>,
    /// Feature bits that the sender offers.
    #[n(7)]
    pub features: u64,
    /// Feature bits without which the sender cannot work.
    #[n(8)]
    pub features_required: u64,
}

/// The last frame of a direction: why the sender closes, or never opened.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Goodbye {
    /// Why.
    #[n(0)]
    pub reason: GoodbyeReason,
}

/// Why a side closes a connection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum GoodbyeReason {
    /// The daemon ends or has no more use for the connection: no fault.
    #[n(0)]
    #[error("shut down")]
    Shutdown,
    /// Nothing was said for too long.
    #[n(1)]
    #[error("idle for too long")]
    Idle,
    /// All connection slots are taken.
    #[n(2)]
    #[error("too many connections: the limit is {limit}")]
    TooManyConnections {
        /// How many there are.
        #[n(0)]
        limit: u32,
    },
    /// The first frame is no [`Hello`], or came too late.
    #[n(3)]
    #[error("no valid hello")]
    NoHello,
    /// The peers speak no common version.
    #[n(4)]
    #[error("no common protocol version: this side speaks {min} to {max}")]
    Version {
        /// The sender's oldest.
        #[n(0)]
        min: u16,
        /// The sender's newest.
        #[n(1)]
        max: u16,
    },
    /// The peers belong to different clusters.
    #[n(5)]
    #[error("this side belongs to cluster {ours}")]
    WrongCluster {
        /// The sender's cluster.
        #[n(0)]
        ours: ClusterId,
    },
    /// The sender of this is not whom the peer expected.
    #[n(6)]
    #[error("this side is {ours}")]
    WrongPeer {
        /// Who it is.
        #[n(0)]
        ours: PeerIdentity,
    },
    /// The sender of this is another run than the peer expected.
    #[n(7)]
    #[error("this side is incarnation {ours}")]
    WrongIncarnation {
        /// Which it is.
        #[n(0)]
        ours: Incarnation,
    },
    /// A later run of the same peer is known: this one must not be heard any more.
    #[n(8)]
    #[error("a later incarnation {known} of the peer is known")]
    StaleIncarnation {
        /// The later one.
        #[n(0)]
        known: Incarnation,
    },
    /// The peer lacks features.
    #[n(9)]
    #[error("required features {missing:#x} are missing")]
    MissingFeatures {
        /// The bits that it lacks.
        #[n(0)]
        missing: u64,
    },
    /// The transport is not allowed between these addresses.
    #[n(10)]
    #[error("plaintext is not allowed between hosts")]
    PlaintextRefused,
    /// A frame could not be accepted; the stream is out of step.
    #[n(11)]
    #[error("bad frame: {detail}")]
    BadFrame {
        /// What was wrong with it.
        #[n(0)]
        detail: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_and_goodbye_survive_a_round_trip_and_unknown_fields() {
        let hello = Hello {
            version_min: 1,
            version_max: 3,
            cluster: ClusterId([7; 16]),
            sender: PeerIdentity::Osd(OsdId(3)),
            incarnation: Incarnation(9),
            expected: Some(PeerIdentity::Client(ClientId(5))),
            expected_incarnation: None,
            features: 5,
            features_required: 1,
        };
        let mut bytes = minicbor::to_vec(&hello).expect("encoding to memory cannot fail");
        assert_eq!(minicbor::decode::<Hello>(&bytes).expect("valid"), hello);
        // One more field, as a later version would add it.
        assert_eq!(bytes[0] & 0xe0, 0xa0, "a CBOR map of definite length");
        bytes[0] += 1;
        bytes.extend_from_slice(&[0x18, 99, 0x01]);
        assert_eq!(minicbor::decode::<Hello>(&bytes).expect("unknown fields are skipped"), hello);

        let goodbye = Goodbye { reason: GoodbyeReason::WrongPeer { ours: PeerIdentity::Mon(MonId(2)) } };
        let bytes = minicbor::to_vec(&goodbye).expect("encoding to memory cannot fail");
        assert_eq!(minicbor::decode::<Goodbye>(&bytes).expect("valid"), goodbye);
    }
}
