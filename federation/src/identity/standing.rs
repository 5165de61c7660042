//! By what right a proxy is here: its certificate, and the join token for which that was issued.

use std::{net::IpAddr, sync::Arc};

use linkspan_core::workloads::Registration;
use linkspan_trust::SpiffeId;
use tokio::sync::watch;
use tonic::Status;

use super::{
    Issuer,
    tokens::{Binding, TokenId},
};
use crate::listener::Caller;

/// One proxy's right; looked at again whenever a token is revoked.
pub(crate) struct Standing {
    issuer: Arc<Issuer>,
    identity: SpiffeId,
    remote: IpAddr,
    token: TokenId,
}

impl Standing {
    pub(crate) fn of(issuer: Arc<Issuer>, caller: &Caller) -> Result<Self, Status> {
        let identity = caller.authenticated()?.clone();
        let token = issuer.token_of(caller).ok_or_else(|| {
            Status::permission_denied(format!(
                "this certificate of `{identity}` does not say by which token it was issued; \
                 restart the process, so that it joins anew"
            ))
        })?;
        let this = Self {
            identity,
            remote: caller.remote.ip().to_canonical(),
            token,
            issuer,
        };
        this.check()?;
        Ok(this)
    }

    /// Follows revocations.
    pub(crate) fn revocations(&self) -> watch::Receiver<u64> {
        self.issuer.tokens.revocations()
    }

    /// What the token binds, while it stands.
    pub(crate) fn check(&self) -> Result<Binding, Status> {
        let identity = &self.identity;
        self.issuer.binding(&self.token).ok_or_else(|| {
            Status::permission_denied(format!(
                "the join token of this certificate of `{identity}` was revoked; \
                 make another with `linkspan token create`, and start with that"
            ))
        })
    }

    /// Whether a workload may register so.
    pub(crate) fn allows(&self, registration: &Registration) -> Result<(), Status> {
        let binding = self.check()?;
        if let Some(uid) = &binding.uid
            && *uid != registration.uid
        {
            return Err(Status::permission_denied(format!(
                "the workload's uid is `{}`, but its token was given to the pod with the uid \
                 `{uid}`; configure that one",
                registration.uid
            )));
        }
        if !binding.labels.is_empty() && registration.labels != binding.labels {
            return Err(Status::permission_denied(format!(
                "the workload's labels are {:?}, but its join token binds {:?}; configure exactly \
                 these, or make a token for others (`linkspan token create --label`)",
                registration.labels, binding.labels
            )));
        }
        let address = registration.address.ip().to_canonical();
        if !binding.any_address && !is_its_own(self.remote, address) {
            return Err(Status::permission_denied(format!(
                "the workload's address is {address}, but it calls from {}; register that, or make \
                 its join token with `linkspan token create --any-address`",
                self.remote
            )));
        }
        Ok(())
    }
}

/// Whether a workload that calls from `remote` may say that it is at `address`, so that it draws
/// nobody's traffic to others. On loopback everything is one machine.
fn is_its_own(remote: IpAddr, address: IpAddr) -> bool {
    remote == address || remote.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_where_it_calls_from() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(is_its_own(ip("10.0.0.7"), ip("10.0.0.7")));
        assert!(is_its_own(ip("127.0.0.1"), ip("10.0.0.7")));
        for other in ["10.0.0.8", "127.0.0.1", "::1"] {
            assert!(!is_its_own(ip("10.0.0.7"), ip(other)), "{other}");
        }
    }
}
