//! Wall-clock time, passed in so that tests can fix it, and the three ways S3 writes it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that stands until it is moved.
#[derive(Debug, Default)]
pub struct FixedClock(AtomicU64);

impl FixedClock {
    /// A clock standing at `now_ms`.
    pub fn new(now_ms: u64) -> FixedClock {
        FixedClock(AtomicU64::new(now_ms))
    }

    /// Moves it on.
    pub fn advance_ms(&self, by: u64) {
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for FixedClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn to_ms(time: DateTime) -> Option<u64> {
    let zoned = time.to_zoned(TimeZone::UTC).ok()?;
    u64::try_from(zoned.timestamp().as_millisecond()).ok()
}

/// `Wed, 12 Oct 2009 17:50:00 GMT`, for headers.
pub fn http_date(ms: u64) -> String {
    timestamp(ms).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// `2009-10-12T17:50:30.000Z`, for XML.
pub fn iso_date(ms: u64) -> String {
    format!("{}.{:03}Z", timestamp(ms).strftime("%Y-%m-%dT%H:%M:%S"), ms % 1000)
}

/// Reads `20130524T000000Z`.
pub fn parse_amz_date(text: &str) -> Option<u64> {
    if text.len() != 16 || !text.is_ascii() {
        return None;
    }
    to_ms(DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?)
}

/// Reads the three forms of RFC 9110 §5.6.7; `None` for anything else (which makes a conditional header void).
pub fn parse_http_date(text: &str) -> Option<u64> {
    if text.len() > 64 || !text.is_ascii() {
        return None;
    }
    let text = text.trim();
    ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y", "%Y-%m-%dT%H:%M:%SZ"]
        .iter()
        .find_map(|format| to_ms(DateTime::strptime(format, text).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_forms_agree() {
        let ms = 1_369_353_600_000;
        assert_eq!(parse_amz_date("20130524T000000Z"), Some(ms));
        assert_eq!(http_date(ms), "Fri, 24 May 2013 00:00:00 GMT");
        assert_eq!(parse_http_date(&http_date(ms)), Some(ms));
        assert_eq!(parse_http_date("Friday, 24-May-13 00:00:00 GMT"), Some(ms));
        assert_eq!(parse_http_date("Fri May 24 00:00:00 2013"), Some(ms));
        assert_eq!(iso_date(ms + 7), "2013-05-24T00:00:00.007Z");
        assert_eq!(parse_http_date("yesterday"), None);
        assert_eq!(parse_amz_date("20130524T0000é0Z"), None);
    }
}
