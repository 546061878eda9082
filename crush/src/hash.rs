//! The two hashes that place data, and the modulus that survives a change of the placement-group count.
//!
//! All three are fixed for ever: a different bit moves every object of a cluster. They are Robert Jenkins' public-domain
//! mixing functions in the arrangement that Ceph gave them: `rjenkins1` over 1 to 5 words drives CRUSH,
//! [`str_hash_rjenkins`] turns an object name into its placement seed.

/// The start value of `rjenkins1`, chosen by Ceph.
const SEED: u32 = 1_315_423_911;
/// The two constants that pad the words to a multiple of the mixer's width.
const PAD_X: u32 = 231_232;
const PAD_Y: u32 = 1_232;
/// The golden ratio, the start value of the string hash.
const GOLDEN_RATIO: u32 = 0x9e37_79b9;

/// Jenkins' 96-bit mix: every bit of the three words reaches every other.
#[inline(always)]
const fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> 13);
    b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << 8);
    c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> 13);
    a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> 12);
    b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << 16);
    c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> 5);
    a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> 3);
    b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << 10);
    c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> 15);
    (a, b, c)
}

/// `rjenkins1` of one word.
#[must_use]
pub const fn hash32_1(a: u32) -> u32 {
    let (_, x, h) = mix(a, PAD_X, SEED ^ a);
    let _ = x;
    mix(PAD_Y, a, h).2
}

/// `rjenkins1` of two words.
#[must_use]
#[inline]
pub const fn hash32_2(a: u32, b: u32) -> u32 {
    let (a, b, h) = mix(a, b, SEED ^ a ^ b);
    let (_, _, h) = mix(PAD_X, a, h);
    mix(b, PAD_Y, h).2
}

/// `rjenkins1` of three words: the draw of a straw2 or uniform bucket.
#[must_use]
#[inline(always)]
pub const fn hash32_3(a: u32, b: u32, c: u32) -> u32 {
    let (a, b, h) = mix(a, b, SEED ^ a ^ b ^ c);
    let (c, x, h) = mix(c, PAD_X, h);
    let (y, _, h) = mix(PAD_Y, a, h);
    let (_, _, h) = mix(b, x, h);
    mix(y, c, h).2
}

/// `rjenkins1` of four words.
#[must_use]
pub const fn hash32_4(a: u32, b: u32, c: u32, d: u32) -> u32 {
    let (a, b, h) = mix(a, b, SEED ^ a ^ b ^ c ^ d);
    let (c, d, h) = mix(c, d, h);
    let (_, x, h) = mix(a, PAD_X, h);
    let (y, _, h) = mix(PAD_Y, b, h);
    let (_, _, h) = mix(c, x, h);
    mix(y, d, h).2
}

/// `rjenkins1` of five words.
#[must_use]
pub const fn hash32_5(a: u32, b: u32, c: u32, d: u32, e: u32) -> u32 {
    let (a, b, h) = mix(a, b, SEED ^ a ^ b ^ c ^ d ^ e);
    let (c, d, h) = mix(c, d, h);
    let (e, x, h) = mix(e, PAD_X, h);
    let (y, _, h) = mix(PAD_Y, a, h);
    let (_, x, h) = mix(b, x, h);
    let (y, _, h) = mix(y, c, h);
    let (_, _, h) = mix(d, x, h);
    mix(y, e, h).2
}

/// Hashes an object's key (its name, or `namespace 0x1f name`) to its placement seed.
#[must_use]
pub fn str_hash_rjenkins(key: &[u8]) -> u32 {
    let (mut a, mut b, mut c) = (GOLDEN_RATIO, GOLDEN_RATIO, 0u32);
    let mut blocks = key.chunks_exact(12);
    for block in &mut blocks {
        a = a.wrapping_add(word(&block[..4]));
        b = b.wrapping_add(word(&block[4..8]));
        c = c.wrapping_add(word(&block[8..]));
        (a, b, c) = mix(a, b, c);
    }
    // The lowest byte of `c` is the length's, so the tail's third word starts one byte higher.
    let tail = blocks.remainder();
    #[expect(clippy::cast_possible_truncation, reason = "the hash is defined over the length modulo 2^32")]
    let length = key.len() as u32;
    a = a.wrapping_add(word(tail.get(..4.min(tail.len())).unwrap_or_default()));
    b = b.wrapping_add(word(tail.get(4..8.min(tail.len())).unwrap_or_default()));
    c = c.wrapping_add(length).wrapping_add(word(tail.get(8..).unwrap_or_default()) << 8);
    mix(a, b, c).2
}

/// Up to four bytes, little-endian.
fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte))
}

/// Reduces `x` to `0..b` so that growing `b` towards the next power of two moves as little as possible.
///
/// `mask` is the smallest power of two that is not below `b`, minus one ([`stable_mask`]).
#[must_use]
pub const fn stable_mod(x: u32, b: u32, mask: u32) -> u32 {
    if (x & mask) < b { x & mask } else { x & (mask >> 1) }
}

/// The mask that [`stable_mod`] wants for `b` buckets.
#[must_use]
pub const fn stable_mask(b: u32) -> u32 {
    if b <= 1 { 0 } else { u32::MAX >> (b - 1).leading_zeros() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_the_next_power_of_two_less_one() {
        for (b, mask) in
            [(0, 0), (1, 0), (2, 1), (3, 3), (4, 3), (100, 127), (128, 127), (129, 255), (u32::MAX, u32::MAX)]
        {
            assert_eq!(stable_mask(b), mask, "of {b}");
        }
    }

    #[test]
    fn growing_the_count_splits_each_bucket_in_two() {
        for x in 0..10_000u32 {
            let x = hash32_1(x);
            let before = stable_mod(x, 64, stable_mask(64));
            let after = stable_mod(x, 100, stable_mask(100));
            assert!(after == before || after == before + 64, "{x} went from {before} to {after}");
        }
    }

    #[test]
    fn every_argument_reaches_the_hash() {
        let base = hash32_5(1, 2, 3, 4, 5);
        for other in [hash32_5(9, 2, 3, 4, 5), hash32_5(1, 2, 3, 4, 9), hash32_4(1, 2, 3, 4), hash32_3(1, 2, 3)] {
            assert_ne!(base, other);
        }
        assert_ne!(str_hash_rjenkins(b"abcdefghijkl"), str_hash_rjenkins(b"abcdefghijkl\0"));
    }
}
