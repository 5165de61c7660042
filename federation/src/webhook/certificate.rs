//! The webhook's certificate: of our own authority, for the name by which the API server asks.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_runtime::process::chain;
use linkspan_trust::{HostCertificate, IssueError, MaterialError};
use rustls::ServerConfig;
use tokio::{sync::watch, time::sleep};

use crate::identity::Authority;

/// The API server asks for the Service by this name.
const NAME: &str = "linkspan-federation.linkspan-system.svc";
/// Wall clocks are set and machines sleep: look again instead of trusting one long wait.
const CLOCK_CHECK: Duration = Duration::from_secs(600);
/// Pause after our own authority could not issue.
const RETRY: Duration = Duration::from_secs(10);
const ALPN: &[&[u8]] = &[b"http/1.1"];

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoCertificate {
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Tls(#[from] MaterialError),
}

/// Makes the certificates.
#[derive(Clone)]
pub(crate) struct Certificates {
    pub(crate) authority: Arc<Authority>,
    pub(crate) lifetime: Duration,
}

impl Certificates {
    fn make(&self) -> Result<(HostCertificate, Arc<ServerConfig>), NoCertificate> {
        let authority = self.authority.current();
        let certificate = authority.issue_host(NAME, self.lifetime, SystemTime::now())?;
        let config = Arc::new(certificate.server_config(ALPN)?);
        Ok((certificate, config))
    }
}

/// Keeps `configs` what is to be shown now: a new certificate at half of each one's life. Ends when
/// nobody listens any more.
pub(crate) async fn keep_certificate(
    certificates: Certificates,
    configs: watch::Sender<Option<Arc<ServerConfig>>>,
) {
    let mut due = SystemTime::UNIX_EPOCH;
    while !configs.is_closed() {
        let mut wait = due.duration_since(SystemTime::now()).unwrap_or_default();
        if wait.is_zero() {
            match certificates.make() {
                Ok((certificate, config)) => {
                    configs.send_replace(Some(config));
                    due = certificate.renew_at();
                    continue;
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(
                        error,
                        "no new certificate for the webhook; the former one stays"
                    );
                    wait = RETRY;
                }
            }
        }
        tokio::select! {
            () = configs.closed() => return,
            () = sleep(wait.min(CLOCK_CHECK)) => {}
        }
    }
}
