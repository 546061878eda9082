//! What a run is made of.

use std::time::Duration;

use holdfast_pg::{Limits, ScrubLimits};

use crate::checker::Checker;
use crate::front::{FrontSettings, FrontWork};

/// Longest time that a message is kept before it is replayed.
pub(crate) const REPLAY_MAX: Duration = Duration::from_secs(15);

/// Which faults strike, and how hard. Probabilities are per message, rates per simulated second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Probability that a message between OSDs, or with a client, is lost.
    pub loss: f64,
    /// Probability that it arrives twice.
    pub duplication: f64,
    /// Probability that it is kept on the way and arrives once more, up to 15 s later, or with the next map of its
    /// receiver: from another activation or interval, or of a sender that has started anew since.
    pub replays: f64,
    /// Longest delay; messages overtake each other.
    pub delay_max: Duration,
    /// OSD processes killed per second; each loses what it had not written, and comes back.
    pub kills_per_second: f64,
    /// OSDs that lose power, per second: any subset of what was not synced is lost too, or torn.
    pub power_cuts_per_second: f64,
    /// All OSDs lose power at once, per second.
    pub power_losses_per_second: f64,
    /// Probability that all OSDs lose power when a member's word of its activation arrives; one of them stays away for longer
    /// than it takes to be marked down.
    pub cuts_after_activation: f64,
    /// Probability that all OSDs lose power when a write is acknowledged; mostly who acknowledged it stays away for longer than
    /// it takes to be marked down.
    pub cuts_after_ack: f64,
    /// Primaries, per second, whose network falls apart step by step, and who never hear that they were marked down.
    pub rifts_per_second: f64,
    /// Longest time until a process or a machine is back.
    pub downtime_max: Duration,
    /// OSDs cut off from all others, from monitors and clients, per second.
    pub partitions_per_second: f64,
    /// Times, per second, that an OSD does not hear any of the others for a while, or that they do not hear it; the way back is
    /// open.
    pub one_way_per_second: f64,
    /// Placement changes (an OSD goes out or comes in) per second.
    pub remaps_per_second: f64,
    /// Splits of the pool, per second, and steps of placing it by what was split off.
    pub splits_per_second: f64,
    /// OSDs, per second, that maps do not reach for a while. Afterwards most of them take the newest map as a whole, and
    /// never see those in between.
    pub map_lags_per_second: f64,
    /// Bits that flip, per second: always on the same OSD's disk, which one depends on the seed.
    pub flips_per_second: f64,
    /// Sectors, per second, that cannot be read any more: always on the same OSD's disk, in the bytes of its objects.
    pub bad_sectors_per_second: f64,
    /// OSDs cut off from all others and from monitors, but not from clients, per second.
    pub served_cuts_per_second: f64,
    /// OSDs, per second, that others do not hear, or that do not hear others; clients reach them.
    pub one_way_cuts_per_second: f64,
    /// OSD processes, per second, stopped for a while just before they answer a read.
    pub pauses_at_answers_per_second: f64,
    /// Probability that a client that gets no answer does not learn of newer maps then.
    pub client_map_lag: f64,
    /// OSD processes stopped for a while, per second.
    pub pauses_per_second: f64,
    /// Changes of the monitors' leader, per second.
    pub leader_changes_per_second: f64,
    /// Times without a majority of the monitors, per second.
    pub monitor_outages_per_second: f64,
    /// OSDs, per second, whose disk is filled by something else for a while: up to where clients' writes are not let in any
    /// more, or to where recovery is not, either.
    pub cramps_per_second: f64,
    /// File systems that something else fills for a while, so that the disk in them gets no more blocks.
    pub full_file_systems_per_second: f64,
    /// Disks, per second, that do nothing for up to ten seconds.
    pub stuck_per_second: f64,
    /// Disks, per second, that fail a write or a sync: such a disk is never used again, and its OSD begins anew on an empty one.
    /// Only where all copies are whole: two disks at once may be the last ones.
    pub disk_failures_per_second: f64,
    /// Sessions, per second, that are fenced while they write, and go on.
    pub fences_per_second: f64,
    /// Probability that a sync takes a hundred times longer.
    pub slow_sync: f64,
    /// The same as `loss` and `duplication` in every fourth run; in the others they are between the two. Zero: the same in all.
    pub loss_max: f64,
    /// See `loss_max`.
    pub duplication_max: f64,
    /// OSDs, per second, of whose network one side does not work: heartbeats, that to monitors, or that to clients.
    pub side_cuts_per_second: f64,
    /// Times, per second, that the OSDs fall into two groups of which neither reaches the other; monitors and clients reach both.
    pub group_partitions_per_second: f64,
    /// Connections, per second, that break with all that is on its way on them: between two OSDs, or all of one.
    pub resets_per_second: f64,
    /// OSDs, per second, that take a part of their share from now on, or the whole one again.
    pub reweights_per_second: f64,
    /// Pools, per second, that are created or deleted while clients use another one.
    pub pool_changes_per_second: f64,
    /// Times, per second, that a disk says that it did what it did not: always the same OSD's disk. Only where all is whole.
    pub lies_per_second: f64,
}

impl Faults {
    /// None at all; messages still take time.
    pub const NONE: Faults = Faults {
        loss: 0.0,
        duplication: 0.0,
        replays: 0.0,
        cuts_after_activation: 0.0,
        cuts_after_ack: 0.0,
        rifts_per_second: 0.0,
        one_way_per_second: 0.0,
        stuck_per_second: 0.0,
        disk_failures_per_second: 0.0,
        fences_per_second: 0.0,
        delay_max: Duration::from_millis(2),
        kills_per_second: 0.0,
        power_cuts_per_second: 0.0,
        power_losses_per_second: 0.0,
        downtime_max: Duration::from_secs(10),
        partitions_per_second: 0.0,
        remaps_per_second: 0.0,
        splits_per_second: 0.0,
        map_lags_per_second: 0.0,
        flips_per_second: 0.0,
        bad_sectors_per_second: 0.0,
        cramps_per_second: 0.0,
        full_file_systems_per_second: 0.0,
        pauses_per_second: 0.0,
        served_cuts_per_second: 0.0,
        one_way_cuts_per_second: 0.0,
        pauses_at_answers_per_second: 0.0,
        client_map_lag: 0.0,
        leader_changes_per_second: 0.0,
        monitor_outages_per_second: 0.0,
        slow_sync: 0.0,
        loss_max: 0.0,
        duplication_max: 0.0,
        side_cuts_per_second: 0.0,
        group_partitions_per_second: 0.0,
        resets_per_second: 0.0,
        reweights_per_second: 0.0,
        pool_changes_per_second: 0.0,
        lies_per_second: 0.0,
    };
}

/// A run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// OSDs in the cluster.
    pub osds: u32,
    /// Placement groups that objects are in. The pool has at least 8; few with much to do reach more states.
    pub pgs_used: u32,
    /// Copies.
    pub size: u32,
    /// Copies needed to serve.
    pub min_size: u32,
    /// Clients.
    pub clients: u32,
    /// The last so many of them only read.
    pub readers: u32,
    /// The first so many of them hear of each map at once.
    pub prompt: u32,
    /// Whether the clocks of OSDs run at different rates, by up to nearly a fifth.
    pub skewed_clocks: bool,
    /// Requests that each client has under way at most.
    pub depth: u32,
    /// The same for those that only read.
    pub reader_depth: u32,
    /// Objects of each kind.
    pub objects: u32,
    /// How long clients work under faults.
    pub duration: Duration,
    /// Mean pause between two requests of a client.
    pub pause: Duration,
    /// How long a client waits for an answer before it sends again.
    pub patience: Duration,
    /// Whether many of the requests are removals.
    pub removes: bool,
    /// Most words of 8 bytes in a register.
    pub words_max: usize,
    /// Whether clients write more than fits.
    pub fills: bool,
    /// How many OSDs end at one moment after the faults and do not come back, so that the monitors take them out.
    pub leave: u32,
    /// Whether the network of one OSD fails again and again.
    pub flaps: bool,
    /// Bytes in the pool below which the monitors do not split it, where it is not the usual number.
    pub split_bytes_min: Option<u64>,
    /// Segments of 64 KiB of each OSD's disk.
    pub segments: u32,
    /// What strikes.
    pub faults: Faults,
    /// Bounds of the placement groups; tiny ones reach more states.
    pub limits: Limits,
    /// How long a day of the calendar lasts, by which copies are scrubbed; `None`: the time of day is never told.
    pub day: Option<Duration>,
    /// A checker that does not look: for the proof that it is needed.
    pub off: Option<Checker>,
    /// Processes that keep tables in the cluster.
    pub front: Option<FrontSettings>,
    /// Whether every input and output is printed to standard error.
    pub trace: bool,
}

impl Config {
    /// All worlds by name; `calm` is for what must work before anything is attacked.
    #[must_use]
    pub fn worlds() -> Vec<(&'static str, Config)> {
        vec![
            ("storm", Config::storm()),
            ("power", Config::power()),
            ("pairs", Config::pairs()),
            ("churn", Config::churn()),
            ("rot", Config::rot()),
            ("gaps", Config::gaps()),
            ("splits", Config::splits()),
            ("scrub", Config::scrub()),
            ("leases", Config::leases()),
            ("rifts", Config::rifts()),
            ("full", Config::full()),
            ("cramped", Config::cramped()),
            ("loss", Config::loss()),
            ("echo", Config::echo()),
            ("ghosts", Config::ghosts()),
            ("brink", Config::brink()),
            ("limp", Config::limp()),
            ("fence", Config::fence()),
            ("gone", Config::gone()),
            ("bereft", Config::bereft()),
            ("tables", Config::tables()),
            ("objects", Config::objects()),
            ("severed", Config::severed()),
            ("shifts", Config::shifts()),
            ("lies", Config::lies()),
            ("flap", Config::flap()),
            ("growth", Config::growth()),
            ("calm", Config::calm()),
        ]
    }

    /// Three OSDs, no faults.
    #[must_use]
    pub fn calm() -> Config {
        Config {
            osds: 3,
            pgs_used: 2,
            size: 3,
            min_size: 2,
            clients: 3,
            readers: 0,
            prompt: 0,
            skewed_clocks: false,
            depth: 3,
            reader_depth: 3,
            objects: 4,
            duration: Duration::from_secs(5),
            pause: Duration::from_millis(30),
            patience: Duration::from_millis(1_500),
            removes: false,
            words_max: 40,
            fills: false,
            leave: 0,
            flaps: false,
            split_bytes_min: None,
            segments: 40,
            faults: Faults::NONE,
            limits: Limits { piece_bytes: 64, ..Limits::default() },
            day: None,
            off: None,
            front: None,
            trace: false,
        }
    }

    /// Bits flip on one of the disks, anywhere on it, while messages are lost and that OSD's process is killed now and then. No
    /// other OSD fails: two faults at once may take the last copy.
    #[must_use]
    pub fn rot() -> Config {
        let storm = Config::storm();
        let faults =
            Faults { loss: 0.02, duplication: 0.02, flips_per_second: 3.0, kills_per_second: 0.25, ..Faults::NONE };
        // So many objects that about half are older than the log when they rot; so many requests that rot is soon met.
        let (duration, pause) = (Duration::from_secs(30), Duration::from_millis(25));
        Config { faults, objects: 16, duration, pause, ..storm }
    }

    /// Days fly, so that copies are scrubbed all the time, while one disk rots, its process is killed and messages are lost.
    /// After a week no bad copy may be left, though nobody has read it.
    #[must_use]
    pub fn scrub() -> Config {
        let rot = Config::rot();
        let faults = Faults {
            flips_per_second: 2.0,
            kills_per_second: 0.1,
            slow_sync: 0.1,
            delay_max: Duration::from_millis(20),
            ..rot.faults
        };
        let scrub = ScrubLimits { chunk_objects: 3, piece_bytes: 48, repairs_max: 1_000, ..rot.limits.scrub };
        let limits = Limits { scrub, ..rot.limits };
        let (day, pause) = (Some(Duration::from_millis(500)), Duration::from_millis(80));
        Config { osds: 4, objects: 6, faults, limits, day, pause, ..rot }
    }

    /// The storm, with disks and file systems that something else fills for a while: copies are begun, refused, and begun anew.
    #[must_use]
    pub fn cramped() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            cramps_per_second: 0.3,
            full_file_systems_per_second: 0.2,
            remaps_per_second: 0.1,
            ..storm.faults
        };
        Config { faults, ..storm }
    }

    /// OSDs lose each other while clients reach them, in one direction or both, processes stop in the middle of an answer,
    /// clocks run at different rates, and clients are slow to learn who leads: whoever was replaced must show nothing old.
    #[must_use]
    pub fn leases() -> Config {
        let faults = Faults {
            loss: 0.01,
            duplication: 0.01,
            delay_max: Duration::from_millis(20),
            kills_per_second: 0.05,
            power_cuts_per_second: 0.03,
            downtime_max: Duration::from_secs(6),
            remaps_per_second: 0.12,
            pauses_per_second: 0.02,
            served_cuts_per_second: 0.1,
            one_way_cuts_per_second: 0.1,
            pauses_at_answers_per_second: 0.1,
            client_map_lag: 0.95,
            ..Faults::NONE
        };
        let (duration, pause) = (Duration::from_secs(60), Duration::from_millis(50));
        let (clients, readers, depth, objects) = (4, 2, 12, 6);
        Config {
            reader_depth: depth,
            osds: 4,
            clients,
            readers,
            depth,
            objects,
            skewed_clocks: true,
            duration,
            pause,
            faults,
            ..Config::storm()
        }
    }

    /// The networks of primaries fall apart step by step, clocks run at different rates, and most clients are slow to learn who
    /// leads: a lease that outlives its interval must be waited for, whoever has forgotten it, and one that not all give is none.
    #[must_use]
    pub fn rifts() -> Config {
        let leases = Config::leases();
        let faults = Faults {
            rifts_per_second: 0.25,
            kills_per_second: 0.01,
            power_cuts_per_second: 0.01,
            remaps_per_second: 0.02,
            served_cuts_per_second: 0.0,
            one_way_cuts_per_second: 0.0,
            pauses_per_second: 0.0,
            pauses_at_answers_per_second: 0.0,
            ..leases.faults
        };
        // What waits for a member that is lost cannot be read: few writes are under way, and many reads of many objects.
        Config {
            osds: 5,
            min_size: 1,
            clients: 5,
            readers: 3,
            prompt: 2,
            depth: 6,
            reader_depth: 60,
            objects: 40,
            duration: Duration::from_secs(90),
            patience: Duration::from_millis(600),
            faults,
            ..leases
        }
    }

    /// Clients write more than the disks hold, while processes and machines fail; at the end they delete.
    #[must_use]
    pub fn full() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            loss: 0.01,
            kills_per_second: 0.03,
            power_cuts_per_second: 0.03,
            delay_max: Duration::from_millis(10),
            slow_sync: 0.3,
            ..Faults::NONE
        };
        let limits = Limits {
            dups_max: 200,
            executed_max: 1_024,
            piece_bytes: 4 << 10,
            effects_bytes_max: 32 << 10,
            ..storm.limits
        };
        Config {
            osds: 3,
            pgs_used: 2,
            objects: 100,
            depth: 8,
            words_max: 1_500,
            fills: true,
            segments: 16,
            pause: Duration::from_millis(40),
            faults,
            limits,
            ..storm
        }
    }

    /// Members die and come back all the time, each pair of intervals with other ones; commits of the monitors are slow.
    #[must_use]
    pub fn churn() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            kills_per_second: 0.25,
            power_cuts_per_second: 0.25,
            loss: 0.02,
            power_losses_per_second: 0.02,
            downtime_max: Duration::from_secs(5),
            remaps_per_second: 0.1,
            delay_max: Duration::from_millis(100),
            slow_sync: 0.3,
            ..Faults::NONE
        };
        Config { osds: 4, pgs_used: 2, faults, pause: Duration::from_millis(25), ..storm }
    }

    /// Two copies of which one is enough to serve: whoever was alone for a moment must be waited for.
    #[must_use]
    pub fn pairs() -> Config {
        let churn = Config::churn();
        let faults = Faults {
            kills_per_second: 0.12,
            power_cuts_per_second: 0.12,
            power_losses_per_second: 0.04,
            downtime_max: Duration::from_secs(9),
            remaps_per_second: 0.05,
            ..churn.faults
        };
        Config { osds: 3, size: 2, min_size: 1, faults, ..churn }
    }

    /// Messages are lost (up to 30 %), doubled (up to 50 %) and very late, and connections break, while placement changes, and
    /// nothing else fails: no read may be stale.
    #[must_use]
    pub fn loss() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            loss: 0.08,
            duplication: 0.3,
            loss_max: 0.3,
            duplication_max: 0.5,
            delay_max: Duration::from_millis(300),
            remaps_per_second: 0.2,
            resets_per_second: 0.5,
            ..Faults::NONE
        };
        let limits = Limits { log_entries_min: 5, log_entries_max: 10, dups_max: 10, ..storm.limits };
        Config { osds: 4, pgs_used: 2, faults, limits, pause: Duration::from_millis(40), ..storm }
    }

    /// Messages of earlier intervals, activations and runs arrive again, seconds later, while members come and go.
    #[must_use]
    pub fn echo() -> Config {
        let churn = Config::churn();
        let faults = Faults {
            loss: 0.05,
            duplication: 0.1,
            replays: 0.25,
            kills_per_second: 0.15,
            power_cuts_per_second: 0.05,
            remaps_per_second: 0.4,
            power_losses_per_second: 0.0,
            downtime_max: Duration::from_secs(3),
            delay_max: Duration::from_millis(60),
            ..churn.faults
        };
        Config { faults, pause: Duration::from_millis(40), ..churn }
    }

    /// Three copies of which one is enough, whose members die and come back, go out and come in all the time, while messages of
    /// earlier intervals arrive again: who led alone for a moment must have told the monitors, whatever it was told before.
    #[must_use]
    pub fn ghosts() -> Config {
        let echo = Config::echo();
        let faults = Faults {
            replays: 0.4,
            kills_per_second: 0.2,
            power_cuts_per_second: 0.1,
            remaps_per_second: 0.2,
            downtime_max: Duration::from_secs(9),
            delay_max: Duration::from_millis(100),
            ..echo.faults
        };
        Config { min_size: 1, duration: Duration::from_secs(60), faults, ..echo }
    }

    /// All OSDs lose power at the moment when a placement group may have gone active, or acknowledges the first change after
    /// that, and one of them stays away: what it alone had durable must not have been shown. Disks hang for seconds: who has
    /// just started waits for leases, and by then a sync that is only slow would be over.
    #[must_use]
    pub fn brink() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            cuts_after_activation: 0.15,
            cuts_after_ack: 0.1,
            power_losses_per_second: 0.1,
            stuck_per_second: 0.3,
            downtime_max: Duration::from_millis(500),
            slow_sync: 0.6,
            ..Faults::NONE
        };
        let (duration, pause, patience) =
            (Duration::from_secs(90), Duration::from_millis(15), Duration::from_millis(150));
        // Twice as much as may be remembered still fits into one transaction: the bound itself is checked.
        let limits = Limits { dups_max: 300, ..storm.limits };
        Config { osds: 3, pgs_used: 2, faults, duration, pause, patience, removes: true, limits, ..storm }
    }

    /// Nothing stops at once: messages get through in one direction only, clocks run at different rates, processes pause for
    /// longer than their peers' patience, disks hang for seconds or fail for good.
    #[must_use]
    pub fn limp() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            loss: 0.01,
            duplication: 0.02,
            replays: 0.02,
            one_way_per_second: 0.08,
            stuck_per_second: 0.08,
            disk_failures_per_second: 0.4,
            bad_sectors_per_second: 0.5,
            pauses_per_second: 0.06,
            slow_sync: 0.1,
            delay_max: Duration::from_millis(20),
            ..Faults::NONE
        };
        Config { osds: 4, pgs_used: 2, faults, duration: Duration::from_secs(60), skewed_clocks: true, ..storm }
    }

    /// Sessions are fenced while they write, and go on sending, while maps are late and members come and go.
    #[must_use]
    pub fn fence() -> Config {
        let churn = Config::churn();
        let faults = Faults {
            fences_per_second: 0.3,
            map_lags_per_second: 0.4,
            kills_per_second: 0.06,
            power_cuts_per_second: 0.06,
            power_losses_per_second: 0.0,
            pauses_per_second: 0.04,
            ..churn.faults
        };
        Config { faults, pause: Duration::from_millis(120), patience: Duration::from_millis(600), ..churn }
    }

    /// After a storm one OSD does not come back: it goes out, and what it held is copied to others.
    #[must_use]
    pub fn gone() -> Config {
        let storm = Config::storm();
        Config { leave: 1, duration: Duration::from_secs(15), ..storm }
    }

    /// The same with two OSDs at one moment: placement groups of which one copy is left serve again when a second is filled.
    #[must_use]
    pub fn bereft() -> Config {
        // Three quarters must stay in.
        Config { osds: 8, leave: 2, ..Config::gone() }
    }

    /// All OSDs lose power at once, again and again, while most syncs are slow: what was acknowledged too soon is lost.
    #[must_use]
    pub fn power() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            power_losses_per_second: 0.12,
            cuts_after_ack: 0.05,
            downtime_max: Duration::from_secs(9),
            slow_sync: 0.5,
            ..Faults::NONE
        };
        let (duration, pause) = (Duration::from_secs(50), Duration::from_millis(20));
        Config { osds: 3, pgs_used: 2, faults, duration, pause, ..storm }
    }

    /// Maps reach OSDs late or never, one by one, while members crash and placement changes: each OSD has its own idea of
    /// when an interval began.
    #[must_use]
    pub fn gaps() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            map_lags_per_second: 0.5,
            remaps_per_second: 0.1,
            kills_per_second: 0.08,
            power_cuts_per_second: 0.07,
            power_losses_per_second: 0.02,
            partitions_per_second: 0.0,
            ..storm.faults
        };
        Config { faults, pause: Duration::from_millis(60), ..storm }
    }

    /// The pool is split, and what was split off is placed elsewhere step by step, while maps come late or never, members
    /// crash and placement changes. Days fly: scrubs go over what was split, and must find nothing wrong.
    #[must_use]
    pub fn splits() -> Config {
        let gaps = Config::gaps();
        let faults = Faults { splits_per_second: 0.6, map_lags_per_second: 0.2, ..gaps.faults };
        Config { pgs_used: 2, objects: 12, faults, day: Some(Duration::from_millis(500)), ..gaps }
    }

    /// Front ends keep a table that splits all the time, while OSDs fail and their disks fill, and are killed and paused
    /// themselves between any two steps.
    #[must_use]
    pub fn tables() -> Config {
        let storm = Config::storm();
        let faults = Faults {
            loss: 0.01,
            duplication: 0.02,
            kills_per_second: 0.06,
            power_cuts_per_second: 0.05,
            partitions_per_second: 0.05,
            cramps_per_second: 0.15,
            client_map_lag: 0.3,
            downtime_max: Duration::from_secs(6),
            slow_sync: 0.15,
            delay_max: Duration::from_millis(20),
            ..storm.faults
        };
        let front = FrontSettings {
            work: FrontWork::Tables,
            processes: 4,
            kills: 0.01,
            pauses: 0.03,
            op_timeout: Duration::from_secs(6),
            haste: 0.0,
            rest_ms: 100,
        };
        Config { clients: 1, depth: 2, pause: Duration::from_millis(200), front: Some(front), faults, ..storm }
    }

    /// S3 gateways, and what strikes front ends that keep tables: they are killed and paused in the middle of uploads and
    /// commits, or do not wait for the answer, their clients leave, and their collectors run all the time.
    #[must_use]
    pub fn objects() -> Config {
        let tables = Config::tables();
        let front = tables.front.map(|front| FrontSettings {
            work: FrontWork::Gateways,
            processes: 3,
            kills: 0.004,
            pauses: 0.01,
            op_timeout: Duration::from_secs(3),
            haste: 0.03,
            ..front
        });
        let faults = Faults { cramps_per_second: 0.05, ..tables.faults };
        Config { duration: Duration::from_secs(60), clients: 1, depth: 1, front, faults, ..tables }
    }

    /// Processes and machines fail and pause, OSDs are cut off, placement and leaders change, messages are lost; limits are tiny,
    /// so that trimming and backfill happen all the time. Most other worlds are made of this one.
    #[must_use]
    pub fn storm() -> Config {
        Config {
            osds: 5,
            pgs_used: 3,
            duration: Duration::from_secs(40),
            pause: Duration::from_millis(80),
            faults: Faults {
                loss: 0.02,
                duplication: 0.02,
                replays: 0.0,
                cuts_after_activation: 0.0,
                cuts_after_ack: 0.0,
                rifts_per_second: 0.0,
                one_way_per_second: 0.0,
                stuck_per_second: 0.0,
                disk_failures_per_second: 0.0,
                fences_per_second: 0.0,
                delay_max: Duration::from_millis(40),
                kills_per_second: 0.05,
                power_cuts_per_second: 0.05,
                power_losses_per_second: 0.01,
                downtime_max: Duration::from_secs(10),
                partitions_per_second: 0.04,
                remaps_per_second: 0.05,
                splits_per_second: 0.0,
                map_lags_per_second: 0.0,
                flips_per_second: 0.0,
                bad_sectors_per_second: 0.0,
                cramps_per_second: 0.0,
                pauses_per_second: 0.03,
                served_cuts_per_second: 0.0,
                one_way_cuts_per_second: 0.0,
                pauses_at_answers_per_second: 0.0,
                client_map_lag: 0.0,
                leader_changes_per_second: 0.03,
                monitor_outages_per_second: 0.015,
                slow_sync: 0.3,
                ..Faults::NONE
            },
            limits: Limits {
                log_entries_min: 12,
                log_entries_max: 24,
                log_trim_batch: 4,
                dups_max: 400,
                backfill_batch: 3,
                effects_bytes_max: 1 << 20,
                transfers_max: 2,
                piece_bytes: 48,
                ..Limits::default()
            },
            ..Config::calm()
        }
    }
}
