//! Signs requests as S3's Signature Version 4 wants it, in the header, with `UNSIGNED-PAYLOAD`.
//!
//! Only what a load needs: no query strings, keys of characters that are never escaped.
//!
//! Source: Amazon S3 API Reference, "Signature Calculations for the Authorization Header".

use hmac::{Hmac, Mac};
use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// The body is not part of the signature: measuring the server's work, not the load's hashing.
const PAYLOAD: &str = "UNSIGNED-PAYLOAD";
const SIGNED_HEADERS: &str = "host;x-amz-content-sha256;x-amz-date";

/// Signs for one endpoint with one key.
#[derive(Debug, Clone)]
pub struct Signer {
    host: String,
    region: String,
    access_key: String,
    secret_key: String,
    /// The derived key of a day; it is the same for all requests of that day.
    day_key: Option<(String, Vec<u8>)>,
}

impl Signer {
    /// For `host` as requests name it (`127.0.0.1:9000`).
    #[must_use]
    pub fn new(host: String, region: String, access_key: String, secret_key: String) -> Signer {
        Signer { host, region, access_key, secret_key, day_key: None }
    }

    /// The headers that sign a request for `path`, which must need no escapes, at this time.
    ///
    /// # Errors
    /// When the host or the access key cannot stand in a header.
    pub fn sign(
        &mut self,
        method: &Method,
        path: &str,
        at: Timestamp,
    ) -> Result<[(HeaderName, HeaderValue); 4], http::header::InvalidHeaderValue> {
        let date = at.strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = date.get(..8).unwrap_or_default().to_owned();
        let host = HeaderValue::try_from(self.host.as_str())?;
        let canonical = format!(
            "{method}\n{path}\n\nhost:{}\nx-amz-content-sha256:{PAYLOAD}\nx-amz-date:{date}\n\n{SIGNED_HEADERS}\n{PAYLOAD}",
            self.host
        );
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
        let signature = hex::encode(hmac(self.key_of(&day), to_sign.as_bytes()));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={SIGNED_HEADERS}, Signature={signature}",
            self.access_key
        );
        Ok([
            (http::header::HOST, host),
            (HeaderName::from_static("x-amz-content-sha256"), HeaderValue::from_static(PAYLOAD)),
            (HeaderName::from_static("x-amz-date"), HeaderValue::try_from(date)?),
            (http::header::AUTHORIZATION, HeaderValue::try_from(authorization)?),
        ])
    }

    fn key_of(&mut self, day: &str) -> &[u8] {
        if self.day_key.as_ref().is_none_or(|(of, _)| of != day) {
            let start = format!("AWS4{}", self.secret_key);
            let steps = [day, self.region.as_str(), "s3", "aws4_request"];
            let key = steps.iter().fold(start.into_bytes(), |key, step| hmac(&key, step.as_bytes()));
            self.day_key = Some((day.to_owned(), key));
        }
        self.day_key.as_ref().map_or(&[], |(_, key)| key)
    }
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "Example: GET Object" of the source has other headers; the derivation of the key is checked with the example of
    /// the IAM guide ("Create a signed AWS API request"), the rest against the gateway in `tests/`.
    #[test]
    fn the_derived_key_is_the_one_of_the_guide() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let steps = ["20120215", "us-east-1", "iam", "aws4_request"];
        let key = steps.iter().fold(format!("AWS4{secret}").into_bytes(), |key, step| hmac(&key, step.as_bytes()));
        assert_eq!(hex::encode(key), "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d");
    }

    #[test]
    fn a_new_day_has_a_new_key() {
        let mut signer = Signer::new("h:1".to_owned(), "r".to_owned(), "A".to_owned(), "s".to_owned());
        let mut at = |second| {
            let time = Timestamp::from_second(second).expect("in range");
            signer.sign(&Method::GET, "/b/k", time).expect("plain text")[3].1.clone()
        };
        let (first, same, next) = (at(86_399), at(86_399), at(86_400));
        assert_eq!(first, same);
        assert_ne!(first, next);
        assert!(next.to_str().expect("text").contains("Credential=A/19700102/r/s3/aws4_request"));
    }
}
