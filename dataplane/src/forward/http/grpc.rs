//! What a gRPC answer says of the call, which its HTTP status does not: that is 200 whatever comes
//! of it. (gRPC over HTTP/2, "Responses".)

use http::{HeaderMap, HeaderName, header};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// `UNKNOWN`, `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`, `INTERNAL`, `UNAVAILABLE`: what an HTTP
/// server says by a 5xx. The others are about the call.
const FAILURES: [u32; 5] = [2, 4, 8, 13, 14];
/// What a status is that cannot be read.
const UNKNOWN: u32 = 2;

/// Whether a head is that of a gRPC call, or of the answer to one.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Whether the server has failed, by the status in trailers, or in a head with which the answer
/// ends. None: there is no status.
#[must_use]
pub fn has_failed(fields: &HeaderMap) -> Option<bool> {
    let status = fields.get(STATUS)?.to_str().ok();
    let status = status.and_then(|status| status.parse().ok());
    Some(FAILURES.contains(&status.unwrap_or(UNKNOWN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_server_are_told_from_those_of_the_call() {
        let failed = |status: &str| {
            let mut fields = HeaderMap::new();
            fields.insert(STATUS, status.parse().unwrap());
            has_failed(&fields)
        };
        for status in ["2", "4", "8", "13", "14", "what", "-1"] {
            assert_eq!(failed(status), Some(true), "{status}");
        }
        for status in ["0", "1", "3", "5", "7", "12", "16"] {
            assert_eq!(failed(status), Some(false), "{status}");
        }
        assert_eq!(has_failed(&HeaderMap::new()), None);
    }
}
