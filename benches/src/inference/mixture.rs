//! What a mixture costs while it answers: the same decoding with and without it, turn by turn, so that what else the machine
//! does weighs on both alike.

use super::stage::Stage;
use crate::measure::{Figures, rounded};
use candle_core::Tensor;
use empathd_model::adapter::Mixture;
use empathd_model::schedule::AdapterGeneration;
use empathd_proto::engine::MixtureSpec;
use std::sync::Arc;

/// Turns of both, of which the best counts.
const TURNS: usize = 6;
/// Depth at which they answer.
const DEPTH: usize = 32;
/// Name of the figure, experts, and the rank of each and of the shared pair.
const MIXTURES: [(&str, usize, u32); 2] = [("moe_decode_overhead_pct", 4, 4), ("moe_decode_overhead_pct_r16", 8, 16)];
/// Experts a token takes.
const TOP_K: u32 = 2;

/// Measures both mixtures.
pub(super) fn overheads(stage: &mut Stage, figures: &mut Figures) -> anyhow::Result<()> {
    for (number, (name, experts, rank)) in (1..).zip(MIXTURES) {
        let adapter = generation(stage, number, experts, rank)?;
        let (mut plain, mut mixed) = (0f64, 0f64);
        for _ in 0..TURNS {
            plain = plain.max(stage.decode(DEPTH, None)?);
            mixed = mixed.max(stage.decode(DEPTH, Some(&adapter))?);
        }
        figures.insert(name.into(), rounded(100.0 * (plain / mixed - 1.0)));
        super::say(figures, name);
    }
    Ok(())
}

/// A generation that changes something: B sides are random too.
fn generation(stage: &Stage, number: u64, experts: usize, rank: u32) -> anyhow::Result<AdapterGeneration> {
    let spec = MixtureSpec {
        shared_rank: rank,
        expert_rank: rank,
        experts: vec![None; experts],
        top_k: TOP_K,
        scale: 2.0,
        ..MixtureSpec::default()
    };
    let fresh = Mixture::init(stage.model.config(), &spec, number)?;
    let mixture = fresh.map(|_, tensor| Tensor::randn(0f32, 0.02, tensor.dims(), tensor.device()))?;
    Ok(AdapterGeneration { number, serving: Arc::new(stage.model.adapter(mixture)?) })
}
