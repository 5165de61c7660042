//! The first message on the control stream, in each direction: who is this, and what for?

use std::sync::Arc;

use linkspan_api::v1;
use linkspan_routing::ClusterId;

use super::plan::Purpose;

/// Encoded, a hello may be this long.
pub const MAX_HELLO: usize = 4096;
/// A replica's name is a host name or the like.
const MAX_REPLICA: usize = 253;
/// More ready replicas than this are not believed.
const MAX_READY: u32 = 1_000;

/// What a side says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its cluster; must be the one whose gateway identity the handshake proved.
    pub cluster: ClusterId,
    /// Its stable name.
    pub replica: Arc<str>,
    /// Ready replicas of its gateway, itself included; at least 1.
    pub ready: u32,
    /// What the dialler wants the connection for; the other side repeats it.
    pub purpose: Purpose,
}

/// Why a hello is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadHello {
    /// Not a cluster id.
    #[error("the hello's cluster is not a cluster id")]
    Cluster,
    /// Not a name.
    #[error("the hello's replica is empty, longer than {MAX_REPLICA} bytes or not printable ASCII")]
    Replica,
    /// Neither data nor sync.
    #[error("the hello's purpose {0} is not known; is the peer's version newer by more than one?")]
    Purpose(i32),
}

impl Hello {
    /// Checks what a peer sent.
    ///
    /// # Errors
    /// If a field cannot be used. Unknown fields and capabilities are ignored.
    pub fn parse(hello: &v1::TunnelHello) -> Result<Self, BadHello> {
        Ok(Self {
            cluster: hello.cluster.parse().map_err(|_| BadHello::Cluster)?,
            replica: replica(&hello.replica)?,
            ready: ready(hello.ready_replicas),
            purpose: purpose(hello.purpose)?,
        })
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> v1::TunnelHello {
        let purpose = match self.purpose {
            Purpose::Data => v1::TunnelPurpose::Data,
            Purpose::Sync => v1::TunnelPurpose::Sync,
        };
        v1::TunnelHello {
            cluster: self.cluster.to_string(),
            replica: self.replica.to_string(),
            ready_replicas: self.ready,
            purpose: purpose.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: Vec::new(),
        }
    }
}

/// A count of ready replicas as far as it is believed.
#[must_use]
pub fn ready(told: u32) -> u32 {
    told.clamp(1, MAX_READY)
}

fn replica(name: &str) -> Result<Arc<str>, BadHello> {
    let fits = (1..=MAX_REPLICA).contains(&name.len());
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
    if fits && printable {
        Ok(name.into())
    } else {
        Err(BadHello::Replica)
    }
}

fn purpose(number: i32) -> Result<Purpose, BadHello> {
    match v1::TunnelPurpose::try_from(number) {
        Ok(v1::TunnelPurpose::Data) => Ok(Purpose::Data),
        Ok(v1::TunnelPurpose::Sync) => Ok(Purpose::Sync),
        Err(_) => Err(BadHello::Purpose(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn hello() -> Hello {
        let cluster = "west".parse().unwrap();
        Hello {
            cluster,
            replica: "gateway-1".into(),
            ready: 2,
            purpose: Purpose::Sync,
        }
    }

    #[test]
    fn comes_back_as_it_was_sent() {
        assert_eq!(Hello::parse(&hello().message()), Ok(hello()));
    }

    #[test]
    fn odd_values_are_refused() {
        let refused = |change: fn(&mut v1::TunnelHello)| {
            let mut message = hello().message();
            change(&mut message);
            Hello::parse(&message).unwrap_err()
        };
        assert_eq!(refused(|hello| hello.cluster.clear()), BadHello::Cluster);
        assert_eq!(refused(|hello| hello.replica.clear()), BadHello::Replica);
        assert_eq!(
            refused(|hello| hello.replica = "x".repeat(254)),
            BadHello::Replica
        );
        assert_eq!(
            refused(|hello| hello.replica = "a\nb".into()),
            BadHello::Replica
        );
        assert_eq!(refused(|hello| hello.purpose = 7), BadHello::Purpose(7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = v1::TunnelHello::decode(bytes.as_slice()) {
                let _ = Hello::parse(&message);
            }
        }
    }
}
