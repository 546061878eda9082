//! Submitting: from a transaction to a record with a place.
//!
//! Checksums and encoding are done before the lock is taken; under it, the ops are staged over the projected state, and only
//! when all of them are through does anything change. Space is found first, so nothing fails half way.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::space::{Admission, NO_SEGMENT};
use super::stage::{Place, Stage, StageError};
use super::{Effect, Engine, LogRow, OnDurable, Pending};
use crate::checksum::{block_sums, crc32c};
use crate::device::Device;
use crate::error::{Excess, SubmitError};
use crate::format::record::{LogOp, LogRow as LogOpRow, RECORD_HEADER_BYTES, RecordHeader, record_bytes};
use crate::format::segment::SegmentHeader;
use crate::index::{Index, IndexError};
use crate::key::Receipt;
use crate::tx::{Transaction, TxOp};

/// Room for the ops of an ordinary write with its log rows.
const OPS_BYTES_USUAL: usize = 1024;

impl<D: Device, I: Index> Engine<D, I> {
    /// Takes a transaction: checks it, gives it a place in the log, and makes its effects visible to reads. It is durable
    /// after the next [`Engine::commit`].
    ///
    /// # Errors
    /// [`SubmitError`]; nothing has then changed.
    pub fn submit(&self, tx: Transaction) -> Result<Receipt, SubmitError> {
        self.submit_then(&tx, &mut None)
    }

    /// As [`Engine::submit`]; `on_durable` is taken, and called by the commit that makes the transaction durable, or when
    /// that fails.
    ///
    /// # Errors
    /// As [`Engine::submit`]; `on_durable` then stays where it is.
    pub fn submit_then(&self, tx: &Transaction, on_durable: &mut Option<OnDurable>) -> Result<Receipt, SubmitError> {
        tx.check()?;
        let block_bytes = self.options.checksum_block_bytes as usize;
        let sums: Vec<Vec<u8>> = tx
            .ops
            .iter()
            .map(|op| if let TxOp::Write { data, .. } = op { block_sums(data, block_bytes) } else { Vec::new() })
            .collect();
        let ops: Vec<LogOp<'_>> = tx.ops.iter().zip(&sums).map(|(op, sums)| log_op(op, sums)).collect();
        let payload = tx.ops.iter().filter_map(|op| match op {
            TxOp::Write { data, .. } if !data.is_empty() => Some(data.clone()),
            _ => None,
        });
        let admission = if tx.may_use_reserve() { Admission::Reserve } else { Admission::Normal };
        self.submit_ops(&ops, payload.collect(), admission, on_durable)
    }

    /// Submits ops whose payload is `payload`, in order.
    pub(super) fn submit_ops(
        &self,
        ops: &[LogOp<'_>],
        payload: Vec<Bytes>,
        admission: Admission,
        on_durable: &mut Option<OnDurable>,
    ) -> Result<Receipt, SubmitError> {
        let mut encoded = Vec::with_capacity(OPS_BYTES_USUAL);
        minicbor::encode(ops, &mut encoded).expect("derived encoders do not fail");
        let ops_crc = crc32c(&encoded);
        let payload_bytes: u64 = payload.iter().map(|piece| piece.len() as u64).sum();
        let bytes = record_bytes(encoded.len(), payload_bytes);
        let block_log2 = self.options.checksum_block_bytes.trailing_zeros();

        let mut guard = self.state.write();
        let state = &mut *guard;
        if let Some(error) = &state.failed {
            return Err(SubmitError::Poisoned(Arc::clone(error)));
        }
        if state.closed {
            return Err(SubmitError::Closed);
        }
        let record_bytes_max = state.space.usable_bytes();
        if bytes > record_bytes_max {
            return Err(SubmitError::TooLarge { what: Excess::Transaction, bytes, max: record_bytes_max });
        }
        let no_space = |cleaning_helps| SubmitError::NoSpace {
            needed_bytes: bytes,
            live_bytes: state.space.live,
            limit_bytes: state.space.live_limit(),
            cleaning_helps,
        };
        if admission == Admission::Normal && state.space.live + payload_bytes > state.space.live_limit() {
            return Err(no_space(false));
        }
        let Some(plan) = state.space.plan(bytes, admission) else {
            // Without blocks it is for the file system to make room: a writer does not wait for that. A delete does: it is
            // asked for them again all the time, and may have got some back just now.
            let helps = match admission {
                Admission::Normal => !state.space.next_has_no_blocks && state.space.cleaning_helps(),
                Admission::Reserve => state.space.next_has_no_blocks || state.space.cleaning_helps(),
                Admission::Cleaning => state.space.cleaning_helps(),
            };
            return Err(no_space(helps));
        };
        let position = state.space.head.position;
        let payload_offset = plan.offset + (RECORD_HEADER_BYTES + encoded.len()) as u32;
        let place = Place { position, segment: plan.segment, payload_offset, block_log2: block_log2 as u8 };
        let mut stage = Stage::new(&state.overlay, &state.cache, &self.index, &state.collections, place);
        for op in ops {
            stage.apply(op).map_err(|error| match error {
                StageError::NoSuchCollection(collection) => SubmitError::NoSuchCollection { collection },
                StageError::CollectionExists(collection) => SubmitError::CollectionExists { collection },
                StageError::Foreign { c, o } => SubmitError::ForeignObject { collection: c, object: o },
                StageError::Meta(_, source) => SubmitError::Index(source),
                StageError::Onode { c, o, source } => SubmitError::CorruptObject { collection: c, object: o, source },
                // Not of the transaction, which was checked against narrower limits, but of what the index has.
                StageError::Bad(reason) => SubmitError::Index(IndexError::Malformed { key: Vec::new(), reason }),
            })?;
        }
        let (changes, collections_changed) = (stage.changes, stage.collections_changed);
        let copied_bytes = stage.copied_bytes;

        // Nothing fails from here on.
        let segment_header = plan.opens_with_next.map(|next| {
            let header = SegmentHeader {
                cluster: self.layout.cluster,
                disk: self.layout.disk,
                segment: plan.segment,
                next,
                sequence: plan.sequence,
                generation: self.layout.generation,
                first: position,
                chain: state.space.head.chain,
            };
            let mut sector = header.encode();
            sector.resize(self.layout.sector_bytes as usize, 0);
            sector
        });
        let (header, chain) = RecordHeader {
            cluster: self.layout.cluster,
            disk: self.layout.disk,
            generation: self.layout.generation,
            segment: plan.segment,
            offset: plan.offset,
            sequence: plan.sequence,
            position,
            group_first: state.space.head.group_first,
            chain: state.space.head.chain,
            ops_bytes: encoded.len() as u32,
            payload_bytes: payload_bytes as u32,
            ops_crc,
            block_log2,
        }
        .encode();
        assert!(plan.segment != NO_SEGMENT, "a planned record has a segment");
        state.space.take(plan, bytes, chain);
        for (segment, by) in &changes.live {
            state.space.change_live(position, *segment, *by);
        }
        state.overlay.add(position, &changes);
        state.collections.change(collections_changed);
        let mut in_memory = Vec::with_capacity(payload.len());
        let mut at = payload_offset;
        for piece in &payload {
            in_memory.push((plan.segment, at));
            state.in_memory.insert((plan.segment, at), piece.clone());
            at += piece.len() as u32;
        }
        let head = &state.space.head;
        let after = LogRow {
            disk: self.layout.disk,
            position,
            segment: head.segment,
            sequence: head.sequence,
            offset: head.offset,
            next_segment: head.next_segment,
            chain,
        };
        state.pending_bytes += bytes + copied_bytes;
        state.pending.push_back(Pending {
            effect: Effect { position, changes, after, payload: in_memory },
            segment: plan.segment,
            offset: plan.offset,
            segment_header,
            header,
            ops: encoded,
            payload,
            bytes,
            copied_bytes,
            on_durable: on_durable.take().map(Mutex::new),
        });
        Ok(Receipt { position })
    }
}

/// A checked op as the log has it; `sums` are the checksums of its payload.
fn log_op<'a>(op: &'a TxOp, sums: &'a [u8]) -> LogOp<'a> {
    match op {
        TxOp::CreateCollection { c } => LogOp::CreateCollection { c: *c },
        TxOp::RemoveCollection { c } => LogOp::RemoveCollection { c: *c },
        TxOp::SplitCollection { c, into, at } => {
            LogOp::SplitCollection { c: *c, into: *into, at: at.as_slice().into() }
        }
        TxOp::Touch { c, o } => LogOp::Touch { c: *c, o: o.as_bytes().into() },
        // As POSIX pwrite: "if nbyte is zero … no other results"; the object is made all the same.
        TxOp::Write { c, o, data, .. } if data.is_empty() => LogOp::Touch { c: *c, o: o.as_bytes().into() },
        TxOp::Write { c, o, offset, data } => LogOp::Write {
            c: *c,
            o: o.as_bytes().into(),
            offset: *offset,
            length: data.len() as u32, // more than u32 holds is more than a segment: refused before it is staged
            sums: sums.into(),
        },
        TxOp::Truncate { c, o, size } => LogOp::Truncate { c: *c, o: o.as_bytes().into(), size: *size },
        TxOp::Zero { c, o, offset, length } => {
            LogOp::Zero { c: *c, o: o.as_bytes().into(), offset: *offset, length: *length }
        }
        TxOp::Remove { c, o } => LogOp::Remove { c: *c, o: o.as_bytes().into() },
        TxOp::SetAttr { c, o, name, value } => {
            LogOp::SetAttr { c: *c, o: o.as_bytes().into(), name: name.as_slice().into(), value: value.as_ref().into() }
        }
        TxOp::RemoveAttr { c, o, name } => {
            LogOp::RemoveAttr { c: *c, o: o.as_bytes().into(), name: name.as_slice().into() }
        }
        TxOp::PutRows { c, o, rows } => LogOp::PutRows {
            c: *c,
            o: o.as_bytes().into(),
            rows: rows
                .iter()
                .map(|(key, value)| LogOpRow { key: key.as_slice().into(), value: value.as_ref().into() })
                .collect(),
        },
        TxOp::DeleteRows { c, o, keys } => LogOp::DeleteRows {
            c: *c,
            o: o.as_bytes().into(),
            keys: keys.iter().map(|key| key.as_slice().into()).collect(),
        },
        TxOp::DeleteRowRange { c, o, start, end } => LogOp::DeleteRowRange {
            c: *c,
            o: o.as_bytes().into(),
            start: start.as_slice().into(),
            end: end.as_deref().map(Into::into),
        },
        TxOp::PutMeta { c, key, value } => {
            LogOp::PutMeta { c: *c, key: key.as_slice().into(), value: value.as_ref().into() }
        }
        TxOp::DeleteMeta { c, key } => LogOp::DeleteMeta { c: *c, key: key.as_slice().into() },
        TxOp::DeleteMetaRange { c, start, end } => {
            LogOp::DeleteMetaRange { c: *c, start: start.as_slice().into(), end: end.as_deref().map(Into::into) }
        }
    }
}
