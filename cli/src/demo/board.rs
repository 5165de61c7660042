//! What the demo shows while it runs: a table that updates on a terminal, plain lines
//! elsewhere, nothing when JSON is wanted.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    report::{HEADER, StepReport},
    samples::{Side, millis},
    tour::STEPS,
    world::View,
};
use crate::{
    apps::report::Moment,
    output::{Format, wants_color},
};

/// How often the table is drawn anew.
const REDRAW: Duration = Duration::from_millis(250);
/// The table shows what happened within this.
const NEWEST: Duration = Duration::from_secs(1);
/// Percentiles need more requests than shares do.
const TIMES: Duration = Duration::from_secs(5);
/// Columns of the bar that shows shares.
const BAR: usize = 30;
/// Widest line where the terminal does not tell.
const WIDTH: usize = 80;
/// Highest table there.
const HEIGHT: usize = 24;

/// How to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Redrawn in place.
    Live {
        /// With colours.
        color: bool,
    },
    /// One line per event.
    Plain,
    /// Nothing.
    Silent,
}

#[derive(Debug, Default)]
struct State {
    step: usize,
    doing: String,
    done: Vec<StepReport>,
    /// Only what is now; the steps stay where they were drawn last.
    brief: bool,
    /// Lines of the table on the screen, to be overwritten by the next one.
    drawn: usize,
}

/// The display. Who acts tells it; one loop draws it.
#[derive(Debug)]
pub struct Board {
    style: Style,
    begun: Moment,
    state: Mutex<State>,
}

impl Board {
    /// For this output, on this standard output.
    #[must_use]
    pub fn new(output: Format) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let style = match output {
            Format::Json => Style::Silent,
            Format::Text if terminal && !dumb => Style::Live {
                color: wants_color(),
            },
            Format::Text => Style::Plain,
        };
        Self {
            style,
            begun: Moment::now(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the demo began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Moment::now().since(self.begun)
    }

    /// A step begins.
    pub fn begin(&self, number: usize) {
        self.state().step = number;
        self.line(&format!(
            "step {number}/{}: {}",
            STEPS.len(),
            STEPS[number - 1]
        ));
    }

    /// What is being done now.
    pub fn doing(&self, what: &str) {
        what.clone_into(&mut self.state().doing);
        self.line(&format!("  {what}"));
    }

    /// A step has ended.
    pub fn end(&self, report: &StepReport) {
        self.state().done.push(report.clone());
        let mark = if report.ok { "held" } else { "DID NOT HOLD" };
        self.line(&format!("  {mark}: {}", report.line()));
        self.line(&format!("  {}", report.detail));
    }

    /// One plain line; on a terminal the table says it.
    fn line(&self, text: &str) {
        if self.style == Style::Plain {
            let seconds = self.elapsed().as_secs_f64();
            write(&format!("{seconds:5.1}s {text}\n"));
        }
    }

    /// Text that stays, below the table; nothing when JSON is wanted.
    pub fn lasting(&self, text: &str) {
        if self.style != Style::Silent {
            self.state().drawn = 0;
            write(text);
        }
    }

    /// From now on the table leaves room for what was printed above it.
    pub fn be_brief(&self) {
        self.state().brief = true;
    }

    /// Draws until it is dropped.
    pub async fn draw(&self, view: &View) {
        let mut ticks = interval(REDRAW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.redraw(view);
        }
    }

    /// Draws once.
    pub fn redraw(&self, view: &View) {
        let Style::Live { color } = self.style else {
            return;
        };
        let (width, height) = terminal_size();
        let mut state = self.state();
        let lines = table(&state, view, self.elapsed(), color);
        // What does not fit would scroll away with each frame, and leave a copy of itself.
        let lines = &lines[lines.len().saturating_sub(height - 1)..];
        let mut frame = String::new();
        // All in one write, in a synchronized update where the terminal knows it: no flicker.
        frame.push_str("\x1b[?2026h");
        if state.drawn > 0 {
            frame.push_str(&format!("\x1b[{}A", state.drawn));
        }
        for line in lines {
            frame.push_str("\r\x1b[K");
            frame.push_str(&clip(line, width));
            frame.push('\n');
        }
        frame.push_str("\x1b[J\x1b[?2026l");
        state.drawn = lines.len();
        write(&frame);
    }
}

/// A reader that has left must not end the tour: its exit code still counts.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .ok();
}

/// Columns and rows, one at least.
fn terminal_size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    let (columns, rows) = size.map_or((0, 0), |size| (size.ws_col, size.ws_row));
    let or = |told: u16, otherwise| match told {
        0 => otherwise,
        told => usize::from(told),
    };
    (or(columns, WIDTH), or(rows, HEIGHT))
}

/// Cuts a line to so many visible characters; escape sequences take no room.
fn clip(line: &str, width: usize) -> String {
    let (mut out, mut visible, mut escape) = (String::new(), 0, false);
    for character in line.chars() {
        match character {
            '\x1b' => escape = true,
            _ if escape => escape = character != 'm',
            _ if visible >= width => continue,
            _ => visible += 1,
        }
        out.push(character);
    }
    out
}

/// Paints where colours are wanted.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn table(state: &State, view: &View, elapsed: Duration, color: bool) -> Vec<String> {
    let paint = Paint(color);
    let mut lines = vec![String::new()];
    if !state.brief {
        lines.push(format!(
            "{}  two clusters, one machine  {:>3.0} s",
            paint.with("1", "linkspan demo"),
            elapsed.as_secs_f64()
        ));
        lines.push(String::new());
        lines.push(paint.with("2", &format!("     {HEADER}")));
        for (index, name) in STEPS.iter().enumerate() {
            lines.push(step_line(state, index + 1, name, paint));
        }
        lines.push(String::new());
    }
    lines.push(shares_line(view, paint));
    lines.push(load_line(state, view));
    for side in Side::BOTH {
        lines.push(link_line(view, side, paint));
    }
    lines.push(format!("  now    {}", state.doing));
    lines
}

fn step_line(state: &State, number: usize, name: &str, paint: Paint) -> String {
    match state.done.get(number - 1) {
        Some(report) => {
            let mark = if report.ok {
                paint.with("32", "✓")
            } else {
                paint.with("31", "✗")
            };
            format!(" {mark} {number} {}", report.row())
        }
        None if state.step == number => format!(" {} {number} {name}", paint.with("36", "▸")),
        None => paint.with("2", &format!("   {number} {name}")),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a small bar"
)]
fn shares_line(view: &View, paint: Paint) -> String {
    let newest = view.recent(NEWEST);
    let Some(east) = newest.share(Side::East) else {
        return "  answers  none yet".to_owned();
    };
    let filled = ((east / 100.0 * BAR as f64).round() as usize).min(BAR);
    format!(
        "  east {:>3.0} % {}{} west {:>3.0} %",
        east,
        paint.with("34", &"█".repeat(filled)),
        paint.with("33", &"░".repeat(BAR - filled)),
        100.0 - east
    )
}

fn load_line(state: &State, view: &View) -> String {
    let newest = view.recent(NEWEST);
    let times = view.recent(TIMES);
    let failed: u64 = state.done.iter().map(|step| step.failed).sum();
    format!(
        "  load   {:>3} req/s   p50 {:.1} ms   p99 {:.1} ms   failed {}",
        newest.requests,
        millis(times.p50),
        millis(times.p99),
        failed + newest.failed
    )
}

fn link_line(view: &View, side: Side, paint: Paint) -> String {
    let (here, there) = (side.name(), side.other().name());
    let state = match (view.status(side), view.link(side)) {
        (None, _) => paint.with("33", "federation does not answer"),
        (_, None) => paint.with("2", "not linked yet"),
        (_, Some(link)) => {
            let usable = if link.usable {
                paint.with("32", "usable")
            } else {
                paint.with("31", "unusable")
            };
            format!(
                "{usable}, {} ({} gateways up, {} connections)",
                link.state, link.gateways_up, link.connections
            )
        }
    };
    format!("  link   {here} to {there}: {state}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_counts_what_is_seen() {
        assert_eq!(clip("abcdef", 3), "abc");
        assert_eq!(clip("\x1b[31mab\x1b[0mcd", 3), "\x1b[31mab\x1b[0mc");
        assert_eq!(clip("░░░░", 2), "░░");
        assert_eq!(clip("\x1b[31mabcd\x1b[0m", 2), "\x1b[31mab\x1b[0m");
    }

    #[test]
    fn without_colour_nothing_is_painted() {
        assert_eq!(Paint(false).with("31", "x"), "x");
        assert_eq!(Paint(true).with("31", "x"), "\x1b[31mx\x1b[0m");
    }
}
