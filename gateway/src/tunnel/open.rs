//! The first message of a data stream, and its answer.

use bytes::Bytes;
use linkspan_api::v1::{self, StreamCode};
use linkspan_dataplane::frame;
use linkspan_dataplane::target::TargetName;
use linkspan_routing::EndpointId;

/// A trace context longer than this is not one.
const MAX_TRACE: usize = 128;
/// More relays than one are never allowed.
const MAX_HOPS: u32 = 1;

/// What the opener of a stream wants, checked for form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Where to; the inner ClientHello must say the same.
    pub target: TargetName,
    /// Relays still allowed, 0 or 1.
    pub hop_limit: u32,
    /// W3C traceparent; empty if none.
    pub trace: String,
}

/// Why a stream opening is none; all of them are `BAD_REQUEST` to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOpening {
    /// Not a target name.
    #[error("the target of the stream opening is not a target name")]
    Target,
    /// Another one than the target names.
    #[error("the endpoint of the stream opening is not the one that its target names")]
    Endpoint,
    /// Too many.
    #[error("the stream opening allows more relays than {MAX_HOPS}")]
    Hops,
    /// Too long, or not text.
    #[error("the trace context of the stream opening is longer than {MAX_TRACE} bytes")]
    Trace,
}

impl Opening {
    /// For a target that a local caller asked for. Gateways do not relay to one another, so that
    /// no relays are allowed.
    #[must_use]
    pub fn new(target: TargetName, trace: Option<String>) -> Self {
        Self {
            target,
            hop_limit: 0,
            trace: trace.unwrap_or_default(),
        }
    }

    /// Checks what a peer sent.
    ///
    /// # Errors
    /// If a field cannot be used.
    pub fn parse(open: v1::StreamOpen) -> Result<Self, BadOpening> {
        let target: TargetName = open.target.parse().map_err(|_| BadOpening::Target)?;
        let named = endpoint(&target).map_or("", EndpointId::as_str);
        if open.endpoint != named {
            return Err(BadOpening::Endpoint);
        }
        if open.hop_limit > MAX_HOPS {
            return Err(BadOpening::Hops);
        }
        if open.trace.len() > MAX_TRACE {
            return Err(BadOpening::Trace);
        }
        Ok(Self {
            target,
            hop_limit: open.hop_limit,
            trace: open.trace,
        })
    }

    /// The framed message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        frame::encode(&v1::StreamOpen {
            target: self.target.to_string(),
            endpoint: endpoint(&self.target)
                .map(ToString::to_string)
                .unwrap_or_default(),
            hop_limit: self.hop_limit,
            trace: self.trace.clone(),
        })
    }
}

fn endpoint(target: &TargetName) -> Option<&EndpointId> {
    match target {
        TargetName::Service(target) => target.endpoint.as_ref(),
        TargetName::Federation(_) => None,
    }
}

/// The framed answer. It tells nothing but the code: the rule is for our own operator.
#[must_use]
pub fn answer(code: StreamCode) -> Bytes {
    frame::encode(&v1::StreamResult {
        code: code.into(),
        message: String::new(),
    })
}

/// The code of an answer; one that we do not know is a refusal that may be tried elsewhere.
#[must_use]
pub fn code(result: &v1::StreamResult) -> StreamCode {
    match StreamCode::try_from(result.code) {
        Ok(StreamCode::Unspecified) | Err(_) => StreamCode::Busy,
        Ok(code) => code,
    }
}

/// A word for logs and metrics.
#[must_use]
pub fn label(code: StreamCode) -> &'static str {
    match code {
        StreamCode::Unspecified => "unspecified",
        StreamCode::Ok => "ok",
        StreamCode::BadRequest => "bad_request",
        StreamCode::NotExported => "not_exported",
        StreamCode::EndpointGone => "endpoint_gone",
        StreamCode::ConnectFailed => "connect_failed",
        StreamCode::NoTunnel => "no_tunnel",
        StreamCode::Busy => "busy",
        StreamCode::NoSuchPort => "no_such_port",
        StreamCode::Draining => "draining",
        StreamCode::Denied => "denied",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    const ENDPOINT: &str = "abcdefghijklmnopqrstuvwxyz";

    fn open() -> v1::StreamOpen {
        v1::StreamOpen {
            target: format!("{ENDPOINT}.80.checkout.shop.svc.west.linkspan.internal"),
            endpoint: ENDPOINT.to_owned(),
            hop_limit: 0,
            trace: String::new(),
        }
    }

    #[test]
    fn comes_back_as_it_was_sent() {
        let opening = Opening::parse(open()).unwrap();
        let (message, _) = frame::decode::<v1::StreamOpen>(&opening.encode(), 4096)
            .unwrap()
            .unwrap();
        assert_eq!(Opening::parse(message), Ok(opening));
    }

    #[test]
    fn odd_values_are_refused() {
        let refused = |change: fn(&mut v1::StreamOpen)| {
            let mut message = open();
            change(&mut message);
            Opening::parse(message).unwrap_err()
        };
        assert_eq!(
            refused(|open| open.target = "checkout".into()),
            BadOpening::Target
        );
        assert_eq!(refused(|open| open.endpoint.clear()), BadOpening::Endpoint);
        assert_eq!(refused(|open| open.hop_limit = 2), BadOpening::Hops);
        assert_eq!(
            refused(|open| open.trace = "x".repeat(129)),
            BadOpening::Trace
        );
    }

    #[test]
    fn unknown_codes_may_be_tried_elsewhere() {
        let unknown = v1::StreamResult {
            code: 99,
            message: String::new(),
        };
        assert_eq!(code(&unknown), StreamCode::Busy);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = v1::StreamOpen::decode(bytes.as_slice()) {
                let _ = Opening::parse(message);
            }
        }
    }
}
