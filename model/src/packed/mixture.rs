//! An adapter generation in the layouts of the kernels: the low-rank sides of all linear maps that read the same input are
//! stacked, routers stay f32. Refuses to know passes.
//!
//! `y = W·x + scale·(B₀A₀x + Σ gₑBₑAₑx)`: the narrow middle `h = A·x` is computed for whole tiles of the stack and multiplied by
//! `scale·g`; each row adds only the parts that it chose. A part is the shared pair (0) or an expert (from 1); the B sides of
//! the parts lie apart, so that what one row reads is few long stretches of memory.

use crate::adapter::route::Policy;
use crate::adapter::{Linear, LowRank, Mixture};
use crate::config::BackboneConfig;
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
    pub(super) policy: Policy,
    pub(super) scale: f32,
    /// Where the session is read: the layer and `[experts, hidden]`, row after row; none without a session prior.
    session: Option<(usize, Vec<f32>)>,
    shared: usize,
    rank: usize,
    layers: Vec<AdapterLayer>,
}

struct AdapterLayer {
    /// `[experts, hidden]`, row after row.
    router: Vec<f32>,
    /// How much the router heeds the session prior; 0 where it does not hear it.
    prior_weight: f32,
    sites: Vec<Option<AdapterSite>>,
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
    pub fn new(mixture: &Mixture, config: &BackboneConfig) -> Result<Self> {
        let (spec, layers) = (mixture.spec(), config.layers);
        // Without a shared pair anywhere a column of zeros stands for it.
        let shared = if spec.shared_on.is_empty() { 1 } else { spec.shared_rank as usize };
        let stacks = Stacks { config, shared, rank: spec.expert_rank as usize, experts: spec.experts.len() };
        let mut arena = Arena::new((0..layers).map(|index| stacks.bytes(mixture, index)).sum());
        Ok(Self {
            experts: spec.experts.len(),
            policy: Policy::new(spec),
            session: mixture.prior_layer().zip(mixture.session_head().map(numbers).transpose()?),
            scale: spec.scale,
            shared,
            rank: stacks.rank,
            layers: (0..layers).map(|index| stacks.layer(mixture, index, &mut arena)).collect::<Result<_>>()?,
        })
    }

    /// The pairs of a site; none where nothing was trained.
    pub(super) fn site(&self, layer: usize, site: Site) -> Option<&AdapterSite> {
        self.layers[layer].sites[site as usize].as_ref()
    }

    /// The router of a layer, `[experts, hidden]`; empty without experts.
    pub(super) fn router(&self, layer: usize) -> &[f32] {
        &self.layers[layer].router
    }

    /// The head that reads the session, `[experts, hidden]`, in the layer where it is read.
    pub(super) fn session_head(&self, layer: usize) -> Option<&[f32]> {
        self.session.as_ref().filter(|(at, _)| *at == layer).map(|(_, head)| head.as_slice())
    }

    /// Numbers that a token leaves behind for the session prior.
    pub(super) const fn session_width(&self) -> usize {
        if self.session.is_some() { self.experts } else { 0 }
    }

    /// How much the router of a layer heeds the session prior; none where it does not hear it.
    pub(super) fn prior_weight(&self, layer: usize) -> Option<f32> {
        self.session.as_ref().filter(|(at, _)| layer >= *at).map(|_| self.layers[layer].prior_weight)
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
        let sites = self.layers.iter().flat_map(|layer| layer.sites.iter().flatten());
        sites.map(|site| site.a.rows()).max().unwrap_or(0)
    }
}

const fn columns((shared, rank): (usize, usize), part: usize) -> Range<usize> {
    if part == 0 { 0..shared } else { shared + (part - 1) * rank..shared + part * rank }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()
}

/// The common shape of the stacks: every linear map of a site has the same parts, those that were not trained as zeros.
struct Stacks<'a> {
    config: &'a BackboneConfig,
    shared: usize,
    rank: usize,
    experts: usize,
}

impl Stacks<'_> {
    /// Parts of the linear maps of a site.
    const fn parts(&self, site: Site) -> usize {
        1 + if site.is_routed() { self.experts } else { 0 }
    }

    /// Columns of each of them.
    const fn width(&self, site: Site) -> usize {
        self.shared + (self.parts(site) - 1) * self.rank
    }

    /// Whether something was trained at a site of a layer.
    fn is_trained(mixture: &Mixture, index: usize, site: Site) -> bool {
        site.linears().iter().any(|linear| mixture.layer(index).pair(*linear).is_some())
    }

    /// Bytes of all packed pairs of a layer.
    fn bytes(&self, mixture: &Mixture, index: usize) -> usize {
        let part = |out: usize, part: usize| {
            PackedMatrix::bytes_for(PackKind::F16, out, columns((self.shared, self.rank), part).len())
        };
        let linear = |site: Site, linear: Linear| {
            let (inner, out) = linear.sides(self.config);
            // Each linear map alone is at least as large as its rows in the stack.
            let a = PackedMatrix::bytes_for(PackKind::Q8, self.width(site), inner);
            a + (0..self.parts(site)).map(|at| part(out, at)).sum::<usize>()
        };
        let trained = Site::ALL.into_iter().filter(|site| Self::is_trained(mixture, index, *site));
        trained.flat_map(|site| site.linears().iter().map(move |at| linear(site, *at))).sum()
    }

    fn layer(&self, mixture: &Mixture, index: usize, arena: &mut Arena) -> Result<AdapterLayer> {
        let adapter = mixture.layer(index);
        let router = adapter.router().map(numbers).transpose()?.unwrap_or_default();
        let mut sites = Vec::with_capacity(Site::ALL.len());
        for site in Site::ALL {
            let trained = Self::is_trained(mixture, index, site);
            sites.push(if trained { Some(self.site(mixture, index, site, arena)?) } else { None });
        }
        let prior_weight = adapter.prior_weight().map(numbers).transpose()?.map_or(0.0, |weight| weight[0]);
        Ok(AdapterLayer { router, prior_weight, sites })
    }

    fn site(&self, mixture: &Mixture, index: usize, site: Site, arena: &mut Arena) -> Result<AdapterSite> {
        let (linears, width, mut a, mut wide) = (site.linears(), self.width(site), Vec::new(), Vec::new());
        for linear in linears {
            let pair = mixture.layer(index).pair(*linear);
            let (narrowing, widening) = self.padded(pair, linear.sides(self.config), width)?;
            a.extend(narrowing);
            wide.push(widening);
        }
        let inner = a.len() / (linears.len() * width);
        let a = PackedMatrix::from_f32_in(Some(arena), PackKind::Q8, linears.len() * width, inner, &a);
        let mut part = |b: &[f32], part: usize| {
            let columns = columns((self.shared, self.rank), part);
            let numbers: Vec<f32> =
                b.chunks_exact(width).flat_map(|row| row[columns.clone()].iter().copied()).collect();
            PackedMatrix::from_f32_in(Some(&mut *arena), PackKind::F16, b.len() / width, columns.len(), &numbers)
        };
        let b = wide.iter().map(|b| (0..self.parts(site)).map(|at| part(b, at)).collect()).collect();
        Ok(AdapterSite { a, b, width })
    }

    /// A `[width, in]` and B `[out, width]` of a linear map, zeros where it has no pair or no shared part.
    fn padded(
        &self,
        pair: Option<&LowRank>,
        (inner, out): (usize, usize),
        width: usize,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut a, mut b) = (vec![0f32; width * inner], vec![0f32; out * width]);
        let Some(pair) = pair else { return Ok((a, b)) };
        let (own_a, own_b) = (numbers(&pair.a)?, numbers(&pair.b)?);
        let first = if pair.shared > 0 { 0 } else { self.shared };
        a[first * inner..].copy_from_slice(&own_a);
        for (to, from) in b.chunks_exact_mut(width).zip(own_b.chunks_exact(width - first)) {
            to[first..].copy_from_slice(from);
        }
        Ok((a, b))
    }
}
