//! Configuration files: raw YAML to typed values, all problems at once.
//!
//! A part declares a raw serde type (`deny_unknown_fields`), reads it with [`read_yaml`], and turns
//! it into its `Config` while collecting what is wrong in [`Problems`]. An operator then sees every
//! problem in one go, each with its key, what was found, and how to mend it.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// Largest configuration file that is read, bytes; larger ones are surely mistakes.
pub const MAX_FILE: u64 = 1 << 20;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}; check that the file exists and may be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("{} is larger than {MAX_FILE} bytes; is it the right file?", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// The text is not YAML of the right shape.
    #[error("{}:{line}:{column}: {field}{message}", file.display(), field = in_field(field))]
    Parse {
        /// The file.
        file: PathBuf,
        /// Line, from 1; 0 if unknown.
        line: u64,
        /// Column, from 1; 0 if unknown.
        column: u64,
        /// The key on that line, empty if there is none.
        field: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// Values that cannot be used.
    #[error("{} has {} problem(s):{}", file.display(), problems.len(), Lines(problems))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Each of them.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, e.g. `outbound[0].port`.
    pub key: String,
    /// What is there.
    pub found: String,
    /// How to mend it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}; {}", self.key, self.found, self.fix)
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

fn in_field(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!("`{field}`: ")
    }
}

/// Collects problems while a raw configuration becomes a typed one.
#[derive(Debug)]
pub struct Problems {
    file: PathBuf,
    found: Vec<Problem>,
}

impl Problems {
    /// None yet, for the file of that name.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            found: Vec::new(),
        }
    }

    /// Notes that `key` holds `found`, which `fix` would mend.
    pub fn add(
        &mut self,
        key: impl Into<String>,
        found: impl fmt::Display,
        fix: impl Into<String>,
    ) {
        self.found.push(Problem {
            key: key.into(),
            found: found.to_string(),
            fix: fix.into(),
        });
    }

    /// The value if the result is one; else notes the problem (`found` and the error) and gives `None`.
    pub fn check<T, E: fmt::Display>(
        &mut self,
        key: impl Into<String>,
        found: impl fmt::Display,
        result: Result<T, E>,
    ) -> Option<T> {
        result
            .map_err(|error| self.add(key, format_args!("`{found}`"), error.to_string()))
            .ok()
    }

    /// Whether nothing was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// `value` if nothing is wrong.
    ///
    /// # Errors
    /// All problems together.
    pub fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        self.finish_with(|| Some(value))
    }

    /// What `value` gives, called only if nothing is wrong; `None` from it must have been noted before.
    ///
    /// # Errors
    /// All problems together.
    pub fn finish_with<T>(self, value: impl FnOnce() -> Option<T>) -> Result<T, ConfigError> {
        let value = if self.found.is_empty() { value() } else { None };
        value.ok_or(ConfigError::Invalid {
            file: self.file,
            problems: self.found,
        })
    }
}

/// Reads a YAML file into a raw configuration.
///
/// # Errors
/// With file, line, column and field.
pub fn read_yaml<Raw: DeserializeOwned>(path: &Path) -> Result<Raw, ConfigError> {
    let failed = |source| ConfigError::Read {
        file: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(ConfigError::TooLarge {
            file: path.to_owned(),
        });
    }
    parse_yaml(path, &std::fs::read_to_string(path).map_err(failed)?)
}

/// Parses YAML text into a raw configuration; `file` is for messages only.
///
/// # Errors
/// With file, line, column and field.
pub fn parse_yaml<Raw: DeserializeOwned>(file: &Path, text: &str) -> Result<Raw, ConfigError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        let (line, column) = error
            .location()
            .map_or((0, 0), |at| (at.line(), at.column()));
        let said = one_line(&error.to_string(), line, column);
        // What is missing is on no line: the parser is where it looked last.
        let (field, message) = match said.strip_prefix("missing field ") {
            Some(missing) => (String::new(), format!("{missing} is missing; add it")),
            None => (key_of_line(text, line), in_words(&said)),
        };
        ConfigError::Parse {
            file: file.to_owned(),
            line,
            column,
            field,
            message,
        }
    })
}

/// What the parser says, for people who do not know the parser.
fn in_words(message: &str) -> String {
    if message == "unexpected end of input" {
        return "it is empty".to_owned();
    }
    if message == "expected mapping start" {
        return "`key: value` lines are expected here".to_owned();
    }
    if message.contains("found a tab") {
        return format!("{message}; use spaces");
    }
    // The rest is advice to who calls the parser.
    let (message, _) = message
        .split_once(", set DuplicateKeyPolicy")
        .unwrap_or((message, ""));
    match meant(message) {
        Some(known) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}

/// Of "unknown field `x`, expected one of a, b", the one that `x` differs from by two slips at most.
fn meant(message: &str) -> Option<&str> {
    let (unknown, known) = message
        .strip_prefix("unknown field `")?
        .split_once("`, expected ")?;
    let known = known.strip_prefix("one of ").unwrap_or(known);
    let slips = |known: &str| strsim::osa_distance(&known.to_lowercase(), &unknown.to_lowercase());
    known
        .split([',', ' ', '`'])
        .filter(|known| !known.is_empty() && slips(known) <= 2)
        .min_by_key(|known| slips(known))
}

/// The key on that line of a YAML document, if there is one.
fn key_of_line(text: &str, line: u64) -> String {
    let index = usize::try_from(line).unwrap_or(0);
    let Some(line) = index
        .checked_sub(1)
        .and_then(|index| text.lines().nth(index))
    else {
        return String::new();
    };
    let key = line.trim_start_matches([' ', '-', '\t', '{']);
    key.split_once(':')
        .map_or_else(String::new, |(key, _)| key.trim().to_owned())
}

/// The first line of a message, without the position that the parser appended and we print in front.
fn one_line(message: &str, line: u64, column: u64) -> String {
    let first = message.lines().next().unwrap_or_default();
    first
        .trim_end_matches(&format!(" at line {line}, column {column}"))
        .to_owned()
}

/// A duration as people write it: `30s`, `5m`, `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(
    /// The duration.
    pub Duration,
);

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            serde::de::Error::custom(format!(
                "`{text}` is no duration ({error}); write e.g. 500ms, 30s or 5m"
            ))
        })
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Raw {
        cluster: String,
        #[serde(default)]
        drain_grace: Option<HumanDuration>,
        #[serde(default)]
        outbound: Vec<Outbound>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outbound {
        port: u16,
    }

    fn parse(text: &str) -> Result<Raw, ConfigError> {
        parse_yaml(Path::new("sidecar.yaml"), text)
    }

    #[test]
    fn reads_what_is_right() {
        let raw = parse("cluster: east\ndrainGrace: 1m 5s\noutbound: [{port: 80}]\n").unwrap();
        assert_eq!(raw.cluster, "east");
        assert_eq!(
            raw.drain_grace,
            Some(HumanDuration(Duration::from_secs(65)))
        );
        assert_eq!(raw.outbound[0].port, 80);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_place() {
        let error = parse("cluster: east\nclustr: west\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("sidecar.yaml:2:1: `clustr`: "), "{error}");
        assert!(
            error.contains("unknown field") && error.contains("drainGrace"),
            "{error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn what_the_parser_says_is_in_words() {
        for (text, said) in [
            ("", "sidecar.yaml:1:1: it is empty"),
            (
                "cluster: east\ncluster: west\n",
                "sidecar.yaml:2:1: `cluster`: duplicate mapping key: cluster",
            ),
            (
                "outbound: []\n",
                "sidecar.yaml:1:1: `cluster` is missing; add it",
            ),
            (
                "cluster: east\ndrainGarce: 1s\n",
                "did you mean `drainGrace`?",
            ),
            ("cluster:\teast\n\tx: 1\n", "use spaces"),
            ("some words\n", "`key: value` lines are expected here"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text:?}: {error}");
            assert!(!error.contains("Options"), "{error}");
        }
    }

    #[test]
    fn a_wrong_type_is_named_with_its_place() {
        let error = parse("cluster: east\noutbound:\n  - port: http\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("sidecar.yaml:3:11: `port`: "), "{error}");
        let error = parse("cluster: east\ndrainGrace: soon\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`drainGrace`: ") && error.contains("write e.g."),
            "{error}"
        );
    }

    #[test]
    fn all_problems_come_together() {
        let mut problems = Problems::new("gateway.yaml");
        problems.add("listen", "`:80`", "give IP and port");
        let port: Option<u16> = problems.check("port", "x", "x".parse::<u16>());
        assert!(port.is_none());
        let text = problems.finish(()).unwrap_err().to_string();
        assert!(
            text.contains("2 problem(s)") && text.contains("listen: found `:80`; give"),
            "{text}"
        );
        assert!(text.contains("port: found `x`; invalid digit"), "{text}");
        assert!(Problems::new("x").finish(1).is_ok());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_yaml::<Raw>(Path::new("/nonexistent/x.yaml")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x.yaml"));
    }
}
