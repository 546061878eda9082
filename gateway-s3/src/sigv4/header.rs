//! The `Authorization` header.

use http::HeaderMap;

use super::canonical::Scope;
use super::{ALGORITHM, Claimed, SKEW_MS_MAX, header};
use crate::clock::{iso_date, parse_amz_date, parse_http_date};
use crate::error::{Code, S3Error, S3Result};

fn malformed(message: &'static str) -> S3Error {
    S3Error::new(Code::AuthorizationHeaderMalformed, message)
}

/// Reads the signature that a request states in its headers, and checks its time.
pub(super) fn read(authorization: &str, headers: &HeaderMap, now_ms: u64) -> S3Result<Claimed> {
    let Some(fields) = authorization.strip_prefix(ALGORITHM) else {
        return Err(if authorization.starts_with("AWS ") {
            super::version_2()
        } else {
            S3Error::argument("Authorization", authorization, "Unsupported Authorization Type")
        });
    };
    let (mut credential, mut signed_headers, mut signature) = (None, None, None);
    for field in fields.split(',').map(str::trim) {
        match field.split_once('=') {
            Some(("Credential", value)) => credential = Some(value),
            Some(("SignedHeaders", value)) => signed_headers = Some(value),
            Some(("Signature", value)) => signature = Some(value),
            _ => return Err(malformed("The authorization header is malformed; it has an unknown field.")),
        }
    }
    let credential =
        credential.ok_or_else(|| malformed("The authorization header is malformed; Credential is missing."))?;
    let signed_headers =
        signed_headers.ok_or_else(|| malformed("The authorization header is malformed; SignedHeaders is missing."))?;
    let signature =
        signature.ok_or_else(|| malformed("The authorization header is malformed; Signature is missing."))?;
    let (access_key, scope) = Scope::parse(credential).ok_or_else(|| {
        malformed("The authorization header is malformed; the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".")
    })?;

    let (date, date_ms) = request_date(headers)?;
    if date.get(..8) != Some(scope.date.as_str()) {
        return Err(malformed(
            "The authorization header is malformed; Invalid credential date. Date is not the same as X-Amz-Date.",
        ));
    }
    if now_ms.abs_diff(date_ms) > SKEW_MS_MAX {
        return Err(S3Error::from(Code::RequestTimeTooSkewed)
            .detail("RequestTime", date)
            .detail("ServerTime", iso_date(now_ms))
            .detail("MaxAllowedSkewMilliseconds", SKEW_MS_MAX.to_string()));
    }
    let payload = header(headers, "x-amz-content-sha256").ok_or_else(|| {
        S3Error::new(Code::InvalidRequest, "Missing required header for this request: x-amz-content-sha256")
    })?;
    Ok(Claimed {
        access_key,
        scope,
        date,
        signed_headers: signed_headers.split(';').map(str::to_ascii_lowercase).collect(),
        signature: signature.to_owned(),
        presigned: false,
        payload: payload.to_owned(),
    })
}

fn request_date(headers: &HeaderMap) -> S3Result<(String, u64)> {
    let missing = || S3Error::new(Code::AccessDenied, "AWS authentication requires a valid Date or x-amz-date header");
    if let Some(date) = header(headers, "x-amz-date") {
        let ms = parse_amz_date(date).or_else(|| parse_http_date(date)).ok_or_else(missing)?;
        return Ok((amz_date(ms), ms));
    }
    let ms = header(headers, "date").and_then(|date| parse_http_date(date).or_else(|| parse_amz_date(date)));
    let ms = ms.ok_or_else(missing)?;
    Ok((amz_date(ms), ms))
}

fn amz_date(ms: u64) -> String {
    iso_date(ms - ms % 1000).chars().filter(|c| !matches!(c, '-' | ':')).collect::<String>().replace(".000", "")
}
