//! One file per verb; each has its `Args` and one function that does it.

pub mod bundle;
pub mod capture;
pub mod completion;
mod declared;
pub mod demo;
pub mod explain;
pub mod export;
pub mod failover;
pub mod inject;
pub mod install;
pub mod link;
pub mod man;
pub mod relay;
pub mod run;
mod service_name;
pub mod services;
pub mod status;
pub mod token;
pub mod unexport;
pub mod uninstall;
pub mod version;

use crate::{apps, args::Verb, exit::Failure};

/// Does what the command line says.
///
/// # Errors
/// Whatever the verb could not do; the kind decides the exit code.
pub fn dispatch(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Run(args) => run::run(&args),
        Verb::Demo(args) => demo::demo(args),
        Verb::Status(args) => status::status(&args),
        Verb::Services(args) => services::services(&args),
        Verb::Export(args) => export::export(&args),
        Verb::Unexport(args) => unexport::unexport(&args),
        Verb::Failover(args) => failover::failover(args),
        Verb::Explain(args) => explain::explain(&args),
        Verb::Link(args) => link::link(args),
        Verb::Unlink(args) => link::unlink(&args),
        Verb::Capture(args) => capture::capture(&args),
        Verb::Inject(args) => inject::inject(&args),
        Verb::Token(args) => token::token(args),
        Verb::Bundle(args) => bundle::bundle(&args),
        Verb::Install(args) => install::install(&args),
        Verb::Uninstall(args) => uninstall::uninstall(&args),
        Verb::Version(args) => version::version(&args),
        Verb::Completion(args) => completion::completion(&args),
        Verb::Man(args) => man::man(&args),
        Verb::Relay(args) => relay::relay(&args),
        Verb::App(args) => apps::run(args),
    }
}
