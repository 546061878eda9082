//! A replicated state and a leader's memory beside it, with a clock that the test moves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use holdfast_map::{ClusterMap, PgMembers};
use holdfast_mon_state::leader::{Due, GRACE, Leader, Quorum, Scene, Verdict};
use holdfast_mon_state::{Change, Command, Op, State};
use holdfast_types::{ClusterId, DiskUuid, Incarnation, LogVersion, MonId, OsdId, PgId, Timestamp};
use holdfast_wire::mon::{
    FailureKind, LocationStep, MonCommand, MonError, MonReply, OsdReport, PgReport, PgState, StatusReport, StoreUsage,
};

pub struct World {
    pub state: State,
    pub leader: Leader,
    pub now: Timestamp,
    pub at_unix_ms: u64,
}

pub fn run_of(osd: u32) -> Incarnation {
    Incarnation(100 + u64::from(osd))
}

impl World {
    /// OSDs on the hosts that `hosts` gives, and a pool of three copies.
    pub fn new(hosts: &[u32]) -> World {
        let mut state = State::new(ClusterId([1; 16]));
        for (id, host) in (0u32..).zip(hosts) {
            add(&mut state, id, vec![LocationStep { kind: "host".into(), name: format!("h{host}") }]);
        }
        let pool = MonCommand::PoolCreate {
            name: "data".into(),
            size: Some(3),
            min_size: Some(2),
            application: "test".into(),
            failure_domain: Some("osd".into()),
            share_percent: None,
        };
        apply(&mut state, Change::Request(pool));
        apply(&mut state, Change::Mons([(MonId(0), "127.0.0.1:1".to_owned())].into()));
        let now = Timestamp::ZERO + Duration::from_secs(1_000);
        let leader = Leader::new(now, state.map());
        World { state, leader, now, at_unix_ms: 1_700_000_000_000 }
    }

    /// A further OSD, up and in.
    pub fn add(&mut self, id: u32, location: Vec<LocationStep>) {
        add(&mut self.state, id, location);
        self.leader.observe(self.now, self.state.map());
    }

    /// Another monitor leads.
    pub fn elect(&mut self) {
        self.leader = Leader::new(self.now, self.state.map());
    }

    pub fn try_change(&mut self, change: Change) -> Result<MonReply, MonError> {
        let command = Command { at_unix_ms: self.at_unix_ms, ops: vec![Op { id: None, change }], seen: None };
        match self.state.apply(1, &command).replies.remove(0) {
            MonReply::Failed(error) => Err(error),
            reply => Ok(reply),
        }
    }

    pub fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(self.state.map())
    }

    pub fn scene(&self) -> Scene {
        self.state.scene(self.at_unix_ms)
    }

    pub fn change(&mut self, change: Change) {
        apply_at(&mut self.state, self.at_unix_ms, change);
        self.leader.observe(self.now, self.state.map());
    }

    pub fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.at_unix_ms += u64::try_from(time.as_millis()).unwrap();
    }

    pub fn silent(&mut self, reporter: u32, target: u32) -> Verdict {
        let kind = FailureKind::Silent { for_ms: u64::try_from(GRACE.as_millis()).unwrap() };
        self.fails(reporter, target, kind)
    }

    pub fn fails(&mut self, reporter: u32, target: u32, kind: FailureKind) -> Verdict {
        let map = self.map();
        self.leader.on_failure(self.now, &map, OsdId(reporter), OsdId(target), run_of(target), kind)
    }

    pub fn due(&mut self) -> Vec<Due> {
        let scene = self.scene();
        self.leader.due(self.now, &scene)
    }

    pub fn proposals(&mut self) -> Vec<Change> {
        let proposal = |due| match due {
            Due::Propose(change) => Some(change),
            Due::Probe { .. } => None,
        };
        self.due().into_iter().filter_map(proposal).collect()
    }

    pub fn report(&mut self, osd: u32, change: impl Fn(&mut PgReport)) -> Result<(), MonError> {
        let members = self.map().members_of_all();
        self.report_of(osd, &members, change)
    }

    pub fn report_all(&mut self) {
        self.report_each(|_| {});
    }

    /// All OSDs report, all placement groups clean but for what `change` does.
    pub fn report_each(&mut self, change: impl Fn(&mut PgReport)) {
        let map = self.map();
        let members = map.members_of_all();
        for osd in map.osds.keys() {
            let _ = self.report_of(osd.0, &members, &change);
        }
    }

    /// An OSD reports those of these placement groups that it leads.
    pub fn report_of(
        &mut self,
        osd: u32,
        members: &[(PgId, PgMembers)],
        change: impl Fn(&mut PgReport),
    ) -> Result<(), MonError> {
        let map = self.map();
        let mine = members.iter().filter(|(_, members)| members.primary() == Some(OsdId(osd)));
        let pgs = mine.map(|(pg, members)| {
            let mut report = PgReport {
                pg: *pg,
                epoch: map.epoch,
                interval_start: map.epoch,
                state: PgState { active: true, clean: true, ..PgState::default() },
                up: members.up.clone(),
                acting: members.acting.clone(),
                objects: 100,
                bytes: 1_000,
                copies_missing: 0,
                objects_unfound: 0,
                last_update: LogVersion::ZERO,
                last_epoch_clean: map.epoch,
                blocked_by: Vec::new(),
                scrub: None,
                unfound: Vec::new(),
            };
            change(&mut report);
            report
        });
        let report = OsdReport {
            osd: OsdId(osd),
            incarnation: run_of(osd),
            epoch: map.epoch,
            usage: StoreUsage { total_bytes: 1_000, used_bytes: 100, live_bytes: 90 },
            pgs: pgs.collect(),
            checksum_errors: 0,
            repaired: 0,
            copies_lost: None,
        };
        self.leader.on_report(self.now, &map, report)
    }

    pub fn ask(&self, question: &MonCommand) -> MonReply {
        let quorum = Quorum { leader: MonId(0), answering: BTreeSet::from([MonId(0)]) };
        self.leader.answer(self.now, &self.scene(), &quorum, question).unwrap()
    }

    pub fn status(&self) -> StatusReport {
        match self.ask(&MonCommand::Status) {
            MonReply::Status(status) => *status,
            reply => panic!("{reply:?}"),
        }
    }

    pub fn states(&self) -> Vec<String> {
        self.status().pg_states.into_keys().collect()
    }

    pub fn codes(&self) -> Vec<String> {
        self.status().checks.into_iter().map(|check| check.code).collect()
    }
}

fn add(state: &mut State, id: u32, location: Vec<LocationStep>) {
    let disk = DiskUuid([u8::try_from(id).unwrap() + 1; 16]);
    let register =
        MonCommand::OsdRegister { disk, location, class: None, capacity_bytes: 1 << 40, wanted: None, blank: None };
    apply(state, Change::Request(register));
    let address = format!("127.0.0.1:{}", 7000 + id);
    let boot = MonCommand::OsdBoot { osd: OsdId(id), disk, incarnation: run_of(id), address, can_split: Some(true) };
    apply(state, Change::Request(boot));
}

pub fn apply(state: &mut State, change: Change) {
    apply_at(state, 1, change);
}

pub fn apply_at(state: &mut State, at_unix_ms: u64, change: Change) {
    let command = Command { at_unix_ms, ops: vec![Op { id: None, change }], seen: None };
    let reply = state.apply(1, &command).replies.remove(0);
    assert!(!matches!(reply, MonReply::Failed(_)), "{reply:?}");
}
