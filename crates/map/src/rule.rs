//! What a CRUSH rule demands of the members of a placement group, so far as one member may be exchanged for another.
//!
//! A rule of one `take`, some `choose` steps and one `emit` is understood; each `choose` names a level. Exchanging a
//! member keeps the rule if the new one lies beneath the same item, has the same class, shares all chosen levels but
//! the last with the old one, and shares the last with no other member. For other rules nothing is said.

use std::collections::BTreeMap;

use holdfast_crush::{CrushMap, ItemId, RuleId, Step, TypeId};
use holdfast_types::OsdId;

/// Where the OSDs stand that a rule can choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleShape {
    level: TypeId,
    places: BTreeMap<OsdId, Place>,
}

/// The buckets of one OSD at the levels that the rule chooses, topmost first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// All levels but the last.
    above: Vec<ItemId>,
    /// The one that no other member may share.
    domain: ItemId,
    weight: u32,
}

impl RuleShape {
    /// The shape of a rule, or `None` for one that is not understood.
    #[must_use]
    pub fn of(crush: &CrushMap, rule: RuleId) -> Option<RuleShape> {
        let parts = crush.parts();
        let mut take = None;
        let mut levels = Vec::new();
        let mut emits = 0;
        for step in &parts.rules.get(&rule)?.steps {
            match step {
                Step::Take { item, class } if take.is_none() => take = Some((*item, *class)),
                Step::Take { .. } => return None,
                Step::Choose { type_id, .. } => levels.push(*type_id),
                Step::Emit => emits += 1,
                Step::SetChooseTries(_) | Step::SetChooseleafTries(_) | Step::Restate(_) => {}
            }
        }
        let ((root, class), [above @ .., level]) = (take?, levels.as_slice()) else { return None };
        if emits != 1 {
            return None;
        }
        let mut places = BTreeMap::new();
        // Depth first, with the way down to each item: (item, its weight, the chosen levels on the way).
        let mut open = vec![(root, 0u32, BTreeMap::<TypeId, ItemId>::new())];
        while let Some((item, weight, mut way)) = open.pop() {
            if let Ok(device) = u32::try_from(item) {
                way.insert(holdfast_crush::DEVICE_TYPE, item);
                let of_class = class.is_none() || parts.devices.get(&device).is_some_and(|known| known.class == class);
                let above: Option<Vec<ItemId>> = above.iter().map(|level| way.get(level).copied()).collect();
                if let (true, Some(above), Some(domain)) = (of_class && weight > 0, above, way.get(level)) {
                    places.entry(OsdId(device)).or_insert(Place { above, domain: *domain, weight });
                }
            } else if let Some(bucket) = parts.buckets.get(&item) {
                way.insert(bucket.type_id, item);
                open.extend(bucket.items.iter().rev().map(|held| (held.id, held.weight, way.clone())));
            }
        }
        Some(RuleShape { level: *level, places })
    }

    /// The name of the level of which no two members share a bucket.
    #[must_use]
    pub fn level_name<'a>(&self, crush: &'a CrushMap) -> &'a str {
        crush.parts().types.get(&self.level).map_or("unknown", String::as_str)
    }

    /// The OSDs that the rule can choose, with their CRUSH weights.
    pub fn candidates(&self) -> impl Iterator<Item = (OsdId, u32)> + '_ {
        self.places.iter().map(|(osd, place)| (*osd, place.weight))
    }

    /// The bucket of the OSD that no other member may share.
    #[must_use]
    pub fn domain(&self, osd: OsdId) -> Option<ItemId> {
        self.places.get(&osd).map(|place| place.domain)
    }

    /// Whether `to` may stand in the place of `from` among `members`, by the rule.
    #[must_use]
    pub fn may_replace(&self, members: &[OsdId], from: OsdId, to: OsdId) -> bool {
        let (Some(old), Some(new)) = (self.places.get(&from), self.places.get(&to)) else { return false };
        let others = || members.iter().filter(|member| **member != from);
        old.above == new.above
            && !members.contains(&to)
            && others().all(|member| self.domain(*member).is_none_or(|domain| domain != new.domain))
    }

    /// Whether no two members share a failure domain and all of them can be chosen by the rule.
    #[must_use]
    pub fn is_kept_by(&self, members: &[OsdId]) -> bool {
        let mut domains: Vec<Option<ItemId>> = members.iter().map(|member| self.domain(*member)).collect();
        domains.sort_unstable();
        domains.iter().all(Option::is_some) && domains.windows(2).all(|pair| pair[0] != pair[1])
    }
}
