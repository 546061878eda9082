//! Conditional requests: RFC 9110 §13 as S3 applies it.

use http::HeaderMap;

use crate::clock::parse_http_date;
use crate::error::{Code, S3Error, S3Result};
use crate::sigv4::header;

/// Takes the quotes and a weakness mark off an ETag.
pub fn bare_etag(text: &str) -> &str {
    let text = text.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// Whether a list of ETags (or `*`) names this one.
pub fn names_etag(list: &str, etag: &str) -> bool {
    list.split(',').any(|item| item.trim() == "*" || bare_etag(item) == etag)
}

/// Whether the `Range` of a request counts. "A recipient of an If-Range header field MUST ignore the Range header field if
/// the If-Range condition evaluates as false" (RFC 9110 §13.1.5); the comparison is strong, a date must be exactly the
/// object's. Otherwise a download that is resumed would join the pieces of two objects.
pub fn range_counts(headers: &HeaderMap, etag: &str, modified_ms: u64) -> bool {
    let Some(validator) = header(headers, "if-range").map(str::trim) else { return true };
    if validator.starts_with("W/") {
        return false;
    }
    bare_etag(validator) == etag || parse_http_date(validator) == Some(modified_ms - modified_ms % 1000)
}

/// What a read with conditions comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answer it.
    Proceed,
    /// 304.
    NotModified,
}

/// The four conditions of a read, or of a copy's source.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadConditions<'a> {
    if_match: Option<&'a str>,
    if_none_match: Option<&'a str>,
    if_modified_since: Option<&'a str>,
    if_unmodified_since: Option<&'a str>,
}

impl<'a> ReadConditions<'a> {
    /// Those of a GET or HEAD.
    pub fn of_read(headers: &'a HeaderMap) -> ReadConditions<'a> {
        ReadConditions {
            if_match: header(headers, "if-match"),
            if_none_match: header(headers, "if-none-match"),
            if_modified_since: header(headers, "if-modified-since"),
            if_unmodified_since: header(headers, "if-unmodified-since"),
        }
    }

    /// Those of a copy's source.
    pub fn of_copy_source(headers: &'a HeaderMap) -> ReadConditions<'a> {
        ReadConditions {
            if_match: header(headers, "x-amz-copy-source-if-match"),
            if_none_match: header(headers, "x-amz-copy-source-if-none-match"),
            if_modified_since: header(headers, "x-amz-copy-source-if-modified-since"),
            if_unmodified_since: header(headers, "x-amz-copy-source-if-unmodified-since"),
        }
    }

    /// Holds them against an object. If-Match goes before If-Unmodified-Since, If-None-Match before If-Modified-Since.
    /// `now_ms`: a date in the future is void (RFC 9110 §13.1.3).
    pub fn evaluate(&self, etag: &str, modified_ms: u64, now_ms: u64) -> S3Result<Verdict> {
        let modified_ms = modified_ms - modified_ms % 1000;
        let failed =
            |condition: &'static str| Err(S3Error::from(Code::PreconditionFailed).detail("Condition", condition));
        match (self.if_match, self.if_unmodified_since.and_then(parse_http_date)) {
            (Some(list), _) if !names_etag(list, etag) => return failed("If-Match"),
            (None, Some(since)) if modified_ms > since => return failed("If-Unmodified-Since"),
            _ => {}
        }
        match (self.if_none_match, self.if_modified_since.and_then(parse_http_date)) {
            (Some(list), _) if names_etag(list, etag) => return Ok(Verdict::NotModified),
            (None, Some(since)) if modified_ms <= since && since <= now_ms.saturating_add(1000) => {
                return Ok(Verdict::NotModified);
            }
            _ => {}
        }
        Ok(Verdict::Proceed)
    }
}

/// The condition of a write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum WriteCondition {
    /// None.
    #[default]
    Any,
    /// `If-None-Match: *`: the key must be new.
    Absent,
    /// `If-Match`: the object must be there with one of these ETags.
    Match(String),
}

impl WriteCondition {
    /// Reads it from the headers.
    ///
    /// # Errors
    /// [`Code::NotImplemented`] for forms that S3 does not have, and for both at once.
    pub fn of(headers: &HeaderMap) -> S3Result<WriteCondition> {
        let unsupported = |name| S3Error::from(Code::NotImplemented).detail("Header", name);
        match (header(headers, "if-match"), header(headers, "if-none-match")) {
            (None, None) => Ok(WriteCondition::Any),
            (None, Some(list)) if list.trim() == "*" => Ok(WriteCondition::Absent),
            (Some(list), None) => Ok(WriteCondition::Match(list.to_owned())),
            (_, Some(_)) => Err(unsupported("If-None-Match")),
        }
    }

    /// Holds it against the object as it is.
    ///
    /// # Errors
    /// 412, or 404 for `If-Match` on a key that is not there.
    pub fn check(&self, etag: Option<&str>) -> S3Result<()> {
        let failed =
            |condition: &'static str| Err(S3Error::from(Code::PreconditionFailed).detail("Condition", condition));
        match (self, etag) {
            (WriteCondition::Any, _) | (WriteCondition::Absent, None) => Ok(()),
            (WriteCondition::Absent, Some(_)) => failed("If-None-Match"),
            (WriteCondition::Match(_), None) => Err(Code::NoSuchKey.into()),
            (WriteCondition::Match(list), Some(etag)) if names_etag(list, etag) => Ok(()),
            (WriteCondition::Match(_), Some(_)) => failed("If-Match"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::http_date;
    use proptest::prelude::*;

    const MS: u64 = 1_369_353_600_000;

    fn read(pairs: &[(&'static str, &str)]) -> Result<Verdict, Code> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        ReadConditions::of_read(&headers).evaluate("abc", MS + 300, MS + 1_000_000).map_err(|error| error.code)
    }

    #[test]
    fn precedence_is_that_of_the_rfc() {
        let (before, at) = (http_date(MS - 5000), http_date(MS));
        use Verdict::{NotModified, Proceed};
        let failed = Err(Code::PreconditionFailed);
        assert_eq!(read(&[("if-match", "\"abc\"")]), Ok(Proceed));
        assert_eq!(read(&[("if-match", "abc")]), Ok(Proceed));
        assert_eq!(read(&[("if-match", "\"x\", W/\"abc\"")]), Ok(Proceed));
        assert_eq!(read(&[("if-match", "*")]), Ok(Proceed));
        assert_eq!(read(&[("if-match", "\"x\"")]), failed);
        assert_eq!(read(&[("if-none-match", "\"abc\"")]), Ok(NotModified));
        assert_eq!(read(&[("if-none-match", "x")]), Ok(Proceed));
        assert_eq!(read(&[("if-modified-since", &at)]), Ok(NotModified));
        assert_eq!(read(&[("if-modified-since", &before)]), Ok(Proceed));
        assert_eq!(read(&[("if-modified-since", &http_date(MS + 9_000_000))]), Ok(Proceed));
        assert_eq!(read(&[("if-unmodified-since", &before)]), failed);
        assert_eq!(read(&[("if-unmodified-since", &at)]), Ok(Proceed));
        assert_eq!(read(&[("if-match", "abc"), ("if-unmodified-since", &before)]), Ok(Proceed));
        assert_eq!(read(&[("if-none-match", "x"), ("if-modified-since", &at)]), Ok(Proceed));
        assert_eq!(read(&[("if-match", "x"), ("if-none-match", "abc")]), failed);
        assert_eq!(read(&[("if-modified-since", "rubbish")]), Ok(Proceed));
    }

    #[test]
    fn a_range_counts_only_for_the_object_that_it_was_meant_for() {
        let counts = |validator: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("if-range", validator.parse().unwrap());
            range_counts(&headers, "abc", MS + 300)
        };
        assert!(range_counts(&HeaderMap::new(), "abc", MS));
        assert!(counts("\"abc\"") && counts("abc") && counts(&http_date(MS)));
        assert!(!counts("\"abd\"") && !counts("W/\"abc\"") && !counts("rubbish"));
        assert!(!counts(&http_date(MS - 1000)) && !counts(&http_date(MS + 1000)), "neither older nor newer");
    }

    #[test]
    fn writes_are_conditional_as_s3_has_it() {
        let condition = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            WriteCondition::of(&headers)
        };
        let absent = condition(&[("if-none-match", "*")]).unwrap();
        assert!(absent.check(None).is_ok());
        assert_eq!(absent.check(Some("a")).unwrap_err().code, Code::PreconditionFailed);
        let matching = condition(&[("if-match", "\"a\"")]).unwrap();
        assert!(matching.check(Some("a")).is_ok());
        assert_eq!(matching.check(Some("b")).unwrap_err().code, Code::PreconditionFailed);
        assert_eq!(matching.check(None).unwrap_err().code, Code::NoSuchKey);
        assert_eq!(condition(&[("if-none-match", "\"a\"")]).unwrap_err().code, Code::NotImplemented);
        assert_eq!(condition(&[("if-none-match", "*"), ("if-match", "a")]).unwrap_err().code, Code::NotImplemented);
    }

    proptest! {
        #[test]
        fn no_condition_panics(a in "[\\x20-\\x7e]{0,30}", b in "[\\x20-\\x7e]{0,30}") {
            let _ = read(&[("if-match", &a), ("if-modified-since", &b)]);
            let _ = read(&[("if-none-match", &a), ("if-unmodified-since", &b)]);
        }
    }
}
