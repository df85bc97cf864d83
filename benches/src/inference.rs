//! The claim of generation: tokens a second of reading a prompt and of answering at a depth, through the backbone alone.

use crate::measure::{Figures, best_of_s, peak_rss_mib, rounded};
use anyhow::Context;
use candle_core::Device;
use empathd_model::backbone::{Backbone, KvCache};
use empathd_model::gguf;
use empathd_model::infer::{Model, PREFILL_TOKENS};
use empathd_proto::engine::ServingSpec;
use empathd_tests::harness::model;
use std::path::PathBuf;
use std::time::Instant;

/// Lengths of prompts, and depths at which answers are measured.
const DEPTHS: [usize; 3] = [32, 128, 512];
/// Tokens answered at each depth.
const ANSWER_TOKENS: usize = 24;
/// Runs, of which the best counts.
const RUNS: u32 = 3;

/// Options of the claim.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Model file; the cached reference model when absent
    #[arg(long, value_name = "FILE.gguf")]
    model: Option<PathBuf>,
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<Figures> {
    let path = match &options.model {
        Some(path) => path.clone(),
        None => model::reference(&mut |what| eprintln!("{what}"))?,
    };
    let began = Instant::now();
    let sha256 = gguf::open(&path)?.sha256()?;
    let model = Model::open(&path, sha256, &Device::Cpu, &ServingSpec::default(), 2)
        .with_context(|| format!("cannot load {}", path.display()))?;
    let mut figures = Figures::new();
    figures.insert("load_s".into(), rounded(began.elapsed().as_secs_f64()));
    let backbone = &model.backbone()?;
    for depth in DEPTHS.into_iter().filter(|depth| depth + ANSWER_TOKENS <= backbone.config().context) {
        let ids = ids(depth, backbone.config().vocab);
        let seconds = best_of_s(RUNS, || prefill(backbone, &ids).map(drop))?;
        figures.insert(format!("prefill_{depth}"), rounded(depth as f64 / seconds));
        let mut cache = prefill(backbone, &ids)?;
        let began = Instant::now();
        for id in &ids[..ANSWER_TOKENS] {
            backbone.forward(&[*id], &mut cache, None, None)?;
        }
        figures.insert(format!("decode_{depth}"), rounded(ANSWER_TOKENS as f64 / began.elapsed().as_secs_f64()));
    }
    figures.insert("rss_mib".into(), peak_rss_mib().into());
    Ok(figures)
}

/// Ids spread over the vocabulary.
fn ids(count: usize, vocab: usize) -> Vec<u32> {
    (0..count as u64).map(|n| u32::try_from(n.wrapping_mul(2_654_435_761) % vocab as u64).unwrap_or(0)).collect()
}

/// Reads a prompt in the pieces in which the engine reads it.
fn prefill(backbone: &Backbone, ids: &[u32]) -> candle_core::Result<KvCache> {
    let mut cache = KvCache::new(backbone.config(), backbone.device());
    for piece in ids.chunks(PREFILL_TOKENS) {
        backbone.forward(piece, &mut cache, None, None)?;
    }
    Ok(cache)
}
