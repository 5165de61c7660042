//! Processes that outlive the command that started them.
//!
//! Each carries two environment variables: the folder of its set and its part in it. They are
//! inherited, cannot be shed, and the kernel shows them, so `/proc` is the record of what runs:
//! it is never stale, has no moment in which a process is not yet written down, and survives
//! everything that this tool does not.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::Home;

const HOME: &str = "LINKSPAN_CLUSTERS_HOME";
const PART: &str = "LINKSPAN_CLUSTERS_PART";

/// Between two looks at what no event tells of.
const LOOK: Duration = Duration::from_millis(5);

/// A killed process is gone within milliseconds, unless the disk holds it.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// How to start one program of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// What it is called in `status`, in logs, and by `kill` and `start`.
    pub name: &'static str,
    /// The file to run, whose last part is the name that the process has.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// A process of ours.
#[derive(Debug)]
pub struct Running {
    /// Its number.
    pub pid: Pid,
    /// The cluster that it works for.
    pub cluster: String,
    /// The program that it is, or that started it.
    pub program: String,
    /// Whether it is the program itself, not one that the program started.
    pub main: bool,
    handle: OwnedFd,
}

impl Home {
    /// Starts a program of `cluster`, in the namespaces of the process `inside` if there is one,
    /// and returns once it runs. Its output goes to `<program>.log` in the cluster's folder.
    ///
    /// # Errors
    /// If the program or its log cannot be opened, or it ends at once.
    pub fn start(&self, cluster: &str, program: &Program, inside: Option<Pid>) -> Result<()> {
        let path = self.log(cluster, program.name);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        let mut command = match inside {
            None => Command::new(&program.path),
            Some(node) => {
                let mut enter = crate::node::enter(node);
                enter.arg(&program.path);
                enter
            }
        };
        command
            .args(&program.arguments)
            .env(HOME, self.path())
            .env(PART, format!("{cluster}/{}", program.name))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Of its own group: what interrupts the command at a terminal is not for it.
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", program.path.display()))?;
        // What enters the namespaces first becomes the program only a moment later.
        while self.find(cluster, program.name)?.is_none() {
            if let Some(status) = child.try_wait()? {
                bail!("{} ended at once ({status}): {}", program.name, tail(&path));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Where a program's output goes.
    #[must_use]
    pub fn log(&self, cluster: &str, program: &str) -> PathBuf {
        self.cluster(cluster).join(format!("{program}.log"))
    }

    /// Every process that this set of clusters has, apart from those in pods.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn running(&self) -> Result<Vec<Running>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("reading /proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // What ends while we look is not running.
            if let Some(process) = Pid::from_raw(pid).and_then(|pid| self.inspect(pid)) {
                found.push(process);
            }
        }
        Ok(found)
    }

    /// The process of one program, if it runs.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn find(&self, cluster: &str, program: &str) -> Result<Option<Running>> {
        let mut all = self.running()?.into_iter();
        Ok(all.find(|p| p.main && p.cluster == cluster && p.program == program))
    }

    fn inspect(&self, pid: Pid) -> Option<Running> {
        // The handle first: what is read afterwards is of that very process, or the process has
        // ended, which the handle then tells.
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let environment = fs::read(folder.join("environ")).ok()?;
        if variable(&environment, HOME)? != self.path().as_os_str() {
            return None;
        }
        let (cluster, program) = variable(&environment, PART)?.to_str()?.split_once('/')?;
        let arguments = fs::read(folder.join("cmdline")).ok()?;
        let called = arguments.split(|byte| *byte == 0).next()?;
        let called = called.rsplit(|byte| *byte == b'/').next()?;
        Some(Running {
            pid,
            cluster: cluster.to_owned(),
            program: program.to_owned(),
            main: called == program.as_bytes(),
            handle,
        })
    }
}

impl Running {
    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// If it may not be killed, or does not go.
    pub fn kill(&self) -> Result<()> {
        let what = || format!("{} (process {})", self.program, self.pid.as_raw_nonzero());
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("killing {}", what())),
        }
        if !self.ended_within(KILL_PATIENCE)? {
            bail!("{} does not end although killed; try again", what());
        }
        Ok(())
    }

    /// Waits for its end, at most this long.
    fn ended_within(&self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("a time that the kernel can tell")?;
            let mut ends = [PollFd::new(&self.handle, PollFlags::IN)];
            match rustix::event::poll(&mut ends, Some(&left)) {
                Err(Errno::INTR) => {}
                ended => return Ok(ended? > 0),
            }
        }
    }
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// The value of a variable in an environment as `/proc` shows it.
fn variable<'a>(environment: &'a [u8], name: &str) -> Option<&'a OsStr> {
    environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .map(OsStr::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_whole_variable() {
        let environment = b"A=1\0LINKSPAN_CLUSTERS_HOME_X=2\0LINKSPAN_CLUSTERS_HOME=/a=b\0";
        assert_eq!(variable(environment, HOME), Some(OsStr::new("/a=b")));
        assert_eq!(variable(environment, PART), None);
    }

    #[test]
    fn finds_and_kills_what_it_started_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let ours = Home::at(&parent.path().join("ours")).unwrap();
        let others = Home::at(&parent.path().join("others")).unwrap();
        for home in [&ours, &others] {
            fs::create_dir_all(home.cluster("east")).unwrap();
            home.start("east", &sleeper(), None).unwrap();
        }
        let process = running(&ours);
        assert!(process.main);
        process.kill().unwrap();
        assert!(ours.find("east", "sleep").unwrap().is_none());
        running(&others).kill().unwrap();
    }

    #[test]
    fn what_cannot_run_is_told_at_once() {
        let parent = tempfile::tempdir().unwrap();
        let home = Home::at(parent.path()).unwrap();
        fs::create_dir_all(home.cluster("east")).unwrap();
        let program = Program {
            name: "other",
            path: "sh".into(),
            arguments: ["-c", "echo why >&2; exit 3"].map(str::to_owned).to_vec(),
        };
        let error = home.start("east", &program, None).unwrap_err().to_string();
        assert!(error.contains("other") && error.contains("why"), "{error}");
    }

    fn sleeper() -> Program {
        Program {
            name: "sleep",
            path: "/bin/sleep".into(),
            arguments: vec!["60".to_owned()],
        }
    }

    fn running(home: &Home) -> Running {
        home.find("east", "sleep").unwrap().expect("it runs")
    }
}
