//! The checked-in code is what the `.proto` files say.
//! `LINKSPAN_REGENERATE=1 cargo test -p linkspan-api` writes it anew.

use std::{fs, path::Path};

#[test]
fn generated_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = [
        "common",
        "identity",
        "failover",
        "discovery",
        "sync",
        "tunnel",
        "operator",
        "join",
    ]
    .map(|name| format!("linkspan/v1/{name}.proto"));
    let descriptors =
        protox::compile(protos, [root.join("proto")]).expect("the .proto files compile");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .bytes(".")
        // They hold what must never be logged.
        .skip_debug([
            ".linkspan.v1.Invitation",
            ".linkspan.v1.InviteResponse",
            ".linkspan.v1.AcceptRequest",
        ])
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("code is generated");

    let checked_in = root.join("src/generated/linkspan.v1.rs");
    let fresh =
        fs::read_to_string(out.path().join("linkspan.v1.rs")).expect("one file per package");
    if std::env::var_os("LINKSPAN_REGENERATE").is_some() {
        fs::write(&checked_in, &fresh).expect("the checked-in file can be written");
    }
    let current = fs::read_to_string(&checked_in).unwrap_or_default();
    assert!(
        current == fresh,
        "src/generated/linkspan.v1.rs is stale: run LINKSPAN_REGENERATE=1 cargo test -p linkspan-api"
    );
}
