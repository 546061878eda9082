//! The form of a map that mapping runs on: shadows built, names gone, every bucket one table of ids and one of weights.
//!
//! Derived from the [`Parts`] of a valid map and from nothing else; never stored or sent.

use std::collections::BTreeMap;

use crate::model::{Bucket, BucketAlg, ClassId, ItemId, Parts, RuleId, Step, TypeId};
use crate::validate::InvalidMap;

/// A bucket or a shadow, ready to be drawn from. `ids` and `weights` are equally long.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) id: ItemId,
    pub(crate) type_id: TypeId,
    pub(crate) alg: BucketAlg,
    pub(crate) ids: Vec<ItemId>,
    pub(crate) weights: Vec<u32>,
}

/// A rule whose takes are resolved to the id of a device, a bucket or a shadow.
pub(crate) type Program = Vec<Step>;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Engine {
    nodes: Vec<Node>,
    /// The place in `nodes` of bucket `-1 - index`; `u32::MAX` where there is none.
    places: Vec<u32>,
    programs: BTreeMap<RuleId, Program>,
    /// The buckets that hold an item, the one nearest to -1 first.
    parents: BTreeMap<ItemId, Vec<ItemId>>,
}

impl Engine {
    /// Builds the form of checked `parts`, all of whose shadows have ids.
    pub(crate) fn build(parts: &Parts) -> Result<Engine, InvalidMap> {
        let mut engine = Engine::default();
        for (id, bucket) in parts.buckets.iter().rev() {
            let (ids, weights) = bucket.items.iter().map(|item| (item.id, item.weight)).unzip();
            engine.add(Node { id: *id, type_id: bucket.type_id, alg: bucket.alg, ids, weights });
            for item in &bucket.items {
                engine.parents.entry(item.id).or_default().push(*id);
            }
        }
        for class in (0..parts.classes.len()).filter_map(|class| ClassId::try_from(class).ok()) {
            let mut weights = BTreeMap::new();
            for id in parts.buckets.keys().rev() {
                engine.build_shadow(parts, class, *id, &mut weights)?;
            }
        }
        for (id, rule) in &parts.rules {
            engine.programs.insert(*id, rule.steps.iter().map(|step| resolve(parts, step)).collect());
        }
        Ok(engine)
    }

    /// Adds the shadow of one bucket and, before it, those beneath; returns its weight. The recursion is as deep as the
    /// hierarchy, which was checked.
    fn build_shadow(
        &mut self,
        parts: &Parts,
        class: ClassId,
        id: ItemId,
        done: &mut BTreeMap<ItemId, u32>,
    ) -> Result<u32, InvalidMap> {
        if let Some(weight) = done.get(&id) {
            return Ok(*weight);
        }
        let Some(bucket) = parts.buckets.get(&id) else { return Ok(0) };
        let Some(shadow_id) = bucket.shadow_ids.get(&class) else { return Ok(0) };
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for item in &bucket.items {
            if let Ok(device) = u32::try_from(item.id) {
                if parts.devices.get(&device).and_then(|device| device.class) == Some(class) {
                    ids.push(item.id);
                    weights.push(item.weight);
                }
            } else if let Some(child) = parts.buckets.get(&item.id).and_then(|child| child.shadow_ids.get(&class)) {
                ids.push(*child);
                weights.push(self.build_shadow(parts, class, item.id, done)?);
            }
        }
        let weight = shadow_weight(bucket, &weights)
            .ok_or_else(|| InvalidMap::WeightOverflow { bucket: id, name: bucket.name.clone() })?;
        self.add(Node { id: *shadow_id, type_id: bucket.type_id, alg: bucket.alg, ids, weights });
        done.insert(id, weight);
        Ok(weight)
    }

    fn add(&mut self, node: Node) {
        let (Some(slot), Ok(place)) = (slot_of(node.id), u32::try_from(self.nodes.len())) else { return };
        if self.places.len() <= slot {
            self.places.resize(slot + 1, u32::MAX);
        }
        if let Some(entry) = self.places.get_mut(slot) {
            *entry = place;
            self.nodes.push(node);
        }
    }

    /// The bucket or shadow of this id.
    #[inline]
    pub(crate) fn node(&self, id: ItemId) -> Option<&Node> {
        self.nodes.get(*self.places.get(slot_of(id)?)? as usize)
    }

    /// The steps of a rule.
    pub(crate) fn program(&self, rule: RuleId) -> Option<&Program> {
        self.programs.get(&rule)
    }

    /// The buckets that hold `item`, shadows not counted.
    pub(crate) fn parents(&self, item: ItemId) -> &[ItemId] {
        self.parents.get(&item).map_or(&[], Vec::as_slice)
    }
}

#[inline]
fn slot_of(id: ItemId) -> Option<usize> {
    usize::try_from(-1 - i64::from(id)).ok()
}

/// The weight of a shadow in its parent's shadow. Ceph keeps one weight for all items of a uniform bucket.
fn shadow_weight(bucket: &Bucket, weights: &[u32]) -> Option<u32> {
    let sum: u64 = match bucket.alg {
        BucketAlg::Straw2 => weights.iter().copied().map(u64::from).sum(),
        BucketAlg::Uniform => u64::from(weights.first().copied().unwrap_or(0)).checked_mul(weights.len() as u64)?,
    };
    u32::try_from(sum).ok()
}

fn resolve(parts: &Parts, step: &Step) -> Step {
    match step {
        Step::Take { item, class: Some(class) } => {
            let shadow = parts.buckets.get(item).and_then(|bucket| bucket.shadow_ids.get(class));
            Step::Take { item: shadow.copied().unwrap_or(*item), class: Some(*class) }
        }
        other => other.clone(),
    }
}
