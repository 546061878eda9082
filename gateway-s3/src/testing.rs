//! An in-memory backend and a signing client, for tests of the protocol. Nothing here keeps data.

pub mod memory;
pub mod signer;
