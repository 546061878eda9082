//! Keeps the newest map.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_map::ClusterMap;
use holdfast_net::mon_session::{MonSession, MonSessionError};
use holdfast_types::{ClusterId, Epoch};
use holdfast_wire::mon::{MapUpdate, MonCommand, MonReply};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use crate::core::{FollowError, MapView, follow};
use crate::osds::Osds;

/// How long a wanted map may take to come by the subscription before it is asked for. Also the least time between two
/// such questions, however many ops want maps.
const ASK_AFTER: Duration = Duration::from_millis(200);
/// After this, whoever waits for a map wants it again.
const WANT_AGAIN: Duration = Duration::from_secs(1);
/// How long one such question is tried.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The newest map, and where newer ones come from.
pub(crate) struct Follower {
    mons: MonSession,
    maps: watch::Sender<Arc<MapView>>,
    /// Held while the next map is made from the present one.
    applying: Mutex<()>,
    wanted: AtomicU64,
    wish: Notify,
}

impl Follower {
    pub(crate) fn new(mons: MonSession, cluster: ClusterId) -> Follower {
        let none = Arc::new(MapView::new(ClusterMap::empty(cluster)));
        Follower {
            mons,
            maps: watch::Sender::new(none),
            applying: Mutex::new(()),
            wanted: AtomicU64::new(0),
            wish: Notify::new(),
        }
    }

    /// The newest map, and those to come.
    pub(crate) fn maps(&self) -> watch::Receiver<Arc<MapView>> {
        self.maps.subscribe()
    }

    pub(crate) fn view(&self) -> Arc<MapView> {
        Arc::clone(&self.maps.borrow())
    }

    fn epoch(&self) -> Epoch {
        self.maps.borrow().map().epoch
    }

    /// Somebody waits for a map of this epoch. It is asked for once; whoever still waits then wants it again.
    pub(crate) fn want(&self, epoch: Epoch) {
        if self.epoch() < epoch {
            self.wanted.fetch_max(epoch.0, Ordering::Relaxed);
            self.wish.notify_one();
        }
    }

    /// Waits for a map of at least this epoch.
    pub(crate) async fn reach(&self, epoch: Epoch) {
        let mut maps = self.maps.subscribe();
        let reached = |view: &Arc<MapView>| view.map().epoch >= epoch;
        loop {
            self.want(epoch);
            // The sender is `self`: it cannot go away. A monitor that lags may not have the map yet.
            if tokio::time::timeout(WANT_AGAIN, maps.wait_for(reached)).await.is_ok() {
                return;
            }
        }
    }

    /// Asks for what is newer than the present map.
    pub(crate) async fn refresh(&self, limit: Duration) -> Result<(), MonSessionError> {
        self.ask(MonCommand::GetMaps { after: self.epoch() }, limit).await
    }

    async fn ask(&self, command: MonCommand, limit: Duration) -> Result<(), MonSessionError> {
        match self.mons.execute_within(command, limit).await? {
            MonReply::Maps(update) => {
                if let Err(error) = self.apply(&update) {
                    tracing::warn!(%error, "the map that was asked for does not fit");
                }
            }
            MonReply::Failed(error) => tracing::debug!(%error, "the monitors have no such map"),
            _ => tracing::warn!("the monitors answered something else than maps"),
        }
        Ok(())
    }

    fn apply(&self, update: &MapUpdate) -> Result<(), FollowError> {
        let _applying = self.applying.lock();
        let held = self.view();
        if let Some(newer) = follow(held.map(), update)? {
            tracing::debug!(epoch = %newer.epoch, "new map");
            self.mons.learn_addresses(newer.mons.values().cloned());
            self.maps.send_replace(Arc::new(MapView::new(newer)));
        }
        Ok(())
    }

    /// Applies an update of the subscription; asks for the full map when it does not fit.
    async fn take(&self, update: &MapUpdate) {
        let wanted = match self.apply(update) {
            Ok(()) => return,
            Err(FollowError::NeedFull { epoch, source }) => {
                tracing::warn!(%epoch, reason = %source, "increment does not fit, asking for the full map");
                MonCommand::GetFullMap { epoch }
            }
            Err(error @ (FollowError::Decode(_) | FollowError::OtherCluster)) => {
                tracing::warn!(%error, "map update dropped");
                MonCommand::GetMaps { after: self.epoch() }
            }
        };
        if let Err(error) = self.ask(wanted, ASK_TIMEOUT).await {
            tracing::warn!(%error, "cannot get the full map");
        }
    }

    /// Follows until cancelled by being dropped.
    pub(crate) async fn run(self: Arc<Self>, osds: Arc<Osds>) {
        let (sender, mut updates) = mpsc::channel(16); // a slow follower is sent larger steps, not more of them
        let subscription = self.mons.follow(|| self.epoch(), sender);
        let apply = async {
            while let Some(update) = updates.recv().await {
                self.take(&update).await;
                osds.follow(self.view().map());
            }
        };
        let ask = async {
            loop {
                self.wish.notified().await;
                tokio::time::sleep(ASK_AFTER).await;
                if self.epoch().0 < self.wanted.load(Ordering::Relaxed) {
                    if let Err(error) = self.refresh(ASK_TIMEOUT).await {
                        tracing::debug!(%error, "cannot ask for newer maps");
                    }
                    osds.follow(self.view().map());
                }
            }
        };
        tokio::join!(subscription, apply, ask);
    }
}
