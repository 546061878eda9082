//! Every line that Ceph 16.2.15 printed for the maps in `testdata/` is reproduced.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use holdfast_crush::{
    CrushMap, ITEM_NONE, MappingRun, RuleId, Workspace, crushtool_show_mappings, hash32_2, reweight_from_f32,
    stable_mask, stable_mod, str_hash_rjenkins,
};
use holdfast_types::OsdId;

const MAPS: [&str; 8] = [
    "m1-3level",
    "m3-reweight",
    "m4-tunables-jewel",
    "m6-2level",
    "m6-2level-classes",
    "m6-3osd",
    "m7-alg-straw2",
    "m7-alg-uniform",
];

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn gunzip(name: &str) -> String {
    let file = fs::File::open(testdata(name)).expect("the vector exists");
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).expect("the vector is gzip");
    text
}

fn map_text(name: &str) -> String {
    fs::read_to_string(testdata(&format!("{name}.txt"))).expect("the map exists")
}

fn map(name: &str) -> CrushMap {
    CrushMap::parse_text(&map_text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The options of a `## crushtool …` line.
fn parse_run(command: &str) -> MappingRun {
    let words: Vec<&str> = command.split_whitespace().collect();
    let number = |option: &str| -> Option<u32> {
        let at = words.iter().position(|word| *word == option)?;
        Some(words[at + 1].parse().expect("a number"))
    };
    let mut reweights = BTreeMap::new();
    for (at, _) in words.iter().enumerate().filter(|(_, word)| **word == "--weight") {
        let weight: f32 = words[at + 2].parse().expect("a weight");
        reweights.insert(OsdId(words[at + 1].parse().expect("an OSD")), reweight_from_f32(weight));
    }
    MappingRun {
        rule: RuleId(number("--rule").expect("given")),
        num_rep: number("--num-rep").expect("given") as usize,
        x: number("--min-x").expect("given")..=number("--max-x").expect("given"),
        reweights,
        pool_id: number("--pool-id"),
    }
}

fn check_mappings(name: &str) -> usize {
    let map = map(name);
    let vectors = gunzip(&format!("{name}.mappings.gz"));
    let mut expected = vectors.lines().peekable();
    let mut lines = 0;
    while let Some(command) = expected.next() {
        let run = parse_run(command.strip_prefix("## ").expect("a block starts with its command"));
        crushtool_show_mappings(&map, &run, |line| {
            assert_eq!(Some(line), expected.next(), "{name}: {command}");
            lines += 1;
        })
        .expect("the rule exists");
        assert!(
            expected.peek().is_none_or(|line| line.starts_with("## ")),
            "{name}: a line was not printed: {command}"
        );
    }
    lines
}

#[test]
fn every_golden_mapping_is_reproduced() {
    let lines: usize = MAPS.iter().map(|name| check_mappings(name)).sum();
    let expected: usize = MAPS
        .iter()
        .map(|name| gunzip(&format!("{name}.mappings.gz")).lines().filter(|line| line.starts_with("CRUSH")).count())
        .sum();
    assert_eq!(lines, expected);
    assert!(lines > 40_000, "only {lines} vectors");
}

#[test]
fn every_golden_map_prints_as_it_was_read() {
    for name in MAPS {
        assert_eq!(map(name).to_text(), map_text(name), "{name}");
    }
}

#[test]
fn every_golden_map_survives_its_encoding() {
    for name in MAPS {
        let map = map(name);
        let bytes = minicbor::to_vec(&map).expect("encoding to memory cannot fail");
        let decoded: CrushMap = minicbor::decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(decoded, map);
        assert_eq!(decoded.to_text(), map_text(name));
    }
}

/// Ids of shadows that the text leaves out are given as `crushtool -c` gave them.
#[test]
fn shadow_ids_are_allocated_as_ceph_does() {
    let text = map_text("m6-2level-classes");
    let without: String = text
        .lines()
        .filter(|line| !(line.starts_with("\tid -") && line.contains(" class ")))
        .fold(String::new(), |text, line| text + line + "\n");
    assert_ne!(without, text);
    assert_eq!(CrushMap::parse_text(&without).expect("valid").to_text(), text);
}

#[test]
fn object_names_hash_to_the_placement_groups_that_ceph_gives() {
    let pg_num: BTreeMap<&str, u32> = [("rep3", 128), ("rep100", 100), ("ec42", 64), ("ec2step", 32)].into();
    let objects = gunzip("objects.txt.gz");
    let mut count = 0;
    for line in objects.lines() {
        let fields = json_strings(line);
        let [pool, namespace, object, raw, pg] = fields.as_slice() else { panic!("five fields: {line}") };
        let key = if namespace.is_empty() { object.clone() } else { format!("{namespace}\u{1f}{object}") };
        let hash = str_hash_rjenkins(key.as_bytes());
        let b = pg_num[pool.as_str()];
        assert_eq!(format!("{hash:x}"), raw.split_once('.').expect("pool.seed").1, "{line}");
        let seed = stable_mod(hash, b, stable_mask(b));
        assert_eq!(format!("{seed:x}"), pg.split_once('.').expect("pool.seed").1, "{line}");
        count += 1;
    }
    assert!(count > 1_800, "only {count} objects");
}

/// The strings of one JSON array of strings.
fn json_strings(line: &str) -> Vec<String> {
    let mut strings = vec![];
    let mut chars = line.chars();
    while chars.by_ref().any(|char| char == '"') {
        let mut string = String::new();
        while let Some(char) = chars.next() {
            match char {
                '"' => break,
                '\\' => match chars.next().expect("an escape") {
                    'u' => {
                        let digits: String = chars.by_ref().take(4).collect();
                        let code = u32::from_str_radix(&digits, 16).expect("hex");
                        string.push(char::from_u32(code).expect("no surrogates in the vectors"));
                    }
                    'n' => string.push('\n'),
                    't' => string.push('\t'),
                    other => string.push(other),
                },
                other => string.push(other),
            }
        }
        strings.push(string);
    }
    strings
}

/// `osdmaptool --test-map-pgs-dump-all`: placement seeds of pools go through the same hash, modulus and map.
#[test]
fn placement_groups_map_to_the_osds_that_ceph_gives() {
    let map = map("m1-3level");
    let pools: BTreeMap<u32, (RuleId, usize, u32)> =
        [(1, (RuleId(0), 3, 128)), (2, (RuleId(2), 3, 100)), (3, (RuleId(1), 6, 64)), (4, (RuleId(6), 6, 32))].into();
    let reweights = [0x10000; 36];
    let mut workspace = Workspace::default();
    let mut count = 0;
    for line in gunzip("osdmap-base.pgs.gz").lines().filter(|line| !line.starts_with('#')) {
        let (pg, rest) = line.split_once(" raw ([").expect("a placement group");
        let (raw, _) = rest.split_once(']').expect("a list");
        let (pool, seed) = pg.split_once('.').expect("pool.seed");
        let pool: u32 = pool.parse().expect("a pool");
        let seed = u32::from_str_radix(seed, 16).expect("hex");
        let (rule, size, pg_num) = pools[&pool];
        let x = hash32_2(stable_mod(seed, pg_num, stable_mask(pg_num)), pool);
        let result = map.map_raw(rule, x, size, &reweights, &mut workspace);
        let result: Vec<String> = result.iter().map(|item| item.to_string()).collect();
        assert_eq!(result.join(","), raw.replace("NONE", &ITEM_NONE.to_string()), "{line}");
        count += 1;
    }
    assert_eq!(count, 128 + 100 + 64 + 32);
}
