//! What a gateway stands in: tasks that go on beside the request, time that passes, and ids that nobody else draws.
//!
//! [`Runtime::default`] is the machine: tokio's tasks and timers, the operating system's randomness. A simulator stands in
//! for it with [`Runtime::within`]; nothing else of the gateway knows the difference. Wall-clock time is [`crate::clock`].

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{AbortHandle, BoxFuture, Either, abortable, select};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Another world than the machine's.
pub trait Surroundings: Send + Sync + 'static {
    /// Has work done beside the caller's, whoever drops the caller. It ends with the process.
    fn spawn(&self, work: BoxFuture<'static, ()>);
    /// Waits.
    fn pause(&self, length: Duration) -> BoxFuture<'static, ()>;
    /// How long the world exists. Never goes back.
    fn elapsed(&self) -> Duration;
    /// An id that nobody else ever draws.
    fn fresh_id(&self) -> [u8; 16];
}

#[derive(Clone)]
struct Within {
    surroundings: Arc<dyn Surroundings>,
    /// Stands for the world's beginning.
    began: Instant,
}

/// The world a gateway stands in; clones are the same one.
#[derive(Clone, Default)]
pub struct Runtime(Option<Within>);

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_none() { "Runtime(machine)" } else { "Runtime(another)" })
    }
}

/// A timeout passed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimedOut;

/// A task did not come to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskLost;

impl Runtime {
    /// Another world.
    pub fn within(surroundings: Arc<dyn Surroundings>) -> Runtime {
        Runtime(Some(Within { surroundings, began: Instant::now() }))
    }

    /// The present moment, to measure from.
    pub(crate) fn now(&self) -> Instant {
        match &self.0 {
            None => Instant::now(),
            Some(within) => within.began + within.surroundings.elapsed(),
        }
    }

    /// Waits.
    pub(crate) async fn sleep(&self, length: Duration) {
        match &self.0 {
            None => tokio::time::sleep(length).await,
            Some(within) => within.surroundings.pause(length).await,
        }
    }

    /// Waits until then.
    pub(crate) async fn sleep_until(&self, until: Instant) {
        match &self.0 {
            None => tokio::time::sleep_until(until).await,
            Some(within) => within.surroundings.pause(until.saturating_duration_since(self.now())).await,
        }
    }

    /// Waits for `work`, but not longer than this.
    pub(crate) async fn timeout<F: Future>(&self, length: Duration, work: F) -> Result<F::Output, TimedOut> {
        match &self.0 {
            None => tokio::time::timeout(length, work).await.map_err(|_| TimedOut),
            Some(within) => match select(pin!(work), within.surroundings.pause(length)).await {
                Either::Left((output, _)) => Ok(output),
                Either::Right(((), _)) => Err(TimedOut),
            },
        }
    }

    /// Has work done beside the caller's. It goes on when the [`Task`] is dropped.
    pub(crate) fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
        let Some(within) = &self.0 else { return Task::Machine(tokio::spawn(work)) };
        let (tell, told) = oneshot::channel();
        let (work, abort) = abortable(async move {
            let _ = tell.send(work.await);
        });
        within.surroundings.spawn(Box::pin(async move {
            let _ = work.await;
        }));
        Task::Elsewhere { told, abort }
    }

    /// A number that is good enough to tell requests apart.
    pub(crate) fn random(&self) -> u64 {
        match &self.0 {
            None => rand::random(),
            Some(within) => u128::from_le_bytes(within.surroundings.fresh_id()) as u64,
        }
    }

    /// An id that nobody else ever draws.
    pub(crate) fn unique_id(&self) -> [u8; 16] {
        match &self.0 {
            None => crate::row::unique_id(),
            Some(within) => within.surroundings.fresh_id(),
        }
    }
}

/// Work that goes on beside its owner's.
pub(crate) enum Task<T> {
    /// On the machine.
    Machine(JoinHandle<T>),
    /// In another world.
    Elsewhere {
        /// Its end.
        told: oneshot::Receiver<T>,
        /// Ends it early.
        abort: AbortHandle,
    },
}

impl<T> Task<T> {
    fn abort(&self) {
        match self {
            Task::Machine(task) => task.abort(),
            Task::Elsewhere { abort, .. } => abort.abort(),
        }
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskLost>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T, TaskLost>> {
        match self.get_mut() {
            Task::Machine(task) => Pin::new(task).poll(context).map_err(|_| TaskLost),
            Task::Elsewhere { told, .. } => Pin::new(told).poll(context).map_err(|_| TaskLost),
        }
    }
}

/// A task that ends with its owner.
pub(crate) struct AbortOnDrop<T>(pub Task<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, TaskLost>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T, TaskLost>> {
        Pin::new(&mut self.0).poll(context)
    }
}
