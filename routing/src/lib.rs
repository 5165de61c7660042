//! Where a request goes.
#![expect(dead_code, reason = "parts of the balancer, which comes next")]

mod authorize;
mod failback;
mod health;
mod ids;
mod load;
mod locality;
mod model;
mod priority;
mod table;
#[cfg(test)]
mod testing;

pub use authorize::{Verdict, authorize};
pub use health::{BASE_EJECTION, CONSECUTIVE_ERRORS, FORGET_EJECTIONS, Failure, MAX_EJECTION};
pub use ids::{ClusterId, ClusterLabel, DnsLabel, EndpointId, IdError, ServiceKey};
pub use locality::Rank;
pub use model::{
    AppProtocol, ClusterCapacity, Endpoint, FailbackConfig, Locality, MAX_WEIGHT, Place, Service,
    ServicePort, UsablePeers,
};
pub use priority::{OVERPROVISIONING, health, loads, panic_loads};
pub use table::{NoRoute, Route, RouteTable};
