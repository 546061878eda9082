//! The `aws-chunked` framing: chunks with or without signatures, trailers with or without.
//!
//! ```text
//! 10000;chunk-signature=ad80…\r\n   <65536 bytes>\r\n
//! 0;chunk-signature=b6c6…\r\n
//! x-amz-checksum-crc32c:sOO8/Q==\r\n
//! x-amz-trailer-signature:63bd…\r\n
//! \r\n
//! ```
//! The decoder is fed with whatever pieces the network gave: a chunk, a header line, a CRLF may be cut anywhere. It keeps
//! no data back: bytes are handed on as they come and the signature of their chunk is checked at its end, so a consumer
//! must not make anything visible before [`Event::End`].

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};

use super::canonical::{SigningKey, same, sha256_hex};
use crate::error::{Code, S3Error, S3Result};

/// Longest chunk header or trailer line.
const LINE_BYTES_MAX: usize = 1024;
/// Most trailers.
const TRAILERS_MAX: usize = 16;

/// The running signature of a signed stream.
#[derive(Debug, Clone)]
pub struct StreamSignature {
    /// Of the request.
    pub key: SigningKey,
    /// Of the request.
    pub date: String,
    /// Of the request.
    pub scope: String,
    /// The request's signature, then each chunk's.
    pub previous: String,
}

impl StreamSignature {
    fn chunk(&self, payload_sha256: &str) -> String {
        let to_sign = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{}\n{}\n{payload_sha256}",
            self.date,
            self.scope,
            self.previous,
            sha256_hex(b"")
        );
        self.key.sign(to_sign.as_bytes())
    }

    fn trailer(&self, trailer_sha256: &str) -> String {
        let to_sign =
            format!("AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{}\n{trailer_sha256}", self.date, self.scope, self.previous);
        self.key.sign(to_sign.as_bytes())
    }
}

/// Which of the three framings.
#[derive(Debug, Clone)]
pub struct Mode {
    signed: bool,
    trailer: bool,
    signature: Option<StreamSignature>,
}

impl Mode {
    /// `STREAMING-AWS4-HMAC-SHA256-PAYLOAD`, with `-TRAILER` if `trailer`.
    pub fn signed(trailer: bool) -> Mode {
        Mode { signed: true, trailer, signature: None }
    }

    /// `STREAMING-UNSIGNED-PAYLOAD-TRAILER`.
    pub fn unsigned() -> Mode {
        Mode { signed: false, trailer: true, signature: None }
    }

    /// Whether chunks carry signatures.
    pub fn is_signed(&self) -> bool {
        self.signed
    }

    /// Whether trailers may follow.
    pub fn has_trailer(&self) -> bool {
        self.trailer
    }

    pub(super) fn with_signature(self, signature: StreamSignature) -> Mode {
        Mode { signature: Some(signature), ..self }
    }
}

/// What the decoder found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the payload.
    Data(Bytes),
    /// The end, all signatures good.
    End,
}

enum State {
    Header,
    Data { left: u64 },
    DataEnd,
    Trailer,
    Done,
}

/// Takes the framing off.
pub struct Decoder {
    mode: Mode,
    state: State,
    line: Vec<u8>,
    chunk_hash: Sha256,
    chunk_signature: String,
    trailers: Vec<(String, String)>,
    trailer_text: String,
}

fn bad(message: &'static str) -> S3Error {
    S3Error::new(Code::InvalidRequest, message)
}

impl Decoder {
    /// A decoder at the start of a body.
    pub fn new(mode: Mode) -> Decoder {
        Decoder {
            mode,
            state: State::Header,
            line: Vec::new(),
            chunk_hash: Sha256::new(),
            chunk_signature: String::new(),
            trailers: Vec::new(),
            trailer_text: String::new(),
        }
    }

    /// The trailers by lower-case name; complete after [`Event::End`].
    pub fn trailers(&self) -> &[(String, String)] {
        &self.trailers
    }

    /// Takes from `input` until there is something to tell; `None` when more input is needed.
    pub fn next(&mut self, input: &mut Bytes) -> S3Result<Option<Event>> {
        loop {
            match self.state {
                State::Header => {
                    let Some(line) = self.take_line(input)? else { return Ok(None) };
                    self.chunk_header(&line)?;
                }
                State::Data { left } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let data = input.split_to(take);
                    if self.mode.signed {
                        self.chunk_hash.update(&data);
                    }
                    let left = left - take as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data { left } };
                    if left == 0 {
                        self.check_chunk()?;
                    }
                    return Ok(Some(Event::Data(data)));
                }
                State::DataEnd => {
                    let Some(line) = self.take_line(input)? else { return Ok(None) };
                    if !line.is_empty() {
                        return Err(bad("a chunk is longer than its header says"));
                    }
                    self.state = State::Header;
                }
                State::Trailer => {
                    let Some(line) = self.take_line(input)? else { return Ok(None) };
                    if line.is_empty() {
                        self.finish_trailer()?;
                        self.state = State::Done;
                        return Ok(Some(Event::End));
                    }
                    self.trailer_line(&line)?;
                }
                State::Done => {
                    input.advance(input.len());
                    return Ok(None);
                }
            }
        }
    }

    /// Tells the decoder that the body is over. Some clients leave the last CRLF out; everything else must be there.
    pub fn end_of_input(&mut self) -> S3Result<()> {
        match self.state {
            State::Done => Ok(()),
            State::Trailer if self.line.is_empty() => {
                self.finish_trailer()?;
                self.state = State::Done;
                Ok(())
            }
            _ => Err(Code::IncompleteBody.into()),
        }
    }

    fn take_line(&mut self, input: &mut Bytes) -> S3Result<Option<String>> {
        let end = input.iter().position(|byte| *byte == b'\n');
        let piece = input.split_to(end.map_or(input.len(), |at| at + 1));
        if self.line.len() + piece.len() > LINE_BYTES_MAX {
            return Err(bad("a chunk header or trailer line is too long"));
        }
        self.line.extend_from_slice(&piece);
        if end.is_none() {
            return Ok(None);
        }
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        String::from_utf8(line.to_vec()).map(Some).map_err(|_| bad("a chunk header or trailer line is not text"))
    }

    fn chunk_header(&mut self, line: &str) -> S3Result<()> {
        let (size, extension) = line.split_once(';').unwrap_or((line, ""));
        let size = size.trim();
        if size.is_empty() || size.len() > 16 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad("a chunk header is malformed"));
        }
        let left = u64::from_str_radix(size, 16).map_err(|_| bad("a chunk header is malformed"))?;
        if self.mode.signed {
            let signature = extension.trim().strip_prefix("chunk-signature=");
            self.chunk_signature = signature.ok_or_else(|| bad("a chunk has no signature"))?.to_owned();
            self.chunk_hash = Sha256::new();
        }
        if left == 0 {
            self.check_chunk()?;
            self.state = State::Trailer;
        } else {
            self.state = State::Data { left };
        }
        Ok(())
    }

    fn check_chunk(&mut self) -> S3Result<()> {
        if !self.mode.signed {
            return Ok(());
        }
        let hash = hex::encode(std::mem::take(&mut self.chunk_hash).finalize());
        let Some(signature) = &mut self.mode.signature else { return Err(Code::SignatureDoesNotMatch.into()) };
        let expected = signature.chunk(&hash);
        if !same(&expected, self.chunk_signature.as_bytes()) {
            return Err(Code::SignatureDoesNotMatch.into());
        }
        signature.previous = expected;
        Ok(())
    }

    fn trailer_line(&mut self, line: &str) -> S3Result<()> {
        let (name, value) = line.split_once(':').ok_or(Code::MalformedTrailerError)?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
        if !self.mode.trailer || self.trailers.len() >= TRAILERS_MAX {
            return Err(Code::MalformedTrailerError.into());
        }
        if name != "x-amz-trailer-signature" {
            self.trailer_text.push_str(&format!("{name}:{value}\n"));
        }
        self.trailers.push((name, value));
        Ok(())
    }

    fn finish_trailer(&mut self) -> S3Result<()> {
        let signed_trailer = self.mode.signed && self.mode.trailer;
        if !signed_trailer {
            return Ok(());
        }
        let given = self.trailers.iter().find(|(name, _)| name == "x-amz-trailer-signature").map(|(_, value)| value);
        let Some(given) = given else { return Err(Code::MalformedTrailerError.into()) };
        let Some(signature) = &self.mode.signature else { return Err(Code::SignatureDoesNotMatch.into()) };
        if !same(&signature.trailer(&sha256_hex(self.trailer_text.as_bytes())), given.as_bytes()) {
            return Err(Code::SignatureDoesNotMatch.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    type Decoded = (Vec<u8>, Vec<(String, String)>);

    fn run(mode: Mode, pieces: &[&[u8]]) -> S3Result<Decoded> {
        let mut decoder = Decoder::new(mode);
        let mut out = Vec::new();
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            while let Some(event) = decoder.next(&mut input)? {
                if let Event::Data(data) = event {
                    out.extend_from_slice(&data);
                }
            }
        }
        decoder.end_of_input()?;
        Ok((out, decoder.trailers().to_vec()))
    }

    /// The example of the S3 guide, "Signature Calculations for the Authorization Header: Transferring Payload in
    /// Multiple Chunks": 65 KiB + 1 KiB of `a`.
    fn guide_example() -> (Mode, Vec<u8>) {
        let scope = super::super::canonical::Scope {
            date: "20130524".into(),
            region: "us-east-1".into(),
            service: "s3".into(),
            terminator: "aws4_request".into(),
        };
        let signature = StreamSignature {
            key: SigningKey::derive("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", &scope),
            date: "20130524T000000Z".into(),
            scope: scope.to_string(),
            previous: "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9".into(),
        };
        let mut body =
            b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n".to_vec();
        body.extend(std::iter::repeat_n(b'a', 65536));
        body.extend(b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n");
        body.extend(std::iter::repeat_n(b'a', 1024));
        body.extend(b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n");
        (Mode::signed(false).with_signature(signature), body)
    }

    #[test]
    fn the_chunked_example_of_the_guide_is_accepted_and_any_change_of_it_is_not() {
        let (mode, body) = guide_example();
        assert_eq!(run(mode.clone(), &[&body]).unwrap().0, vec![b'a'; 66560]);
        for at in [100, 66000, 65700, body.len() - 10] {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert!(run(mode.clone(), &[&changed]).is_err(), "byte {at}");
        }
        let truncated = &body[..body.len() - 100];
        assert_eq!(run(mode, &[truncated]).unwrap_err().code, Code::IncompleteBody);
    }

    #[test]
    fn trailers_are_read_and_ends_are_checked() {
        let body = b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
        let (data, trailers) = run(Mode::unsigned(), &[body]).unwrap();
        assert_eq!(data, b"abcde");
        assert_eq!(trailers, [("x-amz-checksum-crc32".to_owned(), "AAAAAA==".to_owned())]);
        assert_eq!(run(Mode::unsigned(), &[b"3\r\nabc\r\n"]).unwrap_err().code, Code::IncompleteBody);
        assert_eq!(run(Mode::unsigned(), &[b"3\r\nabcd\r\n0\r\n\r\n"]).unwrap_err().code, Code::InvalidRequest);
        assert_eq!(run(Mode::unsigned(), &[b"-3\r\nabc\r\n0\r\n\r\n"]).unwrap_err().code, Code::InvalidRequest);
        assert_eq!(run(Mode::unsigned(), &[b"0\r\nnonsense\r\n\r\n"]).unwrap_err().code, Code::MalformedTrailerError);
        assert_eq!(run(Mode::signed(true), &[b"3\r\nabc\r\n0\r\n\r\n"]).unwrap_err().code, Code::InvalidRequest);
        assert_eq!(run(Mode::unsigned(), &[&[b'0'; 5000]]).unwrap_err().code, Code::InvalidRequest);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn cuts_between_reads_change_nothing(cuts in proptest::collection::vec(0usize..67000, 0..12)) {
            let (mode, body) = guide_example();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < body.len()).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect();
            prop_assert_eq!(run(mode, &pieces).unwrap().0.len(), 66560);
        }

        #[test]
        fn no_body_panics(body in proptest::collection::vec(prop_oneof![Just(b'0'), Just(b'\r'), Just(b'\n'), Just(b';'), Just(b'f'), any::<u8>()], 0..60)) {
            let _ = run(Mode::unsigned(), &[&body]);
            let _ = run(Mode::signed(true), &[&body]);
        }
    }
}
