//! What is wrong with a document, told so that its author can mend it.

use std::fmt;

/// One thing wrong with a resource file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceProblem {
    /// The file's name as the caller gave it.
    pub file: String,
    /// Line in the file, counted from 1; 0 where it is not of a file.
    pub line: u64,
    /// Column, counted from 1, where the text is not even YAML.
    pub column: Option<u64>,
    /// Path of the field, such as `spec.ports[0].port`; empty where it is the whole document.
    pub field: String,
    /// What stands there.
    pub found: String,
    /// What to write instead.
    pub fix: String,
}

impl fmt::Display for ResourceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: ", self.file)?,
            line => write!(f, "{}:{line}: ", self.file)?,
        }
        if let Some(column) = self.column {
            write!(f, "column {column}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}; {}", self.found, self.fix)
    }
}

impl std::error::Error for ResourceProblem {}
