//! An adapter generation in the layouts of the kernels: the low-rank sides of all linear maps that read the same input are
//! stacked, routers stay f32. Refuses to know passes.
//!
//! `y = W·x + scale·(B₀A₀x + Σ gₑBₑAₑx)`: the narrow middle `h = A·x` is computed for whole tiles of the stack, multiplied by the
//! gates, and each row adds only its own columns of B.

use crate::adapter::{Linear, Mixture};
use crate::kernels::{PackKind, PackedMatrix, Run};
use candle_core::{Result, Tensor};

/// The four inputs of a layer's linear maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Site {
    /// Queries, keys and values.
    Attention,
    /// Mixtures of values.
    Output,
    /// Gate and up.
    Inner,
    /// Gated activations.
    Down,
}

impl Site {
    const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::Inner, Self::Down];

    /// The linear maps that read it.
    pub(super) const fn linears(self) -> &'static [Linear] {
        match self {
            Self::Attention => &[Linear::Query, Linear::Key, Linear::Value],
            Self::Output => &[Linear::Output],
            Self::Inner => &[Linear::Gate, Linear::Up],
            Self::Down => &[Linear::Down],
        }
    }

    /// Whether experts work on it.
    pub(super) const fn is_routed(self) -> bool {
        matches!(self, Self::Inner | Self::Down)
    }
}

/// A mixture ready to answer.
pub struct PackedMixture {
    pub(super) experts: usize,
    pub(super) top_k: usize,
    pub(super) scale: f32,
    shared: usize,
    rank: usize,
    layers: Vec<AdapterLayer>,
}

struct AdapterLayer {
    /// `[experts, hidden]`, row after row.
    router: Vec<f32>,
    sites: Vec<AdapterSite>,
}

/// The pairs of the linear maps that read one input.
pub(super) struct AdapterSite {
    /// The A sides one after another, `[linears · stack, in]`.
    pub(super) a: PackedMatrix,
    /// The B sides `[out, stack]`.
    pub(super) b: Vec<PackedMatrix>,
    /// Rows of one linear map in `a`.
    pub(super) stack: usize,
}

impl PackedMixture {
    /// Packs a mixture: A in eight bits, B in sixteen.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn new(mixture: &Mixture, layers: usize) -> Result<Self> {
        let spec = mixture.spec();
        Ok(Self {
            experts: spec.experts.len(),
            top_k: spec.top_k as usize,
            scale: spec.scale,
            shared: spec.shared_rank as usize,
            rank: spec.expert_rank as usize,
            layers: (0..layers).map(|index| layer(mixture, index)).collect::<Result<_>>()?,
        })
    }

    pub(super) fn site(&self, layer: usize, site: Site) -> &AdapterSite {
        &self.layers[layer].sites[site as usize]
    }

    /// The router of a layer, `[experts, hidden]`; empty without experts.
    pub(super) fn router(&self, layer: usize) -> &[f32] {
        &self.layers[layer].router
    }

    /// The columns that belong to everyone.
    pub(super) const fn shared_run(&self) -> Run {
        Run { first: 0, len: self.shared }
    }

    /// The columns of an expert.
    pub(super) const fn expert_run(&self, expert: usize) -> Run {
        Run { first: self.shared + expert * self.rank, len: self.rank }
    }

    /// Runs of a row on a routed site.
    pub(super) const fn routed_runs(&self) -> usize {
        if self.experts == 0 { 1 } else { 1 + self.top_k }
    }

    /// Longest stack of a site.
    pub(super) fn widest(&self) -> usize {
        let sites = self.layers.iter().flat_map(|layer| &layer.sites);
        sites.map(|site| site.a.rows()).max().unwrap_or(0)
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_device(&candle_core::Device::Cpu)?.to_vec1()
}

fn layer(mixture: &Mixture, index: usize) -> Result<AdapterLayer> {
    let adapter = mixture.layer(index);
    let router = adapter.router().map(numbers).transpose()?.unwrap_or_default();
    let site = |site: Site| {
        let pairs: Vec<_> = site.linears().iter().map(|linear| adapter.pair(*linear)).collect();
        let (stack, width) = pairs[0].a.dims2()?;
        let mut a = Vec::with_capacity(pairs.len() * stack * width);
        for pair in &pairs {
            a.extend(numbers(&pair.a)?);
        }
        let b = pairs.iter().map(|pair| {
            let (out, stack) = pair.b.dims2()?;
            Ok(PackedMatrix::from_f32(PackKind::F16, out, stack, &numbers(&pair.b)?))
        });
        let a = PackedMatrix::from_f32(PackKind::Q8, pairs.len() * stack, width, &a);
        Ok(AdapterSite { a, b: b.collect::<Result<_>>()?, stack })
    };
    Ok(AdapterLayer { router, sites: Site::ALL.into_iter().map(site).collect::<Result<_>>()? })
}
