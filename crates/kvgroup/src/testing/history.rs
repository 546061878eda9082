//! What processes asked of a table and were answered, for [`super::linearizable`].

use bytes::Bytes;

use crate::{Condition, Mutation, RowKey};

/// What was asked.
#[derive(Debug, Clone)]
pub enum Asked {
    /// A batch.
    Batch {
        /// Its conditions.
        conditions: Vec<Condition>,
        /// Its mutations.
        mutations: Vec<Mutation>,
    },
    /// The values of rows of one route.
    Get {
        /// The rows.
        rows: Vec<RowKey>,
    },
    /// One page of a scan; it showed all rows of `space` in `start..end`.
    Page {
        /// The space.
        space: u8,
        /// Where it began.
        start: Vec<u8>,
        /// Where it ended.
        end: Option<Vec<u8>>,
    },
    /// That the table be dropped if it is empty.
    Drop,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answered {
    /// No answer, or one that says nothing: it may have happened, may yet, or never.
    Unknown,
    /// It certainly had no effect, and says nothing of the rows.
    Nothing,
    /// There is no table.
    Gone,
    /// The batch took effect.
    Applied {
        /// The new values of its counters.
        counters: Vec<i64>,
    },
    /// A condition did not hold.
    Condition {
        /// Which.
        index: usize,
        /// The row's value.
        current: Option<Bytes>,
    },
    /// The rows' values.
    Values(Vec<Option<Bytes>>),
    /// The page's rows.
    Rows(Vec<(Vec<u8>, Bytes)>),
    /// The table is dropped.
    Dropped,
}

/// One request of one process.
#[derive(Debug, Clone)]
pub struct Event {
    /// What was asked.
    pub asked: Asked,
    /// What was answered.
    pub answered: Answered,
    /// When it was asked.
    pub began: u64,
    /// When it was answered; `u64::MAX` while it is not.
    pub ended: u64,
}

/// All requests of all processes, in the order in which they were asked.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The requests.
    pub events: Vec<Event>,
}

impl History {
    /// Notes what is asked now; gives its number.
    pub fn begin(&mut self, now: u64, asked: Asked) -> usize {
        self.events.push(Event { asked, answered: Answered::Unknown, began: now, ended: u64::MAX });
        self.events.len() - 1
    }

    /// Notes an answer. What is unknown stays open.
    pub fn end(&mut self, event: usize, now: u64, answered: Answered) {
        if let Some(event) = self.events.get_mut(event)
            && answered != Answered::Unknown
        {
            (event.answered, event.ended) = (answered, now);
        }
    }

    /// Notes where a page ended.
    pub fn page_ended(&mut self, event: usize, at: Option<Vec<u8>>) {
        if let Some(Event { asked: Asked::Page { end, .. }, .. }) = self.events.get_mut(event) {
            *end = at;
        }
    }

    /// Times that a table was dropped.
    #[must_use]
    pub fn drops(&self) -> usize {
        self.events.iter().filter(|event| event.answered == Answered::Dropped).count()
    }
}
