//! The shape of a table at rest, read through [`Objects`] alone: its groups tile the key space, hold only their own rows, and
//! none is in the middle of anything.

use std::collections::BTreeSet;

use holdfast_types::ObjectName;
use holdfast_wire::{ObjectOp, OpResult, Row};

use crate::header::{GroupHeader, GroupState, HEADER_ATTR, Record, RootHeader, RootState, VERSION_ATTR};
use crate::key::{GROUP_COUNT_ROW, SPACE_RESERVED, root_rows_end, start_of_root_row, successor};
use crate::shell::root_row;
use crate::{Objects, TableId};

/// Everything of one object.
struct Whole {
    header: Vec<u8>,
    version: Vec<u8>,
    rows: Vec<Row>,
}

async fn read<O: Objects>(objects: &O, name: &ObjectName) -> Result<Whole, String> {
    let mut whole = Whole { header: Vec::new(), version: Vec::new(), rows: Vec::new() };
    let mut start = Vec::new();
    loop {
        let ops = vec![
            ObjectOp::AssertExists,
            ObjectOp::GetAttr { name: HEADER_ATTR.to_vec() },
            ObjectOp::GetAttr { name: VERSION_ATTR.to_vec() },
            ObjectOp::ScanRows { start, end: None, limit_rows: 1_000, limit_bytes: 1 << 20 },
        ];
        let operated = objects.operate(name, ops).await.map_err(|error| format!("{name} cannot be read: {error:?}"))?;
        let (page, more) = match operated.results.as_slice() {
            [_, OpResult::Attr(Some(header)), OpResult::Attr(Some(version)), OpResult::RowPage { rows, more }] => {
                (whole.header, whole.version) = (header.as_ref().to_vec(), version.as_ref().to_vec());
                (rows, *more)
            }
            other => return Err(format!("{name} is no group: {other:?}")),
        };
        whole.rows.extend(page.iter().cloned());
        match page.last() {
            Some(last) if more => start = successor(&last.key),
            _ => return Ok(whole),
        }
    }
}

/// Checks a table at rest; gives its objects, of which there may be no others.
///
/// # Errors
/// What is wrong with it.
pub async fn check<O: Objects>(objects: &O, id: &TableId) -> Result<BTreeSet<ObjectName>, String> {
    let root_name = id.root_object();
    let root = read(objects, &root_name).await?;
    let wrong = |error| format!("{root_name}: {error:?}");
    let header = RootHeader::parse(&root_name, &root.header, &root.version).map_err(wrong)?;
    if header.state == RootState::Dropping {
        return Err("the table is in the middle of a drop".to_owned());
    }
    let mut found = BTreeSet::from([root_name.clone()]);
    let mut end: Option<Vec<u8>> = None;
    for Row { key, value } in root.rows.iter().take_while(|row| row.key < root_rows_end()) {
        let name = id.group_object(root_row(&root_name, value.as_ref()).map_err(wrong)?.group);
        let group = read(objects, &name).await?;
        let record = GroupHeader::parse(&name, &group.header, &group.version).map_err(wrong)?;
        if (Some(&record.start), &record.end) != (start_of_root_row(key).as_ref(), &end) {
            return Err(format!("groups do not tile: {name} has {record:?}, and the one after begins at {end:?}"));
        }
        let rests = match header.state {
            RootState::Dropped => matches!(record.state, GroupState::Dropping { .. }),
            _ => record.state == GroupState::Open,
        };
        if !rests {
            return Err(format!("{name} is {:?} at rest", record.state));
        }
        let own = group.rows.iter().filter(|row| row.key.first() != Some(&SPACE_RESERVED));
        for row in own {
            if !record.covers(row.key.get(1..).unwrap_or_default()) {
                return Err(format!("row {} is outside of its group {name}", row.key.escape_ascii()));
            }
        }
        end = Some(record.start.clone());
        if !found.insert(name.clone()) {
            return Err(format!("{name} is there twice"));
        }
    }
    if end != Some(Vec::new()) {
        return Err("the first group does not start at the beginning".to_owned());
    }
    let counted = root.rows.iter().find(|row| row.key == GROUP_COUNT_ROW).map(|row| row.value.as_ref().to_vec());
    let groups = i64::try_from(found.len() - 1).unwrap_or(i64::MAX);
    if counted.as_deref() != Some(groups.to_le_bytes().as_slice()) {
        return Err(format!("{groups} groups, and the root counts {counted:?}"));
    }
    Ok(found)
}
