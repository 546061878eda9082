//! The calendar, by which copies are scrubbed; and what must be true when they have been.

use std::time::Duration;

use holdfast_pg::Input;
use holdfast_types::{OsdId, PgId};

use crate::monitor::WALL_CLOCK_MS;
use crate::world::World;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// Days within which each object is read on each member: a week, and far more, because days fly and scrubs do not.
const DEEP_SCRUB_DAYS: u32 = 80;

impl World {
    /// Tells the time of day to all that run.
    pub(crate) fn tell_time(&mut self) {
        let Some(day) = self.config.day else { return };
        let passed = u128::from(self.now.as_nanos()) * u128::from(DAY_MS) / day.as_nanos().max(1);
        let unix_ms = WALL_CLOCK_MS + u64::try_from(passed).unwrap_or(u64::MAX / 2);
        for osd in 0..self.config.osds {
            let node = self.node(OsdId(osd));
            let pgs: Vec<PgId> = if node.running { node.pgs.keys().copied().collect() } else { Vec::new() };
            for pg in pgs {
                self.step(OsdId(osd), pg, Input::WallClock { unix_ms });
            }
        }
    }

    /// Lets a week pass, and more. Afterwards [`World::check_copies`] finds no bad copy, though nobody has read it.
    pub(crate) fn scrub_all(&mut self) -> Result<(), String> {
        let Some(day) = self.config.day else { return Ok(()) };
        for _ in 0..DEEP_SCRUB_DAYS * 4 {
            self.tell_time();
            self.run_until(self.now + day.max(Duration::from_millis(1)) / 4)?;
        }
        self.settle()?;
        self.check_copies()?;
        let primaries = self.nodes.iter().flat_map(|node| node.pgs.values()).filter(|pg| pg.is_primary());
        let mut repaired = 0;
        for report in primaries.map(holdfast_pg::Pg::report) {
            let Some(scrub) = &report.scrub else { return Err(format!("N8: {} was never scrubbed", report.pg)) };
            if scrub.deep_scrubbed_ms == 0 || scrub.objects_inconsistent > 0 {
                return Err(format!("N8: {}: {scrub:?}", report.pg));
            }
            repaired += scrub.copies_repaired;
        }
        self.copies_scrubbed = repaired;
        Ok(())
    }
}
