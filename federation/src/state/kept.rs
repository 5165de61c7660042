//! What must outlive a restart, on disk: the registered workloads, so that they do not vanish, and
//! the roots that peers announced.

use std::{pin::pin, sync::Arc, time::Duration};

use linkspan_runtime::{process::chain, stop::Stop};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::sleep};

use super::{
    StateError, Troubles,
    packed::{Item, pack, unpack},
    store::Slot,
};

/// Changes within this time are one write; at most so much is lost in a crash.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Pause after a write that failed (disk full): serving goes on meanwhile.
const RETRY: Duration = Duration::from_secs(5);

/// What was kept before the restart; nothing at the first start.
pub(crate) fn load<T: DeserializeOwned>(slot: &Slot) -> Result<Vec<T>, StateError> {
    let Some(bytes) = slot.read()? else {
        return Ok(Vec::new());
    };
    unpack(&bytes).map_err(|reason| slot.damaged(reason))
}

/// Keeps what `newest` says, until `stop` drains.
pub(crate) async fn keep<T: Item + Send + Sync + 'static>(
    slot: Slot,
    troubles: Troubles,
    newest: watch::Receiver<Arc<Vec<T>>>,
    stop: Stop,
) {
    let keeper = Keeper {
        slot,
        troubles,
        at_once: false,
    };
    keep_with(keeper, newest, |_| {}, stop).await;
}

/// As [`keep`], all of them or none, and at once; tells what has been written, each time.
pub(crate) async fn keep_telling<T: Item + Send + Sync + 'static>(
    slot: Slot,
    troubles: Troubles,
    newest: watch::Receiver<Arc<Vec<T>>>,
    written: impl Fn(Arc<Vec<T>>),
    stop: Stop,
) {
    let keeper = Keeper {
        slot,
        troubles,
        at_once: true,
    };
    keep_with(keeper, newest, written, stop).await;
}

async fn keep_with<T: Item + Send + Sync + 'static>(
    keeper: Keeper,
    mut newest: watch::Receiver<Arc<Vec<T>>>,
    written: impl Fn(Arc<Vec<T>>),
    stop: Stop,
) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.draining() => break,
            changed = newest.changed() => if changed.is_err() { break },
        }
        tokio::select! {
            () = stop.draining() => break,
            () = sleep(if failing { RETRY } else { DEBOUNCE }) => {}
        }
        let now = Arc::clone(&newest.borrow_and_update());
        let mut writing = pin!(keeper.write(&now));
        failing = !tokio::select! {
            written = &mut writing => written,
            () = stop.draining() => {
                keeper.slot.hurry();
                writing.await
            }
        };
        if failing {
            newest.mark_changed();
        } else {
            written(Arc::clone(&now));
        }
    }
    keeper.slot.hurry();
    // The state at the end, or those that came last would be missing after the restart.
    let last = newest.borrow().clone();
    keeper.write(&last).await;
}

struct Keeper {
    slot: Slot,
    troubles: Troubles,
    /// Somebody waits until all of it is written.
    at_once: bool,
}

impl Keeper {
    /// Whether it was written, as far as there is room.
    async fn write<T: Item + Send + Sync + 'static>(&self, newest: &Arc<Vec<T>>) -> bool {
        let (to, newest, at_once) = (self.slot.clone(), Arc::clone(newest), self.at_once);
        let writing = move || {
            let (bytes, fit) = match to.room() {
                // What is not all of it is refused where it is written.
                Some(_) if at_once => {
                    pack(&newest, usize::MAX).map_err(|reason| to.damaged(reason))?
                }
                Some(room) => pack(&newest, room).map_err(|reason| to.damaged(reason))?,
                None => {
                    let bytes = serde_json::to_vec(&*newest);
                    let bytes = bytes.map_err(|error| to.damaged(error.to_string()))?;
                    (bytes, newest.len())
                }
            };
            match at_once {
                true => to.write(&bytes)?,
                false => to.write_soon(bytes)?,
            }
            Ok((fit, newest.len()))
        };
        let written: Result<_, StateError> = match tokio::task::spawn_blocking(writing).await {
            Ok(written) => written,
            Err(_) => return false,
        };
        self.tell(match &written {
            Ok((fit, all)) if fit < all => Some(format!(
                "there is room for {fit} of {all} only; the others are not known after a restart of \
                 federation, until their sidecars connect again"
            )),
            Ok(_) => None,
            Err(error) => Some(format!(
                "it cannot be kept ({}); serving goes on, but see to it before the next restart, or \
                 what it should hold is unknown until workloads and peers reconnect",
                chain(error)
            )),
        });
        written.is_ok()
    }

    /// For the status; the log has it once.
    fn tell(&self, trouble: Option<String>) {
        let place = self.slot.place();
        if !self.troubles.set(place.clone(), trouble.clone()) {
            return;
        }
        let path = place.display();
        match trouble {
            Some(trouble) => tracing::error!(%path, "{trouble}"),
            None => tracing::info!(%path, "it is being kept again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use linkspan_core::workloads::Registration;

    use super::*;

    fn registration(uid: &str) -> Registration {
        linkspan_core::testing::registration(uid, "shop", "checkout")
    }

    #[tokio::test]
    async fn what_was_registered_is_there_after_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = Slot::from(&directory.path().join("registrations.json"));
        assert!(load::<Registration>(&path).unwrap().is_empty());
        let (sender, receiver) = watch::channel(Arc::default());
        let stop = Stop::new();
        let keeping = tokio::spawn(keep(
            path.clone(),
            Troubles::default(),
            receiver,
            stop.clone(),
        ));
        sender.send_replace(Arc::new(vec![registration("one"), registration("two")]));
        stop.drain();
        keeping.await.unwrap();
        let loaded: Vec<Registration> = load(&path).unwrap();
        assert_eq!(loaded, [registration("one"), registration("two")]);
    }

    #[tokio::test]
    async fn a_write_that_fails_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("missing");
        let path = Slot::from(&folder.join("registrations.json"));
        let newest = Arc::new(vec![registration("one")]);
        let keeper = Keeper {
            slot: path.clone(),
            troubles: Troubles::default(),
            at_once: false,
        };
        assert!(!keeper.write(&newest).await);
        let troubles = keeper.troubles.list();
        assert!(troubles[0].contains("registrations.json"), "{troubles:?}");
        fs::create_dir(folder).unwrap();
        assert!(keeper.write(&newest).await);
        assert!(keeper.troubles.list().is_empty());
        assert_eq!(load::<Registration>(&path).unwrap(), *newest);
    }

    #[tokio::test]
    async fn what_has_no_room_is_a_trouble_and_the_rest_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let slot = Slot::from(&directory.path().join("registrations.json"));
        let keeper = Keeper {
            slot: slot.with_room(300),
            troubles: Troubles::default(),
            at_once: false,
        };
        let all: Vec<_> = (0..200).map(|n| registration(&format!("{n:09}"))).collect();
        assert!(keeper.write(&Arc::new(all.clone())).await);
        let kept: Vec<Registration> = load(&keeper.slot).unwrap();
        assert!(!kept.is_empty() && kept.len() < all.len());
        let of = format!("{} of 200", kept.len());
        assert!(keeper.troubles.list()[0].contains(&of), "{of}");
        assert!(keeper.write(&Arc::new(all[..1].to_vec())).await);
        assert!(keeper.troubles.list().is_empty());
        // Where somebody counts on all of them, a part is nothing.
        let strict = Keeper {
            at_once: true,
            ..keeper
        };
        assert!(!strict.write(&Arc::new(all)).await);
        assert_eq!(load::<Registration>(&strict.slot).unwrap().len(), 1);
    }

    #[test]
    fn a_damaged_file_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = Slot::from(&directory.path().join("registrations.json"));
        path.write(b"[{").unwrap();
        let error = load::<Registration>(&path).unwrap_err().to_string();
        assert!(error.contains("remove it to start anew"), "{error}");
    }
}
