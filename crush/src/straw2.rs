//! The draw of a straw2 bucket, where mapping spends nine tenths of its time.
//!
//! The hashes of a few items are computed side by side; the portable code says so in a way that compilers turn into
//! vector instructions, and on x86-64 the same code is compiled once more for AVX2, which is half as fast again.
//! Both give the same bits, by construction and by test.

use crate::hash::hash32_3;
use crate::ln::neg_ln;
use crate::model::ItemId;

/// The index of the longest straw: the item with the largest `ln(u) / weight`, the first of equals; 0 when all weigh
/// nothing. `ids` and `weights` are equally long.
#[inline]
pub(crate) fn draw(ids: &[ItemId], weights: &[u32], x: u32, r: u32) -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("lzcnt") {
        #[expect(unsafe_code, reason = "the only door to code that is compiled for more than the baseline CPU")]
        // SAFETY: the CPU has the features that the function is compiled for; it asks for nothing else.
        return unsafe { draw_avx2(ids, weights, x, r) };
    }
    portable(ids, weights, x, r)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,lzcnt")]
fn draw_avx2(ids: &[ItemId], weights: &[u32], x: u32, r: u32) -> usize {
    lanes::<16>(ids, weights, x, r)
}

fn portable(ids: &[ItemId], weights: &[u32], x: u32, r: u32) -> usize {
    lanes::<8>(ids, weights, x, r)
}

/// Takes `WIDE` items at a time, and the rest, when it is short, by four or eight.
#[inline(always)]
fn lanes<const WIDE: usize>(ids: &[ItemId], weights: &[u32], x: u32, r: u32) -> usize {
    let mut best = Best { index: 0, quotient: u64::MAX };
    let mut first = 0;
    for (ids, weights) in ids.chunks(WIDE).zip(weights.chunks(WIDE)) {
        match ids.len() {
            ..=4 => best.consider::<4>(first, ids, weights, x, r),
            5..=8 => best.consider::<8>(first, ids, weights, x, r),
            _ => best.consider::<WIDE>(first, ids, weights, x, r),
        }
        first += WIDE;
    }
    best.index
}

/// The winner so far.
struct Best {
    index: usize,
    /// `-ln(u) / weight`, truncated; smaller is better.
    quotient: u64,
}

impl Best {
    /// Lets up to `LANES` items draw. Ceph divides each logarithm. Here `ln / weight < best` is asked as
    /// `ln < best * weight`, which is the same for truncating division, so only a new best divides.
    #[inline(always)]
    fn consider<const LANES: usize>(&mut self, first: usize, ids: &[ItemId], weights: &[u32], x: u32, r: u32) {
        // A fixed count of independent hashes becomes vector code; missing items hash zeros that nobody looks at.
        let mut lanes = [0; LANES];
        for (lane, id) in lanes.iter_mut().zip(ids) {
            *lane = id.cast_unsigned();
        }
        let mut draws = [0; LANES];
        // A plain loop: a closure would not be compiled for the vector unit.
        for (draw, id) in draws.iter_mut().zip(lanes) {
            *draw = hash32_3(x, id, r);
        }
        for (lane, (draw, weight)) in draws.iter().zip(weights).enumerate() {
            let ln = neg_ln(*draw);
            if *weight != 0 && ln < self.quotient.saturating_mul(u64::from(*weight)) {
                *self = Best { index: first + lane, quotient: ln / u64::from(*weight) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: divide each, keep the first of the best.
    fn model(ids: &[ItemId], weights: &[u32], x: u32, r: u32) -> usize {
        let quotient = |(id, weight): (&ItemId, &u32)| match weight {
            0 => u64::MAX,
            weight => neg_ln(hash32_3(x, id.cast_unsigned(), r)) / u64::from(*weight),
        };
        let quotients: Vec<u64> = ids.iter().zip(weights).map(quotient).collect();
        let least = quotients.iter().min();
        quotients.iter().position(|quotient| Some(quotient) == least).unwrap_or(0)
    }

    #[test]
    fn every_way_to_draw_gives_what_the_definition_gives() {
        for size in 0..70u32 {
            let ids: Vec<ItemId> =
                (0..size).map(|id| if id % 3 == 0 { -1 - id as ItemId } else { id as ItemId }).collect();
            for weighing in 0..4 {
                let weight = |id: u32| match weighing {
                    0 => 0x10000,
                    1 => crate::hash32_2(id, 7) >> 8,
                    2 => [0, 1, u32::MAX][id as usize % 3],
                    _ => 0,
                };
                let weights: Vec<u32> = (0..size).map(weight).collect();
                for x in 0..50 {
                    let expected = model(&ids, &weights, x, x % 5);
                    assert_eq!(draw(&ids, &weights, x, x % 5), expected, "{size} items, x {x}");
                    assert_eq!(portable(&ids, &weights, x, x % 5), expected, "{size} items, x {x}, portable");
                }
            }
        }
    }
}
