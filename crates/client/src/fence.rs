//! Fencing: taking over what another client was using.
//!
//! The monitors commit the fence as an entry of the map's blocklist, at epoch E. It holds once nobody can serve the fenced
//! session by an older map: each OSD that is up is asked (a [`Barrier`]), and one that does not answer is waited for until a
//! map shows that this run of it is over. A primary that is not up cannot commit once one of those under it is in a newer
//! interval. That one has been heard when the placement group has peered; until then all of them may be cut off together,
//! and the session with them, and serve it: so a placement group that has not peered holds a fence up
//! (`docs/invariants.md`, X1).

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use holdfast_net::Message;
use holdfast_types::{ClientId, Epoch, Incarnation, OsdId};
use holdfast_wire::mon::{MonCommand, MonReply};
use holdfast_wire::{Barrier, BarrierReached, Kind, decode, encode};

use crate::client::Client;
use crate::core::MapView;
use crate::error::ClientError;

/// How long one question to an OSD waits. It is asked again then: its connection may have been lost without a sign.
const ASK_FOR: Duration = Duration::from_secs(2);
/// Least time between two questions to one OSD.
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl Client {
    /// Fences all runs of a client up to `incarnation`: returns when nothing that they send is begun any more, with the
    /// epoch of the fence. What they began before is ordered before whatever is asked after this returns.
    ///
    /// # Errors
    /// [`ClientError::NotFencedYet`] when an OSD that is up has not confirmed within `limit`, or one that is down may serve
    /// on where nobody else serves: the fence is in the map and will hold, but does not surely hold yet. Ask again. Those of [`Client::mon_command`] else.
    pub async fn fence(
        &self,
        client: ClientId,
        incarnation: Incarnation,
        limit: Duration,
    ) -> Result<Epoch, ClientError> {
        let deadline = Instant::now() + limit;
        let epoch = match self.mon_command(MonCommand::BlocklistAdd { client, incarnation }).await? {
            MonReply::Done { epoch } => epoch,
            _ => return Err(ClientError::UnexpectedReply),
        };
        self.barrier(epoch, deadline).await.map_err(|waiting| ClientError::NotFencedYet { after: limit, waiting })?;
        Ok(epoch)
    }

    /// Returns when nothing can be begun by a map older than `epoch`; else who may, when the time is over. Empty: this
    /// client has no such map itself.
    ///
    /// In rounds: all that are up in one map say that they act by that one, and that all that they lead has peered. When all
    /// of them speak of the same map, each placement group has been spoken for.
    async fn barrier(&self, mut epoch: Epoch, deadline: Instant) -> Result<(), BTreeSet<OsdId>> {
        let mut maps = self.follower().maps();
        loop {
            let reached = tokio::time::timeout_at(deadline.into(), self.follower().reach(epoch)).await;
            if reached.is_err() {
                return Err(BTreeSet::new());
            }
            let view = self.follower().view();
            epoch = view.map().epoch;
            if view.has_leaderless() {
                // Nobody speaks for it. Who led it may be gone, or only be out of sight of the monitors.
                let down = view.map().osds.iter().filter(|(_, info)| !info.up).map(|(osd, _)| *osd).collect();
                let newer = maps.wait_for(|view| view.map().epoch > epoch);
                match tokio::time::timeout_at(deadline.into(), newer).await {
                    Ok(_) => continue,
                    Err(_) => return Err(down),
                }
            }
            let farthest = self.round(&view, deadline).await?;
            if farthest == Some(epoch) && self.follower().view().map().epoch == epoch {
                return Ok(());
            }
            epoch = epoch.max(farthest.unwrap_or(epoch));
        }
    }

    /// Waits until each OSD that is up in a map has said that it acts by that one or a newer one, or its run is over: gives
    /// the newest that one of them acts by, or nothing when a run is over. Else who has not, when the time is over.
    async fn round(&self, view: &MapView, deadline: Instant) -> Result<Option<Epoch>, BTreeSet<OsdId>> {
        let epoch = view.map().epoch;
        let up = view.map().osds.iter().filter(|(_, info)| info.up);
        let runs: Vec<(OsdId, Incarnation)> = up.map(|(osd, info)| (*osd, info.incarnation)).collect();
        let mut waiting: BTreeSet<OsdId> = runs.iter().map(|(osd, _)| *osd).collect();
        let ask = |(osd, run)| async move { (osd, self.reached_by(osd, run, epoch).await) };
        let mut asked: FuturesUnordered<_> = runs.into_iter().map(ask).collect();
        let mut time_over = pin!(tokio::time::sleep_until(deadline.into()));
        let mut farthest = Some(epoch);
        loop {
            tokio::select! {
                biased;
                answer = asked.next() => match answer {
                    Some((osd, reached)) => {
                        waiting.remove(&osd);
                        farthest = farthest.zip(reached).map(|(farthest, reached)| farthest.max(reached));
                    }
                    None => return Ok(farthest),
                },
                () = &mut time_over => return Err(waiting),
            }
        }
    }

    /// Waits until this run of an OSD has said that it is as far and has peered what it leads, and gives how far it is; or
    /// until the run is over.
    async fn reached_by(&self, osd: OsdId, run: Incarnation, epoch: Epoch) -> Option<Epoch> {
        let mut maps = self.follower().maps();
        let over =
            |view: &Arc<MapView>| view.map().osds.get(&osd).is_none_or(|info| !info.up || info.incarnation != run);
        let ask = async {
            loop {
                let began = Instant::now();
                let answer = self.ask_barrier(osd, run, epoch).await;
                let settled = answer.filter(|answer| answer.epoch >= epoch && answer.unsettled.unwrap_or(0) == 0);
                if let Some(answer) = settled {
                    return answer.epoch;
                }
                tokio::time::sleep_until((began + ASK_AGAIN).into()).await;
            }
        };
        tokio::select! {
            reached = ask => Some(reached),
            // The follower lives as long as this client, so the maps do not end.
            _ = maps.wait_for(over) => None,
        }
    }

    async fn ask_barrier(&self, osd: OsdId, run: Incarnation, epoch: Epoch) -> Option<BarrierReached> {
        let view = self.follower().view();
        let info = view.map().osds.get(&osd).filter(|info| info.incarnation == run)?;
        let peer = self.osds().peer_of(osd, run, &info.address);
        let encoded = encode(&Barrier { epoch });
        let message = Message::new(Kind::Barrier as u16, encoded.body, encoded.payload);
        let answer = match peer.request(message, Instant::now() + ASK_FOR).await {
            Ok(answer) if answer.kind == Kind::BarrierReached as u16 => answer,
            Ok(answer) => {
                tracing::warn!(%osd, kind = answer.kind, "the answer to a barrier is none");
                return None;
            }
            Err(error) => {
                tracing::debug!(%osd, %error, "barrier not answered");
                return None;
            }
        };
        match decode::<BarrierReached>(answer.kind, &answer.body, &answer.payload()) {
            Ok(reached) => Some(reached),
            Err(error) => {
                tracing::warn!(%osd, %error, "the answer to a barrier cannot be read");
                None
            }
        }
    }
}
