//! Leaving nothing behind.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{Home, machine};

/// Stops everything that this set of clusters runs and removes all that it made, its folder
/// included. Needs no record, so it works after a crash, and a second time.
///
/// # Errors
/// If something does not go away; a second try is safe.
pub fn down(home: &Home) -> Result<()> {
    // Until nothing is found: what we see may just be starting something else.
    loop {
        let running = home.running()?;
        if running.is_empty() {
            break;
        }
        for process in running {
            process.kill()?;
        }
    }
    machine::clean(home)?;
    match fs::remove_dir_all(home.path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", home.path().display()))
        }
        _ => Ok(()),
    }
}
