//! Processes with random work on one table. What they ask and are answered goes to the [`History`] of their [`Scene`].

use bytes::Bytes;

use super::history::{Answered, Asked, History};
use crate::key::prefix_end;
use crate::{
    Affinity, BatchError, Condition, DropError, KvError, Mutation, Objects, PageLimit, Require, RowKey, Table, TableId,
    Tables,
};

/// Routes that rows are of.
pub const ROUTES: u32 = 14;
const ROWS: u8 = 1;
const PARTS: u8 = 2;
const COUNTERS: u8 = 3;
/// What the table must have no rows of to be dropped.
pub const SPACES: [u8; 3] = [ROWS, PARTS, COUNTERS];

/// The world that actors live in.
pub trait Scene: Clone + Send + Sync + 'static {
    /// A random number below `below`.
    fn random(&self, below: u32) -> u32;

    /// The time, in the history's unit.
    fn now(&self) -> u64;

    /// Gives access to the history.
    fn history<T>(&self, work: impl FnOnce(&mut History) -> T) -> T;

    /// Whether this error may come of what goes wrong in this world. It had no effect.
    fn excuses(&self, error: &KvError) -> bool;

    /// Takes note of a broken promise.
    fn wrong(&self, what: String);
}

/// The one table.
///
/// # Panics
/// Never: the id is valid.
#[must_use]
pub fn table_id() -> TableId {
    TableId::new("t").expect("a valid id")
}

/// Route `number`.
#[must_use]
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
    Mutation::DeleteRange { space: PARTS, end: prefix_end(&start).unwrap_or_default(), start }
}

/// One process: its handles, and where it lives.
#[derive(Debug)]
pub struct Actor<O, S> {
    scene: S,
    tables: Tables<O>,
    table: Table<O>,
    /// Whether it mostly deletes, and drops the table now and then: it can only be dropped when little is written.
    drops: bool,
}

impl<O: Objects, S: Scene> Actor<O, S> {
    /// A process with an empty cache.
    pub fn new(scene: S, tables: Tables<O>, drops: bool) -> Actor<O, S> {
        let table = tables.table(table_id(), Affinity::S3);
        Actor { scene, tables, table, drops }
    }

    fn begin(&self, asked: Asked) -> usize {
        let now = self.scene.now();
        self.scene.history(|history| history.begin(now, asked))
    }

    fn end(&self, event: usize, answered: Answered) {
        let now = self.scene.now();
        self.scene.history(|history| history.end(event, now, answered));
    }

    fn failed(&self, error: &KvError) -> Answered {
        match error {
            KvError::TableGone | KvError::TableMissing => Answered::Gone,
            KvError::Unanswered | KvError::GroupFull => Answered::Nothing,
            error if self.scene.excuses(error) => Answered::Nothing,
            error => {
                self.scene.wrong(format!("an error that nothing explains: {error:?}"));
                Answered::Nothing
            }
        }
    }

    /// One piece of random work.
    pub async fn work(&self) {
        match self.scene.random(20) {
            0..13 => self.mutate().await,
            13..17 => {
                let number = self.scene.random(ROUTES);
                self.get(number).await;
            }
            17 | 18 if self.drops => self.drop_table().await,
            _ => {
                let space = SPACES.get(self.scene.random(3) as usize).copied().unwrap_or(ROWS);
                self.scan(space).await;
            }
        }
    }

    /// Reads everything, with a write of each route in between: it finishes whatever split its group is in.
    pub async fn visit_all(&self) {
        for space in SPACES {
            self.scan(space).await;
        }
        for number in 0..ROUTES {
            self.get(number).await;
            let put = Mutation::Put { row: row(ROWS, number, ""), value: Bytes::from_static(b"last") };
            self.batch(vec![], vec![put]).await;
        }
        for space in SPACES {
            self.scan(space).await;
        }
    }

    async fn batch(&self, conditions: Vec<Condition>, mutations: Vec<Mutation>) {
        let route = conditions.first().map(|c| c.row.key.clone()).or_else(|| match mutations.first() {
            Some(Mutation::Put { row, .. } | Mutation::Delete { row } | Mutation::Add { row, .. }) => {
                Some(row.key.clone())
            }
            Some(Mutation::DeleteRange { start, .. }) => Some(start.clone()),
            _ => None,
        });
        let event = self.begin(Asked::Batch { conditions: conditions.clone(), mutations: mutations.clone() });
        let answered = match self.table.batch(&route.unwrap_or_default(), &conditions, &mutations).await {
            Ok(reply) => Answered::Applied { counters: reply.counters },
            Err(BatchError::Condition { index, current }) => Answered::Condition { index, current },
            Err(BatchError::OutcomeUnknown) => Answered::Unknown,
            Err(BatchError::Kv(error)) => self.failed(&error),
        };
        self.end(event, answered);
    }

    async fn mutate(&self) {
        let random = |below| self.scene.random(below);
        let number = random(if self.drops { ROUTES / 3 } else { ROUTES });
        let part = ["a", "b", "c"].get(random(3) as usize).copied().unwrap_or("a");
        // Every value is unique, so that each read tells which write it saw.
        let value = Bytes::from(format!("v{}", self.scene.history(|history| history.events.len())));
        let put = |row: RowKey| Mutation::Put { row, value: value.clone() };
        let (object, piece) = (row(ROWS, number, ""), row(PARTS, number, part));
        let (conditions, mutations) = match random(if self.drops { 16 } else { 7 }) {
            0 | 1 => (vec![], vec![put(piece)]),
            2 => {
                let absent = Condition { row: object.clone(), require: Require::Absent };
                (vec![absent], vec![put(object), put(piece)])
            }
            3 | 4 => {
                let Ok(Some(current)) = self.table.get(&object).await else { return };
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
        self.batch(conditions, mutations).await;
    }

    async fn get(&self, number: u32) {
        let rows =
            vec![row(ROWS, number, ""), row(PARTS, number, "a"), row(PARTS, number, "b"), row(COUNTERS, number, "")];
        let event = self.begin(Asked::Get { rows: rows.clone() });
        let answered = match self.table.get_many(&route(number), &rows).await {
            Ok(values) => Answered::Values(values),
            Err(error) => self.failed(&error),
        };
        self.end(event, answered);
    }

    /// Scans a space; each page is an event of its own.
    async fn scan(&self, space: u8) {
        let mut start = Vec::new();
        loop {
            let limit = PageLimit { rows: 1 + self.scene.random(6), bytes: 1 << 20 };
            let event = self.begin(Asked::Page { space, start: start.clone(), end: None });
            let page = match self.table.scan(space, &start, None, limit).await {
                Err(error) => return self.end(event, self.failed(&error)),
                Ok(page) => page,
            };
            let (keys, next) = (page.rows.iter().map(|(key, _)| key), &page.next);
            if !keys.clone().is_sorted_by(|a, b| a < b) {
                self.scene.wrong("a page is out of order".to_owned());
            }
            if !keys.clone().all(|key| *key >= start && next.as_ref().is_none_or(|next| key < next)) {
                self.scene.wrong("a page holds rows that are not of it".to_owned());
            }
            if next.as_ref().is_some_and(|next| *next <= start) {
                return self.scene.wrong("a scan does not advance".to_owned());
            }
            self.scene.history(|history| history.page_ended(event, page.next.clone()));
            self.end(event, Answered::Rows(page.rows));
            match page.next {
                Some(next) => start = next,
                None => return,
            }
        }
    }

    async fn drop_table(&self) {
        let event = self.begin(Asked::Drop);
        let answered = match self.tables.drop_if_empty(&table_id(), &SPACES).await {
            Ok(()) => Answered::Dropped,
            Err(DropError::NotEmpty { .. }) => Answered::Nothing,
            Err(DropError::Kv(KvError::Unanswered | KvError::Contended { .. })) => Answered::Unknown,
            Err(DropError::Kv(error)) => {
                if !self.scene.excuses(&error) {
                    self.scene.wrong(format!("a drop failed: {error:?}"));
                }
                Answered::Unknown
            }
        };
        self.end(event, answered);
    }
}
