//! `holdfast-sim --seeds N --from SEED [--world calm|storm|power|rot|gaps|full|scrub] [--trace]`: runs seeds, prints what they add up to, and
//! ends with an error when one of them broke a promise. `cargo xtask sim` calls it.

use std::process::ExitCode;

use holdfast_sim::{Config, campaign};

struct Arguments {
    seeds: u64,
    from: u64,
    worlds: Vec<(&'static str, Config)>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let (mut seeds, mut from, mut trace, mut only) = (100, 0, false, None);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seeds" => seeds = value()?.parse().map_err(|error| format!("--seeds: {error}"))?,
            "--from" => from = value()?.parse().map_err(|error| format!("--from: {error}"))?,
            "--world" => only = Some(value()?),
            "--trace" => trace = true,
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    let all = [
        ("storm", Config::storm()),
        ("power", Config::power()),
        ("rot", Config::rot()),
        ("gaps", Config::gaps()),
        ("full", Config::full()),
        ("scrub", Config::scrub()),
        ("calm", Config::calm()),
    ];
    let wanted = |name: &str| only.as_ref().map_or(name != "calm", |only| only == name);
    let worlds = all.into_iter().filter(|(name, _)| wanted(name));
    let worlds: Vec<_> = worlds.map(|(name, config)| (name, Config { trace, ..config })).collect();
    if worlds.is_empty() {
        return Err("a world is one of calm, storm, power, rot, gaps, full, scrub".to_owned());
    }
    Ok(Arguments { seeds, from, worlds })
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let mut failed = false;
    for (name, config) in &arguments.worlds {
        let summary = campaign(arguments.from, arguments.seeds, config);
        for violation in &summary.violations {
            println!("{name}: {violation}");
        }
        println!("{name}: {summary}");
        failed |= !summary.violations.is_empty();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
