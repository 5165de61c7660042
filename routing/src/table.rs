//! The route table: what a proxy knows about destinations, as one immutable value.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ids::ServiceKey;
use crate::model::{Service, ServicePort, UsablePeers};

/// All services that a proxy uses and the peers that it may use, of one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteTable {
    services: HashMap<ServiceKey, Arc<Service>>,
    peers: UsablePeers,
}

/// Where a request to a service's port goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: ServicePort,
}

/// Why there is no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No cluster of the clusterset is known to offer it.
    #[error("service `{0}` is not known; export it in a linked cluster or check its name")]
    UnknownService(ServiceKey),
    /// The service has other ports.
    #[error("service `{key}` has no port {port}; it has {known:?}")]
    UnknownPort {
        /// The service.
        key: ServiceKey,
        /// The port asked for.
        port: u16,
        /// The ports it has.
        known: Vec<u16>,
    },
}

impl RouteTable {
    /// A table of these services and peers; of two services with one key the last counts.
    pub fn new(services: impl IntoIterator<Item = Arc<Service>>, peers: UsablePeers) -> Self {
        let services = services
            .into_iter()
            .map(|service| (service.key.clone(), service))
            .collect();
        Self { services, peers }
    }

    /// The service of this key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Which peers may be used.
    pub fn peers(&self) -> &UsablePeers {
        &self.peers
    }

    /// Where a request to this port of this service goes.
    ///
    /// # Errors
    /// If the service or its port is not known.
    pub fn route(&self, key: &ServiceKey, port: u16) -> Result<Route, NoRoute> {
        let service = self
            .service(key)
            .ok_or_else(|| NoRoute::UnknownService(key.clone()))?
            .clone();
        match service
            .ports
            .iter()
            .find(|known| known.port == port)
            .cloned()
        {
            Some(port) => Ok(Route { service, port }),
            None => {
                let known = service.ports.iter().map(|known| known.port).collect();
                Err(NoRoute::UnknownPort {
                    key: key.clone(),
                    port,
                    known,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    #[test]
    fn routes_by_service_and_port_and_says_what_is_missing() {
        let service = Arc::new(Fixture::new().service());
        let table = RouteTable::new([service.clone()], UsablePeers::new());
        assert_eq!(table.route(&service.key, 80).unwrap().port.port, 80);
        let missing = table.route(&service.key, 81).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "service `shop/checkout` has no port 81; it has [80]"
        );
        let unknown = ServiceKey::new("shop", "other").unwrap();
        assert_eq!(
            table.route(&unknown, 80),
            Err(NoRoute::UnknownService(unknown))
        );
    }
}
