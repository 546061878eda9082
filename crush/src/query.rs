//! Looking at the hierarchy: where a device is, what buckets there are, the tree as a list.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_types::OsdId;

use crate::CrushMap;
use crate::model::{DEVICE_TYPE, ItemId, RuleId};

/// One line of the tree: a root, a bucket or a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeRow<'a> {
    /// 0 for roots.
    pub depth: usize,
    /// Negative for buckets, the OSD id for devices.
    pub id: ItemId,
    /// Its name.
    pub name: &'a str,
    /// The name of its level.
    pub type_name: &'a str,
    /// The device class, of devices.
    pub class: Option<&'a str>,
    /// Its weight in its parent, of a root the sum of its items'; 16.16 fixed point.
    pub weight: u32,
}

impl TreeRow<'_> {
    /// The OSD, when it is one.
    #[must_use]
    pub fn osd(&self) -> Option<OsdId> {
        u32::try_from(self.id).ok().map(OsdId)
    }
}

impl CrushMap {
    /// The rule of this name.
    #[must_use]
    pub fn rule_named(&self, name: &str) -> Option<RuleId> {
        self.parts().rules.iter().find(|(_, rule)| rule.name == name).map(|(id, _)| *id)
    }

    /// Whether the map knows this OSD.
    #[must_use]
    pub fn has_device(&self, osd: OsdId) -> bool {
        self.parts().devices.contains_key(&osd.0)
    }

    /// The OSD's class.
    #[must_use]
    pub fn device_class(&self, osd: OsdId) -> Option<&str> {
        self.class_name(self.parts().devices.get(&osd.0)?.class)
    }

    /// The OSD's weight in the bucket that holds it, 16.16 fixed point; 0 when none does.
    #[must_use]
    pub fn device_weight(&self, osd: OsdId) -> u32 {
        let weight = || {
            let item = ItemId::try_from(osd.0).ok()?;
            let parent = self.engine().parents(item).first()?;
            self.parts().buckets.get(parent)?.items.iter().find(|held| held.id == item).map(|held| held.weight)
        };
        weight().unwrap_or(0)
    }

    /// Where the OSD is, from the nearest bucket to its root: (type, name). Empty when no bucket holds it. Of several
    /// places it is the one nearest to bucket -1.
    #[must_use]
    pub fn location_of(&self, osd: OsdId) -> Vec<(&str, &str)> {
        let mut location = Vec::new();
        let mut at = ItemId::try_from(osd.0).ok();
        while let Some(parent) = at.and_then(|item| self.engine().parents(item).first().copied()) {
            if let Some(bucket) = self.parts().buckets.get(&parent) {
                location.push((self.type_name(bucket.type_id), bucket.name.as_str()));
            }
            at = Some(parent);
        }
        location
    }

    /// The name of the bucket of this type that the OSD lies in; for the type of devices, the OSD's own name.
    #[must_use]
    pub fn failure_domain_of(&self, osd: OsdId, type_name: &str) -> Option<String> {
        if self.parts().type_named(type_name)? == DEVICE_TYPE {
            return self.parts().devices.get(&osd.0).map(|device| device.name.clone());
        }
        let location = self.location_of(osd);
        location.into_iter().find(|(of_type, _)| *of_type == type_name).map(|(_, name)| name.to_owned())
    }

    /// The names of the buckets of this type, in order. Empty for an unknown type.
    #[must_use]
    pub fn buckets_of_type(&self, type_name: &str) -> Vec<&str> {
        let type_id = self.parts().type_named(type_name);
        let of_type = self.parts().buckets.values().filter(|bucket| Some(bucket.type_id) == type_id);
        let mut names: Vec<&str> = of_type.map(|bucket| bucket.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// All OSDs beneath the bucket of this name, in order.
    #[must_use]
    pub fn devices_beneath(&self, bucket: &str) -> BTreeSet<OsdId> {
        let mut devices = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut open: Vec<ItemId> = self.parts().item_named(bucket).into_iter().collect();
        while let Some(item) = open.pop() {
            if let Ok(device) = u32::try_from(item) {
                devices.insert(OsdId(device));
            } else if seen.insert(item) {
                let bucket = self.parts().buckets.get(&item);
                open.extend(bucket.into_iter().flat_map(|bucket| &bucket.items).map(|item| item.id));
            }
        }
        devices
    }

    /// The OSDs that no bucket holds.
    #[must_use]
    pub fn stray_devices(&self) -> Vec<OsdId> {
        let stray = |id: &u32| ItemId::try_from(*id).is_ok_and(|item| self.engine().parents(item).is_empty());
        self.parts().devices.keys().copied().filter(stray).map(OsdId).collect()
    }

    /// The whole hierarchy, each item followed by what it holds. A bucket that several hold is opened only the first
    /// time, so the length is at most that of all buckets together.
    #[must_use]
    pub fn tree(&self) -> Vec<TreeRow<'_>> {
        let mut rows = Vec::new();
        let mut opened = BTreeSet::new();
        for (id, bucket) in self.parts().buckets.iter().rev() {
            if self.engine().parents(*id).is_empty() {
                let weight = u32::try_from(bucket.weight()).unwrap_or(u32::MAX);
                self.branch(*id, weight, 0, &mut rows, &mut opened);
            }
        }
        rows
    }

    /// As deep as the hierarchy.
    fn branch<'a>(
        &'a self,
        id: ItemId,
        weight: u32,
        depth: usize,
        rows: &mut Vec<TreeRow<'a>>,
        opened: &mut BTreeSet<ItemId>,
    ) {
        if let Some(device) = u32::try_from(id).ok().and_then(|id| self.parts().devices.get(&id)) {
            let class = self.class_name(device.class);
            rows.push(TreeRow { depth, id, name: &device.name, type_name: self.type_name(DEVICE_TYPE), class, weight });
        }
        let Some(bucket) = self.parts().buckets.get(&id) else { return };
        rows.push(TreeRow {
            depth,
            id,
            name: &bucket.name,
            type_name: self.type_name(bucket.type_id),
            class: None,
            weight,
        });
        if opened.insert(id) {
            for item in &bucket.items {
                self.branch(item.id, item.weight, depth + 1, rows, opened);
            }
        }
    }

    /// How many devices each class has, by name.
    #[must_use]
    pub fn class_counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for device in self.parts().devices.values() {
            if let Some(class) = self.class_name(device.class) {
                *counts.entry(class).or_default() += 1;
            }
        }
        counts
    }

    fn class_name(&self, class: Option<u8>) -> Option<&str> {
        self.parts().classes.get(usize::from(class?)).map(String::as_str)
    }

    fn type_name(&self, type_id: u16) -> &str {
        self.parts().types.get(&type_id).map_or("", String::as_str)
    }
}
