//! What became of a declaration, as several verbs tell it.

use linkspan_api::v1;
use serde::Serialize;

use crate::{exit::Failure, output::Format};

#[derive(Debug, Serialize)]
pub(crate) struct Declared {
    changed: bool,
    path: String,
    notes: Vec<String>,
}

impl From<v1::DeclareResponse> for Declared {
    fn from(reply: v1::DeclareResponse) -> Self {
        Self {
            changed: reply.changed,
            path: reply.place,
            notes: reply.notes,
        }
    }
}

impl Declared {
    /// Prints it; `what` says in words what has changed, or what was so already.
    pub(crate) fn print(
        &self,
        output: Format,
        what: impl Fn(bool) -> String,
    ) -> Result<(), Failure> {
        output.print(self, |declared| {
            let mut text = format!("{} ({})\n", what(declared.changed), declared.path);
            for note in &declared.notes {
                text.push_str(&format!("note: {note}\n"));
            }
            text
        })
    }
}
