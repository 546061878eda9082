//! What a simulator that follows each copy of each version must see of a placement group and of its transactions. Nothing
//! here changes anything, and no decision of the protocol rests on it.

use std::collections::BTreeMap;

use holdfast_types::LogVersion;
use holdfast_wire::Effect;
use holdfast_wire::peer::LogEntry;

use crate::api::{LocalObjects, StoreOp, VERSION_ATTR};
use crate::exec;
use crate::key::ObjectKey;
use crate::pg::{Pg, Role};
use crate::rows;

/// The version of the copy of an object in a store; `None` when there is no copy, or none that says so.
pub fn version_held(store: &dyn LocalObjects, key: &ObjectKey) -> Option<LogVersion> {
    exec::stored_version(store, key).ok().filter(|version| *version != LogVersion::ZERO)
}

impl StoreOp {
    /// The object that this gives a version, and which.
    #[must_use]
    pub fn version_given(&self) -> Option<(&ObjectKey, LogVersion)> {
        match self {
            StoreOp::Object { key, effect: Effect::SetAttr { name, value } } if name == VERSION_ATTR => {
                Some((key, exec::parse_version(Some(value.as_ref()))))
            }
            _ => None,
        }
    }

    /// The entry that this puts into the log.
    #[must_use]
    pub fn entry_logged(&self) -> Option<LogEntry> {
        match self {
            StoreOp::PutMeta { key, value } => rows::parse_log(key, value),
            _ => None,
        }
    }
}

impl Pg {
    /// The objects that this copy lacks, and the version of each that its log tells of.
    #[must_use]
    pub fn lacked(&self) -> BTreeMap<ObjectKey, LogVersion> {
        self.holding.missing.iter().map(|(key, lack)| (key.clone(), lack.need)).collect()
    }

    /// [`Pg::lacked`], if nothing else keeps this placement group from being clean: it serves, all
    /// members have been filled (it is handed over to those whom placement wants only when it is whole), and whoever lacks
    /// something lacks only what the primary lacks, too. Nobody can give that, then, or it is on its way.
    #[must_use]
    pub fn lacks_only(&self) -> Option<BTreeMap<ObjectKey, LogVersion>> {
        let Role::Active(active) = &self.role else { return None };
        let placed = self.members.acting.len() >= self.interval.size as usize;
        let known = active.backfill.is_none() && active.recovery.is_settled();
        let elsewhere = |(key, _): (&ObjectKey, _)| self.holding.missing.contains(key);
        let peers = active.peers.values();
        let only = peers.into_iter().all(|peer| peer.cursor.is_complete() && peer.missing.iter().all(elsewhere));
        (active.writeable && placed && known && only).then(|| self.lacked())
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::{Epoch, ObjectName};

    use super::*;
    use crate::tests::entry;

    #[test]
    fn a_transaction_tells_which_version_it_makes_and_what_it_logs() {
        let version = LogVersion { epoch: Epoch(3), counter: 4 };
        let key = ObjectKey::of(&ObjectName::new("o").expect("valid"));
        let set = |name: &[u8]| StoreOp::Object {
            key: key.clone(),
            effect: Effect::SetAttr { name: name.to_vec(), value: exec::version_value(version).into() },
        };
        assert_eq!(set(VERSION_ATTR).version_given(), Some((&key, version)));
        assert_eq!(set(b"other").version_given(), None);
        let logged = entry(7, "o", 0);
        assert_eq!(rows::put_log(&logged).entry_logged(), Some(logged));
        assert_eq!(set(VERSION_ATTR).entry_logged(), None);
        assert_eq!(StoreOp::PutMeta { key: (&b"i"[..]).into(), value: (&b"x"[..]).into() }.entry_logged(), None);
    }
}
