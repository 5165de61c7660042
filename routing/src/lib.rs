//! Where a request goes.
//!
//! Pure: no I/O, no clock and no random source of its own. Time and randomness are arguments,
//! so that sidecars, `explain` and simulations get the same answers from the same functions.
//!
//! The way of a decision, one file each:
//!
//! | step | file |
//! |---|---|
//! | what is known of it: ports, capacity, endpoints | `model`, `ids` |
//! | how near each cluster and locality is | `locality` |
//! | what an operator says instead | `policy`, `slot`, `groups` |
//! | who is available: outlier detection | `health`, `roster` |
//! | how much each priority takes; how traffic comes home | `priority`, `failback`, `undrain` |
//! | what may leave the own cluster | `allowance`, `draw` |
//! | which endpoint: subset, two choices by load | `pool`, `pick`, `load` |
//! | all of it as one value, and its use | `plan`, `balancer` |
//! | the same, telling why | `explain` |
//! | the same for somebody else, or without a cluster | `rehearsal` |
//! | may this caller reach this service | `authorize` |

mod allowance;
mod authorize;
mod balancer;
mod draw;
mod explain;
mod failback;
mod groups;
mod health;
mod ids;
mod load;
mod locality;
mod model;
mod pick;
mod plan;
mod policy;
mod pool;
mod priority;
mod rehearsal;
mod roster;
#[cfg(test)]
mod simulation;
mod slot;
#[cfg(test)]
mod testing;
mod undrain;

pub use authorize::{Audience, Verdict, authorize};
pub use balancer::{Balancer, NoEndpoint, Pick, PickReason, Try};
pub use explain::{Share, Why};
pub use health::{BASE_EJECTION, CONSECUTIVE_ERRORS, FORGET_EJECTIONS, Failure, MAX_EJECTION};
pub use ids::{ClusterId, ClusterLabel, DnsLabel, EndpointId, IdError, ServiceKey};
pub use locality::Rank;
pub use model::{
    AppProtocol, ClusterCapacity, Endpoint, EndpointKey, FailbackConfig, Locality, MAX_WEIGHT,
    Place, Service, ServicePort, UsablePeers, is_restart,
};
pub use pick::SUBSET;
pub use plan::Choice;
pub use policy::{
    Area, DEFAULT_OVERPROVISIONING, FailoverPolicy, LocalityWeight, MAX_ORDER, Named, TierMatch,
    Unlisted,
};
pub use priority::{OVERPROVISIONING, health, loads, panic_loads};
pub use rehearsal::{Moment, Rehearsal, rehearse};
