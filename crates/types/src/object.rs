//! The name of a stored object.

use std::fmt;

use minicbor::{Decode, Encode};

/// The longest object name, in bytes. With the hash prefix and the collection id a key in the store's index stays
/// below 1 KiB, which keeps index blocks of 4 KiB useful.
pub const OBJECT_NAME_BYTES_MAX: usize = 512;

/// A name that is empty or longer than [`OBJECT_NAME_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an object name has 1 to {OBJECT_NAME_BYTES_MAX} bytes, not {length}")]
pub struct InvalidObjectName {
    /// The length that was given, in bytes.
    pub length: usize,
}

/// The name of an object within its pool: 1 to [`OBJECT_NAME_BYTES_MAX`] bytes, any bytes.
///
/// The one door is [`ObjectName::new`]; decoding goes through it too.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Box<[u8]>);

impl ObjectName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`InvalidObjectName`] when it is empty or too long.
    pub fn new(name: impl Into<Vec<u8>>) -> Result<ObjectName, InvalidObjectName> {
        let name: Vec<u8> = name.into();
        if name.is_empty() || name.len() > OBJECT_NAME_BYTES_MAX {
            return Err(InvalidObjectName { length: name.len() });
        }
        Ok(ObjectName(name.into_boxed_slice()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectName({self})")
    }
}

impl<C> Encode<C> for ObjectName {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for ObjectName {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        ObjectName::new(d.bytes()?).map_err(minicbor::decode::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_refuses_what_the_constructor_refuses() {
        let too_long = minicbor::to_vec(minicbor::bytes::ByteVec::from(vec![b'x'; OBJECT_NAME_BYTES_MAX + 1]))
            .expect("encoding to memory cannot fail");
        assert!(minicbor::decode::<ObjectName>(&too_long).is_err());
        let name = ObjectName::new("rbd/1").expect("valid");
        let bytes = minicbor::to_vec(&name).expect("encoding to memory cannot fail");
        assert_eq!(minicbor::decode::<ObjectName>(&bytes).expect("valid"), name);
        assert!(ObjectName::new("").is_err());
    }
}
