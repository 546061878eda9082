//! The memory that bodies may take, over all requests.
//!
//! Every buffer of object data is counted from before it is filled until the last holder of its [`Bytes`] lets go, the
//! connection's write queue and the storage client included. Receiving, sending and documents have budgets of their own.
//! None can deadlock: a request waits for one buffer at a time, grants are first come first served, and copies, which hold
//! both kinds, are limited to [`COPIES_MAX`], which together fit in either budget.
//!
//! Nor can slow clients take a budget for themselves: an upload gives back what its client does not fill soon while others
//! wait ([`Budget::is_wanted`]), a download that gets nothing is given a little of a reserve that is enough for every
//! connection, and a connection that moves almost nothing is closed ([`crate::paced`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Code, S3Result};
use crate::runtime::Runtime;

/// Bytes of one unit of account.
const UNIT_BYTES: usize = 16 * 1024;
/// What a connection gets of the reserve when the budget is used up: this for each of them.
pub const RESERVED_BYTES: usize = UNIT_BYTES;
/// Copies that run at once.
pub const COPIES_MAX: usize = 4;
/// How long a request waits for memory before it is told to slow down.
const WAIT: Duration = Duration::from_secs(30);

/// One budget.
#[derive(Debug, Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    total: u32,
    waiting: Arc<AtomicUsize>,
    runtime: Runtime,
}

/// Leave to hold some bytes.
#[derive(Debug)]
pub struct Permit {
    units: OwnedSemaphorePermit,
}

/// Counts a request that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Waiting<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize, runtime: Runtime) -> Budget {
        let total = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX >> 4).max(1);
        Budget { units: Arc::new(Semaphore::new(total as usize)), total, waiting: Arc::default(), runtime }
    }

    fn units(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(self.total).clamp(1, self.total)
    }

    /// Waits for leave to hold `bytes`.
    ///
    /// # Errors
    /// [`Code::SlowDown`] when there is none for [`WAIT`].
    pub async fn acquire(&self, bytes: usize) -> S3Result<Permit> {
        if let Some(permit) = self.try_acquire(bytes) {
            return Ok(permit);
        }
        let _waiting = Waiting::new(&self.waiting);
        match self.runtime.timeout(WAIT, self.units.clone().acquire_many_owned(self.units(bytes))).await {
            Ok(Ok(units)) => Ok(Permit { units }),
            Ok(Err(_)) | Err(_) => Err(Code::SlowDown.into()),
        }
    }

    /// Leave to hold `bytes`, if it can be had at once. Nobody who waits is overtaken.
    pub fn try_acquire(&self, bytes: usize) -> Option<Permit> {
        let units = self.units.clone().try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(Permit { units })
    }

    /// Whether somebody waits.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether less than half is left: then small pieces serve more requests than large ones.
    pub fn is_tight(&self) -> bool {
        self.units.available_permits() < self.total as usize / 2
    }
}

struct Held<T> {
    data: T,
    _permit: Permit,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        self.data.as_ref()
    }
}

impl Permit {
    /// Gives back all but what `bytes` need.
    pub fn shrink(&mut self, bytes: usize) {
        let keep = bytes.div_ceil(UNIT_BYTES).max(1);
        drop(self.units.split(self.units.num_permits().saturating_sub(keep)));
    }

    /// Ties the permit to the bytes: it ends with the last clone of the result.
    pub fn hold(self, data: Bytes) -> Bytes {
        Bytes::from_owner(Held { data, _permit: self })
    }

    /// The same for a buffer just filled.
    pub fn hold_buffer(self, data: BytesMut) -> Bytes {
        Bytes::from_owner(Held { data, _permit: self })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn memory_is_counted_until_the_last_holder_lets_go() {
        let budget = Budget::new(4 * UNIT_BYTES, Runtime::default());
        let data = budget.acquire(4 * UNIT_BYTES).await.unwrap().hold(Bytes::from_static(b"abc"));
        let part = data.slice(1..2);
        drop(data);
        assert_eq!(budget.acquire(1).await.unwrap_err().code, Code::SlowDown);
        drop(part);
        assert!(budget.acquire(100 * UNIT_BYTES).await.is_ok(), "more than all is clamped to all");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_known_and_not_overtaken() {
        let budget = Budget::new(12 * UNIT_BYTES, Runtime::default());
        let mut held = budget.acquire(6 * UNIT_BYTES).await.unwrap();
        assert!(!budget.is_tight());
        let more = budget.acquire(3 * UNIT_BYTES).await.unwrap();
        assert!(budget.is_tight());
        assert!(!budget.is_wanted());
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(8 * UNIT_BYTES).await }
        });
        tokio::task::yield_now().await;
        assert!(budget.is_wanted());
        assert!(budget.try_acquire(1).is_none(), "who waits is not overtaken");
        held.shrink(1);
        waiting.await.unwrap().unwrap();
        assert!(!budget.is_wanted());
        drop(more);
    }
}
