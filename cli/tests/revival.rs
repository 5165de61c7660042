//! What somebody else killed is started again as it was, where nobody follows its output.

use std::{path::PathBuf, time::Duration};

use linkspan::demo::supervisor::{Spec, Supervisor};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{sync::mpsc, time::timeout};

/// Everything here takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn app() -> [&'static str; 5] {
    [
        "app",
        "grpc-echo",
        "--listen",
        "127.0.0.1:0",
        "--instance=1",
    ]
}

fn ids(supervisor: &Supervisor) -> Vec<u32> {
    supervisor.processes()
}

#[tokio::test]
async fn a_killed_process_runs_again_and_one_that_is_followed_does_not() {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_linkspan"));
    let (mut supervisor, mut ends) = Supervisor::with_program(program).await.unwrap();
    supervisor.spawn(&Spec::new("alone", app())).unwrap();
    let (lines, _followed) = mpsc::channel(1);
    let mut followed = Spec::new("followed", app());
    followed.lines = Some(lines);
    supervisor.spawn(&followed).unwrap();
    assert!(supervisor.revive("alone").is_err(), "it runs");
    assert!(supervisor.revive("nobody").is_err(), "never started");

    let before = ids(&supervisor);
    // The reaper comes last.
    for id in &before[..2] {
        let pid = Pid::from_raw(i32::try_from(*id).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        timeout(PATIENCE, ends.recv()).await.unwrap().unwrap();
    }
    timeout(PATIENCE, async {
        while supervisor.is_running("alone") || supervisor.is_running("followed") {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(supervisor.revive("alone").unwrap());
    assert!(!supervisor.revive("followed").unwrap());
    assert!(supervisor.is_running("alone") && !supervisor.is_running("followed"));
    assert!(!before[..2].contains(&ids(&supervisor)[0]));
    supervisor.stop().await.unwrap();
}
