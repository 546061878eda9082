//! An in-memory backend and signing clients, for tests of the protocol. Nothing here keeps data.

pub mod caller;
pub mod memory;
pub mod signer;
