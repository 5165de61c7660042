//! The webhook by which the API server has sidecars put into pods as they are made.
//!
//! ```text
//! API server ─► TLS (our authority, a DNS name) ─► bounds ─► review (pure) ─► answer
//! ```
//!
//! Anybody who reaches the port may ask: an answer follows from the question, and holds nothing but
//! what every pod with a sidecar shows. So it has bounds, and no secrets.

mod certificate;
mod review;
mod serve;
#[cfg(test)]
mod tests;

use linkspan_core::inject::Capture;

pub(crate) use certificate::{Certificates, keep_certificate};
pub(crate) use serve::{Webhook, serve};

/// Where pods are reviewed whose calls may be captured.
pub const PATH: &str = "/inject";
/// Where those are whose namespace forbids that.
pub const PATH_WITHOUT_CAPTURE: &str = "/inject-without-capture";
/// Name of its MutatingWebhookConfiguration.
pub const CONFIGURATION: &str = linkspan_kube::WEBHOOK;

/// What holds for the pods that are reviewed at that path.
fn capture_at(path: &str) -> Option<Capture> {
    match path {
        PATH => Some(Capture::Yes),
        PATH_WITHOUT_CAPTURE => Some(Capture::Forbidden),
        _ => None,
    }
}
