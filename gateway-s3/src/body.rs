//! Request bodies: opened only with an [`Authenticated`], de-framed, length-checked, bounded in time.
//!
//! Nothing is polled before [`BodyReader::next`], so a client that sent `Expect: 100-continue` gets its `100` only after
//! all checks that need no body have passed.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;

use crate::budget::{Budget, Permit};
use crate::checksum::{Algorithm, Claim, Expectations, Hasher, unbase64};
use crate::error::{Code, S3Error, S3Result};
use crate::paced::Pace;
use crate::runtime::Runtime;
use crate::sigv4::chunked::{Decoder, Event};
use crate::sigv4::{Authenticated, BodyVerifier, header};

/// A document and what is made of it: its body and the list read from it, then the list and the reply.
const DOCUMENT_COPIES: usize = 2;
/// Time for a document to arrive, beside its length at [`DOCUMENT_BYTES_PER_S_MIN`].
const DOCUMENT_TIME: Duration = Duration::from_secs(10);
const DOCUMENT_BYTES_PER_S_MIN: usize = 64 * 1024;

/// Something that gives bytes piece by piece and may have trailers after them.
pub(crate) trait Source: Send {
    /// The next piece; `None` at the end, when everything about the source has been verified.
    fn next(&mut self) -> impl Future<Output = S3Result<Option<Bytes>>> + Send;
    /// Trailers, complete after the end.
    fn trailers(&self) -> &[(String, String)] {
        &[]
    }
}

/// A request body being read.
pub(crate) struct BodyReader<'a> {
    body: &'a mut Body,
    runtime: Runtime,
    decoder: Option<Decoder>,
    pending: Bytes,
    length: Option<u64>,
    received: u64,
    pace: Pace,
    done: bool,
}

/// Opens the body of an authenticated request.
pub(crate) fn open<'a>(
    auth: &Authenticated,
    body: &'a mut Body,
    headers: &HeaderMap,
    runtime: &Runtime,
) -> S3Result<BodyReader<'a>> {
    let runtime = runtime.clone();
    let number = |name| match header(headers, name).map(str::trim) {
        None => Ok(None),
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse::<u64>().map(Some).map_err(|_| S3Error::from(Code::EntityTooLarge))
        }
        Some(text) => Err(S3Error::argument("Content-Length", text, "The length is not a number")),
    };
    let (decoder, length) = match auth.body() {
        BodyVerifier::Chunked(mode) => {
            let length = number("x-amz-decoded-content-length")?.ok_or(Code::MissingContentLength)?;
            (Some(Decoder::new(mode.clone())), Some(length))
        }
        BodyVerifier::Sha256(_) | BodyVerifier::Unsigned => (None, number("content-length")?),
    };
    Ok(BodyReader {
        body,
        runtime,
        decoder,
        pending: Bytes::new(),
        length,
        received: 0,
        pace: Pace::default(),
        done: false,
    })
}

impl BodyReader<'_> {
    /// The length of the payload.
    ///
    /// # Errors
    /// [`Code::MissingContentLength`] if the client did not state it.
    pub fn length(&self) -> S3Result<u64> {
        self.length.ok_or_else(|| Code::MissingContentLength.into())
    }

    async fn frame(&mut self) -> S3Result<Option<Bytes>> {
        loop {
            let asked = self.runtime.now();
            let frame = self.runtime.timeout(self.pace.patience(), self.body.frame()).await;
            let frame = frame.map_err(|_| Code::RequestTimeout)?;
            let bytes = frame.as_ref().and_then(|frame| Some(frame.as_ref().ok()?.data_ref()?.len()));
            self.pace.moved(bytes.unwrap_or(0), self.runtime.now().saturating_duration_since(asked));
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(_)) => return Err(Code::IncompleteBody.into()),
            }
        }
    }

    async fn piece(&mut self) -> S3Result<Option<Bytes>> {
        if self.decoder.is_none() {
            return self.frame().await;
        }
        loop {
            if let Some(decoder) = &mut self.decoder {
                match decoder.next(&mut self.pending)? {
                    Some(Event::Data(data)) => return Ok(Some(data)),
                    Some(Event::End) => continue,
                    None => {}
                }
            }
            match self.frame().await? {
                Some(data) => self.pending = data,
                None => {
                    if let Some(decoder) = &mut self.decoder {
                        decoder.end_of_input()?;
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// Reads a small body whole and holds it against all that the client stated of it. Its memory is taken when its first
    /// bytes are there, and it must be complete soon.
    pub async fn read_document(
        mut self,
        budget: &Budget,
        auth: &Authenticated,
        headers: &HeaderMap,
        bytes_max: usize,
    ) -> S3Result<Document> {
        let expected = expectations(auth, headers)?;
        let length = self.length.map_or(bytes_max, |length| usize::try_from(length).unwrap_or(usize::MAX));
        if length > bytes_max {
            return Err(Code::MaxMessageLengthExceeded.into());
        }
        let mut document = Document::default();
        if let Some(first) = self.next().await? {
            document.permit = Some(budget.acquire(length * DOCUMENT_COPIES).await?);
            document.bytes.reserve_exact(length);
            document.add(&first, bytes_max)?;
            let in_time = DOCUMENT_TIME + Duration::from_secs((length / DOCUMENT_BYTES_PER_S_MIN) as u64);
            let runtime = self.runtime.clone();
            let rest = async {
                while let Some(piece) = self.next().await? {
                    document.add(&piece, bytes_max)?;
                }
                S3Result::Ok(())
            };
            runtime.timeout(in_time, rest).await.map_err(|_| Code::RequestTimeout)??;
        }
        let mut hasher = Hasher::new(&expected);
        hasher.update(&document.bytes);
        hasher.finish().verify(&expected, self.trailers())?;
        Ok(document)
    }
}

/// A small body, whole, and leave to hold it and what is made of it.
#[derive(Debug, Default)]
pub(crate) struct Document {
    bytes: Vec<u8>,
    permit: Option<Permit>,
}

impl Document {
    fn add(&mut self, piece: &[u8], bytes_max: usize) -> S3Result<()> {
        if self.bytes.len() + piece.len() > bytes_max {
            return Err(Code::MaxMessageLengthExceeded.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// The body.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Drops the body; the leave is for what was made of it, as long as that lives. None for an empty one.
    pub fn into_permit(self) -> Option<Permit> {
        self.permit
    }
}

impl Source for BodyReader<'_> {
    async fn next(&mut self) -> S3Result<Option<Bytes>> {
        while !self.done {
            match self.piece().await? {
                Some(data) if data.is_empty() => {}
                Some(data) => {
                    self.received += data.len() as u64;
                    if self.length.is_some_and(|length| self.received > length) {
                        return Err(Code::IncompleteBody.into());
                    }
                    return Ok(Some(data));
                }
                None => {
                    if self.length.is_some_and(|length| self.received != length) {
                        return Err(Code::IncompleteBody.into());
                    }
                    self.done = true;
                }
            }
        }
        Ok(None)
    }

    fn trailers(&self) -> &[(String, String)] {
        self.decoder.as_ref().map_or(&[], Decoder::trailers)
    }
}

/// What a request states about its body.
///
/// # Errors
/// The AWS code when the statements are malformed or contradict each other.
pub(crate) fn expectations(auth: &Authenticated, headers: &HeaderMap) -> S3Result<Expectations> {
    let md5 = match header(headers, "content-md5") {
        None => None,
        Some(text) => {
            let value = unbase64(text).and_then(|value| <[u8; 16]>::try_from(value).ok());
            Some(value.ok_or_else(|| S3Error::from(Code::InvalidDigest).detail("Content-MD5", text))?)
        }
    };
    let sha256 = match auth.body() {
        BodyVerifier::Sha256(hash) => Some(*hash),
        BodyVerifier::Unsigned | BodyVerifier::Chunked(_) => None,
    };
    Ok(Expectations { md5, sha256, claim: claim(auth, headers)?, store: None })
}

fn claim(auth: &Authenticated, headers: &HeaderMap) -> S3Result<Option<Claim>> {
    let invalid = |message: String| S3Error::new(Code::InvalidRequest, message);
    let mut claims = Vec::new();
    for algorithm in Algorithm::ALL {
        if let Some(text) = header(headers, algorithm.header()) {
            let value = algorithm
                .decode(text)
                .ok_or_else(|| invalid(format!("Value for {} header is invalid.", algorithm.header())))?;
            claims.push(Claim { algorithm, value: Some(value) });
        }
    }
    if let Some(names) = header(headers, "x-amz-trailer") {
        let may_trail = matches!(auth.body(), BodyVerifier::Chunked(mode) if mode.has_trailer());
        for name in names.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()) {
            let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.header() == name);
            match algorithm {
                Some(algorithm) if may_trail => claims.push(Claim { algorithm, value: None }),
                _ => {
                    return Err(invalid("The value specified in the x-amz-trailer header is not supported".to_owned()));
                }
            }
        }
    }
    if claims.len() > 1 {
        let message = "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.";
        return Err(invalid(message.to_owned()));
    }
    let claim = claims.pop();
    if let Some(name) = header(headers, "x-amz-sdk-checksum-algorithm") {
        let algorithm = Algorithm::parse(name.trim())
            .ok_or_else(|| invalid("Value for x-amz-sdk-checksum-algorithm header is invalid.".to_owned()))?;
        match &claim {
            Some(claim) if claim.algorithm == algorithm => {}
            Some(_) => {
                return Err(invalid("Value for x-amz-sdk-checksum-algorithm header is invalid.".to_owned()));
            }
            None => {
                return Err(invalid("x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found.".to_owned()));
            }
        }
    }
    Ok(claim)
}

/// Reads and drops what is left of a body, so that a client that is still sending gets to read the reply.
/// Gives up after `bytes_max` or two seconds; `false` then, and the connection must be closed.
pub(crate) async fn drain(body: &mut Body, bytes_max: usize, runtime: &Runtime) -> bool {
    let all = async {
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > bytes_max {
                return false;
            }
        }
        true
    };
    runtime.timeout(Duration::from_secs(2), all).await.unwrap_or(false)
}
