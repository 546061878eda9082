//! What the monitors decide by themselves, counted: who flaps is held off, placement groups are exchanged and split. And the
//! network of one OSD that fails again and again, for just as long as it takes to be marked down.

use std::time::Duration;

use holdfast_mon_state::Change;
use holdfast_types::OsdId;
use holdfast_wire::mon::MonCommand;
use rand::Rng;

use crate::config::{Config, Faults};
use crate::cuts::Cut;
use crate::faults::FaultKind;
use crate::world::{Event, World};

impl World {
    /// Cuts off the OSD that flaps, if it is up, until its peers have had it marked down.
    pub(crate) fn flap(&mut self) {
        if !self.working {
            return;
        }
        let victim = self.rot_victim;
        let (cut, next) = (self.rng.random_range(6_500..8_500), self.rng.random_range(11_000..14_000));
        let may = self.node(victim).is_up() && self.cut_off.is_empty();
        if may && self.deals(format!("{victim} is cut off for {cut} ms")) {
            self.counts.add(FaultKind::CutOff, 1);
            self.cut_off.insert(victim, Cut::Whole);
            self.schedule(Duration::from_millis(cut), Event::Reconnect { osd: victim });
        }
        self.schedule(Duration::from_millis(next), Event::Flap);
    }

    /// As what a proposal of the monitors' own is counted when it was carried out.
    pub(crate) fn decision(change: &Change) -> Option<FaultKind> {
        match change {
            Change::Upmap(_) => Some(FaultKind::Balanced),
            Change::Split { .. } => Some(FaultKind::Grown),
            Change::Spread { .. } => Some(FaultKind::GrownSpread),
            Change::Request(MonCommand::OsdRelease(_)) => Some(FaultKind::HoldOffCutShort),
            _ => None,
        }
    }

    /// Counts hold-offs that begin and end.
    pub(crate) fn count_hold_offs(&mut self) {
        let held: std::collections::BTreeSet<OsdId> = self.monitor.held_off(self.now);
        let before = std::mem::replace(&mut self.health.held_off, held);
        let now = &self.health.held_off;
        let (begun, over) = (now.difference(&before).count(), before.difference(now).count());
        self.counts.add(FaultKind::HeldOff, begun as u64);
        self.counts.add(FaultKind::HoldOffOver, over as u64);
    }
}

impl Config {
    /// For a quarter of an hour one OSD loses its network again and again, for just as long as it takes to be marked down, until
    /// the monitors hold it off. Others die now and then, and what waits for it then ends the hold-off.
    #[must_use]
    pub fn flap() -> Config {
        let faults = Faults {
            loss: 0.005,
            kills_per_second: 0.006,
            leader_changes_per_second: 0.004,
            slow_sync: 0.05,
            delay_max: Duration::from_millis(10),
            ..Faults::NONE
        };
        let (duration, pause) = (Duration::from_secs(900), Duration::from_millis(1_500));
        Config { osds: 4, pgs_used: 2, clients: 2, depth: 1, duration, pause, faults, flaps: true, ..Config::storm() }
    }

    /// Data grows beyond what the pool was made for: the monitors split it, place it anew and balance it, each time when all has
    /// been clean for a while, though processes and machines fail in between.
    #[must_use]
    pub fn growth() -> Config {
        let faults = Faults {
            loss: 0.01,
            kills_per_second: 0.015,
            power_cuts_per_second: 0.015,
            leader_changes_per_second: 0.01,
            slow_sync: 0.1,
            delay_max: Duration::from_millis(10),
            downtime_max: Duration::from_secs(4),
            ..Faults::NONE
        };
        let (duration, pause) = (Duration::from_secs(100), Duration::from_millis(250));
        Config { osds: 4, clients: 2, depth: 2, duration, pause, faults, split_bytes_min: Some(1), ..Config::storm() }
    }
}
