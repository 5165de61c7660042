//! Federation's own certificate, and the bundles that it trusts.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_runtime::{process::chain, telemetry::IntGauge};
use linkspan_trust::{
    BundleError, BundleSet, Grant, IssueError, MaterialReader, MaterialWriter, SpiffeId,
    TrustDomain, material,
};
use tokio::sync::watch;

use super::Authority;

/// Pause before another try when our own authority could not issue.
const RETRY: Duration = Duration::from_secs(10);
/// Wall clocks are set and machines sleep: look again instead of trusting one long wait.
const CLOCK_CHECK: Duration = Duration::from_secs(600);

/// Why federation has no certificate of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstError {
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// Makes federation's own certificates.
#[derive(Clone)]
pub(crate) struct Credentials {
    authority: Arc<Authority>,
    grant: Grant,
}

impl Credentials {
    pub(crate) fn new(authority: Arc<Authority>, domain: &TrustDomain, lifetime: Duration) -> Self {
        Self {
            authority,
            grant: Grant {
                id: SpiffeId::federation(domain),
                lifetime,
            },
        }
    }

    /// The first certificate, trusting the own domain only.
    pub(crate) fn first(&self) -> Result<(MaterialWriter, MaterialReader), FirstError> {
        let svid = self
            .authority
            .current()
            .issue_svid(&self.grant, SystemTime::now())?;
        let mut bundles = BundleSet::new();
        bundles.insert(
            self.grant.id.trust_domain().clone(),
            self.authority.bundle(),
        )?;
        Ok(material(svid, bundles))
    }
}

/// Renews the certificate at half its life and follows `bundles`; ends when they end.
pub(crate) async fn keep_fresh(
    credentials: Credentials,
    mut writer: MaterialWriter,
    reader: MaterialReader,
    mut bundles: watch::Receiver<BundleSet>,
    expiry: IntGauge,
) {
    let jitter: f64 = rand::random();
    loop {
        expiry.set(expires_at(&reader));
        let wait = until_renewal(&reader, jitter).min(CLOCK_CHECK);
        tokio::select! {
            changed = bundles.changed() => {
                if changed.is_err() {
                    return;
                }
                let newest = bundles.borrow_and_update().clone();
                writer.set_bundles(newest);
            }
            () = tokio::time::sleep(wait) => {
                if until_renewal(&reader, jitter).is_zero() && !renew(&credentials, &mut writer) {
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// Whether a new certificate is in use.
fn renew(credentials: &Credentials, writer: &mut MaterialWriter) -> bool {
    match credentials
        .authority
        .current()
        .issue_svid(&credentials.grant, SystemTime::now())
    {
        Ok(svid) => match writer.set_svid(svid) {
            Ok(()) => true,
            Err(error) => failed(&error),
        },
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> bool {
    tracing::error!(
        error = chain(error),
        "cannot renew federation's own certificate"
    );
    false
}

/// Unix seconds.
fn expires_at(reader: &MaterialReader) -> i64 {
    let at = reader.current().svid().not_after();
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn until_renewal(reader: &MaterialReader, jitter: f64) -> Duration {
    let at = reader.current().svid().renew_at(jitter);
    at.duration_since(SystemTime::now())
        .unwrap_or(Duration::ZERO)
}
