//! The key pairs of S3 users.

use std::collections::BTreeMap;

use holdfast_wire::mon::{KeyInfo, MonError, Secret};
use minicbor::{Decode, Encode};

/// Longest name for people, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Bounds of an access key, in characters. AWS makes them 20 long; other clients' test suites bring shorter ones.
const ACCESS_KEY_CHARS: std::ops::RangeInclusive<usize> = 3..=128;
/// Bounds of a secret key, in characters. AWS makes them 40 long.
const SECRET_KEY_CHARS: std::ops::RangeInclusive<usize> = 8..=128;
/// Most keys: the store is part of each snapshot of the monitors.
const KEYS_MAX: usize = 100_000;
/// Bytes of all pairs: 100,000 of those that the monitors make.
pub(crate) const KEYS_BYTES_MAX: usize = 13 << 20;
/// What a pair takes beside its texts.
const PAIR_BYTES: usize = 16;

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
struct KeyRecord {
    #[n(0)]
    name: String,
    #[n(1)]
    secret: Secret,
}

impl KeyRecord {
    fn bytes(&self) -> usize {
        self.name.len() + self.secret.0.len() + PAIR_BYTES
    }
}

/// All key pairs, by access key.
#[derive(Debug, Clone, PartialEq, Default, Encode, Decode)]
#[cbor(map)]
pub(crate) struct KeyStore {
    #[n(0)]
    by_access_key: BTreeMap<String, KeyRecord>,
}

impl KeyStore {
    /// Adds a pair. The leader has filled in what was to be generated.
    pub(crate) fn add(&mut self, name: &str, access_key: &str, secret: &Secret) -> Result<KeyInfo, MonError> {
        let invalid = |reason: String| Err(MonError::Invalid { reason });
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return invalid(format!("a key's name has 1 to {NAME_BYTES_MAX} printable characters"));
        }
        let key_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !ACCESS_KEY_CHARS.contains(&access_key.len()) || !access_key.chars().all(key_char) {
            return invalid(format!(
                "an access key has {} to {} letters, digits, '_', '-' or '.'",
                ACCESS_KEY_CHARS.start(),
                ACCESS_KEY_CHARS.end()
            ));
        }
        if !SECRET_KEY_CHARS.contains(&secret.0.len()) || !secret.0.chars().all(|c| c.is_ascii_graphic()) {
            return invalid(format!(
                "a secret key has {} to {} printable ASCII characters",
                SECRET_KEY_CHARS.start(),
                SECRET_KEY_CHARS.end()
            ));
        }
        let added = KeyRecord { name: name.to_owned(), secret: secret.clone() };
        if let Some(record) = self.by_access_key.get(access_key) {
            if *record != added {
                return Err(MonError::Exists { what: "access key".into(), name: access_key.to_owned() });
            }
        } else if self.by_access_key.values().any(|record| record.name == name) {
            return Err(MonError::Exists { what: "key".into(), name: name.to_owned() });
        } else if self.by_access_key.len() >= KEYS_MAX
            || self.bytes() + access_key.len() + added.bytes() > KEYS_BYTES_MAX
        {
            return invalid(format!("there are {} keys already; remove one first", self.by_access_key.len()));
        }
        self.by_access_key.insert(access_key.to_owned(), added);
        Ok(KeyInfo { name: name.to_owned(), access_key: access_key.to_owned(), secret_key: Some(secret.clone()) })
    }

    fn bytes(&self) -> usize {
        self.by_access_key.iter().map(|(access_key, record)| access_key.len() + record.bytes()).sum()
    }

    /// Removes a pair by its access key or its name.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), MonError> {
        if self.by_access_key.remove(name).is_some() {
            return Ok(());
        }
        let before = self.by_access_key.len();
        self.by_access_key.retain(|_, record| record.name != name);
        if self.by_access_key.len() == before {
            return Err(MonError::NotFound { what: "key".into(), name: name.to_owned() });
        }
        Ok(())
    }

    /// All pairs without their secrets, by name.
    pub(crate) fn list(&self) -> Vec<KeyInfo> {
        let mut keys: Vec<KeyInfo> = self
            .by_access_key
            .iter()
            .map(|(access_key, record)| KeyInfo {
                name: record.name.clone(),
                access_key: access_key.clone(),
                secret_key: None,
            })
            .collect();
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        keys
    }

    /// One pair, secret included.
    pub(crate) fn lookup(&self, access_key: &str) -> Option<KeyInfo> {
        let record = self.by_access_key.get(access_key)?;
        Some(KeyInfo {
            name: record.name.clone(),
            access_key: access_key.to_owned(),
            secret_key: Some(record.secret.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_carry_no_secret_and_names_are_unique() {
        let mut store = KeyStore::default();
        let secret = Secret("0123456789".into());
        store.add("alice", "AKIAALICE", &secret).expect("valid");
        store.add("alice", "AKIAALICE", &secret).expect("the same again");
        assert!(matches!(store.add("alice", "AKIAOTHER", &secret), Err(MonError::Exists { .. })));
        assert!(matches!(store.add("bob", "AKIAALICE", &secret), Err(MonError::Exists { .. })));
        assert!(store.list().iter().all(|key| key.secret_key.is_none()));
        assert_eq!(store.lookup("AKIAALICE").and_then(|key| key.secret_key), Some(secret.clone()));
        assert!(store.add("carol", "a b", &secret).is_err());
        assert!(store.add("carol", "AKIACAROL", &Secret("short".into())).is_err());
        store.remove("alice").expect("by name");
        assert!(store.lookup("AKIAALICE").is_none());
        assert!(store.remove("alice").is_err());
    }
}
