//! What a run leaves out: strikes by their ordinals, and what happens to messages and syncs by chance.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::Config;

/// What happens by chance, all the time, and so is left out as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chance {
    /// Messages are lost.
    Loss,
    /// Messages arrive twice.
    Doubling,
    /// Messages arrive once more, much later.
    Replays,
    /// Messages are slow and overtake each other.
    Delays,
    /// Syncs are slow.
    SlowSyncs,
    /// Clients do not hear of maps.
    StaleClients,
    /// Clocks run at different rates.
    SkewedClocks,
}

impl Chance {
    /// All of them.
    pub const ALL: [Chance; 7] = [
        Chance::Loss,
        Chance::Doubling,
        Chance::Replays,
        Chance::Delays,
        Chance::SlowSyncs,
        Chance::StaleClients,
        Chance::SkewedClocks,
    ];

    /// The same world without it.
    #[must_use]
    pub fn taken_from(self, config: &Config) -> Config {
        let mut calmer = *config;
        let faults = &mut calmer.faults;
        match self {
            Chance::Loss => (faults.loss, faults.loss_max) = (0.0, 0.0),
            Chance::Doubling => (faults.duplication, faults.duplication_max) = (0.0, 0.0),
            Chance::Replays => faults.replays = 0.0,
            Chance::Delays => faults.delay_max = faults.delay_max.min(Duration::from_millis(2)),
            Chance::SlowSyncs => faults.slow_sync = 0.0,
            Chance::StaleClients => faults.client_map_lag = 0.0,
            Chance::SkewedClocks => calmer.skewed_clocks = false,
        }
        calmer
    }

    /// Those that a world has.
    #[must_use]
    pub fn of(config: &Config) -> Vec<Chance> {
        Chance::ALL.into_iter().filter(|chance| chance.taken_from(config) != *config).collect()
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Chance::Loss => "loss",
            Chance::Doubling => "doubling",
            Chance::Replays => "replays",
            Chance::Delays => "delays",
            Chance::SlowSyncs => "slow-syncs",
            Chance::StaleClients => "stale-clients",
            Chance::SkewedClocks => "skewed-clocks",
        })
    }
}

/// Text that names no mask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// Not a number nor a range of them.
    #[error("{0:?} is no ordinal of a strike (7), nor a range of them (3-7), nor all from one on (7-)")]
    Ordinal(String),
    /// Not the name of one.
    #[error("{0:?} is none of loss, doubling, replays, delays, slow-syncs, stale-clients, skewed-clocks")]
    Chance(String),
}

/// What a run leaves out. The empty mask changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mask {
    /// Ordinals of strikes: in order, apart from each other.
    ranges: Vec<RangeInclusive<u32>>,
    off: BTreeSet<Chance>,
}

impl Mask {
    /// Reads what [`Mask::arguments`] writes: `3,5,9-40,77-` and `loss,doubling`.
    ///
    /// # Errors
    /// The first word that is neither.
    pub fn parse(without: &str, off: &str) -> Result<Mask, MaskError> {
        let words = |text: &str| -> Vec<String> {
            text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let mut mask = Mask::default();
        for word in words(without) {
            let (first, last) = word.split_once('-').unwrap_or((&word, &word));
            let last = if last.is_empty() { Ok(u32::MAX) } else { last.parse() };
            match (first.parse::<u32>(), last) {
                (Ok(first), Ok(last)) if first <= last => mask = mask.and_range(first..=last),
                _ => return Err(MaskError::Ordinal(word)),
            }
        }
        for word in words(off) {
            let chance = Chance::ALL.into_iter().find(|chance| chance.to_string() == word);
            mask.off.insert(chance.ok_or(MaskError::Chance(word))?);
        }
        Ok(mask)
    }

    /// Whether it leaves nothing out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Mask::default()
    }

    /// Whether a strike is left out.
    #[must_use]
    pub fn leaves_out(&self, ordinal: u32) -> bool {
        self.ranges.iter().any(|range| range.contains(&ordinal))
    }

    /// What happens by chance otherwise, and does not.
    pub fn off(&self) -> impl Iterator<Item = Chance> + '_ {
        self.off.iter().copied()
    }

    /// Leaves these out, too.
    #[must_use]
    pub fn and(&self, ordinals: &[u32]) -> Mask {
        ordinals.iter().fold(self.clone(), |mask, ordinal| mask.and_range(*ordinal..=*ordinal))
    }

    /// Leaves all from this one on out, too.
    #[must_use]
    pub fn and_from(&self, ordinal: u32) -> Mask {
        self.clone().and_range(ordinal..=u32::MAX)
    }

    /// Leaves this out, too.
    #[must_use]
    pub fn and_no(&self, chance: Chance) -> Mask {
        let mut mask = self.clone();
        mask.off.insert(chance);
        mask
    }

    fn and_range(mut self, added: RangeInclusive<u32>) -> Mask {
        let (mut first, mut last) = added.into_inner();
        self.ranges.retain(|range| {
            let apart = range.end().saturating_add(1) < first || last.saturating_add(1) < *range.start();
            if !apart {
                (first, last) = (first.min(*range.start()), last.max(*range.end()));
            }
            apart
        });
        self.ranges.push(first..=last);
        self.ranges.sort_unstable_by_key(|range| *range.start());
        self
    }

    /// The world without what is left out as a whole.
    #[must_use]
    pub fn applied_to(&self, config: &Config) -> Config {
        self.off.iter().fold(*config, |config, chance| chance.taken_from(&config))
    }

    /// The arguments of `cargo xtask sim` for such a run, each after a blank.
    #[must_use]
    pub fn arguments(&self) -> String {
        let range = |range: &RangeInclusive<u32>| match (*range.start(), *range.end()) {
            (first, u32::MAX) => format!("{first}-"),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let argument = |name: &str, words: Vec<String>| {
            if words.is_empty() { String::new() } else { format!(" {name} {}", words.join(",")) }
        };
        let without = argument("--without", self.ranges.iter().map(range).collect());
        without + &argument("--no", self.off.iter().map(Chance::to_string).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_read_as_it_is_written() {
        let mask = Mask::default().and(&[3, 5, 9, 10, 11]).and_from(77).and_no(Chance::Loss).and_no(Chance::SlowSyncs);
        assert_eq!(mask.arguments(), " --without 3,5,9-11,77- --no loss,slow-syncs");
        assert_eq!(Mask::parse("3,5,9-11,77-", "loss,slow-syncs"), Ok(mask.clone()));
        assert_eq!(Mask::parse("77-,10,9-11, 5,3,80-90", "slow-syncs,loss"), Ok(mask));
        assert_eq!(Mask::parse("", ""), Ok(Mask::default()));
        assert_eq!(Mask::default().arguments(), "");
    }

    #[test]
    fn what_is_no_mask_is_refused() {
        for wrong in ["x", "-3", "7-3", "1-2-3", "4294967296", "-"] {
            assert_eq!(Mask::parse(wrong, ""), Err(MaskError::Ordinal(wrong.to_owned())), "{wrong}");
        }
        assert_eq!(Mask::parse("", "rain"), Err(MaskError::Chance("rain".to_owned())));
    }

    #[test]
    fn a_mask_leaves_out_what_it_names_and_nothing_else() {
        let mask = Mask::default().and(&[2, 4]).and_from(7);
        let left_out: Vec<u32> = (1..10).filter(|ordinal| mask.leaves_out(*ordinal)).collect();
        assert_eq!(left_out, [2, 4, 7, 8, 9]);
        // Growing together.
        assert_eq!(mask.and(&[3, 5, 6]).arguments(), " --without 2-");
    }

    #[test]
    fn every_chance_can_be_taken_from_a_world_that_has_it() {
        let mut seen = BTreeSet::new();
        for (_, config) in Config::worlds() {
            for chance in Chance::of(&config) {
                seen.insert(chance);
                assert!(!Chance::of(&Mask::default().and_no(chance).applied_to(&config)).contains(&chance));
            }
            assert_eq!(Mask::default().applied_to(&config), config);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), Chance::ALL);
    }
}
