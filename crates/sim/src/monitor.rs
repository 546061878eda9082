//! The monitors: the production state machine (`holdfast-mon-state`) behind a log.
//!
//! Maps come from committed commands alone, exactly as in production. What is simple is the log: one leader appends encoded
//! commands in order, nothing is lost and nothing forks.

use std::sync::Arc;

use holdfast_map::ClusterMap;
use holdfast_mon_state::{Change, Command, Op, Outcome, State};
use holdfast_osd::parts::MapStep;
use holdfast_types::{DiskUuid, Epoch, Incarnation, OsdId, PgId, PoolId, Timestamp};
use holdfast_wire::mon::{LocationStep, MonCommand, MonReply};

use crate::config::Config;
use crate::disk::CLUSTER;

/// The one pool.
pub(crate) const POOL: PoolId = PoolId(1);
/// The wall clock at the start of a run, in Unix milliseconds.
const WALL_CLOCK_MS: u64 = 1_800_000_000_000;

#[derive(Debug)]
pub(crate) struct Monitor {
    state: State,
    /// Committed commands, encoded.
    log: Vec<Vec<u8>>,
    /// All maps, from the empty one at epoch 0 on.
    steps: Vec<Arc<MapStep>>,
}

/// A device as it registers.
fn disk_uuid(osd: u32) -> DiskUuid {
    DiskUuid([osd as u8 + 1; 16])
}

impl Monitor {
    /// A cluster of registered OSDs, none of which has booted, and one pool.
    pub fn new(config: &Config) -> Result<Monitor, String> {
        let state = State::new(CLUSTER);
        let first = MapStep::new(Arc::clone(state.map()));
        let mut monitor = Monitor { state, log: Vec::new(), steps: vec![first] };
        for osd in 0..config.osds {
            let host = LocationStep { kind: "host".to_owned(), name: format!("host-{osd}") };
            monitor.request(
                Timestamp::ZERO,
                MonCommand::OsdRegister {
                    disk: disk_uuid(osd),
                    location: vec![host],
                    class: None,
                    capacity_bytes: 1 << 40,
                    wanted: Some(OsdId(osd)),
                    blank: Some(true),
                },
            )?;
        }
        monitor.request(
            Timestamp::ZERO,
            MonCommand::PoolCreate {
                name: "sim".to_owned(),
                size: Some(config.size),
                min_size: Some(config.min_size),
                application: "sim".to_owned(),
                failure_domain: Some("host".to_owned()),
                share_percent: Some(1),
            },
        )?;
        Ok(monitor)
    }

    /// Commits changes: at most one new map.
    pub fn commit(&mut self, now: Timestamp, changes: Vec<Change>) -> Result<Outcome, String> {
        let at_unix_ms = WALL_CLOCK_MS + now.as_nanos() / 1_000_000;
        let ops = changes.into_iter().map(|change| Op { id: None, change }).collect();
        let encoded = Command { at_unix_ms, ops }.encode();
        let command = Command::decode(&encoded).map_err(|error| format!("M0: a command cannot be decoded: {error}"))?;
        self.log.push(encoded);
        let before = Arc::clone(self.state.map());
        let outcome = self.state.apply(self.log.len() as u64, &command);
        if self.state.map().epoch > before.epoch {
            self.check_increment(&before)?;
            self.steps.push(MapStep::new(Arc::clone(self.state.map())));
        }
        Ok(outcome)
    }

    /// Whoever holds the map before makes the same one of what the monitors send it.
    fn check_increment(&self, before: &ClusterMap) -> Result<(), String> {
        let update = self.state.maps_since(before.epoch);
        let mut held = before.clone();
        if before.epoch > Epoch::ZERO {
            for encoded in &update.increments {
                let increment = holdfast_map::Increment::decode(encoded).map_err(|error| format!("M1: {error}"))?;
                held = held.apply(&increment).map_err(|error| format!("M1: {error}"))?;
            }
            if held != **self.state.map() {
                return Err(format!("M1: the increment to {} makes another map", self.state.map().epoch));
            }
        }
        Ok(())
    }

    /// A command from outside; gives its answer.
    pub fn request(&mut self, now: Timestamp, command: MonCommand) -> Result<MonReply, String> {
        let outcome = self.commit(now, vec![Change::Request(command)])?;
        outcome.replies.into_iter().next().ok_or_else(|| "M0: a command got no answer".to_owned())
    }

    pub fn newest(&self) -> &Arc<MapStep> {
        self.steps.last().expect("the map before the first is always there")
    }

    pub fn map(&self) -> &Arc<ClusterMap> {
        &self.newest().map
    }

    pub fn step(&self, epoch: Epoch) -> Option<&Arc<MapStep>> {
        self.steps.get(usize::try_from(epoch.0).ok()?)
    }

    /// The run of an OSD that the newest map shows up.
    pub fn runs_as(&self, osd: OsdId) -> Option<Incarnation> {
        self.map().osds.get(&osd).filter(|info| info.up).map(|info| info.incarnation)
    }

    /// What an OSD says when it starts.
    pub fn boot(osd: OsdId, incarnation: Incarnation) -> MonCommand {
        MonCommand::OsdBoot { osd, disk: disk_uuid(osd.0), incarnation, address: format!("host-{}:6800", osd.0) }
    }

    pub fn pgs(&self) -> Vec<PgId> {
        self.map().pgs().collect()
    }
}
