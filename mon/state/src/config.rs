//! The configuration store: options with a history, and the way back.

use std::collections::{BTreeMap, VecDeque};

use holdfast_wire::mon::{ConfigChange, MonError};
use minicbor::{Decode, Encode};

/// Longest option name, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Longest value, in bytes: options are words and numbers, not files.
const VALUE_BYTES_MAX: usize = 16 * 1024;
/// Most options.
const OPTIONS_MAX: usize = 4_096;
/// Bytes of all names and values.
pub(crate) const OPTIONS_BYTES_MAX: usize = 3 << 20;
/// Changes that are remembered; a rollback can go back this far.
const HISTORY_MAX: usize = 10_000;
/// Bytes of the changes that are remembered.
pub(crate) const HISTORY_BYTES_MAX: usize = 5 << 20;
/// What an entry takes beside its texts.
const ENTRY_BYTES: usize = 32;

/// All options that are set, and how they came about.
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
#[cbor(map)]
pub(crate) struct ConfigStore {
    #[n(0)]
    values: BTreeMap<String, String>,
    #[n(1)]
    history: VecDeque<ConfigChange>,
    #[n(2)]
    version: u64,
}

impl ConfigStore {
    pub(crate) fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    pub(crate) fn history(&self) -> impl Iterator<Item = &ConfigChange> {
        self.history.iter()
    }

    /// Sets or removes one option. Setting what is set already is no change.
    pub(crate) fn set(&mut self, at_unix_ms: u64, name: &str, value: Option<&str>) -> Result<(), MonError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) {
            let reason = format!(
                "{name:?} is no option name: use 1 to {NAME_BYTES_MAX} of letters, digits, '_', '-', '.' and '/'"
            );
            return Err(MonError::Invalid { reason });
        }
        if let Some(value) = value
            && value.len() > VALUE_BYTES_MAX
        {
            let reason = format!("the value of {name} has {} bytes; at most {VALUE_BYTES_MAX} are kept", value.len());
            return Err(MonError::Invalid { reason });
        }
        if value.is_some() && !self.values.contains_key(name) && self.values.len() >= OPTIONS_MAX {
            return Err(MonError::Invalid {
                reason: format!("{OPTIONS_MAX} options are set already; remove one first"),
            });
        }
        let others = self.values.iter().filter(|(other, _)| *other != name);
        let taken: usize = others.map(|(name, value)| name.len() + value.len() + ENTRY_BYTES).sum();
        if value.is_some_and(|value| taken + name.len() + value.len() + ENTRY_BYTES > OPTIONS_BYTES_MAX) {
            let reason =
                format!("all options together would have more than {OPTIONS_BYTES_MAX} bytes; remove one first");
            return Err(MonError::Invalid { reason });
        }
        if value.is_none() && !self.values.contains_key(name) {
            return Err(MonError::NotFound { what: "option".into(), name: name.to_owned() });
        }
        self.change(at_unix_ms, name, value);
        Ok(())
    }

    /// Sets all options as they were after change `version`; zero: before the first.
    pub(crate) fn rollback(&mut self, at_unix_ms: u64, version: u64) -> Result<(), MonError> {
        let oldest = self.history.front().map_or(self.version, |change| change.version - 1);
        if version > self.version || version < oldest {
            let reason = format!("change {version} is not kept; kept are {oldest} to {}", self.version);
            return Err(MonError::Invalid { reason });
        }
        let mut then = self.values.clone();
        for change in self.history.iter().rev().take_while(|change| change.version > version) {
            match &change.old {
                Some(old) => then.insert(change.name.clone(), old.clone()),
                None => then.remove(&change.name),
            };
        }
        let names: std::collections::BTreeSet<String> = self.values.keys().chain(then.keys()).cloned().collect();
        for name in names {
            self.change(at_unix_ms, &name, then.get(&name).map(String::as_str));
        }
        Ok(())
    }

    fn change(&mut self, at_unix_ms: u64, name: &str, value: Option<&str>) {
        let old = match value {
            Some(value) => self.values.insert(name.to_owned(), value.to_owned()),
            None => self.values.remove(name),
        };
        let new = value.map(str::to_owned);
        if old == new {
            return;
        }
        self.version += 1;
        self.history.push_back(ConfigChange { version: self.version, at_unix_ms, name: name.to_owned(), old, new });
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let bytes = |change: &ConfigChange| change.name.len() + length(&change.old) + length(&change.new) + ENTRY_BYTES;
        let mut kept: usize = self.history.iter().map(bytes).sum();
        while self.history.len() > HISTORY_MAX || kept > HISTORY_BYTES_MAX {
            let Some(oldest) = self.history.pop_front() else { break };
            kept -= bytes(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_restores_every_option_and_is_itself_a_change() {
        let mut store = ConfigStore::default();
        store.set(1, "a", Some("1")).expect("valid");
        store.set(2, "b", Some("1")).expect("valid");
        let then = store.values().clone();
        store.set(3, "a", Some("2")).expect("valid");
        store.set(4, "b", None).expect("valid");
        store.set(5, "c", Some("3")).expect("valid");
        store.set(6, "c", Some("3")).expect("no change");
        assert_eq!(store.history().count(), 5);
        store.rollback(7, 2).expect("kept");
        assert_eq!(store.values(), &then);
        assert_eq!(store.history().count(), 8);
        store.rollback(8, 5).expect("kept");
        assert_eq!(store.values().get("c").map(String::as_str), Some("3"));
        store.rollback(9, 0).expect("kept");
        assert!(store.values().is_empty());
        assert!(store.rollback(10, 99).is_err());
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let mut store = ConfigStore::default();
        assert!(store.set(1, "", Some("1")).is_err());
        assert!(store.set(1, "a b", Some("1")).is_err());
        assert!(store.set(1, "gone", None).is_err());
        assert!(store.set(1, "big", Some(&"x".repeat(VALUE_BYTES_MAX + 1))).is_err());
        assert!(store.values().is_empty());
    }

    #[test]
    fn options_and_their_history_are_bounded_in_bytes() {
        let mut store = ConfigStore::default();
        for index in 0..400 {
            let _ = store.set(1, &format!("big-{}", index % 250), Some(&format!("{index:016384}")));
        }
        let values: usize = store.values().values().map(String::len).sum();
        assert!(values <= OPTIONS_BYTES_MAX, "{values} bytes of options");
        let history: usize = store.history().map(|change| change.new.as_ref().map_or(0, String::len)).sum();
        assert!(history <= HISTORY_BYTES_MAX, "{history} bytes of history");
    }
}
