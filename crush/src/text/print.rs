//! Prints a map exactly as `crushtool -d` of Ceph 16.2 does.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use crate::CrushMap;
use crate::model::{Bucket, BucketAlg, FixedTunable, ItemId, Parts, Step, TypeId};

impl CrushMap {
    /// The canonical text of the map.
    ///
    /// Weights are printed with three decimals, as Ceph does, so a finer weight does not survive printing and parsing.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let mut printer = Printer { parts: self.parts(), out: &mut out, printed: BTreeSet::new() };
        printer.map().expect("writing to a string cannot fail");
        out
    }
}

struct Printer<'a> {
    parts: &'a Parts,
    out: &'a mut String,
    printed: BTreeSet<ItemId>,
}

impl Printer<'_> {
    fn map(&mut self) -> fmt::Result {
        writeln!(self.out, "# begin crush map")?;
        self.tunables()?;
        writeln!(self.out, "\n# devices")?;
        for (id, device) in &self.parts.devices {
            write!(self.out, "device {id} {}", device.name)?;
            self.class(device.class)?;
            writeln!(self.out)?;
        }
        writeln!(self.out, "\n# types")?;
        for (id, name) in &self.parts.types {
            writeln!(self.out, "type {id} {name}")?;
        }
        writeln!(self.out, "\n# buckets")?;
        for id in self.parts.buckets.keys().rev() {
            self.bucket_after_children(*id)?;
        }
        writeln!(self.out, "\n# rules")?;
        self.rules()?;
        writeln!(self.out, "\n# end crush map")
    }

    fn tunables(&mut self) -> fmt::Result {
        let tunables = &self.parts.tunables;
        for (name, value, legacy) in [
            ("choose_local_tries", 0, 2),
            ("choose_local_fallback_tries", 0, 5),
            ("choose_total_tries", tunables.choose_total_tries, 19),
            ("chooseleaf_descend_once", 1, 0),
            ("chooseleaf_vary_r", 1, 0),
            ("chooseleaf_stable", 1, 0),
            ("straw_calc_version", tunables.straw_calc_version, 0),
            ("allowed_bucket_algs", tunables.allowed_bucket_algs, super::parse::LEGACY_BUCKET_ALGS),
        ] {
            if value != legacy {
                writeln!(self.out, "tunable {name} {value}")?;
            }
        }
        Ok(())
    }

    fn class(&mut self, class: Option<u8>) -> fmt::Result {
        match class.and_then(|class| self.parts.classes.get(usize::from(class))) {
            Some(class) => write!(self.out, " class {class}"),
            None => Ok(()),
        }
    }

    /// A bucket can only be read after what it holds. As deep as the hierarchy, once for each bucket.
    fn bucket_after_children(&mut self, id: ItemId) -> fmt::Result {
        let parts = self.parts;
        let Some(bucket) = parts.buckets.get(&id) else { return Ok(()) };
        if !self.printed.insert(id) {
            return Ok(());
        }
        for item in &bucket.items {
            self.bucket_after_children(item.id)?;
        }
        self.bucket(id, bucket)
    }

    fn bucket(&mut self, id: ItemId, bucket: &Bucket) -> fmt::Result {
        self.type_name(bucket.type_id)?;
        writeln!(self.out, " {} {{", bucket.name)?;
        writeln!(self.out, "\tid {id}\t\t# do not change unnecessarily")?;
        for (class, shadow) in &bucket.shadow_ids {
            write!(self.out, "\tid {shadow}")?;
            self.class(Some(*class))?;
            writeln!(self.out, "\t\t# do not change unnecessarily")?;
        }
        writeln!(self.out, "\t# weight {}", Weight(u32::try_from(bucket.weight()).unwrap_or(u32::MAX)))?;
        write!(self.out, "\talg {}", bucket.alg.name())?;
        if bucket.alg == BucketAlg::Uniform {
            write!(self.out, "\t# do not change bucket size ({}) unnecessarily", bucket.items.len())?;
        }
        writeln!(self.out, "\n\thash 0\t# rjenkins1")?;
        for (position, item) in bucket.items.iter().enumerate() {
            write!(self.out, "\titem ")?;
            self.item_name(item.id)?;
            write!(self.out, " weight {}", Weight(item.weight))?;
            if bucket.alg == BucketAlg::Uniform {
                write!(self.out, " pos {position}")?;
            }
            writeln!(self.out)?;
        }
        writeln!(self.out, "}}")
    }

    fn type_name(&mut self, type_id: TypeId) -> fmt::Result {
        match self.parts.types.get(&type_id) {
            Some(name) => self.out.write_str(name),
            None => write!(self.out, "type{type_id}"),
        }
    }

    fn item_name(&mut self, id: ItemId) -> fmt::Result {
        let device = u32::try_from(id).ok().and_then(|id| self.parts.devices.get(&id)).map(|device| &device.name);
        match device.or_else(|| self.parts.buckets.get(&id).map(|bucket| &bucket.name)) {
            Some(name) => self.out.write_str(name),
            None => write!(self.out, "item{id}"),
        }
    }

    fn rules(&mut self) -> fmt::Result {
        for (id, rule) in &self.parts.rules {
            writeln!(self.out, "rule {} {{\n\tid {id}\n\ttype {}", rule.name, rule.kind.name())?;
            for (name, size) in [("min_size", rule.min_size), ("max_size", rule.max_size)] {
                if let Some(size) = size {
                    writeln!(self.out, "\t{name} {size}")?;
                }
            }
            for step in &rule.steps {
                write!(self.out, "\tstep ")?;
                self.step(step)?;
                writeln!(self.out)?;
            }
            writeln!(self.out, "}}")?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> fmt::Result {
        match step {
            Step::Take { item, class } => {
                write!(self.out, "take ")?;
                self.item_name(*item)?;
                self.class(*class)
            }
            Step::Choose { mode, count, type_id, leaf } => {
                let verb = if *leaf { "chooseleaf" } else { "choose" };
                write!(self.out, "{verb} {} {count} type ", mode.name())?;
                self.type_name(*type_id)
            }
            Step::Emit => write!(self.out, "emit"),
            Step::SetChooseTries(value) => write!(self.out, "set_choose_tries {value}"),
            Step::SetChooseleafTries(value) => write!(self.out, "set_chooseleaf_tries {value}"),
            Step::Restate(tunable) => write!(self.out, "{} {}", FixedTunable::step_name(*tunable), tunable.value()),
        }
    }
}

/// A 16.16 weight with three decimals, rounded as C rounds the nearest `float`: half to even.
struct Weight(u32);

impl fmt::Display for Weight {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float of 0 to 2^32 is a u64")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousandths = (self.0 as f32) as u64 * 1000;
        let (whole, rest) = (thousandths >> 16, thousandths & 0xffff);
        let up = rest > 0x8000 || (rest == 0x8000 && whole % 2 == 1);
        let rounded = whole + u64::from(up);
        write!(f, "{}.{:03}", rounded / 1000, rounded % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::Weight;

    #[test]
    fn weights_round_half_to_even_like_printf() {
        for (weight, text) in [
            (0, "0.000"),
            (0x10000, "1.000"),
            (0x1000, "0.062"),
            (0x3000, "0.188"),
            (33, "0.001"),
            (0xffff_ffff, "65536.000"),
        ] {
            assert_eq!(Weight(weight).to_string(), text, "{weight:#x}");
        }
    }
}
