//! Executes an op vector against the local copy: asserts and reads see the writes before them in the vector; the outcome
//! is effects and results, or the first failure. Nothing is changed here.
//!
//! Invariants: O1 a failed vector has no effects; O2 effects depend on no condition, so replicas apply them blindly;
//! O3 clients neither see nor set attributes whose name begins with a zero byte.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use holdfast_types::LogVersion;
use holdfast_wire::{Blob, Effect, ObjectOp, ObjectStat, OpError, OpResult, Row, RowCondition};

use crate::api::{LocalObjects, OBJECT_BYTES_MAX, ReadError, VERSION_ATTR, WRITE_RESULT_BYTES_MAX};
use crate::key::ObjectKey;
use crate::mutants::{Mutant, on};

/// Longest row key in bytes; keeps index entries small.
const ROW_KEY_BYTES_MAX: usize = 2_048;
/// Longest attribute name in bytes, as of the store.
const ATTR_NAME_BYTES_MAX: usize = 256;
/// Most bytes of all attributes of an object: with the last piece of a transfer they travel together.
const ATTRS_BYTES_MAX: usize = 1 << 20;
/// Most ops of one request; a batch of 4,096 rows has at most as many, and some of its own.
const OPS_MAX: usize = 8_192;
/// Most bytes of keys, values and names that the effects of one request may carry: they are one transaction of the store,
/// which takes 8 MiB of them with the log entry and what is trimmed.
const EFFECTS_INLINE_BYTES_MAX: usize = 6 << 20;
/// Most bytes of results of one request: what one frame carries, with room to spare.
const RESULT_BYTES_MAX: usize = 16 << 20;
/// Largest row value in bytes: one row must fit one message between OSDs.
const ROW_VALUE_BYTES_MAX: usize = 1 << 20;
/// Largest attribute value in bytes: all attributes of an object travel in one message.
const ATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Most bytes that a scan returns.
const SCAN_BYTES_MAX: usize = 4 << 20;
/// Most rows that a scan returns: each costs memory beside its bytes.
const SCAN_ROWS_MAX: usize = 16_384;
/// Most rows that one op asks for by their keys.
const GET_ROWS_MAX: usize = 8_192;
/// Rows fetched at a time when they are asked for by their keys: so much is held beyond what an answer may have.
const GET_ROWS_CHUNK: usize = 8;

/// What executing a vector gives.
#[derive(Debug)]
pub(crate) struct Executed {
    /// Results of the ops.
    pub results: Vec<OpResult>,
    /// What is to be done; empty when nothing changes.
    pub effects: Vec<Effect>,
    /// Version of the object before.
    pub prior: LogVersion,
    /// Whether the object exists afterwards.
    pub exists: bool,
    pub objects_delta: i64,
    pub bytes_delta: i64,
}

/// Why a vector was not executed.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// An op failed.
    Failed { index: u32, error: OpError },
    /// The local copy cannot be read.
    Unreadable(ReadError),
}

enum Fault {
    Op(OpError),
    Read(ReadError),
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Fault {
        Fault::Read(error)
    }
}

impl From<OpError> for Fault {
    fn from(error: OpError) -> Fault {
        Fault::Op(error)
    }
}

/// The version attribute's value.
pub(crate) fn version_value(version: LogVersion) -> Bytes {
    let mut out = Vec::with_capacity(16);
    out.extend_from_slice(&version.epoch.0.to_le_bytes());
    out.extend_from_slice(&version.counter.to_le_bytes());
    out.into()
}

/// The version that a version attribute holds; zero for none, or one that is not whole.
pub(crate) fn parse_version(value: Option<&[u8]>) -> LogVersion {
    let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or(0);
    match value {
        Some(bytes) if bytes.len() == 16 => {
            LogVersion { epoch: holdfast_types::Epoch(word(&bytes[..8])), counter: word(&bytes[8..]) }
        }
        _ => LogVersion::ZERO,
    }
}

/// The version of the local copy of an object; zero when there is none.
pub(crate) fn stored_version(store: &dyn LocalObjects, key: &ObjectKey) -> Result<LogVersion, ReadError> {
    Ok(parse_version(store.attr(key, VERSION_ATTR)?.as_deref()))
}

fn invalid(reason: &str) -> Fault {
    Fault::Op(OpError::Invalid { reason: reason.to_owned() })
}

/// A change of bytes that later ops of the vector must see.
enum Patch {
    Write(u64, Bytes),
    Zero(u64, u64),
    Truncate(u64),
}

/// The object as the vector has made it so far.
struct View<'a> {
    store: &'a dyn LocalObjects,
    key: &'a ObjectKey,
    exists: bool,
    size: u64,
    version: LogVersion,
    /// Whether what the store holds still shows through (not after a removal).
    base: bool,
    patches: Vec<Patch>,
    attrs: BTreeMap<Vec<u8>, Option<Bytes>>,
    /// Bytes of all attributes as they are now; counted when the first one is set.
    attrs_bytes: Option<usize>,
    rows: BTreeMap<Vec<u8>, Option<Bytes>>,
    dropped_ranges: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    effects: Vec<Effect>,
}

/// Executes a vector.
///
/// Its effects, bytes of the object included, may have `effects_bytes_max` bytes. What a store could not take is refused
/// here, on the primary, before anything is logged.
pub(crate) fn execute(
    store: &dyn LocalObjects,
    key: &ObjectKey,
    ops: &[ObjectOp],
    effects_bytes_max: usize,
) -> Result<Executed, Stopped> {
    let too_much = |what: &str, max: usize| {
        let reason = format!("a request may have at most {max} {what}");
        Stopped::Failed { index: 0, error: OpError::Invalid { reason } }
    };
    if ops.len() > OPS_MAX {
        return Err(too_much("ops", OPS_MAX));
    }
    let size = store.stat(key).map_err(Stopped::Unreadable)?;
    let prior = match size {
        Some(_) => stored_version(store, key).map_err(Stopped::Unreadable)?,
        None => LogVersion::ZERO,
    };
    let mut view = View {
        store,
        key,
        exists: size.is_some(),
        size: size.unwrap_or(0),
        version: prior,
        base: size.is_some(),
        patches: Vec::new(),
        attrs: BTreeMap::new(),
        attrs_bytes: None,
        rows: BTreeMap::new(),
        dropped_ranges: Vec::new(),
        effects: Vec::new(),
    };
    let mut results = Vec::with_capacity(ops.len());
    let mut results_bytes = 0;
    for (index, op) in ops.iter().enumerate() {
        match view.run(op) {
            Ok(result) => {
                results_bytes += result_bytes(&result);
                if results_bytes > RESULT_BYTES_MAX {
                    return Err(too_much("bytes of results", RESULT_BYTES_MAX));
                }
                results.push(result);
            }
            Err(Fault::Op(error)) => {
                return Err(Stopped::Failed { index: u32::try_from(index).unwrap_or(u32::MAX), error });
            }
            Err(Fault::Read(error)) => return Err(Stopped::Unreadable(error)),
        }
    }
    // Also when it happens to change nothing: its answer is remembered all the same.
    if ops.iter().any(ObjectOp::is_write) && results_bytes > WRITE_RESULT_BYTES_MAX {
        let reason = format!("a request that writes may answer at most {WRITE_RESULT_BYTES_MAX} bytes");
        return Err(Stopped::Failed { index: 0, error: OpError::Invalid { reason } });
    }
    let (inline, payload) = effects_bytes(&view.effects);
    if inline > EFFECTS_INLINE_BYTES_MAX {
        return Err(too_much("bytes of rows and attributes to write", EFFECTS_INLINE_BYTES_MAX));
    }
    if inline + payload > effects_bytes_max {
        return Err(too_much("bytes to write", effects_bytes_max));
    }
    let bytes = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    Ok(Executed {
        results,
        effects: view.effects,
        prior,
        exists: view.exists,
        objects_delta: i64::from(view.exists) - i64::from(size.is_some()),
        bytes_delta: bytes(view.size) - bytes(size.unwrap_or(0)),
    })
}

/// Bytes of what effects carry: in keys, values and names, each with what its encoding costs; and of the object.
pub(crate) fn effects_bytes(effects: &[Effect]) -> (usize, usize) {
    const ENCODING: usize = 32;
    let mut inline = 0;
    let mut payload = 0;
    for effect in effects {
        inline += ENCODING;
        match effect {
            Effect::Write { data, .. } => payload += data.len(),
            Effect::SetAttr { name, value } => inline += name.len() + value.len(),
            Effect::RemoveAttr { name } => inline += name.len(),
            Effect::PutRows { rows } => {
                inline += rows.iter().map(|row| row.key.len() + row.value.len() + ENCODING).sum::<usize>();
            }
            Effect::DeleteRows { keys } => inline += keys.iter().map(|key| key.len() + ENCODING).sum::<usize>(),
            Effect::DeleteRowRange { start, end } => inline += start.len() + end.as_ref().map_or(0, Vec::len),
            Effect::Touch | Effect::Zero { .. } | Effect::Truncate { .. } | Effect::Remove => {}
        }
    }
    (inline, payload)
}

pub(crate) fn result_bytes(result: &OpResult) -> usize {
    match result {
        OpResult::Done | OpResult::Stat(_) | OpResult::Counter(_) => 0,
        OpResult::Data(data) => data.len(),
        OpResult::Attr(value) => value.as_ref().map_or(0, Blob::len),
        OpResult::RowValues(values) => values.iter().flatten().map(Blob::len).sum(),
        OpResult::RowPage { rows, .. } => rows.iter().map(|row| row.key.len() + row.value.len()).sum(),
    }
}

fn in_range(key: &[u8], start: &[u8], end: Option<&[u8]>) -> bool {
    key >= start && end.is_none_or(|end| key < end)
}

impl View<'_> {
    fn run(&mut self, op: &ObjectOp) -> Result<OpResult, Fault> {
        match op {
            ObjectOp::AssertExists => self.must_exist().map(|()| OpResult::Done),
            ObjectOp::AssertAbsent if self.exists => Err(OpError::Exists.into()),
            ObjectOp::AssertAbsent => Ok(OpResult::Done),
            ObjectOp::AssertVersion(version) => holds(*version == self.version || on(Mutant::ConditionIgnored), None),
            ObjectOp::AssertAttr { name, expected } => {
                let current = self.attr(name)?;
                holds(current.as_deref() == expected.as_ref().map(AsRef::as_ref), current)
            }
            ObjectOp::AssertRow { key, condition } => {
                let current = self.row(key)?;
                let met = match condition {
                    RowCondition::Absent => current.is_none(),
                    RowCondition::Present => current.is_some(),
                    RowCondition::Equals(value) => current.as_deref() == Some(value.as_ref()),
                };
                holds(met, current)
            }
            ObjectOp::AssertRowRangeEmpty { start, end } => {
                let page = self.scan(start, end.as_deref(), 1, SCAN_BYTES_MAX)?;
                holds(page.0.is_empty(), None)
            }
            ObjectOp::CompareExtent { offset, data } => {
                let mut there = BytesMut::from(self.read(*offset, data.len() as u64)?.as_ref());
                there.resize(data.len(), 0);
                holds(there[..] == data.0[..], None)
            }
            ObjectOp::Stat => {
                self.must_exist()?;
                Ok(OpResult::Stat(ObjectStat { size: self.size, version: self.version }))
            }
            ObjectOp::Read { offset, length } => {
                self.must_exist()?;
                Ok(OpResult::Data(Blob(self.read(*offset, *length)?)))
            }
            ObjectOp::GetAttr { name } => {
                self.must_exist()?;
                Ok(OpResult::Attr(self.attr(name)?.map(Blob)))
            }
            ObjectOp::GetRows { keys } => {
                self.must_exist()?;
                self.get_rows(keys)
            }
            ObjectOp::ScanRows { start, end, limit_rows, limit_bytes } => {
                self.must_exist()?;
                let bytes = (*limit_bytes as usize).clamp(1, SCAN_BYTES_MAX);
                let limit_rows = (*limit_rows as usize).clamp(1, SCAN_ROWS_MAX);
                let (rows, more) = self.scan(start, end.as_deref(), limit_rows, bytes)?;
                Ok(OpResult::RowPage { rows, more })
            }
            _ => self.change(op),
        }
    }

    fn must_exist(&self) -> Result<(), Fault> {
        if self.exists { Ok(()) } else { Err(OpError::NotFound.into()) }
    }

    fn change(&mut self, op: &ObjectOp) -> Result<OpResult, Fault> {
        match op {
            ObjectOp::Create { exclusive: true } if self.exists => return Err(OpError::Exists.into()),
            ObjectOp::Create { .. } => self.touch(),
            ObjectOp::Write { offset, data } => self.write(*offset, data)?,
            ObjectOp::Append { data } => self.write(self.size, data)?,
            ObjectOp::WriteFull { data } => {
                if self.size > 0 && !on(Mutant::TailKept) {
                    self.truncate(0)?;
                }
                self.write(0, data)?;
            }
            ObjectOp::Zero { offset, length } => {
                self.must_exist()?;
                let length = (*length).min(self.size.saturating_sub(*offset));
                if length > 0 {
                    self.patches.push(Patch::Zero(*offset, length));
                    self.effects.push(Effect::Zero { offset: *offset, length });
                }
            }
            ObjectOp::Truncate { size } => self.truncate(*size)?,
            ObjectOp::Remove => {
                self.must_exist()?;
                self.remove();
            }
            ObjectOp::SetAttr { name, value } => {
                check_attr_name(name)?;
                if value.len() > ATTR_VALUE_BYTES_MAX {
                    return Err(invalid("the attribute is too large"));
                }
                let bytes = self.attrs_bytes_without(name)? + name.len() + value.len();
                if bytes > ATTRS_BYTES_MAX {
                    return Err(invalid("the object's attributes are too large together"));
                }
                self.attrs_bytes = Some(bytes);
                self.exists = true;
                self.attrs.insert(name.clone(), Some(value.0.clone()));
                self.effects.push(Effect::SetAttr { name: name.clone(), value: value.clone() });
            }
            ObjectOp::RemoveAttr { name } => {
                check_attr_name(name)?;
                self.must_exist()?;
                self.attrs_bytes = Some(self.attrs_bytes_without(name)?);
                self.attrs.insert(name.clone(), None);
                self.effects.push(Effect::RemoveAttr { name: name.clone() });
            }
            ObjectOp::PutRows { rows } => self.put_rows(rows.clone())?,
            ObjectOp::DeleteRows { keys } if keys.iter().any(|key| key.len() > ROW_KEY_BYTES_MAX) => {
                return Err(invalid("a row's key is too long"));
            }
            ObjectOp::DeleteRows { keys } => {
                if self.exists && !keys.is_empty() {
                    for key in keys {
                        self.rows.insert(key.to_vec(), None);
                    }
                    self.effects.push(Effect::DeleteRows { keys: keys.clone() });
                }
            }
            ObjectOp::DeleteRowRange { start, end } => {
                if self.exists {
                    self.rows.retain(|key, _| !in_range(key, start, end.as_deref()));
                    self.dropped_ranges.push((start.clone(), end.clone()));
                    self.effects.push(Effect::DeleteRowRange { start: start.clone(), end: end.clone() });
                }
            }
            ObjectOp::AddRow { key, delta } => {
                let sum = self.counter(key)?.checked_add(*delta).ok_or_else(|| invalid("the counter overflows"))?;
                let set = self.set_counter(key, sum);
                return if on(Mutant::CounterAnswersBefore) { Ok(OpResult::Counter(sum - delta)) } else { set };
            }
            ObjectOp::MaxRow { key, value } => {
                let raised = self.counter(key)?.max(*value);
                return self.set_counter(key, raised);
            }
            // The other ops do not write; `run` has dealt with them.
            _ => return Err(invalid("not a write")),
        }
        Ok(OpResult::Done)
    }

    fn touch(&mut self) {
        if !self.exists {
            self.exists = true;
            self.effects.push(Effect::Touch);
        }
    }

    fn write(&mut self, offset: u64, data: &Blob) -> Result<(), Fault> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= OBJECT_BYTES_MAX);
        let end = end.ok_or_else(|| invalid("the object would be too large"))?;
        if data.is_empty() {
            self.touch();
            return Ok(());
        }
        self.exists = true;
        self.size = self.size.max(end);
        self.patches.push(Patch::Write(offset, data.0.clone()));
        self.effects.push(Effect::Write { offset, data: data.clone() });
        Ok(())
    }

    fn truncate(&mut self, size: u64) -> Result<(), Fault> {
        if size > OBJECT_BYTES_MAX {
            return Err(invalid("the object would be too large"));
        }
        self.exists = true;
        self.size = size;
        self.patches.push(Patch::Truncate(size));
        self.effects.push(Effect::Truncate { size });
        Ok(())
    }

    fn remove(&mut self) {
        self.exists = false;
        self.base = false;
        self.size = 0;
        self.version = LogVersion::ZERO;
        self.patches.clear();
        self.attrs.clear();
        self.attrs_bytes = Some(0);
        self.rows.clear();
        self.dropped_ranges.clear();
        self.effects.clear();
        self.effects.push(Effect::Remove);
    }

    fn read(&self, offset: u64, length: u64) -> Result<Bytes, Fault> {
        let length = length.min(self.size.saturating_sub(offset));
        if length == 0 {
            return Ok(Bytes::new());
        }
        let base = if self.base { self.store.read(self.key, offset, length)? } else { Bytes::new() };
        if self.patches.is_empty() && base.len() as u64 == length {
            return Ok(base);
        }
        let end = offset + length;
        let mut out = BytesMut::from(base.as_ref());
        out.resize(usize::try_from(length).map_err(|_| invalid("the range is too large"))?, 0);
        // Offsets below are within `offset..end`, whose length fits usize.
        let at = |position: u64| usize::try_from(position - offset).unwrap_or(usize::MAX);
        for patch in &self.patches {
            let (from, to) = match patch {
                Patch::Write(start, data) => (*start, start + data.len() as u64),
                Patch::Zero(start, length) => (*start, start + length),
                Patch::Truncate(size) => (*size, u64::MAX),
            };
            let (low, high) = (from.clamp(offset, end), to.clamp(offset, end));
            if low >= high {
                continue;
            }
            let target = &mut out[at(low)..at(high)];
            match patch {
                Patch::Write(start, data) => {
                    let skip = usize::try_from(low - start).unwrap_or(usize::MAX);
                    target.copy_from_slice(&data[skip..skip + target.len()]);
                }
                Patch::Zero(..) | Patch::Truncate(_) => target.fill(0),
            }
        }
        Ok(out.freeze())
    }

    fn attr(&self, name: &[u8]) -> Result<Option<Bytes>, Fault> {
        check_attr_name(name)?;
        match self.attrs.get(name) {
            Some(value) => Ok(value.clone()),
            None if self.base => Ok(self.store.attr(self.key, name)?),
            None => Ok(None),
        }
    }

    /// Bytes of all attributes but this one.
    fn attrs_bytes_without(&self, name: &[u8]) -> Result<usize, Fault> {
        let all = match self.attrs_bytes {
            Some(all) => all,
            None if self.base => self.store.attrs(self.key)?.iter().map(|row| row.key.len() + row.value.len()).sum(),
            None => 0,
        };
        let this = self.attr(name)?.map_or(0, |value| name.len() + value.len());
        Ok(all.saturating_sub(this))
    }

    fn hidden(&self, key: &[u8]) -> bool {
        !self.base || self.dropped_ranges.iter().any(|(start, end)| in_range(key, start, end.as_deref()))
    }

    fn row(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.rows.get(key) {
            Some(value) => Ok(value.clone()),
            None if self.hidden(key) => Ok(None),
            None => Ok(self.store.rows_get(self.key, &[key])?.into_iter().next().flatten()),
        }
    }

    /// The values of these rows. What an answer could not carry is refused while it is fetched.
    fn get_rows(&self, keys: &[minicbor::bytes::ByteVec]) -> Result<OpResult, Fault> {
        if keys.len() > GET_ROWS_MAX {
            return Err(invalid("too many rows are asked for at once"));
        }
        let as_stored = self.base && self.rows.is_empty() && self.dropped_ranges.is_empty();
        let (mut values, mut bytes) = (Vec::with_capacity(keys.len()), 0);
        for chunk in keys.chunks(GET_ROWS_CHUNK) {
            let fetched = if as_stored {
                let keys: Vec<&[u8]> = chunk.iter().map(|key| key.as_slice()).collect();
                self.store.rows_get(self.key, &keys)?
            } else {
                chunk.iter().map(|key| self.row(key)).collect::<Result<Vec<_>, Fault>>()?
            };
            bytes += fetched.iter().flatten().map(Bytes::len).sum::<usize>();
            if bytes > RESULT_BYTES_MAX {
                return Err(invalid("the rows asked for are too large together"));
            }
            values.extend(fetched.into_iter().map(|value| value.map(Blob)));
        }
        Ok(OpResult::RowValues(values))
    }

    /// Rows of a range, and whether a limit cut it short.
    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<(Vec<Row>, bool), Fault> {
        if end.is_some_and(|end| end <= start) {
            return Ok((Vec::new(), false));
        }
        if self.base && self.rows.is_empty() && self.dropped_ranges.is_empty() {
            let page = self.store.rows_scan(self.key, start, end, limit_rows, limit_bytes)?;
            return Ok((page.rows, page.more));
        }
        let mut own = self.rows.iter().filter(|(key, _)| in_range(key, start, end)).peekable();
        let mut below = BasePages::new(self, start, end);
        let (mut rows, mut bytes) = (Vec::new(), 0usize);
        loop {
            let base = below.peek()?.cloned();
            let row = match (own.peek(), base) {
                (None, None) => return Ok((rows, false)),
                (Some((key, _)), Some(base)) if base.key < **key => {
                    below.pop();
                    Some(base)
                }
                (None, Some(base)) => {
                    below.pop();
                    Some(base)
                }
                (Some((key, value)), base) => {
                    if base.is_some_and(|base| base.key == **key) {
                        below.pop();
                    }
                    let row = value.as_ref().map(|value| Row { key: (*key).clone(), value: Blob(value.clone()) });
                    own.next();
                    row
                }
            };
            let Some(row) = row else { continue };
            if rows.len() >= limit_rows || bytes >= limit_bytes {
                return Ok((rows, true));
            }
            bytes += row.key.len() + row.value.len();
            rows.push(row);
        }
    }

    fn put_rows(&mut self, rows: Vec<Row>) -> Result<(), Fault> {
        if rows.iter().any(|row| row.key.len() > ROW_KEY_BYTES_MAX || row.value.len() > ROW_VALUE_BYTES_MAX) {
            return Err(invalid("a row is too large"));
        }
        if rows.is_empty() {
            self.touch();
            return Ok(());
        }
        self.exists = true;
        for row in &rows {
            self.rows.insert(row.key.clone(), Some(row.value.0.clone()));
        }
        self.effects.push(Effect::PutRows { rows });
        Ok(())
    }

    fn counter(&self, key: &[u8]) -> Result<i64, Fault> {
        match self.row(key)? {
            None => Ok(0),
            Some(value) => {
                let bytes: [u8; 8] = value.as_ref().try_into().map_err(|_| invalid("the row is not a counter"))?;
                Ok(i64::from_le_bytes(bytes))
            }
        }
    }

    fn set_counter(&mut self, key: &[u8], value: i64) -> Result<OpResult, Fault> {
        let blob = Blob(Bytes::copy_from_slice(&value.to_le_bytes()));
        self.put_rows(vec![Row { key: key.to_vec(), value: blob }])?;
        Ok(OpResult::Counter(value))
    }
}

/// Pages through the store's rows of a range, without those that the vector has hidden.
struct BasePages<'a> {
    view: &'a View<'a>,
    next: Option<Vec<u8>>,
    end: Option<&'a [u8]>,
    page: std::collections::VecDeque<Row>,
}

/// Rows fetched at a time when a scan must be merged with the vector's own changes.
const BASE_PAGE_ROWS: usize = 256;

impl<'a> BasePages<'a> {
    fn new(view: &'a View<'a>, start: &[u8], end: Option<&'a [u8]>) -> BasePages<'a> {
        let next = view.base.then(|| start.to_vec());
        BasePages { view, next, end, page: std::collections::VecDeque::new() }
    }

    fn peek(&mut self) -> Result<Option<&Row>, Fault> {
        while self.page.is_empty() {
            let Some(start) = self.next.take() else { return Ok(None) };
            let page = self.view.store.rows_scan(self.view.key, &start, self.end, BASE_PAGE_ROWS, SCAN_BYTES_MAX)?;
            if page.more {
                self.next = page.rows.last().map(|row| {
                    let mut after = row.key.clone();
                    after.push(0);
                    after
                });
            }
            self.page = page.rows.into_iter().filter(|row| !self.view.hidden(&row.key)).collect();
        }
        Ok(self.page.front())
    }

    fn pop(&mut self) {
        self.page.pop_front();
    }
}

fn holds(met: bool, current: Option<Bytes>) -> Result<OpResult, Fault> {
    if met { Ok(OpResult::Done) } else { Err(OpError::AssertFailed { current: current.map(Blob) }.into()) }
}

fn check_attr_name(name: &[u8]) -> Result<(), Fault> {
    if name.is_empty() || name[0] == 0 || name.len() > ATTR_NAME_BYTES_MAX {
        return Err(invalid("not a name for an attribute"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
