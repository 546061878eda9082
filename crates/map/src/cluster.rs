//! The map itself.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_crush::CrushMap;
use holdfast_types::{ClientId, ClusterId, DiskUuid, Epoch, Incarnation, MonId, OsdId, PgId, PoolId};
use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::space::{FullRatios, SpaceLevel};

/// The highest OSD id: placement tables are dense.
pub const OSD_ID_MAX: u32 = 65_535;
/// Most members of a temporary acting set.
pub const PG_TEMP_MEMBERS_MAX: usize = 32;
/// Most exchanges of members of one placement group: no pool keeps more copies.
pub const UPMAP_ITEMS_MAX: usize = 16;
/// Most fenced sessions. Each map holder keeps all of them.
pub const BLOCKLIST_MAX: usize = 100_000;
/// Most registered services.
pub const SERVICES_MAX: usize = 10_000;

/// All that every daemon and client must agree on, as of one epoch.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct ClusterMap {
    /// The cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// Number of this map.
    #[n(1)]
    pub epoch: Epoch,
    /// Where the monitors listen, as `host:port`.
    #[n(2)]
    pub mons: BTreeMap<MonId, String>,
    /// All OSDs that have an id, up or not.
    #[n(3)]
    pub osds: BTreeMap<OsdId, OsdInfo>,
    /// The hierarchy and the rules.
    #[n(4)]
    pub crush: CrushMap,
    /// All pools.
    #[n(5)]
    pub pools: BTreeMap<PoolId, Pool>,
    /// Acting sets that differ from the up set for now, because `up[0]` cannot serve yet.
    #[n(6)]
    pub pg_temp: BTreeMap<PgId, Vec<OsdId>>,
    /// Sessions that must not be served.
    #[n(7)]
    pub blocklist: BTreeSet<BlocklistEntry>,
    /// Cluster-wide conditions.
    #[n(8)]
    pub flags: ClusterFlags,
    /// Gateways and other services that registered, by name.
    #[n(9)]
    pub services: BTreeMap<String, ServiceInfo>,
    /// The id that the next pool gets; ids are never reused.
    #[n(10)]
    pub next_pool: PoolId,
    /// Every OSD id from this one on that is not in `osds` was never given; those below are never given again.
    #[n(11)]
    #[cbor(default)]
    pub next_osd: OsdId,
    /// Members that stand in the place of what CRUSH chose, so that all OSDs are equally full.
    #[n(12)]
    #[cbor(skip_if = "BTreeMap::is_empty")]
    pub upmap: BTreeMap<PgId, Vec<UpmapItem>>,
    /// How full the OSDs are that are nearly full or more, as of their last report.
    #[n(13)]
    #[cbor(skip_if = "BTreeMap::is_empty")]
    pub space: BTreeMap<OsdId, SpaceLevel>,
    /// Where the levels of `space` begin.
    #[n(14)]
    #[cbor(skip_if = "crate::space::is_default")]
    pub ratios: FullRatios,
    /// Pools that are placed as if they had only so many placement groups: what a split made lies with what it was split
    /// from until this has risen to `pg_num`.
    #[n(15)]
    #[cbor(skip_if = "BTreeMap::is_empty")]
    pub placed_as: BTreeMap<PoolId, u32>,
    /// Placement groups that people want scrubbed; each stays until its primary reports that it was done.
    #[n(20)]
    #[cbor(skip_if = "BTreeMap::is_empty")]
    pub scrub_wishes: BTreeMap<PgId, ScrubWish>,
}

/// How thoroughly copies are compared. Each kind does what those before it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubKind {
    /// Versions, sizes, attributes and rows.
    #[n(0)]
    Shallow,
    /// All bytes, too.
    #[n(1)]
    Deep,
    /// And whatever can be told to be wrong is repaired, however much it is.
    #[n(2)]
    Repair,
}

impl ScrubKind {
    /// Whether all bytes are read.
    #[must_use]
    pub fn is_deep(self) -> bool {
        self != ScrubKind::Shallow
    }
}

/// One scrub that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ScrubWish {
    /// What.
    #[n(0)]
    pub kind: ScrubKind,
    /// The map that brought the wish: its name. A scrub that began in an earlier map does not fulfil it.
    #[n(1)]
    pub epoch: Epoch,
}

/// One exchange of members of a placement group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct UpmapItem {
    /// Which CRUSH chose.
    #[n(0)]
    pub from: OsdId,
    /// Which stands in its place.
    #[n(1)]
    pub to: OsdId,
}

/// One OSD, as the monitors see it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct OsdInfo {
    /// The disk that owns the id: another disk cannot boot under it.
    #[n(0)]
    pub disk: DiskUuid,
    /// Its present run, or its last one while it is down.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Where it listens, as `host:port`.
    #[n(2)]
    pub address: String,
    /// Whether it serves.
    #[n(3)]
    pub up: bool,
    /// Whether placement gives it data.
    #[n(4)]
    pub in_cluster: bool,
    /// Reweight in 16.16 fixed point, `0x10000` = 1.0; placement sees 0 while the OSD is not `in_cluster`.
    #[n(5)]
    pub reweight: u32,
    /// Epoch of the map that last marked it up.
    #[n(6)]
    pub up_from: Epoch,
    /// Up to this epoch it may have gone active as a primary.
    #[n(7)]
    pub up_thru: Epoch,
    /// Epoch of the map that last marked it down; zero when it never was.
    #[n(8)]
    pub down_at: Epoch,
    /// Set when the process of `incarnation` is known to have ended (refused connection confirmed by the monitor), or has
    /// said that it stops, after which it reads nothing any more: it cannot serve a stale read.
    #[n(9)]
    pub dead_epoch: Epoch,
    /// Epoch of the map that gave the id to this disk, whose store was blank then: what was kept under the id in an
    /// earlier interval was not on it.
    #[n(10)]
    #[cbor(default)]
    pub formatted_at: Epoch,
}

/// How a pool keeps its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum PoolKind {
    /// Whole copies.
    #[n(0)]
    Replicated {
        /// Copies.
        #[n(0)]
        size: u32,
        /// Fewest live copies with which the pool serves.
        #[n(1)]
        min_size: u32,
    },
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pool {
    /// Its name; unique.
    #[n(0)]
    pub name: String,
    /// How it keeps objects.
    #[n(1)]
    pub kind: PoolKind,
    /// Placement groups; chosen by the cluster.
    #[n(2)]
    pub pg_num: u32,
    /// CRUSH rule.
    #[n(3)]
    pub rule: u32,
    /// Epoch of the map that created it.
    #[n(4)]
    pub created: Epoch,
    /// What it is for, such as `s3-index`; for people.
    #[n(5)]
    pub application: String,
}

impl Pool {
    /// Copies that placement asks for.
    #[must_use]
    pub fn size(&self) -> u32 {
        match self.kind {
            PoolKind::Replicated { size, .. } => size,
        }
    }

    /// Fewest live copies with which the pool serves.
    #[must_use]
    pub fn min_size(&self) -> u32 {
        match self.kind {
            PoolKind::Replicated { min_size, .. } => min_size,
        }
    }
}

/// A fenced session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct BlocklistEntry {
    /// The client.
    #[n(0)]
    pub client: ClientId,
    /// All runs of it up to this one.
    #[n(1)]
    pub incarnation: Incarnation,
}

/// Cluster-wide conditions that the data path obeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct ClusterFlags {
    /// Writes that need space wait or are refused; deletes go on.
    #[n(0)]
    pub full: bool,
    /// A warning only.
    #[n(1)]
    pub near_full: bool,
}

/// A registered service.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServiceInfo {
    /// Such as `s3`.
    #[n(0)]
    pub kind: String,
    /// Where it listens, as `host:port`.
    #[n(1)]
    pub address: String,
    /// Its process.
    #[n(2)]
    pub incarnation: Incarnation,
}

impl ClusterMap {
    /// The map before the first: no pools, no OSDs, the default hierarchy.
    #[must_use]
    pub fn empty(cluster: ClusterId) -> ClusterMap {
        ClusterMap {
            cluster,
            epoch: Epoch::ZERO,
            mons: BTreeMap::new(),
            osds: BTreeMap::new(),
            crush: CrushMap::new_default(),
            pools: BTreeMap::new(),
            pg_temp: BTreeMap::new(),
            blocklist: BTreeSet::new(),
            flags: ClusterFlags::default(),
            services: BTreeMap::new(),
            next_pool: PoolId(1),
            next_osd: OsdId(0),
            upmap: BTreeMap::new(),
            space: BTreeMap::new(),
            ratios: FullRatios::default(),
            placed_as: BTreeMap::new(),
            scrub_wishes: BTreeMap::new(),
        }
    }

    /// How full the OSD is, if that is worth a mention.
    #[must_use]
    pub fn space_level(&self, osd: OsdId) -> Option<SpaceLevel> {
        self.space.get(&osd).copied()
    }

    /// Whether the OSD is so full that no copies may be moved to it.
    #[must_use]
    pub fn takes_no_backfill(&self, osd: OsdId) -> bool {
        self.space_level(osd) >= Some(SpaceLevel::BackfillFull)
    }

    /// Whether the OSD has the disk that served under its id in an interval that began at `first`.
    #[must_use]
    pub fn has_disk_of(&self, osd: OsdId, first: Epoch) -> bool {
        // A disk serves in a map after the one that gave it its id.
        self.osds.get(&osd).is_some_and(|info| info.formatted_at < first)
    }

    /// Whether a pool of that id was deleted. One whose id was never given is unknown: such a map is not the map of the
    /// cluster that the question comes from.
    #[must_use]
    pub fn is_deleted(&self, pool: PoolId) -> bool {
        pool < self.next_pool && !self.pools.contains_key(&pool)
    }

    /// Whether the OSD serves, as of this map.
    #[must_use]
    pub fn is_up(&self, osd: OsdId) -> bool {
        self.osds.get(&osd).is_some_and(|info| info.up)
    }

    /// The pool of that name.
    #[must_use]
    pub fn pool_by_name(&self, name: &str) -> Option<(PoolId, &Pool)> {
        self.pools.iter().find(|(_, pool)| pool.name == name).map(|(id, pool)| (*id, pool))
    }

    /// Whether the session may not be served.
    #[must_use]
    pub fn is_blocklisted(&self, client: ClientId, incarnation: Incarnation) -> bool {
        self.blocklist
            .range(BlocklistEntry { client, incarnation }..)
            .next()
            .is_some_and(|entry| entry.client == client)
    }

    /// All placement groups of all pools, in order.
    pub fn pgs(&self) -> impl Iterator<Item = PgId> + '_ {
        self.pools.iter().flat_map(|(pool, info)| (0..info.pg_num).map(move |seed| PgId { pool: *pool, seed }))
    }
}
