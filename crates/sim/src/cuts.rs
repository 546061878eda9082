//! Who reaches whom: an OSD is cut off as a whole, from the cluster, from monitors or clients alone, or in one direction; or
//! only its heartbeats are lost. And connections that break with all that is on its way.

use std::time::Duration;

use holdfast_types::OsdId;
use rand::Rng;
use rand::seq::SliceRandom;

use crate::faults::FaultKind;
use crate::watch::Beat;
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
    /// Heartbeats of it and to it, and their answers; all else arrives.
    Heartbeats,
    /// That to monitors: they do not hear it, and no maps reach it, not by its peers either. Peers and clients reach it.
    FromMonitors,
    /// That to clients.
    FromClients,
}

impl World {
    /// Whether what OSDs send arrives there.
    fn hears(&self, osd: OsdId) -> bool {
        !matches!(self.cut_off.get(&osd), Some(Cut::Whole | Cut::FromCluster | Cut::Deaf))
    }

    /// Whether what it sends to OSDs arrives.
    fn is_heard(&self, osd: OsdId) -> bool {
        !matches!(self.cut_off.get(&osd), Some(Cut::Whole | Cut::FromCluster | Cut::Mute))
    }

    /// Whether other OSDs can make a connection to it.
    pub(crate) fn is_connected(&self, osd: OsdId) -> bool {
        self.hears(osd) && self.is_heard(osd)
    }

    /// Whether what monitors send arrives there.
    pub(crate) fn hears_monitors(&self, osd: OsdId) -> bool {
        self.hears(osd) && self.cut_off.get(&osd) != Some(&Cut::FromMonitors)
    }

    /// Whether what it sends to monitors arrives.
    pub(crate) fn monitors_hear_it(&self, osd: OsdId) -> bool {
        self.is_heard(osd) && self.cut_off.get(&osd) != Some(&Cut::FromMonitors)
    }

    /// Whether monitors can make a connection to it.
    pub(crate) fn is_connected_to_monitors(&self, osd: OsdId) -> bool {
        self.hears_monitors(osd) && self.monitors_hear_it(osd)
    }

    /// Whether a heartbeat of the one, or its answer to one, reaches the other.
    pub(crate) fn beat_reaches(&self, from: OsdId, to: OsdId) -> bool {
        let lost = |osd| self.cut_off.get(osd) == Some(&Cut::Heartbeats);
        self.reaches(from, to) && !lost(&from) && !lost(&to)
    }

    /// Whether what the one sends reaches the other. A link may be open in the other direction only.
    pub(crate) fn reaches(&self, from: OsdId, to: OsdId) -> bool {
        let together = self.island.contains(&from) && self.island.contains(&to);
        together || self.is_heard(from) && self.hears(to) && !self.one_way.contains(&(from, to))
    }

    /// Whether clients reach it.
    pub(crate) fn serves(&self, osd: OsdId) -> bool {
        !matches!(self.cut_off.get(&osd), Some(Cut::Whole | Cut::FromClients))
    }

    pub(crate) fn cut_off(&mut self, victim: OsdId, cut: Cut) {
        let healed = self.rng.random_range(100..LENGTH_MS_MAX);
        let what = match cut {
            Cut::Whole => "is cut off",
            Cut::FromCluster => "is cut off from all but clients",
            Cut::Deaf => "hears nothing of monitors and OSDs",
            Cut::Mute => "is not heard by monitors and OSDs",
            Cut::Heartbeats => "hears and sends no heartbeats",
            Cut::FromMonitors => "is cut off from the monitors",
            Cut::FromClients => "is cut off from clients",
        };
        if !self.deals(format!("{victim} {what} for {healed} ms")) {
            return;
        }
        self.counts.add(
            match cut {
                Cut::Whole => FaultKind::CutOff,
                Cut::FromCluster => FaultKind::CutOffButServed,
                Cut::Deaf | Cut::Mute => FaultKind::OneWay,
                Cut::Heartbeats => FaultKind::HeartbeatsCut,
                Cut::FromMonitors => FaultKind::MonitorsCut,
                Cut::FromClients => FaultKind::ClientsCut,
            },
            1,
        );
        self.cut_off.insert(victim, cut);
        self.schedule(Duration::from_millis(healed), Event::Reconnect { osd: victim });
    }

    /// One of the sides of an OSD's network does not work; the others do.
    pub(crate) fn cut_one_side(&mut self, victim: OsdId) {
        let cut = match self.rng.random_range(0..3) {
            0 => Cut::Heartbeats,
            1 => Cut::FromMonitors,
            _ => Cut::FromClients,
        };
        self.cut_off(victim, cut);
    }

    /// The OSDs fall into two groups of which neither reaches the other.
    pub(crate) fn part(&mut self) {
        if !self.one_way.is_empty() || self.config.osds < 2 {
            return;
        }
        let mut osds: Vec<OsdId> = (0..self.config.osds).map(OsdId).collect();
        osds.shuffle(&mut self.rng);
        let (some, others) = osds.split_at(self.rng.random_range(1..osds.len()));
        let names = |osds: &[OsdId]| osds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let healed = self.rng.random_range(500..LENGTH_MS_MAX);
        if !self.deals(format!("{} and {} do not reach each other for {healed} ms", names(some), names(others))) {
            return;
        }
        self.counts.add(FaultKind::Parted, 1);
        let links = some.iter().flat_map(|one| others.iter().flat_map(move |other| [(*one, *other), (*other, *one)]));
        self.one_way = links.collect();
        self.schedule(Duration::from_millis(healed), Event::OneWayHealed);
    }

    /// Connections break, between two OSDs or all of one OSD: what is on its way on them is lost at one moment, and what is
    /// sent afterwards arrives.
    pub(crate) fn reset_connections(&mut self, victim: OsdId) {
        let apart = self.rng.random_range(1..self.config.osds);
        let other = Some(OsdId((victim.0 + apart) % self.config.osds)).filter(|_| self.rng.random_bool(0.5));
        let whose = other.map_or("all".to_owned(), |other| format!("those to {other}"));
        if !self.deals(format!("connections of {victim} break: {whose}")) {
            return;
        }
        let on_them = |from: OsdId, to: OsdId| match other {
            Some(other) => (from, to) == (victim, other) || (from, to) == (other, victim),
            None => from == victim || to == victim,
        };
        let lost = self.lose_in_flight(|event| match event {
            Event::Peer { from, to, .. } | Event::Beat(Beat { from, to, .. }) => on_them(*from, *to),
            Event::Request { to, .. } => other.is_none() && *to == victim,
            _ => false,
        });
        self.counts.add(FaultKind::ConnectionReset, u64::from(lost > 0));
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::{Epoch, Incarnation, Timestamp};

    use super::*;
    use crate::config::Config;

    const VICTIM: OsdId = OsdId(0);
    const OTHER: OsdId = OsdId(1);
    const THIRD: OsdId = OsdId(2);

    #[test]
    fn what_is_cut_on_one_side_is_whole_on_the_others() {
        let mut world = World::new(1, Config::calm()).expect("a world");
        let sides = |world: &World| {
            let peers = world.reaches(VICTIM, OTHER) && world.reaches(OTHER, VICTIM) && world.is_connected(VICTIM);
            let beats = world.beat_reaches(VICTIM, OTHER) && world.beat_reaches(OTHER, VICTIM);
            (peers, beats, world.is_connected_to_monitors(VICTIM), world.serves(VICTIM))
        };
        assert_eq!(sides(&world), (true, true, true, true));
        let cuts = [
            (Cut::Heartbeats, (true, false, true, true)),
            (Cut::FromMonitors, (true, true, false, true)),
            (Cut::FromClients, (true, true, true, false)),
            (Cut::FromCluster, (false, false, false, true)),
            (Cut::Whole, (false, false, false, false)),
        ];
        for (cut, expected) in cuts {
            world.cut_off.insert(VICTIM, cut);
            assert_eq!(sides(&world), expected, "{cut:?}");
            assert!(world.beat_reaches(OTHER, THIRD) && world.is_connected_to_monitors(OTHER), "{cut:?}");
        }
    }

    #[test]
    fn groups_that_are_parted_are_whole_in_themselves_and_until_they_meet_again() {
        let mut world = World::new(1, Config::storm()).expect("a world");
        world.part();
        let osds: Vec<OsdId> = (0..world.config.osds).map(OsdId).collect();
        let group = |world: &World, osd: OsdId| -> Vec<OsdId> {
            osds.iter().copied().filter(|other| world.reaches(osd, *other)).collect()
        };
        let first = group(&world, osds[0]);
        assert!(first.len() < osds.len());
        for osd in &osds {
            let own = group(&world, *osd);
            assert_eq!(own == first, first.contains(osd), "{osd} reaches {own:?}");
            assert!(own.contains(osd) && world.is_connected_to_monitors(*osd) && world.serves(*osd));
        }
        world.run_until(world.now + Duration::from_millis(LENGTH_MS_MAX)).expect("no violation");
        assert_eq!(group(&world, osds[0]), osds);
    }

    #[test]
    fn connections_that_break_lose_what_is_on_its_way_on_them_and_nothing_else() {
        let mut world = World::new(1, Config::calm()).expect("a world");
        let beat = |from, to| {
            let run = Incarnation(1);
            let asked = Timestamp::ZERO;
            Event::Beat(Beat { from, from_run: run, to, to_run: run, epoch: Epoch(1), asked, full: None })
        };
        for (from, to) in [(VICTIM, OTHER), (THIRD, VICTIM), (OTHER, THIRD)] {
            world.schedule(Duration::from_secs(1), beat(from, to));
        }
        // Either all of the victim, or those to one of the others.
        for _ in 0..50 {
            world.reset_connections(VICTIM);
        }
        assert!(world.counts.of(FaultKind::ConnectionReset) > 0);
        let lost = |world: &mut World, on: (OsdId, OsdId)| {
            world.lose_in_flight(|event| matches!(event, Event::Beat(beat) if (beat.from, beat.to) == on))
        };
        assert_eq!(lost(&mut world, (VICTIM, OTHER)) + lost(&mut world, (THIRD, VICTIM)), 0);
        assert_eq!(lost(&mut world, (OTHER, THIRD)), 1, "it is on another connection");
    }
}
