//! Exit codes, once: what scripts may rely on.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

/// Exit codes as text; a macro, so that `concat!` can take it.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0    done
  1    it was tried and failed
  2    the command line or a configuration file is wrong
  3    no federation answers at the operator socket
  4    it was waited for, and did not come in time
  10   the invitation is none, or was cut short
  11   the invitation has expired, or the inviter no longer knows it
  12   the invitation has been used already
  13   the invitation is meant for another cluster
  14   the peer cannot be reached
  15   the two clusters do not fit: ids, clusterset, trust domains or versions
  16   the clocks of the two clusters are too far apart
  17   whoever answered is not the inviter, or meddled with the connection
  18   what the other side said cannot be used
  19   it cannot be done now; the same invitation may be tried again
  130  interrupted"
    };
}

/// The end of a `--help`: examples (a test parses them, too) and exit codes.
macro_rules! help {
    ($($example:literal),+ $(,)?) => {
        concat!(
            "Examples:\n",
            $("  ", $example, "\n",)+
            "\n",
            $crate::exit::exit_codes!(),
        )
    };
}
pub(crate) use {exit_codes, help};

/// Why a verb did not succeed; each kind has its own exit code.
#[derive(Debug)]
pub enum Failure {
    /// It was tried and failed: 1.
    Failed(anyhow::Error),
    /// The command line or a configuration file is wrong: 2.
    Usage(anyhow::Error),
    /// No federation answers: 3.
    Unreachable(anyhow::Error),
    /// It did not come in time: 4.
    TimedOut(anyhow::Error),
    /// The clusters were not linked; each class of reasons has its own code: 10 to 19.
    NotLinked(u8, anyhow::Error),
    /// It failed, and the verb has already said how: 1.
    Reported,
    /// Stopped by Ctrl-C or SIGTERM: 130.
    Interrupted,
}

impl Failure {
    /// The process's exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Reported => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::TimedOut(_) => 4,
            Self::NotLinked(code, _) => *code,
            Self::Interrupted => 130,
        }
    }

    fn cause(&self) -> Option<&anyhow::Error> {
        match self {
            Self::Failed(error)
            | Self::Usage(error)
            | Self::Unreachable(error)
            | Self::TimedOut(error)
            | Self::NotLinked(_, error) => Some(error),
            Self::Reported | Self::Interrupted => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause() {
            Some(error) => write!(f, "{error:#}"),
            None if matches!(self, Self::Interrupted) => f.write_str("interrupted"),
            None => f.write_str("failed"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Prints the chain of causes once, on standard error, and tells the exit code.
#[must_use]
pub fn report(failure: &Failure) -> ExitCode {
    ExitCode::from(report_to(&mut io::stderr(), failure))
}

/// Scripts rely on the exit code also where nobody can be told more: standard error may be
/// closed, and `eprintln!` would panic.
fn report_to(out: &mut impl Write, failure: &Failure) -> u8 {
    if failure.cause().is_some() {
        writeln!(out, "linkspan: {failure}").ok();
    }
    failure.code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_listening_does_not_change_the_exit_code() {
        // A full, fixed buffer refuses every byte.
        let mut closed: &mut [u8] = &mut [];
        let failure = Failure::Unreachable(anyhow::anyhow!("gone"));
        assert_eq!(report_to(&mut closed, &failure), 3);
    }
}
