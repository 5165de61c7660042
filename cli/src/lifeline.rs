//! Children must not outlive their supervisor, not even one that was killed with -9.
//!
//! The kernel can send a signal when the *thread* that started a process ends, but only the
//! child itself can ask for it without `unsafe` code between fork and exec. So a supervisor
//! starts its children from its main thread with `--die-with PID`, and each child calls
//! [`tie_to`] before it does anything else.

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// The hidden option by which a supervisor names itself to its children.
pub const OPTION: &str = "--die-with";

/// From now on this process is killed when its parent ends.
///
/// # Errors
/// If the parent is no longer `parent`: it ended before the tie was made.
pub fn tie_to(parent: u32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot tie to the parent")?;
    // It may have ended before the line above; then nobody will tell us any more.
    let found = getppid().map(Pid::as_raw_pid);
    if found.map(|pid| pid.unsigned_abs()) != Some(parent) {
        bail!("process {parent}, which started this one, is gone");
    }
    Ok(())
}
