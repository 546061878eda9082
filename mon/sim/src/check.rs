//! What clients saw, and whether one copy that never forgets could have shown them that.
//!
//! All changes of options together are one list, which a question reads whole: so linearizability can be decided directly,
//! for appends of values that are used once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::checker::Checker;

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To append this.
    Append(String),
    /// To read; this was there.
    Read(Vec<String>),
}

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) client: u64,
    pub(crate) asked: Asked,
    /// True nanoseconds.
    pub(crate) invoked: u64,
    /// `None`: nobody knows whether it was done.
    pub(crate) returned: Option<u64>,
}

/// All operations of a run.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) ops: Vec<Op>,
}

impl History {
    /// What is wrong, and which promise that breaks. What one checker finds keeps no other one from looking.
    pub(crate) fn violations(&self) -> Vec<(Checker, String)> {
        let mut found = Vec::new();
        let mut reads: Vec<(&Op, &Vec<String>)> = Vec::new();
        let mut appends: BTreeMap<&str, &Op> = BTreeMap::new();
        for op in &self.ops {
            match &op.asked {
                Asked::Read(list) => reads.push((op, list)),
                Asked::Append(value) => {
                    appends.insert(value, op);
                }
            }
        }
        let Some((_, whole)) = reads.iter().max_by_key(|(_, list)| list.len()) else { return found };
        // What was applied twice is in its first place: that it is in another one, too, is a matter of Q18 alone.
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for (place, value) in whole.iter().enumerate() {
            match places.entry(value) {
                Entry::Vacant(entry) => {
                    entry.insert(place);
                }
                Entry::Occupied(_) => found.push((Checker::Q18, format!("{value} was applied twice"))),
            }
            if !appends.contains_key(value.as_str()) {
                found.push((Checker::Q17, format!("{value} was appended by nobody")));
            }
        }
        // By time: how long the list was known to be, and must be from then on.
        let mut acknowledged: Vec<(u64, usize, &str)> = Vec::new();
        for (value, op) in &appends {
            match (op.returned, places.get(value)) {
                (Some(returned), Some(place)) => acknowledged.push((returned, place + 1, value)),
                (Some(returned), None) => {
                    // Lost for good, if any read that saw all began after it.
                    let later = reads.iter().any(|(read, _)| read.invoked > returned);
                    if later {
                        found.push((Checker::Q16, format!("{value} was acknowledged and is lost")));
                    }
                }
                (None, _) => {}
            }
        }
        for (op, list) in &reads {
            if whole.get(..list.len()) != Some(list.as_slice()) {
                let text = format!("client {} read a list that is no beginning of a later one", op.client);
                found.push((Checker::Q17, text));
                return found; // all that follows goes by one list
            }
        }
        let mut known: Vec<(u64, usize, String)> =
            acknowledged.iter().map(|(at, length, value)| (*at, *length, format!("the append of {value}"))).collect();
        known.extend(
            reads
                .iter()
                .filter_map(|(op, list)| Some((op.returned?, list.len(), format!("a read of client {}", op.client)))),
        );
        known.sort();
        let mut longest: Vec<(u64, usize)> = Vec::new();
        for (at, length, _) in &known {
            let before = longest.last().map_or(0, |(_, length)| *length);
            longest.push((*at, before.max(*length)));
        }
        let known_before = |at: u64| {
            let until = longest.partition_point(|(returned, _)| *returned < at);
            until.checked_sub(1).map_or(0, |last| longest[last].1)
        };
        for (op, list) in &reads {
            let at_least = known_before(op.invoked);
            if list.len() < at_least {
                let (client, length) = (op.client, list.len());
                let text = format!(
                    "stale: client {client} read {length} values when {at_least} had been known before it asked"
                );
                found.push((Checker::Q17, text));
            }
        }
        for (_, length, value) in &acknowledged {
            let op = appends[value];
            if *length <= known_before(op.invoked) {
                let text = format!("{value} took a place in the list that was taken before it was asked for");
                found.push((Checker::Q17, text));
            }
        }
        for (op, list) in &reads {
            let Some(returned) = op.returned else { continue };
            for value in list.iter() {
                if appends.get(value.as_str()).is_some_and(|append| append.invoked > returned) {
                    found.push((Checker::Q17, format!("{value} was read before it was asked for")));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(value: &str, invoked: u64, returned: Option<u64>) -> Op {
        Op { client: 1, asked: Asked::Append(value.into()), invoked, returned }
    }

    fn read(list: &[&str], invoked: u64, returned: u64) -> Op {
        let list = list.iter().map(ToString::to_string).collect();
        Op { client: 2, asked: Asked::Read(list), invoked, returned: Some(returned) }
    }

    fn wrong(ops: Vec<Op>) -> Vec<String> {
        History { ops }.violations().into_iter().map(|(checker, text)| format!("{checker}: {text}")).collect()
    }

    #[test]
    fn what_one_copy_could_show_is_no_violation() {
        let ops = vec![
            append("a", 0, Some(10)),
            append("b", 5, Some(20)),
            append("c", 6, None),
            read(&["a"], 11, 15),
            read(&["a", "b"], 12, 30),
            read(&["a", "b", "c"], 40, 50),
        ];
        assert_eq!(wrong(ops), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_lie_is_noticed() {
        let lost = vec![append("a", 0, Some(10)), append("b", 0, Some(10)), read(&["a"], 20, 30)];
        assert!(wrong(lost).iter().any(|text| text.starts_with("Q16")));
        let stale = vec![append("a", 0, Some(10)), read(&[], 20, 30), read(&["a"], 40, 50)];
        assert!(wrong(stale).iter().any(|text| text.starts_with("Q17: stale")));
        let forked = vec![append("a", 0, None), append("b", 0, None), read(&["a"], 1, 5), read(&["b", "a"], 6, 9)];
        assert!(wrong(forked).iter().any(|text| text.starts_with("Q17")));
        let twice = vec![append("a", 0, Some(10)), read(&["a", "a"], 20, 30)];
        assert!(wrong(twice).iter().any(|text| text.starts_with("Q18")));
        let swapped = vec![append("a", 0, Some(10)), append("b", 20, Some(30)), read(&["b", "a"], 40, 50)];
        assert!(wrong(swapped).iter().any(|text| text.starts_with("Q17")));
        let early = vec![append("a", 20, Some(30)), read(&["a"], 0, 10)];
        assert!(wrong(early).iter().any(|text| text.starts_with("Q17")));
    }

    #[test]
    fn what_was_applied_twice_late_is_stale_to_nobody() {
        let ops = vec![
            append("a", 0, Some(10)),
            append("b", 11, Some(15)),
            read(&["a", "b"], 20, 30),
            read(&["a", "b", "a"], 40, 50),
        ];
        assert_eq!(wrong(ops), ["Q18: a was applied twice"]);
    }

    #[test]
    fn what_is_lost_is_told_although_the_list_forked() {
        let ops = vec![
            append("a", 0, Some(1)),
            append("b", 0, None),
            append("c", 0, None),
            read(&["a"], 2, 5),
            read(&["b", "c"], 6, 9),
        ];
        let wrong = wrong(ops);
        assert!(wrong.iter().any(|text| text.starts_with("Q16")), "{wrong:?}");
        assert!(wrong.iter().any(|text| text.starts_with("Q17")), "{wrong:?}");
    }
}
