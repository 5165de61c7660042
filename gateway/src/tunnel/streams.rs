//! The streams that one connection carries, so that they can be counted, watched and cut.
//!
//! A stream holds a [`Ticket`] for as long as it lives. Through it the connection learns
//! whether the stream's TCP side has stopped reading, and the stream learns that it is to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::close::ResetCode;
use crate::stall::{self, Windows};

/// All streams of one connection, whichever side opened them.
#[derive(Debug)]
pub(crate) struct Streams {
    open: AtomicUsize,
    crowded: AtomicBool,
    origin: Instant,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    cells: BTreeMap<u64, Arc<Cell>>,
    /// Expendable streams do not outlive a suspicion.
    suspect: bool,
    /// Set once everything is to end; streams that come later end at once.
    all: Option<ResetCode>,
}

#[derive(Debug)]
struct Cell {
    expendable: AtomicBool,
    /// Milliseconds after `origin` at which the write now blocked began, plus one; 0 if none is.
    blocked: AtomicU64,
    cut: watch::Sender<Option<ResetCode>>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self {
            open: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
            origin: Instant::now(),
            table: Mutex::default(),
        }
    }

    /// How many streams are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether stalled readers fill so much of the window that new streams should go elsewhere.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Registers a stream.
    pub(crate) fn ticket(self: &Arc<Self>) -> Ticket {
        let mut table = self.table();
        let cell = Arc::new(Cell {
            expendable: AtomicBool::new(false),
            blocked: AtomicU64::new(0),
            cut: watch::Sender::new(table.all),
        });
        let key = table.next;
        table.next += 1;
        table.cells.insert(key, cell.clone());
        self.open.fetch_add(1, Ordering::Relaxed);
        Ticket {
            streams: self.clone(),
            key,
            cell,
        }
    }

    /// The connection became suspect, or is clear again: what can be tried again elsewhere is cut.
    pub(crate) fn set_suspect(&self, suspect: bool) {
        let mut table = self.table();
        table.suspect = suspect;
        if suspect {
            let expendable = table
                .cells
                .values()
                .filter(|cell| cell.expendable.load(Ordering::Relaxed));
            expendable.for_each(|cell| cell.cut(ResetCode::Suspect));
        }
    }

    /// Cuts all streams, and those that come later.
    pub(crate) fn cut_all(&self, code: ResetCode) {
        let mut table = self.table();
        table.all = Some(code);
        table.cells.values().for_each(|cell| cell.cut(code));
    }

    /// Looks for stalled readers and cuts those that hold up the others; how many were cut.
    pub(crate) fn relieve(&self, now: Instant, windows: Windows) -> usize {
        let table = self.table();
        let verdict = stall::judge(&self.blocked(&table, now), windows);
        self.crowded.store(verdict.crowded, Ordering::Relaxed);
        let victims = verdict.reset.iter().filter_map(|key| table.cells.get(key));
        victims.for_each(|cell| cell.cut(ResetCode::SlowReader));
        verdict.reset.len()
    }

    fn blocked(&self, table: &Table, now: Instant) -> Vec<(u64, Duration)> {
        let since = |cell: &Cell| {
            let millis = cell.blocked.load(Ordering::Relaxed).checked_sub(1)?;
            Some(now.saturating_duration_since(self.origin + Duration::from_millis(millis)))
        };
        table
            .cells
            .iter()
            .filter_map(|(key, cell)| Some((*key, since(cell)?)))
            .collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that holds the lock can panic halfway; a poisoned table is still whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cell {
    /// The first reason stays.
    fn cut(&self, code: ResetCode) {
        self.cut.send_if_modified(|cut| {
            let first = cut.is_none();
            cut.get_or_insert(code);
            first
        });
    }
}

/// One stream's place among those of its connection; dropping it ends the stream's account.
#[derive(Debug)]
pub(crate) struct Ticket {
    streams: Arc<Streams>,
    key: u64,
    cell: Arc<Cell>,
}

impl Ticket {
    /// What the stream carries can be tried again elsewhere: its inner ClientHello offers HTTP, or
    /// it has not been answered yet.
    pub(crate) fn expendable(&self) {
        // Under the lock, so that a suspicion comes either before (seen here) or after (cut there).
        let table = self.streams.table();
        self.cell.expendable.store(true, Ordering::Relaxed);
        if table.suspect {
            self.cell.cut(ResetCode::Suspect);
        }
    }

    /// The stream has been answered, and carries what only it can carry.
    pub(crate) fn keep(&self) {
        self.cell.expendable.store(false, Ordering::Relaxed);
    }

    /// Completes when the stream is to end. Cancel-safe.
    pub(crate) async fn cut(&self) -> ResetCode {
        let mut cut = self.cell.cut.subscribe();
        let code = cut
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|code| *code);
        // The sender lives in our own cell, so that waiting cannot fail.
        code.unwrap_or(ResetCode::Reset)
    }

    /// What the stream's writer to the TCP side reports to.
    pub(crate) fn gauge(&self) -> Gauge {
        Gauge {
            origin: self.streams.origin,
            cell: self.cell.clone(),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.streams.table().cells.remove(&self.key);
        self.streams.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells whether the write to a stream's TCP side is blocked.
#[derive(Debug)]
pub(crate) struct Gauge {
    origin: Instant,
    cell: Arc<Cell>,
}

impl Gauge {
    /// A write could not go on; only the first call of a row counts.
    pub(crate) fn blocked(&self) {
        if self.cell.blocked.load(Ordering::Relaxed) == 0 {
            let millis = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            self.cell.blocked.store(millis + 1, Ordering::Relaxed);
        }
    }

    /// A write went on.
    pub(crate) fn moved(&self) {
        if self.cell.blocked.load(Ordering::Relaxed) != 0 {
            self.cell.blocked.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const WINDOWS: Windows = Windows {
        stream: 1,
        connection: 4,
    };

    fn cut_of(ticket: &Ticket) -> Option<ResetCode> {
        ticket.cut().now_or_never()
    }

    #[test]
    fn counts_what_is_open() {
        let streams = Arc::new(Streams::new());
        let tickets = [streams.ticket(), streams.ticket()];
        assert_eq!(streams.open(), 2);
        drop(tickets);
        assert_eq!(streams.open(), 0);
    }

    #[test]
    fn suspicion_cuts_http_and_keeps_raw_tcp() {
        let streams = Arc::new(Streams::new());
        let (http, raw, late) = (streams.ticket(), streams.ticket(), streams.ticket());
        http.expendable();
        assert_eq!(cut_of(&http), None);
        streams.set_suspect(true);
        late.expendable();
        assert_eq!(cut_of(&http), Some(ResetCode::Suspect));
        assert_eq!(cut_of(&late), Some(ResetCode::Suspect));
        assert_eq!(cut_of(&raw), None);
    }

    #[test]
    fn what_comes_after_the_end_ends_at_once() {
        let streams = Arc::new(Streams::new());
        streams.cut_all(ResetCode::Withdrawn);
        assert_eq!(cut_of(&streams.ticket()), Some(ResetCode::Withdrawn));
    }

    #[test]
    fn only_the_longest_stalled_are_cut() {
        let streams = Arc::new(Streams::new());
        let tickets: Vec<_> = (0..3).map(|_| streams.ticket()).collect();
        tickets.iter().for_each(|ticket| ticket.gauge().blocked());
        let later = Instant::now() + Duration::from_secs(2);
        assert_eq!(streams.relieve(later, WINDOWS), 1);
        assert!(streams.is_crowded());
        assert_eq!(cut_of(&tickets[0]), Some(ResetCode::SlowReader));
        tickets[1].gauge().moved();
        assert_eq!(streams.relieve(later, WINDOWS), 0);
        assert!(!streams.is_crowded());
    }
}
