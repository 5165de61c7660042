//! What was known before the restart.

use linkspan_core::{
    announced::Announced,
    capacity::KeptMark,
    workloads::{Owned, Registration},
};

use super::{StateDir, StateError, kept, roots};

/// Nothing of it at the first start.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) registrations: Vec<Registration>,
    /// Whose uids were.
    pub(crate) owned: Vec<Owned>,
    /// Roots that peers announced.
    pub(crate) announced: Vec<Announced>,
    /// How many endpoints each service had.
    pub(crate) marks: Vec<KeptMark>,
}

impl Remembered {
    /// Reads the state directory.
    pub(crate) fn load(state: &StateDir) -> Result<Self, StateError> {
        Ok(Self {
            registrations: kept::load(&state.registrations())?,
            owned: kept::load(&state.uids())?,
            announced: roots::load(&state.roots())?,
            marks: kept::load(&state.capacity())?,
        })
    }
}
