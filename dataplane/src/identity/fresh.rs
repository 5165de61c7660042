//! When to renew, and which bundles to believe: the clock and the way to a new certificate are
//! parameters.

use std::{
    future::{Future, pending},
    sync::Arc,
    time::{Duration, SystemTime},
};

use linkspan_runtime::telemetry::ControlMetrics;
use linkspan_trust::{Bundle, BundleSet, MaterialReader, MaterialWriter, Svid, TrustDomain};
use tokio::{sync::watch, time::sleep};
use tracing::{error, info};

use super::{IdentityError, persist};
use crate::discover::Snapshot;

/// Between tries to renew: there is half a life left.
const RENEW_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The clock is looked at this often while waiting to renew, as it may be set, or the machine sleep.
const LOOK: Duration = Duration::from_secs(30);

/// Keeps material fresh; the clock and the way to a new certificate are parameters.
pub(super) struct Fresh<N> {
    pub(super) writer: MaterialWriter,
    pub(super) reader: MaterialReader,
    pub(super) own: TrustDomain,
    pub(super) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(super) metrics: ControlMetrics,
    pub(super) now: N,
}

impl<N: Fn() -> SystemTime> Fresh<N> {
    pub(super) async fn keep<F>(&mut self, renew: impl Fn() -> F)
    where
        F: Future<Output = Result<(Svid, Bundle), IdentityError>>,
    {
        // The caller may have waited for this snapshot, which then counts as seen.
        apply_bundles(
            &mut self.writer,
            &self.reader,
            &self.own,
            &mut self.snapshots,
        );
        loop {
            let due = self.due();
            let renewal = async {
                sleep_until(&self.now, due).await;
                persist("certificate renewal", RENEW_RETRY, || async {
                    let renewed = renew().await;
                    if renewed.is_err() {
                        self.metrics.renewals_failed.inc();
                    }
                    renewed
                })
                .await
            };
            let mut renewal = std::pin::pin!(renewal);
            // Bundles are applied while a renewal waits or runs.
            let (svid, bundle) = loop {
                tokio::select! {
                    renewed = &mut renewal => break renewed,
                    () = changed(&mut self.snapshots) => {
                        apply_bundles(&mut self.writer, &self.reader, &self.own, &mut self.snapshots);
                    }
                }
            };
            self.metrics.renewals_ok.inc();
            match self.writer.set_svid(svid) {
                Ok(()) => info!("certificate renewed"),
                // Checked before, so this is a bug; the next try is a half-life away from it.
                Err(error) => error!(%error, "renewed certificate refused"),
            }
            let newer = merged(
                self.reader.current().bundles(),
                &self.own,
                Some(&bundle),
                None,
            );
            set_if_changed(&mut self.writer, &self.reader, newer);
        }
    }

    /// When to renew the present certificate.
    fn due(&self) -> SystemTime {
        let material = self.reader.current();
        let expiry = material
            .svid()
            .not_after()
            .duration_since(SystemTime::UNIX_EPOCH);
        let seconds = expiry.map_or(0, |expiry| {
            i64::try_from(expiry.as_secs()).unwrap_or(i64::MAX)
        });
        self.metrics.certificate_expiry.set(seconds);
        material.svid().renew_at(rand::random())
    }
}

fn apply_bundles(
    writer: &mut MaterialWriter,
    reader: &MaterialReader,
    own: &TrustDomain,
    snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>,
) {
    let Some(snapshot) = snapshots.borrow_and_update().clone() else {
        return;
    };
    let newer = merged(
        reader.current().bundles(),
        own,
        None,
        Some(&snapshot.bundles),
    );
    set_if_changed(writer, reader, newer);
}

/// The bundles to use: discovery's word on linked domains is final, so that what is unlinked goes
/// and what an operator declares anew counts; federation itself keeps a peer from bringing back
/// older roots. Our own domain stays, and does not give way to an older bundle.
pub(super) fn merged(
    now: &BundleSet,
    own: &TrustDomain,
    issued: Option<&Bundle>,
    discovered: Option<&BundleSet>,
) -> BundleSet {
    let mut bundles = discovered.unwrap_or(now).clone();
    let candidates = [
        now.get(own),
        issued,
        discovered.and_then(|found| found.get(own)),
    ];
    if let Some(newest) = newest(candidates.into_iter().flatten()) {
        insert(&mut bundles, own, newest);
    }
    bundles
}

/// Every bundle here comes from a set, except an issued one, which was checked with its answer.
fn insert(bundles: &mut BundleSet, domain: &TrustDomain, bundle: &Bundle) {
    if let Err(error) = bundles.insert(domain.clone(), bundle.clone()) {
        error!(%domain, %error, "bundle refused");
    }
}

/// The bundle of the highest sequence; the last one among equals.
fn newest<'a>(bundles: impl Iterator<Item = &'a Bundle>) -> Option<&'a Bundle> {
    bundles.max_by_key(|bundle| bundle.sequence)
}

fn set_if_changed(writer: &mut MaterialWriter, reader: &MaterialReader, bundles: BundleSet) {
    if *reader.current().bundles() != bundles {
        writer.set_bundles(bundles);
    }
}

/// Sleeps until the wall clock says `due`.
async fn sleep_until(now: &impl Fn() -> SystemTime, due: SystemTime) {
    while let Ok(left) = due.duration_since(now()) {
        if left.is_zero() {
            return;
        }
        sleep(left.min(LOOK)).await;
    }
}

/// Waits for a new snapshot; for ever when there will be none.
async fn changed(snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>) {
    if snapshots.changed().await.is_err() {
        pending::<()>().await;
    }
}
