//! Fragments and records of a log. All of it judges bytes from a disk: nothing here can fail but by finding less.

/// Of a fragment: checksum, length, type.
pub const HEADER_BYTES: usize = 7;
pub(crate) const BLOCK_BYTES: usize = 32 << 10;

/// What a fragment is of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All of it.
    Full,
    /// Its beginning.
    First,
    /// Neither beginning nor end.
    Middle,
    /// Its end.
    Last,
    /// No part of a record, but a note of RocksDB's own.
    Note,
}

impl Kind {
    pub(crate) fn of(byte: u8) -> Kind {
        match byte {
            1 => Kind::Full,
            2 => Kind::First,
            3 => Kind::Middle,
            4 => Kind::Last,
            _ => Kind::Note,
        }
    }
}

/// A fragment whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// What it is of its record.
    pub kind: Kind,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// CRC-32C (Castagnoli), as RocksDB masks it.
pub(crate) fn masked_checksum(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The fragment at byte `at` of `log`, when it is what was written.
#[must_use]
pub fn fragment(log: &[u8], at: usize) -> Option<Fragment<'_>> {
    let start = at.checked_add(HEADER_BYTES)?;
    let header = log.get(at..start)?;
    let (checksum, rest) = header.split_at(4);
    let (length, kind) = rest.split_at(2);
    let end = start + usize::from(u16::from_le_bytes(length.try_into().ok()?));
    if end > (at / BLOCK_BYTES + 1) * BLOCK_BYTES {
        return None;
    }
    // The type is the byte before the bytes; both are summed.
    let whole = masked_checksum(log.get(start - 1..end)?) == u32::from_le_bytes(checksum.try_into().ok()?);
    whole.then_some(Fragment { kind: Kind::of(*kind.first()?), bytes: log.get(start..end)? })
}

/// A whole record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    pieces: Vec<&'a [u8]>,
}

impl Record<'_> {
    /// Its first `count` bytes, or all when it is shorter.
    #[must_use]
    pub fn first_bytes(&self, count: usize) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| piece.iter()).take(count).copied().collect()
    }
}

/// The whole records of a log, one by one from its beginning, up to the first place that is not what was written.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    log: &'a [u8],
    at: usize,
    good: usize,
}

impl<'a> Records<'a> {
    /// Those of `log`, which is a whole file.
    #[must_use]
    pub fn of(log: &'a [u8]) -> Records<'a> {
        Records { log, at: 0, good: 0 }
    }

    /// All before this byte is whole records, those given so far.
    #[must_use]
    pub fn good(&self) -> usize {
        self.good
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let mut pieces = Vec::new();
        loop {
            let left = BLOCK_BYTES - self.at % BLOCK_BYTES;
            if left < HEADER_BYTES {
                self.at += left;
                continue;
            }
            let found = fragment(self.log, self.at)?;
            let begun = !pieces.is_empty();
            match (found.kind, begun) {
                (Kind::Note, false) => {}
                (Kind::Full | Kind::First, false) | (Kind::Middle | Kind::Last, true) => pieces.push(found.bytes),
                (Kind::Full | Kind::First | Kind::Note, true) | (Kind::Middle | Kind::Last, false) => return None,
            }
            self.at += HEADER_BYTES + found.bytes.len();
            match found.kind {
                Kind::Full | Kind::Last => {
                    self.good = self.at;
                    return Some(Record { pieces });
                }
                Kind::Note => self.good = self.at,
                Kind::First | Kind::Middle => {}
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    /// Writes records as RocksDB does.
    pub(crate) fn append(log: &mut Vec<u8>, record: &[u8]) {
        let mut rest = record;
        let mut first = true;
        loop {
            let left = BLOCK_BYTES - log.len() % BLOCK_BYTES;
            if left < HEADER_BYTES {
                log.resize(log.len() + left, 0);
                continue;
            }
            let (piece, later) = rest.split_at(rest.len().min(left - HEADER_BYTES));
            let kind = match (first, later.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            let summed = [&[kind], piece].concat();
            log.extend_from_slice(&masked_checksum(&summed).to_le_bytes());
            log.extend_from_slice(&u16::try_from(piece.len()).unwrap().to_le_bytes());
            log.extend_from_slice(&summed);
            (rest, first) = (later, false);
            if later.is_empty() {
                return;
            }
        }
    }

    pub(crate) fn record(number: usize, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from((number * 31 + at) % 251).unwrap()).collect()
    }

    #[test]
    fn records_of_all_lengths_are_read_across_blocks() {
        let lengths = [0, 1, 500, BLOCK_BYTES - 600, BLOCK_BYTES - 7, BLOCK_BYTES, 3 * BLOCK_BYTES + 11, 40];
        let mut log = Vec::new();
        for (number, bytes) in lengths.iter().cycle().take(40).enumerate() {
            append(&mut log, &record(number, *bytes));
        }
        let mut records = Records::of(&log);
        for (number, bytes) in lengths.iter().cycle().take(40).enumerate() {
            assert_eq!(records.next().unwrap().first_bytes(usize::MAX), record(number, *bytes), "record {number}");
        }
        assert_eq!((records.next(), records.good()), (None, log.len()));
    }

    #[test]
    fn reading_ends_before_the_record_in_which_a_bit_is_flipped() {
        let mut log = Vec::new();
        let mut ends = vec![0];
        for number in 0..30 {
            append(&mut log, &record(number, number * 517));
            ends.push(log.len());
        }
        for at in (0..log.len()).step_by(511) {
            let mut bad = log.clone();
            bad[at] ^= 1 << (at % 8);
            let mut records = Records::of(&bad);
            let count = records.by_ref().count();
            let hit = ends.iter().rposition(|end| *end <= at).unwrap();
            // The unused end of a block is no part of a record.
            assert!(count == hit || count == 30, "byte {at}: {count} records, hit {hit}");
            assert_eq!(records.good(), ends[count], "byte {at}");
        }
    }

    #[test]
    fn no_bytes_at_all_are_too_strange() {
        for seed in 0..2000_usize {
            let log: Vec<u8> = (0..seed % 97).map(|at| u8::try_from((seed * 7919 + at * at) % 256).unwrap()).collect();
            assert_eq!(Records::of(&log).count(), 0);
        }
        let endless = vec![0xff; 3 * BLOCK_BYTES];
        assert_eq!(fragment(&endless, endless.len()), None);
        assert_eq!(fragment(&endless, usize::MAX), None);
    }
}
