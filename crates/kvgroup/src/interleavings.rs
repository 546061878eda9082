//! The protocols under every kind of bad luck: several processes stepped one op at a time in a seeded order, stopped
//! between ops, paused for long, with answers lost and ops that take effect much later.
//!
//! What callers saw is then checked route by route for linearizability (`linearizable`), and the objects for their
//! shape. A failing seed is named; `HOLDFAST_KV_SEED=n` runs it alone, `HOLDFAST_KV_SEEDS=n` sets how many run.
#![allow(clippy::unwrap_used)]

mod actors;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sabotage::{self, Sabotage};
use crate::testing::linearizable;

/// Seeds that once failed: a drop that met another drop's end; a paused helper of a split that woke in a dropped table.
const REGRESSIONS: [u64; 2] = [90, 5685];

/// Runs a seed; panics with what is wrong.
fn run(seed: u64) {
    let world = actors::play(seed);
    let history = world.lock().history.clone();
    linearizable::check(&history.events).unwrap();
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn what_callers_see_is_linearizable_whatever_happens_in_between() {
    if let Some(seed) = env("HOLDFAST_KV_SEED") {
        return run(seed);
    }
    let (mut splits, mut drops) = (0, 0);
    let seeds = 0..env("HOLDFAST_KV_SEEDS").unwrap_or(600);
    for seed in REGRESSIONS.into_iter().chain(seeds) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let world = actors::play(seed);
            let world = world.lock();
            linearizable::check(&world.history.events).unwrap();
            (world.splits(), world.history.drops())
        }));
        match outcome {
            Ok((split, drop)) => (splits, drops) = (splits + split, drops + drop),
            Err(cause) => {
                eprintln!("replay with HOLDFAST_KV_SEED={seed}");
                std::panic::resume_unwind(cause);
            }
        }
    }
    // A campaign in which nothing happened proves nothing.
    assert!(splits > 600 && drops > 20, "only {splits} splits and {drops} drops");
}

#[test]
fn a_seed_plays_the_same_way_twice() {
    for seed in 0..10 {
        let (first, second) = (actors::play(seed), actors::play(seed));
        assert_eq!(format!("{:?}", first.lock().history), format!("{:?}", second.lock().history));
    }
}

#[test]
fn each_broken_rule_is_noticed() {
    let mut unnoticed = Vec::new();
    for broken in Sabotage::ALL {
        sabotage::set(Some(broken));
        match (0..600).find(|seed| catch_unwind(|| run(*seed)).is_err()) {
            Some(seed) => println!("{broken:?}: noticed at seed {seed}"),
            None => unnoticed.push(broken),
        }
    }
    sabotage::set(None);
    assert!(unnoticed.is_empty(), "unnoticed: {unnoticed:?}");
}
