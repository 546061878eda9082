//! What the monitors answer.

use holdfast_types::{Epoch, OsdId, PoolId};
use minicbor::{Decode, Encode};
use serde::Serialize;

#[cfg(doc)]
use super::MonCommand;
use super::{
    BalancerReport, DfReport, Explanation, OsdDfRow, OsdTreeNode, PgDetail, PgRow, PoolRow, Secret, StatusReport,
};

/// What the monitors answer.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum MonReply {
    /// Committed; the map that shows it.
    #[n(0)]
    Done {
        /// Epoch.
        #[n(0)]
        epoch: Epoch,
    },
    /// Not done.
    #[n(1)]
    Failed(#[n(0)] MonError),
    /// Of [`MonCommand::OsdRegister`].
    #[n(2)]
    OsdId(#[n(0)] OsdId),
    /// Of [`MonCommand::PoolCreate`].
    #[n(3)]
    Pool {
        /// Its id.
        #[n(0)]
        id: PoolId,
        /// The map that has it.
        #[n(1)]
        epoch: Epoch,
    },
    /// Of [`MonCommand::KeyNew`] and [`MonCommand::KeyLookup`].
    #[n(4)]
    Key(#[n(0)] KeyInfo),
    /// Of [`MonCommand::KeyList`].
    #[n(5)]
    Keys(#[n(0)] Vec<KeyInfo>),
    /// Of [`MonCommand::ConfigDump`].
    #[n(6)]
    Config(#[n(0)] std::collections::BTreeMap<String, String>),
    /// Of [`MonCommand::ConfigLog`].
    #[n(7)]
    ConfigHistory(#[n(0)] Vec<ConfigChange>),
    /// Of [`MonCommand::Status`].
    #[n(8)]
    Status(#[n(0)] Box<StatusReport>),
    /// Of [`MonCommand::OsdTree`].
    #[n(9)]
    OsdTree(#[n(0)] Vec<OsdTreeNode>),
    /// Of [`MonCommand::OsdDf`].
    #[n(10)]
    OsdDf(#[n(0)] Vec<OsdDfRow>),
    /// Of [`MonCommand::Df`].
    #[n(11)]
    Df(#[n(0)] DfReport),
    /// Of [`MonCommand::PoolList`].
    #[n(12)]
    Pools(#[n(0)] Vec<PoolRow>),
    /// Of [`MonCommand::PgList`].
    #[n(13)]
    Pgs(#[n(0)] Vec<PgRow>),
    /// Of [`MonCommand::GetMaps`] and [`MonCommand::GetFullMap`].
    #[n(14)]
    Maps(#[n(0)] MapUpdate),
    /// Of [`MonCommand::PgQuery`].
    #[n(15)]
    PgDetail(#[n(0)] Box<PgDetail>),
    /// Of [`MonCommand::Explain`].
    #[n(16)]
    Explanation(#[n(0)] Explanation),
    /// Of [`MonCommand::BalancerStatus`].
    #[n(17)]
    Balancer(#[n(0)] BalancerReport),
}

/// Maps for a holder that is behind: either the increments that follow its epoch, in order, or one full map.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct MapUpdate {
    /// `holdfast_map::ClusterMap::encode_full`.
    #[n(0)]
    pub full: Option<minicbor::bytes::ByteVec>,
    /// `holdfast_map::Increment::encode`, each following the one before.
    #[n(1)]
    pub increments: Vec<minicbor::bytes::ByteVec>,
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum MonError {
    /// Ask this monitor instead; `None`: there is no leader at present, ask again soon.
    #[n(0)]
    #[error("this monitor does not lead")]
    NotLeader {
        /// `host:port`.
        #[n(0)]
        leader: Option<String>,
    },
    /// There is no such thing.
    #[n(1)]
    #[error("no such {what}: {name}")]
    NotFound {
        /// Kind of thing.
        #[n(0)]
        what: String,
        /// Which.
        #[n(1)]
        name: String,
    },
    /// It is there already, and differs.
    #[n(2)]
    #[error("{what} {name} exists")]
    Exists {
        /// Kind of thing.
        #[n(0)]
        what: String,
        /// Which.
        #[n(1)]
        name: String,
    },
    /// The arguments make no sense.
    #[n(3)]
    #[error("{reason}")]
    Invalid {
        /// What, why, what next.
        #[n(0)]
        reason: String,
    },
    /// It would put data or service at risk.
    #[n(4)]
    #[error("refused: {reason}")]
    Unsafe {
        /// What, why, what next.
        #[n(0)]
        reason: String,
    },
    /// A report of an earlier run or of an OSD that the map shows otherwise.
    #[n(5)]
    #[error("stale: {reason}")]
    Stale {
        /// Why.
        #[n(0)]
        reason: String,
    },
    /// No quorum, or it did not commit in time. The command may still take effect.
    #[n(6)]
    #[error("the monitors have no quorum")]
    Unavailable,
}

/// A key pair.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct KeyInfo {
    /// Name for people.
    #[n(0)]
    pub name: String,
    /// Access key.
    #[n(1)]
    pub access_key: String,
    /// Secret key; absent in listings.
    #[n(2)]
    pub secret_key: Option<Secret>,
}

/// One change of the options.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct ConfigChange {
    /// From 1, without gaps.
    #[n(0)]
    pub version: u64,
    /// Unix time in milliseconds at the leader.
    #[n(1)]
    pub at_unix_ms: u64,
    /// Which option.
    #[n(2)]
    pub name: String,
    /// What it was.
    #[n(3)]
    pub old: Option<String>,
    /// What it is now.
    #[n(4)]
    pub new: Option<String>,
}
