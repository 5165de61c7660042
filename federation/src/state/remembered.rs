//! What was known before the restart.

use linkspan_core::{
    announced::Announced,
    capacity::KeptMark,
    imports::KeptPort,
    workloads::{Owned, Registration},
};

use super::{StateError, kept, roots, store::Slots};

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
    /// Which ports stood for which imports.
    pub(crate) import_ports: Vec<KeptPort>,
}

impl Remembered {
    /// Reads what is kept.
    pub(crate) fn load(slots: &Slots) -> Result<Self, StateError> {
        Ok(Self {
            registrations: kept::load(&slots.registrations)?,
            owned: kept::load(&slots.uids)?,
            announced: roots::load(&slots.roots)?,
            marks: kept::load(&slots.capacity)?,
            import_ports: kept::load(&slots.import_ports)?,
        })
    }
}
