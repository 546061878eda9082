//! Identities: of the cluster, its daemons, its disks, its pools and placement groups.

use std::fmt;
use std::str::FromStr;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// A text that is not an id of the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseIdError {
    /// The text as it was given.
    pub text: String,
    /// What would have been right.
    pub expected: &'static str,
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode, Serialize, Deserialize)]
        #[cbor(transparent)]
        #[serde(transparent)]
        pub struct $name(#[n(0)] pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix($prefix)
                    .unwrap_or(text)
                    .parse()
                    .map($name)
                    .map_err(|_| ParseIdError { text: text.to_owned(), expected: $expected })
            }
        }
    };
}

number_id!(
    /// A storage daemon, one per device. Shown as `osd.3`. Ids are dense from 0 and are CRUSH's device ids.
    OsdId, u32, "osd.", "an OSD id such as osd.3 or 3"
);
number_id!(
    /// A monitor. Shown as `mon.0`. It is also the monitor's node id in Raft.
    MonId, u64, "mon.", "a monitor id such as mon.0 or 0"
);
number_id!(
    /// A pool. Never reused; 0 is not a pool.
    PoolId, u64, "", "a pool id such as 1"
);
number_id!(
    /// One run of a daemon or client process: drawn anew at each boot, so that messages of an earlier run are known
    /// for what they are (`docs/invariants.md`, F3). 0 means "never booted".
    Incarnation, u64, "", "an incarnation number"
);
number_id!(
    /// A client of the cluster, drawn at random by each client process. With [`Incarnation`] it names a session.
    ClientId, u64, "client.", "a client id such as client.7"
);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (index, byte) in self.0.iter().enumerate() {
                    if matches!(index, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let wrong = || ParseIdError { text: text.to_owned(), expected: $expected };
                let digits: String = text.chars().filter(|c| *c != '-').collect();
                if digits.len() != 32 || !digits.is_ascii() {
                    return Err(wrong());
                }
                let mut bytes = [0u8; 16];
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&digits[index * 2..index * 2 + 2], 16).map_err(|_| wrong())?;
                }
                Ok($name(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

uuid_id!(
    /// The cluster; drawn once, at bootstrap. Every frame handshake and every disk carries it.
    ClusterId, "a cluster id of 32 hex digits"
);
uuid_id!(
    /// A disk; drawn when the disk is formatted. A blank or swapped disk therefore never passes for another one.
    DiskUuid, "a disk uuid of 32 hex digits"
);

/// A placement group: pool and seed (`0..pg_num`). Shown as Ceph does, `pool.seed` with the seed in hex: `1.1f`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(array)]
pub struct PgId {
    /// The pool.
    #[n(0)]
    pub pool: PoolId,
    /// The placement group's number within its pool.
    #[n(1)]
    pub seed: u32,
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.pool, self.seed)
    }
}

impl FromStr for PgId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError { text: text.to_owned(), expected: "a placement group such as 1.1f" };
        let (pool, seed) = text.split_once('.').ok_or_else(wrong)?;
        Ok(PgId { pool: pool.parse().map_err(|_| wrong())?, seed: u32::from_str_radix(seed, 16).map_err(|_| wrong())? })
    }
}

impl Serialize for PgId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PgId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_parse_what_they_print() {
        let pg = PgId { pool: PoolId(12), seed: 0x1f };
        assert_eq!(pg.to_string(), "12.1f");
        assert_eq!("12.1f".parse(), Ok(pg));
        assert_eq!("osd.7".parse(), Ok(OsdId(7)));
        assert_eq!("7".parse(), Ok(OsdId(7)));
        let cluster = ClusterId([0xab; 16]);
        assert_eq!(cluster.to_string().parse(), Ok(cluster));
    }

    #[test]
    fn a_text_that_is_no_id_is_named_in_the_error() {
        let error = "osd.x".parse::<OsdId>().expect_err("not a number");
        assert_eq!(error.to_string(), "\"osd.x\" is not an OSD id such as osd.3 or 3");
        assert!("1".parse::<PgId>().is_err());
        assert!("é".repeat(16).parse::<ClusterId>().is_err());
    }
}
