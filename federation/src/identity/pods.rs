//! Pods as callers: a projected service account token proves the pod that it was given to.
//!
//! Such a token is asked about anew each time, so that no certificate follows the pod's end; none
//! is ever renewed by another certificate.

use std::time::Duration;

use linkspan_core::backend::{AttestError, Attested, Attestor as _};
use linkspan_runtime::process::chain;
use tokio::{sync::Semaphore, time::timeout};
use tonic::Status;

use super::tokens::TokenId;
use crate::home::AnyAttestor;

/// Questions to the API server at a time: what strangers ask must not drown what it is for.
const AT_ONCE: usize = 16;
/// No answer takes longer; a proxy waits for its certificate for twice as long.
const PATIENCE: Duration = Duration::from_secs(5);
/// A certificate of a pod says that it was issued for this and the pod's UID.
const PREFIX: &str = "pod:";
/// Longest UID that is taken: they are UUIDs.
const MAX_UID: usize = 64;

/// Asks whose tokens are.
pub(crate) struct Pods {
    attestor: AnyAttestor,
    turns: Semaphore,
}

impl Pods {
    pub(crate) fn new(attestor: AnyAttestor) -> Self {
        Self {
            attestor,
            turns: Semaphore::new(AT_ONCE),
        }
    }

    /// The pod that holds this token.
    pub(super) async fn attest(&self, token: &str) -> Result<(TokenId, Attested), Status> {
        let asked = async {
            // Never closed.
            let _turn = self.turns.acquire().await;
            self.attestor.attest(token).await
        };
        let answer = timeout(PATIENCE, asked).await;
        match answer {
            Err(_) => Err(unavailable()),
            Ok(Err(AttestError::Unavailable(source))) => {
                tracing::warn!(
                    error = chain(&*source),
                    "tokens of pods cannot be checked now"
                );
                Err(unavailable())
            }
            Ok(Err(AttestError::Refused)) => Err(refused()),
            Ok(Ok(attested)) => {
                let id = attested.uid.as_deref().and_then(id_of);
                Ok((id.ok_or_else(refused)?, attested))
            }
        }
    }
}

/// The UID of the pod for whose token a certificate was issued.
pub(super) fn uid(token: &TokenId) -> Option<&str> {
    token.strip_prefix(PREFIX)
}

fn id_of(uid: &str) -> Option<TokenId> {
    let plain = uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    (plain && (1..=MAX_UID).contains(&uid.len())).then(|| format!("{PREFIX}{uid}"))
}

fn refused() -> Status {
    Status::unauthenticated(
        "the token is neither a join token nor that of a living pod of this cluster for the \
         audience `linkspan:<cluster-id>`, or is not valid any more",
    )
}

fn unavailable() -> Status {
    Status::unavailable("whose token this is cannot be asked now; try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_noted_only_where_it_can_be_read_back() {
        let id = id_of("2f1c-AB").unwrap();
        assert_eq!(uid(&id), Some("2f1c-AB"));
        for odd in ["", "a b", "a\nb", "a:b", &"x".repeat(65)] {
            assert_eq!(id_of(odd), None, "{odd}");
        }
        // Join tokens are named by hexadecimal digits.
        assert_eq!(uid(&"0123456789ab".to_owned()), None);
    }
}
