//! Leaves nothing behind, whatever happens to the supervisor.
//!
//! The reaper is a process of its own, started before anything else. It makes the demo's
//! private directory, prints its path, and then waits on standard input: a pipe whose other
//! end only the supervisor holds, so that it ends when the supervisor does, by whatever death.
//! Then it kills what is left of its process group (all children of the supervisor belong to
//! it), waits until they are gone, and removes the directory.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process, setpgid};
use tokio::signal::unix::{SignalKind, signal};

/// How long killed processes may take to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the process table is looked at while they go.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Makes the directory, waits for the end of standard input, cleans up.
///
/// # Errors
/// If the directory cannot be made or removed.
pub fn run() -> anyhow::Result<()> {
    // A group of its own: Ctrl-C on the terminal must not end the one that cleans up.
    if getpgrp() != getpid() {
        setpgid(None, None).context("cannot lead a process group")?;
    }
    outlive_signals().context("cannot handle signals")?;
    let dir = tempfile::Builder::new()
        .prefix("linkspan-demo-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .context("cannot make a private directory")?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", dir.path().display()).and_then(|()| out.flush())?;
    let mut input = Vec::new();
    // An error here is an end as well.
    std::io::stdin().lock().take(1).read_to_end(&mut input).ok();
    kill_group();
    dir.close().context("cannot remove the demo's directory")
}

/// From now on signals that ask to end do nothing: only the end of the supervisor counts.
///
/// SIGHUP matters most: the kernel sends it to a whole group that loses its last parent while
/// one of its members is stopped, which is just when there is something to clean up.
fn outlive_signals() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let _inside = runtime.enter();
    for kind in [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::terminate(),
    ] {
        // The handler stays in place when the listener is dropped.
        drop(signal(kind)?);
    }
    Ok(())
}

/// Kills all other processes of our group and waits until none is left.
fn kill_group() {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = group();
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in left {
            kill_process(pid, Signal::KILL).ok();
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// All other processes of our process group that still run.
fn group() -> Vec<Pid> {
    let (group, own) = (getpgrp(), getpid());
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| *pid != own && group_of_live(*pid) == Some(group))
        .collect()
}

/// The process group of a process that is not yet a zombie.
fn group_of_live(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    // The name is in parentheses and may hold anything; fields are counted from its end.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok().and_then(Pid::from_raw)?;
    (!matches!(state, "Z" | "X")).then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_group_is_read_from_the_process_table() {
        assert_eq!(group_of_live(getpid()), Some(getpgrp()));
    }
}
