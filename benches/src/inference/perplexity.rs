//! What the packed way costs in accuracy: how much likelier the plain f32 way finds the same text. Windows of one length, read
//! in the pieces in which the engine reads, every token but the first of a window predicted from those before it.

use super::stage::{Stage, open};
use super::{left, number};
use crate::measure::{Figures, rounded};
use anyhow::{Context, ensure};
use empathd_model::infer::compute::{Compute, LOGIT_ROWS_MAX, LogitRows, SlotId, Span};
use empathd_proto::engine::{ComputePath, ServingSpec};
use empathd_tests::corpus;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Tokens of a window.
const WINDOW: usize = 512;
/// Windows that are read.
const WINDOWS: usize = 40;
/// The plain way stops here at the latest; both are then compared over what it has read.
const REFERENCE_TIME_MAX: Duration = Duration::from_secs(15 * 60);
/// Seed of the conversations.
const SEED: u64 = 1;
/// Documents of this repository.
const DOCUMENTS: [&str; 6] = [
    include_str!("../../../docs/ARCHITECTURE.md"),
    include_str!("../../../docs/FORMAT.md"),
    include_str!("../../../docs/INSTALL.md"),
    include_str!("../../../docs/API.md"),
    include_str!("../../../docs/METRICS.md"),
    include_str!("../../../README.md"),
];

/// A text and how unlikely the packed way finds each window of it.
pub(super) struct Likelihood {
    windows: Vec<Vec<u32>>,
    /// Sum of the negative logarithms of a window.
    packed: Vec<f64>,
}

impl Likelihood {
    /// Reads the text of a file, or the built-in one, the packed way.
    pub(super) fn of(stage: &mut Stage, file: Option<&Path>) -> anyhow::Result<Self> {
        let text = match file {
            Some(path) => String::from_utf8_lossy(&fs::read(path).context("cannot read the text")?).into_owned(),
            None => built_in()?,
        };
        let tokens = stage.tokens(&text)?;
        let windows: Vec<Vec<u32>> = tokens.chunks_exact(WINDOW).take(WINDOWS).map(<[u32]>::to_vec).collect();
        ensure!(windows.len() == WINDOWS, "the text has only {} tokens of {}", tokens.len(), WINDOW * WINDOWS);
        let mut compute = stage.model.compute()?;
        let packed = surprises(&mut compute, &windows, Duration::MAX, "packed")?;
        Ok(Self { windows, packed })
    }

    /// Reads it the plain way; tells the ratio of the perplexities.
    pub(super) fn over_reference(&self, path: &Path, figures: &mut Figures) -> anyhow::Result<()> {
        let serving = ServingSpec { path: ComputePath::Reference, ..ServingSpec::default() };
        let mut compute = open(path, &serving, 1)?.compute()?;
        let plain = surprises(&mut compute, &self.windows, REFERENCE_TIME_MAX, "f32")?;
        let predicted = (plain.len() * (WINDOW - 1)) as f64;
        let mean = |sums: &[f64]| sums[..plain.len()].iter().sum::<f64>() / predicted;
        figures.insert("perplexity".into(), rounded(mean(&self.packed).exp()));
        figures.insert("perplexity_f32".into(), rounded(mean(&plain).exp()));
        let ratio = (mean(&self.packed) - mean(&plain)).exp();
        figures.insert("perplexity_ratio".into(), ((ratio * 1e5).round() / 1e5).into());
        figures.insert("perplexity_tokens".into(), predicted.into());
        ensure!(number(figures, "perplexity_ratio").is_some(), "a logit is not a number");
        Ok(())
    }
}

/// Documents, then conversations.
fn built_in() -> anyhow::Result<String> {
    let dir = tempfile::tempdir()?;
    corpus::write(dir.path(), SEED)?;
    let mut files: Vec<_> =
        fs::read_dir(dir.path())?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    let mut text = DOCUMENTS.concat();
    for file in files.iter().filter(|file| file.is_file()) {
        text += &String::from_utf8_lossy(&fs::read(file)?);
    }
    Ok(text)
}

/// How unlikely each window is, as far as the time allows.
fn surprises(compute: &mut Compute, windows: &[Vec<u32>], time_max: Duration, how: &str) -> anyhow::Result<Vec<f64>> {
    let (began, mut sums) = (Instant::now(), Vec::with_capacity(windows.len()));
    let terminal = std::io::stderr().is_terminal();
    for window in windows {
        sums.push(surprise(compute, window)?);
        let (done, elapsed) = (sums.len(), began.elapsed());
        if terminal || done.is_multiple_of(10) {
            let bar = "=".repeat(done * 30 / windows.len());
            let seconds = left(elapsed, done, windows.len()).as_secs();
            let end = if terminal { "\r" } else { "\n" };
            eprint!("perplexity, {how:<6} [{bar:<30}] {done:>3} of {}  about {seconds} s left   {end}", windows.len());
            std::io::stderr().flush()?;
        }
        if elapsed > time_max {
            eprintln!("\nthe time is up: compared over {done} of {} windows", windows.len());
            break;
        }
    }
    eprintln!();
    Ok(sums)
}

/// Sum of the negative logarithms of the probabilities of all tokens of a window but the first.
fn surprise(compute: &mut Compute, window: &[u32]) -> anyhow::Result<f64> {
    let (slot, vocab) = (SlotId(0), compute.config().vocab);
    compute.wipe(slot);
    let mut sum = 0.0;
    for (ids, at) in window.chunks(LOGIT_ROWS_MAX).zip((0..).step_by(LOGIT_ROWS_MAX)) {
        let span = Span { slot, ids, adapter: None, logits: LogitRows::All };
        let logits = compute.pass(&[span], &mut [])?;
        for (row, next) in logits.chunks_exact(vocab).zip(&window[at + 1..]) {
            sum += negative_logarithm(row, *next as usize);
        }
    }
    compute.wipe(slot);
    Ok(sum)
}

/// `-ln softmax(row)[id]`, in double precision.
fn negative_logarithm(row: &[f32], id: usize) -> f64 {
    let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|logit| (f64::from(*logit) - top).exp()).sum();
    top + sum.ln() - f64::from(row[id])
}
