//! The mixture of low-rank experts over a frozen backbone: a shared pair on chosen linear maps, routed pairs on the
//! feed-forward ones, one router a layer, one head that says what a session is about. Knows its own numbers and their file;
//! refuses to know how they are trained.

pub mod export;
mod file;
pub mod import;
mod init;
mod linear;
mod load;
mod projection;
pub mod route;

pub use file::AdapterError;
pub(crate) use file::{block, read, write};
pub use linear::Linear;
pub use load::ExpertLoad;
pub use projection::{Gates, Projection};

use candle_core::{Device, Tensor};
use empathd_proto::engine::MixtureSpec;
use route::Policy;
use std::ops::Range;

/// Most routed experts: a token's choice is 64 bits.
pub const MAX_EXPERTS: usize = 64;
/// Largest rank of one pair.
pub const MAX_RANK: usize = 1024;

/// A shared low-rank pair on chosen linears, routed experts on the feed-forward ones; cloning shares the numbers.
#[derive(Clone)]
pub struct Mixture {
    spec: MixtureSpec,
    layers: Vec<LayerAdapter>,
    /// Where the session prior is read: `[experts, hidden]`; none without one.
    session: Option<Tensor>,
}

/// The stacked pair of one linear map: rows `0..shared` of `a` belong to everyone, then come the experts in turn.
#[derive(Clone)]
pub struct LowRank {
    /// `[shared + experts·rank, in]`.
    pub(crate) a: Tensor,
    /// `[out, shared + experts·rank]`.
    pub(crate) b: Tensor,
    /// Rank of the shared part, 0 where this linear map has none.
    pub(crate) shared: usize,
}

/// What is trained of one layer.
#[derive(Clone)]
pub struct LayerAdapter {
    /// In the order of [`Linear::ALL`]; none where nothing is trained.
    pairs: Vec<Option<LowRank>>,
    /// `[experts, hidden]`, none without experts.
    router: Option<Tensor>,
    /// `[1]`, how much the router heeds the session prior; none in front of [`Mixture::prior_layer`].
    prior_weight: Option<Tensor>,
    policy: Policy,
    scale: f32,
}

impl LayerAdapter {
    /// The pair of a linear map, where it has one.
    #[must_use]
    pub fn pair(&self, linear: Linear) -> Option<&LowRank> {
        self.pairs[linear as usize].as_ref()
    }

    /// The router, unless there are no experts.
    #[must_use]
    pub const fn router(&self) -> Option<&Tensor> {
        self.router.as_ref()
    }

    /// How much the router heeds the session prior, `[1]`; none where it does not hear it.
    #[must_use]
    pub const fn prior_weight(&self) -> Option<&Tensor> {
        self.prior_weight.as_ref()
    }

    /// How the router decides.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// `alpha / rank`.
    #[must_use]
    pub const fn scale(&self) -> f32 {
        self.scale
    }

    /// How many tensors of it are trained.
    fn tensors(&self) -> usize {
        let routers = [&self.router, &self.prior_weight];
        2 * self.pairs.iter().flatten().count() + routers.into_iter().flatten().count()
    }
}

/// What kind of number a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterKind {
    /// The narrowing side of a low-rank pair.
    A,
    /// Its widening side.
    B,
    /// A router or a prior weight.
    Router,
    /// The session head.
    Session,
}

/// A trained tensor.
pub struct Parameter<'a> {
    /// `layers.<l>.<linear>.<a|b>`, `layers.<l>.router`, `layers.<l>.prior_weight` or `session.head`.
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

    /// The layer in whose input stream the session prior is read, and from which on routers hear it; none without one.
    #[must_use]
    pub fn prior_layer(&self) -> Option<usize> {
        self.session.as_ref().map(|_| prior_layer(self.layers.len()))
    }

    /// Where the session prior is read, `[experts, hidden]`; none without one.
    #[must_use]
    pub const fn session_head(&self) -> Option<&Tensor> {
        self.session.as_ref()
    }

    /// Every trained tensor, in a fixed order: layer by layer the pairs in the order of [`Linear::ALL`], each `a` before `b`,
    /// then the router, then its prior weight; behind all layers the session head.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter<'_>> {
        let layer = |(index, layer)| parameters_of(index, layer);
        let session = self.session.iter().map(|tensor| Parameter {
            name: "session.head".to_owned(),
            kind: ParameterKind::Session,
            tensor,
        });
        self.layers.iter().enumerate().flat_map(layer).chain(session).collect()
    }

    /// The trained tensors of one layer, in the same order.
    pub(crate) fn layer_parameters(&self, index: usize) -> Vec<Parameter<'_>> {
        parameters_of(index, &self.layers[index])
    }

    /// Where the tensors of one layer stand in [`Mixture::parameters`].
    #[must_use]
    pub fn layer_range(&self, index: usize) -> Range<usize> {
        let start = self.layers[..index].iter().map(LayerAdapter::tensors).sum();
        start..start + self.layers[index].tensors()
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
            for pair in copy.pairs.iter_mut().flatten() {
                pair.a = next(&pair.a)?;
                pair.b = next(&pair.b)?;
            }
            copy.router = copy.router.as_ref().map(&mut next).transpose()?;
            copy.prior_weight = copy.prior_weight.as_ref().map(&mut next).transpose()?;
            layers.push(copy);
        }
        let session = self.session.as_ref().map(next).transpose()?;
        Ok(Self { spec: self.spec.clone(), layers, session })
    }
}

/// The layer in whose input stream the session prior of a model of so many layers is read: a quarter of the way up, where
/// the stream says what a text is about and most routers are still to come.
const fn prior_layer(layers: usize) -> usize {
    if layers < 4 { 1 } else { layers / 4 }
}

/// A trained tensor of the routers.
const fn router(name: String, tensor: &Tensor) -> Parameter<'_> {
    Parameter { name, kind: ParameterKind::Router, tensor }
}

fn parameters_of(index: usize, layer: &LayerAdapter) -> Vec<Parameter<'_>> {
    let pairs = Linear::ALL.iter().zip(&layer.pairs);
    let pairs = pairs.filter_map(|(linear, pair)| pair.as_ref().map(|pair| sides_of(index, *linear, pair))).flatten();
    let own = layer.router.iter().map(|tensor| router(format!("layers.{index}.router"), tensor));
    let prior = layer.prior_weight.iter().map(|tensor| router(format!("layers.{index}.prior_weight"), tensor));
    pairs.chain(own).chain(prior).collect()
}

fn sides_of(index: usize, linear: Linear, pair: &LowRank) -> [Parameter<'_>; 2] {
    let name = |side: &str| format!("layers.{index}.{}.{side}", linear.name());
    let a = Parameter { name: name("a"), kind: ParameterKind::A, tensor: &pair.a };
    [a, Parameter { name: name("b"), kind: ParameterKind::B, tensor: &pair.b }]
}
