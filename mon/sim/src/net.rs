//! The simulated network: one exchange of a request and an answer at a time, each way with its own fate.
//!
//! A message is lost, late, delivered twice, or delivered while the asker is told that the connection broke. A process that
//! is dead refuses, one that is paused stays silent. A message under way outlives its sender, so old leaders are heard late.

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use holdfast_mon::member::Member;
use holdfast_mon::raft::{Transport, TransportError};
use holdfast_types::MonId;
use openraft::AsyncRuntime;
use tokio::sync::oneshot;

use crate::host::Sim;
use crate::runtime::{self, NodeId, SimRuntime};
use crate::world;

/// What the network does to messages at present, in thousandths of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Net {
    /// Pairs between which nothing passes, in this direction.
    pub(crate) blocked: BTreeSet<(NodeId, NodeId)>,
    /// Messages that are lost.
    pub(crate) loss: u64,
    /// Requests that arrive a second time.
    pub(crate) duplicates: u64,
    /// Exchanges whose connection breaks.
    pub(crate) resets: u64,
    /// Messages that are late.
    pub(crate) late: u64,
    /// By how much at most, in microseconds.
    pub(crate) late_micros_max: u64,
}

enum Leg {
    Lost,
    Reset { delivered: Option<Duration>, told: Duration },
    Delivered { after: Duration, again: Option<Duration> },
}

fn chance(per_thousand: u64) -> bool {
    per_thousand > 0 && runtime::random() % 1000 < per_thousand
}

fn leg(from: NodeId, to: NodeId) -> Leg {
    let (net, blocked) = world::net(|net| {
        let blocked = net.blocked.contains(&(from, to));
        ((net.loss, net.duplicates, net.resets, net.late, net.late_micros_max), blocked)
    });
    let (loss, duplicates, resets, late, late_micros_max) = net;
    if blocked {
        world::count("message-blocked");
        return Leg::Lost;
    }
    if chance(loss) {
        world::count("message-lost");
        return Leg::Lost;
    }
    let delay = || {
        if chance(late) {
            world::count("message-late");
            Duration::from_micros(runtime::random() % late_micros_max.max(1))
        } else {
            Duration::from_micros(50 + runtime::random() % 500)
        }
    };
    if chance(resets) {
        world::count("connection-reset");
        let delivered = runtime::random().is_multiple_of(2).then(delay);
        return Leg::Reset { delivered, told: delay() };
    }
    let after = delay();
    let again = chance(duplicates).then(|| {
        world::count("message-duplicated");
        Duration::from_micros(runtime::random() % 2_000_000)
    });
    Leg::Delivered { after, again }
}

/// Why an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Refused,
    Reset,
}

/// Has `ask` done at the monitor of node `to`, and brings the answer back. Waits for ever for what is lost.
pub(crate) async fn exchange<A, F>(
    from: NodeId,
    to: NodeId,
    ask: impl Fn(Arc<Member<Sim>>) -> F + Send + Sync + 'static,
) -> Result<A, Failure>
where
    A: Send + 'static,
    F: Future<Output = A> + Send + 'static,
{
    let ask = Arc::new(ask);
    let deliver = |after: Duration, answer: Option<oneshot::Sender<A>>| {
        let ask = Arc::clone(&ask);
        runtime::spawn_on(to, async move {
            SimRuntime::sleep(after).await;
            let Some(member) = world::member(to) else { return };
            let done = ask(member).await;
            if let Some(answer) = answer {
                let _ = answer.send(done);
            }
        });
    };
    let (tx, rx) = oneshot::channel();
    match leg(from, to) {
        Leg::Lost => pending().await,
        Leg::Reset { delivered, told } => {
            if let Some(after) = delivered {
                deliver(after, None);
            }
            SimRuntime::sleep(told).await;
            return Err(Failure::Reset);
        }
        Leg::Delivered { after, .. } if !runtime::is_alive(to) => {
            SimRuntime::sleep(after).await;
            return Err(Failure::Refused);
        }
        Leg::Delivered { after, again } => {
            deliver(after, Some(tx));
            if let Some(again) = again {
                deliver(again, None);
            }
        }
    }
    let answer = rx.await.map_err(|_| Failure::Reset)?;
    match leg(to, from) {
        Leg::Lost => pending().await,
        Leg::Reset { told, .. } => {
            SimRuntime::sleep(told).await;
            Err(Failure::Reset)
        }
        Leg::Delivered { after, .. } => {
            SimRuntime::sleep(after).await;
            Ok(answer)
        }
    }
}

/// The way from one monitor to the others.
pub(crate) struct Wire {
    pub(crate) from: NodeId,
}

impl Transport for Wire {
    async fn call(&self, to: MonId, request: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, TransportError> {
        let failed = |reason: &str| TransportError { to, reason: reason.to_owned() };
        let node = usize::try_from(to.0).map_err(|_| failed("it is no monitor"))?;
        let request = Arc::new(request);
        let asked = exchange(self.from, node, move |member| {
            let request = Arc::clone(&request);
            async move { member.answer_peer(&request).await }
        });
        match SimRuntime::timeout(timeout, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Failure::Refused)) => Err(failed("connection refused")),
            Ok(Err(Failure::Reset)) => Err(failed("connection reset")),
            Err(_) => Err(failed("no answer in time")),
        }
    }
}
