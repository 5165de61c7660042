//! Where a request goes.

mod ids;

pub use ids::{ClusterId, ClusterLabel, DnsLabel, EndpointId, IdError, ServiceKey};
