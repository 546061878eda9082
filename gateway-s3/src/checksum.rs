//! The digests of an object: MD5 for the ETag, SHA-256 of the payload, and the five `x-amz-checksum-*` algorithms.
//!
//! [`Hasher`] computes all that one upload needs in one pass; [`HashPipe`] runs it beside the storage writes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use crate::error::{Code, S3Error, S3Result};
use crate::row::ChecksumRow;

/// A checksum algorithm of S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// CRC-32 (IEEE).
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 5] =
        [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme, Algorithm::Sha1, Algorithm::Sha256];

    /// The stored code.
    pub fn code(self) -> u8 {
        match self {
            Algorithm::Crc32 => 1,
            Algorithm::Crc32c => 2,
            Algorithm::Crc64Nvme => 3,
            Algorithm::Sha1 => 4,
            Algorithm::Sha256 => 5,
        }
    }

    /// The algorithm of a stored code.
    pub fn from_code(code: u8) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.code() == code)
    }

    /// `CRC32` and so on, as headers and XML name it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "CRC32",
            Algorithm::Crc32c => "CRC32C",
            Algorithm::Crc64Nvme => "CRC64NVME",
            Algorithm::Sha1 => "SHA1",
            Algorithm::Sha256 => "SHA256",
        }
    }

    /// Reads the name, in any case.
    pub fn parse(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// `x-amz-checksum-crc32` and so on.
    pub fn header(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "x-amz-checksum-crc32",
            Algorithm::Crc32c => "x-amz-checksum-crc32c",
            Algorithm::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Algorithm::Sha1 => "x-amz-checksum-sha1",
            Algorithm::Sha256 => "x-amz-checksum-sha256",
        }
    }

    /// `ChecksumCRC32` and so on.
    pub fn element(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "ChecksumCRC32",
            Algorithm::Crc32c => "ChecksumCRC32C",
            Algorithm::Crc64Nvme => "ChecksumCRC64NVME",
            Algorithm::Sha1 => "ChecksumSHA1",
            Algorithm::Sha256 => "ChecksumSHA256",
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Algorithm::Crc32 | Algorithm::Crc32c => 4,
            Algorithm::Crc64Nvme => 8,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
        }
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Algorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Algorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Algorithm::Sha1 | Algorithm::Sha256 => None,
        }
    }

    /// Whether the checksum of a whole can be computed from those of its parts.
    pub fn combines(self) -> bool {
        self.crc().is_some()
    }

    /// Reads a base64 value of the right length.
    pub fn decode(self, text: &str) -> Option<Vec<u8>> {
        BASE64.decode(text.trim()).ok().filter(|value| value.len() == self.bytes())
    }

    /// The checksum of some bytes.
    pub fn of(self, data: &[u8]) -> Vec<u8> {
        let mut running = Running::new(self);
        running.update(data);
        running.finish()
    }

    /// The checksum of `a` followed by `b`, where `b` is `b_bytes` long. `None` if the algorithm does not combine.
    pub fn combine(self, a: &[u8], b: &[u8], b_bytes: u64) -> Option<Vec<u8>> {
        let crc = self.crc()?;
        let combined = crc_fast::checksum_combine(crc, from_big_endian(a), from_big_endian(b), b_bytes);
        Some(big_endian(combined, self.bytes()))
    }
}

fn big_endian(value: u64, bytes: usize) -> Vec<u8> {
    let all = value.to_be_bytes();
    all.get(8usize.saturating_sub(bytes)..).unwrap_or(&all).to_vec()
}

fn from_big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

/// Base64 as S3 writes it.
pub fn base64(value: &[u8]) -> String {
    BASE64.encode(value)
}

/// Reads base64.
pub fn unbase64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.trim()).ok()
}

impl ChecksumRow {
    /// The algorithm, if this version knows it.
    pub fn known(&self) -> Option<Algorithm> {
        Algorithm::from_code(self.algorithm)
    }

    /// The value as clients see it: base64, and `-N` if it is made of N parts' checksums.
    pub fn shown(&self) -> String {
        match self.composite_parts {
            None => base64(&self.value),
            Some(parts) => format!("{}-{parts}", base64(&self.value)),
        }
    }

    /// `COMPOSITE` or `FULL_OBJECT`.
    pub fn kind(&self) -> &'static str {
        if self.composite_parts.is_some() { "COMPOSITE" } else { "FULL_OBJECT" }
    }
}

enum Running {
    Crc(Algorithm, crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Running {
    fn new(algorithm: Algorithm) -> Running {
        match (algorithm, algorithm.crc()) {
            (_, Some(crc)) => Running::Crc(algorithm, crc_fast::Digest::new(crc)),
            (Algorithm::Sha1, None) => Running::Sha1(Sha1::new()),
            (_, None) => Running::Sha256(Sha256::new()),
        }
    }

    fn update(&mut self, data: &[u8]) {
        match self {
            Running::Crc(_, digest) => digest.update(data),
            Running::Sha1(digest) => digest.update(data),
            Running::Sha256(digest) => digest.update(data),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Running::Crc(algorithm, digest) => big_endian(digest.finalize(), algorithm.bytes()),
            Running::Sha1(digest) => digest.finalize().to_vec(),
            Running::Sha256(digest) => digest.finalize().to_vec(),
        }
    }
}

/// What an upload is to be checked against and what is to be stored of it.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    /// `Content-MD5`.
    pub md5: Option<[u8; 16]>,
    /// The signed hash of the payload.
    pub sha256: Option<[u8; 32]>,
    /// The client's checksum.
    pub claim: Option<Claim>,
    /// The checksum to store, if not the client's own.
    pub store: Option<Algorithm>,
}

/// A checksum that the client states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Which.
    pub algorithm: Algorithm,
    /// Its value; `None` when it comes in a trailer.
    pub value: Option<Vec<u8>>,
}

/// The digests of one upload.
#[derive(Debug, Clone)]
pub struct Digests {
    /// MD5.
    pub md5: [u8; 16],
    /// Bytes hashed.
    pub bytes: u64,
    sha256: Option<[u8; 32]>,
    checksums: Vec<(Algorithm, Vec<u8>)>,
}

impl Digests {
    /// A checksum that was asked for.
    pub fn checksum(&self, algorithm: Algorithm) -> Option<&[u8]> {
        self.checksums.iter().find(|(a, _)| *a == algorithm).map(|(_, value)| value.as_slice())
    }

    /// Holds the digests against what the client stated. `trailers` are those that came after the body.
    pub fn verify(&self, expected: &Expectations, trailers: &[(String, String)]) -> S3Result<()> {
        if expected.sha256.is_some() && expected.sha256 != self.sha256 {
            return Err(Code::XAmzContentSHA256Mismatch.into());
        }
        if expected.md5.is_some_and(|md5| md5 != self.md5) {
            return Err(S3Error::new(Code::BadDigest, "The Content-MD5 you specified did not match what we received."));
        }
        let Some(claim) = &expected.claim else { return Ok(()) };
        let algorithm = claim.algorithm;
        let claimed = match &claim.value {
            Some(value) => value.clone(),
            None => trailers
                .iter()
                .find(|(name, _)| name == algorithm.header())
                .and_then(|(_, value)| algorithm.decode(value))
                .ok_or(Code::MalformedTrailerError)?,
        };
        if self.checksum(algorithm) != Some(claimed.as_slice()) {
            let message = format!("The {} you specified did not match the calculated checksum.", algorithm.name());
            return Err(S3Error::new(Code::BadDigest, message));
        }
        Ok(())
    }
}

/// Computes all digests of one upload in one pass.
pub struct Hasher {
    md5: Md5,
    sha256: Option<Sha256>,
    checksums: Vec<(Algorithm, Running)>,
    bytes: u64,
}

impl Hasher {
    /// A hasher for what `expected` needs.
    pub fn new(expected: &Expectations) -> Hasher {
        let mut checksums: Vec<(Algorithm, Running)> = Vec::new();
        for algorithm in expected.claim.iter().map(|claim| claim.algorithm).chain(expected.store) {
            if !checksums.iter().any(|(a, _)| *a == algorithm) {
                checksums.push((algorithm, Running::new(algorithm)));
            }
        }
        Hasher { md5: Md5::new(), sha256: expected.sha256.map(|_| Sha256::new()), checksums, bytes: 0 }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.md5.update(data);
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(data);
        }
        for (_, running) in &mut self.checksums {
            running.update(data);
        }
        self.bytes += data.len() as u64;
    }

    /// The digests of all bytes taken.
    pub fn finish(self) -> Digests {
        Digests {
            md5: self.md5.finalize().into(),
            bytes: self.bytes,
            sha256: self.sha256.map(|digest| digest.finalize().into()),
            checksums: self.checksums.into_iter().map(|(algorithm, running)| (algorithm, running.finish())).collect(),
        }
    }
}

/// Pieces below this are hashed where they are: a thread hop (some 10 µs) would cost more than it frees.
const HASH_INLINE_BYTES_MAX: usize = 64 * 1024;

/// A hasher that works beside its owner: [`HashPipe::push`] returns once the piece *before* is done, so hashing of one
/// piece overlaps with storing it and receiving the next, and at most one piece waits.
pub struct HashPipe(State);

enum State {
    Idle(Box<Hasher>),
    Busy(JoinHandle<Box<Hasher>>),
    Broken,
}

impl HashPipe {
    /// A pipe for what `expected` needs.
    pub fn new(expected: &Expectations) -> HashPipe {
        HashPipe(State::Idle(Box::new(Hasher::new(expected))))
    }

    async fn idle(&mut self) -> S3Result<Box<Hasher>> {
        match std::mem::replace(&mut self.0, State::Broken) {
            State::Idle(hasher) => Ok(hasher),
            State::Busy(task) => task.await.map_err(|_| Code::InternalError.into()),
            State::Broken => Err(Code::InternalError.into()),
        }
    }

    /// Takes the next bytes.
    pub async fn push(&mut self, data: Bytes) -> S3Result<()> {
        let mut hasher = self.idle().await?;
        self.0 = if data.len() <= HASH_INLINE_BYTES_MAX {
            hasher.update(&data);
            State::Idle(hasher)
        } else {
            State::Busy(tokio::task::spawn_blocking(move || {
                hasher.update(&data);
                hasher
            }))
        };
        Ok(())
    }

    /// The digests of all bytes taken.
    pub async fn finish(mut self) -> S3Result<Digests> {
        Ok(self.idle().await?.finish())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_check_values_of_the_catalogue() {
        let data = b"123456789";
        assert_eq!(hex::encode(Algorithm::Crc32.of(data)), "cbf43926");
        assert_eq!(hex::encode(Algorithm::Crc32c.of(data)), "e3069283");
        assert_eq!(hex::encode(Algorithm::Crc64Nvme.of(data)), "ae8b14860a799888");
        assert_eq!(hex::encode(Algorithm::Sha1.of(data)), "f7c3bc1d808e04732adf679965ccc34ca7ae3441");
    }

    #[test]
    fn combined_checksums_equal_those_of_the_whole() {
        let (a, b) = (vec![7u8; 5000], vec![9u8; 123]);
        let whole: Vec<u8> = [a.clone(), b.clone()].concat();
        for algorithm in Algorithm::ALL {
            let combined = algorithm.combine(&algorithm.of(&a), &algorithm.of(&b), b.len() as u64);
            assert_eq!(combined.is_some(), algorithm.combines());
            if let Some(combined) = combined {
                assert_eq!(combined, algorithm.of(&whole), "{algorithm:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_pipe_hashes_as_one_pass_does() {
        let expected =
            Expectations { sha256: Some([0; 32]), store: Some(Algorithm::Crc32c), ..Expectations::default() };
        let (mut pipe, mut plain) = (HashPipe::new(&expected), Hasher::new(&expected));
        for length in [10, 100_000, 3, 1 << 20, 0] {
            let piece = Bytes::from(vec![length as u8; length]);
            plain.update(&piece);
            pipe.push(piece).await.unwrap();
        }
        let (piped, plain) = (pipe.finish().await.unwrap(), plain.finish());
        assert_eq!((piped.md5, piped.sha256, piped.bytes), (plain.md5, plain.sha256, plain.bytes));
        assert_eq!(piped.checksums, plain.checksums);
    }
}
