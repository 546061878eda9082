//! The pools that the ways in expect: whoever comes first makes them, and all make the same.

use crate::mon::MonCommand;

/// How a pool is made if it is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandardPool {
    /// Its usual name.
    pub name: &'static str,
    /// What it is for.
    pub application: &'static str,
    /// The part of the cluster's data that it is expected to hold; decides on the number of placement groups.
    pub share_percent: u32,
}

/// Of buckets and their indexes, which hold small objects, too.
pub const S3_INDEX_POOL: StandardPool = StandardPool { name: "s3-index", application: "s3-index", share_percent: 15 };
/// Of the data of larger objects.
pub const S3_DATA_POOL: StandardPool = StandardPool { name: "s3-data", application: "s3-data", share_percent: 80 };

const _: () = assert!(S3_INDEX_POOL.share_percent + S3_DATA_POOL.share_percent <= 100, "shares of one cluster");

impl StandardPool {
    /// The command that makes it, under this name, with so many copies; `None`: as many as usual, or as there are disks.
    #[must_use]
    pub fn create_as(&self, name: &str, size: Option<u32>) -> MonCommand {
        MonCommand::PoolCreate {
            name: name.to_owned(),
            size,
            min_size: None,
            application: self.application.to_owned(),
            failure_domain: None,
            share_percent: Some(self.share_percent),
        }
    }
}
