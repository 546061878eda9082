//! Between the monitors and everyone else: commands, reports, map subscription, and what `status` and its kin answer.
//!
//! Carried over gRPC (`net::mon_api`) as CBOR in an envelope whose first byte is the version. Report types derive
//! `serde::Serialize`: their JSON is what `holdfast … -o json` prints, and its field names are stable.

use holdfast_map::ScrubKind;
use holdfast_types::{DiskUuid, Epoch, Incarnation, LogVersion, MonId, OsdId, PgId, PoolId, RequestId};
use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::scrub::{PgScrub, ScrubStatus, ScrubTarget};

/// A command or a question. A resend carries the same id and is applied at most once.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct MonRequest {
    /// Who asks, and which of its requests this is.
    #[n(0)]
    pub id: RequestId,
    /// What.
    #[n(1)]
    pub command: MonCommand,
}

/// How an OSD was found not to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum FailureKind {
    /// No answer to heartbeats for this long.
    #[n(0)]
    Silent {
        /// Milliseconds.
        #[n(0)]
        for_ms: u64,
    },
    /// Connections are refused: its process has ended. The monitor confirms by a connection of its own.
    #[n(1)]
    Refused,
}

/// A secret that must not be printed: its `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Secret(#[n(0)] pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A step of a CRUSH location: type and bucket name, such as `host`, `node-7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct LocationStep {
    /// CRUSH type.
    #[n(0)]
    pub kind: String,
    /// CRUSH bucket.
    #[n(1)]
    pub name: String,
}

/// What may be asked of the monitors.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum MonCommand {
    /// A disk wants an OSD id, or its own again. Answers [`MonReply::OsdId`].
    #[n(0)]
    OsdRegister {
        /// The disk. A known disk gets its id back.
        #[n(0)]
        disk: DiskUuid,
        /// Where it stands, from host upwards.
        #[n(1)]
        location: Vec<LocationStep>,
        /// Device class, such as `ssd`.
        #[n(2)]
        class: Option<String>,
        /// Its CRUSH weight comes from this (1 TiB is 1.0).
        #[n(3)]
        capacity_bytes: u64,
        /// The id that a new disk would like, if it is free.
        #[n(4)]
        wanted: Option<OsdId>,
        /// Whether its store is yet to be made. [`MonError::Exists`] when this disk has served already: a store that
        /// was made anew is a new disk, under a new uuid.
        #[n(5)]
        blank: Option<bool>,
    },
    /// A process serves an OSD from now on.
    #[n(1)]
    OsdBoot {
        /// Which OSD.
        #[n(0)]
        osd: OsdId,
        /// Its disk.
        #[n(1)]
        disk: DiskUuid,
        /// This run.
        #[n(2)]
        incarnation: Incarnation,
        /// Where it listens, `host:port`.
        #[n(3)]
        address: String,
    },
    /// An OSD stops on purpose: mark it down at once.
    #[n(2)]
    OsdStopping {
        /// Which OSD.
        #[n(0)]
        osd: OsdId,
        /// This run.
        #[n(1)]
        incarnation: Incarnation,
    },
    /// A peer does not answer.
    #[n(3)]
    OsdFailure {
        /// Who says so.
        #[n(0)]
        reporter: OsdId,
        /// About whom.
        #[n(1)]
        target: OsdId,
        /// Which run of it.
        #[n(2)]
        incarnation: Incarnation,
        /// How it was found.
        #[n(3)]
        kind: FailureKind,
    },
    /// A reported peer answers again: forget the report.
    #[n(4)]
    OsdAlive {
        /// Who says so.
        #[n(0)]
        reporter: OsdId,
        /// About whom.
        #[n(1)]
        target: OsdId,
    },
    /// A primary is about to go active.
    #[n(5)]
    UpThru {
        /// Which OSD.
        #[n(0)]
        osd: OsdId,
        /// Its run.
        #[n(1)]
        incarnation: Incarnation,
        /// `up_thru` must reach this epoch.
        #[n(2)]
        at_least: Epoch,
    },
    /// A primary wants another acting set for now; an empty set ends the wish.
    #[n(6)]
    PgTemp {
        /// Which OSD asks.
        #[n(0)]
        osd: OsdId,
        /// Its run.
        #[n(1)]
        incarnation: Incarnation,
        /// The wishes.
        #[n(2)]
        wishes: Vec<PgTempWish>,
    },
    /// What an OSD holds; kept by the leader in memory only.
    #[n(7)]
    Report(#[n(0)] OsdReport),
    /// A gateway or other service is there; renew within the lease. Answers [`MonReply::Done`].
    #[n(8)]
    ServiceRegister {
        /// Unique name, such as `s3.host-1`.
        #[n(0)]
        name: String,
        /// Such as `s3`.
        #[n(1)]
        kind: String,
        /// `host:port`.
        #[n(2)]
        address: String,
        /// This run.
        #[n(3)]
        incarnation: Incarnation,
    },

    /// Makes a replicated pool. Answers [`MonReply::Pool`]. The same name with the same parameters answers the pool
    /// that is there.
    #[n(20)]
    PoolCreate {
        /// Unique name.
        #[n(0)]
        name: String,
        /// Copies; `None`: 3, or as many as the cluster's failure domains allow, at least 1.
        #[n(1)]
        size: Option<u32>,
        /// Fewest copies to serve with; `None`: a majority of `size`.
        #[n(2)]
        min_size: Option<u32>,
        /// What it is for.
        #[n(3)]
        application: String,
        /// CRUSH type that no two copies share; `None`: `host` when there are enough hosts, else `osd`.
        #[n(4)]
        failure_domain: Option<String>,
        /// Expected part of the cluster's data in percent; decides the number of placement groups.
        #[n(5)]
        share_percent: Option<u32>,
    },
    /// Deletes a pool and all in it. `confirm` must repeat the name.
    #[n(21)]
    PoolDelete {
        /// The pool.
        #[n(0)]
        name: String,
        /// The name once more.
        #[n(1)]
        confirm: String,
    },
    /// Marks an OSD out: placement moves its data elsewhere.
    #[n(22)]
    OsdOut(#[n(0)] OsdId),
    /// Marks an OSD in.
    #[n(23)]
    OsdIn(#[n(0)] OsdId),
    /// Marks an OSD down; one that lives comes back.
    #[n(24)]
    OsdDown(#[n(0)] OsdId),
    /// Sets an OSD's reweight, 16.16 fixed point.
    #[n(25)]
    OsdReweight {
        /// Which OSD.
        #[n(0)]
        osd: OsdId,
        /// 0 to `0x10000`.
        #[n(1)]
        weight: u32,
    },
    /// Forgets an OSD that is down and out and holds nothing.
    #[n(26)]
    OsdRemove(#[n(0)] OsdId),
    /// Fences a session.
    #[n(27)]
    BlocklistAdd {
        /// The client.
        #[n(0)]
        client: holdfast_types::ClientId,
        /// All its runs up to this one.
        #[n(1)]
        incarnation: Incarnation,
    },
    /// Has placement groups scrubbed. Asking again for what is still to be done changes nothing; a more thorough wish
    /// takes the place of a lesser one. Answers [`MonReply::Done`] with the map that has the wishes.
    #[n(30)]
    Scrub {
        /// Which.
        #[n(0)]
        target: ScrubTarget,
        /// How.
        #[n(1)]
        kind: ScrubKind,
    },

    /// Makes an S3 user's key pair; what is `None` is generated. Answers [`MonReply::Key`].
    #[n(40)]
    KeyNew {
        /// Name for people; unique.
        #[n(0)]
        name: String,
        /// Access key.
        #[n(1)]
        access_key: Option<String>,
        /// Secret key.
        #[n(2)]
        secret_key: Option<Secret>,
    },
    /// Deletes a key by name or access key.
    #[n(41)]
    KeyRemove {
        /// Name or access key.
        #[n(0)]
        name: String,
    },
    /// All keys without their secrets. Answers [`MonReply::Keys`].
    #[n(42)]
    KeyList,
    /// One key with its secret, for gateways. Answers [`MonReply::Key`] or [`MonError::NotFound`].
    #[n(43)]
    KeyLookup {
        /// The access key of a request.
        #[n(0)]
        access_key: String,
    },
    /// Sets an option.
    #[n(50)]
    ConfigSet {
        /// Which.
        #[n(0)]
        name: String,
        /// To what; `None` removes it.
        #[n(1)]
        value: Option<String>,
    },
    /// All options that are set. Answers [`MonReply::Config`].
    #[n(51)]
    ConfigDump,
    /// All changes of options, newest last. Answers [`MonReply::ConfigHistory`].
    #[n(52)]
    ConfigLog,
    /// Sets all options as they were after change `version`.
    #[n(53)]
    ConfigRollback {
        /// A [`ConfigChange::version`].
        #[n(0)]
        version: u64,
    },

    /// Answers [`MonReply::Status`].
    #[n(60)]
    Status,
    /// Answers [`MonReply::OsdTree`].
    #[n(61)]
    OsdTree,
    /// Answers [`MonReply::OsdDf`].
    #[n(62)]
    OsdDf,
    /// Answers [`MonReply::Df`].
    #[n(63)]
    Df,
    /// Answers [`MonReply::Pools`].
    #[n(64)]
    PoolList,
    /// Answers [`MonReply::Pgs`].
    #[n(65)]
    PgList,
    /// The increments after `after`, as many as are kept and fit, or the newest full map when they are not kept.
    /// Answers [`MonReply::Maps`].
    #[n(66)]
    GetMaps {
        /// The epoch that the asker has.
        #[n(0)]
        after: Epoch,
    },
    /// The full map of exactly this epoch, if it is still kept. Answers [`MonReply::Maps`].
    #[n(67)]
    GetFullMap {
        /// Which.
        #[n(0)]
        epoch: Epoch,
    },
}

/// A primary's wish for another acting set.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct PgTempWish {
    /// For which placement group.
    #[n(0)]
    pub pg: PgId,
    /// The acting set, primary first; empty: as placement says.
    #[n(1)]
    pub acting: Vec<OsdId>,
}

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

/// Asks for every map after `after`, for as long as the stream lives.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Subscribe {
    /// The epoch that the asker has; zero: none.
    #[n(0)]
    pub after: Epoch,
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

/// What a placement group is doing. Several can hold at once; `clean` only alone with `active`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct PgState {
    /// Serves reads and writes.
    #[n(0)]
    pub active: bool,
    /// Every object has been counted on every OSD of the up set, and acting is up.
    #[n(1)]
    pub clean: bool,
    /// Agreeing on the log.
    #[n(2)]
    pub peering: bool,
    /// Fewer copies than the pool asks for, of some objects at least.
    #[n(3)]
    pub degraded: bool,
    /// Fewer live members than the pool asks for.
    #[n(4)]
    pub undersized: bool,
    /// Copying objects by the log.
    #[n(5)]
    pub recovering: bool,
    /// Copying by scan.
    #[n(6)]
    pub backfilling: bool,
    /// Cannot peer until an OSD named in the row's `blocked_by` comes back.
    #[n(7)]
    pub down: bool,
    /// Too few complete copies to serve.
    #[n(8)]
    pub incomplete: bool,
    /// Up and acting sets differ.
    #[n(9)]
    pub remapped: bool,
    /// Copies of some objects differ, and it could not be told which are right, or a person is to decide.
    #[n(10)]
    #[cbor(default)]
    pub inconsistent: bool,
}

/// What a primary says of a placement group.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PgReport {
    /// Which.
    #[n(0)]
    pub pg: PgId,
    /// The primary's map when it reported.
    #[n(1)]
    pub epoch: Epoch,
    /// First epoch of the interval it speaks of.
    #[n(2)]
    pub interval_start: Epoch,
    /// What it is doing.
    #[n(3)]
    pub state: PgState,
    /// Up set.
    #[n(4)]
    pub up: Vec<OsdId>,
    /// Acting set.
    #[n(5)]
    pub acting: Vec<OsdId>,
    /// Objects in the placement group.
    #[n(6)]
    pub objects: u64,
    /// Their bytes, once.
    #[n(7)]
    pub bytes: u64,
    /// Copies of objects that should exist and do not.
    #[n(8)]
    pub copies_missing: u64,
    /// Objects of which no live OSD has the newest version.
    #[n(9)]
    pub objects_unfound: u64,
    /// Head of the log.
    #[n(10)]
    pub last_update: LogVersion,
    /// Maps before this one are no longer needed for this placement group.
    #[n(11)]
    pub last_epoch_clean: Epoch,
    /// OSDs that must come back before it can go on.
    #[n(12)]
    pub blocked_by: Vec<OsdId>,
    /// Its scrubs; `None` before the primary was told the time.
    #[n(13)]
    pub scrub: Option<PgScrub>,
}

/// Space of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct StoreUsage {
    /// Capacity in bytes.
    #[n(0)]
    pub total_bytes: u64,
    /// In use, in terms of the capacity: all of it when writes are refused for want of room. Garbage that is not yet
    /// cleaned does not count.
    #[n(1)]
    pub used_bytes: u64,
    /// Payload that is referred to.
    #[n(2)]
    pub live_bytes: u64,
}

/// What an OSD tells the monitors now and then, and at once when a state changed.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct OsdReport {
    /// Who.
    #[n(0)]
    pub osd: OsdId,
    /// Its run.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Its map.
    #[n(2)]
    pub epoch: Epoch,
    /// Its space.
    #[n(3)]
    pub usage: StoreUsage,
    /// The placement groups of which it is primary and whose report changed (all of them at times).
    #[n(4)]
    pub pgs: Vec<PgReport>,
    /// Blocks whose checksum did not match since boot.
    #[n(5)]
    pub checksum_errors: u64,
    /// Of these, repaired from a peer.
    #[n(6)]
    pub repaired: u64,
    /// Copies of placement groups that could not be used any more and were given up since boot: they are filled anew.
    #[n(7)]
    pub copies_lost: Option<u64>,
}

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to do.
    #[n(0)]
    Ok,
    /// Redundancy or comfort is reduced.
    #[n(1)]
    Warning,
    /// Data or service is unavailable or at risk.
    #[n(2)]
    Error,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct HealthCheck {
    /// Stable name in upper snake case, such as `OSD_DOWN`.
    #[n(0)]
    pub code: String,
    /// How bad.
    #[n(1)]
    pub severity: Severity,
    /// One line.
    #[n(2)]
    pub summary: String,
    /// One line for each thing concerned; bounded.
    #[n(3)]
    pub detail: Vec<String>,
    /// What it means for the user.
    #[n(4)]
    pub impact: String,
    /// The next command or act.
    #[n(5)]
    pub fix: String,
}

/// The answer to `status`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct StatusReport {
    /// Cluster id.
    #[n(0)]
    pub cluster: String,
    /// Map.
    #[n(1)]
    pub epoch: Epoch,
    /// The worst severity of `checks`.
    #[n(2)]
    pub health: Severity,
    /// What is not as it should be.
    #[n(3)]
    pub checks: Vec<HealthCheck>,
    /// Monitors of the map.
    #[n(4)]
    pub mons: u32,
    /// Monitors that take part in the quorum now.
    #[n(5)]
    pub mons_in_quorum: Vec<MonId>,
    /// The leader.
    #[n(6)]
    pub leader: MonId,
    /// OSDs of the map.
    #[n(7)]
    pub osds: u32,
    /// Of these, up.
    #[n(8)]
    pub osds_up: u32,
    /// Of these, in.
    #[n(9)]
    pub osds_in: u32,
    /// Registered services.
    #[n(10)]
    pub services: Vec<String>,
    /// Pools.
    #[n(11)]
    pub pools: u32,
    /// Placement groups.
    #[n(12)]
    pub pgs: u32,
    /// Placement groups by state, such as `active+clean`: count. `unknown`: no report from the present primary.
    #[n(13)]
    pub pg_states: std::collections::BTreeMap<String, u32>,
    /// Objects.
    #[n(14)]
    pub objects: u64,
    /// Copies of objects that should exist and do not.
    #[n(15)]
    pub copies_missing: u64,
    /// Objects of which no live OSD has the newest version.
    #[n(16)]
    pub objects_unfound: u64,
    /// Space over all OSDs.
    #[n(17)]
    pub usage: StoreUsage,
    /// Scrubs; `None` from a monitor that does not count them.
    #[n(18)]
    pub scrub: Option<ScrubStatus>,
}

/// A line of `osd tree`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct OsdTreeNode {
    /// CRUSH id: OSDs ≥ 0, buckets < 0.
    #[n(0)]
    pub id: i32,
    /// Depth, for indentation.
    #[n(1)]
    pub depth: u32,
    /// Device class.
    #[n(2)]
    pub class: Option<String>,
    /// CRUSH weight, 1.0 is 1 TiB.
    #[n(3)]
    pub weight: f64,
    /// CRUSH type.
    #[n(4)]
    pub kind: String,
    /// Name.
    #[n(5)]
    pub name: String,
    /// `up`, `down`, or empty for buckets.
    #[n(6)]
    pub status: String,
    /// Reweight 0 to 1, of OSDs.
    #[n(7)]
    pub reweight: Option<f64>,
    /// Address, of OSDs.
    #[n(8)]
    pub address: Option<String>,
}

/// A line of `osd df`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct OsdDfRow {
    /// Which.
    #[n(0)]
    pub osd: OsdId,
    /// Device class.
    #[n(1)]
    pub class: Option<String>,
    /// Up.
    #[n(2)]
    pub up: bool,
    /// In.
    #[n(3)]
    pub in_cluster: bool,
    /// CRUSH weight.
    #[n(4)]
    pub weight: f64,
    /// Reweight.
    #[n(5)]
    pub reweight: f64,
    /// Space, as last reported by this run; `None`: no report.
    #[n(6)]
    pub usage: Option<StoreUsage>,
    /// Placement groups whose acting set has it.
    #[n(7)]
    pub pgs: u32,
}

/// The answer to `df`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct DfReport {
    /// Over all OSDs.
    #[n(0)]
    pub usage: StoreUsage,
    /// One line for each pool.
    #[n(1)]
    pub pools: Vec<DfPoolRow>,
}

/// A line of `df`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct DfPoolRow {
    /// Name.
    #[n(0)]
    pub name: String,
    /// Id.
    #[n(1)]
    pub id: PoolId,
    /// Objects.
    #[n(2)]
    pub objects: u64,
    /// User bytes, once.
    #[n(3)]
    pub stored_bytes: u64,
    /// What can still be written, by the fullest OSD.
    #[n(4)]
    pub available_bytes: u64,
}

/// A line of `pool ls`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct PoolRow {
    /// Id.
    #[n(0)]
    pub id: PoolId,
    /// Name.
    #[n(1)]
    pub name: String,
    /// Copies.
    #[n(2)]
    pub size: u32,
    /// Fewest copies to serve with.
    #[n(3)]
    pub min_size: u32,
    /// Placement groups, chosen by the cluster.
    #[n(4)]
    pub pg_num: u32,
    /// What it is for.
    #[n(5)]
    pub application: String,
    /// Failure domain of its rule.
    #[n(6)]
    pub failure_domain: String,
}

/// A line of `pg ls`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct PgRow {
    /// Which.
    #[n(0)]
    pub pg: PgId,
    /// Such as `active+clean`, or `unknown`.
    #[n(1)]
    pub state: String,
    /// Up set, of the map.
    #[n(2)]
    pub up: Vec<OsdId>,
    /// Acting set, of the map.
    #[n(3)]
    pub acting: Vec<OsdId>,
    /// Objects.
    #[n(4)]
    pub objects: u64,
    /// Bytes, once.
    #[n(5)]
    pub bytes: u64,
    /// Copies that should exist and do not.
    #[n(6)]
    pub copies_missing: u64,
    /// Objects of which no live OSD has the newest version.
    #[n(7)]
    pub objects_unfound: u64,
    /// Head of the log.
    #[n(8)]
    pub last_update: LogVersion,
    /// OSDs that must come back before it can go on.
    #[n(9)]
    pub blocked_by: Vec<OsdId>,
    /// Its scrubs, as last reported.
    #[n(10)]
    pub scrub: Option<PgScrub>,
}

impl PgState {
    /// The state as Ceph's users know it: words joined by `+`, such as `active+undersized+degraded`.
    #[must_use]
    pub fn describe(self) -> String {
        let words = [
            (self.active, "active"),
            (self.peering, "peering"),
            (self.down, "down"),
            (self.incomplete, "incomplete"),
            (self.clean, "clean"),
            (self.undersized, "undersized"),
            (self.degraded, "degraded"),
            (self.remapped, "remapped"),
            (self.recovering, "recovering"),
            (self.backfilling, "backfilling"),
            (self.inconsistent, "inconsistent"),
        ];
        let set: Vec<&str> = words.into_iter().filter_map(|(holds, word)| holds.then_some(word)).collect();
        if set.is_empty() { "unknown".to_owned() } else { set.join("+") }
    }
}
