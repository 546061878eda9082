//! The shell's ground: the shared state of a process, and the single steps on objects that the protocols are made of.
//!
//! Nothing here waits for anything but one op; nothing decides what comes next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_types::ObjectName;
use holdfast_wire::{ObjectOp, OpError, OpResult, Row};
use parking_lot::Mutex;

use crate::batch::kv_error;
use crate::cache::{KnownGroup, RouteCache};
use crate::error::{KvError, ObjectsError};
use crate::header::{GroupHeader, GroupId, HEADER_ATTR, Record, RootHeader, RootRow, TableId, VERSION_ATTR};
use crate::key::{WEIGHT_ROW, root_row_key, root_rows_end, root_rows_start, start_of_root_row};
use crate::objects::{Objects, Operated};
use crate::weight::Config;

/// How often an operation is begun anew before it gives up with [`KvError::Contended`]. Waiting for a split or a drop
/// takes one round each 50 ms, so this is well beyond the patience after which we finish it ourselves.
const ROUNDS_MAX: u32 = 400;
/// The first and the longest pause between two looks at a group that somebody else is changing.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// How often a step with an unknown outcome is tried before giving up. The client below has long been patient by then.
pub(crate) const UNKNOWN_MAX: u32 = 3;

/// What all handles of a process share.
#[derive(Debug)]
pub(crate) struct Shared<O> {
    pub objects: O,
    pub config: Config,
    pub cache: Mutex<RouteCache>,
    /// Groups that this process is counting or splitting.
    busy: Mutex<BTreeSet<GroupId>>,
}

/// How a conditional change of an object went.
#[derive(Debug)]
pub(crate) enum Change {
    /// It happened.
    Done,
    /// The object has another version, or is missing: somebody was faster.
    Lost,
    /// A later op failed; nothing happened.
    Failed { index: u32, error: OpError },
    /// It may have happened, may yet happen, or never.
    Unknown,
}

/// The patience of one operation.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    rounds: u32,
    /// How long it has waited for others.
    pub waited: Duration,
}

impl Patience {
    /// Begins a round.
    pub fn round(&mut self) -> Result<(), KvError> {
        self.rounds += 1;
        if self.rounds > ROUNDS_MAX { Err(KvError::Contended { rounds: ROUNDS_MAX }) } else { Ok(()) }
    }

    /// Waits a little, longer each time.
    pub async fn pause<O: Objects>(&mut self, objects: &O) {
        let (first, longest) = PAUSE;
        let pause = self.waited.clamp(first, longest);
        objects.pause(pause).await;
        self.waited += pause;
    }
}

/// The right to count or split a group in this process; given back when dropped, also by cancellation. It only
/// avoids double work: the protocols are safe without it.
#[derive(Debug)]
pub(crate) struct Claim<O> {
    shared: Arc<Shared<O>>,
    group: GroupId,
}

impl<O> Drop for Claim<O> {
    fn drop(&mut self) {
        self.shared.busy.lock().remove(&self.group);
    }
}

impl<O: Objects> Shared<O> {
    pub fn new(objects: O, config: Config) -> Shared<O> {
        let cache = Mutex::new(RouteCache::new(config.cached_groups));
        Shared { objects, config, cache, busy: Mutex::new(BTreeSet::new()) }
    }

    /// Claims a group, unless it is claimed or `limit` groups are.
    pub fn claim(self: &Arc<Self>, group: GroupId, limit: usize) -> Option<Claim<O>> {
        let mut busy = self.busy.lock();
        (busy.len() < limit && busy.insert(group)).then(|| Claim { shared: Arc::clone(self), group })
    }

    pub fn is_busy(&self, group: GroupId) -> bool {
        self.busy.lock().contains(&group)
    }

    /// Executes a vector that only reads. `None`: an assert failed, or the object is missing.
    pub async fn read(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Option<Operated>, KvError> {
        debug_assert!(ops.iter().all(|op| !op.is_write()));
        match self.objects.operate(object, ops).await {
            Ok(operated) => Ok(Some(operated)),
            Err(ObjectsError::Op { error: OpError::AssertFailed { .. } | OpError::NotFound, .. }) => Ok(None),
            Err(error) => Err(kv_error(object, error)),
        }
    }

    /// Executes a vector that begins with an assert of the object's version, or its absence.
    pub async fn change(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Change, KvError> {
        changed(object, self.objects.operate(object, ops).await)
    }

    /// [`Shared::change`], for what a full cluster must take, lest nothing can be deleted any more: the steps of a drop,
    /// and those of a split from the second on, while rows stand still. It must delete something.
    pub async fn change_freeing(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Change, KvError> {
        debug_assert!(ops.iter().any(ObjectOp::frees_space));
        changed(object, self.objects.operate_freeing(object, ops).await)
    }

    /// Reads a group's record and estimated weight. `None`: it does not exist.
    pub async fn read_group(&self, table: &TableId, id: GroupId) -> Result<Option<KnownGroup>, KvError> {
        let object = table.group_object(id);
        let [header, version] = read_record();
        let weight = ObjectOp::GetRows { keys: vec![WEIGHT_ROW.to_vec().into()] };
        let Some(operated) = self.read(&object, vec![header, version, weight]).await? else { return Ok(None) };
        let Some(header) = record::<GroupHeader>(&object, &operated)? else { return Ok(None) };
        let estimate = counter_value(&object, &operated, 2)?;
        Ok(Some(KnownGroup { id, header: header.into(), estimate, count_from: 0 }))
    }

    /// Reads the table's root record. `None`: there is no such table.
    pub async fn read_root(&self, table: &TableId) -> Result<Option<RootHeader>, KvError> {
        let object = table.root_object();
        match self.read(&object, read_record().into()).await? {
            Some(operated) => record(&object, &operated),
            None => Ok(None),
        }
    }

    /// Reads the root record and the last group that starts at or before `key`. `None`: there is no such table.
    pub async fn find_group(&self, table: &TableId, key: &[u8]) -> Result<Option<(RootHeader, GroupId)>, KvError> {
        let object = table.root_object();
        let [header, version] = read_record();
        let scan = ObjectOp::ScanRows {
            start: root_row_key(key),
            end: Some(root_rows_end()),
            limit_rows: 1,
            limit_bytes: self.config.page_bytes,
        };
        let Some(operated) = self.read(&object, vec![header, version, scan]).await? else { return Ok(None) };
        let Some(root) = record::<RootHeader>(&object, &operated)? else { return Ok(None) };
        let (rows, _) = page_of(&object, &operated, 2)?;
        let corrupt = |reason| KvError::Corrupt { object: object.clone(), reason };
        let row = rows.first().ok_or_else(|| corrupt("no group starts at or before a key"))?;
        Ok(Some((root, root_row(&object, &row.value.0)?.group)))
    }

    /// Lists the table's groups, last first, as long as the root has this version. `None`: it has another.
    pub async fn list_groups(&self, table: &TableId, version: u64) -> Result<Option<Vec<GroupId>>, KvError> {
        let object = table.root_object();
        let mut groups = Vec::new();
        let mut start = root_rows_start();
        loop {
            let scan = ObjectOp::ScanRows {
                start,
                end: Some(root_rows_end()),
                limit_rows: self.config.page_rows,
                limit_bytes: self.config.page_bytes,
            };
            let ops = vec![crate::header::assert_version(version), scan];
            let Some(operated) = self.read(&object, ops).await? else { return Ok(None) };
            let (rows, more) = page_of(&object, &operated, 1)?;
            for row in rows {
                if start_of_root_row(&row.key).is_none() {
                    return Err(KvError::Corrupt { object, reason: "a row that maps no group" });
                }
                groups.push(root_row(&object, &row.value.0)?.group);
            }
            match rows.last() {
                Some(last) if more => start = crate::key::successor(&last.key),
                _ => return Ok(Some(groups)),
            }
        }
    }
}

/// The ops that read a record.
fn read_record() -> [ObjectOp; 2] {
    [ObjectOp::GetAttr { name: HEADER_ATTR.to_vec() }, ObjectOp::GetAttr { name: VERSION_ATTR.to_vec() }]
}

/// The record that the first two results hold. `None`: there is none.
fn record<R: Record>(object: &ObjectName, operated: &Operated) -> Result<Option<R>, KvError> {
    match operated.results.as_slice() {
        [OpResult::Attr(Some(header)), OpResult::Attr(Some(version)), ..] => {
            R::parse(object, header.as_ref(), version.as_ref()).map(Some)
        }
        [OpResult::Attr(None), OpResult::Attr(None), ..] => Ok(None),
        _ => Err(KvError::Corrupt {
            object: object.clone(),
            reason: "half of a record, or an answer to another question",
        }),
    }
}

/// What a vector came to that begins with an assert.
fn changed(object: &ObjectName, outcome: Result<Operated, ObjectsError>) -> Result<Change, KvError> {
    match outcome {
        Ok(_) => Ok(Change::Done),
        Err(ObjectsError::OutcomeUnknown) => Ok(Change::Unknown),
        Err(ObjectsError::Op { error: OpError::NotFound, .. }) => Ok(Change::Lost),
        Err(ObjectsError::Op { index: 0, error: OpError::AssertFailed { .. } | OpError::Exists }) => Ok(Change::Lost),
        Err(ObjectsError::Op { index, error: error @ OpError::AssertFailed { .. } }) => {
            Ok(Change::Failed { index, error })
        }
        Err(error) => Err(kv_error(object, error)),
    }
}

/// The value of a counter row that result `index` holds.
pub(crate) fn counter_value(object: &ObjectName, operated: &Operated, index: usize) -> Result<i64, KvError> {
    let corrupt = || KvError::Corrupt { object: object.clone(), reason: "a counter row does not hold eight bytes" };
    match operated.results.get(index) {
        Some(OpResult::RowValues(values)) => match values.as_slice() {
            [None] => Ok(0),
            [Some(value)] => value.as_ref().try_into().map(i64::from_le_bytes).map_err(|_| corrupt()),
            _ => Err(corrupt()),
        },
        _ => Err(corrupt()),
    }
}

/// The page that result `index` holds.
pub(crate) fn page_of<'o>(
    object: &ObjectName,
    operated: &'o Operated,
    index: usize,
) -> Result<(&'o [Row], bool), KvError> {
    match operated.results.get(index) {
        Some(OpResult::RowPage { rows, more }) => Ok((rows, *more)),
        _ => Err(KvError::Corrupt { object: object.clone(), reason: "no page was answered to a scan" }),
    }
}

/// Decodes a row of a root object.
pub(crate) fn root_row(object: &ObjectName, value: &[u8]) -> Result<RootRow, KvError> {
    minicbor::decode(value)
        .map_err(|_| KvError::Corrupt { object: object.clone(), reason: "a group's row does not decode" })
}
