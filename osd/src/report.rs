//! Tells the monitors what this daemon holds: at once when something changed, and all of it now and then, because the
//! leader keeps reports in memory only and leaders change.

use std::sync::Arc;
use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_net::mon_session::MonSession;
use holdfast_wire::mon::{MonCommand, MonReply, OsdReport};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::shard::{Event, Shared};
use crate::space;

/// A report goes out at least this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Changes gather for this long: peering of many placement groups becomes one report.
const GATHER: Duration = Duration::from_millis(30);
/// A monitor that does not take a report in this time gets the next one.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// Reports until `stop`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    session: MonSession,
    map: watch::Receiver<Arc<ClusterMap>>,
    due: Arc<Notify>,
    stop: CancellationToken,
) {
    loop {
        let epoch = map.borrow().epoch;
        let report = gather(&shared, epoch).await;
        match session.execute_within(MonCommand::Report(report), SEND_TIMEOUT).await {
            Ok(MonReply::Failed(error)) => debug!(%error, "the monitors did not take the report"),
            Ok(_) => {}
            Err(error) => debug!(%error, "no monitor took the report"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = due.notified() => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(REPORT_INTERVAL) => {}
        }
    }
}

async fn gather(shared: &Shared, epoch: holdfast_types::Epoch) -> OsdReport {
    let mut pgs = Vec::new();
    for index in 0..shared.shards.count() {
        let (reply, answer) = oneshot::channel();
        shared.shards.send_to(index, Event::Report { reply });
        // A shard that has stopped drops the sender; the run is ending then.
        pgs.extend(answer.await.unwrap_or_default());
    }
    OsdReport {
        osd: shared.osd,
        incarnation: shared.incarnation,
        epoch,
        usage: space::usage(shared.store.engine()),
        pgs,
        checksum_errors: shared.counters.damage().0,
        repaired: shared.counters.damage().1,
        copies_lost: Some(shared.counters.copies_lost()).filter(|lost| *lost > 0),
    }
}
