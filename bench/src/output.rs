//! Tables for people, JSON for programs.

use std::{io::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// How a result is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON document
    Json,
}

/// What a measurement found.
pub trait Report: Serialize {
    /// Whether every bound was kept.
    fn holds(&self) -> bool;
    /// The result for people.
    fn text(&self) -> String;
}

impl Format {
    /// Prints a result on standard output.
    ///
    /// # Errors
    /// When nobody reads it.
    pub fn print(self, report: &impl Report) -> Result<()> {
        let text = match self {
            Self::Text => report.text(),
            Self::Json => serde_json::to_string_pretty(report)? + "\n",
        };
        std::io::stdout()
            .write_all(text.as_bytes())
            .context("cannot write to standard output")
    }
}

/// A table without lines; all columns but the first are aligned to the right.
#[must_use]
pub fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header)
        .add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<_> = table.lines().collect();
    let lines = lines.iter().map(|line| line.trim_end().to_owned() + "\n");
    lines.collect()
}

/// Tells a person what goes on, on standard error.
pub fn progress(text: &str) {
    eprintln!("{text}");
}

/// Milliseconds, as JSON and tables have them.
#[must_use]
pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The value in the middle; of an even number, the mean of the two there. Zero of none.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.get(middle)) {
        (_, None) => 0.0,
        (1, Some(value)) => *value,
        (_, Some(upper)) => f64::midpoint(values[middle - 1], *upper),
    }
}

/// `PASS` or `FAIL`.
#[must_use]
pub fn verdict(holds: bool) -> String {
    if holds { "PASS" } else { "FAIL" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }
}
