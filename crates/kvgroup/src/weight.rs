//! How much a group holds, and where to cut it. Pure.
//!
//! The *weight* of a row is its bytes plus a fixed overhead, so that one number bounds both the rows and the bytes of
//! a group. Each group keeps an **estimate** of its weight in a counter row that every batch moves by what it knows
//! (`AddRow`, in the batch's own op; its answer tells the writer when a split is due, for nothing). Where a batch
//! cannot know what it replaces, it counts too much, never too little. A group whose estimate reaches the limit is
//! counted exactly; then it is split, or the estimate corrected.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::key::may_start_at;

/// Sizes and patience. The defaults are for use; tests make everything small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Weight of a row beside its key and value, in bytes. 512 with a `weight_split` of 8 MiB makes groups of at most
    /// 16k rows: a listing page or a copy batch of 1,000 rows then stays a small part of a group.
    pub row_overhead: u64,
    /// A group this heavy is split, in bytes. 8 MiB of rows are copied in about four round trips of 1 MiB each way: a
    /// freeze well below the 100 ms that a user would notice, and a recovery pull of a group stays short.
    pub weight_split: u64,
    /// A group this heavy takes no batch that makes it heavier, in bytes. Reached only when all rows share one route.
    /// With it a group has 64k rows at most.
    pub weight_max: u64,
    /// Rows in one read or write of a count or copy.
    pub page_rows: u32,
    /// Bytes in one read or write of a count or copy: 1 MiB is one unhurried op for a PG, and bounds our memory.
    pub page_bytes: u32,
    /// How long a writer that meets somebody's split leaves it alone before helping. A healthy split needs less.
    pub help_after: Duration,
    /// How long anyone that meets somebody's attempt to drop a table leaves it alone before undoing it. Longer than
    /// `help_after`: a drop visits every group.
    pub drop_patience: Duration,
    /// Groups whose place is remembered; about 300 bytes each.
    pub cached_groups: usize,
    /// Groups of a table, at most: the root object is a group of rows itself.
    pub groups_max: u32,
    /// Whether splits run as work of their own, [`crate::Objects::spawn`] (else within the batch that finds them due).
    pub split_in_background: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            row_overhead: 512,
            weight_split: 8 << 20,
            weight_max: 32 << 20,
            page_rows: 4096,
            page_bytes: 1 << 20,
            help_after: Duration::from_millis(500),
            drop_patience: Duration::from_secs(5),
            cached_groups: 16 << 10,
            groups_max: 60_000,
            split_in_background: true,
        }
    }
}

impl Config {
    /// The weight of a row.
    pub(crate) fn row_weight(&self, key_bytes: usize, value_bytes: usize) -> u64 {
        self.row_overhead + key_bytes as u64 + value_bytes as u64
    }
}

/// The exact weight of a group, by route.
#[derive(Debug, Default)]
pub(crate) struct Census {
    routes: BTreeMap<Vec<u8>, u64>,
    total: u64,
}

/// What to do with a counted group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Cut here.
    SplitAt(Vec<u8>),
    /// Only the estimate was wrong.
    Correct,
    /// Leave it: it cannot be cut and the estimate is near enough.
    Keep,
}

impl Census {
    /// Counts a row.
    pub fn count(&mut self, route: &[u8], weight: u64) {
        self.total += weight;
        if let Some(sum) = self.routes.get_mut(route) {
            *sum += weight;
        } else {
            self.routes.insert(route.to_vec(), weight);
        }
    }

    /// The weight of all rows.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The route at which the two sides are as equal as can be, both with rows and the right one not the whole group.
    fn middle(&self, start: &[u8]) -> Option<&[u8]> {
        let mut left = 0u64;
        let mut best: Option<(u64, &[u8])> = None;
        for (route, weight) in &self.routes {
            let uneven = (2 * left).abs_diff(self.total);
            if left > 0 && **route > *start && may_start_at(route) && best.is_none_or(|(least, _)| uneven < least) {
                best = Some((uneven, route));
            }
            left += weight;
        }
        best.map(|(_, route)| route)
    }

    /// What to do with the group that starts at `start` and was estimated at `estimate`.
    ///
    /// From half of the limit on it is split: were it only corrected just below the limit, the next few overwrites
    /// would have it counted again.
    pub fn verdict(&self, start: &[u8], estimate: i64, config: &Config) -> Verdict {
        if self.total >= config.weight_split / 2
            && let Some(mid) = self.middle(start)
        {
            return Verdict::SplitAt(mid.to_vec());
        }
        let wrong_by = i64::try_from(self.total).unwrap_or(i64::MAX).abs_diff(estimate);
        if wrong_by >= config.weight_split / 4 { Verdict::Correct } else { Verdict::Keep }
    }
}

/// What a batch knows of a row as its mutations go by.
#[derive(Debug, Clone, Copy)]
enum Known {
    Absent,
    Present,
    Value { bytes: usize },
}

/// Sums up how a batch changes the weight of its group.
#[derive(Debug)]
pub(crate) struct WeightChange<'b> {
    config: &'b Config,
    known: BTreeMap<(u8, &'b [u8]), Known>,
    sum: i64,
}

impl<'b> WeightChange<'b> {
    pub fn new(config: &'b Config) -> WeightChange<'b> {
        WeightChange { config, known: BTreeMap::new(), sum: 0 }
    }

    /// A condition says that the row is absent.
    pub fn absent(&mut self, space: u8, key: &'b [u8]) {
        self.known.insert((space, key), Known::Absent);
    }

    /// A condition says that the row is there.
    pub fn present(&mut self, space: u8, key: &'b [u8]) {
        self.known.entry((space, key)).or_insert(Known::Present);
    }

    /// A condition says that the row has a value of so many bytes.
    pub fn value(&mut self, space: u8, key: &'b [u8], bytes: usize) {
        self.known.insert((space, key), Known::Value { bytes });
    }

    /// The row gets a value.
    pub fn put(&mut self, space: u8, key: &'b [u8], bytes: usize) {
        self.sum += self.weight(key, bytes) - self.least(space, key);
        self.known.insert((space, key), Known::Value { bytes });
    }

    /// The row goes.
    pub fn delete(&mut self, space: u8, key: &'b [u8]) {
        self.sum -= self.least(space, key);
        self.known.insert((space, key), Known::Absent);
    }

    /// All rows of `start..end` go.
    pub fn delete_range(&mut self, space: u8, start: &[u8], end: &[u8]) {
        self.known.retain(|(of, key), _| *of != space || *key < start || *key >= end);
    }

    /// The change of weight: not less than the true one.
    pub fn sum(&self) -> i64 {
        self.sum
    }

    fn weight(&self, key: &[u8], bytes: usize) -> i64 {
        i64::try_from(self.config.row_weight(key.len() + 1, bytes)).unwrap_or(i64::MAX)
    }

    /// The least that the row weighs now, from what is known.
    fn least(&self, space: u8, key: &[u8]) -> i64 {
        match self.known.get(&(space, key)) {
            None | Some(Known::Absent) => 0,
            Some(Known::Present) => self.weight(key, 0),
            Some(Known::Value { bytes }) => self.weight(key, *bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { row_overhead: 10, weight_split: 100, ..Config::default() }
    }

    #[test]
    fn a_group_is_cut_between_routes_where_the_halves_are_most_equal() {
        let mut census = Census::default();
        for (route, weight) in [("a", 20), ("b", 50), ("c", 20), ("d", 10)] {
            census.count(route.as_bytes(), weight);
        }
        assert_eq!(census.verdict(b"", 100, &config()), Verdict::SplitAt(b"c".to_vec()));
        let mut one_route = Census::default();
        one_route.count(b"a", 200);
        assert_eq!(one_route.verdict(b"", 200, &config()), Verdict::Keep);
        assert_eq!(one_route.verdict(b"", 300, &config()), Verdict::Correct);
        // As a start, the middle one would be too long a key in the root, which escapes zeros.
        let mut long = Census::default();
        for route in [&[0][..], &[0; 1500], &[1; 1500]] {
            long.count(route, 100);
        }
        assert_eq!(long.verdict(b"", 300, &config()), Verdict::SplitAt(vec![1; 1500]));
        let mut at_start = Census::default();
        at_start.count(b"s", 60);
        at_start.count(b"t", 60);
        assert_eq!(at_start.verdict(b"s", 120, &config()), Verdict::SplitAt(b"t".to_vec()));
    }

    #[test]
    fn a_light_group_that_was_overestimated_is_only_corrected() {
        let mut census = Census::default();
        census.count(b"a", 20);
        census.count(b"b", 20);
        assert_eq!(census.verdict(b"", 100, &config()), Verdict::Correct);
    }

    #[test]
    fn the_estimate_never_falls_behind_the_rows() {
        let config = config();
        let mut known = WeightChange::new(&config);
        known.value(1, b"k", 5);
        known.put(1, b"k", 7);
        assert_eq!(known.sum(), 2);
        known.delete(1, b"k");
        assert_eq!(known.sum(), -(10 + 2 + 5));

        let mut blind = WeightChange::new(&config);
        blind.delete(1, b"k");
        assert_eq!(blind.sum(), 0);
        blind.put(1, b"k", 7);
        blind.put(1, b"k", 8);
        assert_eq!(blind.sum(), 10 + 2 + 8);
        blind.delete_range(1, b"k", b"l");
        blind.put(1, b"k", 0);
        assert_eq!(blind.sum(), 20 + 12);

        let mut present = WeightChange::new(&config);
        present.present(1, b"k");
        present.put(1, b"k", 7);
        assert_eq!(present.sum(), 7);
    }
}
