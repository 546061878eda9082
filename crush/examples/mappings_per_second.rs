//! Measures mappings per second on one core, for hierarchies of several shapes.
//!
//! `cargo run --release -p holdfast-crush --example mappings_per_second`

use std::hint::black_box;
use std::time::{Duration, Instant};

use holdfast_crush::{CrushMap, RuleId, RuleKind, SimpleRule, WEIGHT_ONE, Workspace};
use holdfast_types::OsdId;

const TIME_PER_CASE: Duration = Duration::from_secs(1);

fn main() {
    println!("{:>6} {:>6} {:>6}  {:<22} {:>14} {:>9}", "racks", "hosts", "osds", "rule", "mappings/s", "ns");
    for (racks, hosts, osds) in [(1, 3, 1), (3, 9, 36), (1, 12, 36), (10, 100, 1_000), (20, 400, 10_000)] {
        let map = cluster(racks, hosts, osds.max(hosts));
        let osds = map.parts().devices.len();
        let reweights = vec![WEIGHT_ONE; osds];
        for (name, rule, num_rep) in [("firstn 3 over hosts", RuleId(0), 3), ("indep 6 over osds", RuleId(1), 6)] {
            let rate = measure(&map, rule, num_rep, &reweights);
            println!("{racks:>6} {hosts:>6} {osds:>6}  {name:<22} {rate:>14.0} {:>9.0}", 1e9 / rate);
        }
    }
}

fn cluster(racks: u32, hosts: u32, osds: u32) -> CrushMap {
    let mut text = CrushMap::new_default().to_text();
    let (head, _) = text.split_at(text.find("root default").expect("the default map has a root"));
    let (mut devices, mut buckets) = (String::new(), String::new());
    for osd in 0..osds {
        devices += &format!("device {osd} osd.{osd}\n");
    }
    let per_host = osds / hosts;
    for host in 0..hosts {
        buckets += &format!("host h{host} {{ alg straw2\n");
        (0..per_host).for_each(|slot| buckets += &format!("item osd.{}\n", host * per_host + slot));
        buckets += "}\n";
    }
    for rack in 0..racks {
        buckets += &format!("rack r{rack} {{ alg straw2\n");
        (0..hosts).filter(|host| host % racks == rack).for_each(|host| buckets += &format!("item h{host}\n"));
        buckets += "}\n";
    }
    buckets += "root default { alg straw2\n";
    (0..racks).for_each(|rack| buckets += &format!("item r{rack}\n"));
    buckets += "}\nrule replicated_rule { id 0 type replicated step take default step chooseleaf firstn 0 type host step emit }\n";
    text = head.replace("# devices\n", &format!("# devices\n{devices}")) + &buckets;
    let mut map = CrushMap::parse_text(&text).unwrap_or_else(|error| panic!("{error}"));
    assert!(map.has_device(OsdId(0)));
    let rule = SimpleRule { name: "ec", kind: RuleKind::Erasure, root: "default", failure_domain: "osd", class: None };
    map.add_rule(rule).expect("the root exists");
    map
}

/// The median over batches, so that what else the machine does counts little.
fn measure(map: &CrushMap, rule: RuleId, num_rep: usize, reweights: &[u32]) -> f64 {
    const BATCH: u32 = 64;
    let mut workspace = Workspace::default();
    let mut batches = Vec::new();
    let mut x = 0u32;
    let start = Instant::now();
    while start.elapsed() < TIME_PER_CASE {
        let batch = Instant::now();
        for _ in 0..BATCH {
            black_box(map.map_raw(rule, black_box(x), num_rep, reweights, &mut workspace));
            x = x.wrapping_add(1);
        }
        batches.push(batch.elapsed());
    }
    batches.sort_unstable();
    f64::from(BATCH) / batches[batches.len() / 2].as_secs_f64()
}
