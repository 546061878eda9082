//! `holdfast crush test`: what `crushtool --test --show-mappings` prints, so that the two can be compared with `diff`.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use holdfast_crush::{CrushMap, MappingRun, RuleId, crushtool_show_mappings, reweight_from_f32};
use holdfast_types::OsdId;

use crate::args::CrushVerb;
use crate::failure::{Exit, Failure};

/// Runs the verb.
pub fn run(verb: CrushVerb) -> Result<(), Failure> {
    let CrushVerb::Test { map, rule, num_rep, min_x, max_x, pool_id, weight, show_mappings } = verb;
    let text = std::fs::read_to_string(&map).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Error };
        Failure::new(exit, format!("cannot read {}", map.display())).because(&error)
    })?;
    let parsed = CrushMap::parse_text(&text).map_err(|error| {
        Failure::usage(format!("{} is not a CRUSH map that can be used", map.display())).because(&error)
    })?;
    let run = MappingRun { rule: RuleId(rule), num_rep, x: min_x..=max_x, reweights: reweights(&weight)?, pool_id };
    let mut output = BufWriter::new(std::io::stdout().lock());
    let mut broken = false;
    let outcome = crushtool_show_mappings(&parsed, &run, |line| {
        if show_mappings && !broken {
            broken = writeln!(output, "{line}").is_err();
        }
    });
    outcome.map_err(|error| Failure::new(Exit::NotFound, error.to_string()))?;
    let _ = output.flush();
    Ok(())
}

/// Pairs of OSD and weight.
fn reweights(words: &[String]) -> Result<BTreeMap<OsdId, u32>, Failure> {
    let mut reweights = BTreeMap::new();
    for pair in words.chunks(2) {
        let [osd, weight] = pair else { continue };
        let osd: OsdId =
            osd.parse().map_err(|error| Failure::usage("--weight takes an OSD and a weight").because(&error))?;
        let weight: f32 = weight
            .parse()
            .map_err(|error| Failure::usage(format!("--weight {osd}: {weight:?} is no weight")).because(&error))?;
        if !(0.0..=1.0).contains(&weight) {
            return Err(Failure::usage(format!("--weight {osd}: {weight} is not between 0 and 1")));
        }
        reweights.insert(osd, reweight_from_f32(weight));
    }
    Ok(reweights)
}
