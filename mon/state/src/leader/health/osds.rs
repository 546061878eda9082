//! OSDs: down, flapping, silent, damaged.

use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_types::{OsdId, Timestamp};
use holdfast_wire::mon::{HealthCheck, Severity};

use super::super::explain::names;
use super::super::out::{Fate, Limits};
use super::super::stats::Stats;
use super::super::{Leader, Scene, Suspect};
use super::{check, plural};
use crate::notes::HoldOff;
use crate::words::{rfc3339, span};

fn host(map: &ClusterMap, osd: OsdId) -> String {
    map.crush.failure_domain_of(osd, "host").unwrap_or_else(|| "no host".into())
}

pub(super) fn down(leader: &Leader, now: Timestamp, map: &ClusterMap) -> Option<HealthCheck> {
    let down: Vec<_> = map.osds.iter().filter(|(_, info)| !info.up && info.in_cluster).collect();
    if down.is_empty() {
        return None;
    }
    let limits = Limits::of(map, &leader.stats, now);
    let line = |(osd, info): &(&OsdId, &holdfast_map::OsdInfo)| {
        let fate = fate_words(leader.fate(now, &limits, **osd));
        format!("{osd} on {} ({}) is down; {fate}", host(map, **osd), info.address)
    };
    Some(check(
        "OSD_DOWN",
        Severity::Warning,
        format!("{} of {} down", plural(down.len(), "OSD", "OSDs"), map.osds.len()),
        down.iter().map(line).collect(),
        "objects on it have fewer copies until it is back or its data has been copied elsewhere",
        "start `holdfast osd` on that host and read its log; a lost disk is replaced after `holdfast osd out`",
    ))
}

/// What becomes of its data.
pub(in super::super) fn fate_words(fate: Option<Fate>) -> String {
    match fate {
        None => "nothing is decided yet".to_owned(),
        Some(Fate::OutIn(left)) => format!("its data goes to others in {}", span(left)),
        Some(Fate::Out) => "its data goes to others now".to_owned(),
        Some(Fate::Stays(reason)) => format!("its data stays with it: {reason}"),
    }
}

pub(super) fn flapping(scene: &Scene) -> Option<HealthCheck> {
    let held = scene.notes.iter().filter_map(|(osd, note)| Some((*osd, note.held(scene.at_unix_ms)?)));
    let held: Vec<(OsdId, HoldOff)> =
        held.filter(|(osd, _)| scene.map.osds.get(osd).is_some_and(|info| !info.up)).collect();
    if held.is_empty() {
        return None;
    }
    let line = |(osd, held): &(OsdId, HoldOff)| format!("{osd} on {} {}", host(&scene.map, *osd), held_words(held));
    Some(check(
        "OSD_FLAPPING",
        Severity::Warning,
        format!("{} kept down for going silent again and again", plural(held.len(), "OSD is", "OSDs are")),
        held.iter().map(line).collect(),
        "its copies do not count until it is up; each return would have made placement groups peer anew",
        "mend its network or its disk; `holdfast osd release ID` lets it boot at once",
    ))
}

/// Why it is held off, and for how long.
pub(in super::super) fn held_words(held: &HoldOff) -> String {
    format!(
        "went silent more than {} times within 10 minutes: its boots are refused until {}, for {} more (hold-off {} in a \
         row; the next lasts {})",
        crate::notes::FLAPS_MAX,
        rfc3339(held.until_ms),
        span(Duration::from_millis(held.left_ms)),
        held.in_a_row,
        span(Duration::from_millis(held.next_ms)),
    )
}

/// OSDs that the map has up, and that somebody hears nothing of.
pub(super) fn silent(leader: &Leader, now: Timestamp, map: &ClusterMap) -> Option<HealthCheck> {
    let silent = leader.suspects(now, map);
    if silent.is_empty() {
        return None;
    }
    let withheld = silent.iter().any(|suspect| suspect.withheld);
    let severity = if withheld { Severity::Error } else { Severity::Warning };
    let impact = if withheld {
        "so much silence at once is more likely the network's: requests to these OSDs wait"
    } else {
        "requests to these OSDs may wait; one that neither its peers nor the monitors hear of is marked down soon"
    };
    let line = |suspect: &Suspect| {
        format!("{} on {}: {}", suspect.osd, host(map, suspect.osd), silence_words(&suspect.silent_to, suspect.silence))
    };
    Some(check(
        "OSD_SILENT",
        severity,
        format!("{} silent, and not marked down", plural(silent.len(), "OSD is", "OSDs are")),
        silent.iter().map(line).collect(),
        impact,
        "mend the network between the hosts, or the process that hangs; `holdfast osd down ID` if it is really gone",
    ))
}

/// Who hears nothing of an OSD.
pub(in super::super) fn silence_words(silent_to: &[OsdId], silence: Option<Duration>) -> String {
    let told = |time| format!("it has told the monitors nothing for {}", span(time));
    match (silent_to.is_empty(), silence) {
        (false, Some(time)) => format!("{} hear nothing of it, and {}", names(silent_to), told(time)),
        (false, None) => format!("{} hear nothing of it", names(silent_to)),
        (true, Some(time)) => told(time),
        (true, None) => "somebody hears nothing of it".to_owned(),
    }
}

pub(super) fn damage(map: &ClusterMap, stats: &Stats) -> Option<HealthCheck> {
    let damaged: Vec<(OsdId, u64, u64)> = map
        .osds
        .keys()
        .map(|osd| {
            let (found, repaired) = stats.damage(*osd);
            (*osd, found, repaired)
        })
        .filter(|(_, found, _)| *found > 0)
        .collect();
    if damaged.is_empty() {
        return None;
    }
    Some(check(
        "OSD_CHECKSUM_ERRORS",
        Severity::Warning,
        format!("{} returned damaged blocks", plural(damaged.len(), "OSD has", "OSDs have")),
        damaged
            .iter()
            .map(|(osd, found, repaired)| format!("{osd}: {found} damaged blocks, {repaired} repaired from a copy"))
            .collect(),
        "no wrong byte was served; the device loses data",
        "check the device's health log; replace it if this goes on",
    ))
}

pub(super) fn copies_lost(map: &ClusterMap, stats: &Stats) -> Option<HealthCheck> {
    let losers = map.osds.keys().map(|osd| (*osd, stats.copies_lost(*osd))).filter(|(_, lost)| *lost > 0);
    let losers: Vec<(OsdId, u64)> = losers.collect();
    if losers.is_empty() {
        return None;
    }
    let copies = |lost| format!("{} of placement groups", plural(lost, "copy", "copies"));
    Some(check(
        "OSD_COPIES_LOST",
        Severity::Warning,
        format!("{} given up what could not be used", plural(losers.len(), "OSD has", "OSDs have")),
        losers
            .iter()
            .map(|(osd, lost)| {
                format!("{osd}: {} since its start", copies(usize::try_from(*lost).unwrap_or(usize::MAX)))
            })
            .collect(),
        "they are filled anew from the other copies; until then a further failure weighs more",
        "read that daemon's log and check the device; replace it if it happens again",
    ))
}
