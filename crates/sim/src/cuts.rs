//! Who reaches whom: an OSD is cut off as a whole, from the cluster alone, or in one direction.

use std::time::Duration;

use holdfast_types::OsdId;
use rand::Rng;

use crate::faults::FaultKind;
use crate::world::{Event, World};

/// Longest time that an OSD stays cut off: three times its peers' patience.
const LENGTH_MS_MAX: u64 = 16_000;

/// What of an OSD's network does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All of it.
    Whole,
    /// That to monitors and other OSDs; clients reach it.
    FromCluster,
    /// What monitors and other OSDs send does not arrive.
    Deaf,
    /// What it sends to monitors and other OSDs does not arrive.
    Mute,
}

impl World {
    /// Whether what monitors and OSDs send arrives there.
    pub(crate) fn hears(&self, osd: OsdId) -> bool {
        matches!(self.cut_off.get(&osd), None | Some(Cut::Mute))
    }

    /// Whether what it sends to monitors and OSDs arrives.
    pub(crate) fn is_heard(&self, osd: OsdId) -> bool {
        matches!(self.cut_off.get(&osd), None | Some(Cut::Deaf))
    }

    /// Whether a connection to it can be made, by monitors and other OSDs.
    pub(crate) fn is_connected(&self, osd: OsdId) -> bool {
        !self.cut_off.contains_key(&osd)
    }

    /// Whether what the one sends reaches the other. A link may be open in the other direction only.
    pub(crate) fn reaches(&self, from: OsdId, to: OsdId) -> bool {
        let together = self.island.contains(&from) && self.island.contains(&to);
        together || self.is_heard(from) && self.hears(to) && !self.one_way.contains(&(from, to))
    }

    /// Whether clients reach it.
    pub(crate) fn serves(&self, osd: OsdId) -> bool {
        self.cut_off.get(&osd) != Some(&Cut::Whole)
    }

    pub(crate) fn cut_off(&mut self, victim: OsdId, cut: Cut) {
        let healed = self.rng.random_range(100..LENGTH_MS_MAX);
        let what = match cut {
            Cut::Whole => "is cut off",
            Cut::FromCluster => "is cut off from all but clients",
            Cut::Deaf => "hears nothing of monitors and OSDs",
            Cut::Mute => "is not heard by monitors and OSDs",
        };
        if !self.deals(format!("{victim} {what} for {healed} ms")) {
            return;
        }
        self.counts.add(
            match cut {
                Cut::Whole => FaultKind::CutOff,
                Cut::FromCluster => FaultKind::CutOffButServed,
                Cut::Deaf | Cut::Mute => FaultKind::OneWay,
            },
            1,
        );
        self.cut_off.insert(victim, cut);
        self.schedule(Duration::from_millis(healed), Event::Reconnect { osd: victim });
    }
}
