//! What placement promises: replicas in different failure domains, shares by weight, little movement on change.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_crush::{CrushMap, EditError, InvalidMap, RuleId, RuleKind, SimpleRule, WEIGHT_ONE, hash32_2};
use holdfast_types::OsdId;
use proptest::prelude::*;

/// So many racks of hosts of osds, each of weight 1.
fn cluster(racks: u32, hosts: u32, osds: u32) -> CrushMap {
    let mut map = CrushMap::new_default();
    let mut osd = 0;
    for rack in 0..racks {
        for host in 0..hosts {
            for _ in 0..osds {
                insert(&mut map, osd, rack, host);
                osd += 1;
            }
        }
    }
    map
}

fn insert(map: &mut CrushMap, osd: u32, rack: u32, host: u32) {
    let (rack, host) = (format!("rack{rack}"), format!("host{rack}-{host}"));
    let location = [("root", "default"), ("rack", rack.as_str()), ("host", host.as_str())];
    map.insert_device(OsdId(osd), WEIGHT_ONE, None, &location).expect("a good location");
}

fn rule(map: &mut CrushMap, kind: RuleKind, failure_domain: &str) -> RuleId {
    let name = format!("{}-{failure_domain}", kind.name());
    map.add_rule(SimpleRule { name: &name, kind, root: "default", failure_domain, class: None }).expect("a good rule")
}

fn domains(map: &CrushMap, osds: &[Option<OsdId>], type_name: &str) -> Vec<String> {
    osds.iter().flatten().map(|osd| map.failure_domain_of(*osd, type_name).expect("placed")).collect()
}

#[test]
fn no_two_replicas_share_a_failure_domain() {
    let mut map = cluster(4, 3, 2);
    let reweights: Vec<u32> = (0..24).map(|osd| if osd % 5 == 0 { 0x8000 } else { WEIGHT_ONE }).collect();
    for kind in [RuleKind::Replicated, RuleKind::Erasure] {
        for (type_name, num_rep) in [("osd", 6), ("host", 5), ("rack", 3)] {
            let rule = rule(&mut map, kind, type_name);
            for x in 0..2_000 {
                let osds = map.map(rule, x, num_rep, &reweights);
                assert_eq!(osds.iter().flatten().count(), num_rep, "{kind:?} over {type_name}, {x}: {osds:?}");
                let domains = domains(&map, &osds, type_name);
                let distinct: BTreeSet<&String> = domains.iter().collect();
                assert_eq!(distinct.len(), num_rep, "{kind:?} over {type_name}, {x}: {domains:?}");
            }
        }
    }
}

#[test]
fn a_shard_keeps_its_position_when_another_is_lost() {
    let mut map = cluster(1, 8, 2);
    let rule = rule(&mut map, RuleKind::Erasure, "host");
    let all = [WEIGHT_ONE; 16];
    for x in 0..1_000 {
        let before = map.map(rule, x, 4, &all);
        let lost = before[1].expect("filled");
        let mut reweights = all;
        reweights[lost.0 as usize] = 0;
        let after = map.map(rule, x, 4, &reweights);
        let moved = (0..4).filter(|position| before[*position] != after[*position]).count();
        assert!(after[1] != Some(lost) && moved <= 2, "{x}: {before:?} became {after:?}");
    }
}

#[test]
fn a_position_that_cannot_be_filled_is_a_hole_or_a_gap() {
    let mut map = cluster(1, 3, 1);
    let (copies, shards) = (RuleId(0), rule(&mut map, RuleKind::Erasure, "host"));
    for x in 0..200 {
        assert_eq!(map.map(copies, x, 5, &[WEIGHT_ONE; 3]).len(), 3);
        let holes = map.map(shards, x, 5, &[WEIGHT_ONE; 3]);
        assert_eq!((holes.len(), holes.iter().flatten().count()), (5, 3), "{holes:?}");
    }
    assert!(map.map(copies, 1, 3, &[]).is_empty(), "an OSD beyond the reweights is out");
}

#[test]
fn one_more_osd_moves_about_its_share() {
    for hosts in [5, 10, 20] {
        let before = cluster(1, hosts, 1);
        let mut after = before.clone();
        insert(&mut after, hosts, 0, hosts);
        let reweights = vec![WEIGHT_ONE; hosts as usize + 1];
        let (mut moved, mut total) = (0, 0);
        for x in 0..4_000 {
            let x = hash32_2(x, 1);
            let old: BTreeSet<_> = before.map(RuleId(0), x, 3, &reweights).into_iter().flatten().collect();
            let new: BTreeSet<_> = after.map(RuleId(0), x, 3, &reweights).into_iter().flatten().collect();
            moved += new.difference(&old).count();
            total += new.len();
        }
        let (share, moved) = (1.0 / f64::from(hosts + 1), f64::from(moved as u32) / f64::from(total as u32));
        assert!(moved > 0.8 * share && moved < 1.3 * share, "{hosts} hosts: {moved:.4} moved, its share is {share:.4}");
    }
}

#[test]
fn osds_hold_shares_by_their_weights() {
    let mut map = cluster(1, 6, 2);
    map.set_device_weight(OsdId(3), 2 * WEIGHT_ONE).expect("known");
    let rule = rule(&mut map, RuleKind::Replicated, "osd");
    let mut held: BTreeMap<OsdId, u32> = BTreeMap::new();
    for x in 0..26_000 {
        for osd in map.map(rule, x, 1, &[WEIGHT_ONE; 12]).into_iter().flatten() {
            *held.entry(osd).or_default() += 1;
        }
    }
    for (osd, count) in held {
        let expected = if osd == OsdId(3) { 4_000 } else { 2_000 };
        assert!(count.abs_diff(expected) < expected / 10, "{osd} holds {count}, not about {expected}");
    }
}

#[test]
fn a_class_rule_places_on_that_class_only() {
    let mut map = cluster(1, 4, 3);
    for osd in 0..12 {
        map.set_device_class(OsdId(osd), Some(if osd % 3 == 0 { "ssd" } else { "hdd" })).expect("known");
    }
    let fast = SimpleRule {
        name: "fast",
        kind: RuleKind::Replicated,
        root: "default",
        failure_domain: "host",
        class: Some("ssd"),
    };
    let rule = map.add_rule(fast).expect("a good rule");
    for x in 0..500 {
        let osds = map.map(rule, x, 4, &[WEIGHT_ONE; 12]);
        assert_eq!(osds.len(), 4);
        assert!(osds.iter().flatten().all(|osd| map.device_class(*osd) == Some("ssd")), "{osds:?}");
    }
    assert_eq!(map.class_counts(), [("hdd", 8), ("ssd", 4)].into());
    // The ids of the shadows are hashed: they must not change when the map goes on growing, or through either encoding.
    let before: Vec<_> = (0..100).map(|x| map.map(rule, x, 3, &[WEIGHT_ONE; 12])).collect();
    let mut grown = CrushMap::parse_text(&map.to_text()).expect("printed");
    grown
        .insert_device(OsdId(12), WEIGHT_ONE, Some("nvme"), &[("host", "new"), ("rack", "rack9"), ("root", "default")])
        .expect("a good location");
    let after: Vec<_> = (0..100).map(|x| grown.map(rule, x, 3, &[WEIGHT_ONE; 13])).collect();
    assert_eq!(before, after);
}

#[test]
fn a_new_map_is_ready_for_hosts() {
    let map = CrushMap::new_default();
    assert_eq!(map.rule_named("replicated_rule"), Some(RuleId(0)));
    assert!(map.map(RuleId(0), 1, 3, &[]).is_empty());
    assert_eq!(map.tree().len(), 1);
    assert_eq!(CrushMap::parse_text(&map.to_text()).as_ref(), Ok(&map));
}

#[test]
fn an_inserted_device_is_found_and_weighed_up_to_the_root() {
    let mut map = cluster(2, 2, 2);
    assert_eq!(map.location_of(OsdId(7)), [("host", "host1-1"), ("rack", "rack1"), ("root", "default")]);
    assert_eq!(map.failure_domain_of(OsdId(7), "rack").as_deref(), Some("rack1"));
    assert_eq!(map.failure_domain_of(OsdId(7), "osd").as_deref(), Some("osd.7"));
    assert_eq!(map.failure_domain_of(OsdId(7), "row"), None);
    assert_eq!(map.buckets_of_type("host"), ["host0-0", "host0-1", "host1-0", "host1-1"]);
    assert_eq!(map.devices_beneath("rack1"), (4..8).map(OsdId).collect());

    map.set_device_weight(OsdId(7), WEIGHT_ONE / 2).expect("known");
    let weights: BTreeMap<&str, u32> = map.tree().iter().map(|row| (row.name, row.weight)).collect();
    assert_eq!(weights["default"], 7 * WEIGHT_ONE + WEIGHT_ONE / 2);
    assert_eq!((weights["rack1"], weights["host1-1"]), (3 * WEIGHT_ONE + WEIGHT_ONE / 2, WEIGHT_ONE + WEIGHT_ONE / 2));
    let depths: Vec<usize> = map.tree().iter().take(4).map(|row| row.depth).collect();
    assert_eq!(depths, [0, 1, 2, 3]);

    map.remove_device(OsdId(7)).expect("known");
    assert!(!map.has_device(OsdId(7)) && map.devices_beneath("host1-1").len() == 1);
    assert_eq!(map.tree()[0].weight, 7 * WEIGHT_ONE);
}

#[test]
fn inserting_again_moves_and_keeps_what_is_not_said() {
    let mut map = cluster(1, 2, 2);
    map.set_device_class(OsdId(0), Some("ssd")).expect("known");
    map.insert_device(OsdId(0), 3 * WEIGHT_ONE, None, &[("host", "host0-1")]).expect("a good location");
    assert_eq!(map.location_of(OsdId(0)).first(), Some(&("host", "host0-1")));
    assert_eq!((map.device_class(OsdId(0)), map.device_weight(OsdId(0))), (Some("ssd"), 3 * WEIGHT_ONE));
    assert_eq!(map.tree()[0].weight, 6 * WEIGHT_ONE);
    let again = map.clone();
    map.insert_device(OsdId(0), 3 * WEIGHT_ONE, None, &[("host", "host0-1")]).expect("a good location");
    assert_eq!(map, again);
}

#[test]
fn a_moved_host_stays_where_the_administrator_put_it() {
    let mut map = cluster(2, 1, 1);
    map.move_bucket("host0-0", "rack1").expect("both exist");
    insert(&mut map, 9, 0, 0); // its OSD still says rack0
    assert_eq!(map.failure_domain_of(OsdId(9), "rack").as_deref(), Some("rack1"));
    assert_eq!(map.tree()[0].weight, 3 * WEIGHT_ONE);
    map.remove_bucket("rack0").expect("empty now");
    assert_eq!(map.buckets_of_type("rack"), ["rack1"]);
}

#[test]
fn a_refused_edit_changes_nothing() {
    let mut map = cluster(1, 2, 1);
    let before = map.clone();
    let refused = |result: Result<(), EditError>, what: &str| assert!(result.is_err(), "{what}");
    refused(map.insert_device(OsdId(5), WEIGHT_ONE, None, &[]), "no location");
    refused(map.insert_device(OsdId(5), WEIGHT_ONE, None, &[("hoist", "x")]), "unknown type");
    refused(map.insert_device(OsdId(5), WEIGHT_ONE, None, &[("osd", "x")]), "a device type");
    refused(map.insert_device(OsdId(5), WEIGHT_ONE, None, &[("rack", "host0-0")]), "another type");
    refused(map.insert_device(OsdId(5), WEIGHT_ONE, None, &[("host", "a b")]), "a bad name");
    refused(map.insert_device(OsdId(5), WEIGHT_ONE, None, &[("host", "a"), ("host", "b")]), "two hosts");
    refused(map.insert_device(OsdId(5), u32::MAX, None, &[("host", "host0-0")]), "an overflow");
    refused(map.insert_device(OsdId(u32::MAX), 1, None, &[("host", "host0-0")]), "an OSD id beyond all");
    refused(map.remove_device(OsdId(5)), "unknown OSD");
    refused(map.remove_bucket("default"), "not empty");
    refused(map.remove_rule(RuleId(7)), "unknown rule");
    let cycle = map.move_bucket("default", "rack0");
    assert!(matches!(cycle, Err(EditError::Invalid(InvalidMap::Cycle { .. }))), "{cycle:?}");
    assert_eq!(map, before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any sequence of edits gives a valid map, whose weights add up, and that every encoding keeps.
    #[test]
    fn edits_keep_the_map_whole(edits in prop::collection::vec((0u32..20, 0u32..3, 0u32..4, 0u8..5, 0u32..300), 1..40)) {
        let mut map = CrushMap::new_default();
        for (osd, rack, host, what, weight) in edits {
            let osd = OsdId(osd);
            let weight = weight * WEIGHT_ONE;
            let (rack, host) = (format!("r{rack}"), format!("h{host}"));
            let location = [("host", host.as_str()), ("rack", rack.as_str()), ("root", "default")];
            let _ = match what {
                0 | 1 => map.insert_device(osd, weight, Some(["hdd", "ssd"][usize::from(what)]), &location),
                2 => map.set_device_weight(osd, weight),
                3 => map.remove_device(osd),
                _ => map.move_bucket(&host, &rack),
            };
        }
        let total: u32 = map.parts().devices.keys().map(|osd| map.device_weight(OsdId(*osd))).sum();
        prop_assert_eq!(map.tree()[0].weight, total);
        let bytes = minicbor::to_vec(&map).expect("encoding to memory cannot fail");
        let decoded = minicbor::decode::<CrushMap>(&bytes).expect("what was encoded");
        prop_assert_eq!(&decoded, &map);
        let printed = CrushMap::parse_text(&map.to_text()).expect("what was printed");
        for x in 0..20 {
            prop_assert_eq!(printed.map(RuleId(0), x, 3, &[WEIGHT_ONE; 20]), map.map(RuleId(0), x, 3, &[WEIGHT_ONE; 20]));
        }
    }
}
