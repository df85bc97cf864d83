//! The program `empathd`: its command line, and nothing else.

use anyhow::Context;
use clap::{Parser, Subcommand};
use empathd::clock::{OsEntropy, SystemClock};
use empathd::config::{Config, Overrides, SYSTEM_FILE};
use empathd::engine::supervisor::Whereabouts;
use empathd::restore;
use empathd::serve::{self, Manner};
use empathd::telemetry::{self, Sink};
use empathd::verify;
use empathd_store::KdfCost;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Name of the engine's program, which lies beside this one.
const ENGINE: &str = "empathd-engine";
/// What is logged.
const LOG_FILTER: &str = "info";

/// The appliance of a mental-health clinic: records, training, answers, audit.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    trial: Trial,
}

/// A trial without installation.
#[derive(clap::Args)]
struct Trial {
    /// Run from a checkout: starts the engine itself, logs to the console, prints one JSON line when ready.
    #[arg(long, requires = "state")]
    dev: bool,
    /// State folder; the sockets are in it too.
    #[arg(long, value_name = "DIR", requires = "dev")]
    state: Option<PathBuf>,
    /// Address of the API.
    #[arg(long, value_name = "ADDR", requires = "dev", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Folder with base models, searched before the user's cache.
    #[arg(long, value_name = "DIR", requires = "dev")]
    models: Option<PathBuf>,
    /// File name of the base model, or its full path.
    #[arg(long, value_name = "FILE", requires = "dev")]
    model: Option<PathBuf>,
    /// Further settings.
    #[arg(long, value_name = "FILE", requires = "dev")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run as a service, as systemd starts it.
    Serve {
        /// Configuration.
        #[arg(long, value_name = "FILE", default_value = SYSTEM_FILE)]
        config: PathBuf,
    },
    /// Check the whole state of a stopped appliance; ends with 7 when anything was altered.
    Verify {
        /// State folder.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// File with the passphrase on its first line.
        #[arg(long, value_name = "FILE")]
        passphrase_file: PathBuf,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Make a store in a fresh state folder out of backups, the newest key file and two recovery shares.
    Restore(RestoreArgs),
    /// Check the configuration and say what is wrong with it.
    CheckConfig {
        /// Configuration.
        #[arg(long, value_name = "FILE", default_value = SYSTEM_FILE)]
        config: PathBuf,
    },
}

/// What a store is restored from.
#[derive(clap::Args)]
struct RestoreArgs {
    /// State folder of the new store; made when it is missing.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// A whole backup, then those that go on from it, in order.
    #[arg(long, required = true, value_name = "FILE")]
    backup: Vec<PathBuf>,
    /// The newest key file.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// File with recovery shares, parted by empty lines; repeat it for shares in several files.
    #[arg(long, required = true, value_name = "FILE")]
    shares_file: Vec<PathBuf>,
    /// File with the new store's passphrase on its first line.
    #[arg(long, value_name = "FILE")]
    passphrase_file: PathBuf,
    /// Make it cheap to try a passphrase, as in trials.
    #[arg(long)]
    dev: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Exit code when a state does not fit, as empathctl has it for integrity.
const EXIT_ALTERED: u8 = 7;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Serve { config }) => serve(&config),
        Some(Command::Verify { state, passphrase_file, json }) => check_state(&state, &passphrase_file, json),
        Some(Command::Restore(args)) => restored(&args),
        Some(Command::CheckConfig { config }) => check_config(&config),
        None => dev(cli.trial),
    };
    done.unwrap_or_else(|error| {
        eprintln!("empathd: {error:#}");
        ExitCode::FAILURE
    })
}

fn serve(file: &std::path::Path) -> anyhow::Result<ExitCode> {
    let config = Config::read(file, Overrides::default())?;
    forbid_core_dumps()?;
    telemetry::init(Sink::Journal, LOG_FILTER)?;
    let engine = Whereabouts::Service(config.engine.socket.clone());
    run(config, Manner { engine, cost: KdfCost::Server, announce: false })
}

/// A crash writes no memory to the disk, and no other process of this user may look into this one. A trial stays open for
/// whoever wants to look.
fn forbid_core_dumps() -> anyhow::Result<()> {
    // The unit sets the limit of core files to nothing; its filter would not let this program do it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("core dumps cannot be forbidden")
}

fn dev(trial: Trial) -> anyhow::Result<ExitCode> {
    let Trial { state, listen, models, model, config, .. } = trial;
    let overrides = Overrides { state, listen: Some(listen), models, model };
    let config = match config {
        Some(file) => Config::read(&file, overrides)?,
        None => Config::parse("", overrides)?,
    };
    telemetry::init(Sink::Console, LOG_FILTER)?;
    let own = std::env::current_exe().context("the path of this program is not known")?;
    let (socket, threads) = (config.engine.socket.clone(), config.engine.threads);
    let engine = Whereabouts::Child { program: own.with_file_name(ENGINE), socket, threads };
    run(config, Manner { engine, cost: KdfCost::Light, announce: true })
}

fn run(config: Config, manner: Manner) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(serve::run(config, manner));
    // A thread that still blocks, such as one that verifies, does not hold up the stop: it changes nothing any more.
    runtime.shutdown_background();
    done.map(|()| ExitCode::SUCCESS)
}

fn check_state(state: &std::path::Path, passphrase_file: &std::path::Path, json: bool) -> anyhow::Result<ExitCode> {
    let verdict = verify::run(state, passphrase_file, json, Arc::new(OsEntropy))?;
    println!("{}", verdict.text);
    Ok(if verdict.clean { ExitCode::SUCCESS } else { ExitCode::from(EXIT_ALTERED) })
}

fn restored(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let cost = if args.dev { KdfCost::Light } else { KdfCost::Server };
    let from = restore::From {
        state: &args.state,
        backups: &args.backup,
        key_file: &args.key_file,
        shares_files: &args.shares_file,
        passphrase_file: &args.passphrase_file,
    };
    println!("{}", restore::run(&from, cost, args.json, &SystemClock::start(), Arc::new(OsEntropy))?);
    Ok(ExitCode::SUCCESS)
}

fn check_config(file: &std::path::Path) -> anyhow::Result<ExitCode> {
    Config::read(file, Overrides::default())?;
    println!("{} is valid.", file.display());
    Ok(ExitCode::SUCCESS)
}
