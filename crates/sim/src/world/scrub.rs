//! The calendar, by which copies are scrubbed; and what must be true when they have been.

use std::time::Duration;

use holdfast_pg::Input;
use holdfast_pg::memory::MemoryObject;
use holdfast_types::{OsdId, PgId};

use super::World;

/// Unix time at the start of a run, in milliseconds.
const START_MS: u64 = 1_700_000_000_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// Days within which each object is read on each member: a week, and as much again, because days fly and scrubs do not.
const DEEP_SCRUB_DAYS: u32 = 16;

impl World {
    /// Tells the time of day to all that run.
    pub(super) fn tell_time(&mut self) {
        let Some(day) = self.config.day else { return };
        let passed = u128::from(self.now.as_nanos()) * u128::from(DAY_MS) / day.as_nanos().max(1);
        let unix_ms = START_MS + u64::try_from(passed).unwrap_or(u64::MAX / 2);
        for osd in 0..self.config.osds {
            let node = &self.nodes[osd as usize];
            let pgs: Vec<PgId> = if node.running { node.pgs.keys().copied().collect() } else { Vec::new() };
            for pg in pgs {
                self.step(OsdId(osd), pg, Input::WallClock { unix_ms });
            }
        }
    }

    /// Whether the death of this OSD may leave no good copy of an object: a copy is bad elsewhere, and a write to it may have
    /// reached no other disk yet. In the worlds without scrubs this is up to their rates.
    pub(super) fn is_double_fault(&self, victim: OsdId) -> bool {
        let bad_elsewhere = |node: &crate::node::Node| {
            let mut collections = node.disk.collections();
            node.id != victim && collections.any(|(_, collection)| collection.objects.values().any(is_bad))
        };
        self.config.day.is_some() && self.nodes.iter().any(bad_elsewhere)
    }

    /// Lets a week pass, and then looks at the disks: no bad copy may be left, though nobody has read it.
    pub(super) fn scrub_all(&mut self) -> Result<(), String> {
        let Some(day) = self.config.day else { return Ok(()) };
        for _ in 0..DEEP_SCRUB_DAYS * 4 {
            self.tell_time();
            self.run_until(self.now + day.max(Duration::from_millis(1)) / 4)?;
        }
        self.settle()?;
        for node in &self.nodes {
            for (pg, collection) in node.disk.collections() {
                if let Some((key, _)) = collection.objects.iter().find(|(_, object)| is_bad(object)) {
                    return Err(format!("N8: after a week of scrubs {} still has a bad {key:?} in {pg}", node.id));
                }
            }
        }
        for report in
            self.nodes.iter().flat_map(|node| node.pgs.values()).filter(|pg| pg.is_primary()).map(|pg| pg.report())
        {
            let Some(scrub) = &report.scrub else { return Err(format!("N8: {} was never scrubbed", report.pg)) };
            if scrub.deep_scrubbed_ms == 0 || scrub.objects_inconsistent > 0 {
                return Err(format!("N8: {}: {scrub:?}", report.pg));
            }
            self.copies_scrubbed += scrub.copies_repaired;
        }
        Ok(())
    }
}

fn is_bad(object: &MemoryObject) -> bool {
    object.rotten || object.unreadable
}
