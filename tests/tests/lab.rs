//! The system in network namespaces, with faults in the router between them.
//! Needs root, `ip` and `nft`; `./test` runs these with `--ignored` where it can.

use std::process::Stdio;

use linkspan_tests::lab::{Fault, Lab, Side};

fn reaches(lab: &Lab, from: Side, to: Side) -> bool {
    lab.command(from, "bash")
        .args(["-c", &format!("echo >/dev/tcp/{}/9", to.address())])
        .stderr(Stdio::piped())
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("refused"))
}

#[test]
#[ignore = "needs root and network namespaces"]
fn the_router_swallows_what_it_is_told_to() {
    let lab = Lab::new().expect("a lab");
    assert!(
        reaches(&lab, Side::East, Side::West),
        "refused by the other machine: the path works"
    );
    lab.inject(Fault::Cut).expect("a fault");
    let mut blocked = lab
        .command(Side::East, "timeout")
        .args([
            "0.3",
            "bash",
            "-c",
            &format!("echo >/dev/tcp/{}/9", Side::West.address()),
        ])
        .stderr(Stdio::null())
        .spawn()
        .expect("bash");
    assert!(!blocked.wait().expect("it ends").success());
    assert!(
        lab.swallowed().expect("a counter") > 0,
        "the fault was seen to strike"
    );
    lab.heal().expect("healed");
    assert!(reaches(&lab, Side::West, Side::East));
}
