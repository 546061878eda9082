//! AWS Signature Version 4: the one way in.
//!
//! [`authenticate`] is the only maker of an [`Authenticated`], and only an `Authenticated` can open a request body
//! ([`Authenticated::body`]), so no handler can skip the signature of either. Signatures are verified over the raw path
//! and query of the request line, never over what a router made of them.

pub mod canonical;
pub mod chunked;
mod header;
pub(crate) mod presigned;

use http::HeaderMap;

use crate::backend::Keys;
use crate::error::{Code, S3Error, S3Result};
use canonical::{Scope, SigningKey, Target};
use chunked::{Mode, StreamSignature};

/// How far the client's clock may be off, milliseconds.
pub const SKEW_MS_MAX: u64 = 15 * 60 * 1000;

/// The only algorithm.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The access key used.
    pub access_key: String,
    /// Canonical id of the user.
    pub owner: String,
    /// The user's name.
    pub name: String,
}

/// What the body must turn out to be.
#[derive(Debug, Clone)]
pub enum BodyVerifier {
    /// Exactly the payload with this SHA-256.
    Sha256([u8; 32]),
    /// Anything: the signature does not cover it.
    Unsigned,
    /// Framed as `aws-chunked`.
    Chunked(Mode),
}

/// A request whose signature holds. Only [`authenticate`] makes one.
#[derive(Debug)]
pub struct Authenticated {
    principal: Principal,
    body: BodyVerifier,
    presigned: bool,
}

impl Authenticated {
    /// Who sent it.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// Whether the signature was in the query, and covers all of it.
    pub fn is_presigned(&self) -> bool {
        self.presigned
    }

    /// What its body must be.
    pub fn body(&self) -> &BodyVerifier {
        &self.body
    }
}

/// What a signature covers.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    /// `GET` and so on.
    pub method: &'a str,
    /// The path as it stood in the request line.
    pub raw_path: &'a str,
    /// The query as it stood in the request line, without `?`.
    pub raw_query: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
}

/// Reads a header as text; a value that is not text counts as absent.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
}

/// A signature as a client states it, from the header or the query alike.
struct Claimed {
    access_key: String,
    scope: Scope,
    /// `20130524T000000Z`.
    date: String,
    signed_headers: Vec<String>,
    signature: String,
    presigned: bool,
    payload: String,
}

/// Verifies the request's signature.
///
/// # Errors
/// The AWS code for each way a signature can be wrong; [`Code::AccessDenied`] for an anonymous request.
pub async fn authenticate(
    request: SignedRequest<'_>,
    keys: &dyn Keys,
    region: &str,
    now_ms: u64,
) -> S3Result<Authenticated> {
    let target = Target::new(request.raw_path, request.raw_query);
    let claimed = match header(request.headers, "authorization") {
        Some(authorization) => header::read(authorization, request.headers, now_ms)?,
        None if target.has_param("X-Amz-Algorithm") || target.has_param("X-Amz-Signature") => {
            presigned::read(&target, request.headers, now_ms)?
        }
        None if target.has_param("AWSAccessKeyId") => return Err(version_2()),
        None if request.headers.contains_key("authorization") => {
            return Err(Code::AuthorizationHeaderMalformed.into());
        }
        None => return Err(Code::AccessDenied.into()),
    };
    let malformed =
        if claimed.presigned { Code::AuthorizationQueryParametersError } else { Code::AuthorizationHeaderMalformed };
    claimed.scope.check(region, malformed)?;
    check_signed_headers(&claimed, request.headers)?;
    let body = body_verifier(&claimed.payload)?;

    let Some(info) = keys.secret_for(&claimed.access_key).await? else {
        return Err(S3Error::from(Code::InvalidAccessKeyId).detail("AWSAccessKeyId", claimed.access_key));
    };
    let key = SigningKey::derive(&info.secret, &claimed.scope);
    let mut first = None;
    let mut held = false;
    for (path, query) in target.candidates(claimed.presigned) {
        let canonical = canonical::request(
            request.method,
            &path,
            &query,
            request.headers,
            &claimed.signed_headers,
            &claimed.payload,
        );
        let to_sign = canonical::string_to_sign(&claimed.date, &claimed.scope, &canonical);
        if canonical::same(&key.sign(to_sign.as_bytes()), claimed.signature.as_bytes()) {
            held = true;
            break;
        }
        first.get_or_insert((canonical, to_sign));
    }
    if !held {
        let (canonical, to_sign) = first.unwrap_or_default();
        return Err(S3Error::from(Code::SignatureDoesNotMatch)
            .detail("AWSAccessKeyId", claimed.access_key)
            .detail("StringToSign", to_sign)
            .detail("SignatureProvided", claimed.signature)
            .detail("CanonicalRequest", canonical));
    }
    let body = match body {
        BodyVerifier::Chunked(mode) if mode.is_signed() => {
            BodyVerifier::Chunked(mode.with_signature(StreamSignature {
                key,
                date: claimed.date,
                scope: claimed.scope.to_string(),
                previous: claimed.signature,
            }))
        }
        body => body,
    };
    let principal = Principal { access_key: claimed.access_key, owner: info.owner, name: info.name };
    Ok(Authenticated { principal, body, presigned: claimed.presigned })
}

fn version_2() -> S3Error {
    S3Error::new(
        Code::InvalidRequest,
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
    )
}

/// `host` and every `x-amz-*` header must be signed: otherwise who is in between could add them.
fn check_signed_headers(claimed: &Claimed, headers: &HeaderMap) -> S3Result<()> {
    let signed = |name: &str| claimed.signed_headers.iter().any(|h| h == name);
    if !signed("host") {
        return Err(
            S3Error::new(Code::AccessDenied, "The host header must be signed.").detail("HeadersNotSigned", "host")
        );
    }
    let unsigned: Vec<&str> = headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(|name| name.starts_with("x-amz-") && !signed(name))
        // A presigned URL's payload hash may be stated by a header nobody signed; it is then part of the signature anyway.
        .filter(|name| !(claimed.presigned && *name == "x-amz-content-sha256"))
        .collect();
    if unsigned.is_empty() {
        return Ok(());
    }
    Err(S3Error::new(Code::AccessDenied, "There were headers present in the request which were not signed")
        .detail("HeadersNotSigned", unsigned.join(", ")))
}

fn body_verifier(payload: &str) -> S3Result<BodyVerifier> {
    Ok(match payload {
        "UNSIGNED-PAYLOAD" => BodyVerifier::Unsigned,
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => BodyVerifier::Chunked(Mode::signed(false)),
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => BodyVerifier::Chunked(Mode::signed(true)),
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => BodyVerifier::Chunked(Mode::unsigned()),
        literal => {
            let mut hash = [0; 32];
            hex::decode_to_slice(literal, &mut hash).map_err(|_| {
                S3Error::argument(
                    "x-amz-content-sha256",
                    literal,
                    "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
                )
            })?;
            BodyVerifier::Sha256(hash)
        }
    })
}
