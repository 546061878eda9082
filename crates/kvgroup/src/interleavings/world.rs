//! The world that the processes live in: one pool, one random source, one history, and faults.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use holdfast_types::ObjectName;
use holdfast_wire::ObjectOp;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::error::ObjectsError;
use crate::objects::{Objects, Operated};
use crate::testing::MemoryPool;
use crate::{Condition, Mutation, RowKey};

/// What was asked.
#[derive(Debug, Clone)]
pub enum Asked {
    Batch {
        conditions: Vec<Condition>,
        mutations: Vec<Mutation>,
    },
    Get {
        rows: Vec<RowKey>,
    },
    /// One page of a scan; it showed all rows of `space` in `start..end`.
    Page {
        space: u8,
        start: Vec<u8>,
        end: Option<Vec<u8>>,
    },
    Drop,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answered {
    /// No answer, or one that says nothing: it may have happened, may yet, or never.
    Unknown,
    /// It certainly had no effect, and says nothing of the rows.
    Nothing,
    Gone,
    Applied {
        counters: Vec<i64>,
    },
    Condition {
        index: usize,
        current: Option<Bytes>,
    },
    Values(Vec<Option<Bytes>>),
    Rows(Vec<(Vec<u8>, Bytes)>),
    Dropped,
}

/// One request of one process.
#[derive(Debug, Clone)]
pub struct Event {
    pub asked: Asked,
    pub answered: Answered,
    pub began: u64,
    /// `u64::MAX` while there is no answer.
    pub ended: u64,
}

/// Per mille.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub lost_request: u32,
    pub lost_reply: u32,
    pub late: u32,
    pub crash: u32,
    pub sleep: u32,
}

pub struct World {
    pub pool: MemoryPool,
    pub random: SmallRng,
    pub faults: Faults,
    pub history: Vec<Event>,
    /// Ops that are still under way to the cluster though nobody waits for them.
    late: Vec<(ObjectName, Vec<ObjectOp>)>,
    pub step: u64,
}

pub type SharedWorld = Arc<Mutex<World>>;

impl World {
    pub fn new(seed: u64, faults: Faults) -> SharedWorld {
        Arc::new(Mutex::new(World {
            pool: MemoryPool::default(),
            random: SmallRng::seed_from_u64(seed),
            faults,
            history: Vec::new(),
            late: Vec::new(),
            step: 0,
        }))
    }

    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.random.random_range(0..1000) < per_mille
    }

    pub fn begin(&mut self, asked: Asked) -> usize {
        let (began, answered) = (self.step, Answered::Unknown);
        self.history.push(Event { asked, answered, began, ended: u64::MAX });
        self.history.len() - 1
    }

    pub fn end(&mut self, event: usize, answered: Answered) {
        if answered != Answered::Unknown {
            self.history[event].answered = answered;
            self.history[event].ended = self.step;
        }
    }

    /// Lets an op arrive that was given up long ago.
    pub fn deliver_late(&mut self, all: bool) {
        while !self.late.is_empty() {
            let index = self.random.random_range(0..self.late.len());
            let (object, ops) = self.late.swap_remove(index);
            let _ = self.pool.execute(&object, &ops);
            if !all {
                break;
            }
        }
    }

    pub fn splits(&self) -> usize {
        self.pool.objects.len().saturating_sub(2)
    }

    pub fn drops(&self) -> usize {
        self.history.iter().filter(|event| event.answered == Answered::Dropped).count()
    }
}

/// Gives the turn to another process.
#[derive(Default)]
struct Turn(bool);

impl Future for Turn {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The cluster as a process sees it.
#[derive(Clone)]
pub struct SimObjects(pub SharedWorld);

impl Objects for SimObjects {
    async fn operate(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Operated, ObjectsError> {
        Turn::default().await; // on the way there
        let outcome = {
            let mut world = self.0.lock();
            let faults = world.faults;
            if world.chance(faults.lost_request) {
                Err(ObjectsError::OutcomeUnknown)
            } else if world.chance(faults.late) {
                world.late.push((object.clone(), ops));
                Err(ObjectsError::OutcomeUnknown)
            } else {
                let outcome = world.pool.execute(object, &ops);
                if world.chance(faults.lost_reply) { Err(ObjectsError::OutcomeUnknown) } else { outcome }
            }
        };
        Turn::default().await; // on the way back
        outcome
    }

    async fn pause(&self, _: Duration) {
        Turn::default().await;
    }

    fn fresh_id(&self) -> [u8; 16] {
        self.0.lock().random.random()
    }
}
