//! Which federation is asked.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    ValueHint,
    builder::{NonEmptyStringValueParser, OsStringValueParser, TypedValueParser as _},
};

use super::{DEFAULT_STATE_DIR, Operator, SOCKET_NAME};
use crate::exit::Failure;

const SOCKET_VARIABLE: &str = "LINKSPAN_SOCKET";

/// Which federation to ask.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OperatorArgs {
    /// Operator socket of the federation to ask; else /var/lib/linkspan/operator.sock
    #[arg(long, value_name = "PATH", env = SOCKET_VARIABLE, value_parser = OsStringValueParser::new().try_map(socket), value_hint = ValueHint::FilePath)]
    pub socket: Option<OsString>,
    /// State directory of the federation to ask; goes before --socket
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Context of kubectl: asks the federation in that cluster, by `kubectl exec`; goes before both
    #[arg(long, value_name = "CONTEXT", value_parser = NonEmptyStringValueParser::new())]
    pub context: Option<String>,
}

/// An empty variable is how shells spell an unset one; an empty option is one that was forgotten
/// (`--socket "$SOCKET"`), and might lead to another federation than was meant.
fn socket(value: OsString) -> Result<OsString, &'static str> {
    let from_environment = std::env::var_os(SOCKET_VARIABLE).is_some_and(|set| set.is_empty());
    match value.is_empty() && !from_environment {
        true => Err("the path is empty"),
        false => Ok(value),
    }
}

impl OperatorArgs {
    /// Connects to the federation that these options name.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] if none answers there.
    pub async fn connect(&self) -> Result<Operator, Failure> {
        match &self.context {
            Some(context) => Operator::connect_in(context).await,
            None => Operator::connect(self.path()).await,
        }
    }

    /// The socket that these options name.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let socket = self.socket.as_ref().filter(|socket| !socket.is_empty());
        match (&self.state_dir, socket) {
            (Some(dir), _) => dir.join(SOCKET_NAME),
            (None, Some(socket)) => PathBuf::from(socket),
            (None, None) => PathBuf::from(DEFAULT_STATE_DIR).join(SOCKET_NAME),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_goes_before_a_socket() {
        let both = OperatorArgs {
            socket: Some("/a/b.sock".into()),
            state_dir: Some("/state".into()),
            context: None,
        };
        assert_eq!(both.path(), PathBuf::from("/state/operator.sock"));
        let socket = OperatorArgs {
            state_dir: None,
            ..both
        };
        assert_eq!(socket.path(), PathBuf::from("/a/b.sock"));
        let unset = OperatorArgs {
            socket: Some(OsString::new()),
            ..OperatorArgs::default()
        };
        for default in [OperatorArgs::default(), unset] {
            let default = default.path();
            assert_eq!(default, PathBuf::from("/var/lib/linkspan/operator.sock"));
        }
    }
}
