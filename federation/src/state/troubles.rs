//! What cannot be kept now, for whoever asks for the status.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// By the place where it should be kept. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Troubles(Arc<Mutex<BTreeMap<PathBuf, String>>>);

impl Troubles {
    /// What is wrong at a place now; whether it is another thing that something is, or nothing.
    pub(crate) fn set(&self, place: PathBuf, what: Option<String>) -> bool {
        let mut places = self.lock();
        let some = what.is_some();
        let before = match what {
            Some(what) => places.insert(place, what),
            None => places.remove(&place),
        };
        before.is_some() != some
    }

    /// All of it, for people.
    pub(crate) fn list(&self) -> Vec<String> {
        let places = self.lock();
        let list = places.iter();
        list.map(|(place, what)| format!("`{}`: {what}", place.display()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
