//! The demo: the appliance's main job from sources to a streamed answer, then the proof that nothing leaked and nothing
//! can be altered unnoticed. This file tells the story; each step is a room beside it. It measures and judges, and
//! reaches into no program.

mod appliance_steps;
mod promises;
mod proof_steps;
mod report;
mod show;
mod source_steps;
mod summary;

use crate::harness::appliance::Launch;
use crate::harness::build::{self, Programs};
use anyhow::{Context, bail};
use report::Report;
use show::Show;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// What can be chosen.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "demo", version, about = "Takes a real appliance through its main job and measures it")]
pub struct Options {
    /// Take in the real collections found under this folder instead of the synthetic corpus
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Optimiser steps of the training
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub steps: u32,
    /// Seed of corpus, split and training
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Where the demo keeps what it makes.
#[derive(Debug, Clone)]
struct Places {
    root: PathBuf,
    state: PathBuf,
    passphrase: PathBuf,
    certs: PathBuf,
    corpus: PathBuf,
    tampered: PathBuf,
    report: PathBuf,
}

impl Places {
    fn under(root: PathBuf) -> Self {
        let at = |name: &str| root.join(name);
        Self {
            state: at("state"),
            passphrase: at("passphrase"),
            certs: at("certs"),
            corpus: at("corpus"),
            tampered: at("tampered"),
            report: at("report.json"),
            root,
        }
    }

    /// Empties the folder of an earlier run, unless its appliance still runs.
    fn clear(&self) -> anyhow::Result<()> {
        if UnixStream::connect(self.state.join("admin.sock")).is_ok() {
            bail!("the appliance of an earlier demo still runs in {}; stop it first", self.state.display());
        }
        if self.root.exists() {
            fs::remove_dir_all(&self.root).with_context(|| format!("cannot empty {}", self.root.display()))?;
        }
        fs::create_dir_all(&self.root).with_context(|| format!("cannot make {}", self.root.display()))
    }
}

/// Runs the demo. Success means that every promise held.
pub fn run(options: &Options) -> ExitCode {
    let began = Instant::now();
    let show = Show::new();
    match tell(options, &show, began) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            show.line(&format!("\nThe demo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn tell(options: &Options, show: &Show, began: Instant) -> anyhow::Result<()> {
    let places = Places::under(build::target_folder()?.join("demo"));
    places.clear()?;
    let mut report = Report::new(options);
    let outcome = story(options, &places, show, &mut report);
    if let Err(error) = &outcome {
        report.broken_promises.push(format!("a step failed: {error:#}"));
    }
    report.broken_promises.extend(promises::broken(&report));
    report.seconds = began.elapsed().as_secs_f64();
    fs::write(&places.report, serde_json::to_vec_pretty(&report)?)
        .with_context(|| format!("cannot write {}", places.report.display()))?;
    show.line(&summary::text(&report, &places, outcome.ok().as_ref()));
    if report.broken_promises.is_empty() {
        return Ok(());
    }
    bail!("{} of its promises did not hold; see {}", report.broken_promises.len(), places.report.display())
}

/// Every step in order. What was measured before a failing step stays in the report.
fn story(options: &Options, places: &Places, show: &Show, report: &mut Report) -> anyhow::Result<Programs> {
    let programs = source_steps::programs(show)?;
    source_steps::model(show)?;
    let sources = source_steps::sources(options, places, show)?;
    write_passphrase(&places.passphrase)?;

    let launch = Launch::in_folder(&programs, &places.root);
    let appliance = appliance_steps::start(&launch, places, show)?;
    let ehr = appliance_steps::enroll(&appliance, places, show)?;
    report.ingest = Some(appliance_steps::ingest(&appliance, &sources, show)?);
    appliance_steps::cut(&appliance, options, show)?;
    let base = appliance_steps::answer(&appliance, &ehr, "Answer of the base model", show)?;
    let adapter = appliance_steps::train(&appliance, options, show)?;
    report.train = Some(report::Train::of(&adapter));
    report.adapter = Some(report::Adapter::of(&adapter));
    let adapted = appliance_steps::answer(&appliance, &ehr, "Answer with the trained experts", show)?;
    let refused = appliance_steps::strangers(&appliance, show)?;
    report.serve = Some(report::Serve::of(&base, &adapted, refused));
    let records = appliance_steps::records(&appliance)?;
    let verdict = appliance_steps::audit(&appliance, show)?;
    appliance_steps::stop(appliance, show)?;

    let found = proof_steps::search(&launch, &sources, show)?;
    report.store = Some(report::Store { records, plaintext_canaries_found: found });
    let intact = proof_steps::verify(&programs, places, show)?;
    let tamper_detected = proof_steps::tamper(&programs, places, show)?;
    report.audit =
        Some(report::Audit { entries: verdict.entries, verified: verdict.verified && intact, tamper_detected });
    Ok(programs)
}

/// A random passphrase that only this user can read.
fn write_passphrase(path: &Path) -> anyhow::Result<()> {
    let mut bytes = [0u8; 24];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, format!("{text}\n").as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}
