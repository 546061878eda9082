//! The checks that every map passes before it maps anything, however it came in.
//!
//! They are what makes mapping total: no cycle and a bounded depth, so a descent ends; every item known, so a lookup
//! succeeds; weights below 2^32 per bucket; every rule ends in devices.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Bucket, BucketAlg, DEVICE_TYPE, ItemId, Parts, Rule, RuleId, Step, TypeId};

/// The highest OSD id. A million devices is a hundred times the largest cluster known, and bounds tables by OSD id.
pub const DEVICE_ID_MAX: u32 = (1 << 20) - 1;
/// The lowest bucket id, shadows included; bounds the tables by bucket id to 4 MiB.
pub const BUCKET_ID_MIN: ItemId = -(1 << 20);
/// The most device classes. Each multiplies the buckets.
pub const CLASS_COUNT_MAX: usize = 32;
/// The most levels from a root to its devices; Ceph names 11.
pub const DEPTH_MAX: u32 = 32;
/// The most rules, as in Ceph.
pub const RULE_COUNT_MAX: usize = 256;
/// The most steps of a rule.
pub const RULE_STEPS_MAX: usize = 64;
/// The largest count of a choose step, above or below zero: more replicas than anybody has.
pub const CHOOSE_COUNT_MAX: i32 = 4096;
/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Why a map is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMap {
    /// A name with other characters than Ceph allows, empty, or too long.
    #[error("{name:?} is not a name: 1 to {NAME_BYTES_MAX} of the characters A-Z a-z 0-9 - _ .")]
    BadName {
        /// The name.
        name: String,
    },
    /// Two buckets or devices, types, classes or rules of one name.
    #[error("two {what}s are named {name:?}")]
    DuplicateName {
        /// What they are.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// More of something than the limit.
    #[error("{count} {what}, but at most {limit} are supported")]
    TooMany {
        /// What.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// No type 0.
    #[error("type 0, the type of devices, is not named")]
    NoDeviceType,
    /// Nothing would ever be chosen.
    #[error("tunable choose_total_tries is {value}, but must be 1 to 2147483646")]
    BadTotalTries {
        /// What it is.
        value: u32,
    },
    /// An OSD id beyond the limit.
    #[error("device {id} is beyond the highest id, {DEVICE_ID_MAX}")]
    DeviceIdOutOfRange {
        /// The id.
        id: u32,
    },
    /// A bucket or shadow id that is not negative or too low.
    #[error("bucket id {id} is not within {BUCKET_ID_MIN} to -1")]
    BucketIdOutOfRange {
        /// The bucket that has it, or whose shadow has it.
        bucket: ItemId,
        /// The id.
        id: ItemId,
    },
    /// All ids are taken.
    #[error("no bucket id is left above {BUCKET_ID_MIN}")]
    BucketIdsExhausted,
    /// A shadow id that something else has.
    #[error("id {id} is given twice")]
    DuplicateId {
        /// A bucket that it was given to.
        bucket: ItemId,
        /// The id.
        id: ItemId,
    },
    /// A type that the map does not name, or the devices' type.
    #[error("bucket {name:?} has type {type_id}, which is not a type of buckets here")]
    BadBucketType {
        /// The bucket.
        bucket: ItemId,
        /// Its name.
        name: String,
        /// The type.
        type_id: TypeId,
    },
    /// A class number without a name.
    #[error("{name:?} names device class number {class}, which the map does not have")]
    UnknownClass {
        /// The device, bucket or rule.
        name: String,
        /// The number.
        class: u8,
    },
    /// An item that is neither a bucket nor a device.
    #[error("bucket {name:?} holds item {item}, which does not exist")]
    DanglingItem {
        /// The bucket.
        bucket: ItemId,
        /// Its name.
        name: String,
        /// The item.
        item: ItemId,
    },
    /// An item twice in one bucket.
    #[error("bucket {name:?} holds item {item} twice")]
    DuplicateItem {
        /// The bucket.
        bucket: ItemId,
        /// Its name.
        name: String,
        /// The item.
        item: ItemId,
    },
    /// Weights that overflow.
    #[error("the weights in bucket {name:?} add up to 65536 or more")]
    WeightOverflow {
        /// The bucket.
        bucket: ItemId,
        /// Its name.
        name: String,
    },
    /// A uniform bucket whose items differ.
    #[error("the items of uniform bucket {name:?} must all have the same weight")]
    UnevenUniform {
        /// The bucket.
        bucket: ItemId,
        /// Its name.
        name: String,
    },
    /// A bucket within itself.
    #[error("bucket {name:?} contains itself")]
    Cycle {
        /// The bucket.
        bucket: ItemId,
        /// Its name.
        name: String,
    },
    /// Too many levels.
    #[error("bucket {name:?} lies more than {DEPTH_MAX} levels deep")]
    TooDeep {
        /// The bucket.
        bucket: ItemId,
        /// Its name.
        name: String,
    },
    /// A take of something that does not exist.
    #[error("rule {name:?} takes item {item}, which does not exist")]
    RuleTakesUnknown {
        /// The rule.
        rule: RuleId,
        /// Its name.
        name: String,
        /// The item.
        item: ItemId,
    },
    /// A class of a device.
    #[error("rule {name:?} takes a class of {item}, which is a device")]
    RuleTakesClassOfDevice {
        /// The rule.
        rule: RuleId,
        /// Its name.
        name: String,
        /// The item.
        item: ItemId,
    },
    /// A choose at a type that does not exist.
    #[error("rule {name:?} chooses type {type_id}, which does not exist")]
    RuleChoosesUnknownType {
        /// The rule.
        rule: RuleId,
        /// Its name.
        name: String,
        /// The type.
        type_id: TypeId,
    },
    /// A choose of too many.
    #[error("rule {name:?} chooses {count} items, but only {CHOOSE_COUNT_MAX} are supported")]
    RuleChoosesTooMany {
        /// The rule.
        rule: RuleId,
        /// Its name.
        name: String,
        /// The count.
        count: i32,
    },
    /// An emit of buckets instead of devices.
    #[error("rule {name:?} emits buckets: its last choose step must be a chooseleaf or of type 0")]
    RuleEmitsBuckets {
        /// The rule.
        rule: RuleId,
        /// Its name.
        name: String,
    },
}

/// What an [`InvalidMap`] is about, so that a parser can point at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Map,
    Bucket(ItemId),
    Rule(RuleId),
}

impl InvalidMap {
    pub(crate) fn subject(&self) -> Subject {
        match self {
            InvalidMap::BadName { .. }
            | InvalidMap::DuplicateName { .. }
            | InvalidMap::TooMany { .. }
            | InvalidMap::NoDeviceType
            | InvalidMap::BadTotalTries { .. }
            | InvalidMap::DeviceIdOutOfRange { .. }
            | InvalidMap::BucketIdsExhausted
            | InvalidMap::UnknownClass { .. } => Subject::Map,
            InvalidMap::BucketIdOutOfRange { bucket, .. }
            | InvalidMap::DuplicateId { bucket, .. }
            | InvalidMap::BadBucketType { bucket, .. }
            | InvalidMap::DanglingItem { bucket, .. }
            | InvalidMap::DuplicateItem { bucket, .. }
            | InvalidMap::WeightOverflow { bucket, .. }
            | InvalidMap::UnevenUniform { bucket, .. }
            | InvalidMap::Cycle { bucket, .. }
            | InvalidMap::TooDeep { bucket, .. } => Subject::Bucket(*bucket),
            InvalidMap::RuleTakesUnknown { rule, .. }
            | InvalidMap::RuleTakesClassOfDevice { rule, .. }
            | InvalidMap::RuleChoosesUnknownType { rule, .. }
            | InvalidMap::RuleChoosesTooMany { rule, .. }
            | InvalidMap::RuleEmitsBuckets { rule, .. } => Subject::Rule(*rule),
        }
    }
}

/// Whether Ceph takes this as a name.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Checks all of a map but the weights of its shadows, which are checked as they are built.
pub(crate) fn check(parts: &Parts) -> Result<(), InvalidMap> {
    check_names(parts)?;
    check_devices(parts)?;
    check_ids(parts)?;
    for (id, bucket) in &parts.buckets {
        check_bucket(parts, *id, bucket)?;
    }
    Heights::of(parts)?;
    parts.rules.iter().try_for_each(|(id, rule)| check_rule(parts, *id, rule))
}

fn check_names(parts: &Parts) -> Result<(), InvalidMap> {
    if !parts.types.contains_key(&DEVICE_TYPE) {
        return Err(InvalidMap::NoDeviceType);
    }
    if !(1..=0x7fff_fffe).contains(&parts.tunables.choose_total_tries) {
        return Err(InvalidMap::BadTotalTries { value: parts.tunables.choose_total_tries });
    }
    let too_many = |what, count, limit| Err(InvalidMap::TooMany { what, count, limit });
    if parts.classes.len() > CLASS_COUNT_MAX {
        return too_many("device classes", parts.classes.len(), CLASS_COUNT_MAX);
    }
    if parts.rules.len() > RULE_COUNT_MAX {
        return too_many("rules", parts.rules.len(), RULE_COUNT_MAX);
    }
    unique("type", parts.types.values())?;
    unique("device class", parts.classes.iter())?;
    unique("rule", parts.rules.values().map(|rule| &rule.name))?;
    let devices = parts.devices.values().map(|device| &device.name);
    unique("item", devices.chain(parts.buckets.values().map(|bucket| &bucket.name)))
}

fn unique<'a>(what: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), InvalidMap> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !is_name(name) {
            return Err(InvalidMap::BadName { name: name.clone() });
        }
        if !seen.insert(name) {
            return Err(InvalidMap::DuplicateName { what, name: name.clone() });
        }
    }
    Ok(())
}

fn check_devices(parts: &Parts) -> Result<(), InvalidMap> {
    for (id, device) in &parts.devices {
        if *id > DEVICE_ID_MAX {
            return Err(InvalidMap::DeviceIdOutOfRange { id: *id });
        }
        if let Some(class) = device.class {
            known_class(parts, &device.name, class)?;
        }
    }
    Ok(())
}

fn known_class(parts: &Parts, name: &str, class: u8) -> Result<(), InvalidMap> {
    if usize::from(class) < parts.classes.len() {
        return Ok(());
    }
    Err(InvalidMap::UnknownClass { name: name.to_owned(), class })
}

fn check_ids(parts: &Parts) -> Result<(), InvalidMap> {
    let mut shadows = BTreeSet::new();
    for (bucket, Bucket { shadow_ids, name, .. }) in &parts.buckets {
        if !(BUCKET_ID_MIN..=-1).contains(bucket) {
            return Err(InvalidMap::BucketIdOutOfRange { bucket: *bucket, id: *bucket });
        }
        for (class, id) in shadow_ids {
            known_class(parts, name, *class)?;
            if !(BUCKET_ID_MIN..=-1).contains(id) {
                return Err(InvalidMap::BucketIdOutOfRange { bucket: *bucket, id: *id });
            }
            if parts.buckets.contains_key(id) || !shadows.insert(*id) {
                return Err(InvalidMap::DuplicateId { bucket: *bucket, id: *id });
            }
        }
    }
    Ok(())
}

fn check_bucket(parts: &Parts, id: ItemId, bucket: &Bucket) -> Result<(), InvalidMap> {
    let name = || bucket.name.clone();
    if bucket.type_id == DEVICE_TYPE || !parts.types.contains_key(&bucket.type_id) {
        return Err(InvalidMap::BadBucketType { bucket: id, name: name(), type_id: bucket.type_id });
    }
    let mut seen = BTreeSet::new();
    for item in &bucket.items {
        if !item_exists(parts, item.id) {
            return Err(InvalidMap::DanglingItem { bucket: id, name: name(), item: item.id });
        }
        if !seen.insert(item.id) {
            return Err(InvalidMap::DuplicateItem { bucket: id, name: name(), item: item.id });
        }
    }
    if bucket.weight() > u64::from(u32::MAX) {
        return Err(InvalidMap::WeightOverflow { bucket: id, name: name() });
    }
    let even = bucket.items.windows(2).all(|pair| matches!(pair, [a, b] if a.weight == b.weight));
    if bucket.alg == BucketAlg::Uniform && !even {
        return Err(InvalidMap::UnevenUniform { bucket: id, name: name() });
    }
    Ok(())
}

fn item_exists(parts: &Parts, item: ItemId) -> bool {
    match u32::try_from(item) {
        Ok(device) => parts.devices.contains_key(&device),
        Err(_) => parts.buckets.contains_key(&item),
    }
}

fn check_rule(parts: &Parts, id: RuleId, rule: &Rule) -> Result<(), InvalidMap> {
    let name = || rule.name.clone();
    if rule.steps.len() > RULE_STEPS_MAX {
        return Err(InvalidMap::TooMany { what: "rule steps", count: rule.steps.len(), limit: RULE_STEPS_MAX });
    }
    let mut holds_buckets = false;
    for step in &rule.steps {
        match step {
            Step::Take { item, class } => {
                if !item_exists(parts, *item) {
                    return Err(InvalidMap::RuleTakesUnknown { rule: id, name: name(), item: *item });
                }
                if let Some(class) = class {
                    known_class(parts, &rule.name, *class)?;
                    if *item >= 0 {
                        return Err(InvalidMap::RuleTakesClassOfDevice { rule: id, name: name(), item: *item });
                    }
                }
                holds_buckets = *item < 0;
            }
            Step::Choose { count, type_id, leaf, .. } => {
                if !parts.types.contains_key(type_id) {
                    return Err(InvalidMap::RuleChoosesUnknownType { rule: id, name: name(), type_id: *type_id });
                }
                if !(-CHOOSE_COUNT_MAX..=CHOOSE_COUNT_MAX).contains(count) {
                    return Err(InvalidMap::RuleChoosesTooMany { rule: id, name: name(), count: *count });
                }
                holds_buckets = holds_buckets && !leaf && *type_id != DEVICE_TYPE;
            }
            Step::Emit if holds_buckets => return Err(InvalidMap::RuleEmitsBuckets { rule: id, name: name() }),
            Step::Emit | Step::SetChooseTries(_) | Step::SetChooseleafTries(_) | Step::Restate(_) => {}
        }
    }
    Ok(())
}

/// How many levels of buckets lie beneath each bucket; exists only for maps without cycles.
struct Heights<'a> {
    parts: &'a Parts,
    /// `None` while a bucket's children are being looked at.
    known: BTreeMap<ItemId, Option<u32>>,
}

impl<'a> Heights<'a> {
    fn of(parts: &'a Parts) -> Result<(), InvalidMap> {
        let mut heights = Heights { parts, known: BTreeMap::new() };
        parts.buckets.keys().try_for_each(|id| heights.height(*id, 1).map(|_| ()))
    }

    /// Recurses at most [`DEPTH_MAX`] deep, and once into each bucket.
    fn height(&mut self, id: ItemId, depth: u32) -> Result<u32, InvalidMap> {
        let Some(bucket) = self.parts.buckets.get(&id) else { return Ok(0) };
        let too_deep = || InvalidMap::TooDeep { bucket: id, name: bucket.name.clone() };
        match self.known.get(&id) {
            Some(Some(height)) if depth + height > DEPTH_MAX => return Err(too_deep()),
            Some(Some(height)) => return Ok(*height),
            Some(None) => return Err(InvalidMap::Cycle { bucket: id, name: bucket.name.clone() }),
            None if depth > DEPTH_MAX => return Err(too_deep()),
            None => {}
        }
        self.known.insert(id, None);
        let mut height = 0;
        for item in &bucket.items {
            height = height.max(1 + self.height(item.id, depth + 1)?);
        }
        self.known.insert(id, Some(height));
        Ok(height)
    }
}
