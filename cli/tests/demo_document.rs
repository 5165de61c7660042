//! `linkspan demo -o json` prints one document also when the tour cannot begin.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Processes are there within milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn demo() -> Command {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_linkspan"));
    demo.args(["demo", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    demo
}

/// The document of a demo that has failed.
fn document(demo: Child) -> Value {
    let output = demo.wait_with_output().expect("it ended");
    assert_eq!(output.status.code(), Some(1));
    let document: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    assert_eq!(document["ok"], false);
    document
}

#[test]
fn where_nothing_can_be_written() {
    let demo = demo().env("TMPDIR", "/nonexistent").spawn();
    let document = document(demo.expect("started"));
    let error = document["error"].as_str().expect("an error");
    assert!(error.contains("private directory"), "{error}");
}

#[test]
fn where_a_part_dies_before_the_first_step() {
    let demo = demo().spawn().expect("started");
    let federation = wait_for_child(demo.id(), "federation");
    kill_process(federation, Signal::KILL).expect("it runs");
    let document = document(demo);
    let error = document["error"].as_str().expect("an error");
    assert!(error.contains("federation ended by itself"), "{error}");
    assert_eq!(document["steps"], Value::Array(Vec::new()));
}

/// A process border leaves no event to wait for: the process table is looked at.
fn wait_for_child(parent: u32, part: &str) -> Pid {
    let begun = Instant::now();
    loop {
        let processes = fs::read_dir("/proc").expect("a process table");
        let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        if let Some(found) = { ids }.find(|id| is_child(*id, parent, part)) {
            return Pid::from_raw(found).expect("a process id");
        }
        assert!(begun.elapsed() < PATIENCE, "no {part} was started");
        std::thread::yield_now();
    }
}

fn is_child(id: i32, parent: u32, part: &str) -> bool {
    let read = |file: &str| fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
    let status = read("status");
    let ours = status.lines().any(|line| {
        line.strip_prefix("PPid:")
            .is_some_and(|value| value.trim() == parent.to_string())
    });
    ours && read("cmdline").split('\0').any(|word| word == part)
}
