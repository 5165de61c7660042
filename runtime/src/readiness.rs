//! Whether a part can take traffic: the conjunction of named gates.

use std::sync::Arc;

use tokio::sync::watch;

/// All gates of a part. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct Readiness {
    gates: Arc<watch::Sender<Vec<State>>>,
}

#[derive(Clone, Debug)]
struct State {
    name: &'static str,
    open: bool,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            gates: Arc::new(watch::Sender::new(Vec::new())),
        }
    }
}

impl Readiness {
    /// Without gates, and therefore ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a closed gate. It keeps its last state when its handle is dropped.
    pub fn gate(&self, name: &'static str) -> Gate {
        let mut index = 0;
        self.gates.send_modify(|gates| {
            index = gates.len();
            gates.push(State { name, open: false });
        });
        Gate {
            gates: self.gates.clone(),
            index,
        }
    }

    /// Whether every gate is open.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        all_open(&self.gates.borrow())
    }

    /// Names of the gates that are closed.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.gates
            .borrow()
            .iter()
            .filter(|gate| !gate.open)
            .map(|gate| gate.name)
            .collect()
    }

    /// Waits until every gate is open. Cancel-safe.
    pub async fn ready(&self) {
        // `wait_for` fails only when the sender is gone, and `self` holds it.
        let _ = self
            .gates
            .subscribe()
            .wait_for(|gates| all_open(gates))
            .await;
    }
}

fn all_open(gates: &[State]) -> bool {
    gates.iter().all(|gate| gate.open)
}

/// One condition of readiness.
#[derive(Debug)]
pub struct Gate {
    gates: Arc<watch::Sender<Vec<State>>>,
    index: usize,
}

impl Gate {
    /// The condition holds.
    pub fn open(&self) {
        self.set(true);
    }

    /// The condition does not hold (any more).
    pub fn close(&self) {
        self.set(false);
    }

    /// Opens or closes.
    pub fn set(&self, open: bool) {
        self.gates.send_if_modified(|gates| {
            let changed = gates[self.index].open != open;
            gates[self.index].open = open;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_all_gates_are_open() {
        let readiness = Readiness::new();
        let (first, second) = (readiness.gate("identity"), readiness.gate("snapshot"));
        first.open();
        assert!(!readiness.is_ready());
        assert_eq!(readiness.pending(), ["snapshot"]);
        second.open();
        readiness.ready().await;
        first.close();
        assert_eq!(readiness.pending(), ["identity"]);
    }
}
