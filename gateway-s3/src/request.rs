//! What a request addresses: bucket and key from the raw request line and the host, and the query.

use http::HeaderMap;

use crate::error::{Code, S3Error, S3Result};
use crate::sigv4::canonical::decode;
use crate::sigv4::header;

/// Longest key, bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 1024;

/// Decoded query parameters in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a raw query. `+` is a space, as in forms.
    ///
    /// # Errors
    /// [`Code::InvalidURI`] if a name or value is not UTF-8.
    pub fn parse(raw: &str) -> S3Result<Query> {
        let text = |raw: &str| String::from_utf8(decode(raw, true)).map_err(|_| S3Error::from(Code::InvalidURI));
        let pairs = raw.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((text(name)?, text(value)?))
        });
        Ok(Query(pairs.collect::<S3Result<_>>()?))
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether the parameter is there, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Names and values in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// A number.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if it is not one, or negative.
    pub fn number(&self, name: &'static str) -> S3Result<Option<u64>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let wrong = |message| S3Error::argument(name, text, message);
        match text.parse::<i64>() {
            Ok(number) => u64::try_from(number)
                .map(Some)
                .map_err(|_| wrong("Argument must be an integer between 0 and 2147483647")),
            Err(_) => Err(wrong("Provided value is not an integer or within integer range")),
        }
    }
}

/// The thing addressed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// The bucket's name; `None` for the service itself.
    pub bucket: Option<String>,
    /// The object's key; `None` for the bucket itself.
    pub key: Option<String>,
}

impl Resource {
    /// Reads it from the raw path and the host. The key is everything after the bucket's slash, decoded once and never
    /// normalised: `a//b`, `..` and `%2F` are what they are.
    ///
    /// # Errors
    /// [`Code::InvalidURI`] for a key that is not UTF-8, [`Code::KeyTooLongError`] for one that is too long.
    pub fn parse(raw_path: &str, host: Option<&str>, base_domains: &[String]) -> S3Result<Resource> {
        let rest = raw_path.strip_prefix('/').unwrap_or(raw_path);
        let (bucket, key) = match host.and_then(|host| bucket_of_host(host, base_domains)) {
            Some(bucket) => (bucket, rest),
            None if rest.is_empty() => return Ok(Resource::default()),
            None => {
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                let bucket = String::from_utf8(decode(bucket, false)).map_err(|_| Code::InvalidBucketName)?;
                (bucket, key)
            }
        };
        let key = String::from_utf8(decode(key, false)).map_err(|_| Code::InvalidURI)?;
        check_key_length(&key)?;
        Ok(Resource { bucket: Some(bucket), key: Some(key).filter(|key| !key.is_empty()) })
    }
}

/// # Errors
/// [`Code::KeyTooLongError`].
pub fn check_key_length(key: &str) -> S3Result<()> {
    if key.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(S3Error::from(Code::KeyTooLongError)
        .detail("Size", key.len().to_string())
        .detail("MaxSizeAllowed", KEY_BYTES_MAX.to_string()))
}

fn bucket_of_host(host: &str, base_domains: &[String]) -> Option<String> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.to_ascii_lowercase();
    base_domains
        .iter()
        .filter_map(|domain| name.strip_suffix(&domain.to_ascii_lowercase())?.strip_suffix('.').map(str::to_owned))
        .find(|bucket| !bucket.is_empty())
}

/// Whether a new bucket may have this name (the rules of S3's user guide, "General purpose bucket naming rules").
pub fn valid_bucket_name(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
        && edge(bytes.first())
        && edge(bytes.last())
        && !name.contains("..")
        && !name.contains(".-")
        && !name.contains("-.")
        && name.parse::<std::net::Ipv4Addr>().is_err()
        && !["xn--", "sthree-", "amzn-s3-demo-"].iter().any(|prefix| name.starts_with(prefix))
        && !["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"].iter().any(|suffix| name.ends_with(suffix))
}

/// Refuses what would need a feature that is not there, rather than drop it in silence: a client that asks for encryption
/// must not believe that it got it.
///
/// # Errors
/// [`Code::NotImplemented`], [`Code::InvalidStorageClass`] or [`Code::AccessControlListNotSupported`].
pub fn refuse_unsupported_headers(headers: &HeaderMap) -> S3Result<()> {
    for name in headers.keys().map(http::HeaderName::as_str) {
        let unsupported = name.starts_with("x-amz-server-side-encryption")
            || name.starts_with("x-amz-copy-source-server-side-encryption")
            || name.starts_with("x-amz-object-lock-")
            || name.starts_with("x-amz-grant-")
            || matches!(name, "x-amz-website-redirect-location" | "x-amz-write-offset-bytes" | "x-amz-tagging");
        if unsupported && !(name == "x-amz-tagging" && header(headers, name) == Some("")) {
            let code = if name.starts_with("x-amz-grant-") {
                Code::AccessControlListNotSupported
            } else {
                Code::NotImplemented
            };
            return Err(S3Error::from(code).detail("Header", name));
        }
    }
    if let Some(class) = header(headers, "x-amz-storage-class")
        && class != "STANDARD"
    {
        return Err(S3Error::from(Code::InvalidStorageClass).detail("StorageClassRequested", class));
    }
    match header(headers, "x-amz-acl") {
        None | Some("" | "private" | "bucket-owner-full-control") => Ok(()),
        Some(
            "public-read" | "public-read-write" | "authenticated-read" | "aws-exec-read" | "bucket-owner-read"
            | "log-delivery-write",
        ) => Err(Code::AccessControlListNotSupported.into()),
        Some(acl) => Err(S3Error::argument("x-amz-acl", acl, "The canned ACL is not valid")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn resource(path: &str, host: &str) -> (Option<String>, Option<String>) {
        let domains = ["s3.example.com".to_owned()];
        let resource = Resource::parse(path, Some(host), &domains).unwrap();
        (resource.bucket, resource.key)
    }

    #[test]
    fn keys_are_taken_as_they_are() {
        let some = |bucket: &str, key: &str| (Some(bucket.to_owned()), Some(key.to_owned()));
        assert_eq!(resource("/", "localhost:9000"), (None, None));
        assert_eq!(resource("/b", "h"), (Some("b".into()), None));
        assert_eq!(resource("/b/", "h"), (Some("b".into()), None));
        assert_eq!(
            resource("/b//a/../%2e/./c//", "h"),
            some("b", "/a/.././c//".replace("/.././c", "/../././c").as_str())
        );
        assert_eq!(resource("/b/a%2Fb+c%20d%25", "h"), some("b", "a/b+c d%"));
        assert_eq!(resource("/k/y", "b.c.S3.example.com:80"), some("b.c", "k/y"));
        assert_eq!(resource("/b/k", "s3.example.com"), some("b", "k"));
    }

    #[test]
    fn a_key_of_1024_bytes_is_the_longest() {
        let path = |n: usize| format!("/b/{}", "é".repeat(n / 2));
        assert!(Resource::parse(&path(1024), None, &[]).is_ok());
        assert_eq!(Resource::parse(&path(1026), None, &[]).unwrap_err().code, Code::KeyTooLongError);
        assert_eq!(Resource::parse("/b/%ff", None, &[]).unwrap_err().code, Code::InvalidURI);
    }

    #[test]
    fn bucket_names_follow_the_rules() {
        for good in ["abc", "a.b-c", "1abc9", &"a".repeat(63)] {
            assert!(valid_bucket_name(good), "{good}");
        }
        for bad in
            ["ab", "Abc", "a_b", "a..b", "-abc", "abc-", ".abc", "1.2.3.4", "xn--a", "a.-b", &"a".repeat(64), "a/b"]
        {
            assert!(!valid_bucket_name(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_target_panics(path in "/?\\PC{0,40}", host in "\\PC{0,30}", query in "\\PC{0,40}") {
            let _ = Resource::parse(&path, Some(&host), &["a".to_owned()]);
            let _ = Query::parse(&query);
        }
    }
}
