//! The configuration of a sidecar: raw YAML to a value that cannot be wrong.

use std::path::Path;

use linkspan_runtime::config::ConfigError;

/// A sidecar's configuration.
#[derive(Clone, Debug)]
pub struct Config {}

impl Config {
    /// Reads a YAML file.
    ///
    /// # Errors
    /// All problems together, each with its key and what to do.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        linkspan_runtime::config::read_yaml::<serde::de::IgnoredAny>(path)?;
        Ok(Self {})
    }
}
