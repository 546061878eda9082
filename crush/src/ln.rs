//! The fixed-point logarithm behind a straw2 draw.
//!
//! Each item of weight `w` draws `ln(u) / w` with `u` uniform in `(0, 1]`; the largest draw wins, which picks items in
//! proportion to their weights, and a changed weight moves only what that item wins or loses. Ceph computes the
//! logarithm from three tables. Two follow their formula; the third ([`LL`]) does not: most of its entries are off by one
//! constant, and some are off by more. Clusters depend on those values, so they are facts here: the formula,
//! [`LL_OFFSET`], and the deviating entries by name.
//!
//! Checked: a checksum of the tables, and every golden mapping.

/// Log2 of 1 in the result's fixed point: `neg_ln` of the smallest draw.
const ONE: u64 = 1 << 48;

/// `ceil(2^48 / (1 + k/128))`, for `k` in `0..=128`: normalises the mantissa.
static RH: [u64; 129] = rh();
/// `floor(2^48 * log2(1 + k/128))`: the coarse part of the logarithm.
static LH: [u64; 129] = lh();
/// `floor(2^48 * log2(1 + k/2^15))` with Ceph's deviations: the fine part.
static LL: [u64; 256] = ll();

/// What most entries of the fine table are too large by.
const LL_OFFSET: u64 = 0x1_4770_0000;
/// The entries of the fine table that are neither the formula nor the formula plus [`LL_OFFSET`].
const LL_ODD: [(usize, u64); 23] = [
    (56, 0xa2_b07f_3458),
    (127, 0x16d_f6ca_19bd),
    (134, 0x182_b07f_3458),
    (181, 0x209_c06e_6212),
    (184, 0x212_b07f_3458),
    (188, 0x21d_6a73_a78f),
    (193, 0x22c_2367_9b4e),
    (198, 0x23a_2c3b_0ea4),
    (199, 0x23d_13ee_805b),
    (200, 0x240_35e9_221f),
    (207, 0x254_9264_4d65),
    (210, 0x25d_13ee_805b),
    (212, 0x262_9645_3882),
    (225, 0x287_bdbf_5255),
    (227, 0x28d_13ee_805b),
    (228, 0x290_35e9_221f),
    (229, 0x292_9645_3882),
    (231, 0x299_02a3_7aab),
    (235, 0x2a4_c760_5d61),
    (236, 0x2a7_bdbf_5255),
    (240, 0x2b2_9645_3882),
    (241, 0x2b5_d022_d80f),
    (247, 0x2c6_1a5e_8f4c),
];

/// The entries that follow the formula.
const fn ll_is_exact(k: usize) -> bool {
    k < 2 || k == 203 || k == 216 || k == 222 || k == 233 || (k >= 237 && k <= 239) || (k >= 243)
}

/// `floor(2^48 * log2(1 + numerator/denominator))` for a fraction below one, digit by digit: squaring a number doubles
/// its logarithm. The mantissa keeps 63 bits, so the error is far below one unit of the result.
const fn log2_of_one_plus(numerator: u128, denominator: u128) -> u64 {
    let mut mantissa = (1u128 << 63) + ((numerator << 63) / denominator);
    let mut log = 0u64;
    let mut digit = 0;
    while digit < 48 {
        mantissa = (mantissa * mantissa) >> 63;
        log <<= 1;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            log |= 1;
        }
        digit += 1;
    }
    log
}

const fn rh() -> [u64; 129] {
    let mut table = [0; 129];
    let mut k = 0;
    while k < table.len() {
        table[k] = (1u64 << 55).div_ceil(128 + k as u64);
        k += 1;
    }
    table
}

const fn lh() -> [u64; 129] {
    let mut table = [0; 129];
    let mut k = 0;
    while k < 128 {
        table[k] = log2_of_one_plus(k as u128, 128);
        k += 1;
    }
    table[128] = 0xffff_0000_0000; // not 2^48: the largest draw stays below zero
    table
}

const fn ll() -> [u64; 256] {
    let mut table = [0; 256];
    let mut k = 0;
    while k < table.len() {
        table[k] = log2_of_one_plus(k as u128, 1 << 15) + if ll_is_exact(k) { 0 } else { LL_OFFSET };
        k += 1;
    }
    let mut odd = 0;
    while odd < LL_ODD.len() {
        table[LL_ODD[odd].0] = LL_ODD[odd].1;
        odd += 1;
    }
    table
}

/// `-2^44 * log2((u + 1) / 2^16)` for a 16-bit draw, as Ceph computes it: 0 < result <= 2^48.
#[inline]
pub(crate) fn neg_ln(u: u32) -> u64 {
    let x = (u & 0xffff) + 1;
    // Shift the mantissa to 2^15..=2^16 and remember the exponent.
    // How far the mantissa is below 2^15; 0 for the largest draw, 2^16.
    let shift = x.leading_zeros().max(16) - 16;
    let x = x << shift;
    let exponent = u64::from(15 - shift);
    let coarse = ((x >> 8) - 128) as usize; // 0..=128
    let fine = ((u64::from(x) * RH[coarse]) >> 48) as usize & 0xff;
    ONE - ((exponent << 44) + ((LH[coarse] + LL[fine]) >> 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(table: &[u64]) -> u64 {
        table.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, entry| (sum ^ entry).wrapping_mul(0x100_0000_01b3))
    }

    #[test]
    fn the_tables_are_the_ones_that_every_ceph_cluster_uses() {
        assert_eq!(checksum(&RH), 0xcda9_1333_1d01_6ebd);
        assert_eq!(checksum(&LH), 0x3a73_968b_c6d9_a498);
        assert_eq!(checksum(&LL), 0x1b69_6cf5_935e_1161);
    }

    #[test]
    fn a_draw_is_within_bounds_for_every_input() {
        for u in 0..=0xffff {
            let ln = neg_ln(u);
            assert!(ln > 0 && ln <= ONE, "{u}: {ln:#x}");
        }
        assert_eq!(neg_ln(0), ONE);
        assert_eq!(neg_ln(0xffff), 0x1000_0000);
    }
}
