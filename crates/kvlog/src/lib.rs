//! RocksDB's logs as a power failure leaves them: what of them is whole, and the end of a manifest that is there in part.
//!
//! What was written and not synced when the power fails may be there in part, in any order. RocksDB takes a record of which
//! only some sectors are there for damage, and does not open. This crate reads the format that its write-ahead log and its
//! manifest share ([`Records`]), and mends the manifest ([`manifest::cut_torn_end`]); what a write-ahead log may lose only
//! its user knows. It never writes a record, and changes nothing but the length of a file.
//!
//! The format is RocksDB's (`db/log_format.h`): blocks of 32 KiB, in them fragments of a checksum (CRC-32C, masked), a length
//! of 2 bytes, a type and the bytes; a record is one fragment, or a first, any number in the middle, and a last. The end of
//! a block that is too short for a header is not used.

pub mod manifest;
mod records;

pub use records::{Fragment, HEADER_BYTES, Kind, Record, Records, fragment};
