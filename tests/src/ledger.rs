//! What was acknowledged, and so what must be found.
//!
//! Every key has one writer, so its history is a sequence. An operation of unknown outcome leaves more than one content
//! possible; such a key is never written again, because the operation may still take effect later.

use std::collections::{BTreeMap, BTreeSet};

use crate::content::Content;

/// What a key may hold: `None` is "no object".
pub type Possible = BTreeSet<Option<(u64, u64)>>;

/// One writer's keys.
#[derive(Debug, Default)]
pub struct Ledger {
    keys: BTreeMap<String, Possible>,
    /// Operations that were acknowledged.
    pub acknowledged: u64,
    /// Operations of unknown outcome.
    pub unknown: u64,
}

fn fact(content: Option<Content>) -> Option<(u64, u64)> {
    content.map(|content| (content.seed, content.bytes))
}

/// The content of a fact.
#[must_use]
pub fn content((seed, bytes): (u64, u64)) -> Content {
    Content { seed, bytes }
}

impl Ledger {
    /// The cluster said that the key now holds this.
    pub fn acknowledged(&mut self, key: &str, content: Option<Content>) {
        self.acknowledged += 1;
        self.keys.insert(key.to_owned(), Possible::from([fact(content)]));
    }

    /// The cluster did not say whether the key now holds this.
    pub fn unknown(&mut self, key: &str, content: Option<Content>) {
        self.unknown += 1;
        self.keys.entry(key.to_owned()).or_insert_with(|| Possible::from([None])).insert(fact(content));
    }

    /// What a key may hold.
    #[must_use]
    pub fn possible(&self, key: &str) -> Possible {
        self.keys.get(key).cloned().unwrap_or_else(|| Possible::from([None]))
    }

    /// Whether it is known what the key holds.
    #[must_use]
    pub fn is_certain(&self, key: &str) -> bool {
        self.keys.get(key).is_none_or(|possible| possible.len() == 1)
    }

    /// All keys that were ever written, with what they may hold.
    #[must_use]
    pub fn keys(&self) -> &BTreeMap<String, Possible> {
        &self.keys
    }

    /// What is wrong with a listing of all keys.
    #[must_use]
    pub fn judge_listing(&self, listed: &BTreeSet<String>) -> Vec<String> {
        let nothing = Possible::from([None]);
        let missing = self.keys.iter().filter(|(key, possible)| !possible.contains(&None) && !listed.contains(*key));
        let missing = missing.map(|(key, _)| format!("{key} is not listed"));
        let too_many = listed.iter().filter(|key| self.keys.get(*key).is_none_or(|possible| *possible == nothing));
        missing.chain(too_many.map(|key| format!("{key} is listed and was deleted or never written"))).collect()
    }
}

/// What is wrong with what was read of a key.
#[must_use]
pub fn judge_read(key: &str, possible: &Possible, read: Option<&[u8]>) -> Option<String> {
    let fits = |fact: &Option<(u64, u64)>| match (fact, read) {
        (None, None) => true,
        (Some(fact), Some(read)) => fact.1 == read.len() as u64 && content(*fact).whole() == read,
        _ => false,
    };
    if possible.iter().any(fits) {
        return None;
    }
    let found = read.map_or_else(|| "no object".to_owned(), |read| format!("{} other bytes", read.len()));
    Some(format!("{key}: {found}, where the cluster acknowledged {possible:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checker_bites() {
        let mut ledger = Ledger::default();
        let (a, b) = (Content { seed: 1, bytes: 9 }, Content { seed: 2, bytes: 9 });
        ledger.acknowledged("k", Some(a));
        let bytes = a.whole();
        assert_eq!(judge_read("k", &ledger.possible("k"), Some(&bytes)), None);
        assert!(judge_read("k", &ledger.possible("k"), Some(&b.whole())).is_some());
        assert!(judge_read("k", &ledger.possible("k"), Some(&bytes[..8])).is_some());
        assert!(judge_read("k", &ledger.possible("k"), None).is_some());
        assert!(judge_read("never", &ledger.possible("never"), Some(&bytes)).is_some());
        assert_eq!(ledger.judge_listing(&BTreeSet::new()).len(), 1);
        assert_eq!(ledger.judge_listing(&BTreeSet::from(["k".to_owned(), "x".to_owned()])).len(), 1);

        ledger.unknown("k", None);
        assert!(!ledger.is_certain("k"));
        assert_eq!(judge_read("k", &ledger.possible("k"), Some(&bytes)), None);
        assert_eq!(judge_read("k", &ledger.possible("k"), None), None);
        assert!(ledger.judge_listing(&BTreeSet::new()).is_empty());

        ledger.acknowledged("k", None);
        assert_eq!(ledger.judge_listing(&BTreeSet::from(["k".to_owned()])).len(), 1);
    }
}
