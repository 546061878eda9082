//! From one map to the next.

use std::collections::BTreeMap;

use holdfast_crush::CrushMap;
use holdfast_types::{ClusterId, Epoch, MonId, OsdId, PgId, PoolId};
use minicbor::{Decode, Encode};

use crate::cluster::{BlocklistEntry, ClusterFlags, ClusterMap, OsdInfo, Pool, ScrubWish, ServiceInfo, UpmapItem};
use crate::encoding::{MapDecodeError, seal, unseal};
use crate::space::{FullRatios, SpaceLevel};

const MAGIC: [u8; 4] = *b"HFMI";

/// The changes that make map `epoch` of map `epoch - 1`. In each table `Some` sets an entry and `None` removes it.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Increment {
    /// The cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// The map that this makes.
    #[n(1)]
    pub epoch: Epoch,
    /// [`ClusterMap::checksum`] of the map that this makes.
    #[n(2)]
    pub checksum: u32,
    /// Monitors.
    #[n(3)]
    pub mons: BTreeMap<MonId, Option<String>>,
    /// OSDs.
    #[n(4)]
    pub osds: BTreeMap<OsdId, Option<OsdInfo>>,
    /// The whole hierarchy, when it changed.
    #[n(5)]
    pub crush: Option<CrushMap>,
    /// Pools.
    #[n(6)]
    pub pools: BTreeMap<PoolId, Option<Pool>>,
    /// Temporary acting sets.
    #[n(7)]
    pub pg_temp: BTreeMap<PgId, Option<Vec<OsdId>>>,
    /// Fenced sessions: `true` adds, `false` lifts.
    #[n(8)]
    pub blocklist: BTreeMap<BlocklistEntry, bool>,
    /// Flags, when they changed.
    #[n(9)]
    pub flags: Option<ClusterFlags>,
    /// Services.
    #[n(10)]
    pub services: BTreeMap<String, Option<ServiceInfo>>,
    /// The next pool id, when it changed.
    #[n(11)]
    pub next_pool: Option<PoolId>,
    /// The next OSD id, when it changed.
    #[n(12)]
    pub next_osd: Option<OsdId>,
    /// Exchanges of members.
    #[n(13)]
    #[cbor(skip_if = "BTreeMap::is_empty")]
    pub upmap: BTreeMap<PgId, Option<Vec<UpmapItem>>>,
    /// OSDs that are nearly full or more.
    #[n(14)]
    #[cbor(skip_if = "BTreeMap::is_empty")]
    pub space: BTreeMap<OsdId, Option<SpaceLevel>>,
    /// Where the levels of `space` begin, when that changed.
    #[n(15)]
    pub ratios: Option<FullRatios>,
    /// Pools that are placed as if they had fewer placement groups.
    #[n(16)]
    #[cbor(skip_if = "BTreeMap::is_empty")]
    pub placed_as: BTreeMap<PoolId, Option<u32>>,
    /// Scrubs that were asked for.
    #[n(20)]
    #[cbor(skip_if = "BTreeMap::is_empty")]
    pub scrub_wishes: BTreeMap<PgId, Option<ScrubWish>>,
}

/// An increment that does not fit the map it was applied to. The holder then asks for the full map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// It belongs to another cluster.
    #[error("the increment is of cluster {theirs}, the map of cluster {ours}")]
    WrongCluster {
        /// Of the map.
        ours: ClusterId,
        /// Of the increment.
        theirs: ClusterId,
    },
    /// It does not follow the map.
    #[error("increment {increment} does not follow map {map}")]
    Gap {
        /// Of the map.
        map: Epoch,
        /// Of the increment.
        increment: Epoch,
    },
    /// The result differs from what the monitors hold.
    #[error("map {epoch} has checksum {computed:#010x} here and {expected:#010x} at the monitors")]
    Diverged {
        /// Of the result.
        epoch: Epoch,
        /// At the monitors.
        expected: u32,
        /// Here.
        computed: u32,
    },
    /// The result is no valid map.
    #[error("map {epoch} is not valid: {detail}")]
    Invalid {
        /// Of the result.
        epoch: Epoch,
        /// What is wrong.
        detail: String,
    },
}

fn set_each<K: Ord + Clone, V: Clone>(table: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
    for (key, change) in changes {
        match change {
            Some(value) => table.insert(key.clone(), value.clone()),
            None => table.remove(key),
        };
    }
}

fn changes_of<K: Ord + Clone, V: Clone + PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), None));
    let set = new.iter().filter(|(key, value)| old.get(*key) != Some(*value));
    gone.chain(set.map(|(key, value)| (key.clone(), Some(value.clone())))).collect()
}

impl Increment {
    /// What leads from `old` to `new`, which must be its successor.
    ///
    /// # Panics
    /// When `new` does not follow `old`: the monitors' state machine would be broken.
    #[must_use]
    pub fn between(old: &ClusterMap, new: &ClusterMap) -> Increment {
        assert_eq!(new.epoch, old.epoch.next(), "an increment leads to the next epoch");
        let lifted = old.blocklist.difference(&new.blocklist).map(|entry| (*entry, false));
        let added = new.blocklist.difference(&old.blocklist).map(|entry| (*entry, true));
        Increment {
            cluster: new.cluster,
            epoch: new.epoch,
            checksum: new.checksum(),
            mons: changes_of(&old.mons, &new.mons),
            osds: changes_of(&old.osds, &new.osds),
            crush: (old.crush != new.crush).then(|| new.crush.clone()),
            pools: changes_of(&old.pools, &new.pools),
            pg_temp: changes_of(&old.pg_temp, &new.pg_temp),
            blocklist: lifted.chain(added).collect(),
            flags: (old.flags != new.flags).then_some(new.flags),
            services: changes_of(&old.services, &new.services),
            next_pool: (old.next_pool != new.next_pool).then_some(new.next_pool),
            next_osd: (old.next_osd != new.next_osd).then_some(new.next_osd),
            upmap: changes_of(&old.upmap, &new.upmap),
            space: changes_of(&old.space, &new.space),
            placed_as: changes_of(&old.placed_as, &new.placed_as),
            ratios: (old.ratios != new.ratios).then_some(new.ratios),
            scrub_wishes: changes_of(&old.scrub_wishes, &new.scrub_wishes),
        }
    }

    /// The bytes of the increment, in the envelope of `docs/formats/map.md`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        seal(MAGIC, self)
    }

    /// Reads what [`Increment::encode`] wrote.
    ///
    /// # Errors
    /// [`MapDecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Increment, MapDecodeError> {
        unseal(MAGIC, bytes)
    }
}

impl ClusterMap {
    /// The map that follows this one.
    ///
    /// # Errors
    /// [`ApplyError`]; `self` is unchanged in any case.
    pub fn apply(&self, increment: &Increment) -> Result<ClusterMap, ApplyError> {
        if increment.cluster != self.cluster {
            return Err(ApplyError::WrongCluster { ours: self.cluster, theirs: increment.cluster });
        }
        if increment.epoch != self.epoch.next() {
            return Err(ApplyError::Gap { map: self.epoch, increment: increment.epoch });
        }
        let mut next = self.clone();
        next.epoch = increment.epoch;
        set_each(&mut next.mons, &increment.mons);
        set_each(&mut next.osds, &increment.osds);
        set_each(&mut next.pools, &increment.pools);
        set_each(&mut next.pg_temp, &increment.pg_temp);
        set_each(&mut next.services, &increment.services);
        set_each(&mut next.upmap, &increment.upmap);
        set_each(&mut next.space, &increment.space);
        set_each(&mut next.placed_as, &increment.placed_as);
        set_each(&mut next.scrub_wishes, &increment.scrub_wishes);
        for (entry, added) in &increment.blocklist {
            if *added {
                next.blocklist.insert(*entry);
            } else {
                next.blocklist.remove(entry);
            }
        }
        if let Some(crush) = &increment.crush {
            next.crush = crush.clone();
        }
        if let Some(flags) = increment.flags {
            next.flags = flags;
        }
        if let Some(pool) = increment.next_pool {
            next.next_pool = pool;
        }
        if let Some(osd) = increment.next_osd {
            next.next_osd = osd;
        }
        if let Some(ratios) = increment.ratios {
            next.ratios = ratios;
        }
        let computed = next.checksum();
        if computed != increment.checksum {
            return Err(ApplyError::Diverged { epoch: next.epoch, expected: increment.checksum, computed });
        }
        next.validate().map_err(|detail| ApplyError::Invalid { epoch: next.epoch, detail })?;
        Ok(next)
    }
}
