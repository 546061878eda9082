//! Developer commands: `cargo xtask check` is what `make test` and so CI run; the others are its parts and longer forms.
//!
//! Nothing here is shipped. Each command prints what it runs, so that a failed step can be run again by hand.

mod check;
mod end_to_end;
mod files;
mod invariants;
mod layers;
mod run;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Developer commands of Holdfast")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Layers, list of invariants, formatting, lints, docs, unit tests, short simulations, then the built binary end to end.
    Check {
        /// Leave out all that needs the release binary.
        #[arg(long)]
        fast: bool,
    },
    /// Checks which crate uses which, and that pure crates have no runtime beneath them.
    Layers,
    /// Holds docs/invariants.md to what it claims: ids, checkers, tests, and that what it names is there.
    Invariants,
    /// Lists source files that outgrew one idea.
    Files,
    /// Runs seeds of the simulator: a whole cluster in one thread, two of them at a time; all worlds but `calm`.
    Sim {
        /// How many of each world.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Only this world; the only way to `calm`.
        #[arg(long)]
        world: Option<String>,
        /// Prints every input and output to standard error: for replays.
        #[arg(long)]
        trace: bool,
        /// Leaves these strikes out, such as `3,5,9-40,77-`: for a schedule that was shortened, of one seed of one world.
        #[arg(long)]
        without: Option<String>,
        /// Leaves out what happens so by chance, such as `loss,doubling`.
        #[arg(long)]
        no: Option<String>,
        /// Does not shorten the schedules of failures.
        #[arg(long)]
        no_shrink: bool,
    },
    /// Runs the simulator with each seeded protocol bug, then that of the monitors, and writes docs/mutants-table.md and
    /// docs/monitor-mutants-table.md; fails for a bug that no checker notices, and for a checker that no bug needs.
    Mutants {
        /// Seeds of each world that one bug may take.
        #[arg(long, default_value_t = 200)]
        budget: u64,
        /// Proves of each checker but once that it is needed: a third of the time.
        #[arg(long)]
        brief: bool,
    },
    /// Runs seeds of the simulator of the monitors; what follows is passed on.
    SimMonitors {
        /// How many.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// See `cargo xtask sim-monitors -- --help`.
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Load with checkers while processes, network, disks and clocks are broken; needs root. From five minutes on every
    /// kind of fault is dealt and the stalls of writes are measured.
    Chaos {
        /// How long faults are dealt.
        #[arg(long, default_value_t = 5.0)]
        minutes: f64,
        /// All hosts on file systems that lose what was not synced when the power fails; without the full file system.
        #[arg(long)]
        power: bool,
        /// Which faults in which order, and what is written. Drawn and printed without.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// One bit flipped in a file of one OSD, and power lost on all hosts with what was not synced: in the simulator, then
    /// with real processes; needs root.
    Headline {
        /// Seeds of each in the simulator in which it struck.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How often each strikes the real processes.
        #[arg(long, default_value_t = 10)]
        rounds: u64,
        /// What is written and when it strikes, with real processes. Drawn and printed without.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Every real S3 client against a fresh cluster.
    Clients {
        /// Small sizes only.
        #[arg(long)]
        quick: bool,
        /// Only suites whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Only the end-to-end tests of the built binary.
    EndToEnd {
        /// The long forms: two minutes of kills and of outage, 10,000 listings, 16 objects of 1 GiB.
        #[arg(long)]
        full: bool,
    },
    /// The demonstration of `make demo`.
    Demo,
    /// The measurements of `make bench`; what follows is passed on.
    Bench {
        /// See `cargo xtask bench -- --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Check { fast } => check::all(fast),
        Command::Layers => layers::check(),
        Command::Invariants => invariants::check(),
        Command::Files => files::report(),
        Command::SimMonitors { seeds, from, rest } => check::monitors(seeds, from, &rest),
        Command::Sim { seeds, from, world, trace, without, no, no_shrink } => {
            let named = [("--world", &world), ("--without", &without), ("--no", &no)];
            let given = named.into_iter().filter_map(|(name, value)| Some([name, value.as_deref()?]));
            let mut rest: Vec<&str> = given.flatten().collect();
            rest.extend(trace.then_some("--trace"));
            rest.extend(no_shrink.then_some("--no-shrink"));
            check::simulation(seeds, from, &rest)
        }
        Command::Mutants { budget, brief } => check::mutants(budget, brief),
        Command::Chaos { minutes, seed, power } => end_to_end::chaos(minutes, seed, power),
        Command::Headline { seeds, from, rounds, seed } => end_to_end::headline(seeds, from, rounds, seed),
        Command::Clients { quick, only } => end_to_end::clients(quick, only.as_deref()),
        Command::EndToEnd { full } => end_to_end::tests(full),
        Command::Demo => end_to_end::demo(),
        Command::Bench { rest } => end_to_end::bench(&rest),
    }
}
