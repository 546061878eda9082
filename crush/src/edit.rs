//! Changing a map. Every edit works on a copy and passes the same checks as a map from outside, so it is done wholly or
//! not at all. The same edits of the same map give the same map everywhere.

use std::collections::BTreeSet;

use holdfast_types::OsdId;

use crate::CrushMap;
use crate::ids::FreeIds;
use crate::model::{
    Bucket, BucketAlg, ChooseMode, ClassId, DEVICE_TYPE, Device, Item, ItemId, Parts, Rule, RuleId, RuleKind, Step,
    TypeId,
};
use crate::validate::{CLASS_COUNT_MAX, InvalidMap, RULE_COUNT_MAX};

/// The levels that a new map has, as in Ceph.
const DEFAULT_TYPES: [&str; 12] =
    ["osd", "host", "chassis", "rack", "row", "pdu", "pod", "room", "datacenter", "zone", "region", "root"];
/// Attempts beneath each item of an erasure rule, and in all, as in Ceph: a hole costs more than a copy less.
const ERASURE_LEAF_TRIES: u32 = 5;
const ERASURE_TRIES: u32 = 100;

/// Why an edit is refused. The map is then unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// An OSD that is not in the map.
    #[error("{osd} is not in the CRUSH map")]
    UnknownOsd {
        /// The OSD.
        osd: OsdId,
    },
    /// A bucket that does not exist.
    #[error("the CRUSH map has no bucket {name:?}")]
    UnknownBucket {
        /// Its name.
        name: String,
    },
    /// A type that does not exist, or that of devices where buckets are meant.
    #[error("{name:?} is not a type of buckets in the CRUSH map")]
    UnknownType {
        /// Its name.
        name: String,
    },
    /// A class that no device has.
    #[error("no device in the CRUSH map has class {name:?}")]
    UnknownClass {
        /// Its name.
        name: String,
    },
    /// A rule that does not exist.
    #[error("the CRUSH map has no rule {rule}")]
    UnknownRule {
        /// The rule.
        rule: RuleId,
    },
    /// A location that names no bucket.
    #[error("{osd} needs a location of at least one bucket")]
    NoLocation {
        /// The OSD.
        osd: OsdId,
    },
    /// Two buckets of one type in a location.
    #[error("the location names two buckets of type {type_name:?}")]
    AmbiguousLocation {
        /// The type.
        type_name: String,
    },
    /// An existing bucket of another type.
    #[error("{name:?} is a {existing}, not a {wanted}")]
    WrongType {
        /// The bucket or device.
        name: String,
        /// Its type.
        existing: String,
        /// The type that it was taken for.
        wanted: String,
    },
    /// A rule name that is taken.
    #[error("there is already a rule {name:?}")]
    RuleExists {
        /// The name.
        name: String,
    },
    /// A bucket that still holds something.
    #[error("bucket {name:?} is not empty")]
    BucketNotEmpty {
        /// The bucket.
        name: String,
    },
    /// A bucket that a rule starts from.
    #[error("rule {rule:?} takes bucket {name:?}")]
    BucketInUse {
        /// The bucket.
        name: String,
        /// The rule.
        rule: String,
    },
    /// A map that would break the rules of every map.
    #[error(transparent)]
    Invalid(#[from] InvalidMap),
}

/// The usual rule: so many OSDs, each in another failure domain.
#[derive(Debug, Clone, Copy)]
pub struct SimpleRule<'a> {
    /// Its name.
    pub name: &'a str,
    /// What for.
    pub kind: RuleKind,
    /// The bucket to place beneath.
    pub root: &'a str,
    /// The type of which no two OSDs share one: `osd`, `host`, `rack`, ….
    pub failure_domain: &'a str,
    /// Only devices of this class.
    pub class: Option<&'a str>,
}

impl CrushMap {
    /// The map of a new cluster: Ceph's types, an empty root `default`, and rule 0 `replicated_rule`, which spreads
    /// copies over hosts.
    #[must_use]
    pub fn new_default() -> CrushMap {
        let mut parts = Parts::default();
        parts.types.extend((0..).zip(DEFAULT_TYPES.map(str::to_owned)));
        let root = new_bucket("default", 11);
        parts.buckets.insert(-1, root);
        let rule = SimpleRule {
            name: "replicated_rule",
            kind: RuleKind::Replicated,
            root: "default",
            failure_domain: "host",
            class: None,
        };
        add_simple_rule(&mut parts, rule).expect("the default map has the root and the type");
        CrushMap::from_parts(parts).expect("the default map is valid")
    }

    /// Applies `change` to a copy, and takes it over when it is valid.
    fn edit<T>(&mut self, change: impl FnOnce(&mut Parts) -> Result<T, EditError>) -> Result<T, EditError> {
        let mut parts = self.parts().clone();
        let value = change(&mut parts)?;
        *self = CrushMap::from_parts(parts)?;
        Ok(value)
    }

    /// Adds the usual rule, with the lowest free number.
    ///
    /// # Errors
    /// Unknown root, type or class; the name is taken; too many rules.
    pub fn add_rule(&mut self, rule: SimpleRule<'_>) -> Result<RuleId, EditError> {
        self.edit(|parts| add_simple_rule(parts, rule))
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// [`EditError::UnknownRule`]. Whether a pool uses it is the caller's to know.
    pub fn remove_rule(&mut self, rule: RuleId) -> Result<(), EditError> {
        self.edit(|parts| parts.rules.remove(&rule).map(|_| ()).ok_or(EditError::UnknownRule { rule }))
    }

    /// Puts an OSD at a location, with a weight (16.16 fixed point) and a class; moves and changes it when it is already
    /// in the map.
    ///
    /// `location` is (type, name) in any order, such as `[("host", "n1"), ("root", "default")]`. Buckets that do not
    /// exist are made, each within the next higher one. The lowest that exists stays where it is, even when the location
    /// says otherwise further up: where an administrator has moved a host is not for its OSDs to undo. `class` `None`
    /// keeps the class that a known OSD has.
    ///
    /// # Errors
    /// A bad location, unknown types, names of another type, or a map that would be invalid.
    pub fn insert_device(
        &mut self,
        osd: OsdId,
        weight: u32,
        class: Option<&str>,
        location: &[(&str, &str)],
    ) -> Result<(), EditError> {
        self.edit(|parts| {
            let item = device_item(osd)?;
            let class = class.map(|class| class_or_new(parts, class)).transpose()?;
            let device = parts.devices.entry(osd.0).or_insert_with(|| Device { name: osd.to_string(), class: None });
            device.class = class.or(device.class);
            let parent = make_location(parts, osd, location)?;
            let elsewhere: Vec<ItemId> = holders(parts, item).into_iter().filter(|holder| *holder != parent).collect();
            for holder in elsewhere {
                take_out(parts, holder, item);
            }
            put_in(parts, parent, Item { id: item, weight });
            Ok(())
        })
    }

    /// Removes an OSD from the map. Its buckets stay, even when they are empty.
    ///
    /// # Errors
    /// [`EditError::UnknownOsd`].
    pub fn remove_device(&mut self, osd: OsdId) -> Result<(), EditError> {
        self.edit(|parts| {
            let item = device_item(osd)?;
            parts.devices.remove(&osd.0).ok_or(EditError::UnknownOsd { osd })?;
            for holder in holders(parts, item) {
                take_out(parts, holder, item);
            }
            Ok(())
        })
    }

    /// Sets an OSD's weight (16.16 fixed point) wherever it is, and the weights of what it lies in. In a uniform bucket
    /// all items change, since they must be equal.
    ///
    /// # Errors
    /// [`EditError::UnknownOsd`], or weights that overflow.
    pub fn set_device_weight(&mut self, osd: OsdId, weight: u32) -> Result<(), EditError> {
        self.edit(|parts| {
            let item = device_item(osd)?;
            known_device(parts, osd)?;
            for holder in holders(parts, item) {
                put_in(parts, holder, Item { id: item, weight });
            }
            Ok(())
        })
    }

    /// Sets or clears an OSD's class.
    ///
    /// # Errors
    /// [`EditError::UnknownOsd`], a bad name, or too many classes.
    pub fn set_device_class(&mut self, osd: OsdId, class: Option<&str>) -> Result<(), EditError> {
        self.edit(|parts| {
            known_device(parts, osd)?;
            let class = class.map(|class| class_or_new(parts, class)).transpose()?;
            if let Some(device) = parts.devices.get_mut(&osd.0) {
                device.class = class;
            }
            Ok(())
        })
    }

    /// Moves a bucket, with all it holds, into another one.
    ///
    /// # Errors
    /// Unknown buckets, or a bucket moved into itself ([`InvalidMap::Cycle`]).
    pub fn move_bucket(&mut self, name: &str, into: &str) -> Result<(), EditError> {
        self.edit(|parts| {
            let (id, into) = (bucket_named(parts, name)?, bucket_named(parts, into)?);
            for holder in holders(parts, id) {
                take_out(parts, holder, id);
            }
            let weight = weight_of(parts, id);
            if let Some(parent) = parts.buckets.get_mut(&into) {
                parent.items.push(Item { id, weight });
            }
            crate::validate::check(parts)?; // before weights travel up, which a cycle would make endless
            raise_weight(parts, into);
            Ok(())
        })
    }

    /// Removes an empty bucket.
    ///
    /// # Errors
    /// It is unknown, not empty, or a rule starts from it.
    pub fn remove_bucket(&mut self, name: &str) -> Result<(), EditError> {
        self.edit(|parts| {
            let id = bucket_named(parts, name)?;
            if parts.buckets.get(&id).is_some_and(|bucket| !bucket.items.is_empty()) {
                return Err(EditError::BucketNotEmpty { name: name.to_owned() });
            }
            let takes =
                |rule: &&Rule| rule.steps.iter().any(|step| matches!(step, Step::Take { item, .. } if *item == id));
            if let Some(rule) = parts.rules.values().find(takes) {
                return Err(EditError::BucketInUse { name: name.to_owned(), rule: rule.name.clone() });
            }
            for holder in holders(parts, id) {
                take_out(parts, holder, id);
            }
            parts.buckets.remove(&id);
            Ok(())
        })
    }
}

fn new_bucket(name: &str, type_id: TypeId) -> Bucket {
    Bucket { name: name.to_owned(), type_id, alg: BucketAlg::Straw2, items: vec![], shadow_ids: Default::default() }
}

fn device_item(osd: OsdId) -> Result<ItemId, EditError> {
    ItemId::try_from(osd.0).map_err(|_| InvalidMap::DeviceIdOutOfRange { id: osd.0 }.into())
}

fn known_device(parts: &Parts, osd: OsdId) -> Result<(), EditError> {
    if parts.devices.contains_key(&osd.0) { Ok(()) } else { Err(EditError::UnknownOsd { osd }) }
}

fn bucket_named(parts: &Parts, name: &str) -> Result<ItemId, EditError> {
    let id = parts.item_named(name).filter(|id| *id < 0);
    id.ok_or_else(|| EditError::UnknownBucket { name: name.to_owned() })
}

fn class_or_new(parts: &mut Parts, name: &str) -> Result<ClassId, EditError> {
    if let Some(class) = parts.class_named(name) {
        return Ok(class);
    }
    parts.classes.push(name.to_owned());
    let count = parts.classes.len();
    let too_many = InvalidMap::TooMany { what: "device classes", count, limit: CLASS_COUNT_MAX };
    parts.class_named(name).ok_or(too_many.into())
}

/// Makes what is missing of a location; returns its lowest bucket.
fn make_location(parts: &mut Parts, osd: OsdId, location: &[(&str, &str)]) -> Result<ItemId, EditError> {
    let mut levels: Vec<(TypeId, &str)> = Vec::with_capacity(location.len());
    for (type_name, name) in location {
        let type_id = parts.type_named(type_name).filter(|type_id| *type_id != DEVICE_TYPE);
        let type_id = type_id.ok_or_else(|| EditError::UnknownType { name: (*type_name).to_owned() })?;
        if levels.iter().any(|(other, _)| *other == type_id) {
            return Err(EditError::AmbiguousLocation { type_name: (*type_name).to_owned() });
        }
        levels.push((type_id, name));
    }
    levels.sort_unstable();
    let mut lowest = None;
    let mut beneath: Option<ItemId> = None;
    for (type_id, name) in levels {
        let existing = parts.item_named(name);
        let id = match existing {
            Some(id) => check_type(parts, id, type_id, name)?,
            None => {
                let id = FreeIds::of(parts).take()?;
                parts.buckets.insert(id, new_bucket(name, type_id));
                id
            }
        };
        if let (Some(child), Some(parent)) = (beneath, parts.buckets.get_mut(&id)) {
            parent.items.push(Item { id: child, weight: 0 });
        }
        lowest.get_or_insert(id);
        beneath = Some(id);
        if existing.is_some() {
            break;
        }
    }
    lowest.ok_or(EditError::NoLocation { osd })
}

fn check_type(parts: &Parts, id: ItemId, wanted: TypeId, name: &str) -> Result<ItemId, EditError> {
    let existing = parts.buckets.get(&id).map_or(DEVICE_TYPE, |bucket| bucket.type_id);
    if existing == wanted {
        return Ok(id);
    }
    let type_name = |type_id| parts.types.get(&type_id).cloned().unwrap_or_default();
    Err(EditError::WrongType { name: name.to_owned(), existing: type_name(existing), wanted: type_name(wanted) })
}

/// The buckets that hold an item.
fn holders(parts: &Parts, item: ItemId) -> Vec<ItemId> {
    let holds = |bucket: &Bucket| bucket.items.iter().any(|held| held.id == item);
    parts.buckets.iter().filter(|(_, bucket)| holds(bucket)).map(|(id, _)| *id).collect()
}

fn weight_of(parts: &Parts, id: ItemId) -> u32 {
    // A sum that overflows is refused when the edit is checked.
    parts.buckets.get(&id).map_or(0, |bucket| u32::try_from(bucket.weight()).unwrap_or(u32::MAX))
}

/// Adds an item to a bucket, or changes its weight there.
fn put_in(parts: &mut Parts, parent: ItemId, item: Item) {
    if let Some(bucket) = parts.buckets.get_mut(&parent) {
        match bucket.items.iter_mut().find(|held| held.id == item.id) {
            Some(held) => held.weight = item.weight,
            None => bucket.items.push(item),
        }
        if bucket.alg == BucketAlg::Uniform {
            bucket.items.iter_mut().for_each(|held| held.weight = item.weight);
        }
    }
    raise_weight(parts, parent);
}

fn take_out(parts: &mut Parts, parent: ItemId, item: ItemId) {
    if let Some(bucket) = parts.buckets.get_mut(&parent) {
        bucket.items.retain(|held| held.id != item);
    }
    raise_weight(parts, parent);
}

/// Carries a bucket's weight to the buckets that hold it, up to the roots. The map is free of cycles.
fn raise_weight(parts: &mut Parts, id: ItemId) {
    let mut changed = BTreeSet::from([id]);
    while let Some(id) = changed.pop_first() {
        let weight = weight_of(parts, id);
        for holder in holders(parts, id) {
            let Some(bucket) = parts.buckets.get_mut(&holder) else { continue };
            let uniform = bucket.alg == BucketAlg::Uniform;
            for held in bucket.items.iter_mut().filter(|held| uniform || held.id == id) {
                held.weight = weight;
            }
            changed.insert(holder);
        }
    }
}

fn add_simple_rule(parts: &mut Parts, rule: SimpleRule<'_>) -> Result<RuleId, EditError> {
    let item = bucket_named(parts, rule.root)?;
    let type_id = parts
        .type_named(rule.failure_domain)
        .ok_or_else(|| EditError::UnknownType { name: rule.failure_domain.to_owned() })?;
    let class = match rule.class {
        Some(class) => {
            Some(parts.class_named(class).ok_or_else(|| EditError::UnknownClass { name: class.to_owned() })?)
        }
        None => None,
    };
    if parts.rules.values().any(|other| other.name == rule.name) {
        return Err(EditError::RuleExists { name: rule.name.to_owned() });
    }
    let mode = match rule.kind {
        RuleKind::Replicated => ChooseMode::Firstn,
        RuleKind::Erasure => ChooseMode::Indep,
    };
    let choose = Step::Choose { mode, count: 0, type_id, leaf: type_id != DEVICE_TYPE };
    let mut steps = vec![];
    if rule.kind == RuleKind::Erasure {
        steps.extend([Step::SetChooseleafTries(ERASURE_LEAF_TRIES), Step::SetChooseTries(ERASURE_TRIES)]);
    }
    steps.extend([Step::Take { item, class }, choose, Step::Emit]);
    let id = (0..).map(RuleId).find(|id| !parts.rules.contains_key(id));
    let count = parts.rules.len() + 1;
    let id = id.ok_or(InvalidMap::TooMany { what: "rules", count, limit: RULE_COUNT_MAX })?;
    parts.rules.insert(id, Rule { name: rule.name.to_owned(), kind: rule.kind, min_size: None, max_size: None, steps });
    Ok(id)
}
