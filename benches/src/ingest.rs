//! The claim of the ingestion pipeline: how fast source bytes become reviewed records. Reading files is not counted.

use crate::measure::{Figures, best_of_s, rounded};
use anyhow::Context;
use empathd_ingest::{Policy, Roster, detect, read, validate};
use empathd_tests::corpus;
use std::fs;

/// Options of the claim.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seed of the corpus
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs, of which the best counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

struct Source {
    bytes: Vec<u8>,
    extension: String,
}

#[derive(Default)]
struct Counts {
    found: u64,
    accepted: u64,
    phi_spans: u64,
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<Figures> {
    let dir = tempfile::tempdir()?;
    let truth = corpus::write(dir.path(), options.seed)?;
    let names = fs::read_to_string(&truth.roster)?;
    let roster = Roster::new(names.lines().map(str::to_owned)).context("the roster of the corpus")?;
    let mut sources = Vec::new();
    for path in &truth.files {
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        sources.push(Source { bytes: fs::read(path)?, extension });
    }
    let mut counts = Counts::default();
    let seconds = best_of_s(options.runs, || {
        counts = Counts::default();
        sources.iter().try_for_each(|source| take_in(source, &roster, &mut counts))
    })?;
    let bytes: usize = sources.iter().map(|source| source.bytes.len()).sum();
    let mut figures = Figures::new();
    figures.insert("records".into(), counts.found.into());
    figures.insert("accepted".into(), counts.accepted.into());
    figures.insert("phi_spans".into(), counts.phi_spans.into());
    figures.insert("records_s".into(), rounded(counts.found as f64 / seconds));
    figures.insert("mb_s".into(), rounded(bytes as f64 / 1e6 / seconds));
    Ok(figures)
}

fn take_in(source: &Source, roster: &Roster, counts: &mut Counts) -> anyhow::Result<()> {
    let policy = Policy::default();
    let profile = detect(&source.bytes, Some(&source.extension))?;
    let drafts = read(&source.bytes, profile)?;
    counts.found += drafts.found() as u64;
    for draft in drafts.drafts {
        let assessed = draft.assess(roster);
        if let Ok(valid) = validate(assessed, &policy) {
            counts.accepted += 1;
            counts.phi_spans += valid.record().phi.len() as u64;
        }
    }
    Ok(())
}
