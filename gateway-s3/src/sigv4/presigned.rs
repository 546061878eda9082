//! Signatures in the query: presigned URLs.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::canonical::{Scope, Target};
use super::{ALGORITHM, Claimed, SKEW_MS_MAX, header};
use crate::checksum::Algorithm;
use crate::clock::{iso_date, parse_amz_date};
use crate::error::{Code, S3Error, S3Result};
use crate::request::Query;

/// Longest life of a presigned URL, seconds: seven days.
const EXPIRES_S_MAX: u64 = 7 * 24 * 3600;

/// Parameters that are about the signature itself.
const OF_THE_SIGNATURE: [&str; 8] = [
    "x-amz-algorithm",
    "x-amz-content-sha256",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
];

/// Puts the headers that a signer moved into the query back among the headers: metadata, encryption, storage class and
/// all others that begin with `x-amz-`. The signature covers the whole query.
///
/// A checksum stays where it is, ignored as S3 ignores it: a URL is signed before its body is known, and the JavaScript
/// SDK puts the CRC-32 of *no* bytes into every one.
///
/// # Errors
/// [`Code::InvalidArgument`] when a name comes twice with different values, or a value cannot be a header's.
pub(crate) fn restore_headers(query: &Query, headers: &mut HeaderMap) -> S3Result<()> {
    for (name, value) in query.pairs() {
        let lower = name.to_ascii_lowercase();
        let checksum = lower == "x-amz-sdk-checksum-algorithm" || Algorithm::ALL.iter().any(|a| a.header() == lower);
        if !lower.starts_with("x-amz-") || checksum || OF_THE_SIGNATURE.contains(&lower.as_str()) {
            continue;
        }
        let bad = |message| S3Error::argument("x-amz-*", format!("{name}={value}"), message);
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad("The value is not a header's"))?;
        let name = HeaderName::from_bytes(lower.as_bytes()).map_err(|_| bad("The name is not a header's"))?;
        match headers.get(&name) {
            Some(there) if *there != value => return Err(bad("The parameter is stated twice")),
            Some(_) => {}
            None => _ = headers.insert(name, value),
        }
    }
    Ok(())
}

fn wrong(message: &'static str) -> S3Error {
    S3Error::new(Code::AuthorizationQueryParametersError, message)
}

/// Reads the signature that a request states in its query, and checks its time.
pub(super) fn read(target: &Target<'_>, headers: &HeaderMap, now_ms: u64) -> S3Result<Claimed> {
    let param = |name| {
        target.param(name).ok_or_else(|| {
            wrong("Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.")
        })
    };
    if param("X-Amz-Algorithm")? != ALGORITHM {
        return Err(wrong("X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\""));
    }
    let (credential, signature) = (param("X-Amz-Credential")?, param("X-Amz-Signature")?);
    let (date, signed_headers, expires) =
        (param("X-Amz-Date")?, param("X-Amz-SignedHeaders")?, param("X-Amz-Expires")?);

    let (access_key, scope) = Scope::parse(&credential).ok_or_else(|| {
        wrong("Error parsing the X-Amz-Credential parameter; the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".")
    })?;
    let date_ms = parse_amz_date(&date)
        .ok_or_else(|| wrong("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\""))?;
    if date.get(..8) != Some(scope.date.as_str()) {
        return Err(wrong(
            "Error parsing the X-Amz-Credential parameter; Invalid credential date. This date is not the same as X-Amz-Date.",
        ));
    }
    let expires_s: i64 = expires.parse().map_err(|_| wrong("X-Amz-Expires should be a number"))?;
    let expires_s = u64::try_from(expires_s).map_err(|_| wrong("X-Amz-Expires must be non-negative"))?;
    if expires_s > EXPIRES_S_MAX {
        return Err(wrong(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds",
        ));
    }
    if date_ms > now_ms.saturating_add(SKEW_MS_MAX) {
        return Err(S3Error::new(Code::AccessDenied, "Request is not valid yet"));
    }
    let expires_ms = date_ms.saturating_add(expires_s * 1000);
    if expires_ms < now_ms {
        return Err(S3Error::new(Code::AccessDenied, "Request has expired")
            .detail("X-Amz-Expires", expires)
            .detail("Expires", iso_date(expires_ms))
            .detail("ServerTime", iso_date(now_ms)));
    }
    let payload = target
        .param("X-Amz-Content-Sha256")
        .or_else(|| header(headers, "x-amz-content-sha256").map(str::to_owned))
        .unwrap_or_else(|| "UNSIGNED-PAYLOAD".to_owned());
    Ok(Claimed {
        access_key,
        scope,
        date,
        signed_headers: signed_headers.split(';').map(str::to_ascii_lowercase).collect(),
        signature,
        presigned: true,
        payload,
    })
}
