//! Logs go to standard error: text where a person reads along, one JSON object a line elsewhere.
//!
//! Secrets stay out of logs by their types: keys and tokens have a `Debug` that hides them.

use std::{
    io::{IsTerminal, stderr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

/// What log lines look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Text, coloured on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!(
                "unknown log format `{other}`; use auto, text or json"
            )),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter cannot be parsed.
    #[error("log filter `{filter}` is not valid; use e.g. `info` or `info,linkspan_gateway=debug`")]
    Filter {
        /// What was given.
        filter: String,
        /// Why not.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody has set it up before.
    #[error("logging is already set up")]
    Twice,
}

/// Sets up logging for the process, once. `filter` is in `tracing`'s directive syntax; empty means `info`.
///
/// # Errors
/// If the filter is not valid or logging was set up before.
pub fn init(format: Format, filter: &str) -> Result<(), LoggingError> {
    let directives = if filter.is_empty() { "info" } else { filter };
    let filter = EnvFilter::try_new(directives).map_err(|source| LoggingError::Filter {
        filter: directives.to_owned(),
        source,
    })?;
    let terminal = stderr().is_terminal();
    let lines = fmt().with_env_filter(filter).with_writer(stderr);
    let text = match format {
        Format::Text => true,
        Format::Json => false,
        Format::Auto => terminal,
    };
    let done = if text {
        lines.with_ansi(terminal).finish().try_init()
    } else {
        lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .finish()
            .try_init()
    };
    done.map_err(|_| LoggingError::Twice)
}

/// Lets one of many go by now and then: for lines that somebody else can cause as often as they
/// like, and who must not be able to fill the log with them.
#[derive(Debug)]
pub struct Sparing {
    every: Duration,
    state: Mutex<Spared>,
}

#[derive(Debug)]
struct Spared {
    quiet_until: Option<Instant>,
    count: u64,
}

impl Sparing {
    /// One in `every`.
    #[must_use]
    pub const fn new(every: Duration) -> Self {
        let state = Spared {
            quiet_until: None,
            count: 0,
        };
        Self {
            every,
            state: Mutex::new(state),
        }
    }

    /// Whether it is time for a line again; then how many have been spared since the last one.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<u64> {
        // Each change leaves it whole.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.quiet_until.is_some_and(|until| now < until) {
            state.count = state.count.saturating_add(1);
            return None;
        }
        state.quiet_until = Some(now + self.every);
        Some(std::mem::take(&mut state.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_spared_and_counted() {
        let (sparing, now) = (Sparing::new(Duration::from_secs(10)), Instant::now());
        let due = |second| sparing.due(now + Duration::from_secs(second));
        assert_eq!(due(0), Some(0));
        assert_eq!([due(1), due(9)], [None, None]);
        assert_eq!(due(10), Some(2));
        assert_eq!((due(19), due(40)), (None, Some(1)));
    }

    #[test]
    fn a_bad_filter_is_refused() {
        assert!(matches!(
            init(Format::Json, "linkspan=loud"),
            Err(LoggingError::Filter { .. })
        ));
    }

    #[test]
    fn formats_by_name() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("xml".parse::<Format>().is_err());
    }
}
