//! The world that the processes live in: one pool, one random source, one history, and faults.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use holdfast_types::ObjectName;
use holdfast_wire::ObjectOp;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::KvError;
use crate::error::ObjectsError;
use crate::objects::{Objects, Operated};
use crate::testing::MemoryPool;
use crate::testing::actors::Scene;
use crate::testing::history::History;

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
    pub history: History,
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
            history: History::default(),
            late: Vec::new(),
            step: 0,
        }))
    }

    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.random.random_range(0..1000) < per_mille
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

impl Scene for SimObjects {
    fn random(&self, below: u32) -> u32 {
        self.0.lock().random.random_range(0..below)
    }

    fn now(&self) -> u64 {
        self.0.lock().step
    }

    fn history<T>(&self, work: impl FnOnce(&mut History) -> T) -> T {
        work(&mut self.0.lock().history)
    }

    fn excuses(&self, _: &KvError) -> bool {
        false
    }

    fn wrong(&self, what: String) {
        panic!("{what}");
    }
}
