//! The grammar of the command line: noun, then verb.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use holdfast_types::{ClientId, Incarnation, OsdId, PgId};

use crate::units::ByteSize;

const EXAMPLES: &str = "\
Examples:
  holdfast dev up --osds 3 --data /tmp/hf      a whole cluster on this machine
  eval \"$(holdfast dev env --data /tmp/hf)\"    point the S3 tools and this command at it
  holdfast status                              what is up, what is not as it should be
  holdfast osd tree -o json                    the same for programs

Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict, 5 refused as unsafe, 6 timeout";

/// One storage cluster for objects, block devices and files.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Cli {
    /// The same as `holdfast status`.
    #[arg(short = 's')]
    pub status: bool,
    /// For all commands.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Options of all commands that ask a cluster.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Tables for people or JSON for programs.
    #[arg(
        short = 'o',
        long = "output",
        visible_alias = "format",
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,
    /// Seconds to wait for the monitors.
    #[arg(long, global = true, default_value_t = 15, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Tables; sizes in IEC units.
    #[default]
    Text,
    /// JSON with stable names; sizes in bytes.
    Json,
}

/// The configuration file of a daemon.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The daemon's TOML file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a monitor.
    Mon {
        /// Form a new cluster of the monitors in the file, each of which must be started so once. Leave it out later: a
        /// monitor that has lost its directory and reaches none of the others would take itself for a new one.
        #[arg(long)]
        bootstrap: bool,
        /// Its file.
        #[command(flatten)]
        run: RunArgs,
    },
    /// Run a storage daemon, or ask about storage daemons.
    #[command(args_conflicts_with_subcommands = true)]
    Osd {
        /// Its file.
        #[command(flatten)]
        run: RunArgs,
        /// What about them.
        #[command(subcommand)]
        verb: Option<OsdVerb>,
    },
    /// Run an S3 gateway.
    S3 {
        /// Its file.
        #[command(flatten)]
        run: RunArgs,
    },
    /// A whole cluster on this machine.
    #[command(subcommand)]
    Dev(DevVerb),
    /// What is up, and what is not as it should be.
    Status,
    /// What is not as it should be; `health detail` with what it means and what to do.
    Health {
        /// Say all.
        #[arg(value_enum)]
        detail: Option<Detail>,
    },
    /// Space of the cluster and its pools.
    Df,
    /// Pools.
    #[command(subcommand)]
    Pool(PoolVerb),
    /// Placement groups.
    #[command(subcommand)]
    Pg(PgVerb),
    /// Why something is not as it should be: the cause, who stands in the way, the next command.
    #[command(subcommand)]
    Explain(ExplainWhat),
    /// What evens out how full the OSDs are.
    #[command(subcommand)]
    Balancer(BalancerVerb),
    /// S3 keys.
    #[command(subcommand)]
    Key(KeyVerb),
    /// Settings kept by the monitors.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// CRUSH maps.
    #[command(subcommand)]
    Crush(CrushVerb),
}

/// The word after `health`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Detail {
    /// Say all.
    Detail,
}

/// `holdfast osd …`
#[derive(Debug, Subcommand)]
pub enum OsdVerb {
    /// The hierarchy, and who is up.
    Tree,
    /// Space and placement groups of each.
    Df,
    /// Move data away from them.
    Out(Osds),
    /// Give them data again.
    In(Osds),
    /// Mark them down; living ones come back by themselves.
    Down(Osds),
    /// Have all placement groups that have a copy there scrubbed.
    Scrub(Osds),
    /// The same, reading all bytes of all copies.
    DeepScrub(Osds),
    /// Give one less or more of its share of data.
    Reweight {
        /// Which, such as osd.3 or 3.
        osd: OsdId,
        /// 0 to 1.
        weight: f64,
    },
    /// Let one that flaps, and whose boots are held off, boot at once.
    Release(Osds),
    /// Where the warning of a nearly full OSD starts.
    SetNearfullRatio(Ratio),
    /// Where an OSD is given no further copies of placement groups.
    SetBackfillfullRatio(Ratio),
    /// Where writes stop.
    SetFullRatio(Ratio),
    /// Where all stops but what frees space.
    SetFailsafeRatio(Ratio),
    /// Fences: clients that somebody else took over from, and that get nothing done any more.
    #[command(subcommand)]
    Blocklist(BlocklistVerb),
    /// Forget one that is down and out. Refused while anything may be on its disk only.
    Rm {
        /// Which, such as osd.3 or 3.
        osd: OsdId,
        /// Its name once more, such as osd.3.
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
    /// Give up what only this one has, because its disk is gone for good: nobody waits for it any more. The newest
    /// acknowledged writes may be lost by that.
    Lost {
        /// Which, such as osd.3 or 3.
        osd: OsdId,
        /// Its name once more, such as osd.3.
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
}

/// `holdfast osd blocklist …`
#[derive(Debug, Subcommand)]
pub enum BlocklistVerb {
    /// All fences.
    Ls,
    /// Fence a client. Returns when the fence holds: when no OSD begins anything for it any more.
    Add(FencedClient),
    /// Take a fence away. Only when nothing of what was fenced runs any more: it could write again.
    Rm(FencedClient),
}

/// A client, or some of its runs.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct FencedClient {
    /// Which, such as client.7 or 7.
    pub client: ClientId,
    /// Only its runs up to this one; all there can be when left out.
    #[arg(long, value_name = "RUN")]
    pub incarnation: Option<Incarnation>,
}

/// `holdfast explain …`
#[derive(Debug, Subcommand)]
pub enum ExplainWhat {
    /// A placement group.
    Pg {
        /// Which, such as 1.3.
        pg: PgId,
    },
    /// The placement group of an object.
    Object {
        /// Its pool.
        pool: String,
        /// Its name.
        name: String,
    },
    /// An OSD.
    Osd {
        /// Which, such as osd.3 or 3.
        osd: OsdId,
    },
}

/// `holdfast balancer …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum BalancerVerb {
    /// What it does or waits for.
    Status,
    /// Let it move data, as it does by default.
    On,
    /// Let it move nothing.
    Off,
}

/// A part of an OSD's room.
#[derive(Debug, Clone, Copy, Args)]
pub struct Ratio {
    /// Such as 0.85.
    #[arg(value_name = "0.0-1.0")]
    pub ratio: f64,
}

/// Some OSDs.
#[derive(Debug, Args)]
pub struct Osds {
    /// Which, such as osd.3 or 3.
    #[arg(required = true, value_name = "OSD")]
    pub osds: Vec<OsdId>,
}

/// `holdfast pool …`
#[derive(Debug, Subcommand)]
pub enum PoolVerb {
    /// All pools.
    Ls,
    /// Make a replicated pool. The number of placement groups is the cluster's business.
    Create {
        /// Its name.
        name: String,
        /// Copies; 3, or as many as there are failure domains.
        #[arg(long)]
        size: Option<u32>,
        /// Fewest copies to serve with; a majority of the copies.
        #[arg(long)]
        min_size: Option<u32>,
        /// What it is for; people read it.
        #[arg(long, default_value = "")]
        application: String,
        /// What no two copies share: `host`, `rack`, `osd`.
        #[arg(long)]
        failure_domain: Option<String>,
        /// Expected part of the cluster's data, in percent.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
        share_percent: Option<u32>,
    },
    /// Change a pool. Data moves by itself.
    Set {
        /// Its name.
        name: String,
        /// Copies. With more than before, the fewest to serve with stay as they are until they are raised, too.
        #[arg(long, required_unless_present_any = ["min_size", "failure_domain"])]
        size: Option<u32>,
        /// Fewest copies to serve with. Raise it when all is clean: what has fewer copies is not served.
        #[arg(long)]
        min_size: Option<u32>,
        /// What no two copies share: `host`, `rack`, `osd`.
        #[arg(long)]
        failure_domain: Option<String>,
    },
    /// Delete a pool and all that is in it.
    Rm {
        /// Its name.
        name: String,
        /// Its name once more.
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
}

/// `holdfast pg …`
#[derive(Debug, Subcommand)]
pub enum PgVerb {
    /// All placement groups and what they are doing.
    Ls {
        /// Only those that are not active+clean.
        #[arg(long)]
        unclean: bool,
    },
    /// All that is known of one.
    Query {
        /// Which, such as 1.3.
        pg: PgId,
    },
    /// Have the copies compared: versions, sizes, attributes and rows.
    Scrub(Pgs),
    /// Have all bytes of all copies read and compared, too.
    DeepScrub(Pgs),
    /// Have them compared deeply, and repaired whatever can be told to be wrong, however much it is.
    Repair(Pgs),
}

/// Some placement groups.
#[derive(Debug, Args)]
pub struct Pgs {
    /// Which, such as 1.1f.
    #[arg(required = true, value_name = "PG")]
    pub pgs: Vec<PgId>,
}

/// `holdfast key …`
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Make a key pair; what is not given is drawn.
    New {
        /// A name for people.
        name: String,
        /// The access key to use.
        #[arg(long)]
        access_key: Option<String>,
        /// The secret key to use.
        #[arg(long)]
        secret_key: Option<String>,
    },
    /// All keys, without their secrets.
    Ls,
    /// Delete a key.
    Rm {
        /// Its name or access key.
        name: String,
    },
}

/// `holdfast config …`
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// The value of one setting.
    Get {
        /// Which.
        name: String,
    },
    /// Change a setting.
    Set {
        /// Which.
        name: String,
        /// To what.
        value: String,
    },
    /// Take a setting back to its default.
    Rm {
        /// Which.
        name: String,
    },
    /// All settings that are set.
    Dump,
    /// All changes, newest last.
    Log,
    /// Set everything as it was after a change.
    Rollback {
        /// The number of the change, from `config log`.
        version: u64,
    },
}

/// `holdfast crush …`
#[derive(Debug, Subcommand)]
pub enum CrushVerb {
    /// Map inputs by a rule, and print what `crushtool --test` prints.
    Test {
        /// A CRUSH map as text.
        #[arg(long, value_name = "FILE")]
        map: PathBuf,
        /// Which rule.
        #[arg(long)]
        rule: u32,
        /// How many OSDs for each input.
        #[arg(long)]
        num_rep: usize,
        /// First input.
        #[arg(long, default_value_t = 0)]
        min_x: u32,
        /// Last input.
        #[arg(long, default_value_t = 1023)]
        max_x: u32,
        /// Hash each input with this pool first.
        #[arg(long)]
        pool_id: Option<u32>,
        /// Reweight of an OSD, 0 to 1; can be repeated.
        #[arg(long, num_args = 2, value_names = ["OSD", "WEIGHT"], action = clap::ArgAction::Append)]
        weight: Vec<String>,
        /// Print the mappings.
        #[arg(long)]
        show_mappings: bool,
    },
}

/// `holdfast dev …`
#[derive(Debug, Subcommand)]
pub enum DevVerb {
    /// Start the cluster of a directory, which is made at first start.
    Up(UpArgs),
    /// Stop it.
    Down(DataArg),
    /// Its daemons: role, id, process, address.
    Ps(DataArg),
    /// Shell lines that point S3 tools and this command at it.
    Env(DataArg),
}

/// Where the cluster is.
#[derive(Debug, Clone, Args)]
pub struct DataArg {
    /// The cluster's directory [default: ~/.local/share/holdfast/dev].
    #[arg(long, env = "HOLDFAST_DEV_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `holdfast dev up …`
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Where.
    #[command(flatten)]
    pub data: DataArg,
    /// Monitors: 1, 3 or 5 [default: 1, or what is there].
    #[arg(long)]
    pub mons: Option<u32>,
    /// OSDs: 1 to 64 [default: 3, or what is there]. More than are there adds some.
    #[arg(long)]
    pub osds: Option<u32>,
    /// Where S3 listens [default: a free port of 127.0.0.1, kept].
    #[arg(long, value_name = "ADDR:PORT")]
    pub s3: Option<SocketAddr>,
    /// How large the device file of a new OSD may grow [default: a fair part of the free space].
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<ByteSize>,
    /// Run each daemon as a process of its own.
    #[arg(long)]
    pub processes: bool,
    /// With --processes: leave daemons that end by themselves alone.
    #[arg(long, requires = "processes")]
    pub no_restart: bool,
    /// Return when the cluster serves, and leave it running.
    #[arg(long)]
    pub detach: bool,
    /// Set by --detach for the process that stays.
    #[arg(long, hide = true)]
    pub background: bool,
}
