//! Measured claims: `NAME --json FILE` measures one and writes a flat JSON object, `list` names them. Each claim has a
//! file of its own; this one only chooses and writes.
#![expect(clippy::disallowed_methods, reason = "benches read randomness and the environment")]

mod api;
mod inference;
mod ingest;
mod measure;
mod quality;
mod store;
mod train;
mod train_torture;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use measure::Figures;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures one claim.
#[derive(Debug, Parser)]
#[command(name = "empathd-benches", version)]
struct Cli {
    #[command(subcommand)]
    claim: Claim,
    /// Write the figures to this file as well
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The registry: every claim with what it measures.
#[derive(Debug, Subcommand)]
enum Claim {
    /// Name the claims
    List,
    /// Records a second from source bytes to reviewed records, on the synthetic corpus
    Ingest(ingest::Options),
    /// What sealing and auditing add to a plain database; opening after a kill; verifying the trail
    Store(store::Options),
    /// Tokens a second of training on random weights of the reference shape
    Train(train::Options),
    /// Loss of a mixture and of one LoRA of as many numbers on conversations of other people
    Quality(quality::Options),
    /// Kills of a training engine and windows on a machine slowed at random
    TrainTorture(train_torture::Options),
    /// How long callers wait over mutual TLS, and what becomes of them when too many come
    Api(api::Options),
    /// Tokens a second of reading prompts and of answering
    Inference(inference::Options),
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let figures: Figures = match &cli.claim {
        Claim::List => {
            for claim in Cli::command().get_subcommands().filter(|claim| claim.get_name() != "list") {
                println!("{:<12} {}", claim.get_name(), claim.get_about().unwrap_or_default());
            }
            return Ok(());
        }
        Claim::Ingest(options) => ingest::measure(options)?,
        Claim::Store(options) => store::measure(options)?,
        Claim::Train(options) => train::measure(options)?,
        Claim::Quality(options) => quality::measure(options, cli.json.as_deref())?,
        Claim::TrainTorture(options) => train_torture::measure(options)?,
        Claim::Api(options) => api::measure(options)?,
        Claim::Inference(options) => inference::measure(options)?,
    };
    let text = serde_json::to_string_pretty(&figures)?;
    println!("{text}");
    match &cli.json {
        Some(file) => std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display())),
        None => Ok(()),
    }
}
