//! Standalone mode's home of resources: a folder of YAML, and statuses beside it.

mod export;
mod link;
mod scan;
mod sink;
mod source;

pub(crate) use export::{existing as existing_export, write as write_export};
pub(crate) use link::DirectoryLinks;
pub(crate) use sink::DirectorySink;
pub(crate) use source::DirectorySource;
