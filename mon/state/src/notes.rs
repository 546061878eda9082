//! What the monitors keep of an OSD beside the map: why it is out, and how often it went silent.
//!
//! | markdowns for silence within 10 minutes | then |
//! |---|---|
//! | up to [`FLAPS_MAX`] | the OSD may boot again at once |
//! | more | its boots are refused for 1 minute; each further time twice as long, up to 16 minutes |
//!
//! Ten quiet minutes after a hold-off the count starts anew. The monitors refuse; the process is not asked to limit
//! itself, for whatever supervises it would start it again. A process that ended is no flapping: a supervisor limits
//! restarts, and holding off a crashed OSD would only delay recovery.

use std::collections::BTreeMap;

use holdfast_map::ClusterMap;
use holdfast_types::{Epoch, OsdId};
use minicbor::{Decode, Encode};

/// Markdowns for silence within [`FLAP_WINDOW_MS`] that an OSD may have before its boots are held off.
pub(crate) const FLAPS_MAX: usize = 5;
/// See [`FLAPS_MAX`].
const FLAP_WINDOW_MS: u64 = 600_000;
/// The first hold-off; each further one is twice as long.
const HOLD_OFF_MS: u64 = 60_000;
/// Hold-offs double this often at most: 16 minutes.
const HOLD_OFF_DOUBLINGS_MAX: u32 = 4;

/// Why an OSD is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum OutReason {
    /// Never booted.
    #[n(0)]
    New,
    /// Down for long; it comes back in when it boots.
    #[n(1)]
    Automatic,
    /// An operator said so; only an operator takes it back.
    #[n(2)]
    Operator,
}

/// How an OSD came to be down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum DownReason {
    /// Its peers heard nothing of it.
    #[n(0)]
    Silent,
    /// Its process had ended: connections were refused, the monitor's own, too.
    #[n(1)]
    Ended,
    /// It said that it stops.
    #[n(2)]
    Stopped,
    /// An operator said so.
    #[n(3)]
    Operator,
}

/// What is kept of one OSD.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct OsdNote {
    #[n(0)]
    pub(crate) out: Option<OutReason>,
    /// When it was marked down for silence, in Unix milliseconds.
    #[n(1)]
    silences_ms: Vec<u64>,
    #[n(2)]
    held_until_ms: u64,
    #[n(3)]
    hold_offs: u32,
    /// How it last went down.
    #[n(4)]
    down: Option<DownReason>,
    /// When, in Unix milliseconds.
    #[n(5)]
    down_at_ms: Option<u64>,
    /// What it said at its newest boot of splitting its copies; nothing: its build does not know of it.
    #[n(6)]
    can_split: Option<bool>,
}

/// The notes of all OSDs.
pub(crate) type OsdNotes = BTreeMap<OsdId, OsdNote>;

/// The OSDs, those that are down too, that have booted and have not said that they split their copies. While there is one, no
/// pool is to be split: it would keep in the parent what everybody looks for in the children. One that has never booted has no
/// copy yet, and says it when it does.
pub(crate) fn unable_to_split(map: &ClusterMap, notes: &OsdNotes) -> Vec<OsdId> {
    let is_able = |osd: &OsdId| notes.get(osd).is_some_and(OsdNote::can_split);
    let has_booted = map.osds.iter().filter(|(_, info)| info.up_from > Epoch::ZERO);
    has_booted.filter(|(osd, _)| !is_able(osd)).map(|(osd, _)| *osd).collect()
}

/// A hold-off that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldOff {
    /// When it ends, in Unix milliseconds.
    pub until_ms: u64,
    /// How much of it is left.
    pub left_ms: u64,
    /// The how manieth in a row it is, from 1.
    pub in_a_row: u32,
    /// How long the next one would be.
    pub next_ms: u64,
}

fn length_ms(hold_offs: u32) -> u64 {
    HOLD_OFF_MS << hold_offs.min(HOLD_OFF_DOUBLINGS_MAX)
}

impl OsdNote {
    /// It has an id, and has not booted yet.
    pub(crate) fn of_new_disk() -> OsdNote {
        OsdNote { out: Some(OutReason::New), ..OsdNote::default() }
    }

    /// Why it is out, while it is.
    #[must_use]
    pub fn out(&self) -> Option<OutReason> {
        self.out
    }

    /// Whether it splits its copies when a pool is split, by what it said at its newest boot.
    #[must_use]
    pub fn can_split(&self) -> bool {
        self.can_split.unwrap_or(false)
    }

    pub(crate) fn note_boot(&mut self, can_split: bool) {
        self.can_split = can_split.then_some(true);
    }

    /// How it last went down, and when, in Unix milliseconds.
    #[must_use]
    pub fn down(&self) -> Option<(DownReason, u64)> {
        self.down.zip(self.down_at_ms)
    }

    pub(crate) fn note_down(&mut self, at_ms: u64, reason: DownReason) {
        self.down = Some(reason);
        self.down_at_ms = Some(at_ms);
        if reason == DownReason::Silent {
            self.note_silence(at_ms);
        }
    }

    /// The hold-off that keeps it down now.
    #[must_use]
    pub fn held(&self, at_ms: u64) -> Option<HoldOff> {
        let left_ms = self.held_until_ms.saturating_sub(at_ms);
        // One that is longer than the longest was set by a leader whose clock was ahead: it is none.
        let longest = length_ms(HOLD_OFF_DOUBLINGS_MAX);
        (left_ms > 0 && left_ms <= longest).then(|| HoldOff {
            until_ms: self.held_until_ms,
            left_ms,
            in_a_row: self.hold_offs.max(1),
            next_ms: length_ms(self.hold_offs),
        })
    }

    /// How often it was marked down for silence in the last ten minutes, those before its last hold-off excepted.
    #[must_use]
    pub fn silences(&self, at_ms: u64) -> usize {
        self.silences_ms.iter().filter(|silence| at_ms.saturating_sub(**silence) < FLAP_WINDOW_MS).count()
    }

    /// It was marked down for silence.
    fn note_silence(&mut self, at_ms: u64) {
        self.silences_ms.retain(|silence| at_ms.saturating_sub(*silence) < FLAP_WINDOW_MS);
        if self.silences_ms.is_empty() && at_ms.saturating_sub(self.held_until_ms) > FLAP_WINDOW_MS {
            self.hold_offs = 0;
        }
        self.silences_ms.push(at_ms);
        if self.silences_ms.len() > FLAPS_MAX {
            self.silences_ms.clear();
            self.held_until_ms = at_ms.saturating_add(length_ms(self.hold_offs));
            self.hold_offs = self.hold_offs.saturating_add(1);
        }
    }

    /// Ends its hold-off. The next one is still longer.
    pub(crate) fn release(&mut self, at_ms: u64) {
        self.held_until_ms = self.held_until_ms.min(at_ms);
        self.silences_ms.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes silent until it is held off, a second apart, from `at` on.
    fn flap(note: &mut OsdNote, at: &mut u64) -> HoldOff {
        loop {
            note.note_silence(*at);
            if let Some(held) = note.held(*at) {
                return held;
            }
            *at += 1_000;
        }
    }

    #[test]
    fn hold_offs_grow_while_it_flaps_and_shrink_after_quiet() {
        let (mut note, mut at) = (OsdNote::default(), 100_000_000_000);
        let mut lengths = Vec::new();
        for _ in 0..7 {
            let held = flap(&mut note, &mut at);
            lengths.push(held.left_ms / HOLD_OFF_MS);
            assert_eq!(held.in_a_row as usize, lengths.len());
            at = held.until_ms;
            assert_eq!(note.held(at), None, "it ends when it says");
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 16, 16]);
        at += FLAP_WINDOW_MS + 1;
        assert_eq!(flap(&mut note, &mut at).left_ms, HOLD_OFF_MS);
    }

    #[test]
    fn silences_far_apart_hold_nothing_off() {
        let mut note = OsdNote::default();
        for at in (0..100u64).map(|n| 1 + n * (FLAP_WINDOW_MS / 4)) {
            note.note_silence(at);
            assert_eq!(note.held(at), None);
            assert!(note.silences(at) <= FLAPS_MAX, "and no more are remembered than count");
        }
    }

    #[test]
    fn a_release_ends_a_hold_off_and_a_clock_that_was_ahead_makes_none() {
        let (mut note, mut at) = (OsdNote::default(), 100_000_000_000);
        flap(&mut note, &mut at);
        note.release(at);
        assert_eq!(note.held(at), None);
        assert!(flap(&mut note, &mut at).left_ms > HOLD_OFF_MS, "the next one is longer all the same");
        assert_eq!(note.held(at - 24 * 3_600_000), None, "a day ahead");
    }
}
