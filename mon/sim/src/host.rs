//! The simulated machine beneath a monitor.

use std::future::Future;
use std::io;
use std::time::Duration;

use holdfast_mon::host::{Host, LogLimits};
use holdfast_mon_state::leader::ProbeResult;
use holdfast_types::{Epoch, Timestamp};
use openraft::AsyncRuntime;

use crate::disk::SimKv;
use crate::runtime::{self, SimRuntime};
use crate::world;

/// The wall clock when a run begins, in Unix milliseconds.
const WALL_START_MS: u64 = 1_800_000_000_000;

/// The simulated machine; which one is known from the task that asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sim;

impl Host for Sim {
    type Runtime = SimRuntime;
    type Kv = SimKv;

    fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send {
        let node = runtime::current_node();
        let done = SimRuntime::spawn(async move {
            let (before, after) = world::disk_delays(node);
            SimRuntime::sleep(before).await;
            let result = work();
            SimRuntime::sleep(after).await;
            result
        });
        async move { done.await.map_err(|lost| io::Error::other(lost.to_string()))? }
    }

    fn now() -> Timestamp {
        Timestamp::from_nanos(runtime::local_nanos())
    }

    fn unix_ms() -> u64 {
        let shift = world::wall_shift_ms(runtime::current_node());
        (WALL_START_MS + runtime::local_nanos() / 1_000_000).saturating_add_signed(shift)
    }

    async fn probe(_address: String) -> ProbeResult {
        SimRuntime::sleep(Duration::from_millis(1 + runtime::random() % 50)).await;
        match runtime::random() % 3 {
            0 => ProbeResult::Connected,
            1 => ProbeResult::Refused,
            _ => ProbeResult::NoAnswer,
        }
    }

    fn random(bytes: &mut [u8]) -> io::Result<()> {
        for byte in bytes {
            *byte = runtime::random().to_le_bytes()[0];
        }
        Ok(())
    }

    fn log_limits() -> LogLimits {
        world::log_limits()
    }

    fn applied(index: u64, command: &[u8], epoch: Epoch) {
        world::applied(runtime::current_node(), index, command, epoch);
    }
}
