//! The body of a record: the transaction as it is applied, the first time and again after a crash.

use bytes::Bytes;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::onode::{bind_all, checksums};
use crate::txn::{CollectionId, ObjectKey, Transaction, TxOp};

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Position {
    /// Segment in which the next record begins, or the one before it ended.
    #[n(0)]
    pub(crate) segment: u64,
    /// Byte in it.
    #[n(1)]
    pub(crate) offset: u32,
    /// The last transaction before it.
    #[n(2)]
    pub(crate) sequence: u64,
    /// Its header's checksum.
    #[n(3)]
    pub(crate) chain: u32,
    /// The commit that it belongs to.
    #[n(4)]
    pub(crate) group: u64,
}

/// One step of a record. Payload is named by its place behind the body.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum RecordOp {
    #[n(0)]
    CreateCollection(#[n(0)] CollectionId),
    #[n(1)]
    RemoveCollection(#[n(0)] CollectionId),
    #[n(2)]
    Touch(#[n(0)] CollectionId, #[n(1)] ObjectKey),
    #[n(3)]
    Write {
        #[n(0)]
        c: CollectionId,
        #[n(1)]
        o: ObjectKey,
        #[n(2)]
        offset: u64,
        #[n(3)]
        length: u32,
        /// Byte behind the body.
        #[n(4)]
        payload_at: u32,
        #[n(5)]
        checksums: Vec<u32>,
    },
    #[n(4)]
    Truncate(#[n(0)] CollectionId, #[n(1)] ObjectKey, #[n(2)] u64),
    #[n(5)]
    Zero(#[n(0)] CollectionId, #[n(1)] ObjectKey, #[n(2)] u64, #[n(3)] u64),
    #[n(6)]
    Remove(#[n(0)] CollectionId, #[n(1)] ObjectKey),
    #[n(7)]
    SetAttr(#[n(0)] CollectionId, #[n(1)] ObjectKey, #[n(2)] ByteVec, #[n(3)] ByteVec),
    #[n(8)]
    RemoveAttr(#[n(0)] CollectionId, #[n(1)] ObjectKey, #[n(2)] ByteVec),
    #[n(9)]
    PutRows(#[n(0)] CollectionId, #[n(1)] ObjectKey, #[n(2)] Vec<(ByteVec, ByteVec)>),
    #[n(10)]
    DeleteRows(#[n(0)] CollectionId, #[n(1)] ObjectKey, #[n(2)] Vec<ByteVec>),
    #[n(11)]
    DeleteRowRange(#[n(0)] CollectionId, #[n(1)] ObjectKey, #[n(2)] ByteVec, #[n(3)] Option<ByteVec>),
    #[n(12)]
    PutMeta(#[n(0)] CollectionId, #[n(1)] ByteVec, #[n(2)] ByteVec),
    #[n(13)]
    DeleteMeta(#[n(0)] CollectionId, #[n(1)] ByteVec),
    #[n(14)]
    DeleteMetaRange(#[n(0)] CollectionId, #[n(1)] ByteVec, #[n(2)] Option<ByteVec>),
}

/// A transaction on its way to the log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Draft {
    pub(crate) ops: Vec<RecordOp>,
    pub(crate) payload: Vec<Bytes>,
    pub(crate) payload_bytes: u64,
}

fn byte_vec(bytes: &Bytes) -> ByteVec {
    ByteVec::from(bytes.to_vec())
}

impl Draft {
    /// Computes the checksums of all payload. They are bound to their place by [`Draft::seal`].
    pub(crate) fn of(transaction: Transaction) -> Result<Draft, String> {
        let mut draft = Draft::default();
        for op in transaction.ops {
            let op = draft.convert(op)?;
            draft.ops.extend(op);
        }
        Ok(draft)
    }

    fn convert(&mut self, op: TxOp) -> Result<Option<RecordOp>, String> {
        Ok(Some(match op {
            TxOp::CreateCollection { c } => RecordOp::CreateCollection(c),
            TxOp::RemoveCollection { c } => RecordOp::RemoveCollection(c),
            TxOp::Touch { c, o } => RecordOp::Touch(c, o),
            TxOp::Write { c, o, data, .. } if data.is_empty() => RecordOp::Touch(c, o),
            TxOp::Write { c, o, offset, data } => {
                let length = u32::try_from(data.len()).map_err(|_| "a write of 4 GiB or more".to_owned())?;
                offset.checked_add(u64::from(length)).ok_or_else(|| "a write past 2^64".to_owned())?;
                let payload_at = u32::try_from(self.payload_bytes).map_err(|_| "4 GiB of payload".to_owned())?;
                let checksums = checksums(&data);
                self.payload_bytes += u64::from(length);
                self.payload.push(data);
                RecordOp::Write { c, o, offset, length, payload_at, checksums }
            }
            TxOp::Truncate { c, o, size } => RecordOp::Truncate(c, o, size),
            TxOp::Zero { c, o, offset, length } => {
                offset.checked_add(length).ok_or_else(|| "a range past 2^64".to_owned())?;
                RecordOp::Zero(c, o, offset, length)
            }
            TxOp::Remove { c, o } => RecordOp::Remove(c, o),
            TxOp::SetAttr { c, o, name, value } => RecordOp::SetAttr(c, o, name.into(), byte_vec(&value)),
            TxOp::RemoveAttr { c, o, name } => RecordOp::RemoveAttr(c, o, name.into()),
            TxOp::PutRows { c, o, rows } => {
                RecordOp::PutRows(c, o, rows.into_iter().map(|(key, value)| (key.into(), byte_vec(&value))).collect())
            }
            TxOp::DeleteRows { c, o, keys } => {
                RecordOp::DeleteRows(c, o, keys.into_iter().map(ByteVec::from).collect())
            }
            TxOp::DeleteRowRange { c, o, start, end } => {
                RecordOp::DeleteRowRange(c, o, start.into(), end.map(ByteVec::from))
            }
            TxOp::PutMeta { c, key, value } => RecordOp::PutMeta(c, key.into(), byte_vec(&value)),
            TxOp::DeleteMeta { c, key } => RecordOp::DeleteMeta(c, key.into()),
            TxOp::DeleteMetaRange { c, start, end } => {
                RecordOp::DeleteMetaRange(c, start.into(), end.map(ByteVec::from))
            }
        }))
    }

    /// Binds the checksums to the transaction's number and encodes the body.
    pub(crate) fn seal(&mut self, sequence: u64) -> Vec<u8> {
        for op in &mut self.ops {
            if let RecordOp::Write { c, o, offset, checksums, .. } = op {
                bind_all(checksums, *c, o, *offset, sequence);
            }
        }
        minicbor::to_vec(&self.ops).expect("encoding to memory cannot fail")
    }
}

/// The steps of a stored body.
pub(crate) fn decode_body(body: &[u8]) -> Result<Vec<RecordOp>, String> {
    minicbor::decode(body).map_err(|error| error.to_string())
}
