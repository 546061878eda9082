//! Where the futures of front ends and the world meet: what they wish for, and what came of it.
//!
//! Production code above sees [`SimObjects`], an implementation of `holdfast_kvgroup`'s `Objects`. Each call becomes a wish;
//! the world carries it out with the production client core ([`super::network`]) and lays the answer down here.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use holdfast_client::{OperateError, OperateReply};
use holdfast_kvgroup::testing::actors::Scene;
use holdfast_kvgroup::testing::history::History;
use holdfast_kvgroup::{KvError, Objects, ObjectsError, Operated};
use holdfast_types::{ObjectName, Timestamp};
use holdfast_wire::ObjectOp;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::executor::{ProcessId, Work};
use super::gateways::Shop;

/// Names a call of a future to the world; never used twice.
pub(crate) type CallId = u64;

/// Which run of which process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Who {
    pub process: ProcessId,
    pub run: u64,
}

/// What a future wants of the world.
#[derive(Debug)]
pub(crate) enum Wish {
    Operate {
        who: Who,
        call: CallId,
        object: ObjectName,
        ops: Vec<ObjectOp>,
        frees_space: bool,
    },
    Pause {
        who: Who,
        call: CallId,
        length: Duration,
    },
    /// Nobody waits for it any more.
    GiveUp {
        who: Who,
        call: CallId,
    },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Answer {
    Operated(Result<OperateReply, OperateError>),
    Passed,
}

#[derive(Default)]
struct Call {
    answer: Option<Answer>,
    waker: Option<Waker>,
}

/// What tasks and the world share.
pub(crate) struct Desk {
    pub now: Timestamp,
    pub rng: SmallRng,
    /// Whether work goes on.
    pub working: bool,
    pub wishes: Vec<Wish>,
    pub spawned: Vec<(Who, Work)>,
    pub history: History,
    pub violation: Option<String>,
    /// Whether the table is made.
    pub created: bool,
    /// Makings of it that were begun: each but one may have left an empty group behind.
    pub creations: usize,
    /// What the last visitor found: the objects that there may be.
    pub found: Option<Result<BTreeSet<ObjectName>, String>>,
    /// Of gateways.
    pub shop: Shop,
    calls: BTreeMap<CallId, Call>,
    last_call: CallId,
}

pub(crate) type SharedDesk = Arc<Mutex<Desk>>;

impl Desk {
    pub fn new(seed: u64) -> SharedDesk {
        Arc::new(Mutex::new(Desk {
            now: Timestamp::ZERO,
            rng: SmallRng::seed_from_u64(seed ^ 0x5eed_f407),
            working: true,
            wishes: Vec::new(),
            spawned: Vec::new(),
            history: History::default(),
            violation: None,
            created: false,
            creations: 0,
            found: None,
            shop: Shop::default(),
            calls: BTreeMap::new(),
            last_call: 0,
        }))
    }

    fn begin(&mut self) -> CallId {
        self.last_call += 1;
        self.calls.insert(self.last_call, Call::default());
        self.last_call
    }

    /// Lays an answer down and wakes who waits for it.
    pub fn answer(&mut self, call: CallId, answer: Answer) {
        if let Some(call) = self.calls.get_mut(&call) {
            call.answer = Some(answer);
            if let Some(waker) = call.waker.take() {
                waker.wake();
            }
        }
    }

    /// Takes note of the first broken promise.
    pub fn wrong(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }
}

/// The cluster, as one run of a front end sees it.
#[derive(Clone)]
pub(crate) struct SimObjects {
    pub desk: SharedDesk,
    pub who: Who,
}

impl std::fmt::Debug for SimObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimObjects({:?})", self.who)
    }
}

/// A call that is waited for. Dropped before its answer, it is given up.
struct Waiting {
    desk: SharedDesk,
    who: Who,
    call: CallId,
    answered: bool,
}

impl Future for Waiting {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let desk = Arc::clone(&self.desk);
        let mut desk = desk.lock();
        let Some(call) = desk.calls.get_mut(&self.call) else { return Poll::Pending };
        match call.answer.take() {
            Some(answer) => {
                desk.calls.remove(&self.call);
                self.answered = true;
                Poll::Ready(answer)
            }
            None => {
                call.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.answered {
            let mut desk = self.desk.lock();
            desk.calls.remove(&self.call);
            desk.wishes.push(Wish::GiveUp { who: self.who, call: self.call });
        }
    }
}

impl SimObjects {
    fn call(&self, wish: impl FnOnce(CallId) -> Wish) -> Waiting {
        let mut desk = self.desk.lock();
        let call = desk.begin();
        desk.wishes.push(wish(call));
        Waiting { desk: Arc::clone(&self.desk), who: self.who, call, answered: false }
    }

    /// Executes an op vector; the errors are the client library's.
    pub async fn execute(
        &self,
        object: &ObjectName,
        ops: Vec<ObjectOp>,
        frees_space: bool,
    ) -> Result<OperateReply, OperateError> {
        let (who, object) = (self.who, object.clone());
        match self.call(|call| Wish::Operate { who, call, object, ops, frees_space }).await {
            Answer::Operated(result) => result,
            Answer::Passed => Err(OperateError::ShutDown),
        }
    }
}

impl Objects for SimObjects {
    async fn operate(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Operated, ObjectsError> {
        Ok(self.execute(object, ops, false).await?.into())
    }

    async fn operate_freeing(&self, object: &ObjectName, ops: Vec<ObjectOp>) -> Result<Operated, ObjectsError> {
        Ok(self.execute(object, ops, true).await?.into())
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.desk.lock().spawned.push((self.who, Box::pin(work)));
    }

    async fn pause(&self, length: Duration) {
        let who = self.who;
        self.call(|call| Wish::Pause { who, call, length }).await;
    }

    fn fresh_id(&self) -> [u8; 16] {
        self.desk.lock().rng.random()
    }
}

impl Scene for SimObjects {
    fn random(&self, below: u32) -> u32 {
        self.desk.lock().rng.random_range(0..below)
    }

    fn now(&self) -> u64 {
        self.desk.lock().now.as_nanos()
    }

    fn history<T>(&self, work: impl FnOnce(&mut History) -> T) -> T {
        work(&mut self.desk.lock().history)
    }

    fn excuses(&self, error: &KvError) -> bool {
        matches!(error, KvError::ClusterFull | KvError::Contended { .. })
    }

    fn wrong(&self, what: String) {
        self.desk.lock().wrong(format!("KV1: {what}"));
    }
}
