//! Placement that finds no room for all copies.

use holdfast_types::Epoch;

use crate::world::{A, B, C, PG, World};

/// Epochs that it may take to go from one acting set to another, and to be active there.
const FEW: u64 = 6;

fn epochs_since(world: &World, before: Epoch) -> u64 {
    world.newest().epoch.0 - before.0
}

#[test]
fn a_copy_that_placement_has_no_room_for_is_not_given_up() {
    let mut world = World::new();
    world.write(b"value");
    let before = world.newest().epoch;
    world.publish(|map| {
        map.osds.get_mut(&C).unwrap().reweight = 0;
        map.pg_temp.insert(PG, vec![B, A, C]);
    });
    world.settle();
    assert_eq!(world.newest().pg_temp.get(&PG), Some(&vec![B, A, C]), "the up set has one copy less");
    assert!(epochs_since(&world, before) <= FEW, "nobody asks for the one and then for the other");
    assert_eq!(world.read().as_deref(), Some(b"value".as_slice()));

    let before = world.newest().epoch;
    world.publish(|map| map.osds.get_mut(&C).unwrap().reweight = 0x1_0000);
    world.settle();
    assert_eq!(world.newest().pg_temp.get(&PG), None, "all copies have their place again");
    assert!(epochs_since(&world, before) <= FEW);
    assert!([A, B, C].iter().all(|osd| world.nodes[osd].pg.is_some()));
}
