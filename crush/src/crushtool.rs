//! What `crushtool --test --show-mappings` prints, so that the two can be compared line by line.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::ops::RangeInclusive;

use holdfast_types::OsdId;

use crate::CrushMap;
use crate::hash::hash32_2;
use crate::mapper::Workspace;
use crate::model::{RuleId, WEIGHT_ONE};

/// The inputs of one test run; the fields are the options of the tool.
#[derive(Debug, Clone)]
pub struct MappingRun {
    /// `--rule`
    pub rule: RuleId,
    /// `--num-rep`
    pub num_rep: usize,
    /// `--min-x` and `--max-x`
    pub x: RangeInclusive<u32>,
    /// `--weight OSD W`: reweights, 16.16 fixed point ([`reweight_from_f32`]). Others are 1, or 0 for a device that no
    /// bucket holds.
    pub reweights: BTreeMap<OsdId, u32>,
    /// `--pool-id`: hashes each input with the pool first, as the cluster does.
    pub pool_id: Option<u32>,
}

/// A rule that the map does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the map has no rule {rule}")]
pub struct UnknownRule {
    /// The rule.
    pub rule: RuleId,
}

/// A reweight as the tool takes it: at most 1, at least 0, truncated to 16 fraction bits.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
pub fn reweight_from_f32(weight: f32) -> u32 {
    ((weight * WEIGHT_ONE as f32) as u32).min(WEIGHT_ONE)
}

/// Gives one line `CRUSH rule R x X [osd,osd,...]` for each input to `print`. As in the tool, nothing is printed when
/// all devices are out.
///
/// # Errors
/// [`UnknownRule`] before anything is printed.
pub fn crushtool_show_mappings(
    map: &CrushMap,
    run: &MappingRun,
    mut print: impl FnMut(&str),
) -> Result<(), UnknownRule> {
    if !map.parts().rules.contains_key(&run.rule) {
        return Err(UnknownRule { rule: run.rule });
    }
    let reweights = reweights(map, &run.reweights);
    if reweights.iter().all(|reweight| *reweight == 0) {
        return Ok(());
    }
    let mut workspace = Workspace::default();
    let mut line = String::new();
    for x in run.x.clone() {
        let input = run.pool_id.map_or(x, |pool| hash32_2(x, pool));
        let result = map.map_raw(run.rule, input, run.num_rep, &reweights, &mut workspace);
        line.clear();
        write_line(&mut line, run.rule, x, result).expect("writing to a string cannot fail");
        print(&line);
    }
    Ok(())
}

fn write_line(line: &mut String, rule: RuleId, x: u32, result: &[i32]) -> fmt::Result {
    write!(line, "CRUSH rule {rule} x {x} [")?;
    for (position, item) in result.iter().enumerate() {
        let comma = if position == 0 { "" } else { "," };
        write!(line, "{comma}{item}")?;
    }
    line.write_char(']')
}

/// Reweights by OSD id.
fn reweights(map: &CrushMap, given: &BTreeMap<OsdId, u32>) -> Vec<u32> {
    let devices = &map.parts().devices;
    let count = devices.keys().next_back().map_or(0, |last| last + 1);
    let reweight = |id: u32| {
        let placed = i32::try_from(id).is_ok_and(|item| !map.engine().parents(item).is_empty());
        given.get(&OsdId(id)).copied().unwrap_or(if placed { WEIGHT_ONE } else { 0 })
    };
    (0..count).map(reweight).collect()
}
