//! The single place where it is decided whether somebody may do something.

use crate::error::{Code, S3Result};
use crate::request::Resource;
use crate::router::Operation;
use crate::sigv4::Principal;

/// Decides one request. There is one tenant for now: whoever has a valid key may do everything. Users' policies come
/// here and nowhere else.
///
/// # Errors
/// [`Code::AccessDenied`].
pub fn authorize(principal: &Principal, operation: Operation, resource: &Resource) -> S3Result<()> {
    let _ = (operation, resource);
    if principal.owner.is_empty() {
        return Err(Code::AccessDenied.into());
    }
    Ok(())
}
