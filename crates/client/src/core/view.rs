//! A map, and whom it says to send to.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use holdfast_map::ClusterMap;
use holdfast_types::{Incarnation, ObjectName, OsdId, PgId, PoolId};
use parking_lot::Mutex;

/// Whom to send an op to, and what must stay the same for the op to stay there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The placement group.
    pub pg: PgId,
    /// The acting set with its runs, primary first. Another acting set under the same primary is a new interval, in
    /// which the primary may have forgotten the op.
    pub acting: Vec<(OsdId, Incarnation)>,
    /// Where the primary listens, `host:port`.
    pub address: String,
}

impl Target {
    /// The primary and its run.
    ///
    /// # Panics
    /// Never: [`MapView::target`] gives no target without a primary.
    #[must_use]
    pub fn primary(&self) -> (OsdId, Incarnation) {
        *self.acting.first().expect("a target has a primary")
    }
}

/// Why there is nobody to send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTarget {
    /// The pool is gone.
    NoPool,
    /// No OSD of the placement group is up.
    NoPrimary,
}

/// A map that remembers what placement said: CRUSH is asked once per placement group and map, not per op.
#[derive(Debug)]
pub struct MapView {
    map: ClusterMap,
    targets: Mutex<BTreeMap<PgId, Result<Arc<Target>, NoTarget>>>,
    has_leaderless: OnceLock<bool>,
}

impl MapView {
    /// A view of `map`.
    #[must_use]
    pub fn new(map: ClusterMap) -> MapView {
        MapView { map, targets: Mutex::default(), has_leaderless: OnceLock::new() }
    }

    /// The map.
    #[must_use]
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// Whom to send an op on `object` to.
    ///
    /// # Errors
    /// [`NoTarget`].
    pub fn target(&self, pool: PoolId, object: &ObjectName) -> Result<Arc<Target>, NoTarget> {
        let pg = self.map.pg_of(pool, object).ok_or(NoTarget::NoPool)?;
        self.targets.lock().entry(pg).or_insert_with(|| self.place(pg).map(Arc::new)).clone()
    }

    /// Whether a placement group has no OSD that is up.
    #[must_use]
    pub fn has_leaderless(&self) -> bool {
        *self.has_leaderless.get_or_init(|| {
            let all_up = self.map.osds.values().all(|info| info.up);
            !all_up && self.map.members_of_all().iter().any(|(_, members)| members.acting.is_empty())
        })
    }

    fn place(&self, pg: PgId) -> Result<Target, NoTarget> {
        let members = self.map.members(pg);
        let with_run = |osd: &OsdId| self.map.osds.get(osd).map(|info| (*osd, info.incarnation));
        let acting: Vec<(OsdId, Incarnation)> = members.acting.iter().filter_map(with_run).collect();
        let primary = acting.first().ok_or(NoTarget::NoPrimary)?.0;
        let address = self.map.osds.get(&primary).ok_or(NoTarget::NoPrimary)?.address.clone();
        Ok(Target { pg, acting, address })
    }
}
