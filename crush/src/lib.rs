//! CRUSH: maps an input to OSDs by a hierarchy of failure domains and a rule, the same everywhere.
//!
//! Bit-exact with Ceph for straw2 and uniform buckets under the jewel tunables, and reads and prints the same text map.
//! Pure functions over values: no clock, no file, no global, no randomness.
//!
//! - [`CrushMap`] is the checked map; [`Parts`] is what it is made of.
//! - [`CrushMap::map`] and [`CrushMap::map_into`] place.
//! - [`CrushMap::parse_text`], [`CrushMap::to_text`], and its CBOR encoding are the ways in and out.
//! - [`CrushMap::insert_device`] and its neighbours edit; [`CrushMap::tree`] and its neighbours look.
//! - [`str_hash_rjenkins`] and [`stable_mod`] turn an object's name into its placement group.
//!
//! Invariants: every `CrushMap` passed every check of `validate`; mapping is total, and its work bounded by
//! [`DRAWS_MAX`]; the ids of buckets and shadows never change, since they are hashed.

mod crushtool;
mod edit;
mod engine;
mod hash;
mod ids;
mod ln;
mod map;
mod mapper;
mod model;
mod query;
mod straw2;
mod text;
mod validate;

pub use crushtool::{MappingRun, UnknownRule, crushtool_show_mappings, reweight_from_f32};
pub use edit::{EditError, SimpleRule};
pub use hash::{hash32_1, hash32_2, hash32_3, hash32_4, hash32_5, stable_mask, stable_mod, str_hash_rjenkins};
pub use map::CrushMap;
pub use mapper::{DRAWS_MAX, ITEM_NONE, Workspace};
pub use model::{
    Bucket, BucketAlg, ChooseMode, ClassId, DEVICE_TYPE, Device, FixedTunable, Item, ItemId, Parts, Rule, RuleId,
    RuleKind, Step, Tunables, TypeId, WEIGHT_ONE,
};
pub use query::TreeRow;
pub use text::{ParseError, ParseErrorKind};
pub use validate::{
    BUCKET_ID_MIN, CHOOSE_COUNT_MAX, CLASS_COUNT_MAX, DEPTH_MAX, DEVICE_ID_MAX, InvalidMap, NAME_BYTES_MAX,
    RULE_COUNT_MAX, RULE_STEPS_MAX,
};
