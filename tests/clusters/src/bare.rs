//! An API server without nodes: for tests of what only reads and writes objects. It needs no
//! rights, no namespaces, and about five seconds.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::{
    Home, Programs,
    cluster::Cluster,
    control_plane::{self, Kind},
};

/// The cluster's name in the folder and in the kubeconfig.
pub const NAME: &str = "api";
/// Out of the range from which the kernel takes ports for connections.
const PORT: u16 = 16443;

/// Starts etcd and an API server, and waits until it is ready. Its administrator's kubeconfig is
/// `api/kubeconfig` in the folder; [`crate::down`] stops it.
///
/// # Errors
/// If one runs there already, or does not get ready.
pub fn up(home: &Home, programs: &Programs) -> Result<()> {
    ensure!(
        home.running()?.is_empty(),
        "clusters run in {} already; choose another folder, or stop them with `clusters down --dir {0}`",
        home.path().display()
    );
    home.create()?;
    let cluster = cluster(home);
    // What a killed one left behind is not this one's past.
    let folder = home.cluster(NAME);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    control_plane::prepare(home, &cluster)?;
    control_plane::launch(home, &cluster, programs, Kind::Api, None)?;
    control_plane::wait_ready(home, &cluster, programs)
}

pub(crate) fn cluster(home: &Home) -> Cluster {
    Cluster {
        name: NAME.to_owned(),
        region: NAME.to_owned(),
        zone: NAME.to_owned(),
        address: home.loopback(),
        port: PORT,
    }
}
