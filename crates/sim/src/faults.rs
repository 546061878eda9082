//! What can strike, how often it did, and the striking itself.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use holdfast_mon_state::Change;
use holdfast_types::{OsdId, Timestamp};
use holdfast_wire::mon::MonCommand;
use rand::Rng;

use crate::config::{Config, Faults};
use crate::cuts::Cut;
use crate::disk::Emptied;
use crate::front::FrontWork;
use crate::monitor::POOL;
use crate::node::Node;
use crate::world::{Event, World};

/// How often faults are drawn.
pub(crate) const FAULT_TICK: Duration = Duration::from_millis(100);

/// A message under way for longer is late.
pub(crate) const LATE: Duration = Duration::from_millis(2);

/// A pool with so many placement groups or more is split no further.
const SPLIT_PGS_MAX: u32 = 32;

/// Of fewer changes than these a placement group forgets results that clients still wait for.
const DUPS_FEW: usize = 20;

/// Every kind of fault that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names in `Display` say what each is")]
pub enum FaultKind {
    MessageLost,
    MessageDoubled,
    ProcessKilled,
    PowerCut,
    ClusterPowerCut,
    TransactionLost,
    SectorLost,
    SectorTorn,
    BitFlipped,
    OnodeSpoiled,
    CopyDamaged,
    DiskGivenUp,
    StoreRefused,
    CutOff,
    OutOrIn,
    PoolSplit,
    PoolSpread,
    CopySplit,
    MapDelayed,
    MapSkipped,
    MonitorChanged,
    MonitorsGone,
    Paused,
    CutOffButServed,
    OneWay,
    PausedAnswering,
    AnswerTooLate,
    LeaseWaitedOut,
    ClusterFull,
    Cramped,
    FileSystemFull,
    MessageLate,
    SyncSlow,
    MessageReplayed,
    RequestForgotten,
    ActivationCut,
    AcknowledgementCut,
    RiftBegun,
    RiftFallen,
    RiftOvertaken,
    RiftAsked,
    RiftHalfLeased,
    LinkCut,
    ClockSkewed,
    DiskStuck,
    DiskFailed,
    SectorUnreadable,
    Fenced,
    WentOut,
    FrontKilled,
    FrontPaused,
    FrontHasty,
    AnswerNeverCame,
    GroupSplit,
    TableDropped,
    ClientLeft,
    WriteUnknown,
    UploadCompleted,
    BlobCollected,
    NetworkRough,
    HeartbeatsCut,
    MonitorsCut,
    ClientsCut,
    Parted,
    ConnectionReset,
    Reweighted,
    PoolCreated,
    PoolDeleted,
    WriteDropped,
    WriteMisdirected,
    ReadMisdirected,
    SyncLost,
    HeldOff,
    HoldOffOver,
    HoldOffCutShort,
    Balanced,
    Grown,
    GrownSpread,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::MessageLost => "messages lost",
            FaultKind::MessageDoubled => "messages doubled",
            FaultKind::ProcessKilled => "processes killed",
            FaultKind::PowerCut => "power cuts of one OSD",
            FaultKind::ClusterPowerCut => "power cuts of all OSDs",
            FaultKind::TransactionLost => "transactions lost",
            FaultKind::SectorLost => "un-synced sectors dropped",
            FaultKind::SectorTorn => "sectors torn",
            FaultKind::BitFlipped => "bits flipped",
            FaultKind::OnodeSpoiled => "objects of which nothing can be read",
            FaultKind::CopyDamaged => "damaged objects met",
            FaultKind::DiskGivenUp => "disks given up",
            FaultKind::StoreRefused => "writes refused by a store",
            FaultKind::CutOff => "OSDs cut off",
            FaultKind::OutOrIn => "OSDs out or in",
            FaultKind::PoolSplit => "splits of the pool",
            FaultKind::PoolSpread => "steps of placing what was split off",
            FaultKind::CopySplit => "copies split",
            FaultKind::MapDelayed => "OSDs without maps",
            FaultKind::MapSkipped => "maps skipped",
            FaultKind::MonitorChanged => "monitor leaders changed",
            FaultKind::MonitorsGone => "outages of the monitors",
            FaultKind::Paused => "processes paused",
            FaultKind::CutOffButServed => "OSDs cut off but for clients",
            FaultKind::OneWay => "OSDs deaf or mute",
            FaultKind::PausedAnswering => "processes paused before an answer",
            FaultKind::AnswerTooLate => "answers whose lease had ended",
            FaultKind::LeaseWaitedOut => "leases of former primaries waited for",
            FaultKind::ClusterFull => "writes refused for want of room",
            FaultKind::Cramped => "disks filled for a while",
            FaultKind::FileSystemFull => "file systems filled under a disk for a while",
            FaultKind::MessageLate => "messages late",
            FaultKind::SyncSlow => "slow syncs",
            FaultKind::MessageReplayed => "messages replayed",
            FaultKind::RequestForgotten => "requests whose result was forgotten",
            FaultKind::ActivationCut => "power cuts of all OSDs at an activation",
            FaultKind::AcknowledgementCut => "power cuts of all OSDs at an acknowledgement",
            FaultKind::RiftBegun => "primaries that some OSDs lose",
            FaultKind::RiftFallen => "primaries that are marked down and never hear of it",
            FaultKind::RiftOvertaken => "writes acknowledged by who took over from them",
            FaultKind::RiftAsked => "reads that they are asked of what was overwritten so",
            FaultKind::RiftHalfLeased => "of these, under the leases of some members",
            FaultKind::LinkCut => "links open in one direction only",
            FaultKind::ClockSkewed => "clocks at a wrong rate",
            FaultKind::DiskStuck => "commits that waited for a stuck disk",
            FaultKind::DiskFailed => "writes and syncs failed",
            FaultKind::SectorUnreadable => "sectors that cannot be read",
            FaultKind::Fenced => "sessions fenced",
            FaultKind::WentOut => "OSDs that went out by themselves",
            FaultKind::FrontKilled => "front ends killed",
            FaultKind::FrontPaused => "front ends paused",
            FaultKind::FrontHasty => "front ends in haste",
            FaultKind::AnswerNeverCame => "answers that never came",
            FaultKind::GroupSplit => "groups split",
            FaultKind::TableDropped => "tables dropped",
            FaultKind::ClientLeft => "S3 clients that left",
            FaultKind::WriteUnknown => "S3 writes never answered",
            FaultKind::UploadCompleted => "S3 uploads completed",
            FaultKind::BlobCollected => "blobs collected",
            FaultKind::NetworkRough => "networks that lose and double as much as any",
            FaultKind::HeartbeatsCut => "OSDs whose heartbeats are lost",
            FaultKind::MonitorsCut => "OSDs cut off from monitors alone",
            FaultKind::ClientsCut => "OSDs cut off from clients alone",
            FaultKind::Parted => "partitions into two groups",
            FaultKind::ConnectionReset => "connections reset with what was on its way",
            FaultKind::Reweighted => "OSDs reweighted",
            FaultKind::PoolCreated => "pools created",
            FaultKind::PoolDeleted => "pools deleted",
            FaultKind::WriteDropped => "acknowledged writes that a disk dropped",
            FaultKind::WriteMisdirected => "writes that went to another place",
            FaultKind::ReadMisdirected => "reads of another place",
            FaultKind::SyncLost => "syncs acknowledged and not done before a power cut",
            FaultKind::HeldOff => "OSDs held off because they flap",
            FaultKind::HoldOffOver => "hold-offs that ended",
            FaultKind::HoldOffCutShort => "hold-offs cut short for who is needed",
            FaultKind::Balanced => "exchanges of the balancer",
            FaultKind::Grown => "splits that the monitors decided",
            FaultKind::GrownSpread => "steps of placing these",
        })
    }
}

/// How often each kind struck.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultCounts(BTreeMap<FaultKind, u64>);

impl FaultCounts {
    /// How often this kind struck.
    #[must_use]
    pub fn of(&self, kind: FaultKind) -> u64 {
        self.0.get(&kind).copied().unwrap_or(0)
    }

    /// The kinds that struck.
    pub fn kinds(&self) -> impl Iterator<Item = FaultKind> + '_ {
        self.0.keys().copied()
    }

    pub(crate) fn add(&mut self, kind: FaultKind, times: u64) {
        if times > 0 {
            *self.0.entry(kind).or_default() += times;
        }
    }

    pub(crate) fn add_all(&mut self, other: &FaultCounts) {
        for (kind, times) in &other.0 {
            self.add(*kind, *times);
        }
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, times)) in self.0.iter().enumerate() {
            write!(f, "{}{kind}: {times}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Config {
    /// The kinds that a campaign of this world must have seen.
    #[must_use]
    pub fn planned(&self) -> Vec<FaultKind> {
        let mut planned = self.faults.planned();
        planned.extend(self.fills.then_some(FaultKind::ClusterFull));
        planned.extend((self.limits.dups_max < DUPS_FEW).then_some(FaultKind::RequestForgotten));
        planned.extend((self.leave > 0).then_some(FaultKind::WentOut));
        if let Some(front) = self.front {
            use FaultKind as F;
            planned.extend([F::FrontKilled, F::FrontPaused, F::AnswerNeverCame]);
            planned.extend((front.haste > 0.0).then_some(F::FrontHasty));
            planned.extend(match front.work {
                FrontWork::Tables => vec![F::GroupSplit, F::TableDropped],
                FrontWork::Gateways => vec![F::ClientLeft, F::WriteUnknown, F::UploadCompleted, F::BlobCollected],
            });
        }
        if self.leave > 0 || self.split_bytes_min.is_some() {
            planned.retain(|kind| *kind != FaultKind::SectorTorn); // too rare for so little of it
        }
        planned.extend(
            self.flaps
                .then_some([FaultKind::CutOff, FaultKind::HeldOff, FaultKind::HoldOffOver, FaultKind::HoldOffCutShort])
                .into_iter()
                .flatten(),
        );
        let grows = [FaultKind::Grown, FaultKind::GrownSpread, FaultKind::Balanced];
        planned.extend(self.split_bytes_min.map(|_| grows).into_iter().flatten());
        planned.extend(self.skewed_clocks.then_some(FaultKind::ClockSkewed));
        planned
    }
}

impl Faults {
    /// What strikes in the run of this seed: in every fourth run the network is at its best, in every fourth at its worst.
    pub(crate) fn of_run(self, seed: u64) -> Faults {
        let share = (seed % 4) as f64 / 3.0;
        let up_to = |usual: f64, max: f64| if max > usual { usual * (1.0 - share) + max * share } else { usual };
        let (loss, duplication) = (up_to(self.loss, self.loss_max), up_to(self.duplication, self.duplication_max));
        Faults { loss, duplication, ..self }
    }

    /// Whether the network loses and doubles as much as it does in any run.
    pub(crate) fn is_roughest(&self) -> bool {
        self.loss_max > 0.0 && self.loss >= self.loss_max && self.duplication >= self.duplication_max
    }

    fn planned(&self) -> Vec<FaultKind> {
        use FaultKind as F;
        let power = self.power_cuts_per_second + self.power_losses_per_second;
        let rates = [
            (self.loss, F::MessageLost),
            (self.duplication, F::MessageDoubled),
            (self.kills_per_second, F::ProcessKilled),
            (self.power_cuts_per_second, F::PowerCut),
            (self.power_losses_per_second, F::ClusterPowerCut),
            (power * self.slow_sync, F::TransactionLost),
            (power * self.slow_sync, F::SectorLost),
            (power * self.slow_sync, F::SectorTorn),
            (self.flips_per_second, F::BitFlipped),
            (self.flips_per_second, F::OnodeSpoiled),
            (self.flips_per_second, F::CopyDamaged),
            (self.partitions_per_second, F::CutOff),
            (self.remaps_per_second, F::OutOrIn),
            (self.splits_per_second, F::PoolSplit),
            (self.splits_per_second, F::PoolSpread),
            (self.splits_per_second, F::CopySplit),
            (self.map_lags_per_second, F::MapDelayed),
            (self.map_lags_per_second, F::MapSkipped),
            (self.pauses_per_second, F::Paused),
            (self.served_cuts_per_second, F::CutOffButServed),
            (self.served_cuts_per_second, F::LeaseWaitedOut),
            (self.one_way_cuts_per_second, F::OneWay),
            (self.pauses_at_answers_per_second, F::PausedAnswering),
            (self.pauses_at_answers_per_second, F::AnswerTooLate),
            (self.leader_changes_per_second, F::MonitorChanged),
            (self.monitor_outages_per_second, F::MonitorsGone),
            (self.cramps_per_second, F::Cramped),
            (self.full_file_systems_per_second, F::FileSystemFull),
            (self.full_file_systems_per_second, F::StoreRefused),
            (self.slow_sync, F::SyncSlow),
            (self.delay_max.saturating_sub(LATE).as_secs_f64(), F::MessageLate),
            (self.cramps_per_second, F::ClusterFull),
            (self.replays, F::MessageReplayed),
            (self.cuts_after_activation, F::ActivationCut),
            (self.cuts_after_ack, F::AcknowledgementCut),
            (self.rifts_per_second, F::RiftBegun),
            (self.rifts_per_second, F::RiftFallen),
            (self.rifts_per_second, F::RiftOvertaken),
            (self.rifts_per_second, F::RiftAsked),
            (self.rifts_per_second, F::RiftHalfLeased),
            (self.rifts_per_second, F::LeaseWaitedOut),
            (self.one_way_per_second, F::LinkCut),
            (self.stuck_per_second, F::DiskStuck),
            (self.disk_failures_per_second, F::DiskFailed),
            (self.bad_sectors_per_second, F::SectorUnreadable),
            (self.fences_per_second, F::Fenced),
            (self.bad_sectors_per_second, F::CopyDamaged),
            (self.disk_failures_per_second, F::DiskGivenUp),
            (self.loss_max, F::NetworkRough),
            (self.side_cuts_per_second, F::HeartbeatsCut),
            (self.side_cuts_per_second, F::MonitorsCut),
            (self.side_cuts_per_second, F::ClientsCut),
            (self.group_partitions_per_second, F::Parted),
            (self.resets_per_second, F::ConnectionReset),
            (self.reweights_per_second, F::Reweighted),
            (self.pool_changes_per_second, F::PoolCreated),
            (self.pool_changes_per_second, F::PoolDeleted),
            (self.lies_per_second, F::WriteDropped),
            (self.lies_per_second, F::WriteMisdirected),
            (self.lies_per_second, F::ReadMisdirected),
            (self.lies_per_second, F::SyncLost),
            (self.lies_per_second, F::CopyDamaged),
        ];
        rates.into_iter().filter(|(rate, _)| *rate > 0.0).map(|(_, kind)| kind).collect()
    }
}

impl World {
    pub(crate) fn fault_tick(&mut self) {
        if !self.working {
            return;
        }
        self.schedule(FAULT_TICK, Event::FaultTick);
        self.tell_time();
        let faults = self.faults;
        let mut strikes =
            |rate: f64| rate > 0.0 && self.rng.random_bool((rate * FAULT_TICK.as_secs_f64()).clamp(0.0, 1.0));
        let (kill, cut_power) = (strikes(faults.kills_per_second), strikes(faults.power_cuts_per_second));
        let all_power = strikes(faults.power_losses_per_second);
        let (cut, remap) = (strikes(faults.partitions_per_second), strikes(faults.remaps_per_second));
        let (flip, lag) = (strikes(faults.flips_per_second), strikes(faults.map_lags_per_second));
        let (pause, leader) = (strikes(faults.pauses_per_second), strikes(faults.leader_changes_per_second));
        let (outage, cramp) = (strikes(faults.monitor_outages_per_second), strikes(faults.cramps_per_second));
        let (link, stuck) = (strikes(faults.one_way_per_second), strikes(faults.stuck_per_second));
        let (fail, spoil) = (strikes(faults.disk_failures_per_second), strikes(faults.bad_sectors_per_second));
        let (served, one_way) = (strikes(faults.served_cuts_per_second), strikes(faults.one_way_cuts_per_second));
        let (pause_answering, split) =
            (strikes(faults.pauses_at_answers_per_second), strikes(faults.splits_per_second));
        let rift = strikes(faults.rifts_per_second);
        let (side, reset) = (strikes(faults.side_cuts_per_second), strikes(faults.resets_per_second));
        let (reweight, pools) = (strikes(faults.reweights_per_second), strikes(faults.pool_changes_per_second));
        let lie = strikes(faults.lies_per_second);
        let part = strikes(faults.group_partitions_per_second);
        let no_blocks = strikes(faults.full_file_systems_per_second);
        let victim = OsdId(self.rng.random_range(0..self.config.osds));
        // One disk rots, and it is the only one that ever stops meanwhile: two faults at once may lose the last copy.
        let rotting = faults.flips_per_second > 0.0 || faults.lies_per_second > 0.0;
        let crashing = if rotting { self.rot_victim } else { victim };
        if all_power {
            if self.deals("all OSDs lose power".to_owned()) {
                self.counts.add(FaultKind::ClusterPowerCut, 1);
                for osd in 0..self.config.osds {
                    self.crash(OsdId(osd), true);
                }
            }
        } else if cut_power && self.deals(format!("{crashing} loses power")) {
            self.crash(crashing, true);
        } else if kill && self.node(crashing).running && self.deals(format!("{crashing} is killed")) {
            self.crash(crashing, false);
        }
        if cut && self.cut_off.is_empty() {
            self.cut_off(victim, Cut::Whole);
        }
        if served && self.cut_off.is_empty() {
            self.cut_off(victim, Cut::FromCluster);
            self.replace_at_once(victim);
        }
        if one_way && self.cut_off.is_empty() {
            let cut = if self.rng.random_bool(0.5) { Cut::Deaf } else { Cut::Mute };
            self.cut_off(victim, cut);
        }
        if rift {
            self.begin_rift();
        }
        if remap {
            self.remap(victim);
        }
        if split {
            self.split();
        }
        if flip {
            self.flip();
        }
        if lag {
            self.delay_maps(victim);
        }
        if pause {
            self.pause(victim);
        }
        if pause_answering {
            self.node(victim).pauses_at_answer = true;
        }
        if leader && self.deals("another monitor leads".to_owned()) {
            self.change_leader();
        }
        if outage && self.deals("the monitors lose their majority".to_owned()) {
            self.lose_monitors();
        }
        if cramp {
            self.cramp(victim);
        }
        if no_blocks {
            self.fill_file_system(victim);
        }
        if link {
            self.cut_one_way(victim);
        }
        if stuck && self.deals(format!("the disk of {victim} hangs")) {
            let length = Duration::from_millis(self.rng.random_range(200..10_000));
            let until = self.now + length;
            self.node(victim).stuck_until = until;
        }
        if fail {
            self.fail_disk(victim);
        }
        if spoil {
            self.spoil();
        }
        if side && self.cut_off.is_empty() {
            self.cut_one_side(victim);
        }
        if part {
            self.part();
        }
        if reset {
            self.reset_connections(victim);
        }
        if reweight {
            self.reweight(victim);
        }
        if pools {
            self.change_pools();
        }
        if lie {
            self.plan_lie();
        }
    }

    /// One direction between an OSD and all others, or one of them, is closed for a while.
    fn cut_one_way(&mut self, victim: OsdId) {
        if !self.one_way.is_empty() {
            return;
        }
        let (deaf, only) = (self.rng.random_bool(0.5), self.rng.random_bool(0.3));
        let whom = if only { "another OSD" } else { "other OSDs" };
        let what = if deaf { format!("{victim} hears nothing of") } else { format!("{victim} is not heard by") };
        if !self.deals(format!("{what} {whom}")) {
            return;
        }
        self.counts.add(FaultKind::LinkCut, 1);
        let others = (0..self.config.osds).map(OsdId).filter(|osd| *osd != victim);
        let ways = others.map(|other| if deaf { (other, victim) } else { (victim, other) });
        self.one_way = ways.take(if only { 1 } else { usize::MAX }).collect();
        // One link alone may stay cut for longer than the monitors let the two accuse each other.
        let longest = if only { 45_000 } else { 16_000 };
        let healed = Duration::from_millis(self.rng.random_range(500..longest));
        self.schedule(healed, Event::OneWayHealed);
    }

    /// A write or a sync fails where all is whole otherwise. The store is not used again: the process ends, and the next run
    /// of the OSD has an empty disk.
    fn fail_disk(&mut self, victim: OsdId) {
        let whole = self.nodes.iter().all(Node::is_up) && self.all_clean();
        if !whole || !self.deals(format!("the disk of {victim} fails")) {
            return;
        }
        let (nodes, rng) = (&mut self.nodes, &mut self.rng);
        let Some(node) = nodes.get_mut(victim.0 as usize) else { return };
        if node.disk.fail_commit(rng) {
            self.counts.add(FaultKind::DiskFailed, 1);
            self.node(victim).disk_failed = true;
            self.crash(victim, false);
        } else {
            self.struck_nothing();
        }
    }

    /// All OSDs lose power; one of them stays away until the others have marked it down.
    pub(crate) fn cut_all(&mut self, away: OsdId, kind: FaultKind) {
        if !self.working || !self.deals(format!("all OSDs lose power, {away} for long ({kind})")) {
            return;
        }
        self.counts.add(kind, 1);
        for osd in (0..self.config.osds).map(OsdId) {
            let (least, most) = if osd == away { (9_000, 20_000) } else { (50, 300) };
            let back = Duration::from_millis(self.rng.random_range(least..most));
            self.crash_for(osd, true, Some(back));
        }
    }

    /// Something else fills the disk for a while.
    fn cramp(&mut self, victim: OsdId) {
        let (length, percent) = (self.rng.random_range(100..8_000), self.rng.random_range(70..95));
        let may = self.node(victim).running && self.deals(format!("the disk of {victim} fills to {percent} %"));
        if may {
            // One that is refused in the middle of it has filled the disk, too.
            let filled = self.node(victim).disk.fill(percent);
            self.counts.add(FaultKind::Cramped, u64::from(filled));
            self.schedule_commit(victim);
            self.schedule(Duration::from_millis(length), Event::RoomBack { osd: victim });
        }
    }

    /// Something else takes the last blocks of the file system under the disk for a while.
    fn fill_file_system(&mut self, victim: OsdId) {
        let length = Duration::from_millis(self.rng.random_range(100..8_000));
        if self.deals(format!("the file system under the disk of {victim} is full")) {
            self.counts.add(FaultKind::FileSystemFull, 1);
            self.node(victim).disk.set_no_blocks(true);
            self.schedule(length, Event::BlocksBack { osd: victim });
        }
    }

    /// The file system under the disk has room again. The store looks by itself now and then.
    pub(crate) fn blocks_back(&mut self, osd: OsdId) {
        let node = self.node(osd);
        node.disk.set_no_blocks(false);
        let (generation, is_open) = (node.generation, node.disk.is_open());
        if is_open {
            self.schedule(Duration::ZERO, Event::Maintain { osd, generation });
        }
    }

    /// What filled the disk is gone. Whoever filled it tries again where that was refused: the file system under the disk may
    /// be full, too.
    pub(crate) fn room_back(&mut self, osd: OsdId) {
        let emptied = if self.node(osd).running { self.node(osd).disk.empty() } else { Emptied::Refused };
        match emptied {
            Emptied::Now => self.schedule_commit(osd),
            Emptied::Before => {}
            Emptied::Refused => self.schedule(Duration::from_millis(200), Event::RoomBack { osd }),
        }
    }

    fn remap(&mut self, victim: OsdId) {
        let inside = self.monitor.map().osds.values().filter(|info| info.in_cluster).count();
        let is_in = self.monitor.map().osds.get(&victim).is_some_and(|info| info.in_cluster);
        let may = (!is_in || inside > self.config.size as usize) && !self.monitors_are_gone();
        if may && self.deals(format!("{victim} is put {}", if is_in { "out" } else { "in" })) {
            if is_in {
                self.put_out.insert(victim);
            }
            self.monitors_hear(if is_in { MonCommand::OsdOut(victim) } else { MonCommand::OsdIn(victim) });
            let is_now = self.monitor.map().osds.get(&victim).is_some_and(|info| info.in_cluster);
            self.counts.add(FaultKind::OutOrIn, u64::from(is_now != is_in));
        }
    }

    /// Now and then others lead at once what an OSD led that has just been cut off, while it still has its leases; and some of
    /// these times all others have just begun new runs, which remember nothing.
    fn replace_at_once(&mut self, victim: OsdId) {
        let is_in = self.monitor.map().osds.get(&victim).is_some_and(|info| info.in_cluster);
        if !is_in || !self.rng.random_bool(0.5) {
            return;
        }
        self.remap(victim);
        if self.rng.random_bool(0.3) && self.deals(format!("all but {victim} are killed")) {
            for osd in (0..self.config.osds).map(OsdId).filter(|osd| *osd != victim) {
                let back = Duration::from_millis(self.rng.random_range(20..300));
                self.crash_for(osd, false, Some(back));
            }
        }
    }

    /// Splits the pool, or places it by more of what was split off: sooner than the monitors would, who wait until all is
    /// clean.
    fn split(&mut self) {
        if self.monitors_are_gone() {
            return;
        }
        let map = self.monitor.map();
        let pg_num = map.pools.get(&POOL).map_or(0, |pool| pool.pg_num);
        let (kind, change) = match map.placed_as.get(&POOL) {
            Some(placed) => {
                let placed = self.rng.random_range(placed + 1..=pg_num);
                (FaultKind::PoolSpread, Change::Spread { pool: POOL, placed })
            }
            None if pg_num < SPLIT_PGS_MAX => {
                let pg_num = self.rng.random_range(1..=2) * 2 * pg_num;
                (FaultKind::PoolSplit, Change::Split { pool: POOL, pg_num, judged_at: Some(map.epoch) })
            }
            None => return,
        };
        if self.deals(format!("the monitors are told to make {change:?}")) {
            let before = self.monitor.map().epoch;
            self.propose(change);
            self.counts.add(kind, u64::from(self.monitor.map().epoch > before));
        }
    }

    /// Flips a bit of the disk, or spoils what is known of one object, but only where all is whole otherwise: never in the
    /// last good copy.
    fn flip(&mut self) {
        let victim = self.rot_victim;
        let whole = self.nodes.iter().all(Node::is_up) && self.all_clean();
        if whole && self.deals(format!("a bit flips on the disk of {victim}, or an onode there is spoiled")) {
            let (nodes, rng) = (&mut self.nodes, &mut self.rng);
            if let Some(node) = nodes.get_mut(victim.0 as usize) {
                let kind = node.disk.rot(rng);
                self.counts.add(kind, 1);
            }
        }
    }

    /// A sector with bytes of an object cannot be read any more, only where all is whole otherwise.
    fn spoil(&mut self) {
        let victim = self.rot_victim;
        let whole = self.nodes.iter().all(Node::is_up) && self.all_clean();
        if whole && self.deals(format!("a sector on the disk of {victim} goes bad")) {
            let (nodes, rng) = (&mut self.nodes, &mut self.rng);
            if nodes.get_mut(victim.0 as usize).is_some_and(|node| node.disk.spoil(rng)) {
                self.counts.add(FaultKind::SectorUnreadable, 1);
            } else {
                self.struck_nothing();
            }
        }
    }

    /// The process stops, up to three times as long as its peers' patience, and goes on as if nothing had happened.
    fn pause(&mut self, victim: OsdId) {
        let now = self.now;
        let may = self.node(victim).running && self.node(victim).paused_until <= now;
        if may && self.deals(format!("{victim} is paused")) {
            self.counts.add(FaultKind::Paused, 1);
            self.pause_now(victim);
        }
    }

    fn delay_maps(&mut self, victim: OsdId) {
        let now = self.now;
        if self.node(victim).lags_until > now {
            return;
        }
        let (length, skips) = (self.rng.random_range(100..4_000), self.rng.random_bool(0.8));
        if !self.deals(format!("{victim} gets no maps for {length} ms")) {
            return;
        }
        let running = self.node(victim).running;
        self.counts.add(FaultKind::MapDelayed, u64::from(running));
        let node = self.node(victim);
        node.lags_until = now + Duration::from_millis(length);
        node.skips |= skips;
        self.schedule(Duration::from_millis(length), Event::MapArrives { osd: victim });
    }

    /// The process ends; with `power` its machine does.
    pub(crate) fn crash(&mut self, osd: OsdId, power: bool) {
        self.crash_for(osd, power, None);
    }

    /// The same; `back` says when it starts again.
    pub(crate) fn crash_for(&mut self, osd: OsdId, power: bool, back: Option<Duration>) {
        let (running, faults) = (self.node(osd).running, self.config.faults);
        if !running && !power {
            return;
        }
        let run = self.node(osd).incarnation;
        if self.config.trace {
            self.trace(&format!("{osd} {run} {}", if power { "loses power" } else { "is killed" }));
        }
        self.count_lies(osd);
        self.stop(osd);
        self.note_durable(osd);
        let (nodes, rng) = (&mut self.nodes, &mut self.rng);
        let Some(node) = nodes.get_mut(osd.0 as usize) else { return };
        let damage = node.disk.crash(rng, power);
        node.generation += 1;
        (node.paused_until, node.stuck_until) = (Timestamp::ZERO, Timestamp::ZERO);
        self.syncing.remove(&osd);
        self.counts.add(FaultKind::SectorLost, damage.sectors);
        self.counts.add(FaultKind::SectorTorn, damage.torn);
        if !running {
            return; // its restart is under way
        }
        self.counts.add(if power { FaultKind::PowerCut } else { FaultKind::ProcessKilled }, 1);
        let longest = u64::try_from(faults.downtime_max.as_millis()).unwrap_or(u64::MAX);
        let back = back.unwrap_or_else(|| Duration::from_millis(self.rng.random_range(100..longest.max(101))));
        self.schedule(back, Event::Restart { osd });
        if power {
            self.node(osd).powered = false;
        } else {
            self.process_ended(osd, run);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_network_is_as_rough_as_allowed_in_every_fourth_run_and_usual_in_another() {
        let loss = Config::loss().faults;
        let rates = |seed| (loss.of_run(seed).loss, loss.of_run(seed).duplication);
        assert_eq!(rates(4), (loss.loss, loss.duplication));
        assert_eq!(rates(7), (0.3, 0.5));
        assert!(loss.of_run(7).is_roughest() && !loss.of_run(6).is_roughest());
        assert!(rates(5).0 > loss.loss && rates(5).0 < rates(6).0 && rates(6).0 < 0.3);
        let storm = Config::storm().faults;
        assert_eq!(storm.of_run(7), storm, "it has no other rates");
    }

    #[test]
    fn each_kind_that_is_counted_is_planned_in_some_world() {
        use FaultKind as F;
        #[rustfmt::skip]
        let all = [
            F::MessageLost, F::MessageDoubled, F::ProcessKilled, F::PowerCut, F::ClusterPowerCut, F::TransactionLost,
            F::SectorLost, F::SectorTorn, F::BitFlipped, F::OnodeSpoiled, F::CopyDamaged, F::DiskGivenUp,
            F::StoreRefused, F::CutOff, F::OutOrIn, F::PoolSplit, F::PoolSpread, F::CopySplit, F::MapDelayed,
            F::MapSkipped, F::MonitorChanged, F::MonitorsGone, F::Paused, F::CutOffButServed, F::OneWay,
            F::PausedAnswering, F::AnswerTooLate, F::LeaseWaitedOut, F::ClusterFull, F::Cramped, F::FileSystemFull,
            F::MessageLate, F::SyncSlow, F::MessageReplayed, F::RequestForgotten, F::ActivationCut,
            F::AcknowledgementCut, F::RiftBegun, F::RiftFallen, F::RiftOvertaken, F::RiftAsked, F::RiftHalfLeased,
            F::LinkCut, F::ClockSkewed, F::DiskStuck, F::DiskFailed, F::SectorUnreadable, F::Fenced, F::WentOut,
            F::FrontKilled, F::FrontPaused, F::FrontHasty, F::AnswerNeverCame, F::GroupSplit, F::TableDropped,
            F::ClientLeft, F::WriteUnknown, F::UploadCompleted, F::BlobCollected, F::NetworkRough, F::HeartbeatsCut,
            F::MonitorsCut, F::ClientsCut, F::Parted, F::ConnectionReset, F::Reweighted, F::PoolCreated,
            F::PoolDeleted, F::WriteDropped, F::WriteMisdirected, F::ReadMisdirected, F::SyncLost, F::HeldOff,
            F::HoldOffOver, F::HoldOffCutShort, F::Balanced, F::Grown, F::GrownSpread,
        ];
        assert!(all.iter().enumerate().all(|(number, kind)| *kind as usize == number), "each once, in their order");
        assert_eq!(all.len(), F::GrownSpread as usize + 1);
        let planned: BTreeSet<F> = Config::worlds().iter().flat_map(|(_, config)| config.planned()).collect();
        let unplanned: Vec<&F> = all.iter().filter(|kind| !planned.contains(kind)).collect();
        assert_eq!(unplanned, Vec::<&F>::new());
    }
}
