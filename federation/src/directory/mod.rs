//! Standalone mode's home of resources: a folder of YAML, and statuses beside it.

mod declarations;
mod link;
mod scan;
mod sink;
mod source;

pub(crate) use declarations::DirectoryDeclarations;
pub(crate) use link::DirectoryLinks;
pub(crate) use sink::DirectorySink;
pub(crate) use source::DirectorySource;
