//! The headers and metadata that are stored with an object and given back with it.

use http::HeaderMap;

use crate::error::{Code, S3Error, S3Result};
use crate::reply::set;
use crate::request::Query;
use crate::row::Described;

/// Most bytes of user metadata, names and values together.
const METADATA_BYTES_MAX: usize = 2048;
/// Most bytes of the standard headers' values, together.
const HEADERS_BYTES_MAX: usize = 8 * 1024;
/// What an object is when nobody said.
pub(crate) const CONTENT_TYPE_DEFAULT: &str = "binary/octet-stream";
/// Standard headers that are stored.
const STORED: [&str; 6] =
    ["cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires"];

/// Header values are bytes; what is not UTF-8 is read as Latin-1, as HTTP once had it.
fn text(value: &http::HeaderValue) -> String {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// Reads them from a request.
///
/// # Errors
/// [`Code::MetadataTooLarge`], [`Code::RequestHeaderSectionTooLarge`].
pub(crate) fn read(headers: &HeaderMap) -> S3Result<Described> {
    let mut described = Described::default();
    for name in STORED {
        let Some(value) = headers.get(name).map(text) else { continue };
        // `aws-chunked` is how the body travelled, not what it is.
        let value = if name == "content-encoding" {
            let kept: Vec<&str> =
                value.split(',').map(str::trim).filter(|coding| !coding.eq_ignore_ascii_case("aws-chunked")).collect();
            kept.join(",")
        } else {
            value
        };
        if !value.is_empty() {
            described.headers.push((name.to_owned(), value));
        }
    }
    if described.headers.iter().map(|(_, value)| value.len()).sum::<usize>() > HEADERS_BYTES_MAX {
        return Err(Code::RequestHeaderSectionTooLarge.into());
    }
    let mut bytes = 0;
    for name in headers.keys() {
        let Some(short) = name.as_str().strip_prefix("x-amz-meta-") else { continue };
        let value = headers.get_all(name).iter().map(text).collect::<Vec<_>>().join(",");
        bytes += short.len() + value.len();
        described.metadata.push((short.to_owned(), value));
    }
    if bytes > METADATA_BYTES_MAX {
        return Err(S3Error::from(Code::MetadataTooLarge)
            .detail("Size", bytes.to_string())
            .detail("MaxSizeAllowed", METADATA_BYTES_MAX.to_string()));
    }
    described.metadata.sort();
    Ok(described)
}

/// A metadata value as it may stand in a header: ASCII as it is, anything else as RFC 2047 has it.
fn on_the_wire(value: &str) -> String {
    if value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        value.to_owned()
    } else {
        format!("=?UTF-8?B?{}?=", crate::checksum::base64(value.as_bytes()))
    }
}

/// Writes them into a reply; `response-*` parameters go before what is stored.
pub(crate) fn write(described: &Described, query: &Query, reply: &mut HeaderMap) {
    set(reply, "content-type", CONTENT_TYPE_DEFAULT);
    for (name, value) in &described.headers {
        set(reply, name, value);
    }
    for name in STORED {
        if let Some(value) = query.get(&format!("response-{name}")) {
            set(reply, name, value);
        }
    }
    for (name, value) in &described.metadata {
        set(reply, &format!("x-amz-meta-{name}"), &on_the_wire(value));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, http::HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn only_aws_chunked_is_taken_off_the_content_encoding() {
        let encoding = |value: &'static str| {
            read(&headers(&[("content-encoding", value.as_bytes())])).unwrap().headers.pop().map(|(_, value)| value)
        };
        assert_eq!(encoding("gzip,aws-chunked").as_deref(), Some("gzip"));
        assert_eq!(encoding("aws-chunked, gzip").as_deref(), Some("gzip"));
        assert_eq!(encoding("aws-chunked"), None);
    }

    #[test]
    fn empty_and_foreign_metadata_come_back() {
        let described = read(&headers(&[
            ("x-amz-meta-empty", b""),
            ("x-amz-meta-two", b"a"),
            ("x-amz-meta-two", b"b"),
            ("x-amz-meta-u", "ü".as_bytes()),
        ]))
        .unwrap();
        let mut reply = HeaderMap::new();
        write(&described, &Query::default(), &mut reply);
        assert_eq!(reply.get("x-amz-meta-empty").unwrap(), "");
        assert_eq!(reply.get("x-amz-meta-two").unwrap(), "a,b");
        assert_eq!(reply.get("x-amz-meta-u").unwrap(), "=?UTF-8?B?w7w=?=");
        assert_eq!(reply.get("content-type").unwrap(), CONTENT_TYPE_DEFAULT);
    }

    #[test]
    fn standard_headers_are_limited_to_8_kib_together() {
        let half = vec![b'a'; 4096];
        let (kept, refused) = (b"a".repeat(4096), b"a".repeat(4097));
        assert!(read(&headers(&[("cache-control", &half), ("expires", &kept)])).is_ok());
        let error = read(&headers(&[("cache-control", &half), ("expires", &refused)])).unwrap_err();
        assert_eq!(error.code, Code::RequestHeaderSectionTooLarge);
    }

    #[test]
    fn metadata_is_limited_to_2048_bytes() {
        let value = vec![b'a'; 2045];
        assert!(read(&headers(&[("x-amz-meta-abc", &value)])).is_ok());
        assert_eq!(read(&headers(&[("x-amz-meta-abcd", &value)])).unwrap_err().code, Code::MetadataTooLarge);
    }
}
