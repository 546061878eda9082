//! Connections to OSDs: at most a few for each, made when needed, given up when the map says that the run is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_map::ClusterMap;
use holdfast_net::{Endpoint, NoHandler, Peer, PeerIdentity, PeerMode};
use holdfast_types::{Incarnation, OsdId};
use parking_lot::Mutex;

use crate::core::Target;

/// The peers that ops are sent to.
pub(crate) struct Osds {
    endpoint: Arc<Endpoint>,
    lanes: usize,
    runs: Mutex<BTreeMap<OsdId, Run>>,
}

struct Run {
    incarnation: Incarnation,
    address: String,
    lanes: Vec<Peer>,
}

impl Osds {
    pub(crate) fn new(endpoint: Arc<Endpoint>, lanes: usize) -> Osds {
        Osds { endpoint, lanes: lanes.max(1), runs: Mutex::default() }
    }

    /// The peer for ops on the target's placement group.
    pub(crate) fn peer(&self, target: &Target) -> Peer {
        let (osd, incarnation) = target.primary();
        self.lane(osd, incarnation, &target.address, target.pg.seed as usize)
    }

    /// A peer for what concerns a whole OSD.
    pub(crate) fn peer_of(&self, osd: OsdId, incarnation: Incarnation, address: &str) -> Peer {
        self.lane(osd, incarnation, address, 0)
    }

    fn lane(&self, osd: OsdId, incarnation: Incarnation, address: &str, lane: usize) -> Peer {
        let mut runs = self.runs.lock();
        let run = runs.entry(osd).or_insert_with(|| self.connect(osd, incarnation, address));
        // An op that still looks at an older map must not tear down the connection to the newer run; it is refused by
        // the address or the incarnation that it names itself.
        if run.incarnation < incarnation || (run.incarnation == incarnation && run.address != address) {
            *run = self.connect(osd, incarnation, address);
        }
        run.lanes[lane % run.lanes.len()].clone()
    }

    fn connect(&self, osd: OsdId, incarnation: Incarnation, address: &str) -> Run {
        let lane = |_| {
            let target = holdfast_net::Target {
                address: address.to_owned(),
                identity: Some(PeerIdentity::Osd(osd)),
                incarnation: Some(incarnation),
            };
            Peer::new(&self.endpoint, target, PeerMode::OnDemand, Arc::new(NoHandler))
        };
        Run { incarnation, address: address.to_owned(), lanes: (0..self.lanes).map(lane).collect() }
    }

    /// Gives up what `map` says is over. Ops in flight there are told by the loss of their connection, if the map has not
    /// moved them already.
    pub(crate) fn follow(&self, map: &ClusterMap) {
        self.runs.lock().retain(|osd, run| {
            let current = map.osds.get(osd);
            current.is_some_and(|info| info.up && info.incarnation <= run.incarnation)
        });
    }
}
