//! How many placement groups a pool has: the cluster's choice, never the user's.

/// Copies of placement groups that one OSD should hold, over all pools. Ceph's long-standing figure; below it data is
/// spread unevenly, far above it peering after a failure costs more than the copying.
pub const PG_COPIES_PER_OSD_TARGET: u32 = 100;

/// Most placement groups of one pool.
pub const PG_NUM_MAX: u32 = 1 << 16;

/// The number of placement groups for a pool of `size` copies that is expected to hold `share` (0 to 1) of the data
/// on `osds` OSDs: a power of two, so that every placement group stands for the same part of the hash space.
///
/// At least 8, so that a pool of a small cluster is spread over all of its OSDs and a later split is rare.
#[must_use]
pub fn pg_num_for(osds: u32, size: u32, share: f64) -> u32 {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let wanted = f64::from(osds.max(1)) * f64::from(PG_COPIES_PER_OSD_TARGET) * share / f64::from(size.max(1));
    let mut pg_num = 8u32;
    // Take the next power of two while it is nearer to what is wanted than this one.
    while pg_num < PG_NUM_MAX && f64::from(pg_num) * 1.5 <= wanted {
        pg_num *= 2;
    }
    pg_num
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pg_counts_are_powers_of_two_near_the_target() {
        let table = [
            ((1, 1, 0.5), 64),
            ((3, 3, 0.5), 64),
            ((3, 3, 0.1), 8),
            ((5, 3, 0.5), 64),
            ((12, 3, 0.5), 256),
            ((300, 3, 0.9), 8192),
            ((0, 0, f64::NAN), 8),
            ((10_000, 3, 1.0), 65_536),
        ];
        for ((osds, size, share), expected) in table {
            assert_eq!(pg_num_for(osds, size, share), expected, "{osds} OSDs, size {size}, share {share}");
        }
    }
}
