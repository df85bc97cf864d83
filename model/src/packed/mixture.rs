//! An adapter generation in the layouts of the kernels: the low-rank sides of all linear maps that read the same input are
//! stacked, routers stay f32. Refuses to know passes.
//!
//! `y = W·x + scale·(B₀A₀x + Σ gₑBₑAₑx)`: the narrow middle `h = A·x` is computed for whole tiles of the stack and multiplied by
//! `scale·g`; each row adds only the parts that it chose. A part is the shared pair (0) or an expert (from 1); the B sides of
//! the parts lie apart, so that what one row reads is few long stretches of memory.

use crate::adapter::{Linear, Mixture};
use crate::kernels::{Arena, PackKind, PackedMatrix};
use candle_core::{Device, Result, Tensor};
use std::ops::Range;

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
    /// The A sides one after another, `[linears · width, in]`.
    pub(super) a: PackedMatrix,
    /// The B sides by linear map and part, `[out, rank of the part]`.
    pub(super) b: Vec<Vec<PackedMatrix>>,
    /// Columns of one linear map: the ranks of all its parts.
    pub(super) width: usize,
}

impl PackedMixture {
    /// Packs a mixture: A in eight bits, B in sixteen.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn new(mixture: &Mixture, layers: usize) -> Result<Self> {
        let spec = mixture.spec();
        let (shared, rank) = (spec.shared_rank as usize, spec.expert_rank as usize);
        let sizes = (0..layers).map(|index| layer_bytes(mixture, index, (shared, rank)));
        let mut arena = Arena::new(sizes.sum::<Result<usize>>()?);
        Ok(Self {
            experts: spec.experts.len(),
            top_k: spec.top_k as usize,
            scale: spec.scale,
            shared,
            rank,
            layers: (0..layers)
                .map(|index| layer(mixture, index, (shared, rank), &mut arena))
                .collect::<Result<_>>()?,
        })
    }

    pub(super) fn site(&self, layer: usize, site: Site) -> &AdapterSite {
        &self.layers[layer].sites[site as usize]
    }

    /// The router of a layer, `[experts, hidden]`; empty without experts.
    pub(super) fn router(&self, layer: usize) -> &[f32] {
        &self.layers[layer].router
    }

    /// The shared part and one for each expert.
    pub(super) const fn parts(&self) -> usize {
        1 + self.experts
    }

    /// The ranks of the shared part and of each expert's.
    pub(super) const fn ranks(&self) -> (usize, usize) {
        (self.shared, self.rank)
    }

    /// The columns of a part within a linear map.
    pub(super) const fn columns(&self, part: usize) -> Range<usize> {
        columns((self.shared, self.rank), part)
    }

    /// Columns of the site that has most.
    pub(super) fn widest(&self) -> usize {
        let sites = self.layers.iter().flat_map(|layer| &layer.sites);
        sites.map(|site| site.a.rows()).max().unwrap_or(0)
    }
}

const fn columns((shared, rank): (usize, usize), part: usize) -> Range<usize> {
    if part == 0 { 0..shared } else { shared + (part - 1) * rank..shared + part * rank }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()
}

/// How many parts a pair of so many columns has.
const fn parts_of((shared, rank): (usize, usize), width: usize) -> usize {
    1 + (width - shared) / rank
}

/// Bytes of all packed pairs of a layer.
fn layer_bytes(mixture: &Mixture, index: usize, ranks: (usize, usize)) -> Result<usize> {
    let mut bytes = 0;
    for site in Site::ALL {
        for linear in site.linears() {
            let pair = mixture.layer(index).pair(*linear);
            let ((width, inner), out) = (pair.a.dims2()?, pair.b.dim(0)?);
            // Each linear map alone is at least as large as its rows in the stack.
            bytes += PackedMatrix::bytes_for(PackKind::Q8, width, inner);
            for part in 0..parts_of(ranks, width) {
                bytes += PackedMatrix::bytes_for(PackKind::F16, out, columns(ranks, part).len());
            }
        }
    }
    Ok(bytes)
}

fn layer(mixture: &Mixture, index: usize, ranks: (usize, usize), arena: &mut Arena) -> Result<AdapterLayer> {
    let adapter = mixture.layer(index);
    let router = adapter.router().map(numbers).transpose()?.unwrap_or_default();
    let site = |site: Site| {
        let pairs: Vec<_> = site.linears().iter().map(|linear| adapter.pair(*linear)).collect();
        let (width, inner) = pairs[0].a.dims2()?;
        let mut a = Vec::with_capacity(pairs.len() * width * inner);
        for pair in &pairs {
            a.extend(numbers(&pair.a)?);
        }
        let a = PackedMatrix::from_f32_in(Some(arena), PackKind::Q8, pairs.len() * width, inner, &a);
        let mut b = Vec::with_capacity(pairs.len());
        for pair in &pairs {
            let out = pair.b.dim(0)?;
            let parts = (0..parts_of(ranks, width)).map(|part| {
                let columns = columns(ranks, part);
                let rank = columns.len();
                let numbers = numbers(&pair.b.narrow(1, columns.start, rank)?.contiguous()?)?;
                Ok(PackedMatrix::from_f32_in(Some(arena), PackKind::F16, out, rank, &numbers))
            });
            b.push(parts.collect::<Result<_>>()?);
        }
        Ok(AdapterSite { a, b, width })
    };
    Ok(AdapterLayer { router, sites: Site::ALL.into_iter().map(site).collect::<Result<_>>()? })
}
