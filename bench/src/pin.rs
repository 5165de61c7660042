//! Processor cores: the two ends on one, what is measured on another.

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Who runs where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores {
    /// The core of client and origin.
    pub ends: usize,
    /// The core of everything between them.
    pub path: usize,
}

impl Cores {
    /// The first two cores that this process may use; none if it has but one.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn two() -> Result<Option<Self>> {
        let allowed = sched_getaffinity(None).context("cannot ask for processor cores")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        Ok(match (cores.next(), cores.next()) {
            (Some(ends), Some(path)) => Some(Self { ends, path }),
            _ => None,
        })
    }
}

/// Restricts the calling thread, and whatever it starts from now on, to one core.
///
/// # Errors
/// When there is no such core for us.
pub fn to(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("cannot run on core {cpu}"))
}
