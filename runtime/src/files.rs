//! How many files this process may have open. Each connection is one, and shells, systemd and
//! container runtimes still start programs with room for 1,024, a caution for programs that use
//! `select(2)`: nothing here does.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// With fewer, a busy proxy soon refuses connections: one of each carried connection's two ends.
const FEW: u64 = 4096;

/// Raises the limit as far as this process may, and says in the log what it is. Where that is
/// refused, it stays as it was.
pub fn raise_limit() {
    let found = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: found.maximum,
        ..found
    };
    let limit = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => getrlimit(Resource::Nofile).current,
        Err(error) => {
            warn!(%error, "the limit of open files cannot be raised");
            found.current
        }
    };
    match limit {
        Some(few) if few < FEW => warn!(
            open_files = few,
            "few files may be open, and each connection is one; raise the hard limit (`ulimit -Hn`, \
             systemd's LimitNOFILE=)"
        ),
        Some(limit) => info!(open_files = limit, "limit of open files"),
        None => info!("no limit of open files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_it_may_be_at_most() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let lower = Rlimit {
            current: hard.map_or(Some(512), |hard| Some(hard.min(512))),
            maximum: hard,
        };
        setrlimit(Resource::Nofile, lower).unwrap();
        raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }
}
