//! Changes of the CRUSH hierarchy: where disks stand, and the rules that pools use.

use std::collections::BTreeSet;

use holdfast_crush::{ChooseMode, CrushMap, DEVICE_TYPE, RuleId, RuleKind, SimpleRule, Step};
use holdfast_types::OsdId;
use holdfast_wire::mon::{LocationStep, MonError};

/// The bucket under which everything stands that does not say otherwise.
const ROOT: &str = "default";
/// Bytes for which CRUSH weighs a disk 1.0.
const BYTES_PER_WEIGHT_ONE: u128 = 1 << 40;
/// The heaviest disk, 4096 TiB: sums of many still fit CRUSH's 32 bits.
const WEIGHT_MAX: u32 = 0x1000_0000;

/// The CRUSH weight of a disk: 1.0 (0x10000) for each TiB, never zero.
#[must_use]
pub fn crush_weight(capacity_bytes: u64) -> u32 {
    let weight = (u128::from(capacity_bytes) << 16) / BYTES_PER_WEIGHT_ONE;
    u32::try_from(weight).unwrap_or(u32::MAX).clamp(1, WEIGHT_MAX)
}

fn invalid(error: &impl std::fmt::Display) -> MonError {
    MonError::Invalid { reason: error.to_string() }
}

/// Puts the disk at `location` (host first), with that class and weight.
pub(crate) fn place(
    crush: &mut CrushMap,
    osd: OsdId,
    location: &[LocationStep],
    class: Option<&str>,
    weight: u32,
) -> Result<(), MonError> {
    let mut steps: Vec<(&str, &str)> = location.iter().map(|step| (step.kind.as_str(), step.name.as_str())).collect();
    if steps.is_empty() {
        return Err(invalid(&"a disk needs a location, such as host node-7"));
    }
    if !steps.iter().any(|(kind, _)| *kind == "root") {
        steps.push(("root", ROOT));
    }
    crush.insert_device(osd, weight, class, &steps).map_err(|error| invalid(&error))
}

/// Takes the disk out of the hierarchy. Its buckets stay: an operator may have drawn them up.
pub(crate) fn remove(crush: &mut CrushMap, osd: OsdId) -> Result<(), MonError> {
    if crush.has_device(osd) { crush.remove_device(osd).map_err(|error| invalid(&error)) } else { Ok(()) }
}

/// How many separate failure domains of level `kind` hold a disk.
pub(crate) fn domains(crush: &CrushMap, kind: &str) -> u32 {
    let osds = crush.devices_beneath(ROOT);
    let domains: BTreeSet<String> = osds.into_iter().filter_map(|osd| crush.failure_domain_of(osd, kind)).collect();
    u32::try_from(domains.len()).unwrap_or(u32::MAX)
}

/// The number of the rule for copies of which no two share a bucket of level `kind`; makes it when there is none.
pub(crate) fn rule_for(crush: &mut CrushMap, kind: &str) -> Result<u32, MonError> {
    let parts = crush.parts();
    let (Some(type_id), Some(root)) = (parts.type_named(kind), parts.item_named(ROOT)) else {
        let known: Vec<&str> = parts.types.values().map(String::as_str).collect();
        return Err(invalid(&format!("{kind:?} is no failure domain; known are {}", known.join(", "))));
    };
    let fits = |steps: &[Step]| match steps {
        [Step::Take { item, class: None }, Step::Choose { mode, count: 0, type_id: level, leaf }, Step::Emit] => {
            *item == root && *mode == ChooseMode::Firstn && *level == type_id && (*leaf || type_id == DEVICE_TYPE)
        }
        _ => false,
    };
    if let Some((rule, _)) = parts.rules.iter().find(|(_, rule)| fits(&rule.steps)) {
        return Ok(rule.0);
    }
    let name = format!("replicated_{kind}");
    let rule = SimpleRule { name: &name, kind: RuleKind::Replicated, root: ROOT, failure_domain: kind, class: None };
    crush.add_rule(rule).map(|rule| rule.0).map_err(|error| invalid(&error))
}

/// The level of which no two copies of the rule share a bucket, for people.
pub(crate) fn domain_of_rule(crush: &CrushMap, rule: u32) -> String {
    let parts = crush.parts();
    let level = parts.rules.get(&RuleId(rule)).and_then(|rule| {
        rule.steps.iter().find_map(|step| if let Step::Choose { type_id, .. } = step { Some(*type_id) } else { None })
    });
    level.and_then(|level| parts.types.get(&level).cloned()).unwrap_or_else(|| "unknown".to_owned())
}
