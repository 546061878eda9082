//! What is asked of the monitors.

use holdfast_types::{DiskUuid, Epoch, Incarnation, OsdId, PgId, RequestId};
use minicbor::{Decode, Encode};

use crate::scrub::{ScrubKind, ScrubTarget};

#[cfg(doc)]
use super::{ConfigChange, MonError, MonReply};
use super::{OsdReport, Subject};

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
        /// Whether it splits its copies when a map has more placement groups in a pool. A build that does not know of it
        /// would leave objects where nobody looks for them: pools are split when all OSDs have said that they can.
        #[n(4)]
        can_split: Option<bool>,
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
    /// Forgets an OSD that is down and out. [`MonError::Unsafe`] while any placement group may need what is on its disk.
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
    /// Ends the hold-off of a flapping OSD: it may boot again at once.
    #[n(28)]
    OsdRelease(#[n(0)] OsdId),
    /// Where the levels of fullness begin, in thousandths; what is `None` stays. They must rise.
    #[n(29)]
    FullRatios {
        /// Where the warning starts.
        #[n(0)]
        near_full: Option<u32>,
        /// Where no copies are moved to an OSD any more.
        #[n(1)]
        backfill_full: Option<u32>,
        /// Where writes stop.
        #[n(2)]
        full: Option<u32>,
        /// Where all stops but what frees space.
        #[n(3)]
        failsafe: Option<u32>,
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

    /// Takes a fence away: the sessions that it names may be used again. A fence of a later run stays, and with it that of
    /// the earlier ones. Answers [`MonReply::Done`], or [`MonError::NotFound`] when there is no such entry.
    #[n(31)]
    BlocklistRemove {
        /// The client.
        #[n(0)]
        client: holdfast_types::ClientId,
        /// Of the entry.
        #[n(1)]
        incarnation: Incarnation,
    },

    /// Declares the disk of an OSD that is down as lost for good, and forgets it: what only it has is given up, and nobody
    /// waits for it any more. Acknowledged writes may be undone by that.
    #[n(32)]
    OsdLost {
        /// Which.
        #[n(0)]
        osd: OsdId,
        /// Its name once more, such as `osd.3`.
        #[n(1)]
        confirm: String,
    },

    /// Changes a pool; what is `None` stays. Data moves by itself. Answers [`MonReply::Done`].
    #[n(33)]
    PoolSet {
        /// Its name.
        #[n(0)]
        name: String,
        /// Copies.
        #[n(1)]
        size: Option<u32>,
        /// Fewest copies to serve with. Left out while `size` falls below it, it becomes a majority of that.
        #[n(2)]
        min_size: Option<u32>,
        /// What no two copies share.
        #[n(3)]
        failure_domain: Option<String>,
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
    /// All that is known of one placement group. Answers [`MonReply::PgDetail`].
    #[n(68)]
    PgQuery(#[n(0)] PgId),
    /// Why something is not as it should be. Answers [`MonReply::Explanation`].
    #[n(69)]
    Explain(#[n(0)] Subject),
    /// Answers [`MonReply::Balancer`].
    #[n(70)]
    BalancerStatus,
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
    /// The acting set of the interval that wishes it; with another one it is of the past.
    #[n(2)]
    pub seen: Option<Vec<OsdId>>,
}

/// Asks for every map after `after`, for as long as the stream lives.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Subscribe {
    /// The epoch that the asker has; zero: none.
    #[n(0)]
    pub after: Epoch,
}
