//! Steps before the appliance runs: the programs, the model, the sources. They know no appliance.

use super::show::Show;
use super::{Options, Places};
use crate::corpus;
use crate::harness::build::{self, Programs};
use crate::harness::{files, model};
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Texts taken as samples from each real file.
const SAMPLES_EACH: usize = 20;
/// Length of a sample in bytes.
const SAMPLE_BYTES: usize = 40;

/// What will be taken in.
pub(super) struct Sources {
    /// Source files in their order.
    pub files: Vec<PathBuf>,
    /// Roster of names; the real collections have none.
    pub roster: Option<PathBuf>,
    /// Texts that stand in the files and must stand nowhere else.
    pub secrets: Vec<String>,
}

pub(super) fn programs(show: &Show) -> anyhow::Result<Programs> {
    let step = show.step("Build the appliance");
    let programs = build::programs(&mut |line| step.note(line.trim()))?.clone();
    step.done("empathd, empathd-engine, empathctl");
    Ok(programs)
}

pub(super) fn model(show: &Show) -> anyhow::Result<()> {
    let step = show.step("Fetch the base model");
    let path = model::reference(&mut |what| step.note(what))?;
    let mb = fs::metadata(&path)?.len() / 1_000_000;
    step.done(&format!("{}, {mb} MB, SHA-256 as expected", model::FILE_NAME));
    Ok(())
}

pub(super) fn sources(options: &Options, places: &Places, show: &Show) -> anyhow::Result<Sources> {
    match &options.data {
        Some(folder) => real(folder, show),
        None => synthetic(places, options.seed, show),
    }
}

fn synthetic(places: &Places, seed: u64, show: &Show) -> anyhow::Result<Sources> {
    let step = show.step("Write the synthetic corpus");
    let truth = corpus::write(&places.corpus, seed)?;
    let bad: u64 = truth.bad.values().sum();
    let secrets: BTreeSet<String> = truth.canaries.iter().chain(&truth.sentences).cloned().collect();
    step.done(&format!(
        "{} records in {} files, {bad} of them bad, {} identifiers planted",
        truth.records,
        truth.files.len(),
        truth.canaries.len()
    ));
    Ok(Sources { files: truth.files, roster: Some(truth.roster), secrets: secrets.into_iter().collect() })
}

fn real(folder: &Path, show: &Show) -> anyhow::Result<Sources> {
    let step = show.step("Find the real collections");
    let files: Vec<PathBuf> = files::regular_files(folder)?.into_iter().filter(|path| belongs(path)).collect();
    ensure!(!files.is_empty(), "no collection under {}", folder.display());
    let mut secrets = BTreeSet::new();
    for file in &files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        secrets.extend(samples(&bytes));
    }
    step.done(&format!("{} files, {} passages to search for afterwards", files.len(), secrets.len()));
    Ok(Sources { files, roster: None, secrets: secrets.into_iter().collect() })
}

/// Whether a path is a file of one of the four collections.
fn belongs(path: &Path) -> bool {
    let name = |path: Option<&Path>| {
        path.and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default().to_owned()
    };
    let (file, parent) = (name(Some(path)), name(path.parent()));
    let above = name(path.parent().and_then(Path::parent));
    match (above.as_str(), parent.as_str()) {
        (_, "annomi") => file == "AnnoMI-simple.csv",
        (_, "counsel-chat") => file.ends_with(".csv"),
        (_, "diasafety") => file == "train.json",
        ("primock57", "vtt") => file.ends_with(".vtt"),
        ("primock57", "srt") => file.ends_with(".srt"),
        _ => false,
    }
}

/// Passages of plain words, spread over the file.
fn samples(bytes: &[u8]) -> Vec<String> {
    let plain = |byte: &u8| byte.is_ascii_alphabetic() || b" ,'".contains(byte);
    let runs: Vec<&[u8]> = bytes.split(|byte| !plain(byte)).filter(|run| run.len() >= SAMPLE_BYTES).collect();
    let every = (runs.len() / SAMPLES_EACH).max(1);
    let text = |run: &&[u8]| String::from_utf8_lossy(&run[..SAMPLE_BYTES]).into_owned();
    runs.iter().step_by(every).take(SAMPLES_EACH).map(text).collect()
}
