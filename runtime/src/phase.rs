//! Where a part is in its life, as a value that others can wait for.

use tokio::sync::watch;

/// The phases of a part, in order; a phase is never left for an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Bound or binding; not yet able to serve.
    Starting,
    /// Serving.
    Ready,
    /// Finishing what it has.
    Draining,
    /// Done.
    Stopped,
}

/// A new part's phase: the side that changes it and the side that follows it.
#[must_use]
pub fn phase() -> (PhaseWriter, PhaseReader) {
    let (writer, reader) = watch::channel(Phase::Starting);
    (PhaseWriter(writer), PhaseReader(reader))
}

/// The only one who may advance the phase. Dropping it means [`Phase::Stopped`].
#[derive(Debug)]
pub struct PhaseWriter(watch::Sender<Phase>);

impl PhaseWriter {
    /// Moves on to `phase`; an earlier phase than the present one is ignored.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }
}

impl Drop for PhaseWriter {
    fn drop(&mut self) {
        self.advance(Phase::Stopped);
    }
}

/// Follows a part's phase.
#[derive(Clone, Debug)]
pub struct PhaseReader(watch::Receiver<Phase>);

impl PhaseReader {
    /// The phase now.
    #[must_use]
    pub fn current(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits until `phase` or a later one is reached, and returns which. Cancel-safe.
    pub async fn wait_for(&mut self, phase: Phase) -> Phase {
        // An error means that the writer is gone, which wrote `Stopped` as its last act.
        self.0
            .wait_for(|now| *now >= phase)
            .await
            .map_or(Phase::Stopped, |now| *now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_writer_means_stopped() {
        let (writer, mut reader) = phase();
        writer.advance(Phase::Ready);
        writer.advance(Phase::Starting);
        assert_eq!(reader.current(), Phase::Ready);
        drop(writer);
        assert_eq!(reader.wait_for(Phase::Draining).await, Phase::Stopped);
    }
}
