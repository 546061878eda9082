//! How full OSDs may become: the levels, where they begin, and what they forbid.
//!
//! | level | begins at | forbids on that OSD |
//! |---|---|---|
//! | near full | 85 % | nothing: a warning |
//! | backfill full | 90 % | copies moving to it; those that redundancy needs wait, too, unless they need less room than what was there |
//! | full | 95 % | writes that need space, in the whole cluster ([`crate::ClusterFlags::full`]) |
//! | failsafe | 97 % | the same, held to by each primary that has a member there: all but what frees space |
//!
//! A level ends [`HYSTERESIS_PERMILLE`] below where it begins, so that it does not flicker.

use minicbor::{Decode, Encode};

/// How far below its beginning a level ends.
pub const HYSTERESIS_PERMILLE: u32 = 20;

/// How full an OSD is. One that is below all of these has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum SpaceLevel {
    /// A warning only.
    #[n(1)]
    NearFull,
    /// It takes no further copies of placement groups.
    #[n(2)]
    BackfillFull,
    /// Writes that need space are refused or wait.
    #[n(3)]
    Full,
    /// Only what frees space, or is needed to go on at all.
    #[n(4)]
    Failsafe,
}

impl SpaceLevel {
    /// All levels, the fullest first.
    pub const ALL: [SpaceLevel; 4] =
        [SpaceLevel::Failsafe, SpaceLevel::Full, SpaceLevel::BackfillFull, SpaceLevel::NearFull];

    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            SpaceLevel::NearFull => "nearly full",
            SpaceLevel::BackfillFull => "too full for further copies",
            SpaceLevel::Full => "full",
            SpaceLevel::Failsafe => "full to the failsafe",
        }
    }
}

/// Where the levels begin, in thousandths of an OSD's room. They rise strictly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FullRatios {
    /// See [`SpaceLevel::NearFull`].
    #[n(0)]
    pub near_full: u32,
    /// See [`SpaceLevel::BackfillFull`].
    #[n(1)]
    pub backfill_full: u32,
    /// See [`SpaceLevel::Full`].
    #[n(2)]
    pub full: u32,
    /// See [`SpaceLevel::Failsafe`].
    #[n(3)]
    pub failsafe: u32,
}

impl Default for FullRatios {
    fn default() -> FullRatios {
        FullRatios { near_full: 850, backfill_full: 900, full: 950, failsafe: 970 }
    }
}

impl FullRatios {
    /// Where a level begins.
    #[must_use]
    pub const fn begins(&self, level: SpaceLevel) -> u32 {
        match level {
            SpaceLevel::NearFull => self.near_full,
            SpaceLevel::BackfillFull => self.backfill_full,
            SpaceLevel::Full => self.full,
            SpaceLevel::Failsafe => self.failsafe,
        }
    }

    /// Whether they can be used: rising, and none so low that its level would never end.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let rising = [HYSTERESIS_PERMILLE, self.near_full, self.backfill_full, self.full, self.failsafe];
        rising.windows(2).all(|pair| pair[0] < pair[1]) && self.failsafe <= 1_000
    }

    /// The level of an OSD that is `used` of `total` full and had the level `before`.
    #[must_use]
    pub fn level(&self, used: u64, total: u64, before: Option<SpaceLevel>) -> Option<SpaceLevel> {
        let permille = (u128::from(used) * 1_000).checked_div(u128::from(total))?;
        SpaceLevel::ALL.into_iter().find(|level| {
            let begins = self.begins(*level);
            let bound = if before >= Some(*level) { begins.saturating_sub(HYSTERESIS_PERMILLE) } else { begins };
            permille >= u128::from(bound)
        })
    }
}

pub(crate) fn is_default(ratios: &FullRatios) -> bool {
    *ratios == FullRatios::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_begin_where_they_should_and_end_a_little_below() {
        use SpaceLevel::{BackfillFull, Failsafe, Full, NearFull};
        let table = [
            (849, None, None),
            (850, None, Some(NearFull)),
            (835, Some(NearFull), Some(NearFull)),
            (829, Some(NearFull), None),
            (900, Some(NearFull), Some(BackfillFull)),
            (885, Some(BackfillFull), Some(BackfillFull)),
            (879, Some(BackfillFull), Some(NearFull)),
            (950, None, Some(Full)),
            (935, Some(Full), Some(Full)),
            (935, Some(BackfillFull), Some(BackfillFull)),
            (970, Some(Full), Some(Failsafe)),
            (955, Some(Failsafe), Some(Failsafe)),
            (949, Some(Failsafe), Some(Full)),
            (0, Some(Failsafe), None),
        ];
        for (used, before, after) in table {
            let level = FullRatios::default().level(used, 1_000, before);
            assert_eq!(level, after, "{used} of 1000, before: {before:?}");
        }
        assert_eq!(FullRatios::default().level(5, 0, None), None, "nothing is known of it");
    }

    #[test]
    fn ratios_must_rise() {
        let good = FullRatios::default();
        assert!(good.is_valid());
        assert!(!FullRatios { near_full: 900, ..good }.is_valid());
        assert!(!FullRatios { failsafe: 1_001, ..good }.is_valid());
        assert!(!FullRatios { near_full: 10, ..good }.is_valid());
    }
}
