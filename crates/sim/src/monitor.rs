//! The monitors: the production state machine (`holdfast-mon-state`) behind a log.
//!
//! Maps come from committed commands alone, exactly as in production; what is proposed without being asked is the judgement
//! of the production `Leader`. What is simple is the log: one leader at a time appends encoded commands in order, nothing is
//! lost and nothing forks. When leaders change, the next one starts from a snapshot, with an empty memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_map::ClusterMap;
use holdfast_mon_state::leader::{Due, Leader, ProbeResult, Quorum, Verdict};
use holdfast_mon_state::{Change, Command, Op, Outcome, State};
use holdfast_osd::parts::MapStep;
use holdfast_types::{DiskUuid, Epoch, Incarnation, MonId, OsdId, PgId, PoolId, Timestamp};
use holdfast_wire::mon::{
    FailureKind, LocationStep, MapUpdate, MonCommand, MonReply, OsdReport, StatusReport, Subject,
};

use crate::config::Config;
use crate::disk::CLUSTER;

/// The one pool.
pub(crate) const POOL: PoolId = PoolId(1);
/// The wall clock at the start of a run, in Unix milliseconds.
pub(crate) const WALL_CLOCK_MS: u64 = 1_800_000_000_000;

#[derive(Debug)]
pub(crate) struct Monitor {
    state: State,
    leader: Leader,
    /// Committed commands, encoded.
    log: Vec<Vec<u8>>,
    /// All maps, from the empty one at epoch 0 on.
    steps: Vec<Arc<MapStep>>,
}

/// The monitors' wall clock.
fn unix_ms(now: Timestamp) -> u64 {
    WALL_CLOCK_MS + now.as_nanos() / 1_000_000
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
        let leader = Leader::new(Timestamp::ZERO, state.map());
        let mut monitor = Monitor { state, leader, log: Vec::new(), steps: vec![first] };
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
        if let Some(bytes) = config.split_bytes_min {
            let option = ("pg_split_bytes_min".to_owned(), Some(bytes.to_string()));
            monitor.request(Timestamp::ZERO, MonCommand::ConfigSet { name: option.0, value: option.1 })?;
        }
        Ok(monitor)
    }

    /// Commits changes: at most one new map.
    pub fn commit(&mut self, now: Timestamp, changes: Vec<Change>) -> Result<Outcome, String> {
        let at_unix_ms = unix_ms(now);
        let ops = changes.into_iter().map(|change| Op { id: None, change }).collect();
        let encoded = Command { at_unix_ms, ops, seen: Some(self.state.mark()) }.encode();
        let command = Command::decode(&encoded).map_err(|error| format!("Q6: a command cannot be decoded: {error}"))?;
        self.log.push(encoded);
        let before = Arc::clone(self.state.map());
        let outcome = self.state.apply(self.log.len() as u64, &command);
        if self.state.map().epoch > before.epoch {
            self.check_increment(&before)?;
            self.leader.observe(now, self.state.map());
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
                let increment = holdfast_map::Increment::decode(encoded).map_err(|error| format!("Q7: {error}"))?;
                held = held.apply(&increment).map_err(|error| format!("Q7: {error}"))?;
            }
            if held != **self.state.map() {
                return Err(format!("Q7: the increment to {} makes another map", self.state.map().epoch));
            }
        }
        Ok(())
    }

    /// A command from outside; gives its answer.
    pub fn request(&mut self, now: Timestamp, command: MonCommand) -> Result<MonReply, String> {
        let outcome = self.commit(now, vec![Change::Request(command)])?;
        outcome.replies.into_iter().next().ok_or_else(|| "Q6: a command got no answer".to_owned())
    }

    pub fn newest(&self) -> &Arc<MapStep> {
        self.steps.last().expect("the map before the first is always there")
    }

    pub fn map(&self) -> &Arc<ClusterMap> {
        &self.newest().map
    }

    /// What a subscription brings who holds the map of this epoch.
    pub fn maps_since(&self, after: Epoch) -> MapUpdate {
        self.state.maps_since(after)
    }

    pub fn step(&self, epoch: Epoch) -> Option<&Arc<MapStep>> {
        self.steps.get(usize::try_from(epoch.0).ok()?)
    }

    /// What an OSD says when it starts.
    pub fn boot(osd: OsdId, incarnation: Incarnation) -> MonCommand {
        let address = format!("host-{}:6800", osd.0);
        MonCommand::OsdBoot { osd, disk: disk_uuid(osd.0), incarnation, address, can_split: Some(true) }
    }

    // ---- the leader ----

    pub fn report(&mut self, now: Timestamp, report: OsdReport) {
        // A stale one is answered so; the OSD reports again in any case.
        let _stale = self.leader.on_report(now, self.state.map(), report);
    }

    pub fn alive(&mut self, reporter: OsdId, target: OsdId) {
        self.leader.on_alive(reporter, target);
    }

    pub fn failure(
        &mut self,
        now: Timestamp,
        reporter: OsdId,
        target: OsdId,
        incarnation: Incarnation,
        kind: FailureKind,
    ) -> Verdict {
        self.leader.on_failure(now, self.state.map(), reporter, target, incarnation, kind)
    }

    pub fn probed(&mut self, now: Timestamp, osd: OsdId, run: Incarnation, result: ProbeResult) -> Option<Change> {
        self.leader.on_probe(now, self.state.map(), osd, run, result)
    }

    pub fn due(&mut self, now: Timestamp) -> Vec<Due> {
        self.leader.due(now, &self.state.scene(unix_ms(now)))
    }

    /// What the leader says when it is asked for the status of the cluster.
    pub fn status(&self, now: Timestamp) -> StatusReport {
        let quorum = Quorum { leader: MonId(0), answering: BTreeSet::new() };
        match self.leader.answer(now, &self.state.scene(unix_ms(now)), &quorum, &MonCommand::Status) {
            Some(MonReply::Status(status)) => *status,
            other => unreachable!("the leader answers a question for the status with {other:?}"),
        }
    }

    /// The OSDs whose boots are refused because they flap.
    pub fn held_off(&self, now: Timestamp) -> BTreeSet<OsdId> {
        let at = unix_ms(now);
        let notes = self.state.scene(at).notes;
        notes.into_iter().filter(|(_, note)| note.held(at).is_some()).map(|(osd, _)| osd).collect()
    }

    /// What the leader says of an OSD when it is asked to explain it.
    pub fn explain(&self, now: Timestamp, osd: OsdId) -> String {
        let quorum = Quorum { leader: MonId(0), answering: BTreeSet::new() };
        let question = MonCommand::Explain(Subject::Osd(osd));
        let answer = self.leader.answer(now, &self.state.scene(unix_ms(now)), &quorum, &question);
        format!("{answer:?}")
    }

    /// The next leader has a snapshot, and no memory of reports.
    pub fn change_leader(&mut self, now: Timestamp) -> Result<(), String> {
        let restored = State::decode(&self.state.encode()).map_err(|error| format!("Q8: a snapshot: {error}"))?;
        if restored != self.state {
            return Err("Q8: a snapshot restores another state".to_owned());
        }
        self.state = restored;
        self.leader = Leader::new(now, self.state.map());
        Ok(())
    }

    /// The log alone makes the same state, whoever applies it.
    pub fn check_replay(&self) -> Result<(), String> {
        let mut state = State::new(CLUSTER);
        for (index, encoded) in self.log.iter().enumerate() {
            let command = Command::decode(encoded).map_err(|error| format!("Q6: {error}"))?;
            state.apply(index as u64 + 1, &command);
        }
        if state == self.state { Ok(()) } else { Err("Q8: the log makes another state when it is replayed".to_owned()) }
    }

    pub fn pgs(&self) -> Vec<PgId> {
        self.map().pgs().collect()
    }
}
