//! Copies that move to other OSDs.

use std::time::Duration;

use holdfast_map::PoolKind;
use holdfast_pg::Limits;
use holdfast_wire::peer::PeerBody;

use crate::group::{Group, PG, osd, shows};

/// A placement group whose log goes back to its beginning: a new copy can be made whole by the log alone.
fn filled(all: usize, members: usize) -> Group {
    let mut group = Group::of(all, members, Limits::default());
    for object in 0..150 {
        group.write(&format!("o-{object}"));
    }
    group
}

#[test]
fn all_copies_serve_until_a_new_one_is_whole() {
    for lead in [false, true] {
        let mut group = filled(4, 3);
        group.members.up = if lead { vec![osd(3), osd(0), osd(1)] } else { vec![osd(0), osd(1), osd(3)] };
        group.members.acting = group.members.up.clone();
        group.publish();
        // The new copy has taken the log, and nothing yet of what that tells of.
        group.pause_on = Some(|body| matches!(body, PeerBody::ReservationGrant));
        group.run();
        assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
        assert!(shows(&group.read("o-7"), "o-7"));
        group.run_until_clean();
        assert_eq!(group.members.acting, group.members.up);
        assert!((0..150).all(|object| group.is_whole(3, &format!("o-{object}"))));
    }
}

#[test]
fn one_that_was_away_for_long_leads_again_when_it_has_caught_up() {
    let mut group = filled(3, 3);
    group.map.osds.get_mut(&osd(0)).unwrap().up = false;
    group.have_lead(&[1, 2]);
    group.silent.insert(0);
    for object in 0..120 {
        group.write(&format!("o-{object}"));
    }
    group.silent.clear();
    group.map.osds.get_mut(&osd(0)).unwrap().up = true;
    group.pause_on = Some(|body| matches!(body, PeerBody::ReservationGrant));
    group.have_lead(&[0, 1, 2]);
    assert_ne!(group.members.acting[0], osd(0), "others have what is asked for");
    group.run_until_clean();
    assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
}

#[test]
fn one_that_lacks_much_leads_all_the_same_when_no_map_lets_another_lead() {
    let mut group = filled(3, 3);
    group.map.osds.get_mut(&osd(0)).unwrap().up = false;
    group.have_lead(&[1, 2]);
    group.silent.insert(0);
    for object in 0..120 {
        group.write(&format!("o-{object}"));
    }
    group.silent.clear();
    group.monitors_away = true;
    group.map.osds.get_mut(&osd(0)).unwrap().up = true;
    group.have_lead(&[0, 1, 2]);
    group.pass(Duration::from_secs(5));
    assert!(!group.report().state.active, "another would serve at once");
    group.pass(Duration::from_secs(10));
    assert!(shows(&group.read("o-7"), "o-7"));
    group.run_until_clean();
    assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
}

#[test]
fn an_osd_that_is_out_keeps_its_copy_until_somebody_takes_its_place() {
    let mut group = filled(4, 3);
    group.members.up = vec![osd(0), osd(1)];
    group.members.acting = group.members.up.clone();
    group.publish();
    group.pass(Duration::from_secs(10));
    assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
    let epoch = group.map.epoch;
    group.pass(Duration::from_secs(60));
    assert_eq!(group.map.epoch, epoch, "it comes to rest");
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.publish();
    group.run_until_clean();
    assert!(group.is_whole(3, "o-7"));
}

#[test]
fn fewer_copies_than_before_end_a_move() {
    let mut group = filled(4, 3);
    group.members.up = vec![osd(0), osd(1), osd(3)];
    group.members.acting = group.members.up.clone();
    group.publish();
    group.pause_on = Some(|body| matches!(body, PeerBody::ReservationGrant));
    group.run();
    assert_eq!(group.members.acting, [osd(0), osd(1), osd(2)]);
    group.map.pools.get_mut(&PG.pool).unwrap().kind = PoolKind::Replicated { size: 2, min_size: 1 };
    group.members.up = vec![osd(0), osd(1)];
    group.publish();
    group.run_until_clean();
    assert_eq!(group.members.acting, [osd(0), osd(1)]);
    group.pass(Duration::from_secs(10));
    assert!(group.nodes[2].pg.is_none() && group.nodes[3].pg.is_none(), "nothing is left of the others");
}
