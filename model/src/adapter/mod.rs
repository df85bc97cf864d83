//! The mixture of low-rank experts over a frozen backbone: a shared pair on every linear map, routed pairs on the
//! feed-forward ones, one router a layer. Knows its own numbers and their file; refuses to know how they are trained.

mod file;
mod init;
mod linear;
mod load;
mod projection;

pub use file::AdapterError;
pub(crate) use file::{block, read, write};
pub use linear::Linear;
pub use load::ExpertLoad;
pub use projection::Projection;

use candle_core::{Device, Tensor};
use empathd_proto::engine::MixtureSpec;

/// Most routed experts: a token's choice is 64 bits.
pub const MAX_EXPERTS: usize = 64;
/// Largest rank of one pair.
pub const MAX_RANK: usize = 1024;

/// A shared low-rank pair on every linear, routed experts on the feed-forward ones; cloning shares the numbers.
#[derive(Clone)]
pub struct Mixture {
    spec: MixtureSpec,
    layers: Vec<LayerAdapter>,
}

/// The stacked pair of one linear map: rows `0..shared` of `a` belong to everyone, then come the experts in turn.
#[derive(Clone)]
pub struct LowRank {
    /// `[shared + experts·rank, in]`.
    pub(crate) a: Tensor,
    /// `[out, shared + experts·rank]`.
    pub(crate) b: Tensor,
    /// Rank of the shared part.
    pub(crate) shared: usize,
}

/// What is trained of one layer.
#[derive(Clone)]
pub struct LayerAdapter {
    /// In the order of [`Linear::ALL`].
    pairs: Vec<LowRank>,
    /// `[experts, hidden]`, none without experts.
    router: Option<Tensor>,
    top_k: usize,
    scale: f32,
}

impl LayerAdapter {
    /// The pair of a linear map.
    #[must_use]
    pub fn pair(&self, linear: Linear) -> &LowRank {
        &self.pairs[linear as usize]
    }

    /// The router, unless there are no experts.
    #[must_use]
    pub const fn router(&self) -> Option<&Tensor> {
        self.router.as_ref()
    }

    /// Experts a token takes.
    #[must_use]
    pub const fn top_k(&self) -> usize {
        self.top_k
    }

    /// `alpha / rank`.
    #[must_use]
    pub const fn scale(&self) -> f32 {
        self.scale
    }
}

/// What kind of number a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// One side of a low-rank pair.
    LowRank,
    /// A router.
    Router,
}

/// A trained tensor.
pub struct Parameter<'a> {
    /// `layers.<l>.<linear>.<a|b>` or `layers.<l>.router`.
    pub name: String,
    /// What it is.
    pub kind: ParameterKind,
    /// Its numbers.
    pub tensor: &'a Tensor,
}

impl Mixture {
    /// What it is made of.
    #[must_use]
    pub const fn spec(&self) -> &MixtureSpec {
        &self.spec
    }

    /// One layer of it.
    #[must_use]
    pub fn layer(&self, index: usize) -> &LayerAdapter {
        &self.layers[index]
    }

    /// Every trained tensor, in a fixed order.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter<'_>> {
        let layer = |(index, layer)| parameters_of(index, layer);
        self.layers.iter().enumerate().flat_map(layer).collect()
    }

    /// The trained tensors of one layer, in the same order.
    pub(crate) fn layer_parameters(&self, index: usize) -> Vec<Parameter<'_>> {
        parameters_of(index, &self.layers[index])
    }

    /// Trained numbers.
    #[must_use]
    pub fn trainable(&self) -> u64 {
        self.parameters().iter().map(|p| p.tensor.elem_count() as u64).sum()
    }

    /// The same mixture with its numbers on a device.
    ///
    /// # Errors
    /// They cannot be copied there.
    pub fn to_device(&self, device: &Device) -> candle_core::Result<Self> {
        self.map(|_, tensor| tensor.to_device(device))
    }

    /// The same mixture with each tensor, in the order of [`Mixture::parameters`], replaced by what `f` makes of it.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn map<E>(&self, mut f: impl FnMut(usize, &Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        let mut at = 0;
        let mut next = |tensor: &Tensor| {
            at += 1;
            f(at - 1, tensor)
        };
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let mut copy = layer.clone();
            for pair in &mut copy.pairs {
                pair.a = next(&pair.a)?;
                pair.b = next(&pair.b)?;
            }
            copy.router = copy.router.as_ref().map(&mut next).transpose()?;
            layers.push(copy);
        }
        Ok(Self { spec: self.spec.clone(), layers })
    }
}

fn parameters_of(index: usize, layer: &LayerAdapter) -> Vec<Parameter<'_>> {
    let side = |linear: &Linear, side: &str, tensor| Parameter {
        name: format!("layers.{index}.{}.{side}", linear.name()),
        kind: ParameterKind::LowRank,
        tensor,
    };
    let pairs = Linear::ALL.iter().zip(&layer.pairs);
    let mut all: Vec<Parameter<'_>> = pairs.flat_map(|(l, p)| [side(l, "a", &p.a), side(l, "b", &p.b)]).collect();
    if let Some(tensor) = &layer.router {
        all.push(Parameter { name: format!("layers.{index}.router"), kind: ParameterKind::Router, tensor });
    }
    all
}
