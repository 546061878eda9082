//! What happened to the cluster as a whole, for people: strikes, maps and what they change, runs of OSDs. It is much shorter
//! than the trace, in which every input and output is.

use std::collections::VecDeque;

use holdfast_types::{Epoch, OsdId, PgId};

use crate::monitor::POOL;
use crate::world::World;

/// Of longer journals the last lines are kept.
const LINES_MAX: usize = 400;

/// Lines, with their times.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    lines: VecDeque<String>,
    /// Lines that are kept no more.
    dropped: u64,
    /// The last map that it has.
    epoch: Epoch,
}

impl Journal {
    /// Takes the last line back if it ends so.
    pub fn take_back(&mut self, end: &str) {
        if self.lines.back().is_some_and(|line| line.ends_with(end)) {
            self.lines.pop_back();
        }
    }

    pub fn into_lines(self) -> Vec<String> {
        let dropped = (self.dropped > 0).then(|| format!("({} lines before these)", self.dropped));
        dropped.into_iter().chain(self.lines).collect()
    }
}

impl World {
    /// One line of the journal.
    pub(crate) fn note(&mut self, line: String) {
        let at_ms = self.now.as_nanos() / 1_000_000;
        let journal = &mut self.dealt.journal;
        journal.lines.push_back(format!("{:>4}.{:03} s  {line}", at_ms / 1_000, at_ms % 1_000));
        if journal.lines.len() > LINES_MAX {
            journal.lines.pop_front();
            journal.dropped += 1;
        }
    }

    /// Notes what the newest map changes.
    pub(crate) fn note_map(&mut self) {
        let newest = self.monitor.newest().clone();
        let epoch = newest.map.epoch;
        let before = std::mem::replace(&mut self.dealt.journal.epoch, epoch);
        let Some(before) = self.monitor.step(before).filter(|before| before.map.epoch < epoch).cloned() else { return };
        let mut changes = Vec::new();
        for (osd, info) in &newest.map.osds {
            let old = before.map.osds.get(osd);
            if old.is_none_or(|old| (old.up, old.incarnation) != (info.up, info.incarnation)) {
                changes.push(if info.up { format!("{osd} up as {}", info.incarnation) } else { format!("{osd} down") });
            }
            if old.is_none_or(|old| old.in_cluster != info.in_cluster) {
                changes.push(format!("{osd} {}", if info.in_cluster { "in" } else { "out" }));
            }
        }
        for pg in (0..self.config.pgs_used).map(|seed| PgId { pool: POOL, seed }) {
            let acting = newest.members_of(pg).acting;
            if acting != before.members_of(pg).acting {
                let osds: Vec<String> = acting.iter().map(OsdId::to_string).collect();
                changes.push(format!("{pg} on [{}]", osds.join(" ")));
            }
        }
        let changes = if changes.is_empty() { "nothing of that".to_owned() } else { changes.join(", ") };
        self.note(format!("map {epoch}: {changes}"));
    }
}
