//! Opaque calls to the workload.

use crate::{
    forward::bytes::{Duplex, RelayLimits, relay},
    report::{ConnectionReport, Outcome},
};

use super::{Caller, Inbound};

impl Inbound {
    /// Relays one opaque connection; whatever goes wrong resets it.
    pub(super) async fn tcp<IO: Duplex>(&self, mut io: IO, caller: Caller) {
        let mut access = self.access(&caller);
        access.destination = Some(self.own_id());
        let traffic = &self.inner.traffic;
        let handles = self.on_path(&caller, |path| traffic.connections(path));
        let report = ConnectionReport::open(access, handles);
        let distance = self.inner.application.distance();
        let mut app = match distance.connect(caller.app).await {
            Ok(app) => app,
            Err(error) => {
                io.reset();
                return report.fail(Outcome::Failed, &error);
            }
        };
        let counters = report.counters();
        match relay(&mut io, &mut app, RelayLimits::default(), &counters).await {
            Ok(_) => report.end(Outcome::Ok),
            Err(error) => report.fail(Outcome::Reset, &error),
        }
    }
}
