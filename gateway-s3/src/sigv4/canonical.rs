//! The canonical request, the string to sign and the signing key.
//!
//! S3 signs the path encoded once and never normalised. Clients differ in *which* characters they encode and in what
//! `+` in a query means, so a signature is held against the raw form first and then against the re-encoded ones
//! ([`Target::candidates`], at most four). All of them come from the same bytes that the request is routed by.

use std::fmt;

use hmac::{Hmac, Mac};
use http::HeaderMap;
use sha2::{Digest as _, Sha256};

use crate::error::{Code, S3Error, S3Result};

/// SHA-256 in hex.
pub fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// Whether two strings are equal, in time that does not tell where they differ.
pub fn same(a: &str, b: &[u8]) -> bool {
    let a = a.as_bytes();
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |diff, (x, y)| diff | (x ^ y)) == 0
}

/// Percent-encodes as SigV4 asks: all but unreserved characters, `/` kept if `keep_slash`.
pub fn encode(bytes: &[u8], keep_slash: bool) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(bytes.len() + 16);
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(*byte)),
            b'/' if keep_slash => out.push('/'),
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    out
}

/// Percent-decodes; a `%` that starts no escape stays as it is. `plus` reads `+` as a space.
pub fn decode(text: &str, plus: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|d| u8::try_from(d).ok()).unwrap_or(0);
                out.push(digit(high) << 4 | digit(low));
                rest = after;
            }
            (b'+', _) if plus => out.push(b' '),
            _ => out.push(*byte),
        }
    }
    out
}

/// Path and query as they stood in the request line.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    path: &'a str,
    query: &'a str,
}

impl<'a> Target<'a> {
    /// Of a raw path and a raw query without `?`.
    pub fn new(path: &'a str, query: &'a str) -> Target<'a> {
        Target { path, query }
    }

    fn raw_params(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    /// Whether the query has the parameter.
    pub fn has_param(&self, name: &str) -> bool {
        self.raw_params().any(|(n, _)| n == name)
    }

    /// The decoded value of a parameter; `None` too if it is not UTF-8.
    pub fn param(&self, name: &str) -> Option<String> {
        let (_, value) = self.raw_params().find(|(n, _)| *n == name)?;
        String::from_utf8(decode(value, false)).ok()
    }

    fn canonical_query(&self, presigned: bool, plus: bool) -> String {
        let mut pairs: Vec<(String, String)> = self
            .raw_params()
            .filter(|(name, _)| !(presigned && *name == "X-Amz-Signature"))
            .map(|(name, value)| (encode(&decode(name, plus), false), encode(&decode(value, plus), false)))
            .collect();
        pairs.sort();
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    }

    /// The canonical (path, query) forms that a signature may have been made over, likeliest first.
    pub fn candidates(&self, presigned: bool) -> Vec<(String, String)> {
        let path = if self.path.is_empty() { "/" } else { self.path };
        let mut paths = vec![path.to_owned()];
        let encoded = encode(&decode(path, false), true);
        if encoded != path {
            paths.push(encoded);
        }
        let mut queries = vec![self.canonical_query(presigned, false)];
        if self.query.contains('+') {
            queries.push(self.canonical_query(presigned, true));
        }
        paths.iter().flat_map(|path| queries.iter().map(|query| (path.clone(), query.clone()))).collect()
    }
}

fn fold(value: &str) -> String {
    value.split([' ', '\t']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The canonical request.
pub fn request(
    method: &str,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    signed_headers: &[String],
    payload: &str,
) -> String {
    let mut out = format!("{method}\n{path}\n{query}\n");
    for name in signed_headers {
        let values: Vec<String> = headers
            .get_all(name.as_str())
            .iter()
            .map(|value| fold(&String::from_utf8_lossy(value.as_bytes())))
            .collect();
        out.push_str(name);
        out.push(':');
        out.push_str(&values.join(","));
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&signed_headers.join(";"));
    out.push('\n');
    out.push_str(payload);
    out
}

/// The string to sign for a canonical request.
pub fn string_to_sign(date: &str, scope: &Scope, canonical: &str) -> String {
    format!("{}\n{date}\n{scope}\n{}", super::ALGORITHM, sha256_hex(canonical.as_bytes()))
}

/// What a signing key is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// `20130524`.
    pub date: String,
    /// `us-east-1`.
    pub region: String,
    /// `s3`.
    pub service: String,
    /// `aws4_request`.
    pub terminator: String,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.date, self.region, self.service, self.terminator)
    }
}

impl Scope {
    /// Reads `AKID/20130524/us-east-1/s3/aws4_request` into access key and scope. The access key may contain `/`.
    pub fn parse(credential: &str) -> Option<(String, Scope)> {
        let mut fields = credential.rsplitn(5, '/');
        let terminator = fields.next()?.to_owned();
        let service = fields.next()?.to_owned();
        let region = fields.next()?.to_owned();
        let date = fields.next()?.to_owned();
        let access_key = fields.next()?.to_owned();
        if access_key.is_empty() || access_key.len() > 128 {
            return None;
        }
        Some((access_key, Scope { date, region, service, terminator }))
    }

    /// Whether the scope is for this service.
    pub fn check(&self, region: &str, malformed: Code) -> S3Result<()> {
        let wrong = |message: String| Err(S3Error::new(malformed, message));
        if self.terminator != "aws4_request" {
            return wrong(format!("The credential scope must end with \"aws4_request\", not {:?}.", self.terminator));
        }
        if self.service != "s3" {
            return wrong(format!("The service in the credential scope must be \"s3\", not {:?}.", self.service));
        }
        if self.region != region {
            let message = format!(
                "The authorization header is malformed; the region '{}' is wrong; expecting '{region}'",
                self.region
            );
            return Err(S3Error::new(malformed, message).detail("Region", region));
        }
        Ok(())
    }
}

/// A key derived for one scope.
#[derive(Clone)]
pub struct SigningKey([u8; 32]);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

impl SigningKey {
    /// Derives the key of a secret for a scope.
    pub fn derive(secret: &str, scope: &Scope) -> SigningKey {
        let date = hmac(format!("AWS4{secret}").as_bytes(), scope.date.as_bytes());
        let region = hmac(&date, scope.region.as_bytes());
        let service = hmac(&region, scope.service.as_bytes());
        SigningKey(hmac(&service, scope.terminator.as_bytes()))
    }

    /// The signature of some bytes, in hex.
    pub fn sign(&self, data: &[u8]) -> String {
        hex::encode(hmac(&self.0, data))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_are_sorted_and_empty_values_kept() {
        let query = |q| Target::new("/", q).candidates(false)[0].1.clone();
        assert_eq!(query("acl"), "acl=");
        assert_eq!(query("acl="), "acl=");
        assert_eq!(query("prefix=a%2fb&max-keys=2&a"), "a=&max-keys=2&prefix=a%2Fb");
        assert_eq!(query("k=%E1%88%B4&K=a=b"), "K=a%3Db&k=%E1%88%B4");
        let plus: Vec<String> = Target::new("/", "p=a+b").candidates(false).into_iter().map(|(_, q)| q).collect();
        assert_eq!(plus, ["p=a%2Bb", "p=a%20b"]);
    }

    #[test]
    fn paths_are_never_normalised() {
        for raw in ["/b/a//b/../c/./d", "/b/%2F..%2f", "/b//"] {
            assert_eq!(Target::new(raw, "").candidates(false)[0].0, raw);
        }
    }

    #[test]
    fn header_values_are_trimmed_and_folded() {
        let mut headers = HeaderMap::new();
        headers.append("x-amz-meta-a", "  a   b  ".parse().unwrap());
        headers.append("x-amz-meta-a", "c".parse().unwrap());
        let canonical = request("GET", "/", "", &headers, &["x-amz-meta-a".to_owned()], "UNSIGNED-PAYLOAD");
        assert_eq!(canonical, "GET\n/\n\nx-amz-meta-a:a b,c\n\nx-amz-meta-a\nUNSIGNED-PAYLOAD");
    }

    proptest! {
        #[test]
        fn nothing_panics_and_encoding_comes_back(path in "\\PC{0,30}", query in "[a-c%&=+;/0-9A-F]{0,30}") {
            let _ = Target::new(&path, &query).candidates(true);
            let _ = Scope::parse(&path);
            prop_assert_eq!(decode(&encode(path.as_bytes(), false), true), path.as_bytes());
        }
    }
}
