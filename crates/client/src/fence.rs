//! Fencing: taking over what another client was using.
//!
//! The monitors commit the fence as an entry of the map's blocklist, at epoch E. It holds once every OSD that could serve
//! the fenced session by an older map has E: each OSD that is up is asked (a [`Barrier`]), and one that does not answer is
//! waited for until a map shows that this run of it is over. An old primary that nobody hears cannot commit: its replicas
//! are in a newer interval (`docs/invariants.md`, X1).

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
    /// [`ClientError::NotFencedYet`] when an OSD that is up has not confirmed within `limit`: the fence is in the map and
    /// will hold, but does not surely hold yet. Ask again. Those of [`Client::mon_command`] else.
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

    /// Returns when no OSD acts by a map older than `epoch`; else who may, when the time is over. Empty: this client has
    /// no such map itself.
    async fn barrier(&self, epoch: Epoch, deadline: Instant) -> Result<(), BTreeSet<OsdId>> {
        let reached = tokio::time::timeout_at(deadline.into(), self.follower().reach(epoch)).await;
        if reached.is_err() {
            return Err(BTreeSet::new());
        }
        let view = self.follower().view();
        let up = view.map().osds.iter().filter(|(_, info)| info.up);
        let runs: Vec<(OsdId, Incarnation)> = up.map(|(osd, info)| (*osd, info.incarnation)).collect();
        let mut waiting: BTreeSet<OsdId> = runs.iter().map(|(osd, _)| *osd).collect();
        let ask = |(osd, run)| async move {
            self.reached_by(osd, run, epoch).await;
            osd
        };
        let mut asked: FuturesUnordered<_> = runs.into_iter().map(ask).collect();
        let mut time_over = pin!(tokio::time::sleep_until(deadline.into()));
        loop {
            tokio::select! {
                biased;
                osd = asked.next() => match osd {
                    Some(osd) => {
                        waiting.remove(&osd);
                    }
                    None => return Ok(()),
                },
                () = &mut time_over => return Err(waiting),
            }
        }
    }

    /// Waits until this run of an OSD has said that it is as far, or is over.
    async fn reached_by(&self, osd: OsdId, run: Incarnation, epoch: Epoch) {
        let mut maps = self.follower().maps();
        let over =
            |view: &Arc<MapView>| view.map().osds.get(&osd).is_none_or(|info| !info.up || info.incarnation != run);
        let ask = async {
            loop {
                let began = Instant::now();
                if self.ask_barrier(osd, run, epoch).await.is_some_and(|reached| reached >= epoch) {
                    return;
                }
                tokio::time::sleep_until((began + ASK_AGAIN).into()).await;
            }
        };
        tokio::select! {
            () = ask => {}
            // The follower lives as long as this client, so the maps do not end.
            _ = maps.wait_for(over) => {}
        }
    }

    async fn ask_barrier(&self, osd: OsdId, run: Incarnation, epoch: Epoch) -> Option<Epoch> {
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
            Ok(reached) => Some(reached.epoch),
            Err(error) => {
                tracing::warn!(%osd, %error, "the answer to a barrier cannot be read");
                None
            }
        }
    }
}
