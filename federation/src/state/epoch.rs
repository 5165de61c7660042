//! The epoch: which life of this federation a peer is listening to.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{StateError, store::Slot};

/// The epoch of this start, and whether there was a life before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    /// False on the very first start: nobody can hold anything of ours yet.
    pub(crate) restarted: bool,
}

/// Takes and persists the next epoch: max(previous + 1, Unix seconds). A clock that
/// was set back cannot make it shrink, a lost state directory cannot make it start at zero.
pub(crate) fn next_epoch(slot: &Slot, now: SystemTime) -> Result<Epoch, StateError> {
    let previous = previous(slot)?;
    let number = following(previous, now);
    slot.write(format!("{number}\n").as_bytes())?;
    Ok(Epoch {
        number,
        restarted: previous.is_some(),
    })
}

fn previous(slot: &Slot) -> Result<Option<u64>, StateError> {
    let Some(bytes) = slot.read()? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes);
    let number = text.trim().parse().map(Some);
    number.map_err(|_| slot.damaged("not a number"))
}

fn following(previous: Option<u64>, now: SystemTime) -> u64 {
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    previous
        .map_or(0, |epoch| epoch.saturating_add(1))
        .max(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_even_when_the_clock_is_set_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = Slot::from(&directory.path().join("epoch"));
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let first = next_epoch(&path, at(1_000)).unwrap();
        assert_eq!(
            first,
            Epoch {
                number: 1_000,
                restarted: false
            }
        );
        let second = next_epoch(&path, at(10)).unwrap();
        assert_eq!(
            second,
            Epoch {
                number: 1_001,
                restarted: true
            }
        );
        assert_eq!(next_epoch(&path, at(5_000)).unwrap().number, 5_000);
    }

    #[test]
    fn a_damaged_epoch_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = Slot::from(&directory.path().join("epoch"));
        path.write(b"soon").unwrap();
        assert!(matches!(
            next_epoch(&path, SystemTime::now()),
            Err(StateError::Damaged { .. })
        ));
    }
}
