//! The rows in which S3 state is kept: keys that sort as S3 sorts, values that carry their version.
//!
//! # Keys
//! `route(K)` is the S3 key with `00` written as `00 FF`, ended by `00 01`. Byte order of routes is byte order of keys,
//! no route is a prefix of another, and every row of `K` in every space begins with `route(K)`: so all of them are in one
//! group and change in one batch.
//!
//! | space | key | value |
//! |---|---|---|
//! | `b` (global table) | route(bucket) | [`BucketRow`] |
//! | `x` (global table) | route(bucket) ++ table id | [`DroppedRow`]: garbage of a bucket that was deleted |
//! | `o` | route(K) | [`ObjectRow`]: all that a listing needs |
//! | `d` | route(K) | [`DataRow`]: the bytes of an object that has them in a row |
//! | `e` | route(K) | [`DataRow`]: the blob or the parts of any other object |
//! | `u` | route(K) ++ upload id | [`UploadRow`] |
//! | `p` | route(K) ++ upload id ++ part number (big-endian) | [`PartRow`] |
//! | `g` | route(K) ++ unique id | [`GcRow`] |
//!
//! An object row has exactly one of `d` and `e` beside it, of the same version, and neither is there without it. So a
//! writer that replaces whatever is there need only know that there is no `e` row, or what it holds: its blobs, and all
//! of them, become garbage.
//!
//! # Values
//! One format byte, then CBOR with integer keys. Unknown keys are skipped, so fields can be added as `Option`.
//! Byte by byte: `docs/formats/s3.md`.

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::backend::{BackendError, BlobId, RowKey, TableId};

/// The kinds of rows.
pub mod space {
    /// Buckets, in the global table.
    pub const BUCKETS: u8 = b'b';
    /// Tables of deleted buckets whose garbage is not collected yet, in the global table.
    pub const DROPPED: u8 = b'x';
    /// Heads of objects.
    pub const OBJECTS: u8 = b'o';
    /// Bytes of objects that have them in a row.
    pub const DATA: u8 = b'd';
    /// Blobs and parts of all other objects.
    pub const EXTERNAL: u8 = b'e';
    /// Multipart uploads in progress.
    pub const UPLOADS: u8 = b'u';
    /// Their parts.
    pub const PARTS: u8 = b'p';
    /// Blobs to delete, and blobs being written.
    pub const GC: u8 = b'g';
}

/// The table of buckets.
pub const GLOBAL_TABLE: TableId = TableId([0; 16]);

/// The format byte of every row value. 1 had no `e` rows: a writer of 2 would not see what it replaces.
const ROW_FORMAT: u8 = 2;

/// A multipart upload's id: milliseconds since 1970 (big-endian), then random bytes, so that ids sort by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct UploadId(#[cbor(with = "minicbor::bytes")] pub [u8; 16]);

impl UploadId {
    /// A fresh id, of random bytes.
    pub fn new(now_ms: u64, mut id: [u8; 16]) -> UploadId {
        id[..8].copy_from_slice(&now_ms.to_be_bytes());
        UploadId(id)
    }

    /// Reads the form that clients hold.
    pub fn parse(text: &str) -> Option<UploadId> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).ok()?;
        Some(UploadId(id))
    }
}

impl std::fmt::Display for UploadId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A random 16-byte id.
pub fn unique_id() -> [u8; 16] {
    rand::random()
}

/// Escapes key bytes without ending them: the common beginning of all routes of keys that begin with `prefix`.
pub fn escape_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(prefix.len() + 2);
    for byte in prefix {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out
}

/// The routing key of an S3 key.
pub fn route(key: &str) -> Vec<u8> {
    let mut out = escape_prefix(key.as_bytes());
    out.extend_from_slice(&[0x00, 0x01]);
    out
}

/// Splits a row key into the S3 key and what follows the route; `None` if it has no route.
pub fn split_route(row_key: &[u8]) -> Option<(String, &[u8])> {
    let mut key = Vec::with_capacity(row_key.len());
    let mut rest = row_key;
    loop {
        match rest {
            [0x00, 0xff, tail @ ..] => {
                key.push(0);
                rest = tail;
            }
            [0x00, 0x01, tail @ ..] => return Some((String::from_utf8(key).ok()?, tail)),
            [0x00, ..] | [] => return None,
            [byte, tail @ ..] => {
                key.push(*byte);
                rest = tail;
            }
        }
    }
}

/// The first byte string after all that begin with `prefix`; `None` when there is none.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut out = prefix.to_vec();
    while let Some(last) = out.pop() {
        if last < 0xff {
            out.push(last + 1);
            return Some(out);
        }
    }
    None
}

/// The row key of `route` ++ `suffix` in `space`.
pub fn row_key(space: u8, route: &[u8], suffix: &[u8]) -> RowKey {
    let mut key = Vec::with_capacity(route.len() + suffix.len());
    key.extend_from_slice(route);
    key.extend_from_slice(suffix);
    RowKey { space, key }
}

/// The row key of one part.
pub fn part_key(route: &[u8], upload: UploadId, number: u16) -> RowKey {
    let mut suffix = [0u8; 18];
    suffix[..16].copy_from_slice(&upload.0);
    suffix[16..].copy_from_slice(&number.to_be_bytes());
    row_key(space::PARTS, route, &suffix)
}

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BucketRow {
    /// The table of its rows; a bucket that is deleted and made again has another.
    #[n(0)]
    pub table: TableId,
    /// Canonical id of the owner.
    #[n(1)]
    pub owner: String,
    /// Name of the owner.
    #[n(2)]
    pub owner_name: String,
    /// Milliseconds since 1970.
    #[n(3)]
    pub created_ms: u64,
}

/// A blob with its length, so that it can be read and deleted without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BlobRef {
    /// The blob.
    #[n(0)]
    pub id: BlobId,
    /// Bytes in it.
    #[n(1)]
    pub bytes: u64,
    /// Bytes of each stripe but the last.
    #[n(2)]
    pub stripe_bytes: u32,
}

impl BlobRef {
    /// How many stripes it has.
    pub fn stripes(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(u64::from(self.stripe_bytes.max(1)))).unwrap_or(u32::MAX)
    }
}

/// A stored checksum (`x-amz-checksum-*`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ChecksumRow {
    /// Which ([`crate::checksum::Algorithm::code`]).
    #[n(0)]
    pub algorithm: u8,
    /// The value, big-endian.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub value: Vec<u8>,
    /// Of the parts' checksums (`COMPOSITE`), and how many; otherwise of the whole object (`FULL_OBJECT`).
    #[n(2)]
    pub composite_parts: Option<u32>,
}

/// Where the bytes of an object are.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum DataRef {
    /// In the data row.
    #[n(0)]
    Inline,
    /// In one blob.
    #[n(1)]
    Blob(#[n(0)] BlobRef),
    /// In so many parts, which the data row lists.
    #[n(2)]
    Parts(#[n(0)] u32),
}

/// What a client says about an object beside its bytes, the same for PUT, copy and multipart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Described {
    /// Standard headers by lower-case name: content-type, cache-control and so on.
    #[n(0)]
    pub headers: Vec<(String, String)>,
    /// User metadata by lower-case name, without `x-amz-meta-`.
    #[n(1)]
    pub metadata: Vec<(String, String)>,
}

/// An object: everything but its bytes and its list of parts.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ObjectRow {
    /// Unique to each write of the key; the data row has the same.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub version: [u8; 16],
    /// Length in bytes.
    #[n(1)]
    pub size: u64,
    /// Without quotes.
    #[n(2)]
    pub etag: String,
    /// Milliseconds since 1970.
    #[n(3)]
    pub modified_ms: u64,
    /// Where the bytes are.
    #[n(4)]
    pub data: DataRef,
    /// Headers and metadata.
    #[n(5)]
    pub described: Described,
    /// The checksum that was verified or computed.
    #[n(6)]
    pub checksum: Option<ChecksumRow>,
    /// The upload that made it; a repeated CompleteMultipartUpload is known by it.
    #[n(7)]
    pub upload: Option<UploadId>,
}

/// One part of a multipart object.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PartRef {
    /// 1 to 10,000.
    #[n(0)]
    pub number: u16,
    /// Where its bytes are.
    #[n(1)]
    pub data: PartData,
    /// Its checksum, of the object's algorithm.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub checksum: Option<Vec<u8>>,
}

/// Where the bytes of a part are.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum PartData {
    /// Here.
    #[n(0)]
    Inline(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// In a blob.
    #[n(1)]
    Blob(#[n(0)] BlobRef),
}

impl PartData {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            PartData::Inline(bytes) => bytes.len() as u64,
            PartData::Blob(blob) => blob.bytes,
        }
    }

    /// The blob, if it is one.
    pub fn blob(&self) -> Option<BlobRef> {
        match self {
            PartData::Inline(_) => None,
            PartData::Blob(blob) => Some(*blob),
        }
    }
}

/// Where an object's bytes are, or they themselves.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DataRow {
    /// Of which write.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub version: [u8; 16],
    /// What it holds.
    #[n(1)]
    pub payload: Payload,
}

/// A [`DataRow`] to be written, its payload elsewhere.
#[derive(Debug, Encode)]
#[cbor(map)]
pub struct DataRowRef<'a> {
    /// Of which write.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub version: [u8; 16],
    /// What it holds.
    #[n(1)]
    pub payload: &'a Payload,
}

impl DataRowRef<'_> {
    /// The row's value.
    pub fn to_bytes(&self) -> Bytes {
        let payload_bytes = match self.payload {
            Payload::Inline(data) => data.len(),
            Payload::Parts(parts) => parts.len() * PART_REF_BYTES,
            Payload::Blob(_) => 0,
        };
        encoded(self, payload_bytes + ROW_BYTES)
    }
}

/// Bytes that are reserved to encode a row, and one part of a list: enough for most.
const ROW_BYTES: usize = 256;
const PART_REF_BYTES: usize = 80;

fn encoded(row: &impl Encode<()>, reserve: usize) -> Bytes {
    let mut out = Vec::with_capacity(reserve);
    out.push(ROW_FORMAT);
    match minicbor::encode(row, &mut out) {
        Ok(()) => Bytes::from(out),
        Err(error) => match error.into_write() {
            Some(never) => match never {},
            None => Bytes::new(),
        },
    }
}

/// What a data row holds.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Payload {
    /// The whole object.
    #[n(0)]
    Inline(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// The parts in order.
    #[n(1)]
    Parts(#[n(0)] Vec<PartRef>),
    /// The whole object is in this blob.
    #[n(2)]
    Blob(#[n(0)] BlobRef),
}

impl Payload {
    /// The kind of row that holds it.
    pub fn space(&self) -> u8 {
        match self {
            Payload::Inline(_) => space::DATA,
            Payload::Parts(_) | Payload::Blob(_) => space::EXTERNAL,
        }
    }

    /// All blobs that it refers to.
    pub fn blobs(&self) -> Vec<BlobRef> {
        match self {
            Payload::Inline(_) => Vec::new(),
            Payload::Parts(parts) => parts.iter().filter_map(|part| part.data.blob()).collect(),
            Payload::Blob(blob) => vec![*blob],
        }
    }
}

/// A multipart upload in progress.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct UploadRow {
    /// Milliseconds since 1970.
    #[n(0)]
    pub initiated_ms: u64,
    /// Headers and metadata of the object to be.
    #[n(1)]
    pub described: Described,
    /// Checksum algorithm of the parts and the object.
    #[n(2)]
    pub checksum_algorithm: u8,
    /// Whether the object's checksum is made of the parts' checksums.
    #[n(3)]
    pub checksum_composite: bool,
    /// Whether the client chose the algorithm.
    #[n(4)]
    pub checksum_asked: bool,
    /// Set while the upload is completed or aborted: no part can be added. Random, so that whoever set it can tell
    /// that nobody re-opened the upload since.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub frozen: Option<[u8; 16]>,
    /// Canonical id of the initiator.
    #[n(6)]
    pub owner: String,
    /// Name of the initiator.
    #[n(7)]
    pub owner_name: String,
}

/// An uploaded part.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PartRow {
    /// Its MD5.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub md5: [u8; 16],
    /// Its bytes.
    #[n(1)]
    pub data: PartData,
    /// Its checksum, of the upload's algorithm.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub checksum: Vec<u8>,
    /// Milliseconds since 1970.
    #[n(3)]
    pub modified_ms: u64,
}

/// Blobs that nothing refers to, or (`intent`) that a request in progress is writing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GcRow {
    /// The blobs.
    #[n(0)]
    pub blobs: Vec<BlobRef>,
    /// When the row was written, milliseconds since 1970.
    #[n(1)]
    pub since_ms: u64,
    /// The blobs are being written: the commit removes this row, and fails if it is gone.
    #[n(2)]
    pub intent: bool,
}

/// A table that was dropped with garbage rows in it. When the garbage is old enough it is deleted, then the table purged.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DroppedRow {
    /// The table.
    #[n(0)]
    pub table: TableId,
    /// When it had been dropped, milliseconds since 1970: all its rows are older.
    #[n(1)]
    pub since_ms: u64,
    /// Set when all that its rows name is deleted. Before that nothing of it may be forgotten, though it cannot be found.
    #[n(2)]
    pub collected: Option<bool>,
}

/// A row value that can be stored.
pub trait Row: Sized {
    /// What the row is called in errors.
    const WHAT: &'static str;
    /// Encodes with the format byte.
    fn to_bytes(&self) -> Bytes;
    /// Decodes what [`Row::to_bytes`] made.
    fn from_bytes(bytes: &[u8]) -> Result<Self, BackendError>;
}

macro_rules! rows {
    ($($row:ident: $what:literal),* $(,)?) => { $(
        impl Row for $row {
            const WHAT: &'static str = $what;

            fn to_bytes(&self) -> Bytes {
                encoded(self, ROW_BYTES)
            }

            fn from_bytes(bytes: &[u8]) -> Result<$row, BackendError> {
                match bytes.split_first() {
                    Some((&ROW_FORMAT, rest)) => {
                        minicbor::decode(rest).map_err(|_| BackendError::Corrupt { what: $what })
                    }
                    _ => Err(BackendError::Corrupt { what: $what }),
                }
            }
        }
    )* };
}

rows! {
    BucketRow: "bucket row",
    ObjectRow: "object row",
    DataRow: "data row",
    UploadRow: "upload row",
    PartRow: "part row",
    GcRow: "garbage row",
    DroppedRow: "dropped table's row",
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn routes_sort_as_their_keys_and_come_back(a in "\\PC{0,20}|[\\x00\\x01\\xff]{0,4}", b in "[\\x00-\\x03a]{0,6}") {
            prop_assert_eq!(route(&a).cmp(&route(&b)), a.as_bytes().cmp(b.as_bytes()));
            let mut key = route(&a);
            key.extend_from_slice(b"tail");
            let (back, rest) = split_route(&key).unwrap();
            prop_assert_eq!(back, a.clone());
            prop_assert_eq!(rest, b"tail");
            prop_assert!(a == b || !route(&a).starts_with(&route(&b)));
        }

        #[test]
        fn a_prefix_range_holds_exactly_the_keys_with_that_prefix(p in "[\\x00-\\x02a]{1,3}", k in "[\\x00-\\x02ab]{0,6}") {
            let start = escape_prefix(p.as_bytes());
            let end = after_prefix(&start).unwrap();
            let r = route(&k);
            prop_assert_eq!(r >= start && r < end, k.starts_with(&p));
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = ObjectRow::from_bytes(&bytes);
            let _ = GcRow::from_bytes(&bytes);
            let _ = split_route(&bytes);
        }
    }

    #[test]
    fn an_object_row_comes_back_as_it_was() {
        let row = ObjectRow {
            version: [3; 16],
            size: 7,
            etag: "ab".into(),
            modified_ms: 5,
            data: DataRef::Blob(BlobRef { id: BlobId([1; 16]), bytes: 7, stripe_bytes: 4 }),
            described: Described {
                headers: vec![("content-type".into(), "a/b".into())],
                metadata: vec![("k".into(), String::new())],
            },
            checksum: Some(ChecksumRow { algorithm: 1, value: vec![1, 2, 3, 4], composite_parts: None }),
            upload: Some(UploadId([9; 16])),
        };
        assert_eq!(ObjectRow::from_bytes(&row.to_bytes()).unwrap(), row);
    }
}
