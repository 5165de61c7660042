//! Starts the demo's processes, watches them, and makes sure that they end with it.
//!
//! All children are started from the main thread (the runtime is a single-threaded one),
//! belong to the [reaper](super::reaper)'s process group, and tie themselves to the
//! supervisor with the hidden option of [`lifeline`]. So they end when it ends: in order,
//! by the kernel, or by the reaper.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, ChildStdin, Command},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::StreamExt as _;
use tokio_util::codec::{FramedRead, LinesCodec};

use crate::lifeline;

/// Lines of a child's log that are kept.
const LOG_LINES: usize = 200;
/// Longest line of a log that is kept; a longer one is dropped.
const MAX_LOG_LINE: usize = 8 << 10;
/// Longest line that a child may hand on: a report of the load after a long pause.
const MAX_LINE: usize = 4 << 20;
/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How long processes may take to end when they are asked to.
const STOP_PATIENCE: Duration = Duration::from_millis(1500);
/// How long the reaper may take to begin, and to end.
const REAPER_PATIENCE: Duration = Duration::from_secs(10);
/// Ends that are not yet dealt with; the first one ends the demo.
const ENDED: usize = 16;

/// What to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Unique name.
    pub name: String,
    /// Arguments for this very binary.
    pub arguments: Vec<OsString>,
    /// Where its standard output goes, line by line.
    pub lines: Option<mpsc::Sender<String>>,
}

impl Spec {
    /// A process that writes nothing but its log.
    pub fn new<A: Into<OsString>>(
        name: impl Into<String>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            name: name.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            lines: None,
        }
    }
}

/// A process ended that nobody had asked to.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its name.
    pub name: String,
    /// What `wait` said.
    pub status: String,
}

type Log = Arc<Mutex<VecDeque<String>>>;

fn lines_of(log: &Log) -> MutexGuard<'_, VecDeque<String>> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Running {
    /// With what it can be started again; of one whose output somebody follows, nothing.
    arguments: Option<Vec<OsString>>,
    pid: Pid,
    /// Set before we end it ourselves.
    expected: Arc<Mutex<bool>>,
    /// What `wait` said, once it has.
    ended: watch::Receiver<Option<String>>,
    stdin: Option<ChildStdin>,
}

#[derive(Debug)]
struct Reaper {
    child: Child,
    /// The pipe whose closing tells it to clean up.
    lifeline: ChildStdin,
    group: i32,
}

/// The parent of all processes of a demo.
#[derive(Debug)]
pub struct Supervisor {
    program: PathBuf,
    is_own_program: bool,
    dir: PathBuf,
    reaper: Reaper,
    running: BTreeMap<String, Running>,
    logs: BTreeMap<String, Log>,
    ended: mpsc::Sender<Ended>,
}

impl Supervisor {
    /// Starts the reaper, which makes the private directory. Also returns where unexpected
    /// ends are told.
    ///
    /// # Errors
    /// If this program cannot be started once more.
    pub async fn start() -> anyhow::Result<(Self, mpsc::Receiver<Ended>)> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let (mut supervisor, ends) = Self::with_program(program).await?;
        supervisor.is_own_program = true;
        Ok((supervisor, ends))
    }

    /// Like [`start`](Self::start), with the binary named; for tests.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn with_program(program: PathBuf) -> anyhow::Result<(Self, mpsc::Receiver<Ended>)> {
        let (reaper, dir) = timeout(REAPER_PATIENCE, start_reaper(&program))
            .await
            .context("the reaper does not answer")??;
        let (ended, ends) = mpsc::channel(ENDED);
        let supervisor = Self {
            program,
            is_own_program: false,
            dir,
            reaper,
            running: BTreeMap::new(),
            logs: BTreeMap::new(),
            ended,
        };
        Ok((supervisor, ends))
    }

    /// The private directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What to start. A rebuild or an upgrade may have put another binary in the place of ours,
    /// or none: then the kernel still has the one that we are.
    fn program(&self) -> &Path {
        let this = Path::new("/proc/self/exe");
        if self.is_own_program && !is_same_file(&self.program, this) {
            this
        } else {
            &self.program
        }
    }

    /// Starts a process.
    ///
    /// # Errors
    /// If it cannot be started, or one of that name still runs.
    pub fn spawn(&mut self, spec: &Spec) -> anyhow::Result<()> {
        if self.is_running(&spec.name) {
            bail!("{} runs already", spec.name);
        }
        let mut child = Command::new(self.program())
            .args(&spec.arguments)
            .arg(lifeline::OPTION)
            .arg(std::process::id().to_string())
            .env_remove("LINKSPAN_SOCKET")
            .stdin(Stdio::piped())
            .stdout(match spec.lines {
                Some(_) => Stdio::piped(),
                None => Stdio::null(),
            })
            .stderr(Stdio::piped())
            .process_group(self.reaper.group)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", spec.name))?;
        let pid = pid_of(&child)?;
        let log = Arc::clone(self.logs.entry(spec.name.clone()).or_default());
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(keep_log(stderr, log));
        }
        if let (Some(stdout), Some(lines)) = (child.stdout.take(), spec.lines.clone()) {
            tokio::spawn(hand_on(stdout, lines));
        }
        let stdin = child.stdin.take();
        let expected = Arc::new(Mutex::new(false));
        let (told, ended) = watch::channel(None);
        tokio::spawn(wait_for(
            child,
            spec.name.clone(),
            Arc::clone(&expected),
            told,
            self.ended.clone(),
        ));
        let running = Running {
            arguments: spec.lines.is_none().then(|| spec.arguments.clone()),
            pid,
            expected,
            ended,
            stdin,
        };
        self.running.insert(spec.name.clone(), running);
        Ok(())
    }

    /// Starts a process again that has ended, as it was started before. False where that is not
    /// possible because somebody follows its output.
    ///
    /// # Errors
    /// If it was never started, runs, or cannot be started.
    pub fn revive(&mut self, name: &str) -> anyhow::Result<bool> {
        let running = self.running.get(name);
        let running = running.with_context(|| format!("{name} was never started"))?;
        let Some(arguments) = running.arguments.clone() else {
            return Ok(false);
        };
        self.spawn(&Spec::new(name, arguments))?;
        Ok(true)
    }

    /// Kills a process with SIGKILL and waits until it is gone: then the fault is observed.
    ///
    /// # Errors
    /// If it did not run, or does not go.
    pub async fn kill(&mut self, name: &str) -> anyhow::Result<String> {
        let running = self.ending(name)?;
        running.signal(Signal::KILL);
        running.gone(KILL_PATIENCE).await.with_context(|| {
            format!("{name} was killed and is still there after {KILL_PATIENCE:?}")
        })
    }

    /// Closes a process's standard input, which ends it in its own time, and says so if it
    /// does not.
    ///
    /// # Errors
    /// If it did not run, or is still there after `patience`.
    pub async fn finish(&mut self, name: &str, patience: Duration) -> anyhow::Result<String> {
        let running = self.ending(name)?;
        running.stdin = None;
        let gone = running.gone(patience).await;
        gone.with_context(|| format!("{name} did not finish within {patience:?}"))
    }

    fn ending(&mut self, name: &str) -> anyhow::Result<&mut Running> {
        let running = self.running.get_mut(name);
        let running = running.with_context(|| format!("{name} was never started"))?;
        if let Some(status) = running.ended.borrow().clone() {
            bail!("{name} had ended by itself: {status}");
        }
        running.expect_end();
        Ok(running)
    }

    /// Whether a process runs.
    #[must_use]
    pub fn is_running(&self, name: &str) -> bool {
        let running = self.running.get(name);
        running.is_some_and(|running| running.ended.borrow().is_none())
    }

    /// Ids of all processes that run, the reaper's included.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let running = self.running.values();
        let running = running.filter(|running| running.ended.borrow().is_none());
        running
            .map(|running| running.pid.as_raw_pid().unsigned_abs())
            .chain(self.reaper.child.id())
            .collect()
    }

    /// Names of all processes that were ever started.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.running.keys().map(String::as_str)
    }

    /// The last lines of a process's log.
    #[must_use]
    pub fn log_tail(&self, name: &str, lines: usize) -> Vec<String> {
        let Some(log) = self.logs.get(name) else {
            return Vec::new();
        };
        let log = lines_of(log);
        log.iter()
            .skip(log.len().saturating_sub(lines))
            .cloned()
            .collect()
    }

    /// Ends everything: asks, waits a little, kills; then lets the reaper remove the directory.
    ///
    /// # Errors
    /// If the reaper fails.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        for running in self.running.values() {
            running.expect_end();
            running.signal(Signal::TERM);
        }
        let all_gone = async {
            for running in self.running.values_mut() {
                running.ended.wait_for(Option::is_some).await.ok();
            }
        };
        // Who does not go in time is killed by the reaper.
        timeout(STOP_PATIENCE, all_gone).await.ok();
        let Reaper {
            mut child,
            lifeline,
            ..
        } = self.reaper;
        drop(lifeline);
        let ended = timeout(REAPER_PATIENCE, child.wait()).await;
        // If somebody killed the reaper, its work is ours.
        if self.dir.exists() {
            std::fs::remove_dir_all(&self.dir)
                .with_context(|| format!("cannot remove {}", self.dir.display()))?;
        }
        let status = ended.context("the reaper does not end")??;
        if !status.success() {
            bail!("the reaper failed: {status}");
        }
        Ok(())
    }
}

impl Running {
    fn expect_end(&self) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn signal(&self, signal: Signal) {
        // As long as it has not been waited for, its id is nobody else's.
        if self.ended.borrow().is_none() {
            kill_process(self.pid, signal).ok();
        }
    }

    async fn gone(&mut self, patience: Duration) -> anyhow::Result<String> {
        let ended = timeout(patience, self.ended.wait_for(Option::is_some)).await;
        let status = ended.context("too late")?.context("nobody waits for it")?;
        Ok(status.clone().unwrap_or_default())
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    id(one).is_some_and(|one| id(other) == Some(one))
}

fn pid_of(child: &Child) -> anyhow::Result<Pid> {
    let raw = child.id().and_then(|id| i32::try_from(id).ok());
    raw.and_then(Pid::from_raw)
        .context("a process without an id")
}

async fn start_reaper(program: &Path) -> anyhow::Result<(Reaper, PathBuf)> {
    let mut child = Command::new(program)
        .args(["app", "reaper"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let group = pid_of(&child)?.as_raw_pid();
    let lifeline = child.stdin.take().context("the reaper has no input")?;
    let stdout = child.stdout.take().context("the reaper has no output")?;
    let mut path = String::new();
    BufReader::new(stdout).read_line(&mut path).await?;
    let dir = PathBuf::from(path.trim_end());
    if !dir.is_absolute() {
        return Err(anyhow!("the reaper could not make a private directory"));
    }
    let reaper = Reaper {
        child,
        lifeline,
        group,
    };
    Ok((reaper, dir))
}

async fn wait_for(
    mut child: Child,
    name: String,
    expected: Arc<Mutex<bool>>,
    told: watch::Sender<Option<String>>,
    ended: mpsc::Sender<Ended>,
) {
    let status = match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    let expected = *expected.lock().unwrap_or_else(PoisonError::into_inner);
    if !expected {
        // Its last words are still on their way through the pipe.
        sleep(Duration::from_millis(50)).await;
        let status = status.clone();
        ended.try_send(Ended { name, status }).ok();
    }
    told.send_replace(Some(status));
}

async fn keep_log(stderr: impl AsyncRead + Unpin, log: Log) {
    let mut lines = FramedRead::new(stderr, LinesCodec::new_with_max_length(MAX_LOG_LINE));
    while let Some(line) = lines.next().await {
        let Ok(line) = line else { continue };
        let mut log = lines_of(&log);
        if log.len() == LOG_LINES {
            log.pop_front();
        }
        log.push_back(line);
    }
}

async fn hand_on(stdout: impl AsyncRead + Unpin, to: mpsc::Sender<String>) {
    let mut lines = FramedRead::new(stdout, LinesCodec::new_with_max_length(MAX_LINE));
    while let Some(Ok(line)) = lines.next().await {
        if to.send(line).await.is_err() {
            return;
        }
    }
}
