//! What a CRUSH map is made of: plain values, as they are stored, sent and printed.
//!
//! Nothing here is checked. [`CrushMap`](crate::CrushMap) is the checked whole; its doors are
//! [`CrushMap::from_parts`](crate::CrushMap::from_parts), parsing and decoding.

use std::collections::BTreeMap;
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use minicbor::{Decode, Encode};

/// A weight of 1 in 16.16 fixed point. By convention 1 is one TiB of a device, or "wholly in" of a reweight.
pub const WEIGHT_ONE: u32 = 0x1_0000;

/// The number of a rule. Pools name their rule by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct RuleId(#[n(0)] pub u32);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RuleId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<RuleId, ParseIntError> {
        text.parse().map(RuleId)
    }
}

/// An item of the hierarchy, as Ceph numbers them: devices from 0 up (the OSD id), buckets from -1 down.
pub type ItemId = i32;
/// The number of a level of the hierarchy; 0 is the devices' level.
pub type TypeId = u16;
/// The place of a device class in [`Parts::classes`].
pub type ClassId = u8;

/// The type of devices.
pub const DEVICE_TYPE: TypeId = 0;

/// The tunables that a map can choose. All others are fixed at Ceph's "jewel" values, which are today's optimal ones:
/// no local retries, descend once, vary r, stable.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Tunables {
    /// Retries of a descent after the first attempt.
    #[n(0)]
    pub choose_total_tries: u32,
    /// Kept for the text form; it only concerns bucket algorithms that are not supported.
    #[n(1)]
    pub straw_calc_version: u32,
    /// Kept for the text form: a bit for each bucket algorithm.
    #[n(2)]
    pub allowed_bucket_algs: u32,
}

impl Default for Tunables {
    fn default() -> Tunables {
        Tunables { choose_total_tries: 50, straw_calc_version: 1, allowed_bucket_algs: 54 }
    }
}

/// A leaf of the hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Device {
    /// `osd.N` by convention.
    #[n(0)]
    pub name: String,
    /// The device class, such as `hdd` or `ssd`.
    #[n(1)]
    pub class: Option<ClassId>,
}

/// How a bucket picks one of its items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum BucketAlg {
    /// In proportion to the weights; a changed weight moves the least possible.
    #[n(0)]
    Straw2,
    /// By a permutation, with equal weights; a changed size moves nearly everything.
    #[n(1)]
    Uniform,
}

impl BucketAlg {
    /// The name in the text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            BucketAlg::Straw2 => "straw2",
            BucketAlg::Uniform => "uniform",
        }
    }
}

/// A child of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Item {
    /// Which device or bucket.
    #[n(0)]
    pub id: ItemId,
    /// Its weight within the bucket, 16.16 fixed point.
    #[n(1)]
    pub weight: u32,
}

/// An inner node of the hierarchy: a host, a rack, a root.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Bucket {
    /// Unique among buckets and devices.
    #[n(0)]
    pub name: String,
    /// Its level.
    #[n(1)]
    pub type_id: TypeId,
    /// How it picks.
    #[n(2)]
    pub alg: BucketAlg,
    /// Its children, in their order, which matters to uniform buckets and to ties.
    #[n(3)]
    pub items: Vec<Item>,
    /// The ids of its shadows: the copies of this bucket that hold only the devices of one class. An id is part of what
    /// is hashed, so it must never change.
    #[n(4)]
    pub shadow_ids: BTreeMap<ClassId, ItemId>,
}

impl Bucket {
    /// The sum of its items' weights.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.items.iter().map(|item| u64::from(item.weight)).sum()
    }
}

/// Which kind of pool a rule is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum RuleKind {
    /// Copies; positions carry no meaning.
    #[n(1)]
    Replicated,
    /// Shards; each position is one shard.
    #[n(3)]
    Erasure,
}

impl RuleKind {
    /// The name in the text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            RuleKind::Replicated => "replicated",
            RuleKind::Erasure => "erasure",
        }
    }
}

/// A placement rule.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Rule {
    /// Unique among rules.
    #[n(0)]
    pub name: String,
    /// What it is for.
    #[n(1)]
    pub kind: RuleKind,
    /// The smallest pool size it accepts; later Ceph releases dropped it, so it is only kept for the text form.
    #[n(2)]
    pub min_size: Option<u32>,
    /// The largest; as `min_size`.
    #[n(3)]
    pub max_size: Option<u32>,
    /// What it does, in order.
    #[n(4)]
    pub steps: Vec<Step>,
}

/// What a choose step does with a position that it cannot fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ChooseMode {
    /// Closes the gap: for copies.
    #[n(0)]
    Firstn,
    /// Leaves a hole, so that the others keep their positions: for shards.
    #[n(1)]
    Indep,
}

impl ChooseMode {
    /// The name in the text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ChooseMode::Firstn => "firstn",
            ChooseMode::Indep => "indep",
        }
    }
}

/// A tunable that a rule may restate, but only at the value that the map has anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum FixedTunable {
    /// `set_choose_local_tries 0`
    #[n(0)]
    ChooseLocalTries,
    /// `set_choose_local_fallback_tries 0`
    #[n(1)]
    ChooseLocalFallbackTries,
    /// `set_chooseleaf_vary_r 1`
    #[n(2)]
    ChooseleafVaryR,
    /// `set_chooseleaf_stable 1`
    #[n(3)]
    ChooseleafStable,
}

impl FixedTunable {
    /// All of them.
    pub const ALL: [FixedTunable; 4] = [
        FixedTunable::ChooseLocalTries,
        FixedTunable::ChooseLocalFallbackTries,
        FixedTunable::ChooseleafVaryR,
        FixedTunable::ChooseleafStable,
    ];

    /// The step's name in the text form.
    #[must_use]
    pub const fn step_name(self) -> &'static str {
        match self {
            FixedTunable::ChooseLocalTries => "set_choose_local_tries",
            FixedTunable::ChooseLocalFallbackTries => "set_choose_local_fallback_tries",
            FixedTunable::ChooseleafVaryR => "set_chooseleaf_vary_r",
            FixedTunable::ChooseleafStable => "set_chooseleaf_stable",
        }
    }

    /// The one value that is supported.
    #[must_use]
    pub const fn value(self) -> u32 {
        match self {
            FixedTunable::ChooseLocalTries | FixedTunable::ChooseLocalFallbackTries => 0,
            FixedTunable::ChooseleafVaryR | FixedTunable::ChooseleafStable => 1,
        }
    }
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Step {
    /// Starts from one item, or from the shadow of it that holds one class.
    #[n(0)]
    Take {
        /// Where to start.
        #[n(0)]
        item: ItemId,
        /// Only devices of this class.
        #[n(1)]
        class: Option<ClassId>,
    },
    /// Replaces each item by some of what lies beneath it.
    #[n(1)]
    Choose {
        /// What to do with gaps.
        #[n(0)]
        mode: ChooseMode,
        /// How many; 0 is "as many as asked for", a negative number that many fewer.
        #[n(1)]
        count: i32,
        /// The level to choose at.
        #[n(2)]
        type_id: TypeId,
        /// Whether to go on to one device beneath each chosen item.
        #[n(3)]
        leaf: bool,
    },
    /// Appends what is chosen to the result.
    #[n(2)]
    Emit,
    /// Total attempts of later choose steps; 0 changes nothing.
    #[n(3)]
    SetChooseTries(#[n(0)] u32),
    /// Attempts of later chooseleaf steps beneath each item; 0 changes nothing.
    #[n(4)]
    SetChooseleafTries(#[n(0)] u32),
    /// Says again what the map's tunables say.
    #[n(5)]
    Restate(#[n(0)] FixedTunable),
}

/// A whole map, unchecked. It is what [`CrushMap`](crate::CrushMap) stores and sends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Parts {
    /// The map-wide settings.
    #[n(0)]
    pub tunables: Tunables,
    /// The names of the levels.
    #[n(1)]
    pub types: BTreeMap<TypeId, String>,
    /// The device classes, in the order they came up.
    #[n(2)]
    pub classes: Vec<String>,
    /// The leaves, by OSD id.
    #[n(3)]
    pub devices: BTreeMap<u32, Device>,
    /// The inner nodes, by id (negative), shadows not included.
    #[n(4)]
    pub buckets: BTreeMap<ItemId, Bucket>,
    /// The rules.
    #[n(5)]
    pub rules: BTreeMap<RuleId, Rule>,
}

impl Parts {
    /// The id of the device or bucket of this name.
    #[must_use]
    pub fn item_named(&self, name: &str) -> Option<ItemId> {
        let bucket = self.buckets.iter().find(|(_, bucket)| bucket.name == name).map(|(id, _)| *id);
        bucket.or_else(|| {
            let id = self.devices.iter().find(|(_, device)| device.name == name).map(|(id, _)| *id)?;
            ItemId::try_from(id).ok()
        })
    }

    /// The number of the type of this name.
    #[must_use]
    pub fn type_named(&self, name: &str) -> Option<TypeId> {
        self.types.iter().find(|(_, type_name)| *type_name == name).map(|(id, _)| *id)
    }

    /// The number of the class of this name.
    #[must_use]
    pub fn class_named(&self, name: &str) -> Option<ClassId> {
        self.classes.iter().position(|class| class == name).and_then(|index| ClassId::try_from(index).ok())
    }
}
