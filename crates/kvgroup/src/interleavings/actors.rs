//! Processes with random work, and the scheduler that steps, stops and replaces them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;

use super::world::{Answered, Asked, Faults, SharedWorld, SimObjects, World};
use crate::header::{GroupHeader, GroupState, HEADER_ATTR, Record, RootHeader, RootState, VERSION_ATTR};
use crate::key::{GROUP_COUNT_ROW, prefix_end, root_rows_end, start_of_root_row};
use crate::shell::root_row;
use crate::{
    Affinity, BatchError, Condition, Config, DropError, KvError, Mutation, PageLimit, Require, RowKey, Table, TableId,
    Tables,
};

const ROUTES: u32 = 14;
const ROWS: u8 = 1;
const PARTS: u8 = 2;
const COUNTERS: u8 = 3;
/// What the table must have no rows of to be dropped.
const SPACES: [u8; 3] = [ROWS, PARTS, COUNTERS];
const STEPS_MAX: u64 = 400_000;

/// Groups of about seven rows, nobody waits for anybody.
fn config() -> Config {
    Config {
        row_overhead: 100,
        weight_split: 800,
        weight_max: 3000,
        page_rows: 2,
        help_after: Duration::ZERO,
        drop_patience: Duration::from_millis(8),
        cached_groups: 6,
        split_in_background: false,
        ..Config::default()
    }
}

pub fn table_id() -> TableId {
    TableId::new("t").unwrap()
}

pub fn route(number: u32) -> Vec<u8> {
    format!("k{number:02}\0\u{1}").into_bytes()
}

fn row(space: u8, number: u32, part: &str) -> RowKey {
    let mut key = route(number);
    key.extend_from_slice(part.as_bytes());
    RowKey::new(space, key)
}

fn all_parts(number: u32) -> Mutation {
    let start = route(number);
    Mutation::DeleteRange { space: PARTS, end: prefix_end(&start).unwrap(), start }
}

type Process = Pin<Box<dyn Future<Output = ()>>>;

fn random(world: &SharedWorld, below: u32) -> u32 {
    world.lock().random.random_range(0..below)
}

async fn batch(world: &SharedWorld, table: &Table<SimObjects>, conditions: Vec<Condition>, mutations: Vec<Mutation>) {
    let route = conditions.first().map(|c| c.row.key.clone()).or_else(|| match mutations.first() {
        Some(Mutation::Put { row, .. } | Mutation::Delete { row } | Mutation::Add { row, .. }) => Some(row.key.clone()),
        Some(Mutation::DeleteRange { start, .. }) => Some(start.clone()),
        _ => None,
    });
    let asked = Asked::Batch { conditions: conditions.clone(), mutations: mutations.clone() };
    let event = world.lock().begin(asked);
    let answered = match table.batch(&route.unwrap(), &conditions, &mutations).await {
        Ok(reply) => Answered::Applied { counters: reply.counters },
        Err(BatchError::Condition { index, current }) => Answered::Condition { index, current },
        Err(BatchError::OutcomeUnknown) => Answered::Unknown,
        Err(BatchError::Kv(error)) => failed(error),
    };
    world.lock().end(event, answered);
}

fn failed(error: KvError) -> Answered {
    match error {
        KvError::TableGone | KvError::TableMissing => Answered::Gone,
        KvError::Unanswered | KvError::GroupFull => Answered::Nothing,
        error => panic!("{error:?}"),
    }
}

async fn mutate(world: &SharedWorld, table: &Table<SimObjects>, deletes: bool) {
    // A table can only be dropped when few write and most of it is deletes.
    let number = random(world, if deletes { ROUTES / 3 } else { ROUTES });
    let part = ["a", "b", "c"][random(world, 3) as usize];
    // Every value is unique, so that each read tells which write it saw.
    let value = Bytes::from(format!("v{}", world.lock().history.len()));
    let put = |row: RowKey| Mutation::Put { row, value: value.clone() };
    let (object, piece) = (row(ROWS, number, ""), row(PARTS, number, part));
    let (conditions, mutations) = match random(world, if deletes { 16 } else { 7 }) {
        0 | 1 => (vec![], vec![put(piece)]),
        2 => {
            let absent = Condition { row: object.clone(), require: Require::Absent };
            (vec![absent], vec![put(object), put(piece)])
        }
        3 | 4 => {
            let Ok(Some(current)) = table.get(&object).await else { return };
            let equals = Condition { row: object.clone(), require: Require::Equals(current) };
            (vec![equals], vec![put(object), put(piece)])
        }
        5 => (vec![], vec![Mutation::Add { row: row(COUNTERS, number, ""), delta: 1 }]),
        6 => {
            let present = Condition { row: piece.clone(), require: Require::Present };
            (vec![present], vec![all_parts(number), put(object)])
        }
        7 => (vec![], vec![all_parts(number)]),
        8 => (vec![], vec![Mutation::Delete { row: row(COUNTERS, number, "") }, Mutation::Delete { row: object }]),
        _ => (
            vec![],
            vec![
                all_parts(number),
                Mutation::Delete { row: row(COUNTERS, number, "") },
                Mutation::Delete { row: object },
            ],
        ),
    };
    batch(world, table, conditions, mutations).await;
}

async fn get(world: &SharedWorld, table: &Table<SimObjects>, number: u32) {
    let rows = vec![row(ROWS, number, ""), row(PARTS, number, "a"), row(PARTS, number, "b"), row(COUNTERS, number, "")];
    let event = world.lock().begin(Asked::Get { rows: rows.clone() });
    let answered = match table.get_many(&route(number), &rows).await {
        Ok(values) => Answered::Values(values),
        Err(error) => failed(error),
    };
    world.lock().end(event, answered);
}

/// Scans a space; each page is an event of its own.
async fn scan(world: &SharedWorld, table: &Table<SimObjects>, space: u8) {
    let mut start = Vec::new();
    loop {
        let limit = PageLimit { rows: 1 + random(world, 6), bytes: 1 << 20 };
        let event = world.lock().begin(Asked::Page { space, start: start.clone(), end: None });
        let outcome = table.scan(space, &start, None, limit).await;
        let mut world = world.lock();
        match outcome {
            Err(error) => return world.end(event, failed(error)),
            Ok(page) => {
                let (keys, next) = (page.rows.iter().map(|(key, _)| key), &page.next);
                assert!(keys.clone().is_sorted_by(|a, b| a < b), "a page is out of order");
                assert!(keys.clone().all(|key| *key >= start && next.as_ref().is_none_or(|next| key < next)));
                assert!(next.as_ref().is_none_or(|next| *next > start), "a scan does not advance");
                world.history[event].asked = Asked::Page { space, start: start.clone(), end: next.clone() };
                world.end(event, Answered::Rows(page.rows));
                match page.next {
                    Some(next) => start = next,
                    None => return,
                }
            }
        }
    }
}

async fn drop_table(world: &SharedWorld, tables: &Tables<SimObjects>) {
    let event = world.lock().begin(Asked::Drop);
    let answered = match tables.drop_if_empty(&table_id(), &SPACES).await {
        Ok(()) => Answered::Dropped,
        Err(DropError::NotEmpty { .. }) => Answered::Nothing,
        Err(DropError::Kv(KvError::Unanswered | KvError::Contended { .. })) => Answered::Unknown,
        Err(error) => panic!("{error:?}"),
    };
    world.lock().end(event, answered);
}

/// A process: a cache of its own and some work.
fn process(world: &SharedWorld, works: u32, drops: bool) -> Process {
    let world = world.clone();
    Box::pin(async move {
        let tables = Tables::new(SimObjects(world.clone()), config());
        let table = tables.table(table_id(), Affinity::S3);
        for _ in 0..works {
            match random(&world, 20) {
                0..13 => mutate(&world, &table, drops).await,
                13..17 => {
                    let number = random(&world, ROUTES);
                    get(&world, &table, number).await;
                }
                17 | 18 if drops => drop_table(&world, &tables).await,
                _ => {
                    let space = SPACES[random(&world, 3) as usize];
                    scan(&world, &table, space).await;
                }
            }
        }
    })
}

/// Steps processes in random order until all are done; stopped ones are replaced by new ones.
fn schedule(world: &SharedWorld, mut processes: Vec<Process>, replace: impl Fn() -> Process) {
    let mut asleep_until = vec![0; processes.len()];
    let mut context = Context::from_waker(std::task::Waker::noop());
    while !processes.is_empty() {
        let (index, crash) = {
            let mut world = world.lock();
            world.step += 1;
            assert!(world.step < STEPS_MAX, "the processes do not come to an end");
            let faults = world.faults;
            if world.chance(faults.late * 2) {
                world.deliver_late(false);
            }
            let index = world.random.random_range(0..processes.len());
            if world.step < asleep_until[index] {
                continue;
            }
            if world.chance(faults.sleep) {
                asleep_until[index] = world.step + world.random.random_range(20..600);
                continue;
            }
            (index, world.chance(faults.crash))
        };
        if crash {
            processes[index] = replace();
        } else if let Poll::Ready(()) = processes[index].as_mut().poll(&mut context) {
            drop(processes.swap_remove(index));
            asleep_until.swap_remove(index);
        }
    }
}

/// Plays a seed to its end, with everything at rest and read once more.
pub fn play(seed: u64) -> SharedWorld {
    let world = World::new(seed, Faults::default());
    let drops = seed.is_multiple_of(3);
    let create = {
        let world = world.clone();
        async move {
            Tables::new(SimObjects(world), config()).create(&table_id(), Affinity::S3).await.unwrap();
        }
    };
    let once = |process: Process| schedule(&world, vec![process], || unreachable!("no crashes now"));
    once(Box::pin(create));

    world.lock().faults = match seed % 5 {
        0 => Faults { sleep: 20, ..Faults::default() },
        1 => Faults { crash: 8, sleep: 10, ..Faults::default() },
        2 => Faults { late: 15, lost_reply: 10, sleep: 10, ..Faults::default() },
        _ => Faults { lost_request: 5, lost_reply: 8, late: 8, crash: 4, sleep: 15 },
    };
    let processes = (0..5).map(|_| process(&world, 16, drops)).collect();
    schedule(&world, processes, || process(&world, 6, drops));

    world.lock().faults = Faults::default();
    world.lock().deliver_late(true);
    let last = {
        let world = world.clone();
        async move {
            let tables = Tables::new(SimObjects(world.clone()), config());
            let table = tables.table(table_id(), Affinity::S3);
            for space in SPACES {
                scan(&world, &table, space).await;
            }
            for number in 0..ROUTES {
                get(&world, &table, number).await;
                // A write finishes whatever split its group is in.
                let put = Mutation::Put { row: row(ROWS, number, ""), value: Bytes::from_static(b"last") };
                batch(&world, &table, vec![], vec![put]).await;
            }
            for space in SPACES {
                scan(&world, &table, space).await;
            }
        }
    };
    once(Box::pin(last));
    check_shape(&world.lock());
    world
}

/// At rest: the groups tile the key space, hold only their own rows, and nothing else is left.
fn check_shape(world: &World) {
    let id = table_id();
    let root_name = id.root_object();
    let root = &world.pool.objects[&root_name];
    let header = RootHeader::parse(&root_name, &root.attrs[HEADER_ATTR], &root.attrs[VERSION_ATTR]).unwrap();
    let mut end: Option<Vec<u8>> = None;
    let mut count = 0;
    for (key, value) in root.rows.iter().take_while(|(key, _)| **key < root_rows_end()) {
        let name = id.group_object(root_row(&root_name, value).unwrap().group);
        let group = &world.pool.objects[&name];
        let record = GroupHeader::parse(&name, &group.attrs[HEADER_ATTR], &group.attrs[VERSION_ATTR]).unwrap();
        assert_eq!((Some(&record.start), &record.end), (start_of_root_row(key).as_ref(), &end), "groups do not tile");
        match header.state {
            RootState::Dropped => assert!(matches!(record.state, GroupState::Dropping { .. })),
            _ => assert_eq!(record.state, GroupState::Open),
        }
        for key in group.rows.keys().filter(|key| key[0] != crate::SPACE_RESERVED) {
            assert!(record.covers(&key[1..]), "a row outside of its group");
        }
        end = Some(record.start.clone());
        count += 1;
    }
    assert_eq!(end, Some(Vec::new()), "the first group does not start at the beginning");
    assert_eq!(root.rows[GROUP_COUNT_ROW].as_ref(), i64::from(count).to_le_bytes());
    assert_eq!(world.pool.objects.len(), 1 + usize::try_from(count).unwrap(), "an object is left over");
}
