//! Seeds that found something, run whole. A schedule changes with the code, so one of them proves no more than any seed once
//! what it found cannot come about in it any more; what was found has a test of its own where one could be written.
#![allow(clippy::unwrap_used)]

use holdfast_sim::{Config, campaign};

/// World, seed, and what was wrong: with the product first, then with the simulator.
const FOUND: [(&str, u64, &str); 17] = [
    ("limp", 2_001_439, "a complete copy that knew an activation did not speak for the time before it"),
    ("limp", 2_001_472, "the same, after the only other copy's disk was lost"),
    ("limp", 2_001_863, "a write over bytes that nobody could read was adopted, and nobody else was waited for"),
    ("leases", 2_001_958, "a remembered failure was repeated by one who had been replaced"),
    ("leases", 2_001_199, "a process that stopped within a step took the next map first"),
    ("limp", 4_001_434, "strays of a placement group with a lost object counted as left behind"),
    ("limp", 10_000_408, "a copy filled from one that could not be read vouched for its log"),
    ("limp", 10_001_695, "the same, another bad sector"),
    ("ghosts", 10_001_210, "a stray that restarted while others were asked in its place was not asked again"),
    ("bereft", 12_001_414, "who missed the word of an activation waited for all who had been down"),
    ("ghosts", 14_001_760, "backfill went past an object that a deletion had left out which came to nothing"),
    ("limp", 2_001_253, "a repeated answer that something is unreadable was judged anew"),
    ("tables", 2_000_688, "what a stopped process had put off stayed put off after the end of all faults"),
    ("rifts", 10_001_689, "a client took the failure that a former primary told for the answer to a later sending"),
    ("objects", 6_001_445, "two unseen writes counted as alike though a condition told them apart"),
    ("objects", 12_000_619, "an unanswered write that only a condition had met was left out"),
    ("cramped", 12_000_997, "what filled a disk stayed when its removal was refused once"),
];

#[test]
fn seeds_that_found_something_find_it_no_more() {
    let worlds = Config::worlds();
    let mut found = Vec::new();
    for (name, seed, was) in FOUND {
        let (_, config) = worlds.iter().find(|(world, _)| *world == name).unwrap();
        let violations = campaign(seed, 1, config, 1, 1).violations;
        found.extend(violations.iter().map(|violation| format!("{name} {seed} (once: {was}): {violation}")));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
