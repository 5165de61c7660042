//! Services that stand for imports where clients without a sidecar look for them: their names.

use aws_lc_rs::digest::{SHA256, digest};

use crate::model::ServiceKey;

/// Bytes of the hash in a name: enough that no exporter finds two services of one name.
const HASH: usize = 16;

/// The name of the Service that stands for the import of `service`, in the same namespace. It is
/// the same in every cluster and after every restart.
#[must_use]
pub fn derived_name(service: &ServiceKey) -> String {
    let hash = digest(&SHA256, service.to_string().as_bytes());
    let hash = hash.as_ref()[..HASH].iter();
    let hash: String = hash.map(|byte| format!("{byte:02x}")).collect();
    format!("linkspan-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_a_name_of_its_own_that_a_service_may_have() {
        let name = |key: &str| derived_name(&key.parse().expect("a key"));
        assert_eq!(name("shop/web"), name("shop/web"));
        assert_ne!(name("shop/web"), name("shop/api"));
        assert!(ServiceKey::new("shop", &name("shop/web")).is_ok());
    }
}
