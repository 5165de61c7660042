//! Exit codes, once: what scripts may rely on.

use std::process::ExitCode;

/// Exit codes as text; a macro, so that `concat!` can take it.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0    done
  1    it was tried and failed
  2    the command line or a configuration file is wrong
  3    no federation answers at the operator socket
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
            Self::Interrupted => 130,
        }
    }

    fn cause(&self) -> Option<&anyhow::Error> {
        match self {
            Self::Failed(error) | Self::Usage(error) | Self::Unreachable(error) => Some(error),
            Self::Reported | Self::Interrupted => None,
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
    if let Some(error) = failure.cause() {
        eprintln!("linkspan: {error:#}");
    }
    ExitCode::from(failure.code())
}
