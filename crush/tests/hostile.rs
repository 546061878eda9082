//! No text and no bytes make the crate panic, loop or allocate without bound; what is wrong is said where it is.

use std::fs;
use std::path::Path;

use holdfast_crush::{
    Bucket, BucketAlg, ChooseMode, CrushMap, DEPTH_MAX, Device, InvalidMap, Item, ItemId, Parts, Rule, RuleId,
    RuleKind, Step, WEIGHT_ONE,
};
use proptest::prelude::*;

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(format!("{name}.txt"));
    fs::read_to_string(path).expect("the map exists")
}

fn error_of(text: &str) -> String {
    CrushMap::parse_text(text).expect_err("the text is wrong").to_string()
}

/// The 3-osd map with one replacement.
fn broken(from: &str, to: &str) -> String {
    let text = golden("m6-3osd");
    let broken = text.replacen(from, to, 1);
    assert_ne!(broken, text, "{from:?} is not in the map");
    error_of(&broken)
}

#[test]
fn errors_name_line_and_column_and_what_was_expected() {
    for (from, to, expected) in [
        (
            "alg straw2",
            "alg straw",
            "line 28, column 6: bucket algorithm straw is not supported, only straw2 and uniform are",
        ),
        ("alg straw2", "alg strow", "line 28, column 6: expected straw2 or uniform, found \"strow\""),
        ("hash 0", "hash 1", "line 29, column 7: expected 0 (rjenkins1), the only hash, found \"1\""),
        ("item osd.0 weight", "item osd.9 weight", "line 30, column 7: item \"osd.9\" is not defined above"),
        (
            "weight 0.008\n}",
            "weight -1\n}",
            "line 30, column 20: expected a weight of 0 to less than 65536, such as 1.000, found \"-1\"",
        ),
        (
            "tunable chooseleaf_stable 1",
            "tunable chooseleaf_stable 0",
            "line 7, column 9: chooseleaf_stable 0 is not supported, only 1 is (the jewel profile)",
        ),
        (
            "tunable chooseleaf_stable 1\n",
            "",
            "line 96, column 1: tunable chooseleaf_stable is missing, which means a profile older than jewel: \
             `tunable chooseleaf_stable 1` is supported",
        ),
        ("type 1 host", "type 1 rack", "line 20, column 8: type rack is already defined"),
        ("step take default", "step take nowhere", "line 62, column 12: item \"nowhere\" is not defined above"),
        (
            "step take default",
            "step take default class ssd",
            "line 62, column 26: device class \"ssd\" is not defined above",
        ),
        (
            "step chooseleaf firstn 0 type host",
            "step choose firstn 0 type host",
            "line 57, column 6: rule \"rep_host\" emits buckets",
        ),
        ("type host", "type hoist", "line 63, column 32: type \"hoist\" is not defined above"),
        ("id -3", "id 3", "line 25, column 6: bucket id 3 is not within"),
        ("id -4", "id -3", "line 32, column 6: bucket id -3 is already defined"),
        ("# end crush map", "choose_args 0 {}", "line 97, column 1: choose_args (weight sets) is not supported"),
        ("\n}\n\n# end crush map", "", "found the end of the text"),
        ("# begin crush map", "begin", "line 1, column 1: expected tunable, device, type, rule or the name of a type"),
    ] {
        let error = broken(from, to);
        assert!(error.contains(expected), "{from:?} -> {to:?}\n  gave     {error}\n  expected {expected}");
    }
}

#[test]
fn columns_count_characters() {
    assert!(error_of("# é\n\té").starts_with("line 2, column 2: "), "{}", error_of("# é\n\té"));
}

fn parts(buckets: impl IntoIterator<Item = (ItemId, Vec<ItemId>)>) -> Parts {
    let mut parts = Parts::default();
    parts.types.extend([(0, "osd".to_owned()), (1, "host".to_owned())]);
    parts.devices.insert(0, Device { name: "osd.0".to_owned(), class: None });
    for (id, items) in buckets {
        let items = items.into_iter().map(|id| Item { id, weight: WEIGHT_ONE }).collect();
        let name = format!("b{}", id.unsigned_abs());
        parts.buckets.insert(id, Bucket { name, type_id: 1, alg: BucketAlg::Straw2, items, shadow_ids: [].into() });
    }
    parts
}

/// A decoder is the only way in that can bring a cycle; it must not bring one.
fn decoded(parts: &Parts) -> Result<CrushMap, String> {
    let bytes = minicbor::to_vec(parts).expect("encoding to memory cannot fail");
    minicbor::decode(&bytes).map_err(|error: minicbor::decode::Error| error.to_string())
}

#[test]
fn a_cycle_is_refused_when_decoding() {
    for cycle in [parts([(-1, vec![-1])]), parts([(-1, vec![-2]), (-2, vec![-3]), (-3, vec![0, -2])])] {
        assert!(matches!(CrushMap::from_parts(cycle.clone()), Err(InvalidMap::Cycle { .. })));
        assert!(decoded(&cycle).is_err());
    }
}

#[test]
fn a_hierarchy_has_at_most_so_many_levels() {
    let depth = DEPTH_MAX as ItemId;
    let chain =
        |levels: ItemId| parts((1..=levels).map(|level| (-level, vec![if level == levels { 0 } else { -level - 1 }])));
    assert!(CrushMap::from_parts(chain(depth - 1)).is_ok());
    assert!(matches!(CrushMap::from_parts(chain(depth + 1)), Err(InvalidMap::TooDeep { .. })));
    // The same from below: the children are known before the parent is.
    let upwards = parts((1..=depth + 1).map(|level| (-level, vec![if level == 1 { 0 } else { 1 - level }])));
    assert!(matches!(CrushMap::from_parts(upwards), Err(InvalidMap::TooDeep { .. })));
}

#[test]
fn every_reference_and_sum_is_checked() {
    let mut dangling = parts([(-1, vec![7])]);
    assert!(matches!(CrushMap::from_parts(dangling.clone()), Err(InvalidMap::DanglingItem { item: 7, .. })));
    dangling.buckets.clear();
    dangling.devices.insert(1 << 20, Device { name: "osd.x".to_owned(), class: None });
    assert!(matches!(CrushMap::from_parts(dangling), Err(InvalidMap::DeviceIdOutOfRange { .. })));

    assert!(matches!(CrushMap::from_parts(parts([(-1, vec![0, 0])])), Err(InvalidMap::DuplicateItem { .. })));
    assert!(matches!(
        CrushMap::from_parts(parts([(ItemId::MIN, vec![0])])),
        Err(InvalidMap::BucketIdOutOfRange { .. })
    ));

    let mut heavy = parts([(-1, vec![0, -2]), (-2, vec![])]);
    heavy.buckets.get_mut(&-1).expect("there").items.iter_mut().for_each(|item| item.weight = u32::MAX);
    assert!(matches!(CrushMap::from_parts(heavy), Err(InvalidMap::WeightOverflow { .. })));

    let mut classless = parts([]);
    classless.devices.get_mut(&0).expect("there").class = Some(0);
    assert!(matches!(CrushMap::from_parts(classless), Err(InvalidMap::UnknownClass { .. })));

    let mut shadows = parts([(-1, vec![0])]);
    shadows.classes.push("ssd".to_owned());
    shadows.buckets.get_mut(&-1).expect("there").shadow_ids.insert(0, -1);
    assert!(matches!(CrushMap::from_parts(shadows), Err(InvalidMap::DuplicateId { .. })));
}

/// Every descent fails, tries are as many as can be said, at every level: the budget ends it.
#[test]
fn a_map_that_never_succeeds_still_ends() {
    let mut parts = parts([(-1, vec![-2, -3]), (-2, vec![0]), (-3, vec![])]);
    for (id, mode) in [(0, ChooseMode::Firstn), (1, ChooseMode::Indep)] {
        let choose = Step::Choose { mode, count: 4096, type_id: 1, leaf: true };
        let take = Step::Take { item: -1, class: None };
        let steps = vec![
            Step::SetChooseTries(u32::MAX),
            Step::SetChooseleafTries(u32::MAX),
            take,
            choose.clone(),
            choose,
            Step::Emit,
        ];
        let rule = Rule { name: format!("r{id}"), kind: RuleKind::Erasure, min_size: None, max_size: None, steps };
        parts.rules.insert(RuleId(id), rule);
    }
    let map = CrushMap::from_parts(parts).expect("valid");
    assert!(map.map(RuleId(0), 1, 3, &[0]).is_empty());
    assert!(map.map(RuleId(1), 1, 3, &[0]).iter().all(Option::is_none));
    assert!(map.map(RuleId(9), 1, 3, &[0]).is_empty());
    assert!(map.map(RuleId(0), 1, 0, &[0]).is_empty());
}

/// Each bucket holds both buckets of the next level: 2^30 paths, 60 buckets.
#[test]
fn a_map_with_many_paths_is_walked_once() {
    let levels = 30;
    let mut two = vec![];
    for level in 0..levels {
        for side in 1..=2 {
            let next = -(2 * (level + 1));
            two.push((-(2 * level + side), if level + 1 < levels { vec![next - 1, next - 2] } else { vec![0] }));
        }
    }
    let mut parts = parts(two);
    parts.classes.push("ssd".to_owned());
    let map = CrushMap::from_parts(parts).expect("valid");
    assert!(map.tree().len() < 200);
    assert!(map.to_text().lines().count() < 1_000);
    assert_eq!(map.devices_beneath("b1").len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = CrushMap::parse_text(&text);
    }

    #[test]
    fn no_sequence_of_its_words_makes_the_parser_panic(words in prop::collection::vec(prop::sample::select(vec![
        "device", "type", "rule", "tunable", "host", "root", "a", "b", "osd.0", "0", "1", "-1", "-2", "4294967295",
        "-2147483648", "{", "}", "id", "alg", "straw2", "uniform", "hash", "item", "weight", "1.5", "nan", "1e30", "pos",
        "class", "step", "take", "choose", "chooseleaf", "firstn", "indep", "emit", "replicated", "\n", "#", "[",
    ]), 0..60)) {
        let _ = CrushMap::parse_text(&words.join(" "));
    }

    /// Takes words out of a real map, or puts others in their places: nearly right texts get further.
    #[test]
    fn no_damaged_map_makes_the_parser_or_the_mapping_panic(
        at in prop::collection::vec((0usize..2_000, prop::sample::select(vec!["", "0", "-1", "-3", "host", "}", "{", "65535.9"])), 1..4),
    ) {
        let text = golden("m6-2level-classes").replace('\n', " \n ");
        let mut words: Vec<&str> = text.split(' ').collect();
        for (at, word) in at {
            let at = at % words.len();
            words[at] = word;
        }
        if let Ok(map) = CrushMap::parse_text(&words.join(" ")) {
            let again = CrushMap::parse_text(&map.to_text()).expect("what was printed can be read");
            prop_assert_eq!(again.to_text(), map.to_text());
            for rule in map.parts().rules.keys() {
                let _ = map.map(*rule, 7, 3, &[0x10000; 36]);
            }
        }
    }

    #[test]
    fn no_damaged_encoding_makes_the_decoder_or_the_mapping_panic(damage in prop::collection::vec((0usize..10_000, any::<u8>()), 1..6), cut in 0usize..10_000) {
        let map = CrushMap::parse_text(&golden("m6-2level-classes")).expect("valid");
        let mut bytes = minicbor::to_vec(&map).expect("encoding to memory cannot fail");
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if cut < bytes.len() / 10 {
            bytes.truncate(cut);
        }
        if let Ok(map) = minicbor::decode::<CrushMap>(&bytes) {
            for rule in map.parts().rules.keys() {
                let _ = map.map(*rule, 7, 3, &[0x10000; 36]);
            }
            let _ = (map.to_text(), map.tree().len());
        }
    }
}
