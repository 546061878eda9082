//! Makes signed requests, for tests.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::clock::iso_date;
use crate::sigv4::canonical::{self, Scope, SigningKey, Target, encode, sha256_hex};

/// Signs as one user.
#[derive(Debug, Clone)]
pub struct Signer {
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret: String,
    /// Region of the credential scope.
    pub region: String,
    /// The client's clock, milliseconds since 1970.
    pub now_ms: u64,
}

/// A signed head: what a client puts on the wire before the body.
#[derive(Debug, Clone)]
pub struct SignedHead {
    /// Headers with `authorization`.
    pub headers: HeaderMap,
    /// The signature.
    pub signature: String,
    /// `x-amz-date`.
    pub date: String,
    /// The scope.
    pub scope: Scope,
}

impl Signer {
    /// The user of the S3 guide's examples at `now_ms`.
    pub fn example(now_ms: u64) -> Signer {
        Signer {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            region: "us-east-1".to_owned(),
            now_ms,
        }
    }

    fn date(&self) -> String {
        iso_date(self.now_ms - self.now_ms % 1000).replace(['-', ':'], "").replace(".000", "")
    }

    fn scope(&self) -> Scope {
        Scope {
            date: self.date().chars().take(8).collect(),
            region: self.region.clone(),
            service: "s3".to_owned(),
            terminator: "aws4_request".to_owned(),
        }
    }

    /// The signing key.
    pub fn key(&self) -> SigningKey {
        SigningKey::derive(&self.secret, &self.scope())
    }

    /// Signs a request whose payload hash is the literal `payload`. All headers given are signed.
    pub fn sign_literal(&self, method: &str, target: &str, mut headers: HeaderMap, payload: &str) -> SignedHead {
        let date = self.date();
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("x-amz-date", &date);
        set("x-amz-content-sha256", payload);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut names: Vec<String> = headers.keys().map(|name| name.as_str().to_owned()).collect();
        names.sort();
        let (path, query) = Target::new(path, query).candidates(false).into_iter().next().unwrap_or_default();
        let canonical = canonical::request(method, &path, &query, &headers, &names, payload);
        let scope = self.scope();
        let signature = self.key().sign(canonical::string_to_sign(&date, &scope, &canonical).as_bytes());
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
            self.access_key,
            names.join(";")
        );
        if let Ok(value) = HeaderValue::from_str(&authorization) {
            headers.insert("authorization", value);
        }
        SignedHead { headers, signature, date, scope }
    }

    /// Signs a request with its whole body.
    pub fn sign(&self, method: &str, target: &str, headers: HeaderMap, body: &[u8]) -> SignedHead {
        self.sign_literal(method, target, headers, &sha256_hex(body))
    }

    /// A presigned target for a request that signs only `host`.
    pub fn presign(&self, method: &str, target: &str, host: &str, expires_s: i64) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let credential = encode(format!("{}/{}", self.access_key, self.scope()).as_bytes(), false);
        let date = self.date();
        let mut query = query.to_owned();
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(&format!(
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date={date}&X-Amz-Expires={expires_s}&X-Amz-SignedHeaders=host"
        ));
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(host) {
            headers.insert("host", value);
        }
        let (canonical_path, canonical_query) =
            Target::new(path, &query).candidates(true).into_iter().next().unwrap_or_default();
        let canonical = canonical::request(
            method,
            &canonical_path,
            &canonical_query,
            &headers,
            &["host".to_owned()],
            "UNSIGNED-PAYLOAD",
        );
        let signature = self.key().sign(canonical::string_to_sign(&date, &self.scope(), &canonical).as_bytes());
        format!("{path}?{query}&X-Amz-Signature={signature}")
    }
}
