//! Runs the futures of front ends: one thread, in an order that the seed alone decides.
//!
//! Which task runs next is drawn from the *set* of those that can, so the order in which they were woken does not matter. A
//! process is killed by dropping its tasks, each at what it awaits; one that is paused keeps them, and none of them runs.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

/// What a task does.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;
/// A process that is a front end.
pub(crate) type ProcessId = usize;

/// More polls at one moment mean that tasks wake each other in a circle.
const POLLS_MAX: u32 = 100_000;

struct Task {
    process: ProcessId,
    work: Work,
    waker: Waker,
}

struct TaskWaker {
    id: u64,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.lock().insert(self.id);
    }
}

/// The tasks of all front ends.
#[derive(Default)]
pub(crate) struct Executor {
    tasks: BTreeMap<u64, Task>,
    ready: Arc<Mutex<BTreeSet<u64>>>,
    paused: BTreeSet<ProcessId>,
    last: u64,
}

impl Executor {
    /// Begins a task.
    pub fn spawn(&mut self, process: ProcessId, work: Work) {
        self.last += 1;
        let id = self.last;
        let waker = Waker::from(Arc::new(TaskWaker { id, ready: Arc::clone(&self.ready) }));
        self.tasks.insert(id, Task { process, work, waker });
        self.ready.lock().insert(id);
    }

    /// Polls whatever can run until nothing can. Gives whether there was anything.
    ///
    /// # Errors
    /// Tasks go in circles.
    pub fn run(&mut self, rng: &mut SmallRng) -> Result<bool, String> {
        let mut polls = 0;
        while let Some(id) = self.next(rng) {
            polls += 1;
            if polls > POLLS_MAX {
                return Err("T0: tasks of front ends go in circles".to_owned());
            }
            let Some(mut task) = self.tasks.remove(&id) else { continue };
            let polled = task.work.as_mut().poll(&mut Context::from_waker(&task.waker));
            if polled == Poll::Pending {
                self.tasks.insert(id, task);
            }
        }
        Ok(polls > 0)
    }

    fn next(&self, rng: &mut SmallRng) -> Option<u64> {
        let runs = |id: &&u64| self.tasks.get(id).is_none_or(|task| !self.paused.contains(&task.process));
        let mut ready = self.ready.lock();
        let count = ready.iter().filter(runs).count();
        let at = if count > 1 { rng.random_range(0..count) } else { 0 };
        let chosen = *ready.iter().filter(runs).nth(at)?;
        ready.remove(&chosen);
        Some(chosen)
    }

    /// Ends all tasks of a process, each at what it awaits.
    pub fn kill(&mut self, process: ProcessId) {
        self.paused.remove(&process);
        let ids: Vec<u64> = self.tasks.iter().filter(|(_, task)| task.process == process).map(|(id, _)| *id).collect();
        for id in ids {
            self.tasks.remove(&id);
            self.ready.lock().remove(&id);
        }
    }

    /// Lets no task of a process run, or lets them run again.
    pub fn pause(&mut self, process: ProcessId, paused: bool) {
        if paused {
            self.paused.insert(process);
        } else {
            self.paused.remove(&process);
        }
    }

    /// Whether no task is left.
    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }
}
