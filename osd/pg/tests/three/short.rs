//! Placement that finds no room for all copies.

use crate::world::{A, B, C, PG, World};

/// Epochs that it may take to go from one acting set to another, and to be active there.
const FEW: u64 = 6;

#[test]
fn a_copy_that_placement_has_no_room_for_is_not_given_up() {
    let mut world = World::new();
    world.write(b"value");
    let before = world.newest().epoch;
    world.publish(|map| {
        map.osds.get_mut(&C).unwrap().reweight = 0;
        map.pg_temp.insert(PG, vec![A, B, C]);
    });
    world.settle();
    assert_eq!(world.newest().pg_temp.get(&PG), Some(&vec![A, B, C]), "the up set has one copy less");
    let epochs = world.newest().epoch.0 - before.0;
    assert!(epochs <= FEW, "nobody asks for the one and then for the other");
    assert_eq!(world.read().as_deref(), Some(b"value".as_slice()));
}
