//! The only loop: what is declared, who has registered, and what peers say go in; one
//! [`World`] comes out.
//!
//! ```text
//! resources ─┐
//! proxies ───┼─► registries, peers ─► plan ─► World ─► discovery, sync, TLS, status files
//! peers ─────┘
//! ```
//! This task is the sole writer of all registries. Everything else sends it [`Input`]s and
//! reads the newest [`World`].

mod input;
mod links;
mod pace;
mod services;
mod state;
mod status;
mod world;
mod young;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use linkspan_core::{
    backend::{Source, SourceError},
    peer::Now,
    peers::Journals,
};
use linkspan_runtime::{BoxError, stop::Stop, telemetry::IntCounter};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant as Timer, MissedTickBehavior, interval, sleep_until},
};

use pace::Pace;

pub(crate) use input::{INPUTS, Input, Member, Shown};
pub(crate) use state::{Foundation, State};
pub(crate) use world::{Buried, LiveGateway, World};

/// A test that follows the worlds.
#[cfg(test)]
pub(crate) type Observer = tokio::sync::oneshot::Sender<watch::Receiver<Arc<World>>>;

/// How often leases and the peers' clocks are looked at: a lapsed gateway is noticed soon.
const TICK: Duration = Duration::from_millis(250);
/// Inputs handled before clocks and declarations are looked at again.
const BATCH: usize = 256;
/// Pause after a source that could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until `stop` drains.
pub(crate) async fn run<S: Source>(
    mut state: State,
    (mut source, mut journals): (S, oneshot::Receiver<Journals>),
    mut inputs: mpsc::Receiver<Input>,
    worlds: watch::Sender<Arc<World>>,
    stop: Stop,
) -> Result<(), BoxError> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(BATCH);
    let mut pace = Pace::new(Timer::now());
    let (mut book, mut kept_ports) = (state.book(), state.kept_ports());
    let errors = state.source_errors();
    let mut remembered = false;
    loop {
        tokio::select! {
            () = stop.draining() => {
                // What came since the last plan is kept, too.
                state.persist(now());
                state.persist_journal(now());
                return Ok(());
            }
            found = &mut journals, if !remembered => {
                remembered = true;
                state.remember(found.unwrap_or_default());
            }
            // Links come to life with what is remembered of their peers, or never.
            declared = next(&mut source, &errors), if remembered => state.declare(declared?, now()),
            // Cancel-safe: nothing is taken out unless the call returns.
            count = inputs.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return Ok(());
                }
                for input in batch.drain(..) {
                    state.handle(input, now());
                }
            }
            Ok(()) = book.changed() => state.consult_book(now()),
            Ok(()) = kept_ports.changed() => state.note_kept_ports(),
            _ = tick.tick() => state.tick(now()),
            () = sleep_until(pace.due()), if state.wants_plan() => {}
        }
        if state.wants_plan() && pace.allows(Timer::now()) {
            state.publish(&worlds, now());
            pace.planned(Timer::now());
        }
    }
}

/// The next snapshot; what is declared stays in force while there is none.
async fn next<S: Source>(
    source: &mut S,
    errors: &IntCounter,
) -> Result<Arc<linkspan_core::declared::Declared>, SourceError> {
    loop {
        match source.next().await {
            Err(error @ SourceError::Unavailable { .. }) => {
                errors.inc();
                tracing::warn!(%error, "keeping the last declared state");
                tokio::time::sleep(RETRY).await;
            }
            other => return other,
        }
    }
}

fn now() -> Now {
    Now {
        instant: Instant::now(),
        wall: SystemTime::now(),
    }
}
