//! What the placement groups want of the monitors, gathered and sent in batches until the map shows it.
//!
//! A wish is never answered by the reply to a command, only by a map: a reply can be lost, a map cannot lie. So each
//! wish is repeated until the map that this daemon holds fulfils it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_net::mon_session::MonSession;
use holdfast_types::{Epoch, Incarnation, OsdId, PgId};
use holdfast_wire::mon::{MonCommand, MonReply, PgTempWish};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How long wishes gather before they are sent: peering of many placement groups becomes one command, and the delay
/// stays far below the round trip to a Raft commit on another disk.
const GATHER: Duration = Duration::from_millis(5);
/// Pause before an unfulfilled wish is sent again.
const REPEAT: Duration = Duration::from_millis(250);

/// Wishes for acting sets in one command: below 100 KiB, and the monitors take 256 KiB.
const WISHES_MAX: usize = 1_000;

#[derive(Debug, Default)]
struct Wanted {
    up_thru: Epoch,
    pg_temp: BTreeMap<PgId, PgTempWish>,
    map: Epoch,
}

/// The wishes of one run.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    wanted: Mutex<Wanted>,
    changed: Notify,
}

impl Wishes {
    /// This daemon is about to go active as a primary in an interval that began at this epoch.
    pub(crate) fn want_up_thru(&self, at_least: Epoch) {
        let mut wanted = self.wanted.lock();
        if wanted.up_thru < at_least {
            wanted.up_thru = at_least;
            self.changed.notify_one();
        }
    }

    /// A placement group wants this acting set for now; empty: the one of the map's placement.
    pub(crate) fn want_pg_temp(&self, wish: PgTempWish) {
        self.wanted.lock().pg_temp.insert(wish.pg, wish);
        self.changed.notify_one();
    }

    /// Somebody speaks of this epoch already.
    pub(crate) fn want_map(&self, epoch: Epoch) {
        let mut wanted = self.wanted.lock();
        if wanted.map < epoch {
            wanted.map = epoch;
            self.changed.notify_one();
        }
    }

    /// What the map at hand does not fulfil. Fulfilled wishes are forgotten.
    fn open(&self, osd: OsdId, map: &ClusterMap) -> (Option<Epoch>, Vec<PgTempWish>, Option<Epoch>) {
        let mut wanted = self.wanted.lock();
        let reached = map.osds.get(&osd).map_or(Epoch::ZERO, |info| info.up_thru);
        let up_thru = (wanted.up_thru > reached).then_some(wanted.up_thru);
        wanted.pg_temp.retain(|pg, wish| match map.pg_temp.get(pg) {
            Some(present) => *present != wish.acting,
            None => !wish.acting.is_empty(),
        });
        // A wish of another interval, or for a placement group that this daemon no longer leads: its primary decides anew.
        // One for what is so already is fulfilled: the map keeps none for the placement that there is anyhow. One that names
        // an OSD that was removed never will be.
        wanted.pg_temp.retain(|pg, wish| {
            let acting = map.members(*pg).acting;
            let is_present = acting.first() == Some(&osd) && wish.seen.as_ref().is_none_or(|seen| *seen == acting);
            let possible = wish.acting != acting && wish.acting.iter().all(|osd| map.osds.contains_key(osd));
            is_present && possible
        });
        let pg_temp = wanted.pg_temp.values().cloned().collect();
        (up_thru, pg_temp, (wanted.map > map.epoch).then_some(wanted.map))
    }
}

/// Sends open wishes until `stop`.
pub(crate) async fn fulfil(
    wishes: Arc<Wishes>,
    session: MonSession,
    osd: OsdId,
    incarnation: Incarnation,
    mut map: watch::Receiver<Arc<ClusterMap>>,
    maps_wanted: tokio::sync::mpsc::Sender<Epoch>,
    stop: CancellationToken,
) {
    loop {
        let (up_thru, pg_temp, newer) = {
            let present = map.borrow_and_update().clone();
            wishes.open(osd, &present)
        };
        let idle = up_thru.is_none() && pg_temp.is_empty() && newer.is_none();
        if let Some(epoch) = newer {
            // The map task asks; a full queue means that it is already asking.
            let _ = maps_wanted.try_send(epoch);
        }
        if let Some(at_least) = up_thru {
            send(&session, MonCommand::UpThru { osd, incarnation, at_least }).await;
        }
        for wishes in pg_temp.chunks(WISHES_MAX) {
            send(&session, MonCommand::PgTemp { osd, incarnation, wishes: wishes.to_vec() }).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = wishes.changed.notified() => tokio::time::sleep(GATHER).await,
            changed = map.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(REPEAT), if !idle => {}
        }
    }
}

async fn send(session: &MonSession, command: MonCommand) {
    match session.execute(command).await {
        Ok(MonReply::Failed(error)) => warn!(%error, "the monitors refused a placement group's wish"),
        Ok(_) => {}
        Err(error) => debug!(%error, "the monitors did not answer; the wish is repeated"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_map::{OsdInfo, Pool, PoolKind};
    use holdfast_types::{ClusterId, DiskUuid, PoolId};

    #[test]
    fn a_wish_that_is_fulfilled_or_never_can_be_does_not_keep_the_others() {
        let wishes = Wishes::default();
        let mut map = ClusterMap::empty(ClusterId([1; 16]));
        map.epoch = Epoch(1);
        for id in 0..3 {
            let info = OsdInfo {
                disk: DiskUuid([id as u8 + 1; 16]),
                incarnation: Incarnation(1),
                address: String::new(),
                up: true,
                in_cluster: true,
                reweight: 0x1_0000,
                up_from: Epoch(1),
                up_thru: Epoch(0),
                down_at: Epoch(0),
                dead_epoch: Epoch(0),
                formatted_at: Epoch(0),
            };
            map.osds.insert(OsdId(id), info);
        }
        let pg = |seed| PgId { pool: PoolId(1), seed };
        let (kind, name) = (PoolKind::Replicated { size: 3, min_size: 2 }, "pool".to_owned());
        let application = "test".to_owned();
        map.pools.insert(PoolId(1), Pool { name, kind, pg_num: 4, rule: 0, created: Epoch(1), application });
        let osds = |ids: [u32; 2]| ids.into_iter().map(OsdId).collect::<Vec<_>>();
        for seed in 0..3 {
            map.pg_temp.insert(pg(seed), osds([0, 1]));
        }
        wishes.want_pg_temp(PgTempWish { pg: pg(0), acting: osds([1, 0]), seen: None });
        wishes.want_pg_temp(PgTempWish { pg: pg(1), acting: osds([0, 1]), seen: None });
        wishes.want_pg_temp(PgTempWish { pg: pg(2), acting: osds([0, 9]), seen: None });
        let open = wishes.open(OsdId(0), &map).1;
        assert_eq!(open, [PgTempWish { pg: pg(0), acting: osds([1, 0]), seen: None }]);
        // One that is down is left out of the members, so what the map shows is what was wanted.
        map.pg_temp.insert(pg(0), vec![OsdId(1), OsdId(2), OsdId(0)]);
        if let Some(info) = map.osds.get_mut(&OsdId(2)) {
            info.up = false;
        }
        assert_eq!(map.members(pg(0)).acting, osds([1, 0]));
        assert_eq!(wishes.open(OsdId(0), &map).1, []);
    }

    #[test]
    fn a_wish_stays_open_until_the_map_shows_it() {
        let wishes = Wishes::default();
        let mut map = ClusterMap::empty(ClusterId([1; 16]));
        wishes.want_up_thru(Epoch(4));
        wishes.want_map(Epoch(3));
        assert_eq!(wishes.open(OsdId(0), &map), (Some(Epoch(4)), vec![], Some(Epoch(3))));
        map.epoch = Epoch(3);
        assert_eq!(wishes.open(OsdId(0), &map).2, None);
        wishes.want_up_thru(Epoch(2));
        assert_eq!(wishes.open(OsdId(0), &map).0, Some(Epoch(4)), "a smaller wish does not replace a larger one");
    }
}
