//! The memory that request bodies may take, over all requests.
//!
//! Every buffer of object data is counted from before it is filled until the last holder of its [`Bytes`] lets go, the
//! connection's write queue and the storage client included. Receiving and sending have budgets of their own. Neither can
//! deadlock: a request waits for one buffer at a time, grants are first come first served, and copies, which hold both
//! kinds, are limited to [`COPIES_MAX`], which together fit in either budget.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Code, S3Result};

/// Bytes of one unit of account.
const UNIT_BYTES: usize = 16 * 1024;
/// Copies that run at once.
pub const COPIES_MAX: usize = 4;
/// How long a request waits for memory before it is told to slow down.
const WAIT: Duration = Duration::from_secs(30);

/// One budget.
#[derive(Debug, Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    total: u32,
}

/// Leave to hold some bytes.
#[derive(Debug)]
pub struct Permit {
    _units: OwnedSemaphorePermit,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Budget {
        let total = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX >> 4).max(1);
        Budget { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits for leave to hold `bytes`.
    ///
    /// # Errors
    /// [`Code::SlowDown`] when there is none for [`WAIT`].
    pub async fn acquire(&self, bytes: usize) -> S3Result<Permit> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(self.total).clamp(1, self.total);
        match tokio::time::timeout(WAIT, self.units.clone().acquire_many_owned(units)).await {
            Ok(Ok(units)) => Ok(Permit { _units: units }),
            Ok(Err(_)) | Err(_) => Err(Code::SlowDown.into()),
        }
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
        let budget = Budget::new(4 * UNIT_BYTES);
        let data = budget.acquire(4 * UNIT_BYTES).await.unwrap().hold(Bytes::from_static(b"abc"));
        let part = data.slice(1..2);
        drop(data);
        assert_eq!(budget.acquire(1).await.unwrap_err().code, Code::SlowDown);
        drop(part);
        assert!(budget.acquire(100 * UNIT_BYTES).await.is_ok(), "more than all is clamped to all");
    }
}
