//! However a supervisor ends, no process and no file of it is left.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use linkspan::demo::nursery::Ready;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Everything here takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Nursery {
    supervisor: Child,
    ready: Ready,
    /// Become readable when the processes end, whoever their parent is by then.
    ends: Vec<std::os::fd::OwnedFd>,
}

fn nursery(arguments: &[&str]) -> Nursery {
    nursery_of(Path::new(env!("CARGO_BIN_EXE_linkspan")), arguments)
}

fn nursery_of(program: &Path, arguments: &[&str]) -> Nursery {
    let mut supervisor = Command::new(program)
        .args(["app", "nursery"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let mut line = String::new();
    let output = supervisor.stdout.take().expect("piped");
    BufReader::new(output).read_line(&mut line).expect("a line");
    let ready: Ready = serde_json::from_str(&line).expect("ready");
    assert_eq!(ready.processes.len(), 3, "{ready:?}");
    assert!(ready.dir.join("a-file").exists());
    let open = |id: &u32| pidfd_open(pid(*id), PidfdFlags::empty()).expect("it runs");
    Nursery {
        ends: ready.processes.iter().map(open).collect(),
        supervisor,
        ready,
    }
}

fn pid(id: u32) -> Pid {
    let raw = i32::try_from(id).expect("a process id");
    Pid::from_raw(raw).expect("a process id")
}

impl Nursery {
    fn signal(&self, signal: Signal) {
        kill_process(pid(self.supervisor.id()), signal).expect("it runs");
    }

    /// Waits for every process to end; the reaper is the last one, after it has cleaned up.
    fn expect_nothing(mut self) {
        self.supervisor.wait().expect("it ended");
        for end in &self.ends {
            wait_readable(end);
        }
        assert!(
            !self.ready.dir.exists(),
            "{} is left",
            self.ready.dir.display()
        );
        for id in &self.ready.processes {
            let stat = Path::new("/proc").join(id.to_string()).join("stat");
            let state = std::fs::read_to_string(stat).unwrap_or_default();
            // A zombie is init's to collect.
            assert!(state.is_empty() || state.contains(") Z "), "left: {state}");
        }
    }
}

fn wait_readable(end: &std::os::fd::OwnedFd) {
    let mut poll = [rustix::event::PollFd::new(
        end,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec::try_from(PATIENCE).expect("short");
    let begun = Instant::now();
    let ready = rustix::event::poll(&mut poll, Some(&limit)).expect("polled");
    assert_eq!(ready, 1, "still there after {:?}", begun.elapsed());
}

#[test]
fn after_kill_9() {
    let nursery = nursery(&[]);
    nursery.signal(Signal::KILL);
    nursery.expect_nothing();
}

#[test]
fn after_an_end_in_order() {
    let mut nursery = nursery(&[]);
    drop(nursery.supervisor.stdin.take());
    nursery.expect_nothing();
}

#[test]
fn after_a_panic() {
    let mut nursery = nursery(&["--panic"]);
    drop(nursery.supervisor.stdin.take());
    nursery.expect_nothing();
}

#[test]
fn after_children_that_were_stopped() {
    let nursery = nursery(&[]);
    // A stopped process answers no signal but KILL.
    for id in &nursery.ready.processes[..2] {
        kill_process(pid(*id), Signal::STOP).expect("it runs");
    }
    nursery.signal(Signal::KILL);
    nursery.expect_nothing();
}

#[test]
fn after_the_binary_was_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("linkspan");
    // By another process: were it open for writing here, a child of another test could still hold
    // it when it is to be executed (ETXTBSY).
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_linkspan"))
        .arg(&program)
        .status();
    assert!(copied.expect("copied").success());
    let mut nursery = nursery_of(&program, &["--unlink"]);
    assert!(!program.exists());
    drop(nursery.supervisor.stdin.take());
    nursery.expect_nothing();
}
