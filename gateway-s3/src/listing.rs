//! Ordered listing with prefix and delimiter over any space whose rows begin with a route.
//!
//! A common prefix costs one row, not all keys under it: the scan jumps past it.
//!
//! Of each row only what the reply shows is kept: an object's headers and metadata may be 10 KiB.

use bytes::Bytes;

use crate::backend::{ScanLimit, ScanRange, TableId};
use crate::budget::Permit;
use crate::error::{Code, S3Result};
use crate::gateway::Gateway;
use crate::row::{after_prefix, escape_prefix, route, split_route};

/// Bytes of one page of rows.
const PAGE_BYTES: usize = 512 << 10;
/// What an item counts for in memory, its place in the reply included; few have keys of 1,024 bytes.
const ITEM_BYTES: usize = 2 << 10;
/// Most rows of one page.
const PAGE_ROWS_MAX: usize = 1000;
/// Rows of a page right after a jump, when the next one may come soon.
const PAGE_ROWS_AFTER_JUMP: usize = 24;

/// Where a listing begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// At its beginning.
    First,
    /// After all rows of this key.
    AfterKey(String),
    /// After all keys with this prefix.
    AfterPrefix(String),
    /// After this row.
    AfterRow(Vec<u8>),
}

/// What to list.
#[derive(Debug, Clone)]
pub(crate) struct Ask<'a> {
    /// The space.
    pub space: u8,
    /// Only keys that begin with this.
    pub prefix: &'a str,
    /// Keys that have this after the prefix are rolled up; empty: none are.
    pub delimiter: &'a str,
    /// Where to begin.
    pub start: Start,
    /// Most items.
    pub max: usize,
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item<T> {
    /// A row: its key, what follows the route in its row key, what was kept of its value.
    Row { key: String, suffix: Vec<u8>, kept: T },
    /// Keys rolled up.
    Prefix(String),
}

/// A page of a listing.
#[derive(Debug)]
pub(crate) struct Listing<T> {
    /// In order.
    pub items: Vec<Item<T>>,
    /// Whether there is more.
    pub truncated: bool,
    /// Leave to hold it, and the reply made of it.
    pub permit: Permit,
}

/// The prefix that `key` is rolled up to.
pub(crate) fn common_prefix(key: &str, prefix: &str, delimiter: &str) -> Option<String> {
    if delimiter.is_empty() {
        return None;
    }
    let at = key.strip_prefix(prefix)?.find(delimiter)?;
    key.get(..prefix.len() + at + delimiter.len()).map(str::to_owned)
}

/// Lists; `keep` takes what the reply shows out of a row's value.
pub(crate) async fn list<T>(
    gateway: &Gateway,
    table: TableId,
    ask: Ask<'_>,
    keep: impl Fn(&Bytes) -> S3Result<T>,
) -> S3Result<Listing<T>> {
    let permit = gateway.listing_budget.acquire(PAGE_BYTES + ask.max * ITEM_BYTES).await?;
    let mut listing = Listing { items: Vec::new(), truncated: false, permit };
    let lower = escape_prefix(ask.prefix.as_bytes());
    let end = after_prefix(&lower);
    let start = match &ask.start {
        Start::First => Some(lower.clone()),
        Start::AfterKey(key) => after_prefix(&route(key)),
        Start::AfterPrefix(prefix) => after_prefix(&escape_prefix(prefix.as_bytes())),
        Start::AfterRow(row) => Some([row.as_slice(), &[0]].concat()),
    };
    let Some(start) = start else { return Ok(listing) };
    let mut cursor = start.max(lower);
    let mut rows = if ask.delimiter.is_empty() { ask.max.saturating_add(1) } else { 128 }.min(PAGE_ROWS_MAX);
    if ask.max == 0 {
        rows = 1; // only to learn whether the table is there
    }
    let mut jump: Option<Vec<u8>> = None;
    loop {
        if end.as_ref().is_some_and(|end| cursor >= *end) {
            return Ok(listing);
        }
        let range = ScanRange { space: ask.space, start: cursor.clone(), end: end.clone() };
        let page = gateway.backend.tables.scan(table, range, ScanLimit { rows, bytes: PAGE_BYTES }).await?;
        if ask.max == 0 {
            return Ok(listing);
        }
        let mut jumped = false;
        for (row, value) in page.rows {
            if jump.as_ref().is_some_and(|to| row < *to) {
                jumped = true;
                continue;
            }
            jumped = false;
            let (key, suffix) = split_route(&row).ok_or(Code::InternalError)?;
            if listing.items.len() >= ask.max {
                listing.truncated = true;
                return Ok(listing);
            }
            match common_prefix(&key, ask.prefix, ask.delimiter) {
                Some(common) => {
                    jump = after_prefix(&escape_prefix(common.as_bytes()));
                    listing.items.push(Item::Prefix(common));
                    if jump.is_none() {
                        return Ok(listing);
                    }
                }
                None => listing.items.push(Item::Row { suffix: suffix.to_vec(), key, kept: keep(&value)? }),
            }
        }
        let Some(next) = page.next else { return Ok(listing) };
        cursor = jump.clone().map_or(next.clone(), |to| to.max(next));
        rows = if jumped { PAGE_ROWS_AFTER_JUMP } else { (rows * 4).min(PAGE_ROWS_MAX) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_rolled_up_at_delimiters_of_any_length() {
        assert_eq!(common_prefix("a/b/c", "", "/").as_deref(), Some("a/"));
        assert_eq!(common_prefix("a/b/c", "a/", "/").as_deref(), Some("a/b/"));
        assert_eq!(common_prefix("a/b", "a/", "/"), None);
        assert_eq!(common_prefix("aXYbXYc", "a", "XY").as_deref(), Some("aXY"));
        assert_eq!(common_prefix("é/ü", "", "/").as_deref(), Some("é/"));
        assert_eq!(common_prefix("abc", "", ""), None);
    }
}
