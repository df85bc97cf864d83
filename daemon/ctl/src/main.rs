//! The program `empathctl`: reads the command line, the environment and the clock, and hands them to the library. It
//! refuses to know what any command does.
#![expect(clippy::disallowed_methods, reason = "a program's edge: clock and environment enter here")]

use clap::Parser;
use empathctl::cli::Cli;
use empathctl::error::CtlError;
use empathctl::session::{Edge, Session};
use empathctl::{checkpoint, commands};
use std::io::{IsTerminal, stderr, stdout};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misread(&error),
    };
    let edge = Edge {
        now_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64),
        zone: jiff::tz::TimeZone::system(),
        state_dir: checkpoint::state_dir(std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")),
        terminal: stderr().is_terminal(),
    };
    let (mut out, mut notes) = (stdout().lock(), stderr());
    let mut session = Session::new(&cli.global, edge, &mut out, &mut notes);
    match commands::run(&mut session, cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(session.complain(&error)),
    }
}

/// Help, version, or a command line that cannot be read; the last as JSON when `--json` is on it.
fn misread(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || !std::env::args().any(|word| word == "--json") {
        error.exit();
    }
    let body = CtlError::usage(error).body();
    eprintln!("{}", serde_json::to_string_pretty(&body).unwrap_or_default());
    ExitCode::from(body.exit_code)
}
