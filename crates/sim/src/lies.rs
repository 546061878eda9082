//! A disk that lies: it acknowledges what it did not do, or answers with what is elsewhere. It is one disk in each run, and it
//! lies only where all copies are whole: of what was acknowledged, the others have everything.
//!
//! A write is dropped or goes elsewhere in the very commit, or step of maintenance, that begins then; a read is that of another
//! place once, whoever reads next. Syncs are acknowledged and not done for some moments, and then the power of this one OSD fails.

use std::time::Duration;

use holdfast_store::Lie;
use holdfast_types::OsdId;
use rand::Rng;

use crate::faults::FaultKind;
use crate::node::Node;
use crate::world::{Event, World};

/// Longest time from the first sync that is not done to the power cut.
const SYNCS_LOST_MS_MAX: u64 = 400;

impl World {
    /// The disk lies when it does next what it lies about.
    pub(crate) fn plan_lie(&mut self) {
        self.count_lies(self.rot_victim);
        if self.lie_due.is_none() {
            let kind = match self.rng.random_range(0..4) {
                0 => FaultKind::WriteDropped,
                1 => FaultKind::WriteMisdirected,
                2 => FaultKind::ReadMisdirected,
                _ => FaultKind::SyncLost,
            };
            let victim = self.rot_victim;
            if self.deals(format!("the disk of {victim} is to lie: {kind}")) {
                self.lie_due = Some(kind);
            }
        }
    }

    /// The disk of an OSD is about to write: if it is to lie, and all is whole otherwise, it does so now.
    pub(crate) fn lie(&mut self, osd: OsdId) {
        let Some(kind) = self.lie_due.filter(|_| osd == self.rot_victim && self.working) else { return };
        if !self.nodes.iter().all(Node::is_up) || !self.all_clean() {
            return;
        }
        self.lie_due = None;
        self.count_lies(osd);
        if self.config.trace {
            self.trace(&format!("{osd} lies: {kind}"));
        }
        let (nodes, rng) = (&mut self.nodes, &mut self.rng);
        let Some(node) = nodes.get_mut(osd.0 as usize) else { return };
        node.disk.lie(kind, rng);
        if kind == FaultKind::SyncLost {
            self.syncs_dropped = false;
            let (after, generation) = (rng.random_range(1..SYNCS_LOST_MS_MAX), node.generation);
            self.schedule(Duration::from_millis(after), Event::PowerFails { osd, generation });
        }
    }

    /// The power of an OSD fails whose disk did not do its syncs.
    pub(crate) fn power_fails(&mut self, osd: OsdId, generation: u64) {
        if self.node(osd).generation != generation {
            return; // its process was killed meanwhile, and its disk writes back what it has
        }
        if !self.working {
            return self.node(osd).disk.lie_no_more();
        }
        self.count_lies(osd);
        let dropped = std::mem::take(&mut self.syncs_dropped);
        let lost = self.counts.of(FaultKind::SectorLost);
        self.crash(osd, true);
        let lost = self.counts.of(FaultKind::SectorLost) > lost;
        self.counts.add(FaultKind::SyncLost, u64::from(dropped && lost));
    }

    /// Counts the lies that were told; syncs that are not done count when the power has failed.
    pub(crate) fn count_lies(&mut self, osd: OsdId) {
        if self.config.faults.lies_per_second == 0.0 {
            return;
        }
        for lie in self.node(osd).disk.lies_told() {
            match lie {
                Lie::WriteDropped => self.counts.add(FaultKind::WriteDropped, 1),
                Lie::WriteMisdirected { .. } => self.counts.add(FaultKind::WriteMisdirected, 1),
                Lie::ReadMisdirected { .. } => self.counts.add(FaultKind::ReadMisdirected, 1),
                Lie::SyncsDropped => self.syncs_dropped = true,
            }
        }
    }
}
