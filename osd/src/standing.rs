//! What the maps say of one run of a daemon: whether it is up, and when it has to make way for the next one.
//!
//! A daemon need not see each map: the first one that it sees after its boot may be one in which it is down again. Only the
//! boot of a run brings its incarnation into the map, so a map that shows the incarnation tells of the boot, whatever else
//! went by unseen. Who went by what it has seen alone would wait for ever: it is told of no further boot, and the monitors
//! refuse one of a run that has been up.
//!
//! | stood | map: this incarnation, up | this incarnation, down | another one, or no such OSD |
//! |---|---|---|---|
//! | `Unseen` | `Up` | `Over` | `Unseen` |
//! | `Up` | `Up` | `Over` | `Over` |
//! | `Over` | `Over` | `Over` | `Over` |

use holdfast_map::ClusterMap;
use holdfast_types::{Incarnation, OsdId};

/// How a run stands by the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// No map shows its boot.
    #[default]
    Unseen,
    /// The newest map has it up.
    Up,
    /// It was up and is no more: the daemon joins as a new run.
    Over,
}

impl Standing {
    /// How the run stands by this map, when it stood so by the one that it has seen before, if not the one before.
    #[must_use]
    pub fn by(self, map: &ClusterMap, osd: OsdId, run: Incarnation) -> Standing {
        let shown = map.osds.get(&osd).filter(|info| info.incarnation == run).map(|info| info.up);
        match (self, shown) {
            (Standing::Unseen, None) => Standing::Unseen,
            (Standing::Unseen | Standing::Up, Some(true)) => Standing::Up,
            (Standing::Unseen, Some(false)) | (Standing::Up, Some(false) | None) | (Standing::Over, _) => {
                Standing::Over
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_map::OsdInfo;
    use holdfast_types::{ClusterId, DiskUuid, Epoch};

    use super::*;

    const ME: OsdId = OsdId(1);
    const RUN: Incarnation = Incarnation(4);

    fn map(incarnation: Incarnation, up: bool) -> ClusterMap {
        let mut map = ClusterMap::empty(ClusterId([7; 16]));
        let info = OsdInfo {
            disk: DiskUuid([1; 16]),
            incarnation,
            address: "osd-1:0".to_owned(),
            up,
            in_cluster: true,
            reweight: 0x1_0000,
            up_from: Epoch(1),
            up_thru: Epoch(1),
            down_at: Epoch(0),
            dead_epoch: Epoch(0),
            formatted_at: Epoch(0),
        };
        map.osds.insert(ME, info);
        map
    }

    #[test]
    fn a_run_that_came_up_and_went_down_unseen_is_over() {
        let before = Standing::default().by(&map(Incarnation(3), false), ME, RUN);
        assert_eq!(before, Standing::Unseen, "its boot is under way");
        assert_eq!(before.by(&map(RUN, false), ME, RUN), Standing::Over, "it need not have seen itself up");
    }

    #[test]
    fn a_run_stands_by_each_map_as_the_table_says() {
        use Standing::{Over, Unseen, Up};
        let other = Incarnation(RUN.0 + 1);
        let nobody = ClusterMap::empty(ClusterId([7; 16]));
        let maps = [map(RUN, true), map(RUN, false), map(other, true), map(other, false), nobody];
        for (stood, stands) in [
            (Unseen, [Up, Over, Unseen, Unseen, Unseen]),
            (Up, [Up, Over, Over, Over, Over]),
            (Over, [Over, Over, Over, Over, Over]),
        ] {
            for (map, stands) in maps.iter().zip(stands) {
                assert_eq!(stood.by(map, ME, RUN), stands, "{stood:?} by {:?}", map.osds.get(&ME));
            }
        }
    }
}
