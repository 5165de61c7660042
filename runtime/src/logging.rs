//! Logs go to standard error: text where a person reads along, one JSON object a line elsewhere.
//!
//! Secrets stay out of logs by their types: keys and tokens have a `Debug` that hides them.

use std::io::{IsTerminal, stderr};

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

#[cfg(test)]
mod tests {
    use super::*;

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
