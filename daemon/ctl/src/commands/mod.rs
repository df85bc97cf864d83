//! The verbs, one file per group: each asks the daemon, and shows what it answered. Nothing is decided here that the
//! daemon could decide.

mod adapter;
mod audit;
mod backup;
pub(crate) mod cert;
mod clients;
#[cfg(test)]
mod copies_tests;
mod dataset;
mod export;
#[cfg(test)]
mod export_tests;
#[cfg(test)]
pub(crate) mod fake;
mod import;
pub(crate) mod ingest;
mod keys;
mod store;
#[cfg(test)]
mod tests;
mod trail;
mod train;

use crate::cli::{Cli, Command};
use crate::error::CtlError;
use crate::session::Session;
use clap::CommandFactory;

/// Runs one command.
///
/// # Errors
/// [`CtlError`]; its exit code is the program's.
pub fn run(session: &mut Session<'_>, command: Command) -> Result<(), CtlError> {
    match command {
        Command::Status => store::status(session),
        Command::Init(args) => store::init(session, &args),
        Command::Unseal(args) => store::unseal(session, &args),
        Command::Seal => store::seal(session),
        Command::Cert(command) => cert::run(session, command),
        Command::Roster(command) => ingest::roster(session, command),
        Command::Ingest(args) => ingest::run(session, &args),
        Command::Dataset(command) => dataset::run(session, command),
        Command::Train(command) => train::run(session, command),
        Command::Adapter(command) => adapter::run(session, command),
        Command::Audit(command) => audit::run(session, command),
        Command::Keys(command) => keys::run(session, command),
        Command::Client(command) => clients::run(session, command),
        Command::Backup(command) => backup::run(session, command),
        Command::Doctor => keys::doctor(session),
        Command::Completions { shell } => completions(session, shell),
    }
}

fn completions(session: &mut Session<'_>, shell: clap_complete::Shell) -> Result<(), CtlError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "empathctl", &mut script);
    session.out.write_all(&script).map_err(CtlError::Output)
}
