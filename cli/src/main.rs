//! `linkspan`: the one binary. Everything is in the library, where tests can call it.

fn main() -> std::process::ExitCode {
    linkspan::main()
}
