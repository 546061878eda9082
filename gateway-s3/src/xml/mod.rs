//! XML in and out. Nothing but elements and text: no DTD, no entities of the document's own, bounded depth and size.

pub mod request;
pub mod response;
