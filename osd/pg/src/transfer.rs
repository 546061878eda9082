//! Objects in pieces: reading them from the store, and the store operations that put them together again.
//!
//! The version attribute is written with the last piece only: an interrupted transfer leaves an object without a version,
//! which no one mistakes for a copy.

use holdfast_types::LogVersion;
use holdfast_wire::peer::{ObjectPiece, PiecePosition};
use holdfast_wire::{Blob, Effect, Row};

use crate::api::{LocalObjects, ReadError, StoreOp, VERSION_ATTR};
use crate::exec;
use crate::key::ObjectKey;

/// Rows in one piece; a row costs some bytes of encoding beside its own.
const PIECE_ROWS_MAX: usize = 16_384;

/// Reads the piece of an object that starts at `position`; `None` when the object is not here in that version.
pub(crate) fn read_piece(
    store: &dyn LocalObjects,
    key: &ObjectKey,
    version: LogVersion,
    position: &PiecePosition,
    piece_bytes: usize,
) -> Result<Option<ObjectPiece>, ReadError> {
    let Some(size) = store.stat(key)? else { return Ok(None) };
    if version == LogVersion::ZERO || exec::stored_version(store, key)? != version {
        return Ok(None);
    }
    let mut piece = ObjectPiece {
        object: key.name(),
        version,
        position: position.clone(),
        next: None,
        size,
        data: Blob::default(),
        rows: Vec::new(),
        attrs: Vec::new(),
    };
    let mut budget = piece_bytes.max(1);
    let mut reached = position.clone();
    if position.bytes < size {
        let length = (size - position.bytes).min(budget as u64);
        piece.data = Blob(store.read(key, position.bytes, length)?);
        reached.bytes += length;
        budget -= usize::try_from(length).unwrap_or(budget);
    }
    if reached.bytes < size || budget == 0 {
        piece.next = Some(reached);
        return Ok(Some(piece));
    }
    let start = match &position.row {
        Some(row) => [row.as_slice(), &[0]].concat(),
        None => Vec::new(),
    };
    let page = store.rows_scan(key, &start, None, PIECE_ROWS_MAX, budget)?;
    if page.more {
        reached.row = page.rows.last().map(|row| row.key.clone());
        piece.next = Some(reached);
    } else {
        piece.attrs = store.attrs(key)?;
    }
    piece.rows = page.rows;
    Ok(Some(piece))
}

/// What writing a piece does to the store.
pub(crate) fn piece_ops(key: &ObjectKey, piece: ObjectPiece, ops: &mut Vec<StoreOp>) {
    let mut push = |effect| ops.push(StoreOp::Object { key: key.clone(), effect });
    if piece.position == PiecePosition::default() {
        push(Effect::Remove);
        push(Effect::Touch);
    }
    if !piece.data.is_empty() {
        push(Effect::Write { offset: piece.position.bytes, data: piece.data });
    }
    if !piece.rows.is_empty() {
        push(Effect::PutRows { rows: piece.rows });
    }
    if piece.next.is_none() {
        push(Effect::Truncate { size: piece.size });
        let (version, others): (Vec<Row>, Vec<Row>) = piece.attrs.into_iter().partition(|row| row.key == VERSION_ATTR);
        for attr in others.into_iter().chain(version) {
            push(Effect::SetAttr { name: attr.key, value: attr.value });
        }
    }
}
