//! Where a request goes.

mod authorize;
mod ids;
mod model;
mod table;
#[cfg(test)]
mod testing;

pub use authorize::{Verdict, authorize};
pub use ids::{ClusterId, ClusterLabel, DnsLabel, EndpointId, IdError, ServiceKey};
pub use model::{
    AppProtocol, ClusterCapacity, Endpoint, FailbackConfig, Locality, MAX_WEIGHT, Place, Service,
    ServicePort, UsablePeers,
};
pub use table::{NoRoute, Route, RouteTable};
