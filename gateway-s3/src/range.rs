//! The `Range` header.

use crate::error::{Code, S3Error, S3Result};

/// A stretch of an object, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// How many.
    pub length: u64,
}

/// Applies a `Range` header to an object of `size` bytes. `None` means the whole object: a header that is malformed or
/// names several ranges is ignored, as S3 does.
///
/// # Errors
/// [`Code::InvalidRange`] if no byte of the range exists.
pub fn resolve(header: &str, size: u64) -> S3Result<Option<ByteRange>> {
    let Some((first, last)) = split(header) else { return Ok(None) };
    let (start, end) = match (first, last) {
        (Some(first), Some(last)) if last < first => return Ok(None),
        (Some(first), Some(last)) => (first, last.saturating_add(1).min(size)),
        (Some(first), None) => (first, size),
        (None, Some(suffix)) => (size.saturating_sub(suffix), size),
        (None, None) => return Ok(None),
    };
    if start >= end {
        return Err(S3Error::from(Code::InvalidRange)
            .detail("RangeRequested", header)
            .detail("ActualObjectSize", size.to_string())
            .header(http::header::CONTENT_RANGE, &format!("bytes */{size}")));
    }
    Ok(Some(ByteRange { start, length: end - start }))
}

/// Reads `bytes=first-last` for CopyPart, where both ends must be given and lie within the source.
pub fn resolve_copy(header: &str, size: u64) -> S3Result<ByteRange> {
    let malformed = || {
        S3Error::argument(
            "x-amz-copy-source-range",
            header,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy",
        )
    };
    let Some((Some(first), Some(last))) = split(header) else { return Err(malformed()) };
    if last < first {
        return Err(malformed());
    }
    if last >= size {
        let message = format!("Range specified is not valid for source object of size: {size}");
        return Err(S3Error::argument("x-amz-copy-source-range", header, message));
    }
    Ok(ByteRange { start: first, length: last - first + 1 })
}

fn split(header: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, spec) = header.trim().split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = spec.trim().split_once('-')?;
    let number = |text: &str| -> Option<Option<u64>> {
        match text.trim() {
            "" => Some(None),
            text if text.bytes().all(|byte| byte.is_ascii_digit()) => Some(Some(text.parse().unwrap_or(u64::MAX))),
            _ => None,
        }
    };
    Some((number(first)?, number(last)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_form_of_range() {
        let range = |header, size| resolve(header, size).map(|r| r.map(|r| (r.start, r.length))).map_err(|e| e.code);
        assert_eq!(range("bytes=0-0", 10), Ok(Some((0, 1))));
        assert_eq!(range("bytes=2-", 10), Ok(Some((2, 8))));
        assert_eq!(range("bytes=-3", 10), Ok(Some((7, 3))));
        assert_eq!(range("bytes=-30", 10), Ok(Some((0, 10))));
        assert_eq!(range("bytes=5-99999999999999999999999", 10), Ok(Some((5, 5))));
        assert_eq!(range("bytes=10-", 10), Err(Code::InvalidRange));
        assert_eq!(range("bytes=-0", 10), Err(Code::InvalidRange));
        assert_eq!(range("bytes=0-", 0), Err(Code::InvalidRange));
        for ignored in ["bytes=5-2", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "lines=1-2", "bytes", ""] {
            assert_eq!(range(ignored, 10), Ok(None), "{ignored}");
        }
    }

    #[test]
    fn a_copy_range_must_lie_within_the_source() {
        assert_eq!(resolve_copy("bytes=0-9", 10).unwrap(), ByteRange { start: 0, length: 10 });
        for wrong in ["bytes=0-10", "bytes=3-", "bytes=-3", "0-1", "bytes=5-2"] {
            assert_eq!(resolve_copy(wrong, 10).unwrap_err().code, Code::InvalidArgument, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_range_is_within_the_object(header in "bytes=[0-9]{0,21}-[0-9]{0,21}|\\PC{0,12}", size in any::<u64>()) {
            if let Ok(Some(range)) = resolve(&header, size) {
                prop_assert!(range.length > 0 && range.start.checked_add(range.length).unwrap() <= size);
            }
            let _ = resolve_copy(&header, size);
        }
    }
}
